# SPDX-License-Identifier: BSD-2-Clause
"""Fixtures for all tiers. `VALED=PATH pytest tests/blackbox` tests that binary."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.valed import BINARY, NOBODY, Valed


def pytest_configure() -> None:
    """A test holds four for each of 254 ports: more than the usual limit, which may be raised."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 20000), most))


def can_become_nobody() -> bool:
    """Root can, where there are other users: a user namespace may have its root only."""
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return os.geteuid() == 0 and any(0 <= NOBODY - int(at) < int(n) for at, _, n in ranges)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("another_user") and not can_become_nobody():
        pytest.skip("needs root, to become somebody else: test_rootless.py runs it without")


@pytest.fixture
def valed() -> Iterator[Valed]:
    """A running valed with one worker."""
    if not BINARY.exists():
        pytest.skip(f"no {BINARY}: run 'make tools'")
    with Valed.run() as running:
        yield running
