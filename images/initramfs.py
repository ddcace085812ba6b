# SPDX-License-Identifier: BSD-2-Clause
# ruff: noqa: T201 (a program: it prints)
"""Write Linux initramfs archives (cpio "newc") without root and without a staging directory.

A Tree maps guest paths to files, directories, symbolic links and device nodes. Everything in it
belongs to root and carries no time, and entries are written in sorted order, so the same input
gives the same bytes. Guests have a merged /usr: /bin, /sbin, /lib and /lib64 are links, and every
path is normalised accordingly, because the kernel would replace such a link by a directory when
a second archive, laid over the first, said so.

Used as a program it writes such a second archive:

    python3 initramfs.py OUT.img FILE=PATH_IN_GUEST...
"""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

MERGED_USR = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}


class ImageError(Exception):
    """An image cannot be built; the message is the one line that a person gets to see."""


@dataclass(frozen=True)
class Entry:
    """One member of an archive: its mode with the file type, its content, its device number."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def guest_path(path: str) -> str:
    """Give the archive name of an absolute or relative guest path, with /usr merged."""
    parts = PurePosixPath("/", path).parts[1:]
    if not parts or ".." in parts:
        raise ImageError(f"{path!r} is not a path in the guest: give one like /usr/bin/program")
    head = MERGED_USR.get(parts[0])
    return "/".join((head, *parts[1:]) if head and len(parts) > 1 else parts)


@dataclass
class Tree:
    """The content of one archive."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def _add(self, path: str, entry: Entry) -> None:
        name = guest_path(path)
        for parent in PurePosixPath(name).parents:
            if str(parent) != ".":
                self.entries.setdefault(str(parent), Entry(stat.S_IFDIR | 0o755))
        self.entries[name] = entry

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add an empty directory."""
        self._add(path, Entry(stat.S_IFDIR | mode))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._add(path, Entry(stat.S_IFREG | mode, data))

    def copy(self, source: Path, path: str) -> None:
        """Add a regular file with the content and the execute permission of `source`."""
        mode = 0o755 if source.stat().st_mode & stat.S_IXUSR else 0o644
        self.file(path, source.read_bytes(), mode)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link, unless something is there already."""
        if guest_path(path) not in self.entries:
            self._add(path, Entry(stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device node."""
        self._add(path, Entry(stat.S_IFCHR | 0o600, device=(major, minor)))

    def cpio(self) -> bytes:
        """Give the archive, padded to whole 512-byte blocks so that archives concatenate."""
        members = [_member(number, name, self.entries[name])
                   for number, name in enumerate(sorted(self.entries), start=1)]
        archive = b"".join([*members, _member(0, "TRAILER!!!", Entry(0))])
        return archive + b"\0" * (-len(archive) % 512)


def _member(number: int, name: str, entry: Entry) -> bytes:
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    words = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device,
             len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % word for word in words) + name.encode() + b"\0"
    return _pad4(head) + _pad4(entry.data)


def _pad4(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _readelf(program: Path) -> str:
    """Tell about the segments and the dynamic section of a file, nothing if it is not ELF."""
    if program.read_bytes()[:4] != b"\x7fELF":
        return ""
    return subprocess.run(["readelf", "-ldW", program], capture_output=True, text=True,
                          check=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}).stdout


def elf_needs(program: Path) -> list[str]:
    """Name what the dynamic loader needs for an ELF file: its interpreter and its libraries."""
    needs = re.findall(r"(?:Requesting program interpreter|Shared library): \[?([^\]\s]+)\]",
                       _readelf(program))
    return [need for need in needs if not need.startswith("ld-linux")]


def elf_runpath(program: Path) -> list[str]:
    """Name the folders where an ELF file says that its libraries are."""
    found = re.findall(r"Library (?:runpath|rpath): \[([^\]]+)\]", _readelf(program))
    return [folder for folders in found for folder in folders.split(":")]


def host_libraries(program: Path) -> Iterator[Path]:
    """Yield the shared libraries with which a program of this host runs, and its loader."""
    if not elf_needs(program):
        return
    text = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    if missing := re.findall(r"(\S+) => not found", text):
        raise ImageError(f"{program}: library {missing[0]} is not on this host: install it")
    yield from (Path(path) for path in re.findall(r"(/\S+) \(0x", text))


def overlay(pairs: Iterable[str]) -> Tree:
    """Collect FILE=PATH_IN_GUEST pairs and the libraries that those files need."""
    tree = Tree()
    for pair in pairs:
        source, _, target = pair.partition("=")
        if not source or not target:
            raise ImageError(f"{pair!r} is not FILE=PATH_IN_GUEST")
        if not Path(source).is_file():
            raise ImageError(f"{source}: no such file")
        tree.copy(Path(source), target)
        for library in host_libraries(Path(source)):
            tree.copy(library, str(library))
    return tree


def main(arguments: list[str]) -> int:
    """Write an overlay archive."""
    if len(arguments) < 2:
        print("usage: overlay.sh OUT.img FILE=PATH_IN_GUEST...", file=sys.stderr)
        return 2
    try:
        Path(arguments[0]).write_bytes(overlay(arguments[1:]).cpio())
    except (ImageError, OSError) as error:
        print(f"overlay: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
