# SPDX-License-Identifier: BSD-2-Clause
"""An archive that a guest sends, unpacked. A guest is hostile: nothing is made outside the target.

    one top    every name begins as the first one does; that beginning is replaced by the target,
               whose name the user chose
    names      no '..', not absolute
    folders    opened one below the other from the target, never through a link
    links      symbolic ones point to something in the target: relative, '..' only at their
               beginning and never above the target. Folders on their way are true ones, and what
               follows can only meet links of the same kind: they stay inside, whatever comes later
    others     devices, FIFOs and files with holes are left out, and counted
    modes      those of the archive as far as the umask allows; no setuid, setgid or sticky bits
    limits     bytes of files, members, bytes of headers

Python's own filter for this came with 3.12 and judges paths, not what is opened.
"""

import io
import os
import secrets
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from valemgr.errors import GuestError
from valemgr.tally import Tally, human

HEADERS_MAX = 1 << 18  # of one member, its long names included
MEMBERS_MAX = 1_000_000
DEPTH_MAX = 100
CHUNK = 1 << 16

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class CopyError(GuestError):
    """Something cannot be copied."""


class ArchiveError(CopyError):
    """An archive is broken, or not what was asked for."""


class Source(Protocol):
    """Where the archive comes from."""

    def read(self, size: int, /) -> bytes: ...


class _Metered(io.BufferedIOBase):
    """Lets through what the last member announced, and the next one's headers, not more."""

    def __init__(self, source: Source, tally: Tally) -> None:
        super().__init__()
        self._source = source
        self._tally = tally
        self._left = 0

    def expect(self, size: int) -> None:
        self._left = size + HEADERS_MAX

    def read(self, size: int | None = CHUNK, /) -> bytes:
        data = self._source.read(size or CHUNK)
        self._left -= len(data)
        if self._left < 0:
            raise ArchiveError("a header of its archive is too long")
        self._tally.move(len(data))
        return data


def unpack(source: Source, target: Path, limit: int, tally: Tally) -> None:
    """Unpack one file or one folder as `target`, whose parent exists."""
    stream = _Metered(source, tally)
    stream.expect(0)
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK) as archive:
            first = archive.next()
            if first is None:
                raise ArchiveError("its archive is empty")
            top = _parts(first)
            if first.isdir():
                stream.expect(0)
                with _Tree(target, first.mode) as tree:
                    _unpack_below(tree, top, archive, stream, limit, tally)
            else:
                stream.expect(_admit(first, limit, tally))
                _unpack_file(first, archive, target, tally)
                if archive.next() is not None:
                    raise ArchiveError("it sends more than the file that was asked for")
        stream.expect(0)
        while stream.read(CHUNK):
            pass
    # What tarfile trips over in an archive that was made to break it has many names.
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as exc:
        raise ArchiveError(f"its archive is broken: {exc}") from exc


def _unpack_below(
    tree: "_Tree",
    top: list[str],
    archive: tarfile.TarFile,
    stream: _Metered,
    limit: int,
    tally: Tally,
) -> None:
    count = 0
    while member := archive.next():
        archive.members.clear()  # type: ignore[attr-defined]  # it would remember every one
        count += 1
        if count > MEMBERS_MAX or archive.pax_headers:
            raise ArchiveError("its archive has too many members or headers for all of them")
        stream.expect(_admit(member, limit, tally))
        parts = _parts(member)
        if parts[: len(top)] != top:
            raise ArchiveError(f"it sends '{member.name}', which is not what was asked for")
        if len(parts) > len(top):
            _place(tree, parts[len(top) :], top, member, archive, tally)


def _admit(member: tarfile.TarInfo, limit: int, tally: Tally) -> int:
    """How many bytes of data follow a member's header, if there may be so many."""
    if not member.isreg():
        return 0
    if member.size < 0 or tally.size + member.size > limit:
        raise ArchiveError(f"it sends more than {human(limit)}: --limit allows more")
    return member.size


def _parts(member: tarfile.TarInfo) -> list[str]:
    """A member's path, name by name; one that leads elsewhere is an error."""
    return _split(member.name)


