# SPDX-License-Identifier: BSD-2-Clause
"""Labs from Python: `from valemgr import Lab`.

    async with Lab("pair.lab.yml") as lab:          # up, and down at the end
        result = await lab.run("a", "ping -c 3 198.18.0.2")
        assert result.status == 0

    with Lab("pair.lab.yml").sync as lab:           # the same without async
        assert lab.run("a", "ping -c 3 198.18.0.2").status == 0

A Lab is a topology and the name of what runs; it holds no connection, so several programs can use
one lab, and one that was started by `valemgr up`. Errors are those of valemgr.errors.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from valemgr import bench, labfile, labs, labtests, lifecycle
from valemgr.accel import AccelChoice
from valemgr.bench import Trial, TrialSpec
from valemgr.copy import copy_from, copy_to
from valemgr.deadline import Deadline
from valemgr.errors import LabError, UsageError
from valemgr.guest import RunningGuest
from valemgr.labs import GuestStatus
from valemgr.labtests import Verdict
from valemgr.lifecycle import Outcome
from valemgr.runner import RunOptions
from valemgr.ssh import RemoteResult
from valemgr.state import LabDir
from valemgr.topology import Lab as Topology

T = TypeVar("T")

COMMAND_SECONDS = 60.0


def _silent(_: str) -> None:
    """Progress that nobody wants to see."""


class Lab:
    """A lab: a topology, and what runs of it.

    `source` is a topology file or its folder, or a valemgr.topology.Lab. `timeout` is in seconds,
    for each guest's start (else 120, with a disk 600). `say` is called with each line of progress.
    """

    def __init__(
        self,
        source: str | Path | Topology,
        *,
        accel: str = "auto",
        timeout: float | None = None,
        say: Callable[[str], None] = _silent,
    ) -> None:
        self.path: Path | None = None
        if isinstance(source, Topology):
            self.topology = source
        else:
            self.path = _file(source)
            self.topology = labfile.load_lab(self.path)
        self._accel = AccelChoice(accel)
        self._options = RunOptions(keep=True, timeout=timeout, source=str(self.path or ""))
        self._say = say

    @property
    def name(self) -> str:
        return self.topology.name

    @property
    def sync(self) -> "SyncLab":
        """The same lab for programs without asyncio."""
        return SyncLab(self)

    async def up(self) -> Outcome:
        """Start it, or go on where that was broken off; every guest is ready then."""
        return await lifecycle.up(self.topology, self._accel, self._options, self._say)

    async def apply(self, source: str | Path | Topology | None = None) -> Outcome:
        """Make what runs equal to the topology: the file as it is now, or another one."""
        if isinstance(source, Topology):
            self.topology = source
        elif source or self.path:
            self.topology = labfile.load_lab(_file(source or str(self.path)))
        return await lifecycle.apply(self.topology, self._accel, self._options, self._say)

    async def down(self) -> int:
        """End it; how many guests were ended. Safe to repeat."""
        lab_dir = LabDir(self.name)
        return await lifecycle.end(lab_dir, force=False) if lab_dir.exists else 0

    async def status(self) -> list[GuestStatus]:
        """Every guest, as QMP says."""
        return await labs.status(self.name)

    async def wait(self, seconds: float = 300.0) -> None:
        """Until every guest is ready; WaitTimeoutError if that takes longer."""
        await labs.wait(LabDir(self.name), Deadline(seconds))

    async def test(self) -> list[Verdict]:
        """Run the topology's tests."""
        async with labs.attached(LabDir(self.name)) as lab:
            return await labtests.run(lab, self._say)

    async def run(self, guest: str, command: str, seconds: float = COMMAND_SECONDS) -> RemoteResult:
        """Run a shell command in a guest: its status, stdout and stderr."""
        deadline = Deadline(seconds)
        async with self._guest(guest, deadline) as running:
            return await running.ssh.run(command, deadline)

    async def put(self, source: str | Path, guest: str, target: str) -> None:
        """Copy a file or folder into a guest."""
        async with self._guest(guest, Deadline(COMMAND_SECONDS)) as running:
            await copy_to(running.ssh, Path(source), target)

    async def get(self, guest: str, source: str, target: str | Path) -> None:
        """Copy a file or folder out of a guest."""
        async with self._guest(guest, Deadline(COMMAND_SECONDS)) as running:
            await copy_from(running.ssh, source, Path(target))

    async def udp(
        self,
        sender: str,
        receiver: str,
        *,
        frame: int = 64,
        seconds: float = 1.0,
        rate: int | None = None,
    ) -> Trial:
        """Measure UDP from one guest to another, each as `guest:nic` or a guest (its first NIC).

        `frame` is in bytes with the FCS; `rate` in frames a second, None: as fast as it goes.
        """
        ends = [_end(self.topology, end) for end in (sender, receiver)]
        spec = TrialSpec("udp", frame, seconds, rate, (ends[0][1], ends[1][1]))
        async with labs.attached(LabDir(self.name)) as lab:
            pair = [lab.guest(guest) for guest, _ in ends]
            for running in pair:
                await running.connect(Deadline(COMMAND_SECONDS))
            return await bench.run_trial(spec, pair[0], pair[1], lab.switchd)

    async def addresses(self, guest: str) -> list[str]:
        """A guest's addresses on its data NICs, without prefix lengths."""
        async with labs.attached(LabDir(self.name)) as lab:
            nics = lab.guest(guest).spec.nics
        return [address.partition("/")[0] for nic in nics for address in nic.addresses]

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.down()

    @asynccontextmanager
    async def _guest(self, name: str, deadline: Deadline) -> AsyncIterator[RunningGuest]:
        async with labs.attached(LabDir(self.name)) as lab:
            guest = lab.guest(name)
            await guest.connect(deadline)
            yield guest


