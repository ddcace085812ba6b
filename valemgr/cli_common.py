# SPDX-License-Identifier: BSD-2-Clause
"""What all files of commands share: exit codes, options, how people are told things."""

import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from valemgr import completion
from valemgr.errors import StoreError, UsageError
from valemgr.output import Format, emit

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

EXIT_THRESHOLD = 3
EXIT_OURS = 125

FormatOption = Annotated[Format, typer.Option("--format", help="How data is printed.")]
LabOption = Annotated[
    str | None, typer.Option("--lab", "-l", help="The guest's lab.", autocompletion=completion.labs)
]
LabArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="LAB",
        help="A lab's name, or its topology file; the only one.",
        autocompletion=completion.labs,
    ),
]
GuestArgument = Annotated[
    str,
    typer.Argument(help="The guest's name.", show_default=False, autocompletion=completion.guests),
]


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; signals end it orderly."""
    from valemgr.tasks import run_interruptibly

    return run_interruptibly(main)


def progress(quiet: bool) -> Callable[[str], None]:
    """How progress is told: on stderr with the time since the start, or only to the log."""
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - began:5.1f} s] {text}\n")

    def nothing(text: str) -> None:
        logging.getLogger(__name__).info("%s", text)

    return nothing if quiet else say


def one_of(option: str, kind: type[E], text: str) -> E:
    """A word of an enumeration."""
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(kind)
        raise UsageError(f"{option} {text}: one of {known}") from None


def note(first: str, *more: str) -> None:
    """For people, on stderr: one line, and perhaps details below it."""
    sys.stderr.write(f"valemgr: {first}\n" + "".join(f"    {line}\n" for line in more))


def is_path(where: str) -> bool:
    """Whether a word names a file rather than a lab."""
    return "/" in where or where.endswith((".yml", ".yaml"))


def write_out(text: str, output: Path | None) -> None:
    """Data to a file, or to stdout."""
    if output is None:
        emit(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise StoreError(f"{output}: cannot be written: {exc.strerror}") from exc


def made_dir(folder: Path) -> Path:
    """A folder for output, made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(f"{folder}: cannot be made: {exc.strerror}") from exc
    return folder


def open_closed_streams() -> None:
    """Where stdin, stdout or stderr is closed, Python has None: have /dev/null instead."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (for good)
