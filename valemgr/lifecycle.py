# SPDX-License-Identifier: BSD-2-Clause
"""A lab's life: `up`, `apply`, `down`, and `running` for the length of a block.

All hold the lab's lock. Whatever happens between (failure, Ctrl-C, SIGTERM), a lab that was not
there before is gone again, and one that was there keeps what it had; after SIGKILL the next
command goes on or cleans up.
"""

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from valemgr import environment, machine, proc, switchd
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
from valemgr.topology import Lab, Switch
from valemgr.virt.domain import guest_uuid
from valemgr.words import Provider

log = logging.getLogger(__name__)

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
        state = await _usable_state(lab_dir, say)
        _check_engine(lab, state)
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
        state = _state_to_look_at(lab_dir) if dry_run else await _usable_state(lab_dir, say)
        _check_engine(lab, state)
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
    theirs = set() if state else await _ports_of(found.values())
    await together(process.stop() for process in found.values())
    try:
        if state:
            await _clean_switch(state)
        elif theirs:
            await _free_ports(await switchd.find(), theirs)
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
        elif lab.begun:
            await uninterrupted(_drop_unready(lab))
        else:
            await uninterrupted(lab.disconnect())
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


def _state_to_look_at(lab_dir: LabDir) -> LabState | None:
    """What there is to go on from, or nothing; nothing is cleaned up."""
    state = lab_dir.read()
    return state if state and state.of_this_boot and state.keep else None


async def _usable_state(lab_dir: LabDir, say: Say) -> LabState | None:
    """What there is to go on from; what cannot be gone on from is cleaned up."""
    state = _state_to_look_at(lab_dir)
    if state:
        await _end_strays(lab_dir, state)
        return state
    if lab_dir.exists:
        read = lab_dir.read()
        why = "its state file is of no use" if read is None else "its guests are gone"
        why = "the host was rebooted since" if read and not read.of_this_boot else why
        say(f"lab {lab_dir.lab}: {why}: what is left of it is cleaned up first")
        await down(lab_dir)
    return None


async def _end_strays(lab_dir: LabDir, state: LabState) -> None:
    """What was made just before a kill, and not yet written down: guests end, ports go."""
    known = {guest.ident for guest in state.guests.values()}
    strays = [each for each in await _processes(lab_dir, state) if each.ident not in known]
    await together(process.stop() for process in strays)
    written = {nic.port for guest in state.guests.values() for nic in guest.nics}
    ports = set(state.wanted.ports) - written
    if ports and state.rundir:
        await _free_ports(await switchd.at(Path(state.rundir), start=_keeps(state)), ports)


def _check_engine(lab: Lab, state: LabState | None) -> None:
    """Guests that run do not move from one engine to the other."""
    if state and state.alive and state.wanted.engine is not lab.engine:
        raise UsageError(
            f"lab {lab.name} runs with engine {state.wanted.engine}, its topology says "
            f"{lab.engine}: 'valemgr down {lab.name}' first, or leave the engine as it is"
        )


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
        done = {name: Switch.model_validate(raw) for name, raw in state.switches.items()}
        for name, switch in (done | state.wanted.all_switches()).items():
            if name in mine and not (mine[name].shared and switch.shared):
                raise UsageError(
                    f"switch {name} is in use by lab {other.lab}: take another name, or say "
                    "'shared: true' for it in both topologies, or end that lab by "
                    f"'valemgr down {other.lab}'"
                )


async def _processes(lab_dir: LabDir, state: LabState | None) -> list[proc.Process]:
    """From the state file, and from command lines: for what a kill came between, or a reboot."""
    uri = state.libvirt if state else ""
    if state and uri:
        names = {*state.guests, *(guest.name for guest in state.wanted.guests)}
        await machine.until_started(uri, [guest_uuid(lab_dir.path, name) for name in names])
    known = {one.ident: one.uuid for one in machine.all_running() if one.folder == lab_dir.path}
    if state and state.of_this_boot:
        for name, guest in state.guests.items():
            known[guest.ident] = guest_uuid(lab_dir.path, name) if guest.libvirt else ""
    found = (machine.find(ident, uuid, uri) for ident, uuid in known.items())
    return [process for process in found if process]


async def _ports_of(processes: Iterable[proc.Process]) -> set[str]:
    """Ports of valed that these processes are at the other end of."""
    pids = {process.pid for process in processes}
    with suppress(ValeError):
        async with switchd.connected() as daemon:
            ports = await daemon.ports() if daemon else []
            return {port.name for port in ports if port.peer_pid in pids}
    return set()


async def _clean_switch(state: LabState) -> None:
    """Remove what a lab had made in valed, or was about to: ports, and switches' settings."""
    nics = [nic for guest in state.guests.values() for nic in guest.nics]
    ports = {nic.port for nic in nics} | set(state.wanted.ports)
    done = {name: Switch.model_validate(raw) for name, raw in state.switches.items()}
    switches = [
        switch.name
        for switch in (state.wanted.all_switches() | done).values()
        if switch.provider is Provider.USER and switch.settings() and not _is_shared(state, switch)
    ]
    if state.rundir and (ports or switches):
        daemon = await switchd.at(Path(state.rundir), start=_keeps(state))
        await _free_ports(daemon, ports, switches)


def _is_shared(state: LabState, switch: Switch) -> bool:
    """Whether another lab uses a switch, too."""
    others = [lab_dir.read() for lab_dir in all_labs() if lab_dir.lab != state.lab]
    return switch.shared and any(
        other.of_this_boot and switch.name in other.wanted.all_switches()
        for other in others
        if other
    )


def _keeps(state: LabState) -> bool:
    """Whether a valed that does not run would have something of the lab when it runs again."""
    return (Path(state.rundir) / switchd.KEPT).exists()


async def _free_ports(
    daemon: Switchd | None, ports: set[str], switches: Iterable[str] = ()
) -> None:
    """Remove ports, and then let go of switches; native ports go with the process that has them."""
    if daemon is None:
        return
    try:
        for port in await daemon.ports():
            if port.name in ports and port.kind != switchd.NATIVE:
                await daemon.free_port(port.name, Deadline(PORT_SECONDS))
        for name in switches:
            await daemon.release_switch(name)
    finally:
        await daemon.close()