class SyncLab:
    """A Lab whose methods block; an event loop of its own runs in a thread."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        return self.lab.name

    @property
    def topology(self) -> Topology:
        return self.lab.topology

    def up(self) -> Outcome:
        """See Lab.up; so for every method here."""
        return self._do(self.lab.up())

    def apply(self, source: str | Path | Topology | None = None) -> Outcome:
        return self._do(self.lab.apply(source))

    def down(self) -> int:
        return self._do(self.lab.down())

    def status(self) -> list[GuestStatus]:
        return self._do(self.lab.status())

    def wait(self, seconds: float = 300.0) -> None:
        self._do(self.lab.wait(seconds))

    def test(self) -> list[Verdict]:
        return self._do(self.lab.test())

    def run(self, guest: str, command: str, seconds: float = COMMAND_SECONDS) -> RemoteResult:
        return self._do(self.lab.run(guest, command, seconds))

    def put(self, source: str | Path, guest: str, target: str) -> None:
        self._do(self.lab.put(source, guest, target))

    def get(self, guest: str, source: str, target: str | Path) -> None:
        self._do(self.lab.get(guest, source, target))

    def udp(
        self,
        sender: str,
        receiver: str,
        *,
        frame: int = 64,
        seconds: float = 1.0,
        rate: int | None = None,
    ) -> Trial:
        return self._do(self.lab.udp(sender, receiver, frame=frame, seconds=seconds, rate=rate))

    def addresses(self, guest: str) -> list[str]:
        return self._do(self.lab.addresses(guest))

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.down()
        finally:
            self.close()

    def close(self) -> None:
        """End the thread; the lab stays as it is."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C in the caller's thread: let the work clean up behind itself first.
            if future.cancel():
                with_loop = asyncio.run_coroutine_threadsafe(_others_done(), self._loop)
                with_loop.result()
            raise


async def _others_done() -> None:
    """Wait until every other task of this loop is over."""
    me = asyncio.current_task()
    await asyncio.gather(*(asyncio.all_tasks() - {me}), return_exceptions=True)


def _file(where: str | Path) -> Path:
    return labfile.find_lab_file(str(where))


def _end(lab: Topology, end: str) -> tuple[str, str]:
    name, _, nic = end.partition(":")
    guest = lab.guest(name)
    if guest is None:
        raise LabError(f"lab {lab.name} has no guest {name}")
    if not nic and not guest.nics:
        raise UsageError(f"guest {name} has no NIC")
    return name, nic or guest.nics[0].name
