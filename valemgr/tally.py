# SPDX-License-Identifier: BSD-2-Clause
"""What a copy has moved so far, and how that is told."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from valemgr.text import LINE_MAX, harmless

SAY_SECONDS = 2.0
NAMED_MAX = 5

Say = Callable[[str], None]


@dataclass(slots=True)
class Tally:
    """Counts files and bytes; says so now and then while it takes long."""

    what: str
    say: Say | None = None
    files: int = 0
    size: int = 0  # of the files
    moved: int = 0  # of the archive
    omitted: int = 0
    _examples: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)

    def file(self, size: int) -> None:
        """Count a file."""
        self.files += 1
        self.size += size

    def omit(self, name: str, why: str) -> None:
        """Count something that is not copied."""
        self.omitted += 1
        if len(self._examples) < NAMED_MAX:
            self._examples.append(f"{harmless(name)[:LINE_MAX]}: {why}")

    def move(self, size: int) -> None:
        """Count bytes of the archive."""
        self.moved += size
        now = time.monotonic()
        if self.say and now - self._said >= SAY_SECONDS:
            self._said = now
            self.say(f"{self.what}: {human(self.moved)} so far")

    @property
    def omissions(self) -> list[str]:
        """What was not copied, and why; the first few."""
        more = self.omitted - len(self._examples)
        return [*self._examples, *([f"and {more} more"] if more else [])]

    def __str__(self) -> str:
        noun = "file" if self.files == 1 else "files"
        seconds = time.monotonic() - self._began
        return f"{self.what}: {self.files} {noun}, {human(self.size)} in {seconds:.1f} s"


def human(size: int) -> str:
    """A size as a person reads it; as in topologies, K is 1024."""
    if size < 1024:
        return f"{size} B"
    number, units = size / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while number >= 1023.95 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return f"{number:.1f} {units[0]}"
