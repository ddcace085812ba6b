# SPDX-License-Identifier: BSD-2-Clause
"""Every test that docs/security.md names is there, and every section names some."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text()
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)


def test_names_are_found() -> None:
    assert len(NAMED) > 40
    assert len(NAMED) == PAGE.count("::") - 1  # one explains the form


@pytest.mark.parametrize(("file", "test"), NAMED, ids="::".join)
def test_named_test_exists(file: str, test: str) -> None:
    path = ROOT / file if "/" in file else ROOT / "tests/blackbox" / file
    named = re.search(rf"^(async )?def {test}\(", path.read_text(), re.MULTILINE)
    assert named, f"no {test} in {path}"


@pytest.mark.parametrize("title", re.findall(r"^## (A client .*|If all .*)", PAGE, re.MULTILINE))
def test_each_promise_has_a_test(title: str) -> None:
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    assert "::test_" in section
