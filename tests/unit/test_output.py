# SPDX-License-Identifier: BSD-2-Clause
"""Every format, as golden files; and text from guests is harmless."""

import json
from pathlib import Path

import pytest

from valemgr.output import Column, Format, render
from valemgr.text import harmless, tail

pytestmark = pytest.mark.unit

COLUMNS = (
    Column("name", "port"),
    Column("kpps", "kpps", right=True, digits=1),
    Column("conserved", "conserved"),
    Column("dropped", "dropped"),
    Column("ratio", "ratio", digits=2),
)
ROWS = [
    {"name": "vale1:a", "kpps": 8.0, "conserved": True, "dropped": {"ring_full": 3}, "ratio": 1.5},
    {"name": "\x1b[31mred,\x07", "kpps": 72.66, "conserved": False, "dropped": {}, "ratio": None},
]


@pytest.mark.parametrize("form", list(Format))
def test_golden(golden, form: Format) -> None:
    golden(f"output.{form}", render(form, COLUMNS, ROWS, key="ports"))


def test_json_has_a_schema_version_and_the_document() -> None:
    text = render(Format.JSON, COLUMNS, ROWS, {"result": 7})
    assert json.loads(text) == {"schema_version": 1, "result": 7}


def test_a_long_row_is_not_folded_or_cut() -> None:
    text = render(Format.TABLE, (Column("name", "n"),), [{"name": "x" * 200}])
    assert "x" * 200 in text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;http://e\x1b\\link", "link"),
        ("a\r\nb\rc", "a\nbc"),
        ("tab\tnew\nnull\0", "tab\tnew\nnull"),
        ("\x9b31mC1 \u202eRTL", "31mC1 RTL"),
        ("\x1b", ""),
        ("grün ✓", "grün ✓"),
    ],
)
def test_control_characters_do_not_reach_a_terminal(raw: str, clean: str) -> None:
    assert harmless(raw) == clean


def test_tail_is_short_and_harmless(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_bytes(b"first\n" * 10_000 + b"\x1b[1mlast\xff\x1b[0m\r\n\r\n" + b"y" * 5000)
    lines = tail(path, 3)
    assert lines[:2] == ["first", "last\ufffd"]
    assert len(lines[2]) == 200
    assert tail(tmp_path / "absent") == []
