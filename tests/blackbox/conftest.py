# SPDX-License-Identifier: BSD-2-Clause
"""Fixtures of the tests that run a QEMU without a guest (lib/backend.py)."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lib.backend import Switch, running


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose sockets fit sun_path."""
    with tempfile.TemporaryDirectory(prefix="vale-") as name:
        yield Path(name)


@pytest.fixture
async def switch(short_path: Path) -> AsyncIterator[Switch]:
    """A valed of this test."""
    rundir = short_path / "run"
    rundir.mkdir(mode=0o700)
    async with running(rundir) as made:
        yield made
