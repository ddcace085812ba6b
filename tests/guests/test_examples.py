# SPDX-License-Identifier: BSD-2-Clause
"""Every example does what its README says: its commands are run, in order, in its folder.

A README's `console` blocks hold commands behind `$ ` and below each what it says. A command must
succeed, and each line of the transcript must be among what it says now, where any number may be
another one; a line of `…` stands for what was left out. In the end nothing is left.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.guest import MICRO_FRR
from lib.place import Place, missing

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/README.md"))
NEED_FRR = {"firewall", "spine-leaf"}
# They differ from the others by their topology more than by what is run.
LONG = set() if os.environ.get("VALE_LONG") else {"star", "two-switches", "wan"}
BLOCK = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND_SECONDS = 600  # on a host that other things use

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(bool(missing()), reason=missing() or "nothing is missing"),
]


@pytest.fixture
def place() -> Iterator[Place]:
    """Short, since sockets live in it."""
    with tempfile.TemporaryDirectory(prefix="ex", ignore_cleanup_errors=True) as name:
        made = Place(Path(name))
        path = f"{ROOT}/build/bin:{ROOT}/build/venv/bin:{made.env['PATH']}"
        made.env |= {"PATH": path, "COLUMNS": "160", "PYTHONDONTWRITEBYTECODE": "1"}
        yield made
        made.close()


def transcript(readme: Path) -> list[tuple[str, list[str]]]:
    """Commands, each with the lines below it."""
    found: list[tuple[str, list[str]]] = []
    for block in BLOCK.findall(readme.read_text()):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.strip() not in ("", "…"):
                found[-1][1].append(line)
    return found


def shape(line: str) -> str:
    """A line without what differs from run to run: numbers, MACs, paths, generated names."""
    for pattern, stands_for in (
        (r"\x1b\[[0-9;]*m", ""),
        (r"\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b", "MAC"),
        (r"\bvaleL\w+", "valeL"),
        (r"(?<![\w.])/[\w/.-]*(tmp|run)/[\w/.-]+", "PATH"),
        (r"\b(tcg|kvm)\b", "ACCELERATOR"),
        (r"\b[KMG](?=(Bytes|bits)\b)", ""),
        (r"\d+(\.\d+)?", "#"),
        (r"\s+", " "),
    ):
        line = re.sub(pattern, stands_for, line)
    return line.strip()


def run(place: Place, command: str, folder: Path) -> str:
    """A command of a README, to its end; what it said."""
    print("$", command, flush=True)
    began = time.monotonic()
    done = subprocess.run(
        command, shell=True, cwd=folder, env=place.env, timeout=COMMAND_SECONDS, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    print(done.stdout, f"exit {done.returncode} after {time.monotonic() - began:.1f} s", flush=True)
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_the_readme_is_true(place: Place, example: Path, tmp_path: Path) -> None:
    if example.name in LONG:
        pytest.skip("long: make test-all")
    if example.name in NEED_FRR and not (MICRO_FRR / "manifest.json").exists():
        pytest.skip(f"no {MICRO_FRR}: run 'make image'")
    folder = tmp_path / "examples" / example.name  # a copy: some commands write into it
    shutil.copytree(example, folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    commands = transcript(example / "README.md")
    assert commands
    for command, lines in commands:
        said = {shape(line) for line in run(place, command, folder).splitlines()}
        missed = [line for line in lines if shape(line) not in said]
        assert missed == [], f"not said by '{command}'"
    place.assert_nothing_left()
