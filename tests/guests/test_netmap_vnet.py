# SPDX-License-Identifier: BSD-2-Clause
"""Headers and queues of our backend: what guests agree on with a port, and several ring pairs.

    guest a  virtio-net, queues=2, 2 CPUs ──┐
    guest b  virtio-net, queues=2, 2 CPUs ──┼── valed
    guest c  virtio-net, accepts nothing  ──┘
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib.guest import MARKS, VALE_QEMU, Guest, netmap
from lib.valed import Valed, check_books, eventually

FILE_BYTES = 8 << 20
PINGS = 50
NOTHING = ",guest_csum=off,guest_tso4=off,guest_tso6=off"

pytestmark = [
    *MARKS,
    pytest.mark.skipif(not VALE_QEMU.exists(), reason=f"no {VALE_QEMU}: run 'make qemu'"),
]


class Lab:
    """The guests and their switch."""

    def __init__(self, valed: Valed, folder: Path) -> None:
        self.valed = valed
        self.guests = {
            "a": self.guest(folder, "a", 1, ",queues=2", ",mq=on", "-smp", "2"),
            "b": self.guest(folder, "b", 2, ",queues=2", ",mq=on", "-smp", "2"),
            "c": self.guest(folder, "c", 3, "", NOTHING, "-action", "reboot=reset"),
        }
        for guest in self.guests.values():
            guest.connect()

    def guest(
        self, folder: Path, name: str, number: int, netdev: str, nic: str, *options: str
    ) -> Guest:
        netdevs = [netmap(self.valed.rundir, f"vale1:{name}", netdev)]
        return Guest(
            folder, name, number, netdevs, qemu=VALE_QEMU, options=options, nic_options=nic
        )

    def netdev(self, name: str) -> dict[str, Any]:
        """What the netdev's object says."""
        with self.guests[name].qmp() as qmp:
            path = "/netmap/n0"
            names = [entry["name"] for entry in qmp.execute("qom-list", path=path)]
            return {key: qmp.execute("qom-get", path=path, property=key) for key in names}

    def close(self) -> None:
        for guest in self.guests.values():
            guest.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Valed.run() as valed:
        made = Lab(valed, tmp_path_factory.mktemp("g"))
        try:
            yield made
        finally:
            made.close()


@pytest.mark.parametrize(("name", "queues"), [("a", 2), ("b", 2), ("c", 1)])
def test_header_and_queues_are_agreed_on(lab: Lab, name: str, queues: int) -> None:
    found = lab.netdev(name)
    assert (found["vnet-hdr-len"], found["queues"], found["state"]) == (12, queues, "connected")
    port = lab.valed.qmp().port(f"vale1:{name}")
    assert port["rings"] == queues


def test_a_guest_that_accepts_nothing_gets_complete_frames(lab: Lab) -> None:
    port = "vale1:c"
    before, netdev = lab.valed.qmp().port(port)["tx"]["segmented"], lab.netdev("c")
    lab.guests["a"].send_file(lab.guests["c"], FILE_BYTES)
    after = lab.valed.qmp().port(port)["tx"]["segmented"]
    frames, segments = (after[key] - before[key] for key in ("frames", "segments"))
    assert segments > 2 * frames > 0
    found = lab.netdev("c")
    for reason in "rx-dropped", "rx-offload":
        assert found[reason] == netdev[reason]
    check_books(lab.valed.qmp().ports())


def ping(source: Guest, target: Guest, cpu: int) -> None:
    """Every echo comes back, sent from one CPU: virtio-net sends by the CPU's queue."""
    command = f"taskset -c {cpu} ping -i 0.01 -W 20 -c {PINGS} {target.address()}"
    assert f" {PINGS} packets received" in source.run(command)


def rx_packets(guest: Guest) -> list[int]:
    """Packets that each RX queue of the guest's NIC has had."""
    counters = guest.run("ethtool -S vale0")
    return [int(n) for n in re.findall(r"rx_queue_\d+_packets: (\d+)", counters)]


@pytest.mark.parametrize("cpu", [0, 1])
def test_each_queue_has_its_ring(lab: Lab, cpu: int) -> None:
    a, b = lab.guests["a"], lab.guests["b"]
    b.run("ethtool -L vale0 combined 2 2> /dev/null || ethtool -l vale0 | grep -q 'Combined:.*2'")
    before = rx_packets(b)
    ping(a, b, cpu)
    after = rx_packets(b)
    assert len(after) == 2
    assert after[cpu] - before[cpu] >= PINGS


def test_frames_for_a_queue_that_is_off_go_to_the_first(lab: Lab) -> None:
    a, b = lab.guests["a"], lab.guests["b"]
    b.run("ethtool -L vale0 combined 1")
    before = lab.netdev("b")["rx-dropped"]
    for cpu in 0, 1:
        ping(a, b, cpu)
    assert lab.netdev("b")["rx-dropped"] == before
    b.run("ethtool -L vale0 combined 2")
    ping(a, b, 1)


def test_frames_of_qemu_itself_get_a_header(lab: Lab) -> None:
    port = "vale1:c"
    before = lab.valed.qmp().port(port)["rx"]
    with lab.guests["c"].qmp() as qmp:
        qmp.execute("announce-self", initial=50, max=50, rounds=2, step=10, id="x")
    wanted = before["frames"] + 2
    eventually("two frames", lambda: lab.valed.qmp().port(port)["rx"]["frames"] >= wanted)
    assert lab.valed.qmp().port(port)["rx"]["dropped"] == before["dropped"]


def test_a_restart_of_the_guest_agrees_anew(lab: Lab) -> None:
    guest = lab.guests["c"]
    guest.ssh.close()
    guest.console.write_bytes(b"")
    with guest.qmp() as qmp:
        qmp.execute("system_reset")
    guest.connect()
    assert lab.netdev("c")["vnet-hdr-len"] == 12
    ping(lab.guests["a"], guest, 0)
