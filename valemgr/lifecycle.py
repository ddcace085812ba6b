# SPDX-License-Identifier: BSD-2-Clause
"""A lab's life: `up`, `apply`, `down`, and `running` for the length of a block.

All hold the lab's lock. Whatever happens between (failure, Ctrl-C, SIGTERM), a lab that was not
there before is gone again, and one that was there keeps what it had; after SIGKILL the next
command goes on or cleans up.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from valemgr import environment, proc, qmpclient, switchd
from valemgr.accel import AccelChoice
from valemgr.deadline import Deadline
from valemgr.environment import Environment
from valemgr.errors import LabError, UsageError, ValeError
from valemgr.plan import pin
from valemgr.reconcile import Diff, compare, describe
from valemgr.runner import RunningLab, RunOptions, Say
from valemgr.state import LabDir, LabState, all_labs, claims
from valemgr.switchd import Switchd
from valemgr.tasks import together, uninterrupted
from valemgr.topology import Backend, Lab, Provider

log = logging.getLogger(__name__)

QMP_SECONDS = 2.0
PORT_SECONDS = 5.0
FORCE_SECONDS = 20.0  # for a command that is told to stop, to clean up


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `up` or `apply` did, or would do."""

    lab: str
    changes: tuple[str, ...]
    done: bool


async def up(lab: Lab, accel: AccelChoice, options: RunOptions, say: Say) -> Outcome:
    """Start a lab, or go on where an earlier `up` was broken off; a running one is not changed."""
    lab_dir = LabDir(lab.name)
    async with lab_dir.lock("up"):
        state = await _usable_state(lab_dir)
        wanted = pin(lab, _macs(state))
        if state and wanted != state.wanted and state.alive:
            raise LabError(
                f"lab {lab.name} runs already, with another topology: 'valemgr apply' shows and "
                f"makes the difference, 'valemgr down {lab.name}' ends it"
            )
        return await _converge(wanted, state, accel, options, say)


async def apply(
    lab: Lab, accel: AccelChoice, options: RunOptions, say: Say, dry_run: bool = False
) -> Outcome:
    """Make a lab what its topology says, by the difference alone; `dry_run`: only say it."""
    lab_dir = LabDir(lab.name)
    async with lab_dir.lock("apply"):
        state = await _usable_state(lab_dir)
        wanted = pin(lab, _macs(state))
        return await _converge(wanted, state, accel, options, say, dry_run)


async def end(lab_dir: LabDir, force: bool) -> int:
    """`down` under the lab's lock; with `force` whoever holds it is ended first."""
    holder = lab_dir.holder_process() if force else None
    if holder:
        await holder.stop(FORCE_SECONDS)
    async with lab_dir.lock("down"):
        return await down(lab_dir)


async def down(lab_dir: LabDir) -> int:
    """End every process of a lab, remove its ports and its directory; the processes ended."""
    state = lab_dir.read()
    found = {process.ident: process for process in await _processes(lab_dir, state)}
    await together(process.stop() for process in found.values())
    if state:
        try:
            await _clean_switch(state)
        except ValeError as exc:  # the lab ends all the same
            log.warning("lab %s: ports may be left: %s", lab_dir.lab, exc)
    lab_dir.delete()
    return len(found)


@asynccontextmanager
async def running(
    lab: Lab, env: Environment, options: RunOptions, say: Say
) -> AsyncIterator[RunningLab]:
    """A lab that runs; stopped at the end, or kept if that was asked and all went well.

    The caller holds the lab's lock, and has made room by `clear_place`.
    """
    running_lab = RunningLab(pin(lab), env, options, say)
    try:
        diff = compare(running_lab.running, running_lab.lab)
        await _start(running_lab, diff)
        yield running_lab
        if options.keep:
            await running_lab.disconnect()
    except BaseException:
        await uninterrupted(_stop(running_lab))
        raise
    if not options.keep:
        await uninterrupted(_stop(running_lab))


async def clear_place(lab_dir: LabDir) -> None:
    """Make room for a new lab of this name: clean an abandoned one, refuse a living one."""
    state = lab_dir.read()
    if state and state.keep and state.alive:
        names = ", ".join(state.guests)
        raise LabError(
            f"lab {lab_dir.lab} runs already (guests {names}, since {state.created}): "
            f"use it, or end it by 'valemgr down {lab_dir.lab}'"
        )
    if lab_dir.exists:
        await down(lab_dir)


