# SPDX-License-Identifier: BSD-2-Clause
"""Fixtures for all tiers. `VALED=PATH pytest tests/blackbox` tests that binary."""

from collections.abc import Iterator

import pytest

from lib.valed import BINARY, Valed


@pytest.fixture
def valed() -> Iterator[Valed]:
    """A running valed with one worker."""
    if not BINARY.exists():
        pytest.skip(f"no {BINARY}: run 'make tools'")
    with Valed.run() as running:
        yield running
