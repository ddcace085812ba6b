# SPDX-License-Identifier: BSD-2-Clause
"""Questions about labs that run: which there are, how their guests are, how to reach one.

State files say what was started; processes and QMP are asked for the truth. Nothing here locks.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valemgr import proc, switchd
from valemgr.deadline import Deadline
from valemgr.errors import GuestError, LabError, UsageError, ValeError
from valemgr.guest import RunningGuest, plan_of
from valemgr.machine import machine_of
from valemgr.reconcile import describe_impair
from valemgr.state import SET_UP, GuestState, LabDir, LabState, all_labs, left_locks
from valemgr.switchd import Switchd
from valemgr.tasks import together
from valemgr.topology import Guest, Impair, Lab, Test

ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Attached:
    """A lab that runs, looked at from outside: its guests that are alive, and its switch daemon."""

    state: LabState
    guests: dict[str, RunningGuest]
    switchd: Switchd | None

    def guest(self, name: str) -> RunningGuest:
        """A guest that is alive."""
        if name not in self.guests:
            what = "is dead" if name in self.state.guests else "does not exist"
            raise LabError(f"guest {name} of lab {self.state.lab} {what}")
        return self.guests[name]


@dataclass(frozen=True, slots=True)
class GuestStatus:
    """A guest, as `status` shows it."""

    lab: str
    guest: str
    state: str
    pid: int
    ssh_port: int
    ports: list[str]
    backends: list[str]
    addresses: list[str]
    accelerator: str
    provider: str
    since: str


async def status(lab: str | None = None) -> list[GuestStatus]:
    """Every guest of every lab, or of one; those that are still to come, too."""
    dirs = [LabDir(lab)] if lab else all_labs()
    if lab and not dirs[0].exists:
        raise LabError(f"no lab {lab}: 'valemgr status' shows what runs")
    if lab and lab in unreadable():
        raise LabError(f"lab {lab}: its state file is of no use: 'valemgr down {lab}' cleans up")
    return [row for rows in await together(map(_lab_status, dirs)) for row in rows]


def unreadable() -> list[str]:
    """Labs that nobody works on, and whose state file is missing or makes no sense."""
    return [each.lab for each in all_labs() if not each.locked and each.read() is None]


@asynccontextmanager
async def attached(lab_dir: LabDir) -> AsyncIterator[Attached]:
    """Look at a lab without changing it: for commands, tests and trials in its guests."""
    state = lab_dir.read()
    if state is None or not state.alive:
        raise LabError(f"lab {lab_dir.lab} does not run: 'valemgr status' shows what does")
    guests = {}
    for name, entry in state.guests.items():
        guest = RunningGuest.adopt(plan_of(entry, lab_dir), lab_dir, entry)
        if guest:
            guests[name] = guest
    daemon = await switchd.at(Path(state.rundir), start=False) if state.rundir else None
    try:
        yield Attached(state, guests, daemon)
    finally:
        for guest in guests.values():
            guest.disconnect()
        if daemon:
            await daemon.close()


def only_lab(lab: str | None) -> LabDir:
    """The lab of that name; without a name, the only one that runs."""
    if lab:
        return LabDir(lab)
    running = [lab_dir for lab_dir in all_labs() if lab_dir.read()]
    if len(running) == 1:
        return running[0]
    if not running:
        raise LabError("no lab runs: start one by 'valemgr up'")
    raise UsageError(f"which lab? There are {', '.join(lab_dir.lab for lab_dir in running)}")


async def wait(lab_dir: LabDir, deadline: Deadline) -> None:
    """Until every guest that the lab is to have is set up, and its conditions hold."""

    async def attempt() -> None:
        state = lab_dir.read()
        if state is None:
            raise GuestError("it does not run")
        for guest in state.wanted.guests:
            entry = state.guests.get(guest.name)
            if entry is None or entry.stage != SET_UP:
                raise GuestError(f"guest {guest.name} is {entry.stage if entry else 'not started'}")
            if not proc.is_alive(entry.ident):
                raise GuestError(f"guest {guest.name} is dead")

    await deadline.retry(f"lab {lab_dir.lab}", attempt, (GuestError,), every=0.1)
    async with attached(lab_dir) as lab:
        await together(deadline.wait(n, g.wait_conditions()) for n, g in lab.guests.items())


def inspect(lab_dir: LabDir) -> list[dict[str, Any]]:
    """Every NIC of a lab: its addresses, where it is plugged, and who is at the other end."""
    state = _state_of(lab_dir)
    ends = {end: link.ends[1 - i] for link in state.wanted.links for i, end in enumerate(link.ends)}
    return [
        {
            "guest": name,
            "nic": nic.name,
            "mac": nic.mac,
            "addresses": list(nic.addresses),
            "mtu": nic.mtu,
            "port": nic.port or nic.segment,
            "peer": ends.get(f"{name}:{nic.name}", f"{nic.switch}:" if nic.switch else ""),
            "model": str(nic.model),
            "backend": plugged.backend,
            "slot": plugged.slot,
            "impair": describe_impair(nic.impair) if nic.impair != Impair() else "",
        }
        for name, entry in state.guests.items()
        for nic, plugged in zip(entry.model.nics, entry.nics, strict=True)
    ]


def present(lab_dir: LabDir) -> Lab:
    """A lab's topology as it runs now: what is wanted, with the guests and NICs that there are."""
    state = _state_of(lab_dir)
    wanted = state.wanted
    guests = [entry.model for entry in state.guests.values()]
    names = {guest.name for guest in guests}
    nics = {f"{guest.name}:{nic.name}" for guest in guests for nic in guest.nics}
    after = [{"after": tuple(a for a in guest.after if a in names)} for guest in guests]
    return wanted.model_copy(
        update={
            "guests": tuple(
                g.model_copy(update=known) for g, known in zip(guests, after, strict=True)
            ),
            "links": tuple(link for link in wanted.links if nics.issuperset(link.ends)),
            "tests": tuple(test for test in wanted.tests if _testable(test, names, nics)),
        }
    )


