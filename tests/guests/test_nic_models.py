# SPDX-License-Identifier: BSD-2-Clause
"""Every NIC model of our QEMU passes the same traffic through the same backend.

    guest a  nic0 e1000  ── vale0:a ── [ vale0 ] ── vale0:b ── nic0 e1000   guest b
             nic1 e1000e ── vale1:a ── [ vale1 ] ── vale1:b ── nic1 e1000e
             ...          one switch for each model that the QEMU lists ...

UDP both ways at once, in the smallest frames, in the largest, and in fragments: every datagram
arrives, once, and the switch and both netdevs have counted the same frames. A model that no guest
can drive is skipped by name, after a look at whether that is still so.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from lib.guest import MARKS, MICRO, VALE_QEMU, Guest
from lib.valed import Valed, check_books, eventually

pytestmark = [
    *MARKS,
    pytest.mark.skipif(not VALE_QEMU.exists(), reason=f"no {VALE_QEMU}: run 'make qemu'"),
]

# Models that are not tested, and what would have to be there for that: a kernel module, or a bus.
UNDRIVEN = {
    "ne2k_isa": ("ne.ko", "Debian's kernel for amd64 has no drivers of ISA NICs"),
    "rocker": ("rocker.ko", "a switch chip that Debian's kernel has no driver of"),
    "virtio-net-device": ("virtio-bus", "the half of virtio-net-pci that needs a bus no PC has"),
}
# Models that lose frames which come back to back, as all do on a busy machine, after the backend
# has handed them over; that it has is asserted for them, too. i8255x marks a frame as complete
# before it writes length and data, and a driver that looks at that moment finds an empty frame;
# ne2k has 16 KiB for frames, and lets no backend wait.
HASTY = re.compile("i82|ne2k")
FRAMES = {64: "18 bytes, the smallest frame", 1518: "1472 bytes, the largest", 8046: "fragments"}
RATE, SECONDS = 100, 0.5
LEAST = 10  # datagrams of 50: a guest may get no CPU when it should send
# e100 wants microcode for one model, and Debian has none that is free. QEMU ignores what it says.
MICROCODE = "/lib/firmware/e100/d102e_ucode.bin"
MICROCODE_BYTES = 134 * 4 + 3


@cache
def models() -> list[str]:
    """What the QEMU lists; nothing where there is none, and then all is skipped."""
    if not VALE_QEMU.exists():
        return []
    command = [str(VALE_QEMU), "-device", "help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    section = text.partition("Network devices:\n")[2].partition("\n\n")[0]
    return re.findall(r'^name "([^"]+)"', section, re.MULTILINE)


DRIVEN = [model for model in models() if model not in UNDRIVEN]


def mac(nic: int, number: int) -> str:
    return f"52:54:00:01:{nic:02x}:{number:02x}"


def address(nic: int, number: int) -> str:
    return f"198.18.{nic}.{number}"


class ManyNics(Guest):
    """A guest that has one NIC of each model, called nic0, nic1, ..."""

    def __init__(self, folder: Path, name: str, number: int, device: Path) -> None:
        options = ["-device", "qemu-xhci"]  # for usb-net
        for nic, model in enumerate(DRIVEN):
            rom = "" if model.startswith("usb") else ",romfile="
            options += ["-netdev", f"netmap,id=n{nic},ifname=vale{nic}:{name},devname={device}"]
            options += ["-device", f"{model},netdev=n{nic},mac={mac(nic, number)}{rom}"]
        super().__init__(folder, name, number, [], qemu=VALE_QEMU, options=tuple(options))

    def set_up(self) -> None:
        """Drivers that nothing loads by itself, names, addresses."""
        self.run("modprobe -a rndis_host; mkdir -p /lib/firmware/e100")
        self.write_file(MICROCODE, bytes(MICROCODE_BYTES))
        eventually(f"{len(DRIVEN)} NICs", lambda: len(self.nics()) == len(DRIVEN), 60)
        for nic, kernel_name in self.nics().items():
            self.run(
                f"ip link set {kernel_name} name nic{nic} && ip link set nic{nic} up && "
                f"ip addr add {address(nic, self.number)}/24 dev nic{nic}"
            )

    def nics(self) -> dict[int, str]:
        """The kernel's names for our NICs, which it found in any order."""
        found = re.findall(
            rf"/net/(\w+)/address:52:54:00:01:(\w\w):{self.number:02x}",
            self.run("grep . /sys/class/net/*/address"),
        )
        return {int(nic, 16): name for name, nic in found}


@dataclass
class Lab:
    """Both guests and their switches."""

    valed: Valed
    guests: list[ManyNics]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("g")
    with Valed.run() as valed:
        device = valed.rundir / "netmap.sock"
        guests = [ManyNics(folder, name, n, device) for n, name in enumerate("ab", 1)]
        try:
            for guest in guests:
                guest.connect()
                guest.set_up()
            yield Lab(valed, guests)
        finally:
            for guest in guests:
                guest.close()


