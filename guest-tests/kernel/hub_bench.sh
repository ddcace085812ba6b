#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# What runs inside the guest for `make bench-kernel`: the rate without loss through QEMU's own backend and through ours on
# the module, and through ours on valed, three times by turns. run.py on the host knows the format.
cd "$(dirname "$0")" || exit 1
dmesg -n 1
insmod ./netmap.ko || exit 1
mkdir -m 700 /tmp/vale
./valed --rundir /tmp/vale &
until [ -S /tmp/vale/netmap.sock ]; do sleep 0.1; done
for turn in 1 2 3; do
    ./hub_ndr.sh "upstream$turn" ./qemu-upstream /dev/netmap
    ./hub_ndr.sh "module$turn" ./qemu-system-x86_64 /dev/netmap
    ./hub_ndr.sh "valed$turn" ./qemu-system-x86_64 /tmp/vale/netmap.sock
done
echo "@done"