def _testable(test: Test, guests: set[str], nics: set[str]) -> bool:
    ends = {test.udp.sender, test.udp.receiver} if test.udp else set()
    return (test.guest in guests or not test.condition) and nics.issuperset(ends)


def _state_of(lab_dir: LabDir) -> LabState:
    state = lab_dir.read()
    if state is None:
        raise LabError(f"no lab {lab_dir.lab}: 'valemgr status' shows what runs")
    return state


def labs_to_end(lab: str | None, everything: bool) -> list[LabDir]:
    """What `down` is about: the named lab, all, or the only one there is."""
    if lab:
        named = LabDir(lab)
        return [named] if named.exists or lab in {each.lab for each in left_locks()} else []
    found = [*all_labs(), *left_locks()]
    if len(found) > 1 and not everything:
        names = ", ".join(lab_dir.lab for lab_dir in found)
        raise UsageError(f"which lab? There are {names}: name one, or say --all")
    return found


def is_abandoned(lab_dir: LabDir) -> bool:
    """Nobody works on it, and it was not to be kept or its guests are gone."""
    if lab_dir.locked:
        return False
    state = lab_dir.read()
    return state is None or not (state.keep and state.alive)


async def _lab_status(lab_dir: LabDir) -> list[GuestStatus]:
    state = lab_dir.read()
    if state is None:
        return []
    switched = await _switch_answers(state)
    missing = [guest for guest in state.wanted.guests if guest.name not in state.guests]
    return [
        *await together(
            _guest_status(lab_dir, state, name, guest, switched)
            for name, guest in state.guests.items()
        ),
        *(_missing_status(lab_dir, state, guest) for guest in missing),
    ]


async def _switch_answers(state: LabState) -> bool:
    """Whether the lab's valed is there; true for a lab that needs none."""
    if not state.rundir or not state.alive:
        return True
    with suppress(OSError, ValeError):
        daemon = await switchd.at(Path(state.rundir), start=False)
        if daemon:
            await daemon.close()
            return True
    return False


async def _guest_status(
    lab_dir: LabDir, state: LabState, name: str, guest: GuestState, switched: bool
) -> GuestStatus:
    runs = await _run_state(lab_dir, state, name, guest)
    by_valed = any(":" in nic.port for nic in guest.nics)
    return GuestStatus(
        lab=state.lab,
        guest=name,
        state="no switch" if runs == "running" and by_valed and not switched else runs,
        pid=guest.pid,
        ssh_port=guest.ssh_port,
        ports=[nic.port for nic in guest.nics],
        backends=[nic.backend for nic in guest.nics],
        addresses=[address for nic in guest.nics for address in nic.addresses],
        accelerator=state.accelerator,
        provider=state.provider,
        since=state.created,
    )


def _missing_status(lab_dir: LabDir, state: LabState, guest: Guest) -> GuestStatus:
    """A guest that is wanted and was not started, or did not come up and was ended."""
    return GuestStatus(
        lab=state.lab,
        guest=guest.name,
        state="waiting" if lab_dir.locked else "not started",
        pid=0,
        ssh_port=0,
        ports=[nic.port or nic.segment for nic in guest.nics],
        backends=[],
        addresses=[address for nic in guest.nics for address in nic.addresses],
        accelerator=state.accelerator,
        provider=state.provider,
        since=state.created,
    )


async def _run_state(lab_dir: LabDir, state: LabState, name: str, guest: GuestState) -> str:
    """QEMU's word for it; without an answer, what is known of the process."""
    if not state.of_this_boot:
        return "gone (the host was rebooted)"
    if not proc.is_alive(guest.ident):
        return "dead"
    if guest.stage != SET_UP:
        return "starting" if lab_dir.locked else f"broken off when {guest.stage}"
    with suppress(OSError, ValeError):
        status = machine_of(plan_of(guest, lab_dir)).status()
        return await Deadline(ANSWER_SECONDS).wait(f"guest {name}", status)
    return "not answering"
