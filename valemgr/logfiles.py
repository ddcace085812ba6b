# SPDX-License-Identifier: BSD-2-Clause
"""Logs of a lab: where each is, its last lines, and what is appended.

console   what a guest has written to its serial console (QEMU keeps it, also unread)
qemu      what QEMU itself has said: warnings, the reason of its end
lab       every command line, QMP call and SSH command; survives `down`
switch    valed's messages, where valemgr started it
"""

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from valemgr import guests, proc, switchd, xdg
from valemgr.errors import LabError, UsageError
from valemgr.screen import Screen
from valemgr.state import LabDir, all_labs

LOOK_SECONDS = 0.2
CHUNK = 1 << 16
NAMED_MAX = 8


class Kind(StrEnum):
    """The value of --kind."""

    CONSOLE = "console"
    QEMU = "qemu"
    LAB = "lab"
    SWITCH = "switch"


@dataclass(frozen=True, slots=True)
class Log:
    """A file that somebody appends to, while that one is alive."""

    what: str
    path: Path
    alive: Callable[[], bool]


def find(kind: Kind | None, guest: str | None, lab: str | None) -> Log:
    """The log that is meant: of a guest its console, else the lab's."""
    kind = kind or (Kind.CONSOLE if guest else Kind.LAB)
    if kind in (Kind.CONSOLE, Kind.QEMU):
        if not guest:
            raise UsageError(f"--kind {kind}: of which guest?")
        return _of_guest(kind, guests.find(guest, lab))
    if guest and not lab:
        lab = guests.find(guest).lab_dir.lab
    return _of_lab(lab) if kind is Kind.LAB else _of_switch(lab)


async def show(log: Log, lines: int, screen: Screen, follow: bool) -> None:
    """Write the last lines (0: all); then, until nobody is left who appends, what comes."""
    try:
        with log.path.open("rb") as stream:
            stream.seek(start_of_last(stream, lines))
            await _copy(stream, screen, log.alive if follow else lambda: False)
    except OSError as exc:
        raise LabError(f"{log.what}: {log.path}: {exc.strerror}") from exc


async def _copy(stream: BinaryIO, screen: Screen, alive: Callable[[], bool]) -> None:
    while True:
        more = alive()  # asked first: what it writes last is read below
        while data := stream.read(CHUNK):
            screen.write(data)
        screen.pause()
        if not more:
            return
        # Linux tells of appended data only by inotify, which Python does not have: the one poll.
        await asyncio.sleep(LOOK_SECONDS)


def start_of_last(stream: BinaryIO, lines: int) -> int:
    """Where the last so many lines begin; 0 lines: the start. Keeps nothing of a huge line."""
    if not lines:
        return 0
    end = stream.seek(0, os.SEEK_END)
    limit = end - 1  # a newline at the very end begins no line
    while end > 0:
        begin = max(0, end - CHUNK)
        stream.seek(begin)
        block = stream.read(end - begin)
        at = min(len(block), limit - begin)
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            lines -= 1
            if not lines:
                return begin + at + 1
        end = begin
    return 0


def _of_guest(kind: Kind, found: guests.FoundGuest) -> Log:
    what = {Kind.CONSOLE: "console", Kind.QEMU: "QEMU"}[kind]
    return Log(f"{what} of guest {found.name}", found.file(f"{kind}.log"), lambda: found.alive)


def _of_lab(lab: str | None) -> Log:
    """A lab's own log; without a name of the only one that runs, else of the only one that ran."""
    folder = xdg.state_dir() / "logs"
    names = [one.lab for one in all_labs()] or sorted(path.stem for path in folder.glob("*.log"))
    if not lab and not names:
        raise LabError("no lab has a log yet: start one by 'valemgr up'")
    if not lab and len(names) > 1:
        raise UsageError(f"which lab's? There are {', '.join(names[:NAMED_MAX])}: add --lab")
    lab_dir = LabDir(lab or names[0])
    path = folder / f"{lab_dir.lab}.log"
    if not path.exists():
        raise LabError(f"lab {lab_dir.lab} has no log: {path} does not exist")
    return Log(f"lab {lab_dir.lab}", path, lambda: lab_dir.exists or lab_dir.locked)


def _of_switch(lab: str | None) -> Log:
    """valed's log: of the one that a lab uses, else of the one that is found."""
    state = LabDir(lab).read() if lab else None
    if lab and not (state and state.rundir):
        raise LabError(f"lab {lab} uses no valed: 'valemgr status' shows what runs")
    folders = [Path(state.rundir)] if state else switchd.search_dirs()
    path = next((d / "valed.log" for d in folders if (d / "valed.log").is_file()), None)
    if path is None:
        where = ", ".join(map(str, folders))
        raise LabError(f"no log of valed in {where}: valemgr did not start it; try journalctl")
    ident = _listener(path.with_name("qmp.sock"))
    return Log("valed", path, lambda: ident is not None and proc.is_alive(ident))


def _listener(path: Path) -> proc.ProcessId | None:
    """Who listens on a socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(path))
            return proc.ident_of(proc.peer_pid(sock))
        except OSError:
            return None
