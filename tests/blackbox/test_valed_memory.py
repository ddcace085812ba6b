# SPDX-License-Identifier: BSD-2-Clause
"""A front end that takes memory away while frames in it are under way.

    front end: rings and headers in one file, payloads in another, which it truncates
        |
    valed --- a receiver of each kind

Nobody gets zeros in the place of frames: they are dropped, peer_memory.
"""

import contextlib
import mmap
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from lib.native import BROADCAST, SECONDS, Port, numbered, station
from lib.qmp import Qmp
from lib.valed import Valed, check_books
from lib.vhost import BUFFER, GPA, HEADER, MEMORY, NEXT, SET_MEM_TABLE, USED, UVA, FrontEnd

pytestmark = pytest.mark.blackbox

SIZE = 1 << 16  # of the second file
AT = 0x2000_0000  # where the guest sees it
ETHERNET = BROADCAST + station(9) + b"\x88\xb5"
FRAMES = 5


class Liar(FrontEnd):
    """A front end with a second file of memory."""

    def add_memory(self) -> None:
        self.second = os.memfd_create("payload")
        os.ftruncate(self.second, SIZE)
        with mmap.mmap(self.second, SIZE) as payload:
            payload[:] = b"\x5a" * SIZE
        table = struct.pack("<II4Q", 2, 0, GPA, MEMORY, UVA, 0)
        table += struct.pack("<4Q", AT, SIZE, UVA + MEMORY, 0)
        assert self.ack(SET_MEM_TABLE, table, [self.memfd, self.second]) == 0

    def publish(self, i: int, head: bytes, length: int) -> None:
        """A frame whose front lies in the first file and the rest of it in the second."""
        at = self.buffer(1, i)
        self.mem[at : at + HEADER + len(head)] = bytes(HEADER) + head
        first, second = 2 * i, 2 * i + 1
        self.set_desc(1, first, GPA + at, HEADER + len(head), NEXT, second)
        self.set_desc(1, second, AT + BUFFER * i, length, 0)
        self.make_available(1, first)


@pytest.fixture
def liar(valed: Valed) -> Iterator[Liar]:
    valed.qmp().execute("port-add", name="vale1:v", kind="vhost-user")
    with Liar(valed.rundir / "vale1:v") as front:
        front.add_memory()
        yield front
        os.close(front.second)


def truncate_and_kick(liar: Liar, head: bytes) -> None:
    """All frames are published before valed is told of any, and their payloads are gone."""
    for i in range(FRAMES):
        liar.publish(i, head, 100)
    os.ftruncate(liar.second, 0)
    liar.kick(1)


def wait_down(qmp: Qmp) -> None:
    while True:
        event, data = qmp.event()
        if (event, data["name"]) == ("PORT_DOWN", "vale1:v"):
            assert data["reason"] == "its memory was taken away"
            return


def check_dropped(qmp: Qmp, port: str, head: bytes = ETHERNET) -> None:
    """At the receiver, or at the sender where not even the addresses could be read."""
    tx, rx = qmp.port(port)["tx"], qmp.port("vale1:v")["rx"]
    assert (tx["frames"], tx["bytes"]) == (0, 0)
    where, nowhere = (tx, rx) if head else (rx, tx)
    assert (where["dropped"], nowhere["dropped"]) == ({"peer_memory": FRAMES}, {})
    check_books(qmp.ports())


def test_whole_memory_comes_with_frames_when_it_stays(valed: Valed, liar: Liar) -> None:
    """The same frames without the truncation arrive: what the others drop is good otherwise."""
    native = valed.open("vale1:n")
    for i in range(FRAMES):
        liar.publish(i, ETHERNET, 100)
    liar.kick(1)
    assert native.receive(FRAMES) == [ETHERNET + b"\x5a" * 100] * FRAMES


