# SPDX-License-Identifier: BSD-2-Clause
"""mirror does what it promises, on a bad line and on a dead one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from valemgr.lab import SyncLab

HERE = Path(__file__).parent
BYTES = 300_000

pytestmark = pytest.mark.vale_lab("ci.lab.yml")


@pytest.fixture(scope="module")
def url(vale_lab: SyncLab) -> str:
    vale_lab.run("server", f"head -c {BYTES} /dev/urandom > /www/data")
    (address,) = vale_lab.addresses("server")
    return f"http://{address}/data"


@pytest.fixture
def dead_line(vale_lab: SyncLab) -> Iterator[None]:
    """Only the line changes: both guests run on."""
    vale_lab.apply(HERE / "dead.lab.yml")
    yield
    vale_lab.apply(HERE / "ci.lab.yml")


def test_a_file_comes_as_it_was(vale_lab: SyncLab, url: str) -> None:
    assert vale_lab.run("client", f"mirror {url} /tmp/data 60").status == 0
    assert checksum(vale_lab, "client", "/tmp/data") == checksum(vale_lab, "server", "/www/data")


def test_what_has_come_is_kept(vale_lab: SyncLab, url: str) -> None:
    vale_lab.run("client", f"wget -q -O - {url} | head -c {BYTES - 100_000} > /tmp/part")
    before = received(vale_lab)
    assert vale_lab.run("client", f"mirror {url} /tmp/part 60").status == 0
    assert received(vale_lab) - before < BYTES / 2
    assert checksum(vale_lab, "client", "/tmp/part") == checksum(vale_lab, "server", "/www/data")


@pytest.mark.usefixtures("dead_line")
def test_a_dead_line_is_reported_in_time(vale_lab: SyncLab, url: str) -> None:
    result = vale_lab.run("client", f"mirror {url} /tmp/never 3", seconds=30)
    assert (result.status, result.stderr) == (1, f"mirror: {url} does not come within 3 s\n")


def test_the_line_is_back(vale_lab: SyncLab) -> None:
    for verdict in vale_lab.test():
        assert verdict.passed, verdict.detail


def checksum(lab: SyncLab, guest: str, path: str) -> str:
    return lab.run(guest, f"sha256sum < {path}").stdout


def received(lab: SyncLab) -> int:
    """Bytes that have come to the client."""
    return int(lab.run("client", "cat /sys/class/net/vale0/statistics/rx_bytes").stdout)
