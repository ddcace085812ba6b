# SPDX-License-Identifier: BSD-2-Clause
"""Data on stdout: a table for people; JSON, JSON Lines or CSV with stable keys for programs.

Machine formats carry `schema_version`, SI base units where a key does not say otherwise, and
times as RFC 3339. Everything else that is said goes to stderr.
"""

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from valemgr.text import harmless

SCHEMA_VERSION = 1
WIDTH_MAX = 1000  # nothing is cut; a terminal that is too narrow folds lines by itself


class Format(StrEnum):
    """The value of --format."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    key: str
    title: str
    right: bool = False
    digits: int | None = None  # of a fraction, so that a column of numbers lines up


Row = Mapping[str, Any]


def render(
    form: Format,
    columns: Sequence[Column],
    rows: Sequence[Row],
    document: Mapping[str, Any] | None = None,
    key: str = "rows",
) -> str:
    """The text for stdout. JSON shows `document` (by default just the rows, under `key`)."""
    if form is Format.JSON:
        body = document if document is not None else {key: [dict(row) for row in rows]}
        return json.dumps({"schema_version": SCHEMA_VERSION, **body}, indent=2) + "\n"
    if form is Format.JSONL:
        lines = (json.dumps({"schema_version": SCHEMA_VERSION, **row}) for row in rows)
        return "".join(line + "\n" for line in lines)
    if form is Format.CSV:
        return _csv(columns, rows)
    return _table(columns, rows)


def emit(text: str) -> None:
    """Write to stdout."""
    sys.stdout.write(text)
    sys.stdout.flush()


def cell(value: Any, digits: int | None = None) -> str:
    """A value as a person reads it."""
    if value is None:
        return "-"
    if digits is not None:
        return f"{value:.{digits}f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(cell, value)) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {cell(n)}" for name, n in value.items() if n) or "-"
    return harmless(str(value))


def _csv(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["schema_version", *(column.key for column in columns)])
    for row in rows:
        values = (row.get(column.key) for column in columns)
        writer.writerow([SCHEMA_VERSION, *(_csv_cell(value) for value in values)])
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, (list, tuple, Mapping)) else value


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    to_terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(column.title, justify=justify, vertical="bottom", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell(row.get(column.key), column.digits)) for column in columns))
    text = io.StringIO()
    console = Console(file=text, force_terminal=to_terminal, width=WIDTH_MAX, highlight=False)
    console.print(table)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())