def test_every_model_is_tested_or_explained() -> None:
    assert "e1000" in DRIVEN
    assert set(UNDRIVEN) <= set(models())
    print("tested:", ", ".join(DRIVEN))


@pytest.mark.parametrize("model", UNDRIVEN)
def test_model_without_driver(model: str) -> None:
    """Skipped: but if it can be driven by now, this fails."""
    needs, reason = UNDRIVEN[model]
    if needs.endswith(".ko"):
        debs = sorted((MICRO.parent / "packages").glob("linux-image-*.deb"))
        assert debs, f"no kernel package beside {MICRO}: run 'make image'"
        listing = subprocess.run(
            ["dpkg-deb", "--contents", debs[-1]], capture_output=True, text=True, check=True
        ).stdout
        assert "/e1000.ko" in listing
        assert f"/{needs}" not in listing
    else:
        machine = ["-M", "q35", "-nodefaults", "-display", "none", "-S", "-device", model]
        done = subprocess.run([VALE_QEMU, *machine], capture_output=True, text=True, check=False)
        assert f"No '{needs}' bus found for device '{model}'" in done.stderr
    pytest.skip(f"{model}: {reason}")


def exchange(lab: Lab, nic: int, size: int) -> list[tuple[int, dict[str, Any]]]:
    """Datagrams both ways at once: for each way, how many were sent, and the receiver's report."""
    port = 9000 + size
    receive = f"vale-udp-recv --port {port} --json --max-seconds 60"
    reports = [guest.start(receive) for guest in lab.guests]
    for guest in lab.guests:
        guest.run(f"until grep -q ':{port:04X} ' /proc/net/udp; do sleep 0.1; done")
        to = address(nic, 3 - guest.number)
        guest.run(f"ping -c 1 -W 10 {to}")  # now each knows the other
    senders = [
        guest.start(
            f"vale-udp-send --to {address(nic, 3 - guest.number)} --port {port} --frame {size} "
            f"--rate {RATE} --seconds {SECONDS} --json"
        )
        for guest in lab.guests
    ]
    sent = [int(json.loads(sender())["sent"]) for sender in senders]
    came = [json.loads(report().splitlines()[-1]) for report in reversed(reports)]
    return list(zip(sent, came, strict=True))


def frames(lab: Lab, nic: int) -> dict[str, int]:
    """What the switch has had from each guest."""
    return {
        name.partition(":")[2]: port["rx"]["frames"]
        for name, port in lab.valed.qmp().ports(f"vale{nic}").items()
    }


def netdev(guest: Guest, nic: int) -> dict[str, Any]:
    """The counters of a netdev: frames to and from the switch, and those that neither side took."""
    with guest.qmp() as qmp:
        names = ("tx-frames", "rx-frames", "tx-dropped", "rx-dropped")
        return {
            name: qmp.execute("qom-get", path=f"/netmap/n{nic}", property=name) for name in names
        }


def conserved(lab: Lab, guest: Guest, nic: int) -> bool:
    """What the guest sent has entered the switch; what the switch sent, the guest's NIC has got."""
    port = lab.valed.qmp().port(f"vale{nic}:{guest.name}")
    assert sum(port["tx"]["dropped"].values()) == 0
    return netdev(guest, nic) == {
        "tx-frames": port["rx"]["frames"],
        "rx-frames": port["tx"]["frames"],
        "tx-dropped": 0,
        "rx-dropped": 0,
    }


@pytest.mark.parametrize("model", DRIVEN)
def test_model_carries_every_datagram(lab: Lab, model: str) -> None:
    nic = DRIVEN.index(model)
    for size, what in FRAMES.items():
        before, least = frames(lab, nic), RATE
        for sent, report in exchange(lab, nic, size):
            counts = {key: report[key] for key in ("duplicated", "reordered", "late")}
            received = report["received"]
            print(f"{model}, {what}: {received} of {sent}, {counts}")
            assert counts == {"duplicated": 0, "reordered": 0, "late": 0}
            assert report["sent_by_peer"] == sent >= LEAST
            assert report["bytes"] == received * (size - 46)
            assert 0 < received <= sent if HASTY.match(model) else received == sent
            least = min(least, sent)
        pieces = -(-(size - 46 + 8) // 1480)
        grown = {name: count - before[name] for name, count in frames(lab, nic).items()}
        assert min(grown.values()) >= least * pieces
    for guest in lab.guests:
        eventually("counters that agree", partial(conserved, lab, guest, nic))
    check_books(lab.valed.qmp().ports(f"vale{nic}"))