async def _converge(
    wanted: Lab,
    state: LabState | None,
    accel: AccelChoice,
    options: RunOptions,
    say: Say,
    dry_run: bool = False,
) -> Outcome:
    env = await environment.find(wanted, accel)
    lab = RunningLab(wanted, env, options, say)
    fresh = state is None or not state.alive
    if state:
        lab.adopt(state)
    diff = compare(lab.running, wanted)
    words = tuple(describe(diff, wanted))
    if dry_run:
        return Outcome(wanted.name, words, done=False)
    try:
        await _start(lab, diff)
    except BaseException:
        if fresh and not options.keep_on_error:
            await uninterrupted(_stop(lab))
        else:
            await uninterrupted(_drop_unready(lab))
        raise
    await lab.disconnect()
    return Outcome(wanted.name, words, done=True)


async def _start(lab: RunningLab, diff: Diff) -> None:
    await lab.prepare(diff)
    async with claims():
        _check_claims(lab.lab)
        lab.begin()
    await lab.converge(diff)


async def _stop(lab: RunningLab) -> None:
    """Undo everything; guests' own processes are known best by the lab itself."""
    for guest in lab.guests.values():
        await guest.stop()
    if lab.switchd:
        await lab.switchd.close()
    if lab.dir.exists:
        await down(lab.dir)


async def _drop_unready(lab: RunningLab) -> None:
    """After a failed change: what did not come up goes again, what ran before stays."""
    await lab.drop_unready()
    await lab.disconnect()


async def _usable_state(lab_dir: LabDir) -> LabState | None:
    """What there is to go on from; what cannot be gone on from is cleaned up."""
    state = lab_dir.read()
    if state and state.of_this_boot and state.keep:
        await _end_strays(lab_dir, state)
        return state
    if lab_dir.exists:
        await down(lab_dir)
    return None


async def _end_strays(lab_dir: LabDir, state: LabState) -> None:
    """End guests that were launched just before a kill, and not yet written down."""
    known = {guest.ident for guest in state.guests.values()}
    for process in await _processes(lab_dir, state):
        if process.ident not in known:
            await process.stop()


def _macs(state: LabState | None) -> dict[tuple[str, str], str]:
    if state is None:
        return {}
    return {(name, nic.name): nic.mac for name, g in state.guests.items() for nic in g.nics}


def _check_claims(lab: Lab) -> None:
    """A switch belongs to one lab, unless all its labs say that they share it."""
    mine = lab.all_switches()
    for other in all_labs():
        state = other.read() if other.lab != lab.name else None
        if state is None or not state.of_this_boot:
            continue
        for name, switch in state.wanted.all_switches().items():
            if name in mine and not (mine[name].shared and switch.shared):
                raise UsageError(
                    f"switch {name} is in use by lab {other.lab}: take another name, or say "
                    "'shared: true' for it in both topologies"
                )


async def _processes(lab_dir: LabDir, state: LabState | None) -> list[proc.Process]:
    """From the state file, and from who listens on QMP sockets (if a kill came between)."""
    idents = []
    if state and state.of_this_boot:
        idents = [guest.ident for guest in state.guests.values()]
    for path in sorted(lab_dir.path.glob("*.ctl")):
        with suppress(OSError, ValeError):
            async with qmpclient.session(path, path.stem, Deadline(QMP_SECONDS)) as qmp:
                idents.append(proc.ident_of(qmp.peer_pid))
    return [process for process in map(proc.find, idents) if process]


async def _clean_switch(state: LabState) -> None:
    """Remove what a lab had made in valed: ports that QEMU does not open itself, and switches."""
    ports = [
        nic.port
        for guest in state.guests.values()
        for nic in guest.nics
        if ":" in nic.port and nic.backend != Backend.NETMAP
    ]
    switches = [
        name for name, raw in state.switches.items() if raw["provider"] == Provider.USER
    ]
    if not state.rundir or not (ports or switches):
        return
    daemon = await switchd.at(Path(state.rundir), start=bool(ports))
    if daemon:
        try:
            await _clean(daemon, ports, switches, state)
        finally:
            await daemon.close()


async def _clean(
    daemon: Switchd, ports: list[str], switches: list[str], state: LabState
) -> None:
    for port in ports:
        await daemon.free_port(port, Deadline(PORT_SECONDS))
    for name in switches:
        if not state.switches[name]["shared"]:
            await daemon.release_switch(name)
