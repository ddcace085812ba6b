#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# hub_ndr.sh NAME QEMU DEVICE: the highest rate that passes a QEMU without a guest and without loss.
#
#   vale-pktgen tx  vale1:x --- vale1:a  hub in QEMU  vale2:b --- vale2:y  vale-pktgen rx
#
# DEVICE is /dev/netmap or a valed's netmap.sock. Frames of 60 bytes, for a second each time: the
# rate doubles until frames are lost, and is then halved in between to 5 %. Prints one line:
#
#   @NAME.ndr 0 {"pps": RATE, "syscalls": S}
#
# S, where a QEMU counts them: kicks and wake-ups of both ports for a million frames at that rate.
# Runs on a host and in micro; vale-pktgen is beside it or in PATH.
name=$1 qemu=$2 device=$3
out=$(mktemp -d)
PATH=.:$PATH
trap 'kill "$pid" 2> /dev/null; rm -rf "$out"' EXIT

mkfifo "$out/commands"
"$qemu" -machine none -nodefaults -display none -qmp stdio \
    -netdev "netmap,id=n0,ifname=vale1:a,devname=$device" -netdev hubport,id=h0,hubid=0,netdev=n0 \
    -netdev "netmap,id=n1,ifname=vale2:b,devname=$device" -netdev hubport,id=h1,hubid=0,netdev=n1 \
    < "$out/commands" >> "$out/qemu" 2> "$out/qemu.err" &
pid=$!
exec 3> "$out/commands"
echo "{'execute': 'qmp_capabilities'}" >&3

# number KEY: of the JSON object on the input.
number() {
    sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p"
}

# trial RATE: whether every frame of a second arrives.
trial() {
    : > "$out/rx.err"
    vale-pktgen -i vale2:y -f rx --wait-idle 1 --seconds 20 --slots 4096 --json --device "$device" \
        > "$out/rx" 2> "$out/rx.err" &
    rx=$!
    until grep -q ready "$out/rx.err"; do
        kill -0 "$rx" || return 1
        sleep 0.05
    done
    vale-pktgen -i vale1:x -f tx -n "$1" -R "$1" -b 32 --json --device "$device" \
        > "$out/tx" 2> "$out/tx.err" || return 1
    wait "$rx"
    echo "# $name: at $1 frames/s $(number packets < "$out/rx") of $(number packets < "$out/tx") arrived"
    [ "$(number packets < "$out/rx")" = "$1" ]
}

# passes RATE: in one of three trials; the machine has other things to do.
passes() {
    trial "$1" || trial "$1" || trial "$1"
}

good=0 bad=20000
while [ "$bad" -lt 10000000 ] && passes "$bad"; do
    good=$bad bad=$((bad * 2))
done
while [ $(((bad - good) * 20)) -gt "$bad" ]; do
    middle=$(((good + bad) / 2))
    if passes "$middle"; then good=$middle; else bad=$middle; fi
done

# kicks_and_calls: of our netdevs so far; 0 of another QEMU's, which has no such objects.
kicks_and_calls() {
    : > "$out/qemu"
    for property in n0/rx-calls n1/tx-kicks n1/tx-calls; do
        echo "{'execute': 'qom-get', 'arguments':" \
            "{'path': '/netmap/${property%/*}', 'property': '${property#*/}'}}" >&3
    done
    echo "{'execute': 'query-name', 'id': 'end'}" >&3
    until grep -q '"end"' "$out/qemu"; do sleep 0.05; done
    sum=0
    for n in $(number return < "$out/qemu"); do sum=$((sum + n)); done
    echo $sum
}

before=$(kicks_and_calls)
passes "$good" > /dev/null
after=$(kicks_and_calls)
echo "@$name.ndr 0 {\"pps\": $good, \"syscalls\": $(((after - before) * 1000000 / (good + 1)))}"
