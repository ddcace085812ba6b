# SPDX-License-Identifier: BSD-2-Clause
"""From a topology to what will be started: argv, MACs, addresses, identities. No side effects.

One guest, as QEMU sees it:

    ctl, events   QMP sockets: calls; one watcher
    console       serial port on a socket, logged to a file
    n0, n1 …      data NICs, in the topology's order
    mgmt          user networking with a forwarded port on 127.0.0.1 that QEMU picks
    fw_cfg        opt/org.vale/guest: the guest's identity
"""

import hashlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valemgr.errors import UsageError
from valemgr.image import Image
from valemgr.topology import Guest, Lab, Nic
from valemgr.xdg import SOCKET_PATH_MAX

MGMT_ADDRESS = "10.0.2.15/24"
FW_CFG_NAME = "opt/org.vale/guest"
# Under TCG a plain CPU boots and copies faster than `max`, whose vector code is emulated.
TCG_CPU = "Nehalem"


@dataclass(frozen=True, slots=True)
class Host:
    """What a plan needs to know of the machine that it will run on."""

    qemu: Path
    accelerator: str
    netmap_device: str
    lab_dir: Path
    images: Mapping[str, Image]


@dataclass(frozen=True, slots=True)
class GuestFiles:
    """A guest's files in its lab's directory."""

    ctl: Path
    events: Path
    console: Path
    console_log: Path
    qemu_log: Path
    identity: Path


@dataclass(frozen=True, slots=True)
class PlannedNic:
    """A data NIC with everything decided."""

    name: str
    mac: str
    nic: Nic


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """One guest, ready to be launched."""

    name: str
    argv: tuple[str, ...]
    files: GuestFiles
    nics: tuple[PlannedNic, ...]
    identity: dict[str, Any]
    ready_line: str


@dataclass(frozen=True, slots=True)
class LabPlan:
    """A lab, ready to be launched, wave after wave: cables find their other end listening."""

    lab: Lab
    waves: tuple[tuple[GuestPlan, ...], ...]

    @property
    def guests(self) -> tuple[GuestPlan, ...]:
        """All guests, in launching order."""
        return tuple(guest for wave in self.waves for guest in wave)


def plan(lab: Lab, host: Host) -> LabPlan:
    """Decide everything about a lab."""
    macs = _assign_macs(lab)
    guests = [_plan_guest(lab, guest, host, macs) for guest in lab.guests]
    first = tuple(guest for guest in guests if not _connects(guest))
    second = tuple(guest for guest in guests if _connects(guest))
    return LabPlan(lab, tuple(wave for wave in (first, second) if wave))


def identity(guest: GuestPlan, authorized_key: str, host_key: str) -> dict[str, Any]:
    """What the guest reads from fw_cfg: its planned identity and the lab's keys."""
    return {**guest.identity, "authorized_keys": [authorized_key], "host_key": host_key}


def guest_files(lab_dir: Path, guest: str) -> GuestFiles:
    """The paths of a guest's files; a path too long for a socket is an error."""
    files = GuestFiles(
        ctl=lab_dir / f"{guest}.ctl",
        events=lab_dir / f"{guest}.events",
        console=lab_dir / f"{guest}.console",
        console_log=lab_dir / f"{guest}.console.log",
        qemu_log=lab_dir / f"{guest}.qemu.log",
        identity=lab_dir / f"{guest}.json",
    )
    if len(str(files.console)) > SOCKET_PATH_MAX:
        raise UsageError(
            f"{files.console} is too long for a socket ({SOCKET_PATH_MAX} bytes): "
            "use shorter names, or set XDG_RUNTIME_DIR to a shorter path"
        )
    return files


