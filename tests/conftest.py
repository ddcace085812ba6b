# SPDX-License-Identifier: BSD-2-Clause
"""Fixtures for all tiers. `VALED=PATH pytest tests/blackbox` tests that binary."""

import resource
from collections.abc import Iterator

import pytest

from lib.valed import BINARY, Valed


def pytest_configure() -> None:
    """254 ports are four descriptors each: an ordinary user's limit is less, until it is raised."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 20000), most))


@pytest.fixture
def valed() -> Iterator[Valed]:
    """A running valed with one worker."""
    if not BINARY.exists():
        pytest.skip(f"no {BINARY}: run 'make tools'")
    with Valed.run() as running:
        yield running
