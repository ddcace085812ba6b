# SPDX-License-Identifier: BSD-2-Clause
"""What a shell offers at the Tab key: names of labs and guests, read from state files alone.

Called at every key press: imports nothing that costs, asks no process, and never says that
something is wrong, since that would be written into the line that a person is typing.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import typer

from valemgr import xdg

PATHS_MAX = 200


def labs(incomplete: str) -> list[str]:
    """Labs that run."""
    return [name for name in _guests_by_lab() if name.startswith(incomplete)]


def labs_with_logs(incomplete: str) -> list[str]:
    """Labs that run or have run."""
    try:
        kept = {path.stem for path in (xdg.state_dir() / "logs").glob("*.log")}
    except (OSError, RuntimeError):
        kept = set()
    names = sorted(kept | set(_guests_by_lab()))
    return [name for name in names if name.startswith(incomplete)]


def guests(context: typer.Context, incomplete: str) -> list[str]:
    """Guests of the lab that --lab names, else of all; LAB/GUEST once a slash is typed."""
    lab = context.params.get("lab")
    found = {
        f"{name}/{guest}" if "/" in incomplete else guest
        for name, members in _guests_by_lab().items()
        for guest in members
        if lab in (None, name)
    }
    return sorted(name for name in found if name.startswith(incomplete))


def places(context: typer.Context, incomplete: str) -> list[str]:
    """`GUEST:` and paths of ours; what is in a guest is not asked for."""
    if ":" in incomplete:
        return []
    return [f"{guest}:" for guest in guests(context, incomplete)] + list(_paths(incomplete))


def _guests_by_lab() -> dict[str, list[str]]:
    found = {}
    try:
        for path in sorted(xdg.runtime_dir().glob("*/state.json")):
            found[path.parent.name] = _names(path)
    except (OSError, RuntimeError):
        return {}
    return found


def _names(path: Path) -> list[str]:
    try:
        return sorted(json.loads(path.read_bytes())["guests"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _paths(incomplete: str) -> Iterator[str]:
    folder, slash, begun = incomplete.rpartition("/")
    try:
        entries = sorted(Path(folder + slash or ".").iterdir())[:PATHS_MAX]
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(begun) and (begun or not entry.name.startswith(".")):
            yield f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}"
