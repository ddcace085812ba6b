# SPDX-License-Identifier: BSD-2-Clause
"""Offloads between real guests: real Linux drivers, a real valed, two kinds of ports.

    unmodified QEMU:

    guest a  vale0 ── vhost-user ──┐                  a and b leave checksums and segmentation
    guest b  vale0 ── vhost-user ──┼── valed          undone for each other; c knows neither, so
    guest c  vale0 ── stream ──────┘                  valed does the work between them
    guest a  vale1 ══ QEMU's stream netdev ══ vale1  guest b     (the baseline)

    our backend: the same with netmap netdevs; c is an RTL8139

A guest's kernel checks every checksum it is not told to trust, and counts the wrong ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lib.guest import MARKS, QEMU, VALE_QEMU, Guest, netmap, stream, vhost_user
from lib.valed import Valed, check_books

FILE_BYTES = 24 << 20

pytestmark = MARKS


class Lab:
    """The three guests and their switch."""

    qemu = QEMU

    def __init__(self, valed: Valed, folder: Path) -> None:
        self.valed = valed
        self.guests: dict[str, Guest] = {}
        for number, name in enumerate("abc", 1):
            netdevs = [self.netdev(name)]
            if name != "c":
                netdevs.append(stream(folder / "cable", server=name == "a"))
            model = self.model(name)
            self.guests[name] = Guest(folder, name, number, netdevs, qemu=self.qemu, model=model)
            while name == "a" and not (folder / "cable").exists():
                time.sleep(0.02)
        for guest in self.guests.values():
            guest.connect()

    def netdev(self, name: str) -> list[str]:
        kind, netdev = ("stream", stream) if name == "c" else ("vhost-user", vhost_user)
        self.valed.qmp().execute("port-add", name=f"vale1:{name}", kind=kind)
        return netdev(self.valed.rundir / f"vale1:{name}")

    def model(self, name: str) -> str:
        del name
        return "virtio-net-pci"

    def port(self, name: str) -> dict[str, Any]:
        return self.valed.qmp().port(f"vale1:{name}")

    def close(self) -> None:
        for guest in self.guests.values():
            guest.close()


class NetmapLab(Lab):
    """The same with our backend."""

    qemu = VALE_QEMU

    def netdev(self, name: str) -> list[str]:
        return netmap(self.valed.rundir, f"vale1:{name}")

    def model(self, name: str) -> str:
        return "rtl8139" if name == "c" else "virtio-net-pci"


@pytest.fixture(scope="module", params=[Lab, NetmapLab])
def lab(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Lab]:
    if not request.param.qemu.exists():
        pytest.skip(f"no {request.param.qemu}: run 'make qemu'")
    with Valed.run() as valed:
        made = request.param(valed, tmp_path_factory.mktemp("g"))
        try:
            yield made
        finally:
            made.close()


@pytest.mark.parametrize(("name", "state"), [("a", "on"), ("b", "on"), ("c", "off [fixed]")])
def test_guest_sees_what_its_port_can(lab: Lab, name: str, state: str) -> None:
    if lab.model(name) == "rtl8139":
        pytest.skip("this NIC computes checksums by itself")
    lines = lab.guests[name].run("ethtool -k vale0").splitlines()
    ours = {"tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-tcp6-segmentation"}
    assert {f"{feature}: {state}" for feature in ours} <= {line.strip() for line in lines}


def send_file(lab: Lab, sender: Guest, receiver: Guest, *, ipv6: bool) -> None:
    """A file arrives as it was, and the switch's books balance."""
    sender.send_file(receiver, FILE_BYTES, ipv6=ipv6)
    check_books(lab.valed.qmp().ports())


@pytest.mark.parametrize("ipv6", [False, True])
def test_offloads_pass_between_those_who_know(lab: Lab, *, ipv6: bool) -> None:
    before = lab.port("b")["tx"]
    send_file(lab, lab.guests["a"], lab.guests["b"], ipv6=ipv6)
    after = lab.port("b")["tx"]
    frames = after["frames"] - before["frames"]
    assert after["segmented"] == before["segmented"]
    assert (after["bytes"] - before["bytes"]) / frames > 3000  # far more than an MTU


@pytest.mark.parametrize("ipv6", [False, True])
def test_frames_are_completed_for_who_does_not_know(lab: Lab, *, ipv6: bool) -> None:
    before = lab.port("c")["tx"]["segmented"]
    send_file(lab, lab.guests["a"], lab.guests["c"], ipv6=ipv6)
    after = lab.port("c")["tx"]["segmented"]
    frames, segments, length = (after[key] - before[key] for key in ("frames", "segments", "bytes"))
    assert segments > 2 * frames > 0
    assert length / segments <= 1514
    assert length > 0.9 * FILE_BYTES  # the rest came in frames of one segment


@pytest.mark.parametrize("ipv6", [False, True])
def test_complete_frames_come_to_who_knows(lab: Lab, *, ipv6: bool) -> None:
    send_file(lab, lab.guests["c"], lab.guests["b"], ipv6=ipv6)


def tcp_rate(client: Guest, server: Guest, nic: int, seconds: int = 5) -> float:
    """bit/s that iperf3 receives."""
    done = server.serve("iperf3 -s -1 > /dev/null", 5201)
    report = json.loads(client.run(f"iperf3 -c {server.address(nic)} -t {seconds} -J"))
    done()
    return float(report["end"]["sum_received"]["bits_per_second"])


def test_tcp_is_twice_as_fast_as_the_stock_stream_pair(
    lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    rates: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(2):  # in turns: the machine has other things to do
        for nic, found in rates.items():
            found.append(tcp_rate(lab.guests["a"], lab.guests["b"], nic))
    ratio = sum(rates[0]) / sum(rates[1])
    text = ", ".join(f"{sum(r) / len(r) / 1e6:.0f} Mbit/s" for r in rates.values())
    print(f"{type(lab).__name__}, stock stream: {text}: ratio {ratio:.2f}")
    record_property(f"tcp_ratio_to_stock_stream_{type(lab).__name__}", round(ratio, 2))
    assert ratio > 2
