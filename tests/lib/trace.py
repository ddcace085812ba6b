# SPDX-License-Identifier: BSD-2-Clause
"""What a process has, as /proc tells it: equal before and after what must leave no trace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trace:
    """Numbers of open descriptors, mappings of memfds (port memory), threads."""

    fds: int
    maps: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Trace:
        proc = Path(f"/proc/{pid}")
        maps = (proc / "maps").read_text().count("memfd:")
        fds, threads = (len(list((proc / name).iterdir())) for name in ("fd", "task"))
        return cls(fds, maps, threads)
