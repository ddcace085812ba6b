# SPDX-License-Identifier: BSD-2-Clause
"""The setup of VALE's manual page, in its own words: two switches with two guests each.

    qemu ... -net nic -net netmap,ifname=vale1:a      guest a ──┐         ┌── guest c
    qemu ... -net nic -net netmap,ifname=vale1:b      guest b ──┴─ vale1  │
    qemu ... -net nic -net netmap,ifname=vale2:c                  vale2 ──┤
    qemu ... -net nic -net netmap,ifname=vale2:d                          └── guest d

All four have addresses of one network, so only the switches keep them apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lib.guest import MARKS, VALE_QEMU, Guest
from lib.valed import Valed, check_books

PORTS = {"a": "vale1:a", "b": "vale1:b", "c": "vale2:c", "d": "vale2:d"}
QEMUS_MAC = "52:54:00:12:34:56"  # of the first NIC of every QEMU that is not told another
RATE, SECONDS = 200, 1
LEAST = RATE * SECONDS // 10  # a guest may get no CPU when it should send

pytestmark = [
    *MARKS,
    pytest.mark.skipif(not VALE_QEMU.exists(), reason=f"no {VALE_QEMU}: run 'make qemu'"),
]


@dataclass
class Lab:
    """The guests and their switches."""

    valed: Valed
    guests: dict[str, Guest]

    def counters(self) -> dict[str, Any]:
        """What each port has received and sent."""
        ports = self.valed.qmp().ports()
        return {name: (port["rx"]["frames"], port["tx"]["frames"]) for name, port in ports.items()}


def set_up(guest: Guest) -> None:
    """The NIC that QEMU gave gets an address of its own; they are all alike."""
    guest.run(f"""
        nic=$(basename $(dirname $(grep -l {QEMUS_MAC} /sys/class/net/*/address)))
        ip link set $nic address 52:54:00:00:00:0{guest.number} name vale0
        ip addr add {guest.address()}/24 dev vale0 && ip link set vale0 up
        until [ "$(cat /sys/class/net/vale0/carrier)" = 1 ]; do sleep 0.05; done
    """)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("g")
    guests: dict[str, Guest] = {}
    with Valed.run() as valed, pytest.MonkeyPatch.context() as patch:
        patch.setenv("VALE_RUNDIR", str(valed.rundir))
        patch.delenv("VALE_DEV", raising=False)
        try:
            for number, (name, port) in enumerate(PORTS.items(), 1):
                words = ("-machine", "pc", "-net", "nic", "-net", f"netmap,ifname={port}")
                guests[name] = Guest(folder, name, number, [], qemu=VALE_QEMU, options=words)
            for guest in guests.values():
                guest.connect()
                set_up(guest)
            yield Lab(valed, guests)
        finally:
            for guest in guests.values():
                guest.close()


def test_the_nic_is_an_e1000(lab: Lab) -> None:
    for guest in lab.guests.values():
        driver = guest.run("basename $(readlink /sys/class/net/vale0/device/driver)")
        assert driver == "e1000\n"
    assert set(lab.counters()) == set(PORTS.values())


@pytest.mark.parametrize(("sender", "receiver"), ["ab", "ba", "cd", "dc"])
def test_every_datagram_arrives_within_a_switch_and_none_without(
    lab: Lab, sender: str, receiver: str
) -> None:
    source, sink = lab.guests[sender], lab.guests[receiver]
    source.run(f"ping -c 3 -W 20 {sink.address()}")
    before = lab.counters()
    report = sink.start("vale-udp-recv --json --max-seconds 60")
    sink.run("until grep -q ':2328 ' /proc/net/udp; do sleep 0.1; done")
    words = f"--to {sink.address()} --rate {RATE} --seconds {SECONDS} --json"
    sent = json.loads(source.run(f"vale-udp-send {words}"))["sent"]
    counts = json.loads(report().splitlines()[-1])
    assert (counts["received"], counts["duplicated"]) == (sent, 0)
    grown = growth(before, lab.counters())
    assert grown[PORTS[sender]][0] >= sent >= LEAST
    assert grown[PORTS[receiver]][1] >= sent
    switch = PORTS[sender].partition(":")[0]
    assert {n for n, moved in grown.items() if moved != (0, 0)} == {
        name for name in PORTS.values() if name.startswith(switch)
    }


def growth(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {
        name: (after[name][0] - before[name][0], after[name][1] - before[name][1])
        for name in before
    }


def test_nothing_crosses(lab: Lab) -> None:
    """Broadcasts and pings from one switch to the other: nobody there sees a frame."""
    a, others = lab.guests["a"], (lab.guests["c"], lab.guests["d"])
    captures = [
        guest.start("tcpdump -n -Z root -i vale0 -w /tmp/seen 2>/tmp/said; true")
        for guest in others
    ]
    for guest in others:
        guest.run("until grep -q listening /tmp/said; do sleep 0.1; done")
    before = lab.counters()
    for guest in others:
        lost = a.run(f"ping -c 3 -W 1 {guest.address()}; true")
        assert "3 packets transmitted, 0 packets received" in lost
    grown = growth(before, lab.counters())
    assert grown["vale1:a"][0] == grown["vale1:b"][1] >= 2  # the ARP requests of a
    assert grown["vale2:c"] == grown["vale2:d"] == (0, 0)
    for guest, capture in zip(others, captures, strict=True):
        guest.run("killall -INT tcpdump")
        capture()
        assert guest.run("tcpdump -n -Z root -r /tmp/seen 2>/dev/null | wc -l") == "0\n"
    check_books(lab.valed.qmp().ports())