@pytest.mark.parametrize("head", [ETHERNET, b""], ids=["payload", "addresses too"])
def test_native_receiver(valed: Valed, liar: Liar, head: bytes) -> None:
    """The memory dies in the copy, or already when the destination is looked up."""
    native = valed.open("vale1:n")
    qmp = valed.qmp()
    truncate_and_kick(liar, head)
    wait_down(qmp)
    check_dropped(qmp, "vale1:n", head)
    assert native.drain() == ([b""] * FRAMES if head else [])  # empty slots, if any
    other = valed.open("vale1:o")
    sent = numbered(BROADCAST, station(1), 10)
    other.send(sent)
    assert native.receive(10) == sent


@pytest.mark.parametrize("head", [ETHERNET, b""], ids=["payload", "addresses too"])
def test_vhost_user_receiver(valed: Valed, liar: Liar, head: bytes) -> None:
    qmp = valed.qmp()
    qmp.execute("port-add", name="vale1:w", kind="vhost-user")
    with FrontEnd(valed.rundir / "vale1:w") as guest:
        truncate_and_kick(liar, head)
        wait_down(qmp)
        check_dropped(qmp, "vale1:w", head)
        # What it finds are buffers without a byte: no frame, to any driver.
        used = guest.used_index(0)
        assert used == (FRAMES if head else 0)
        at = [USED + 4 + 8 * i for i in range(used)]
        assert [struct.unpack_from("<II", guest.mem, a)[1] for a in at] == [0] * used


@pytest.mark.parametrize("head", [ETHERNET, b""], ids=["payload", "addresses too"])
def test_stream_receiver(valed: Valed, liar: Liar, head: bytes) -> None:
    qmp = valed.qmp()
    qmp.execute("port-add", name="vale1:s", kind="stream")
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(valed.rundir / "vale1:s"))
        while qmp.event()[0] != "PORT_UP":
            pass
        truncate_and_kick(liar, head)
        native = valed.open("vale1:n")
        sent = numbered(BROADCAST, station(1), 10)
        native.send(sent)
        native.flush()
        peer.settimeout(SECONDS)
        expected = b"".join(struct.pack(">I", len(f)) + f for f in sent)
        assert peer.recv(len(expected), socket.MSG_WAITALL) == expected
        tx, rx = (qmp.port("vale1:s")["tx"], qmp.port("vale1:v")["rx"])
        assert (tx["frames"], rx["frames"]) == (10, FRAMES)
        assert (tx["dropped"] or rx["dropped"]) == {"peer_memory": FRAMES}
        check_books(qmp.ports())


@pytest.mark.parametrize("line", ["in", "out"])
def test_delay_line(valed: Valed, liar: Liar, line: str) -> None:
    """The copy into a line is one like any other: on the way in it is the sender that loses."""
    native = valed.open("vale1:n")
    qmp = valed.qmp()
    port = "vale1:v" if line == "in" else "vale1:n"
    qmp.execute("port-set", name=port, **{line: {"delay": 1000}})
    truncate_and_kick(liar, ETHERNET)
    wait_down(qmp)
    dropped = {"peer_memory": FRAMES}
    tx, rx = qmp.port("vale1:n")["tx"], qmp.port("vale1:v")["rx"]
    assert (rx["dropped"], tx["dropped"]) == ((dropped, {}) if line == "in" else ({}, dropped))
    assert (rx["held"], tx["held"], tx["frames"]) == (0, 0, 0)
    check_books(qmp.ports())
    other = valed.open("vale1:o")
    sent = numbered(BROADCAST, station(1), 10)
    other.send(sent)
    assert native.receive(10) == sent


def test_receivers_of_all_kinds_at_once(valed: Valed, liar: Liar) -> None:
    natives: list[Port] = [valed.open(f"vale1:n{i}") for i in range(3)]
    qmp = valed.qmp()
    with contextlib.ExitStack() as stack:
        qmp.execute("port-add", name="vale1:w", kind="vhost-user")
        stack.enter_context(FrontEnd(valed.rundir / "vale1:w"))
        truncate_and_kick(liar, ETHERNET)
        wait_down(qmp)
        for port in ("vale1:n0", "vale1:n1", "vale1:n2", "vale1:w"):
            check_dropped(qmp, port)
    natives[1].drain()
    sent = numbered(BROADCAST, station(1), 50)
    natives[0].send(sent)
    assert natives[1].receive(50) == sent
