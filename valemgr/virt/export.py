# SPDX-License-Identifier: BSD-2-Clause
"""XML for people who define domains, or attach devices, themselves: what `libvirt xml` prints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from valemgr import environment, locate
from valemgr.accel import AccelChoice
from valemgr.emulator import STOCK
from valemgr.names import PortName
from valemgr.plan import Host, pin
from valemgr.topology import Guest, Lab
from valemgr.virt.domain import domain_name, persistent
from valemgr.virt.portxml import interface, stable_mac, text_of
from valemgr.wiring import Place, lacks_msix
from valemgr.words import Backend


@dataclass(frozen=True, slots=True)
class Exported:
    """A domain's name and XML, and what was decided about it that its topology does not say."""

    name: str
    xml: str
    notes: tuple[str, ...] = ()


async def domains(
    lab: Lab, guest: str, backend: Backend, emulator: str, accel: AccelChoice, rundir: Path
) -> list[Exported]:
    """The guests of a topology (or one) as domains; rundir: of the valed they will use."""
    lab = pin(_with_emulators(lab, emulator, backend))
    env = await environment.find(lab, accel)
    host = Host(env.emulators, env.accelerator.name, Place(rundir, rundir), env.images)
    chosen = [each for each in lab.guests if guest in ("", each.name)]
    return [_exported(lab, each, host, backend) for each in chosen]


def interfaces(ports: Sequence[PortName], rundir: Path) -> str:
    """An `<interface>` for each port, with a MAC that stays the same for it."""
    macs: list[str] = []
    for port in ports:
        macs.append(stable_mac("", port, macs))
    return "".join(
        text_of(interface(port, mac, rundir)) for port, mac in zip(ports, macs, strict=True)
    )


def _with_emulators(lab: Lab, emulator: str, backend: Backend) -> Lab:
    """vhost-user needs no QEMU of ours, and libvirt's user may not enter where that is."""
    stock = str(locate.find(STOCK) or "") if backend is Backend.VHOST_USER else ""
    guests = tuple(
        each.model_copy(update={"qemu": emulator or each.qemu or stock}) for each in lab.guests
    )
    return lab.model_copy(update={"guests": guests})


def _exported(lab: Lab, guest: Guest, host: Host, backend: Backend) -> Exported:
    emulator, notes = host.emulators[guest.qemu], []
    if backend is Backend.VHOST_USER and lacks_msix(emulator, host.accelerator):
        version = ".".join(map(str, emulator.version))
        notes.append(f"QEMU {version} under TCG: vectors=0 and one queue, or it would crash")
        nics = tuple(nic.model_copy(update={"queues": 1}) for nic in guest.nics)
        guest = guest.model_copy(update={"nics": nics})
    name = domain_name(lab.name, guest.name)
    return Exported(name, persistent(lab, guest, host, backend), tuple(notes))
