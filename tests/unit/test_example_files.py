# SPDX-License-Identifier: BSD-2-Clause
"""The examples' files: topologies without a mistake, drawings of today, complete READMEs.

`VALE_GOLDEN=write pytest tests/unit/test_example_files.py` draws them anew.
"""

import os
import re
from pathlib import Path

import pytest

from valemgr.drawing.picture import svg
from valemgr.labfile import load_lab

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = sorted(path for path in EXAMPLES.iterdir() if path.is_dir() and path.name[0] not in "._")
SECTIONS = ["## Objective", "## Run", "## Look at", "## Try next"]

pytestmark = [
    pytest.mark.unit,
    pytest.mark.parametrize("folder", FOLDERS, ids=[path.name for path in FOLDERS]),
]


def test_the_topology_is_right_and_tests_itself(folder: Path) -> None:
    for path in folder.glob("*.lab.yml"):
        lab = load_lab(path)
        assert lab.name == folder.name
        assert lab.tests
        assert lab.description


def test_the_drawing_is_of_this_topology(folder: Path) -> None:
    drawn = svg(load_lab(folder / f"{folder.name}.lab.yml"))
    path = folder / "drawing.svg"
    if os.environ.get("VALE_GOLDEN") == "write":
        path.write_text(drawn)
    assert drawn == path.read_text()


def test_the_readme_is_complete(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert "![drawing](drawing.svg)" in text
    assert re.findall(r"^## .*", text, re.MULTILINE) == SECTIONS
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (folder / link).exists()] == []


def test_the_list_of_examples_has_it(folder: Path) -> None:
    assert f"({folder.name}/README.md)" in (EXAMPLES / "README.md").read_text()
    assert f"({folder.name}/drawing.svg)" in (EXAMPLES / "README.md").read_text()
