# SPDX-License-Identifier: BSD-2-Clause
"""Golden files: `VALE_GOLDEN=write pytest tests/unit` rewrites them; review the difference."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("VALE_GOLDEN") == "write":
            path.write_text(text)
        assert text == path.read_text()

    return compare


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """XDG directories of this test's own; short, since sockets live below."""
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        folder = tmp_path / name[4:7].lower()
        folder.mkdir(mode=0o700)
        monkeypatch.setenv(name, str(folder))
    monkeypatch.delenv("VALE_RUNDIR", raising=False)
    return tmp_path
