# SPDX-License-Identifier: BSD-2-Clause
"""A command on a terminal, as a person has it: keys, what the screen shows, the modes it leaves.

    with Terminal([VALEMGR, "ssh", "a"], env) as term:
        term.until("# ")            all that was shown until this came
        term.type("exit\\r")
        code, rest = term.end()
"""

import os
import re
import select
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

SECONDS = 60.0


class Terminal:
    """A pseudo terminal, the controlling one of one command."""

    def __init__(self, argv: Sequence[str | Path], env: Mapping[str, str]) -> None:
        print("+", *argv, "(on a terminal)", flush=True)
        self.master, slave = os.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.seen = b""
        # setsid gives the new session this terminal: keys that interrupt become signals.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv], env={**env, "TERM": "xterm"},
            stdin=slave, stdout=slave, stderr=slave,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.slave)
        os.close(self.master)
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def until(self, pattern: str) -> str:
        """Read until a regular expression matches what came; the rest is for the next call."""
        end = time.monotonic() + SECONDS
        while not (match := re.search(pattern.encode(), self.seen)):
            left = end - time.monotonic()
            assert left > 0, f"'{pattern}' was not shown: {self.seen!r}"
            assert self._read(left) or self.process.poll() is None, f"no '{pattern}': {self.seen!r}"
        shown, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return shown.decode(errors="replace")

    def end(self) -> tuple[int, str]:
        """Wait for the command's end: its exit code, and what was shown until then."""
        code = self.process.wait(SECONDS)
        while self._read(0):
            pass
        return code, self.seen.decode(errors="replace")

    @property
    def modes_are_back(self) -> bool:
        return bool(termios.tcgetattr(self.slave) == self.before)

    @property
    def raw(self) -> bool:
        modes: list[Any] = termios.tcgetattr(self.slave)
        return not modes[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def _read(self, seconds: float) -> bytes:
        ready, _, _ = select.select([self.master], [], [], min(seconds, 1.0))
        data = os.read(self.master, 65536) if ready else b""
        print(data.decode(errors="replace"), end="", flush=True)
        self.seen += data
        return data
