# SPDX-License-Identifier: BSD-2-Clause
"""Ports for domains: whose they are, who may have them, and that nobody takes another's."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lib.valed import NOBODY, Valed, eventually
from valemgr.errors import EnvironmentUnfitError, SwitchError
from valemgr.names import parse_port
from valemgr.virt import ports

pytestmark = pytest.mark.blackbox

CONNECT = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sys.stdin.read()
"""
PORT = parse_port("vale1:a")
ONE, OTHER = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"


def make(valed: Valed, owner: str = ONE, **options: Any) -> Coroutine[Any, Any, bool]:
    user = options.pop("user", None)
    return ports.make_port(valed.rundir, PORT, user, owner=owner, **options)


def drop(valed: Valed, owner: str = ONE) -> Coroutine[Any, Any, None]:
    return ports.drop_port(valed.rundir, PORT, owner=owner)


def names(valed: Valed) -> set[str]:
    return set(valed.qmp().ports())


def peer(valed: Valed) -> int:
    return int(valed.qmp().ports()["vale1:a"]["peer"]["pid"])


@contextmanager
def qemu(valed: Valed) -> Iterator[int]:
    """Somebody who is connected to the port; his pid."""
    argv = [sys.executable, "-c", CONNECT, str(valed.rundir / "vale1:a")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        eventually("peer", lambda: peer(valed) == process.pid)
        yield process.pid
        process.kill()


async def test_port_is_made_again_and_dropped(valed: Valed) -> None:
    for _ in range(2):
        await make(valed)
    assert names(valed) == {"vale1:a"}
    for _ in range(2):
        await drop(valed)
    assert names(valed) == set()
    assert [path.name for path in valed.rundir.glob("vale1*")] == []


async def test_port_with_a_peer_is_taken_and_stays(valed: Valed) -> None:
    """For another domain, and for the same: only one that runs may have it already."""
    await make(valed)
    with qemu(valed) as pid:
        for owner in (ONE, OTHER, ""):
            with pytest.raises(SwitchError, match=f"port vale1:a .* is taken by pid {pid}:"):
                await make(valed, owner)
        await make(valed, running=True)
        for owner in (ONE, OTHER, ""):
            await drop(valed, owner)
        assert peer(valed) == pid
    await drop(valed, OTHER)
    assert names(valed) == {"vale1:a"}
    await drop(valed)
    assert names(valed) == set()


async def test_port_whose_qemu_comes_back_is_not_lost(valed: Valed) -> None:
    """Its valed has just been restarted: QEMU connects again within a second."""
    await make(valed)
    waiting = asyncio.ensure_future(make(valed, OTHER))
    await asyncio.wait([waiting], timeout=0.3)
    assert not waiting.done()
    with qemu(valed) as pid:
        with pytest.raises(SwitchError, match="is taken by pid"):
            await waiting
        await drop(valed, OTHER)
        assert peer(valed) == pid


async def test_port_of_a_domain_that_is_gone_is_taken_over(valed: Valed) -> None:
    """No release came: the host has lost its power, say."""
    await make(valed)
    await make(valed, OTHER)
    await drop(valed, ONE)
    assert names(valed) == {"vale1:a"}
    await drop(valed, OTHER)
    assert names(valed) == set()


async def test_port_of_another_kind_is_taken_and_stays(valed: Valed) -> None:
    valed.qmp().execute("port-add", name="vale1:a", kind="null")
    with pytest.raises(SwitchError, match="is taken by a port of kind null"):
        await make(valed)
    await drop(valed)
    assert names(valed) == {"vale1:a"}


async def test_port_that_qemu_may_not_open_is_not_left(valed: Valed) -> None:
    valed.rundir.parent.chmod(0o755)
    with pytest.raises(EnvironmentUnfitError) as refused:
        await make(valed, user=(NOBODY, NOBODY))
    assert f"valed (pid {valed.pid}, {valed.rundir}) lacks --group" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert names(valed) == set()


async def test_directory_that_others_may_write_is_refused(valed: Valed) -> None:
    valed.rundir.chmod(0o777)
    with pytest.raises(EnvironmentUnfitError, match="writable by others"):
        await make(valed)
    assert names(valed) == set()
    await drop(valed)


async def test_nothing_is_started_unless_asked_for(valed: Valed) -> None:
    valed.stop()
    with pytest.raises(SwitchError, match="no valed runs in"):
        await make(valed, start=False)
    await drop(valed)


@pytest.mark.skipif(os.geteuid() != 0, reason="what root does in a directory of others")
@pytest.mark.parametrize(("owner", "mode"), [(NOBODY, 0o700), (0, 0o777)])
async def test_root_makes_nothing_where_others_may_lead_it_elsewhere(
    tmp_path: Path, owner: int, mode: int
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(mode)
    os.chown(home, owner, -1)
    with pytest.raises(EnvironmentUnfitError, match=f"others than root may change {home}:"):
        await ports.make_port(home / "vale", PORT, None)
    assert list(home.iterdir()) == []
