# SPDX-License-Identifier: BSD-2-Clause
"""A switch that is away for longer than the grace is a link without carrier for the guest.

guest  vale0 virtio-net ── vale1:v ──┐
       vale1 e1000      ── vale1:e ──┴─ [ vale1 ] ── vale1:p ── lib/echo.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.echo import Echo
from lib.guest import MARKS, VALE_QEMU, Guest, netmap
from lib.valed import Valed, check_books, eventually

NICS = {"vale0": "198.18.0.100", "vale1": "198.18.1.100"}  # and whom to ping from there
MINUTE, PINGS = 60, 5

pytestmark = [
    *MARKS,
    pytest.mark.skipif(not VALE_QEMU.exists(), reason=f"no {VALE_QEMU}: run 'make qemu'"),
]


@pytest.fixture
def guest(valed: Valed, tmp_path: Path) -> Iterator[Guest]:
    words = [word.format(n=1) for word in netmap(valed.rundir, "vale1:e")]
    e1000 = ["-device", "e1000,netdev=n1,romfile=,mac=52:54:00:00:01:01"]
    made = Guest(
        tmp_path, "a", 1, [netmap(valed.rundir, "vale1:v")], qemu=VALE_QEMU,
        options=(*words, *e1000),
    )  # fmt: skip
    try:
        made.connect()
        made.run(
            "nic=$(basename $(dirname $(grep -l 52:54:00:00:01:01 /sys/class/net/*/address)))"
            "; ip link set $nic name vale1 && ip link set vale1 up && "
            f"ip addr add {made.address(1)}/24 dev vale1"
        )
        yield made
    finally:
        made.close()


def carriers(guest: Guest, file: str = "carrier") -> list[int]:
    return [int(n) for n in guest.run(f"cat /sys/class/net/vale[01]/{file}").split()]


def ping(guest: Guest, valed: Valed) -> None:
    """Through each NIC to the echo behind its network."""
    for nic, address in NICS.items():
        with Echo(valed.open("vale1:p"), address) as echo:
            output = guest.run(f"ping -c {PINGS} -i 0.2 -W 20 -I {nic} {address}")
            assert f"{PINGS} packets received" in output, output
            assert echo.answered == PINGS
        valed.close_clients()


def test_carrier_goes_and_comes_with_the_switch(valed: Valed, guest: Guest) -> None:
    eventually("carriers", lambda: carriers(guest) == [1, 1], MINUTE)
    ping(guest, valed)
    downs = carriers(guest, "carrier_down_count")
    for lap in range(1, 4):
        valed.kill()
        eventually("no carrier", lambda: carriers(guest) == [0, 0], MINUTE)
        valed.start()
        eventually("carriers again", lambda: carriers(guest) == [1, 1], MINUTE)
        ping(guest, valed)
        assert carriers(guest, "carrier_down_count") == [count + lap for count in downs]
    with valed.qmp() as qmp:
        check_books(qmp.ports())
