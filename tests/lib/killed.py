# SPDX-License-Identifier: BSD-2-Clause
"""valemgr that is killed at every step: `killed.py STEPS COMMAND…`.

STEPS is a file of steps at which it has been killed before, a line each. Each effect on the world
(a file is written, a process started or stopped, valed, QEMU or a guest told) is a step. Behind
the first one that is not in the file, the process writes it there and sends itself SIGKILL. So a
command that is repeated is broken off somewhere else every time, until there is no new step.

VALE_STEPS_SKIPPED=1 lets it live behind every second one, which is written all the same.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from valemgr import cli, proc
from valemgr.qmpclient import Qmp
from valemgr.ssh import SshSession
from valemgr.state import LabDir

STEPS = Path(sys.argv.pop(1))
SKIPPED = int(os.environ.get("VALE_STEPS_SKIPPED", "0"))
CHANGES = re.compile(r"(port|switch|fdb|chardev|netdev|device)[-_](add|del|set|remove)")


def step(what: str) -> None:
    """It has happened; the end, if it is new."""
    before = STEPS.read_text().splitlines() if STEPS.exists() else []
    if what not in before:
        with STEPS.open("a") as stream:
            stream.write(what + "\n")
        if len(before) % (SKIPPED + 1):
            return
        sys.stderr.write(f"killed behind: {what}\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def behind(kind: type, name: str, label: Callable[..., str]) -> None:
    """Make a method a step; no label: it changes nothing."""
    method = getattr(kind, name)

    def plain(self: Any, *words: Any, **more: Any) -> Any:
        result = method(self, *words, **more)
        reach(self, *words, **more)
        return result

    async def waiting(self: Any, *words: Any, **more: Any) -> Any:
        what = label(self, *words, **more)  # of a process: while it has a name
        result = await method(self, *words, **more)
        if what:
            step(what)
        return result

    def reach(self: Any, *words: Any, **more: Any) -> None:
        if what := label(self, *words, **more):
            step(what)

    setattr(kind, name, waiting if method.__code__.co_flags & 0x80 else plain)  # CO_COROUTINE


def written(_: LabDir, path: Path, text: str) -> str:
    if path.name != "state.json":
        return f"write {path.name}"
    state = json.loads(text)
    guests = [
        f"{name} {guest['stage']} with {','.join(nic['name'] for nic in guest['nics'])}"
        for name, guest in sorted(state["guests"].items())
    ]
    return f"state: {len(state['switches'])} switches; {'; '.join(guests) or 'no guests'}"


def called(self: Qmp, command: str, **arguments: Any) -> str:
    what = arguments.get("name") or arguments.get("id")
    return f"{self._name}: {command} {what}" if CHANGES.match(command) else ""


def name_of(argv: list[str]) -> str:
    return argv[argv.index("-name") + 1] if "-name" in argv else Path(argv[0]).name


def stopped(self: proc.Process, *_: Any, **__: Any) -> str:
    argv = Path(f"/proc/{self.pid}/cmdline").read_text().split("\0")
    return f"stop {name_of(argv)}"


start = proc.start


def starting(argv: list[str], *words: Any, **more: Any) -> proc.Process:
    process = start(argv, *words, **more)
    if "-name" in argv or Path(argv[0]).name == "valed":
        step(f"start {name_of(argv)}")
    return process


behind(LabDir, "write_file", written)
behind(LabDir, "delete", lambda self: f"delete {self.lab}")
behind(Qmp, "call", called)
behind(SshSession, "open", lambda self, command: f"ssh {self.target.guest}: {command[:8]}")
behind(proc.Process, "stop", stopped)
proc.start = starting  # type: ignore[assignment]
cli.main()
