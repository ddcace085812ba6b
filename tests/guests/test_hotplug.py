# SPDX-License-Identifier: BSD-2-Clause
"""NICs on our backend come to a running guest and go, many times, and leave nothing behind.

guest ── virtio-net or e1000, hot-plugged ── vale1:h ── [ vale1 ] ── vale1:p ── lib/echo.py
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lib.echo import Echo
from lib.guest import MARKS, VALE_QEMU, Guest
from lib.qmp import Qmp
from lib.trace import Trace
from lib.valed import Valed, check_books, eventually

CYCLES = 100 if os.environ.get("VALE_LONG") else 40
MODELS = ("virtio-net-pci", "e1000")
MAC, ADDRESS, PEER = "52:54:00:02:00:01", "198.18.0.1", "198.18.0.100"
PINGS = 5
MINUTES = 120  # for an answer of a guest under TCG on a loaded machine
PING = f"""
    until file=$(grep -l {MAC} /sys/class/net/*/address); do sleep 0.05; done
    nic=$(basename $(dirname $file))
    ip addr add {ADDRESS}/24 dev $nic && ip link set $nic up
    until [ "$(cat /sys/class/net/$nic/carrier)" = 1 ]; do sleep 0.05; done
    ping -c {PINGS} -i 0.1 -W 20 {PEER}
"""
# The driver asks the NIC, and so its netdev, for header and offloads.
AGAIN = f"""
    device=$(readlink -f $(dirname $(grep -l {MAC} /sys/class/net/*/address))/device)
    cd /sys/bus/virtio/drivers/virtio_net
    basename $device > unbind
    basename $device > bind
    until grep -l {MAC} /sys/class/net/*/address; do sleep 0.05; done
"""

pytestmark = [
    *MARKS,
    pytest.mark.skipif(not VALE_QEMU.exists(), reason=f"no {VALE_QEMU}: run 'make qemu'"),
]


@pytest.fixture
def guest(valed: Valed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    monkeypatch.setenv("MALLOC_PERTURB_", "165")  # QEMU's memory that is freed is overwritten
    slot = ("-device", "pcie-root-port,id=rp,chassis=1")
    made = Guest(tmp_path, "a", 1, [], qemu=VALE_QEMU, options=slot)
    try:
        made.connect()
        made.run("modprobe e1000")
        yield made
    finally:
        made.close()


class Slot:
    """Where the NIC comes and goes."""

    def __init__(self, valed: Valed, guest: Guest, qmp: Qmp) -> None:
        self.guest, self.qmp = guest, qmp
        self.qmp.sock.settimeout(MINUTES)
        device = str(valed.rundir / "netmap.sock")
        self.netdev = {"type": "netmap", "id": "h", "ifname": "vale1:h", "devname": device}

    def plug(self, model: str) -> None:
        self.qmp.call("netdev_add", self.netdev)
        nic = {"driver": model, "id": "nic", "bus": "rp", "netdev": "h", "mac": MAC}
        self.qmp.call("device_add", nic | {"romfile": ""})

    def unplug(self) -> None:
        """Until the guest has let it go."""
        self.qmp.call("device_del", {"id": "nic"})
        while self.qmp.event() != (
            "DEVICE_DELETED",
            {"device": "nic", "path": "/machine/peripheral/nic"},
        ):
            pass
        self.qmp.call("netdev_del", {"id": "h"})

    def cycle(self, model: str, *, traffic: bool) -> None:
        self.plug(model)
        if traffic:
            output = self.guest.run(PING)
            assert f"{PINGS} packets received" in output, output
        self.unplug()


def test_cycles_leave_nothing(
    valed: Valed, guest: Guest, record_property: Callable[[str, object], None]
) -> None:
    with Echo(valed.open("vale1:p"), PEER) as echo, guest.qmp() as qmp:
        slot, switch = Slot(valed, guest, qmp), Trace.of(valed.pid)
        for model in MODELS:  # what a first time leaves behind in QEMU, such as a thread, stays
            slot.cycle(model, traffic=True)
        machine = Trace.of(guest.process.pid)
        began = time.monotonic()
        for number in range(CYCLES):
            slot.cycle(MODELS[number % 2], traffic=number % 20 < 2)
        seconds = (time.monotonic() - began) / CYCLES
        print(f"{seconds:.3f} s for a cycle")
        record_property("hotplug_seconds", round(seconds, 3))
        print(f"QEMU had {machine}, valed had {switch}")
        eventually("QEMU as before", lambda: Trace.of(guest.process.pid) == machine)
        eventually("valed as before", lambda: Trace.of(valed.pid) == switch)
        assert echo.answered == PINGS * (2 + CYCLES // 10)
    with valed.qmp() as client:
        ports = client.ports()
        assert list(ports) == ["vale1:p"]
        check_books(ports)
    nics = guest.run("ls /sys/class/net").split()
    assert sorted(nics) == ["lo", "mgmt"]
    assert not re.search(r"BUG|WARNING|Oops", guest.run("dmesg"))


def test_netdev_goes_under_a_nic_that_stays(valed: Valed, guest: Guest) -> None:
    """netdev_del first: the guest keeps a NIC without a link, and the port is free at once."""
    with Echo(valed.open("vale1:p"), PEER), guest.qmp() as qmp:
        slot = Slot(valed, guest, qmp)
        slot.plug("virtio-net-pci")
        assert f"{PINGS} packets received" in guest.run(PING)
        qmp.call("netdev_del", {"id": "h"})
        with valed.qmp() as client:
            eventually("the port's end", lambda: list(client.ports()) == ["vale1:p"])
        guest.run(
            f"until [ $(cat $(dirname $(grep -l {MAC} /sys/class/net/*/address))/carrier) = 0 ]"
            "; do sleep 0.05; done"
        )
        guest.run(AGAIN)
        qmp.call("netdev_add", slot.netdev)
        slot.unplug()