def _split(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name or len(parts) > DEPTH_MAX:
        raise ArchiveError(f"it sends a forbidden name: '{name[:200]}'")
    return parts


def _place(
    tree: "_Tree",
    parts: list[str],
    top: list[str],
    member: tarfile.TarInfo,
    archive: tarfile.TarFile,
    tally: Tally,
) -> None:
    """Make one member of a folder."""
    try:
        if member.isdir():
            tree.folder(parts, member.mode)
        elif member.issym():
            if leads_outside(member.linkname, len(parts) - 1):
                tally.omit("/".join(parts), "a link that leads out of the folder")
            else:
                tree.link(parts, member.linkname)
        elif member.islnk():
            tree.hard_link(parts, _split(member.linkname)[len(top) :])
        elif member.isreg() and not member.issparse():
            with tree.file(parts, member.mode) as out:
                _write(member, archive, out)
            tally.file(member.size)
        else:
            tally.omit("/".join(parts), "neither file, folder nor link")
    except OSError as exc:
        raise CopyError(f"{tree.top / '/'.join(parts)}: {exc.strerror}") from exc


def leads_outside(link: str, depth: int) -> bool:
    """Whether a symbolic link, made in a folder so deep below the target, could leave it."""
    names = [name for name in link.split("/") if name not in ("", ".")]
    up = 0
    while up < len(names) and names[up] == "..":
        up += 1
    return not link or link.startswith("/") or up > depth or ".." in names[up:]


def _unpack_file(
    member: tarfile.TarInfo, archive: tarfile.TarFile, target: Path, tally: Tally
) -> None:
    """Make a single file: under a passing name, so that the target is the old or the new one."""
    if not member.isreg() or member.issparse():
        raise ArchiveError("it is neither a file nor a folder")
    new = target.with_name(f".valemgr-{secrets.token_hex(4)}")
    try:
        if target.exists() and not target.is_file():
            raise CopyError(f"{target} is there and no file: a file cannot be copied onto it")
        try:
            with os.fdopen(os.open(new, _NEW, _mode(member.mode)), "wb") as out:
                _write(member, archive, out)
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
    except OSError as exc:
        raise CopyError(f"{target}: {exc.strerror}") from exc
    tally.file(member.size)


def _write(member: tarfile.TarInfo, archive: tarfile.TarFile, out: IO[bytes]) -> None:
    data = archive.extractfile(member)
    while data and (chunk := data.read(CHUNK)):
        out.write(chunk)


def _mode(mode: int) -> int:
    return stat.S_IMODE(mode) & 0o777


class _Tree:
    """The target folder; every path below it is walked without following links."""

    def __init__(self, top: Path, mode: int) -> None:
        self.top = top
        try:
            with suppress(FileExistsError):
                top.mkdir(_mode(mode) | stat.S_IRWXU)
            self._fd = os.open(top, _FOLDER)
        except OSError as exc:
            raise CopyError(f"{top}: {exc.strerror}") from exc

    def __enter__(self) -> "_Tree":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def folder(self, parts: list[str], mode: int) -> None:
        with self._parent(parts) as parent, suppress(FileExistsError):
            os.mkdir(parts[-1], _mode(mode) | stat.S_IRWXU, dir_fd=parent)

    def link(self, parts: list[str], target: str) -> None:
        with self._vacant(parts) as parent:
            os.symlink(target, parts[-1], dir_fd=parent)

    def hard_link(self, parts: list[str], to: list[str]) -> None:
        """Another name for a file that came before; not for a link, which leads elsewhere here."""
        if not to or to == parts:
            raise ArchiveError("it sends a hard link to nothing")
        with self._vacant(parts) as parent, self._parent(to) as other:
            if not stat.S_ISREG(os.stat(to[-1], dir_fd=other, follow_symlinks=False).st_mode):
                raise ArchiveError("it sends a hard link to what is no file")
            os.link(to[-1], parts[-1], src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)

    @contextmanager
    def file(self, parts: list[str], mode: int) -> Iterator[IO[bytes]]:
        with self._vacant(parts) as parent:
            fd = os.open(parts[-1], _NEW, _mode(mode), dir_fd=parent)
            with os.fdopen(fd, "wb") as out:
                yield out

    @contextmanager
    def _vacant(self, parts: list[str]) -> Iterator[int]:
        """The folder that something goes into; what had the name (no folder) is gone."""
        with self._parent(parts) as parent:
            with suppress(FileNotFoundError):
                os.unlink(parts[-1], dir_fd=parent)
            yield parent

    @contextmanager
    def _parent(self, parts: list[str]) -> Iterator[int]:
        fd = os.dup(self._fd)
        try:
            for part in parts[:-1]:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=fd)
                below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)
