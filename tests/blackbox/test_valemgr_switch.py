# SPDX-License-Identifier: BSD-2-Clause
"""valemgr and a real valed: started on demand once, found again, listed, refused."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from valemgr import locate, proc, switchd
from valemgr.deadline import Deadline
from valemgr.errors import EnvironmentUnfitError, SwitchError
from valemgr.switchd import PortStats, Switchd

pytestmark = [
    pytest.mark.blackbox,
    pytest.mark.skipif(locate.find(locate.VALED) is None, reason="no valed: run make tools"),
]


@pytest.fixture
def rundir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
           ) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("v") / "sw"
    monkeypatch.setenv("VALE_RUNDIR", str(path))
    yield path
    for pid in valeds(path):
        os.kill(pid, signal.SIGTERM)


def valeds(rundir: Path) -> list[int]:
    """Pids of session leaders that serve this directory (a valed may have children)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "--rundir" in words and str(rundir) in words:
            found.append(int(path.name))
    return found


async def test_racing_starts_make_one_switch(rundir: Path) -> None:
    async with switchd.connected() as nobody:
        assert nobody is None
    found = await asyncio.gather(*(switchd.find_or_start() for _ in range(5)))
    assert len({daemon.pid for daemon in found}) == 1
    assert found[0].version == "0.1.0"
    assert await found[0].switches() == []
    assert await found[0].ports() == []
    async with switchd.connected() as same:
        assert same
        assert same.pid == found[0].pid
    for daemon in found:
        await daemon.close()


async def test_its_end_is_noticed_at_once(rundir: Path) -> None:
    daemon = await switchd.find_or_start()
    os.kill(daemon.pid, signal.SIGKILL)
    error = await Deadline(5).wait("news", daemon.gone())
    assert f"valed (pid {daemon.pid}" in str(error)
    await daemon.close()
    again = await switchd.find_or_start()
    assert again.pid != daemon.pid
    await again.close()


async def test_ports_are_listed_with_counters_and_taken_ones_refused(rundir: Path) -> None:
    daemon = await switchd.find_or_start()
    pktgen = locate.require("vale-pktgen")
    argv = [str(pktgen), "-i", "vale1:a", "-f", "rx", "--seconds", "60"]
    env = {"VALE_DEV": str(daemon.netmap_socket)}
    taker = proc.start(argv, env=env)

    async def listed() -> PortStats:
        ports = await daemon.ports()
        if not ports:
            raise ValueError("none yet")
        return ports[0]

    port = await Deadline(10).retry("port", listed, (ValueError,))
    assert (port.name, port.kind, port.peer_pid, port.tx_offered) == (
        "vale1:a", "native", taker.pid, 0,
    )
    assert [entry["name"] for entry in await daemon.switches()] == ["vale1"]
    await daemon.require_free(("vale1:b", "vale2:a"))
    with pytest.raises(SwitchError, match=f"vale1:a is taken by pid {taker.pid}"):
        await daemon.require_free(("vale1:a", "vale1:b"))
    await taker.stop()
    await daemon.close()


async def test_a_full_switch_is_refused(rundir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = await switchd.find_or_start()
    ports = [PortStats(f"vale1:p{i}", "native", 1, 0, 0, {}, 0, 0, 0, {}) for i in range(253)]

    async def switches(self: Switchd) -> list[dict[str, object]]:
        return [{"name": "vale1", "ports": 253}]

    async def full(self: Switchd, switch: str | None = None) -> list[PortStats]:
        return ports

    monkeypatch.setattr(Switchd, "switches", switches)
    monkeypatch.setattr(Switchd, "ports", full)
    await daemon.require_free(("vale1:a",))
    with pytest.raises(SwitchError, match="switch vale1 is full: 253 of 254"):
        await daemon.require_free(("vale1:a", "vale1:b"))
    await daemon.close()


async def test_a_directory_that_others_could_write_is_refused(rundir: Path) -> None:
    rundir.mkdir()
    rundir.chmod(0o777)
    with pytest.raises(EnvironmentUnfitError, match="writable by others"):
        await switchd.find_or_start()
    rundir.rmdir()
    rundir.symlink_to(rundir.parent)
    with pytest.raises(EnvironmentUnfitError, match="is a link"):
        await switchd.find_or_start()
    assert valeds(rundir) == []
