# SPDX-License-Identifier: BSD-2-Clause
"""Make a planned lab run, and undo it: lab directory, keys, switch, guests in waves.

Whatever happens between (failure, Ctrl-C, SIGTERM), `running` leaves nothing behind, unless the
lab is to be kept and came up well.
"""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from valemgr import accel, image, keys, locate, proc, qmpclient, switchd
from valemgr.deadline import Deadline
from valemgr.errors import InterruptedRunError, LabError, ValeError
from valemgr.guest import RunningGuest
from valemgr.plan import Host, LabPlan, plan
from valemgr.state import LabDir, LabState
from valemgr.switchd import Switchd
from valemgr.topology import Lab

log = logging.getLogger(__name__)

T = TypeVar("T")
Say = Callable[[str], None]

QMP_SECONDS = 2.0
NEWS_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Environment:
    """What this machine offers; found before anything is started."""

    qemu: Path
    accelerator: accel.Accelerator
    images: dict[str, image.Image]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a lab is to run."""

    keep: bool = False
    timeout: float = 60.0


def environment(lab: Lab, choice: accel.AccelChoice) -> Environment:
    """Everything a lab needs from this machine, or EnvironmentUnfitError."""
    return Environment(
        qemu=locate.require(locate.QEMU),
        accelerator=accel.choose(choice),
        images={name: image.load(name) for name in sorted({g.image for g in lab.guests})},
    )


class RunningLab:
    """A lab whose guests are ready."""

    def __init__(self, lab: Lab, env: Environment, options: RunOptions, say: Say) -> None:
        self.lab = lab
        self.env = env
        self.options = options
        self.dir = LabDir(lab.name)
        self.guests: dict[str, RunningGuest] = {}
        self.switchd: Switchd | None = None
        self._say = say
        self._key = keys.generate()
        self._state: LabState | None = None

    @property
    def state(self) -> LabState:
        if self._state is None:
            raise LabError(f"lab {self.lab.name} was not started")
        return self._state

    async def start(self) -> None:
        """Bring everything up, guests wave after wave, and wait until all are ready."""
        await self._start_switch()
        self.dir.create()
        self.dir.write_file(self.dir.key_file, self._key.private)
        self._write_state()
        deadline = Deadline(self.options.timeout)
        for wave in self._plan().waves:
            await self._start_wave(wave, deadline)
        self._say(f"guests {', '.join(self.guests)}: booting ({self.env.accelerator.name})")
        await self.guarded(_all(guest.wait_ready(deadline) for guest in self.guests.values()))
        self._write_state()
        for guest in self.guests.values():
            self._say(f"guest {guest.name}: ready after {guest.ready_seconds:.1f} s")

    async def stop(self) -> None:
        """End guests and forget the lab; the switch goes by itself when nobody uses it."""
        await asyncio.gather(*(guest.stop() for guest in self.guests.values()))
        self.dir.delete()
        await self.disconnect()

    async def disconnect(self) -> None:
        """Let go of everything that keeps running."""
        for guest in self.guests.values():
            guest.disconnect()
        if self.switchd:
            await self.switchd.close()

    async def guarded(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work, but give up with the reason at once when a guest or the switch goes away."""
        watchers: list[asyncio.Future[ValeError]]
        watchers = [asyncio.ensure_future(guest.ended()) for guest in self.guests.values()]
        if self.switchd:
            watchers.append(asyncio.ensure_future(self.switchd.gone()))
        task = asyncio.ensure_future(work)
        try:
            everything: set[asyncio.Future[Any]] = {task, *watchers}
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            if _failed(task):
                # What dies first breaks off the work: let its end be the news, not that.
                await asyncio.wait(
                    watchers, timeout=NEWS_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
            lost = [watcher.result() for watcher in watchers if watcher.done()]
            if lost and (_failed(task) or not task.done()):
                raise lost[0]
            return await task
        finally:
            await _cancel(task, *watchers)

    def _plan(self) -> LabPlan:
        device = str(self.switchd.netmap_socket) if self.switchd else ""
        return plan(
            self.lab,
            Host(
                qemu=self.env.qemu,
                accelerator=self.env.accelerator.name,
                netmap_device=device,
                lab_dir=self.dir.path,
                images=self.env.images,
            ),
        )

    async def _start_switch(self) -> None:
        if not self.lab.ports:
            return
        self.switchd = await switchd.find_or_start()
        await self.switchd.require_free(self.lab.ports)
        self._say(f"switch: valed {self.switchd.version}, {self.switchd.rundir}")

    async def _start_wave(self, wave: tuple[Any, ...], deadline: Deadline) -> None:
        new = [RunningGuest(guest_plan, self.dir) for guest_plan in wave]
        for guest in new:
            guest.launch(self._key.public)
            self.guests[guest.name] = guest
            self._write_state()
        await _all(guest.wait_qmp(deadline) for guest in new)

    def _write_state(self) -> None:
        guests = {name: guest.state() for name, guest in self.guests.items()}
        if self._state is None:
            self._state = LabState(
                lab=self.lab.name,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                boot_id=proc.boot_id(),
                keep=self.options.keep,
                accelerator=self.env.accelerator.name,
                provider=self.switchd.provider if self.switchd else "",
                topology=self.lab.model_dump(mode="json"),
            )
        self._state = replace(self._state, guests=guests)
        self.dir.write(self._state)


@asynccontextmanager
async def running(
    lab: Lab, env: Environment, options: RunOptions, say: Say
) -> AsyncIterator[RunningLab]:
    """A lab that runs; stopped at the end, or kept if that was asked and all went well."""
    running_lab = RunningLab(lab, env, options, say)
    try:
        await running_lab.start()
        yield running_lab
        if options.keep:
            await running_lab.disconnect()
    except BaseException:
        await _uninterrupted(running_lab.stop())
        raise
    if not options.keep:
        await _uninterrupted(running_lab.stop())


async def clear_place(lab_dir: LabDir) -> None:
    """Make room for a new lab of this name: clean an abandoned one, refuse a living one."""
    state = lab_dir.read()
    if state and state.of_this_boot and state.keep and _alive(state):
        names = ", ".join(state.guests)
        raise LabError(
            f"lab {lab_dir.lab} runs already (guests {names}, since {state.created}): "
            f"use it, or end it by 'valemgr down {lab_dir.lab}'"
        )
    if lab_dir.exists:
        await down(lab_dir)


async def down(lab_dir: LabDir) -> int:
    """End every process of a lab and remove its directory; the number of processes ended."""
    found = {process.ident: process for process in await _processes(lab_dir)}
    await asyncio.gather(*(process.stop() for process in found.values()))
    lab_dir.delete()
    return len(found)


async def _processes(lab_dir: LabDir) -> list[proc.Process]:
    """From the state file, and from who listens on QMP sockets (if a kill came between)."""
    state = lab_dir.read()
    idents = []
    if state and state.of_this_boot:
        idents = [guest.ident for guest in state.guests.values()]
    for path in sorted(lab_dir.path.glob("*.ctl")):
        with suppress(OSError, ValeError):
            async with qmpclient.session(path, path.stem, Deadline(QMP_SECONDS)) as qmp:
                idents.append(proc.ident_of(qmp.peer_pid))
    return [process for process in map(proc.find, idents) if process]


def _alive(state: LabState) -> bool:
    return any(proc.is_alive(guest.ident) for guest in state.guests.values())


async def _all(waits: Any) -> None:
    """Run together; the first failure ends the others and is raised itself, not in a group."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancel(*tasks)


def _failed(task: "asyncio.Future[Any]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


async def _cancel(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _uninterrupted(cleanup: Coroutine[Any, Any, None]) -> None:
    """Finish cleaning up even if Ctrl-C comes again meanwhile."""
    task = asyncio.ensure_future(cleanup)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            log.info("interrupted again while cleaning up: finishing first")


def run_interruptibly(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, with SIGINT, SIGTERM and SIGHUP all ending things orderly, also the second."""

    async def wrapped() -> T:
        task = asyncio.ensure_future(main)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            raise InterruptedRunError("interrupted; nothing was left running") from None

    return asyncio.run(wrapped())
