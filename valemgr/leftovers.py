# SPDX-License-Identifier: BSD-2-Clause
"""What was left behind by kills, crashes and reboots: found, and cleaned on request.

Only what is ours for certain is cleaned: labs that nobody holds and that were not to be kept or
whose guests are all gone, QEMUs of labs whose directory is gone, private switches of links that no
lab has. A port that somebody may have made by hand is named, not removed.
"""

from dataclasses import dataclass

from valemgr import labs, machine, switchd
from valemgr.errors import ValeError
from valemgr.lifecycle import down
from valemgr.machine import FoundQemu
from valemgr.state import LabDir, all_labs
from valemgr.switchd import Switchd
from valemgr.topology import LINK_PREFIX


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing that should not be there, and how a person removes it."""

    what: str
    remedy: str
    ours: bool  # whether `clean` removes it


async def find() -> list[Leftover]:
    """Everything that was left."""
    found = [
        Leftover(f"lab {lab.lab} was abandoned", f"valemgr down {lab.lab}", ours=True)
        for lab in _abandoned()
    ]
    found += [
        Leftover(
            f"QEMU {one.ident.pid} of a lab that is gone ({one.folder})",
            f"kill {one.ident.pid}",
            ours=True,
        )
        for one in _orphans()
    ]
    async with switchd.connected() as daemon:
        if daemon:
            found += await _in_switch(daemon)
    return found


async def clean() -> list[str]:
    """Remove what is ours; what was done, in words."""
    done = []
    for lab in _abandoned():
        async with lab.lock("doctor --fix"):
            ended = await down(lab)
        done.append(f"lab {lab.lab}: {ended} processes ended")
    for one in _orphans():
        process = machine.find(one.ident, one.uuid, "")
        if process:
            await process.stop()
            done.append(f"QEMU {one.ident.pid} of {one.folder}: ended")
    async with switchd.connected() as daemon:
        if daemon:
            for name in await _lost_links(daemon):
                await daemon.release_switch(name)
                done.append(f"switch {name}: removed")
    return done


def _abandoned() -> list[LabDir]:
    return [lab for lab in all_labs() if labs.is_abandoned(lab)]


def _orphans() -> list[FoundQemu]:
    """QEMUs of ours whose lab's directory is not there any more."""
    return [one for one in machine.all_running() if not one.folder.exists()]


async def _in_switch(daemon: Switchd) -> list[Leftover]:
    try:
        mine = _switches_of_labs()
        found = [
            Leftover(f"switch {name} of a link that is gone", "valemgr doctor --fix", ours=True)
            for name in await _lost_links(daemon)
        ]
        found += [
            Leftover(
                f"port {port.name} ({port.kind}) is of no lab, and nobody is connected",
                f"valectl del {port.name}, unless it is meant",
                ours=False,
            )
            for port in await daemon.ports()
            if port.kind in ("vhost-user", "stream")
            and not port.peer_pid
            and port.name.partition(":")[0] not in mine
        ]
    except ValeError:  # it went away meanwhile, and its ports with it
        return []
    return found


async def _lost_links(daemon: Switchd) -> list[str]:
    names = [str(entry["name"]) for entry in await daemon.switches() if not entry["ports"]]
    return sorted({n for n in names if n.startswith(LINK_PREFIX)} - _switches_of_labs())


def _switches_of_labs() -> set[str]:
    states = (lab.read() for lab in all_labs())
    return {name for state in states if state for name in state.wanted.all_switches()}
