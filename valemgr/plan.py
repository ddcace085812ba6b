# SPDX-License-Identifier: BSD-2-Clause
"""From a topology to what will be started: argv, MACs, addresses, identities. No side effects.

One guest, as QEMU sees it:

    ctl, events   QMP sockets: calls; one watcher
    console       serial port on a socket, logged to a file
    slot0, …      root ports: a data NIC in each, and free ones for NICs that come later; a guest
                  without spare slots has its NICs on the root bus and keeps those it has
    vale0, …      data NICs, named as the guest's interfaces are
    mgmt          user networking with a forwarded port on 127.0.0.1 that QEMU picks
    disk          the image's disk, if it has one; what the guest writes is in a file without a name
                  in $TMPDIR (/var/tmp), gone with the process
    fw_cfg, seed  the guest's identity: opt/org.vale/guest, or a NoCloud volume for cloud-init
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valemgr.emulator import Emulator
from valemgr.errors import ValeError
from valemgr.image import Disk, Identity, Image
from valemgr.names import mac_for
from valemgr.segments import neighbours
from valemgr.topology import MGMT, Guest, Lab, Nic
from valemgr.wiring import Place, Wire, choose, option, wire
from valemgr.words import Backend, Provider
from valemgr.xdg import socket_path

MGMT_ADDRESS = "10.0.2.15/24"
MGMT_NETDEV = f"user,id={MGMT},ipv6=off,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"
FW_CFG_NAME = "opt/org.vale/guest"
# Under TCG a plain CPU boots and copies faster than `max`, whose vector code is emulated.
TCG_CPU = "Nehalem"
DISK_DEVICE, SEED_DEVICE = "virtio-blk-pci,drive=disk,bootindex=1", "virtio-blk-pci,drive=seed"
MACHINE = "q35"
MACHINE_SHARED = "q35,memory-backend=mem"


@dataclass(frozen=True, slots=True)
class Host:
    """What a plan needs to know of the machine that it will run on."""

    emulators: Mapping[str, Emulator]  # by the guest's `qemu`
    accelerator: str
    place: Place
    images: Mapping[str, Image]
    libvirt: "LibvirtHost | None" = None  # None: QEMUs are our own


@dataclass(frozen=True, slots=True)
class LibvirtHost:
    """The libvirt that runs a lab's QEMUs."""

    uri: str
    user: tuple[int, int] | None = None  # uid and gid of its QEMUs; None: ours, as in a session
    group: str = ""  # that valed is to let in


@dataclass(frozen=True, slots=True)
class GuestFiles:
    """A guest's files in its lab's directory."""

    ctl: Path
    events: Path
    console: Path
    console_log: Path
    qemu_log: Path
    identity: Path
    seed: Path


@dataclass(frozen=True, slots=True)
class PlannedNic:
    """A data NIC with everything decided; its MAC is set."""

    nic: Nic
    backend: Backend | None  # None: a cable
    slot: int | None
    provider: Provider


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """One guest, ready to be launched."""

    lab: str
    spec: Guest
    argv: tuple[str, ...]  # of our own QEMU; of libvirt's, once it runs
    files: GuestFiles
    nics: tuple[PlannedNic, ...]
    wires: tuple[Wire, ...]
    slots: int
    identity: dict[str, Any]
    ready_line: str
    shares_memory: bool  # valed can map it, as vhost-user needs
    has_seed: bool  # cloud-init gives it its identity
    libvirt: str = ""  # the URI; empty: our own QEMU
    host: Host | None = None  # None: it was started earlier

    @property
    def name(self) -> str:
        return self.spec.name


def pin(lab: Lab, known: Mapping[tuple[str, str], str] | None = None) -> Lab:
    """The lab with every NIC's MAC said: its own, else the one known for it, else a stable one."""
    taken = {nic.mac for _, nic in lab.nics() if nic.mac}
    guests = []
    for guest in lab.guests:
        nics = []
        for nic in guest.nics:
            mac = nic.mac or (known or {}).get((guest.name, nic.name), "")
            attempt = 0
            while not nic.mac and (not mac or mac in taken):
                mac = mac_for(lab.name, guest.name, nic.name, attempt)
                attempt += 1
            taken.add(mac)
            nics.append(nic.model_copy(update={"mac": mac}))
        guests.append(guest.model_copy(update={"nics": tuple(nics)}))
    return lab.model_copy(update={"guests": tuple(guests)})


def plan_guest(lab: Lab, guest: Guest, host: Host) -> GuestPlan:
    """Decide everything about a guest of a pinned lab."""
    image = host.images[guest.image]
    files = guest_files(host.place.lab_dir, guest.name)
    nics = tuple(
        plan_nic(lab, guest, nic, index if guest.spare else None, host)
        for index, nic in enumerate(guest.nics)
    )
    wires = tuple(wire_nic(guest, nic, host) for nic in nics)
    slots = len(nics) + guest.spare if guest.spare else 0
    mgmt_mac = mac_for(lab.name, guest.name, MGMT)
    shares_memory = _shares_memory(guest, nics, host)
    argv = (
        *_machine_args(lab, guest, host, image, shares_memory),
        *_monitor_args(files),
        *(_disk_args(image.disk) if image.disk else ()),
        *_identity_args(image.identity, files),
        *(word for slot in range(slots) for word in _slot_args(slot)),
        *(word for each in wires for word in each.argv()),
        *_mgmt_args(mgmt_mac),
    )
    return GuestPlan(
        lab=lab.name,
        spec=guest,
        argv=() if host.libvirt else argv,
        files=files,
        nics=nics,
        wires=wires,
        slots=slots,
        identity=_identity(lab, guest, mgmt_mac),
        ready_line=image.ready_line,
        shares_memory=shares_memory,
        has_seed=image.identity is Identity.NOCLOUD,
        libvirt=host.libvirt.uri if host.libvirt else "",
        host=host,
    )


