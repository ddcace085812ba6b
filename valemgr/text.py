# SPDX-License-Identifier: BSD-2-Clause
"""Text that comes from a guest is hostile: made harmless before it reaches a terminal or a page."""

import re
from pathlib import Path

_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC: window titles, hyperlinks
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[@-Z\\-_]?"  # the rest of the two-byte sequences
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

LINE_MAX = 200


def harmless(text: str) -> str:
    """Without control characters except newline and tab."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def last_line(text: str, silent: str = "") -> str:
    """What a program in a guest said last, harmless; `silent` if it said nothing."""
    lines = harmless(text).strip().splitlines()
    return lines[-1] if lines else silent


def tail(path: Path, lines: int = 12) -> list[str]:
    """The last non-empty lines of a file, harmless and capped; empty if there is no such file."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 16384))
            raw = stream.read()
    except OSError:
        return []
    kept = [line.strip() for line in harmless(raw.decode(errors="replace")).splitlines()]
    return [line[:LINE_MAX] for line in kept if line][-lines:]
