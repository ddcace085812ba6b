# SPDX-License-Identifier: BSD-2-Clause
"""What goes away while two workers write to it: memory tables, queues, front ends, ports.

    vale1:from0 --broadcast, endless-- worker 0 --+-- vale1:v   the test's front end
    vale1:from1 --broadcast, endless-- worker 1 --+-- vale1:n   a native port

The sources never pause. Once valed has said that something is over, nothing of it may be written
any more; what a sanitizer sees fails the test too.
"""

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from lib.qmp import Qmp
from lib.valed import Valed, check_books, eventually
from lib.vhost import (
    GET_VRING_BASE,
    GPA,
    MEMORY,
    SET_MEM_TABLE,
    SET_VRING_KICK,
    UVA,
    FrontEnd,
)

pytestmark = pytest.mark.blackbox

LAPS = int(os.environ.get("VALE_LAPS", "20"))


@pytest.fixture
def flooded() -> Iterator[Valed]:
    """A valed with two sources at full rate."""
    with Valed.run("--workers", "2") as valed:
        qmp = valed.qmp()
        for i in range(2):
            source = {"length": 60 + 1400 * i, "source": f"02:00:00:00:00:0{i + 1}"}
            qmp.execute("port-add", name=f"vale1:from{i}", kind="null", source=source)
        yield valed
        for i in range(2):
            qmp.execute("port-del", name=f"vale1:from{i}")
        eventually("the sources to go", lambda: not qmp.ports().keys() & {"vale1:from0"})
        check_books(qmp.ports())


def add(qmp: Qmp) -> None:
    eventually("the name to be free", lambda: "vale1:v" not in qmp.ports())
    qmp.execute("port-add", name="vale1:v", kind="vhost-user")


def flood_goes_on(qmp: Qmp, frames: int = 10_000) -> None:
    """Until so many frames more have been forwarded."""
    start = qmp.port("vale1:from0")["rx"]["frames"]
    eventually("frames", lambda: qmp.port("vale1:from0")["rx"]["frames"] > start + frames)


def replace_memory(front: FrontEnd) -> mmap.mmap:
    """The same contents elsewhere; the old memory, which valed has given up."""
    old_fd, old = front.memfd, front.mem
    front.memfd = os.memfd_create("guest")
    os.ftruncate(front.memfd, MEMORY)
    front.mem = mmap.mmap(front.memfd, MEMORY)
    front.mem[:] = old[:]
    table = struct.pack("<II4Q", 1, 0, GPA, MEMORY, UVA, 0)
    assert front.ack(SET_MEM_TABLE, table, [front.memfd]) == 0
    os.close(old_fd)
    return old


def test_memory_table_changes(flooded: Valed) -> None:
    qmp = flooded.qmp()
    add(qmp)
    with FrontEnd(flooded.rundir / "vale1:v") as front:
        for _ in range(LAPS):
            front.receive(300)
            with replace_memory(front) as old:
                old[:] = b"\xa5" * MEMORY
                front.receive(300)
                assert old[:] == b"\xa5" * MEMORY


def test_queue_stops(flooded: Valed) -> None:
    """From the answer of GET_VRING_BASE to the next kick descriptor the queue is the guest's."""
    qmp = flooded.qmp()
    add(qmp)
    with FrontEnd(flooded.rundir / "vale1:v") as front:
        for _ in range(LAPS):
            front.receive(100)
            _, base = struct.unpack("<II", front.ask(GET_VRING_BASE, struct.pack("<II", 0, 0)))
            before = front.mem[:]
            flood_goes_on(qmp)
            assert front.used_index(0) == base
            assert front.mem[:] == before
            assert front.ack(SET_VRING_KICK, struct.pack("<Q", 0), [front.kicks[0]]) == 0


def test_front_end_hangs_up(flooded: Valed) -> None:
    """Its memory is unmapped, while both workers write, and stays as it was."""
    qmp = flooded.qmp()
    add(qmp)
    for _ in range(LAPS):
        front = FrontEnd(flooded.rundir / "vale1:v")
        front.receive(300)
        front.sock.close()
        eventually("its memory to be let go", lambda: not has_guest_memory(flooded))
        before = front.mem[:]
        flood_goes_on(qmp)
        assert front.mem[:] == before
        front.close()


def test_ports_are_deleted(flooded: Valed) -> None:
    qmp = flooded.qmp()
    fds = flooded.fds()
    for _ in range(LAPS):
        add(qmp)
        native = flooded.open("vale1:n", rx_slots=256)
        with FrontEnd(flooded.rundir / "vale1:v") as front:
            front.receive(300)
            native.receive(300)
            qmp.execute("port-del", name="vale1:v")
            assert front.hung_up()
            native.receive(300)
            native.close()
        eventually("both to go", lambda: len(qmp.ports()) == 2)
    eventually("descriptors to be closed", lambda: flooded.fds() == fds)


def has_guest_memory(valed: Valed) -> bool:
    with open(f"/proc/{valed.pid}/maps") as maps:
        return any("memfd:guest" in line for line in maps)