def plan_nic(lab: Lab, guest: Guest, nic: Nic, slot: int | None, host: Host) -> PlannedNic:
    """Choose the backend; an error names the guest."""
    if nic.cable:
        return PlannedNic(nic, None, slot, Provider.USER)
    provider = lab.switch(nic.switch).provider
    try:
        backend = choose(nic, provider, host.emulators[guest.qemu], host.accelerator)
    except ValeError as exc:
        raise type(exc)(f"guest {guest.name}: {exc}") from exc
    return PlannedNic(nic, backend, slot, provider)


def wire_nic(guest: Guest, planned: PlannedNic, host: Host) -> Wire:
    """Describe a NIC for QEMU and valed."""
    return wire(
        guest.name,
        planned.nic,
        planned.backend or Backend.STREAM,
        planned.slot,
        planned.provider,
        host.emulators[guest.qemu],
        host.accelerator,
        host.place,
    )


def identity(guest: GuestPlan, authorized_key: str, host_key: str) -> dict[str, Any]:
    """What the guest reads from fw_cfg: its planned identity and the lab's keys."""
    return {**guest.identity, "authorized_keys": [authorized_key], "host_key": host_key}


def guest_files(lab_dir: Path, guest: str) -> GuestFiles:
    """The paths of a guest's files; a path too long for a socket is an error."""
    return GuestFiles(
        ctl=lab_dir / f"{guest}.ctl",
        events=lab_dir / f"{guest}.events",
        console=socket_path(lab_dir / f"{guest}.console"),  # the longest of the sockets
        console_log=lab_dir / f"{guest}.console.log",
        qemu_log=lab_dir / f"{guest}.qemu.log",
        identity=lab_dir / f"{guest}.json",
        seed=lab_dir / f"{guest}.seed",
    )


def _shares_memory(guest: Guest, nics: tuple[PlannedNic, ...], host: Host) -> bool:
    """Whether valed must see the guest's memory: for a vhost-user NIC, now or later."""
    later = guest.spare > 0 and not host.emulators[guest.qemu].has_netmap
    return later or any(nic.backend is Backend.VHOST_USER for nic in nics)


def _machine_args(
    lab: Lab, guest: Guest, host: Host, image: Image, shares_memory: bool
) -> tuple[str, ...]:
    size = f"{guest.memory_mib}M"
    shared = f"memory-backend-memfd,id=mem,size={size},share=on"
    return (
        str(host.emulators[guest.qemu].path),
        *("-name", f"{lab.name}/{guest.name}"),
        *("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-machine", MACHINE_SHARED if shares_memory else MACHINE),
        *(("-object", shared) if shares_memory else ()),
        *("-accel", host.accelerator),
        *("-cpu", "host" if host.accelerator == "kvm" else TCG_CPU),
        *("-smp", str(guest.cpus), "-m", size),
        *_kernel_args(image),
        *("-device", "virtio-rng-pci"),
    )


def _kernel_args(image: Image) -> tuple[str, ...]:
    if image.kernel is None:
        return ()
    return ("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.append)


def _monitor_args(files: GuestFiles) -> tuple[str, ...]:
    def server(name: str, path: Path, **more: object) -> str:
        words = {"type": "socket", "id": name, "path": path, "server": True, "wait": False}
        return option(words | more)

    return (
        *("-chardev", server("ctl", files.ctl), "-mon", "chardev=ctl,mode=control"),
        *("-chardev", server("events", files.events), "-mon", "chardev=events,mode=control"),
        *("-chardev", server("console", files.console, logfile=files.console_log)),
        *("-serial", "chardev:console"),
    )


def _disk_args(disk: Disk) -> tuple[str, ...]:
    return ("-drive", disk_drive(disk), "-device", DISK_DEVICE)


def disk_drive(disk: Disk) -> str:
    """An image's disk, which is only read: what the guest writes goes into a nameless file."""
    drive = {"if": "none", "id": "disk", "file": disk.path, "format": disk.format}
    return option({**drive, "snapshot": True})


def seed_drive(files: GuestFiles) -> str:
    """The NoCloud volume of a guest."""
    drive = {"if": "none", "id": "seed", "file": files.seed, "format": "raw", "read-only": True}
    return option(drive)


def _identity_args(kind: Identity, files: GuestFiles) -> tuple[str, ...]:
    if kind is Identity.FW_CFG:
        return ("-fw_cfg", option({"name": FW_CFG_NAME, "file": files.identity}))
    return ("-drive", seed_drive(files), "-device", SEED_DEVICE)


def _slot_args(slot: int) -> tuple[str, ...]:
    return ("-device", f"pcie-root-port,id=slot{slot},chassis={slot + 1}")


def _mgmt_args(mac: str) -> tuple[str, ...]:
    return ("-netdev", MGMT_NETDEV, "-device", mgmt_device(mac))


def mgmt_device(mac: str) -> str:
    """The NIC that a guest's SSH server is reached through."""
    return f"virtio-net-pci,netdev={MGMT},mac={mac},romfile="


def _identity(lab: Lab, guest: Guest, mgmt_mac: str) -> dict[str, Any]:
    data = [
        {
            "mac": nic.mac,
            "name": nic.name,
            "mtu": nic.mtu,
            "addresses": list(nic.addresses),
            "neighbours": [
                {"address": address, "mac": mac}
                for address, mac in neighbours(lab, guest.name, nic).items()
            ],
        }
        for nic in guest.nics
    ]
    mgmt = {"mac": mgmt_mac, "name": MGMT, "dhcp4": False, "addresses": [MGMT_ADDRESS]}
    return {"hostname": guest.name, "nics": [*data, mgmt]}
