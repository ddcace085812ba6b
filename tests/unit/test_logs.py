# SPDX-License-Identifier: BSD-2-Clause
"""Logs, what of them reaches a terminal, and the names that the Tab key offers."""

import asyncio
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from valemgr import completion, logfiles
from valemgr.errors import LabError, UsageError
from valemgr.logfiles import Kind, Log, start_of_last
from valemgr.screen import COLUMNS_MAX, Screen

pytestmark = pytest.mark.unit

COMMAND = [sys.executable, "-c", "from valemgr.cli import main; main()"]


class Output(io.TextIOWrapper):
    """A stdout that remembers, a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        self.raw_bytes = io.BytesIO()
        super().__init__(self.raw_bytes, encoding="utf-8", newline="")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def text(self) -> str:
        self.flush()
        return self.raw_bytes.getvalue().decode()


def shown(*pieces: bytes, terminal: bool = True, strip: bool = True) -> str:
    out = Output(terminal)
    screen = Screen(out, strip)
    for piece in pieces:
        screen.write(piece)
    screen.pause()
    return out.text()


def test_a_terminal_gets_no_control_characters_however_they_are_cut() -> None:
    raw = "a\x1b[31mb\x1b]0;title\x07c\r\né\x07 d".encode()
    assert shown(raw) == "abc\né d"
    assert shown(*(bytes([byte]) for byte in raw)) == "abc\né d"


def test_files_and_those_who_want_it_get_it_as_it_is() -> None:
    raw = "\x1b[31m\r\xff".encode("latin-1")
    for terminal, strip in ((False, True), (True, False)):
        out = Output(terminal)
        screen = Screen(out, strip)
        screen.write(raw)
        screen.pause()
        assert out.raw_bytes.getvalue() == raw


def test_a_prompt_is_shown_and_continued_and_long_lines_are_capped() -> None:
    out = Output(terminal=True)
    screen = Screen(out)
    screen.write(b"login: ")
    assert out.text() == ""
    screen.pause()
    assert out.text() == "login: "
    screen.write(b"x" * 10 * COLUMNS_MAX)
    screen.write(b"y" * 10 * COLUMNS_MAX + b"\nnext")
    screen.pause()
    first, second = out.text().split("\n")
    assert (len(first), first[-1], second) == (COLUMNS_MAX, "…", "next")


@pytest.mark.parametrize("size", [1, 7, 64, logfiles.CHUNK])
def test_the_last_lines(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(logfiles, "CHUNK", size)
    text = "".join(f"line {n}\n" for n in range(100))
    for data in (text, text + "begun", "", "\n", "\n\n\n", "no end"):
        lines = data.splitlines(keepends=True)
        for wanted in (1, 2, 3, 50, 99, 100, 101, 1000):
            at = start_of_last(io.BytesIO(data.encode()), wanted)
            assert data[at:] == "".join(lines[-wanted:]), (data[:20], wanted)
        assert start_of_last(io.BytesIO(data.encode()), 0) == 0


async def test_following_ends_with_who_writes_and_misses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("1\n2\n3\n")
    looks = 0

    def alive() -> bool:
        nonlocal looks
        looks += 1
        with path.open("a") as stream:
            stream.write(f"look {looks}\n")
        return looks < 3

    out = Output(terminal=True)
    await logfiles.show(Log("it", path, alive), 2, Screen(out), follow=True)
    assert out.text() == "2\n3\nlook 1\nlook 2\nlook 3\n"


async def test_following_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("1\n")
    log = Log("it", path, lambda: True)
    watching = asyncio.ensure_future(
        logfiles.show(log, 2, Screen(Output(terminal=True)), follow=True)
    )
    await asyncio.sleep(0)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_a_log_that_is_missing(tmp_path: Path) -> None:
    log = Log("QEMU of guest a", tmp_path / "none", lambda: False)
    with pytest.raises(LabError, match=r"QEMU of guest a: .*none: No such file"):
        await logfiles.show(log, 2, Screen(Output(terminal=True)), follow=False)


def keep_logs(home: Path, *labs: str) -> None:
    folder = home / "sta" / "valemgr" / "logs"
    folder.mkdir(parents=True)
    for lab in labs:
        (folder / f"{lab}.log").write_text("")


def test_which_lab(home: Path) -> None:
    with pytest.raises(LabError, match="no lab has a log"):
        logfiles.find(None, None, None)
    keep_logs(home, "vale1")
    assert logfiles.find(None, None, None).what == "lab vale1"
    assert not logfiles.find(None, None, None).alive()
    (home / "sta/valemgr/logs/vale2.log").write_text("")
    with pytest.raises(UsageError, match="There are vale1, vale2: add --lab"):
        logfiles.find(Kind.LAB, None, None)
    assert logfiles.find(None, None, "vale2").path.name == "vale2.log"
    with pytest.raises(LabError, match="no log"):
        logfiles.find(None, None, "vale3")
    with pytest.raises(UsageError, match="not a lab name"):
        logfiles.find(None, None, "../x")
    with pytest.raises(UsageError, match="of which guest"):
        logfiles.find(Kind.QEMU, None, None)
    with pytest.raises(LabError, match="no guest a in lab vale1"):
        logfiles.find(None, "vale1/a", None)


def start_labs(home: Path, **labs: list[str]) -> None:
    for lab, guests in labs.items():
        folder = home / "run" / "valemgr" / lab
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"guests": {guest: {} for guest in guests}}))


@pytest.fixture
def labs(home: Path) -> Path:
    start_labs(home, star=["hub", "leaf1", "leaf2"], vale1=["a", "b"])
    keep_logs(home, "vale1", "old")
    return home


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("ssh ", ["a", "b", "hub", "leaf1", "leaf2"]),
        ("ssh l", ["leaf1", "leaf2"]),
        ("ssh vale1/", ["vale1/a", "vale1/b"]),
        ("exec --lab vale1 ", ["a", "b"]),
        ("console --lab ", ["star", "vale1"]),
        ("logs --lab ", ["old", "star", "vale1"]),
        ("logs h", ["hub"]),
        ("down v", ["vale1"]),
        ("cp l", ["leaf1:", "leaf2:"]),
        ("cp x/", ["x/d/", "x/f"]),
        ("cp x/f a", ["a:"]),
    ],
)
def test_what_the_tab_key_offers(labs: Path, line: str, offered: list[str]) -> None:
    (labs / "x/d").mkdir(parents=True)
    (labs / "x/f").write_text("")
    (labs / "x/.hidden").write_text("")
    words = f"valemgr {line}"
    done = subprocess.run(
        COMMAND, capture_output=True, text=True, check=False, timeout=60, cwd=labs,
        env={
            **os.environ, "PYTHONPATH": str(Path(__file__).parents[2]),
            "_VALEMGR_COMPLETE": "complete_bash", "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (offered, "")


def test_completion_is_silent_where_files_are_broken(
    labs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lab, text in (("star", "{"), ("vale1", '{"guests": 5}')):
        (labs / "run/valemgr" / lab / "state.json").write_text(text)
    assert completion.labs("") == ["star", "vale1"]
    assert completion.labs_with_logs("o") == ["old"]
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc/self/mem")
    assert completion.labs("") == []


def test_completion_imports_nothing_that_costs() -> None:
    code = (
        "import sys, valemgr.completion;"
        "print([m for m in ('paramiko', 'pydantic', 'qemu', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
