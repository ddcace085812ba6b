# SPDX-License-Identifier: BSD-2-Clause
"""DPDK's virtio-user as the peer of a vhost-user port.

    test --memory-- [native b] --- vale1 --- [vhost-user a] --socket-- virtio-user in dpdk-testpmd

testpmd swaps the addresses of what it receives and sends it back, so each frame crosses the switch
both ways. Its memory is a memfd: no huge pages, no root. Both of its drivers are tried, and buffers
that frames fill several of.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib.native import Deadline, Port, Timeout, frame, numbered, station
from lib.qmp import Qmp
from lib.valed import Valed, check_books, eventually

pytestmark = pytest.mark.blackbox

TESTPMD = shutil.which("dpdk-testpmd")
A, B = station(1), station(2)
FRAMES = 2000
WINDOW = 64  # frames under way: fewer than any ring holds
BUFFERS = ("mrg_rxbuf=1,in_order=1", "mrg_rxbuf=1,in_order=0", "mrg_rxbuf=0,in_order=0")


@contextlib.contextmanager
def macswap(folder: Path, socket: Path, driver: str) -> Iterator[None]:
    """One that swaps addresses, ended with the block."""
    assert TESTPMD
    mac = ":".join(f"{byte:02x}" for byte in A)
    vdev = f"net_virtio_user0,path={socket},queues=1,queue_size=256,mac={mac},{driver}"
    argv = [TESTPMD, "--no-huge", "-m", "256", "--no-pci", "--no-telemetry"]
    argv += ["--file-prefix", folder.name, "--log-level", "error", "--vdev", vdev]
    argv += ["--", "--forward-mode=macswap", "--no-mlockall", "--total-num-mbufs=2048"]
    argv += ["--auto-start"]
    print(" ".join(argv))
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder)}
    with (
        (folder / "testpmd.log").open("w+") as log,
        subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
        ) as process,
    ):
        try:
            yield
            assert process.poll() is None
        finally:
            process.terminate()
            process.wait(60)
            log.seek(0)
            print(log.read())


def swapped(data: bytes) -> bytes:
    return data[6:12] + data[:6] + data[12:]


def bounced(port: Port) -> int:
    """Sends a probe; how many frames have come back. 0: testpmd sets itself up, and loses some."""
    port.send(numbered(A, B, 1))
    try:
        port.receive(1, deadline=Deadline(0.5))
    except Timeout:
        return 0
    port.send(numbered(A, B, 1, first=1))
    return 1 + len(port.receive_until_last(1))


def counted(qmp: Qmp, frames: int) -> dict[str, dict[str, Any]]:
    """All ports, once they say that so many frames have come back."""

    def came_back(ports: dict[str, dict[str, Any]]) -> set[int]:
        return {ports["vale1:a"]["rx"]["frames"], ports["vale1:b"]["tx"]["frames"]}

    eventually(f"{frames} frames are counted", lambda: came_back(qmp.ports()) == {frames})
    return qmp.ports()


@pytest.mark.skipif(TESTPMD is None, reason="no dpdk-testpmd: ./deps.sh packages-bench.txt")
@pytest.mark.parametrize("driver", BUFFERS)
def test_frames_go_to_virtio_user_and_back(valed: Valed, tmp_path: Path, driver: str) -> None:
    path = valed.rundir / "a"
    qmp = valed.qmp()
    qmp.execute("port-add", name="vale1:a", kind="vhost-user", path=str(path))
    with Port.open(valed.rundir, "vale1:b") as b, macswap(tmp_path, path, driver):
        starting, probes = Deadline(60), 0
        while not probes:
            starting.left("testpmd does not forward")
            probes = bounced(b)
        before = counted(qmp, probes)
        sent = numbered(A, B, FRAMES)
        for at in range(0, FRAMES, WINDOW):
            part = sent[at : at + WINDOW]
            b.send(part)
            assert b.receive(len(part)) == [swapped(data) for data in part]
        long = frame(A, B, os.urandom(1486), length=1500)
        b.send([long])
        assert b.receive(1) == [swapped(long)]
        after = counted(qmp, probes + FRAMES + 1)
    check_books(after)
    assert after["vale1:b"]["rx"]["frames"] - before["vale1:b"]["rx"]["frames"] == FRAMES + 1
    assert after["vale1:a"]["tx"]["frames"] - before["vale1:a"]["tx"]["frames"] == FRAMES + 1
