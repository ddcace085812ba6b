# SPDX-License-Identifier: BSD-2-Clause
"""Processes: `start` is the one function that starts one; pidfds make waiting an event.

A process is known by pid and start time, so that a recycled pid is never signalled. What is
started here runs in a session of its own: Ctrl-C in a terminal reaches valemgr alone, and a kept
guest outlives it.
"""

import asyncio
import logging
import os
import shlex
import signal
import socket
import struct
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from valemgr.deadline import Deadline
from valemgr.errors import EnvironmentUnfitError, ValeError, WaitTimeoutError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A pid that cannot be confused with a later process of the same number."""

    pid: int
    start_time: int


class Process:
    """A process that runs, or ran: our child, or one found again by its ProcessId."""

    def __init__(self, ident: ProcessId, pidfd: int, child: subprocess.Popen[bytes] | None) -> None:
        self.ident = ident
        self.exit_status: int | None = None
        self.ask_to_end: Callable[[], Awaitable[None]] | None = None  # who does it better than we
        self._pidfd = pidfd
        self._child = child
        self._done: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int:
        return self.ident.pid

    async def exited(self) -> int | None:
        """Wait for the end; the exit status if it was our child (negative: a signal)."""
        if self._done is None:
            loop = asyncio.get_running_loop()
            self._done = loop.create_future()
            loop.add_reader(self._pidfd, self._on_exit, loop)
        await asyncio.shield(self._done)
        return self.exit_status

    async def stop(self, grace: float = 5.0) -> None:
        """SIGTERM, then SIGKILL after `grace` seconds; returns when it is gone."""
        await self._ask()
        try:
            await Deadline(grace).wait("end of process", self.exited())
        except WaitTimeoutError:
            self._signal(signal.SIGKILL)
            await self.exited()

    async def _ask(self) -> None:
        """By who runs it; by a signal where that fails, or nobody does."""
        if self.ask_to_end:
            try:
                await self.ask_to_end()
                return
            except ValeError as exc:
                log.warning("pid %d is ended by a signal: %s", self.pid, exc)
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            log.debug("pid %d is gone already", self.pid)
        except PermissionError as exc:
            what = f"pid {self.pid} is another user's: end it as root"
            raise EnvironmentUnfitError(what) from exc

    def _on_exit(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._pidfd)
        if self._child is not None:
            self.exit_status = self._child.wait()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def __del__(self) -> None:
        os.close(self._pidfd)


def start(
    argv: Sequence[str],
    output: Path | int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> Process:
    """Start a detached process, its output appended to a file (or to a file descriptor)."""
    log.info("start: %s", shlex.join(argv))
    fd = output if isinstance(output, int) else _open_log(output)
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(pass_fds),
            env=None if env is None else {**os.environ, **env},
            start_new_session=True,
        )
    except OSError as exc:
        raise EnvironmentUnfitError(f"cannot run {argv[0]}: {exc.strerror}") from exc
    finally:
        if not isinstance(output, int):
            os.close(fd)
    # Until it is waited for, our child keeps its pid and its entry in /proc, dead or alive.
    return Process(ident_of(child.pid), os.pidfd_open(child.pid), child)


async def output_of(argv: Sequence[str], deadline: Deadline) -> tuple[int, str]:
    """Exit status and output of a short command."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stream:
        try:
            process = start(argv, output=writer)
        finally:
            os.close(writer)
        try:
            text = await deadline.wait(argv[0], asyncio.to_thread(stream.read))
            status = await deadline.wait(argv[0], process.exited())
        except BaseException:
            await process.stop(grace=0)
            raise
    return status or 0, text.decode(errors="replace")


def find(ident: ProcessId) -> Process | None:
    """A process that was started earlier, perhaps by another valemgr; None if it is gone."""
    try:
        pidfd = os.pidfd_open(ident.pid)
    except OSError:
        return None
    process = Process(ident, pidfd, None)
    return process if is_alive(ident) else None


def everybody() -> Iterator[tuple[ProcessId, int, list[str]]]:
    """Processes that run, with their users and command lines."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(entry.name)
            yield ident_of(pid), entry.stat().st_uid, command_line(pid)
        except OSError:  # it has ended meanwhile
            continue


def command_line(pid: int) -> list[str]:
    """The command line of a process that runs."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape")
    return words.removesuffix("\0").split("\0")


def is_alive(ident: ProcessId) -> bool:
    """Whether this very process runs (a zombie does not)."""
    try:
        state, start_time = _stat(ident.pid)
    except OSError:
        return False
    return start_time == ident.start_time and state not in "ZX"


def ident_of(pid: int) -> ProcessId:
    """The identity of a process that runs now."""
    return ProcessId(pid, _start_time(pid))


def peer_pid(sock: socket.socket) -> int:
    """The process at the other end of a connected AF_UNIX socket."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def myself() -> ProcessId:
    """This process."""
    return ident_of(os.getpid())


def boot_id() -> str:
    """Changes with every boot of the host: pids of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_time(pid: int) -> int:
    return _stat(pid)[1]


def _stat(pid: int) -> tuple[str, int]:
    """State and start time. The command name may hold anything, so count from its last ')'."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _open_log(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)
