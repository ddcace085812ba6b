# SPDX-License-Identifier: BSD-2-Clause
"""A QEMU: where it is, its version, and what kinds of network it has."""

import re
from dataclasses import dataclass
from pathlib import Path

from valemgr import locate, proc
from valemgr.deadline import Deadline
from valemgr.errors import EnvironmentUnfitError
from valemgr.tasks import together

STOCK = "qemu-system-x86_64"
STREAM_SINCE = (7, 2)  # QEMU's `stream` netdev
ANSWER_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Emulator:
    """What there is to know of a QEMU before it is started."""

    path: Path
    version: tuple[int, int]
    has_netmap: bool
    has_user: bool = True  # user networking


def find(wanted: str) -> Path:
    """The emulator that a guest asks for: a path or a name; empty: ours, else the stock one."""
    if wanted:
        return locate.require(wanted)
    return locate.find(locate.QEMU) or locate.find(STOCK) or locate.require(locate.QEMU)


async def examine(path: Path) -> Emulator:
    """Ask it; EnvironmentUnfitError if it does not answer as a QEMU does."""
    asked = (["--version"], ["-netdev", "help"])
    answers = [proc.output_of([str(path), *words], Deadline(ANSWER_SECONDS)) for words in asked]
    (_, about), (_, netdevs) = await together(answers)
    version = parse_version(about)
    if version is None:
        first = (about.splitlines() or ["no answer"])[0]
        raise EnvironmentUnfitError(f"{path} --version: '{first}': is it a QEMU?")
    kinds = netdevs.split()
    return Emulator(path, version, "netmap" in kinds, "user" in kinds)


def parse_version(text: str) -> tuple[int, int] | None:
    """(7, 2) of `QEMU emulator version 7.2.22 (…)`."""
    found = re.search(r"version (\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else None