def mac_for(lab: str, guest: str, nic: str, attempt: int = 0) -> str:
    """A stable MAC in QEMU's range."""
    digest = hashlib.sha256(f"{lab}/{guest}/{nic}/{attempt}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def _assign_macs(lab: Lab) -> dict[tuple[str, str], str]:
    taken = {nic.mac for guest in lab.guests for nic in guest.nics if nic.mac}
    macs: dict[tuple[str, str], str] = {}
    for guest in lab.guests:
        wanted: list[tuple[str, str | None]] = [
            (f"vale{index}", nic.mac) for index, nic in enumerate(guest.nics)
        ]
        for name, mac in [*wanted, ("mgmt", None)]:
            attempt = 0
            chosen = mac or mac_for(lab.name, guest.name, name)
            while mac is None and chosen in taken:
                attempt += 1
                chosen = mac_for(lab.name, guest.name, name, attempt)
            taken.add(chosen)
            macs[guest.name, name] = chosen
    return macs


def _plan_guest(
    lab: Lab, guest: Guest, host: Host, macs: Mapping[tuple[str, str], str]
) -> GuestPlan:
    image = host.images[guest.image]
    files = guest_files(host.lab_dir, guest.name)
    nics = tuple(
        PlannedNic(f"vale{index}", macs[guest.name, f"vale{index}"], nic)
        for index, nic in enumerate(guest.nics)
    )
    mgmt_mac = macs[guest.name, "mgmt"]
    argv = (
        *_machine_args(lab, guest, host, image),
        *_monitor_args(files),
        *(arg for index, nic in enumerate(nics) for arg in _nic_args(index, nic, host)),
        *_mgmt_args(mgmt_mac),
    )
    return GuestPlan(
        name=guest.name,
        argv=argv,
        files=files,
        nics=nics,
        identity=_identity(lab, guest, nics, mgmt_mac, macs),
        ready_line=image.ready_line,
    )


def _machine_args(lab: Lab, guest: Guest, host: Host, image: Image) -> tuple[str, ...]:
    return (
        str(host.qemu),
        *("-name", f"{lab.name}/{guest.name}"),
        *("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", host.accelerator),
        *("-cpu", "host" if host.accelerator == "kvm" else TCG_CPU),
        *("-smp", str(guest.cpus), "-m", f"{guest.memory_mib}M"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.append),
        *("-device", "virtio-rng-pci"),
    )


def _monitor_args(files: GuestFiles) -> tuple[str, ...]:
    def server(name: str, path: Path, more: str = "") -> str:
        return f"socket,id={name},path={_escape(path)},server=on,wait=off{more}"

    return (
        *("-chardev", server("ctl", files.ctl), "-mon", "chardev=ctl,mode=control"),
        *("-chardev", server("events", files.events), "-mon", "chardev=events,mode=control"),
        *("-chardev", server("console", files.console, f",logfile={_escape(files.console_log)}")),
        *("-serial", "chardev:console"),
        *("-fw_cfg", f"name={FW_CFG_NAME},file={_escape(files.identity)}"),
    )


def _nic_args(index: int, planned: PlannedNic, host: Host) -> tuple[str, ...]:
    nic = planned.nic
    if nic.cable:
        path = _escape(host.lab_dir / f"cable-{nic.cable.name}")
        server = "on" if nic.cable.listens else "off"
        netdev = f"stream,id=n{index},server={server},addr.type=unix,addr.path={path}"
    else:
        devname = _escape(host.netmap_device)
        netdev = f"netmap,id=n{index},ifname={nic.port},devname={devname}"
    device = _device(nic.model, f"n{index}", planned.mac)
    if nic.model == "virtio-net-pci" and host.accelerator == "tcg":
        # Each transmit interrupt and doorbell is dear under emulation: let frames gather.
        device += ",tx=timer"
    return ("-netdev", netdev, "-device", device)


def _mgmt_args(mac: str) -> tuple[str, ...]:
    forward = "hostfwd=tcp:127.0.0.1:0-:22"
    return (
        *("-netdev", f"user,id=mgmt,ipv6=off,restrict=on,{forward}"),
        *("-device", _device("virtio-net-pci", "mgmt", mac)),
    )


def _device(model: str, netdev: str, mac: str) -> str:
    return f"{model},netdev={netdev},mac={mac},romfile="


def _identity(
    lab: Lab,
    guest: Guest,
    nics: tuple[PlannedNic, ...],
    mgmt_mac: str,
    macs: Mapping[tuple[str, str], str],
) -> dict[str, Any]:
    data = [
        {
            "mac": nic.mac,
            "name": nic.name,
            "mtu": nic.nic.mtu,
            "addresses": list(nic.nic.addresses),
            "neighbours": _neighbours(lab, nic, macs),
        }
        for nic in nics
    ]
    mgmt = {"mac": mgmt_mac, "name": "mgmt", "dhcp4": False, "addresses": [MGMT_ADDRESS]}
    return {"hostname": guest.name, "nics": [*data, mgmt]}


def _neighbours(
    lab: Lab, me: PlannedNic, macs: Mapping[tuple[str, str], str]
) -> list[dict[str, str]]:
    """Everybody else on my segment, so that no ARP disturbs a measurement."""
    found = []
    for guest in lab.guests:
        for index, nic in enumerate(guest.nics):
            mac = macs[guest.name, f"vale{index}"]
            if mac != me.mac and _segment(nic) == _segment(me.nic):
                found += [
                    {"address": str(ipaddress.ip_interface(address).ip), "mac": mac}
                    for address in nic.addresses
                ]
    return found


def _segment(nic: Nic) -> str:
    if nic.cable:
        return f"cable {nic.cable.name}"
    return f"switch {(nic.port or '').partition(':')[0]}"


def _connects(guest: GuestPlan) -> bool:
    return any(nic.nic.cable and not nic.nic.cable.listens for nic in guest.nics)


def _escape(value: object) -> str:
    """A comma in an option's value is doubled, as QEMU wants it."""
    return str(value).replace(",", ",,")
