# SPDX-License-Identifier: BSD-2-Clause
"""Questions about labs that run: which there are, how their guests are, how to reach one.

State files say what was started; processes and QMP are asked for the truth. Nothing here locks.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from valemgr import proc, qmpclient
from valemgr.deadline import Deadline
from valemgr.errors import LabError, UsageError, ValeError
from valemgr.ssh import SshTarget
from valemgr.state import GuestState, LabDir, LabState, all_labs

QMP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class GuestStatus:
    """A guest, as `status` shows it."""

    lab: str
    guest: str
    state: str
    pid: int
    ssh_port: int
    ports: list[str]
    addresses: list[str]
    accelerator: str
    provider: str
    since: str


async def status(lab: str | None = None) -> list[GuestStatus]:
    """Every guest of every lab, or of one."""
    dirs = [LabDir(lab)] if lab else all_labs()
    if lab and not dirs[0].exists:
        raise LabError(f"no lab {lab}: 'valemgr status' shows what runs")
    states = [(lab_dir, lab_dir.read()) for lab_dir in dirs]
    return list(
        await asyncio.gather(
            *(
                _guest_status(lab_dir, state, name, guest)
                for lab_dir, state in states
                if state
                for name, guest in state.guests.items()
            )
        )
    )


def ssh_target(guest: str, lab: str | None) -> SshTarget:
    """How to reach a guest that runs; its lab is needed only if several have one of that name."""
    found = []
    for lab_dir in [LabDir(lab)] if lab else all_labs():
        state = lab_dir.read()
        if state and guest in state.guests:
            found.append((lab_dir, state, state.guests[guest]))
    if not found:
        where = f"in lab {lab}" if lab else "in any lab"
        raise LabError(f"no guest {guest} {where}: 'valemgr status' shows what runs")
    if len(found) > 1:
        labs = ", ".join(lab_dir.lab for lab_dir, _, _ in found)
        raise UsageError(f"guest {guest} is in several labs ({labs}): add --lab")
    lab_dir, state, entry = found[0]
    if not (state.of_this_boot and proc.is_alive(entry.ident)):
        raise LabError(f"guest {guest} of lab {lab_dir.lab} is dead: 'valemgr down {lab_dir.lab}'")
    return SshTarget(guest, entry.ssh_port, entry.host_key, lab_dir.key_file)


def labs_to_end(lab: str | None, everything: bool) -> list[LabDir]:
    """What `down` is about: the named lab, all, or the only one there is."""
    if lab:
        named = LabDir(lab)
        return [named] if named.exists or named.locked else []
    found = all_labs()
    if len(found) > 1 and not everything:
        names = ", ".join(lab_dir.lab for lab_dir in found)
        raise UsageError(f"which lab? There are {names}: name one, or say --all")
    return found


def is_abandoned(lab_dir: LabDir) -> bool:
    """Nobody works on it, and it was not to be kept or its guests are gone."""
    if lab_dir.locked:
        return False
    state = lab_dir.read()
    if state is None or not state.keep or not state.of_this_boot:
        return True
    return not any(proc.is_alive(guest.ident) for guest in state.guests.values())


async def _guest_status(
    lab_dir: LabDir, state: LabState, name: str, guest: GuestState
) -> GuestStatus:
    return GuestStatus(
        lab=state.lab,
        guest=name,
        state=await _run_state(lab_dir, state, name, guest),
        pid=guest.pid,
        ssh_port=guest.ssh_port,
        ports=guest.ports,
        addresses=guest.addresses,
        accelerator=state.accelerator,
        provider=state.provider,
        since=state.created,
    )


async def _run_state(lab_dir: LabDir, state: LabState, name: str, guest: GuestState) -> str:
    """QMP's word for it; without an answer, what is known of the process."""
    if not state.of_this_boot:
        return "gone (the host was rebooted)"
    if not proc.is_alive(guest.ident):
        return "dead"
    with suppress(OSError, ValeError):
        path = lab_dir.path / f"{name}.ctl"
        async with qmpclient.session(path, f"guest {name}", Deadline(QMP_SECONDS)) as qmp:
            return str((await qmp.call("query-status"))["status"])
    return "not answering"
