# SPDX-License-Identifier: BSD-2-Clause
"""What is wrong in a file, where, and what to do about it."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One mistake. Lines and columns count from 1; 0: the file as a whole."""

    file: str
    line: int
    column: int
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        advice = f": {self.suggestion}" if self.suggestion else ""
        return f"{place}: {self.message}{advice}"


def closest(word: str, known: Iterable[str]) -> str:
    """The word that was probably meant, or nothing."""
    names = {name.lower(): name for name in known}
    begun = [name for name in names if len(word) > 2 and name.startswith(word.lower())]
    found = begun or difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.65)
    return names[found[0]] if found else ""


def suggest(word: str, known: Iterable[str], limit: int = 12) -> str:
    """`did you mean 'memory'?`, else what there is to choose from."""
    names = list(known)
    if meant := closest(word, names):
        return f"did you mean '{meant}'?"
    if not limit:
        return ""
    listed = ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
    return f"there is {listed}" if listed else ""


def explain(error: "ErrorDetails") -> tuple[str, str]:
    """What pydantic found, and what to do, in words for who wrote the file."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    shown = f"'{_shown(value)}'" if isinstance(value, (str, int, float)) else _kind(value)
    match kind:
        case "value_error":
            message, _, suggestion = str(context["error"]).partition(": ")
            return message, suggestion
        case "missing":
            return f"'{error['loc'][-1]}' is missing", "add it"
        case "enum" | "literal_error":
            expected = context["expected"].replace(" or ", ", ")
            known = [word.strip("'") for word in expected.split(", ")]
            return f"{shown} is not one of {', '.join(known)}", suggest(str(value), known, 0)
        case "greater_than_equal" | "greater_than":
            least = f"at least {context['ge']}" if "ge" in context else f"more than {context['gt']}"
            return f"{shown} is too small", least
        case "less_than_equal" | "less_than":
            return f"{shown} is too large", f"at most {context.get('le', context.get('lt'))}"
        case "too_short" | "too_long":
            length = context.get("min_length", context.get("max_length"))
            return f"{context['actual_length']} given", f"exactly {length} are meant"
        case "string_too_short":
            return "an empty text", "say something, or leave it out"
        case "string_pattern_mismatch":
            return _mismatch(str(error["loc"][-1]), shown)
    if meant := _MEANT.get(kind.partition("_")[0]):
        return f"{shown} stands here", f"{meant} is meant"
    return error["msg"], ""


_MEANT = {
    "string": "a text",
    "tuple": "a list",
    "float": "a number",
    "dict": "a mapping",
    "model": "a mapping",
}
_PATTERNS = {
    "to": ("is not a file's absolute path", "begin it with /, and end it with a name"),
    "mode": ("is not a file's permissions", "octal, as 0644"),
    "name": ("is not an interface's name", "a letter, then letters, digits, - or _: at most 15"),
}


def _mismatch(key: str, shown: str) -> tuple[str, str]:
    message, suggestion = _PATTERNS.get("name" if key == "nic" else key, ("does not fit", ""))
    return f"{shown} {message}", suggestion


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else getattr(value, "text", str(value))
    return text if len(text) <= 40 else text[:39] + "…"


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    return "a mapping" if isinstance(value, dict) else "a list"
