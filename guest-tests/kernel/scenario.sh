#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# What runs inside the guest: load the module, run the programs on /dev/netmap, print what they
# say. run.py on the host knows the format and judges.
#
#   one switch:   pktgen tx  vale1:x --- vale1:y  pktgen rx
#   through QEMU: pktgen tx  vale1:x --- vale1:a  hub  vale2:b --- vale2:y  pktgen rx

cd "$(dirname "$0")" || exit 1
out=$(mktemp -d)

# bare_qemu OPTIONS: our QEMU without a machine, for its netdevs alone.
bare_qemu() {
    timeout 60 ./qemu-system-x86_64 -machine none -nodefaults -display none "$@"
}

# The console is ours now: the module's messages would break lines in two.
dmesg -n 1

# report NAME CODE FILE: a program that has ended, with the object that it printed.
report() {
    echo "@$1 $2 $(cat "$out/$3")"
    [ "$2" = 0 ] || sed 's/^/# /' "$out/$3.err"
}

# wait_for TEXT FILE: until a program has said it; a minute is for machines that are very busy.
wait_for() {
    tries=600
    until grep -q "$1" "$2" || [ $((tries -= 1)) = 0 ]; do
        sleep 0.1
    done
}

# pair NAME RX_PORT TX_PORT RX_OPTIONS TX_OPTIONS: a receiver, and when it is ready a sender.
pair() {
    echo "# run $1: vale-pktgen $3 to $2, $5"
    : > "$out/rx.err"
    # shellcheck disable=SC2086 # options are words
    timeout 150 ./vale-pktgen -i "$2" -f rx --wait-idle 3 --seconds 120 --json $4 \
        > "$out/rx" 2> "$out/rx.err" &
    wait_for ready "$out/rx.err"
    # shellcheck disable=SC2086
    timeout 120 ./vale-pktgen -i "$3" -f tx --json $5 > "$out/tx" 2> "$out/tx.err"
    report "$1.tx" $? tx
    wait $!
    report "$1.rx" $? rx
}

# window NAME FROM TO LENGTH COUNT: every frame must come through, whatever the speed.
window() {
    echo "# run $1: netmap-window $2 to $3, $5 frames of $4 bytes"
    timeout 150 ./netmap-window "$2" "$3" "$4" "$5" > "$out/window" 2> "$out/window.err"
    report "$1.window" $? window
}

# refused NAME PROGRAM...: a program that must end with one line on stderr.
refused() {
    name=$1
    shift
    "$@" < /dev/null > "$out/refused" 2> "$out/refused.err"
    echo "@$name.refused $? {\"lines\": $(wc -l < "$out/refused.err")}"
    sed 's/^/# /' "$out/refused.err"
}

# hub PORT PORT: QEMU without a guest, two ports on one hub; returns when both are open.
hub() {
    bare_qemu -daemonize -pidfile "$out/qemu.pid" \
        -netdev netmap,id=n0,ifname="$1" -netdev hubport,id=h0,hubid=0,netdev=n0 \
        -netdev netmap,id=n1,ifname="$2" -netdev hubport,id=h1,hubid=0,netdev=n1 \
        > "$out/qemu" 2> "$out/qemu.err"
    report hub.qemu $? qemu
}

on_one_switch() {
    pair plain vale1:y vale1:x --seq "--seq -n 1000"
    pair device vale1:y vale1:x "--seq --device /dev/netmap" "--seq -n 1000 --device /dev/netmap"
    pair multislot vale1:y vale1:x --seq "--seq -n 200 -l 5000"
    window switch60 vale1:x vale1:y 60 100000
    window switch1514 vale1:x vale1:y 1514 50000
    window switch5000 vale1:x vale1:y 5000 20000
    pair paced60 vale1:y vale1:x --seq "--seq -n 100000 -R 20000"
    pair rate60 vale1:y vale1:x "" "--seconds 5 -l 60"
    pair rate1514 vale1:y vale1:x "" "--seconds 5 -l 1514"
}

# Headers and offloads between QEMU's NIC and another port; the program judges, in TAP.
headers() {
    timeout 300 ./qemu-vnet-test ./qemu-system-x86_64 /dev/netmap 2> "$out/vnet.err"
    code=$?
    echo "{}" > "$out/vnet"
    report vnet.test $code vnet
}

# A netdev of two ring pairs, asked over QMP how many it has.
queues() {
    printf '%s\n' "{'execute': 'qmp_capabilities'}" \
        "{'execute': 'qom-get', 'arguments': {'path': '/netmap/n0', 'property': 'queues'}}" \
        "{'execute': 'quit'}" > "$out/commands"
    bare_qemu -qmp stdio -netdev netmap,id=n0,ifname=vale1:m,queues=2 \
        < "$out/commands" > "$out/qmp" 2> "$out/queues.err"
    sed -n 's/.*"return": \([0-9][0-9]*\).*/{"queues": \1}/p' "$out/qmp" > "$out/queues"
    report queues.qemu $? queues
}

through_qemu() {
    hub vale1:a vale2:b
    refused busy_tool ./vale-pktgen -i vale1:a -f rx --seconds 1
    refused busy_qemu bare_qemu -netdev netmap,id=n0,ifname=vale1:a
    pair hub_plain vale2:y vale1:x --seq "--seq -n 1000"
    pair hub_multislot vale2:y vale1:x --seq "--seq -n 200 -l 5000"
    window hub60 vale1:x vale2:y 60 100000
    window hub1514 vale1:x vale2:y 1514 50000
    window hub5000 vale1:x vale2:y 5000 20000
    pair hubpaced60 vale2:y vale1:x --seq "--seq -n 100000 -R 20000"
    pair hubrate60 vale2:y vale1:x "" "--seconds 5 -l 60"
    pair hubrate1514 vale2:y vale1:x "" "--seconds 5 -l 1514"
    kill "$(cat "$out/qemu.pid")"
    wait_gone "$(cat "$out/qemu.pid")"
    ./vale-pktgen -i vale1:a -f rx --seconds 0.1 --json > "$out/after" 2> "$out/after.err"
    report after.rx $? after
}

wait_gone() {
    while kill -0 "$1" 2> /dev/null; do
        sleep 0.1
    done
}

if ! insmod ./netmap.ko || ! [ -c /dev/netmap ]; then
    echo "@module.load 1 {}"
    dmesg | tail -n 5 | sed 's/^/# /'
    exit 1
fi
echo "@module.load 0 {}"
./netmap-abi-test
on_one_switch
refused bad_name_qemu bare_qemu -netdev netmap,id=n0,ifname=eth0:a:b
headers
queues
through_qemu
echo "@done"
