# SPDX-License-Identifier: BSD-2-Clause
"""Files and folders into a guest and out of it: a tar archive through its SSH connection.

A guest needs `tar` and a shell, nothing else: a small image has no SFTP server. Links inside a
folder stay links; the source itself may be one and is followed. Nothing is compressed: what
connects us is the host's own memory.

No wait is longer than STALL_SECONDS without a byte that moves; cancelling closes the transport.
"""

import io
import posixpath
import shlex
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko

from valemgr.deadline import Deadline
from valemgr.errors import GuestError, WaitTimeoutError
from valemgr.ssh import SshSession
from valemgr.text import harmless

STALL_SECONDS = 60.0
SAY_SECONDS = 2.0
STDERR_MAX = 16384

Say = Callable[[str], None]


class CopyError(GuestError):
    """Something cannot be copied."""


@dataclass(slots=True)
class Tally:
    """What has been copied so far; says so now and then."""

    what: str
    say: Say | None = None
    files: int = 0
    size: int = 0  # of the files
    moved: int = 0  # of the archive
    left_out: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)

    def file(self, size: int) -> None:
        """Count a file."""
        self.files += 1
        self.size += size

    def move(self, size: int) -> None:
        """Count bytes of the archive."""
        self.moved += size
        now = time.monotonic()
        if self.say and now - self._said >= SAY_SECONDS:
            self._said = now
            self.say(f"{self.what}: {human(self.moved)} so far")

    def __str__(self) -> str:
        noun = "file" if self.files == 1 else "files"
        seconds = time.monotonic() - self.began
        return f"{self.what}: {self.files} {noun}, {human(self.size)} in {seconds:.1f} s"


async def copy_to(
    session: SshSession,
    source: Path,
    target: str,
    mode: str | None = None,
    *,
    parents: bool = True,
    say: Say | None = None,
) -> Tally:
    """Copy a file or folder into a guest: into `target` if that is a folder there, else as it.

    `mode` (octal) is given to files instead of their own; `parents` are made if they lack.
    """
    true_source = source.resolve()
    if not true_source.exists():
        raise CopyError(f"{source}: no such file or folder")
    folder, name = await _destination(session, true_source, source.name, target, parents)
    command = f"cd -- {shlex.quote(folder)} && tar -x -p -f -"
    if not true_source.is_dir():
        command += f" || {{ s=$?; rm -f -- {shlex.quote(name)}; exit $s; }}"
    tally = Tally(f"{source} → {session.target.guest}:{posixpath.join(folder, name)}", say)
    channel = await session.open(command)
    try:
        await session.call("room", lambda: _send(channel, true_source, name, mode, tally))
        status, said = await session.call("exit status", lambda: _end_of(channel))
    finally:
        channel.close()
    if status != 0:
        raise CopyError(f"guest {session.target.guest}: {target}: {said or f'status {status}'}")
    return tally


async def _destination(
    session: SshSession, source: Path, typed: str, target: str, parents: bool
) -> tuple[str, str]:
    """The guest's folder that takes the copy, and the copy's name in it."""
    quoted = shlex.quote(target)
    parent = f'"$(dirname -- {quoted})"'
    make = f"mkdir -p -- {parent} || exit 1; " if parents else ""
    result = await session.run(
        f"{make}if [ -d {quoted} ]; then echo folder; elif [ -e {quoted} ]; then echo file; "
        f"elif [ -d {parent} ]; then echo nothing; fi",
        Deadline(STALL_SECONDS),
    )
    found = result.stdout.strip()
    where = f"guest {session.target.guest}: {target}"
    if found == "folder":
        return target, typed if typed not in ("", "..") else source.name
    if found == "file" and source.is_dir():
        raise CopyError(f"{where} is a file: a folder cannot be copied onto it")
    if not found or (target.endswith("/") and not source.is_dir()):
        raise CopyError(f"{where}: {last_line(result.stderr) or 'no such folder'}")
    return posixpath.dirname(target.rstrip("/")) or ".", posixpath.basename(target.rstrip("/"))


def _send(
    channel: paramiko.Channel, source: Path, name: str, mode: str | None, tally: Tally
) -> None:
    """Write the archive. A guest that hangs up early says why by its exit status."""

    def prepared(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            tally.left_out.append(member.name)
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        if member.isreg():
            tally.file(member.size)
            member.mode = int(mode, 8) if mode else member.mode
        return member

    channel.settimeout(STALL_SECONDS)
    try:
        # GNU's format: busybox passes over the long names of the newer one.
        with tarfile.open(
            fileobj=_Writer(channel, tally), mode="w|", format=tarfile.GNU_FORMAT
        ) as archive:
            archive.add(source, name, filter=prepared)
        channel.shutdown_write()
    except _HungUpError:
        return
    except tarfile.TarError as exc:
        raise CopyError(f"{source}: {exc}") from exc
    except OSError as exc:
        raise CopyError(f"{exc.filename or source}: {exc.strerror or exc}") from exc


class _HungUpError(Exception):
    """The guest's side takes no more."""


class _Writer(io.BufferedIOBase):
    """The file that tarfile writes to."""

    def __init__(self, channel: paramiko.Channel, tally: Tally) -> None:
        super().__init__()
        self._channel = channel
        self._tally = tally

    def write(self, data: Any) -> int:
        try:
            self._channel.sendall(data)
        except TimeoutError as exc:
            raise WaitTimeoutError(
                f"{self._tally.what}: the guest took nothing for {STALL_SECONDS:g} s"
            ) from exc
        except OSError as exc:
            raise _HungUpError from exc
        self._tally.move(len(data))
        return len(data)


def _end_of(channel: paramiko.Channel) -> tuple[int, str]:
    """Wait for the other side's end: its exit status and the last line of its complaints."""
    channel.settimeout(STALL_SECONDS)
    said = b""
    while data := channel.recv_stderr(STDERR_MAX):
        said = (said + data)[-STDERR_MAX:]
    if not channel.status_event.wait(STALL_SECONDS):
        raise TimeoutError
    status = channel.recv_exit_status()
    if status < 0:
        raise OSError("connection lost")
    return status, last_line(said.decode(errors="replace"))


def last_line(text: str) -> str:
    """What a program in a guest said last, harmless, without the name of tar or the shell."""
    lines = [line for line in harmless(text).splitlines() if "exit delayed" not in line]
    said = lines[-1].strip()[:200] if lines else ""
    return said.removeprefix("tar: ")


def human(size: int) -> str:
    """A size as a person reads it, SI."""
    number, units = float(size), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while number >= 1000 and unit != "TB":
        number, unit = number / 1000, next(units)
    return f"{number:.1f} {unit}" if unit != "B" else f"{size} B"
