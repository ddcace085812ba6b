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
from pathlib import Path
from typing import Any

import paramiko

from valemgr.deadline import Deadline
from valemgr.errors import WaitTimeoutError
from valemgr.ssh import SshSession
from valemgr.tally import Say, Tally
from valemgr.text import LINE_MAX, harmless, last_line
from valemgr.unpack import ArchiveError, CopyError, unpack

STALL_SECONDS = 60.0
STDERR_MAX = 16384
LIMIT = 4 << 30  # of what a guest may send, unless more is allowed


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
    target = target or "."
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


async def copy_from(
    session: SshSession, source: str, target: Path, limit: int = LIMIT, say: Say | None = None
) -> Tally:
    """Copy a file or folder out of a guest: into `target` if that is a folder, else as it."""
    guest = session.target.guest
    source = source or "."
    place = _local_target(source, target, guest)
    tally = Tally(f"{guest}:{source} → {place}", say)
    channel = await session.open(_PACK.format(source=shlex.quote(source)))
    try:
        broken = await session.call("data", lambda: _receive(channel, place, limit, tally))
        status, said = 0, ""
        if not broken or channel.eof_received:  # else it sends on
            status, said = await session.call("exit status", lambda: _end_of(channel))
    finally:
        channel.close()
    if status != 0:
        raise CopyError(f"guest {guest}: {source}: {said or f'status {status}'}")
    if broken:
        raise CopyError(f"guest {guest}: {source}: {broken}") from broken
    return tally


# The source may be a link; what is packed is what it leads to.
_PACK = (
    '[ -e {source} ] || {{ echo "no such file or folder" >&2; exit 1; }}; '
    'p=$(readlink -f -- {source}) && n=$(basename -- "$p") && cd -- "$(dirname -- "$p")" || exit; '
    '[ "$n" != / ] || n=.; exec tar -c -f - -- "$n"'
)


def _local_target(source: str, target: Path, guest: str) -> Path:
    """The copy's path. Its name is never the guest's choice: it could be `.profile`."""
    name = posixpath.basename(source.rstrip("/"))
    try:
        if target.is_dir():
            target = target / (guest if name in ("", ".", "..") else name)
        place = target.resolve()
    except (OSError, RuntimeError) as exc:
        raise CopyError(f"{target}: {exc}") from exc
    if not place.parent.is_dir():
        raise CopyError(f"{place.parent}: no such folder")
    return place


def _receive(
    channel: paramiko.Channel, place: Path, limit: int, tally: Tally
) -> ArchiveError | None:
    """Unpack what comes; what is wrong with it is returned, since the guest may say why."""
    channel.settimeout(STALL_SECONDS)
    try:
        unpack(_Reader(channel), place, limit, tally)
    except ArchiveError as exc:
        return exc
    return None


class _Reader:
    """The file that tarfile reads from."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def read(self, size: int, /) -> bytes:
        return self._channel.recv(size)


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
        raise CopyError(f"{where}: {complaint(result.stderr) or 'no such folder'}")
    return posixpath.dirname(target.rstrip("/")) or ".", posixpath.basename(target.rstrip("/"))


def _send(
    channel: paramiko.Channel, source: Path, name: str, mode: str | None, tally: Tally
) -> None:
    """Write the archive. A guest that hangs up early says why by its exit status."""

    def prepared(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            tally.omit(member.name, "neither file, folder nor link")
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
    return status, complaint(said.decode(errors="replace"))


def complaint(text: str) -> str:
    """The last line of what tar or the shell said, without the name of tar, and capped."""
    lines = [line for line in harmless(text).splitlines() if "exit delayed" not in line]
    return last_line("\n".join(lines))[:LINE_MAX].removeprefix("tar: ")
