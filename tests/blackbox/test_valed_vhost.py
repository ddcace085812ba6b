# SPDX-License-Identifier: BSD-2-Clause
"""vhost-user ports: a front end of the test's own, in QEMU's place, and hostile ones.

    test --vhost-user, shared memory-- vale1:v  valed  vale1:a --native-- test
"""

import contextlib
import os
import random
import socket
import struct
import threading
from pathlib import Path

import pytest

from lib.native import BROADCAST, Port, frame, number, numbered, station
from lib.valed import Valed, check_books, eventually
from lib.vhost import (
    GET_FEATURES,
    GET_VRING_BASE,
    GPA,
    LOG_ALL,
    MEMORY,
    MRG_RXBUF,
    SEND_RARP,
    SET_FEATURES,
    SET_LOG_BASE,
    SET_MEM_TABLE,
    SET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_ENABLE,
    SET_VRING_KICK,
    SIZE,
    VERSION_1,
    FrontEnd,
)

pytestmark = pytest.mark.blackbox

GUEST, HOST = station(1), station(2)


@pytest.fixture
def native(valed: Valed) -> Port:
    valed.qmp().execute("port-add", name="vale1:v", kind="vhost-user")
    return valed.open("vale1:a")


def front_end(valed: Valed, features: int = VERSION_1 | MRG_RXBUF) -> FrontEnd:
    front = FrontEnd(valed.rundir / "vale1:v", features)
    valed.clients.append(front)
    return front


def talk(front: FrontEnd, native: Port, n: int = 50) -> None:
    """n frames each way, byte by byte and in order."""
    front.send(numbered(HOST, GUEST, n))
    assert native.receive(n) == numbered(HOST, GUEST, n)
    native.send(numbered(GUEST, HOST, n))
    assert front.receive(n) == numbered(GUEST, HOST, n)


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | MRG_RXBUF])
def test_frames_both_ways(valed: Valed, native: Port, features: int) -> None:
    """Many laps of both queues; then the books."""
    front = front_end(valed, features)
    for _ in range(20):
        talk(front, native)
    native.flush()
    ports = valed.qmp().ports()
    check_books(ports)
    assert ports["vale1:v"]["kind"] == "vhost-user"
    assert ports["vale1:v"]["peer"]["pid"] == os.getpid()
    assert (ports["vale1:v"]["rx"]["frames"], ports["vale1:v"]["tx"]["frames"]) == (1000, 1000)


def test_guest_that_takes_nothing_has_its_drops_counted(valed: Valed, native: Port) -> None:
    front = front_end(valed)
    native.send(numbered(BROADCAST, HOST, 1000))
    native.flush()
    tx = valed.qmp().port("vale1:v")["tx"]
    assert (tx["frames"], tx["dropped"]) == (SIZE, {"ring_full": 1000 - SIZE})
    assert [number(f) for f in front.receive(SIZE)] == list(range(SIZE))


def test_front_end_that_comes_back_goes_on(valed: Valed, native: Port) -> None:
    """Ten times: connect, talk, hang up. Frames meanwhile are dropped as `down`."""
    start = valed.fds()
    for lap in range(10):
        with FrontEnd(valed.rundir / "vale1:v") as front:
            talk(front, native)
        eventually("descriptors to be closed", lambda: valed.fds() <= start)
        native.send([frame(BROADCAST, HOST)])
        native.flush()
        port = valed.qmp().port("vale1:v")
        assert port["tx"]["dropped"] == {"down": lap + 1}
        assert port["peer"] == {"uid": 0, "pid": 0}
        valed.clients.pop().__exit__(None, None, None)


def test_queue_stops_and_starts_where_it_was(valed: Valed, native: Port) -> None:
    """GET_VRING_BASE is answered when no worker touches the queue any more."""
    front = front_end(valed)
    talk(front, native, 30)
    for q, done in ((0, 30), (1, 30)):
        base = front.ask(GET_VRING_BASE, struct.pack("<II", q, 0))
        assert struct.unpack("<II", base) == (q, done)
    native.send([frame(GUEST, HOST)])
    native.flush()
    assert valed.qmp().port("vale1:v")["tx"]["dropped"] == {"down": 1}


def test_base_of_a_queue_that_never_ran(valed: Valed, native: Port) -> None:
    """A guest uses fewer queues than it set up: the others are asked for what they were given."""
    front = front_end(valed)
    front.post(SET_VRING_BASE, struct.pack("<II", 4, 77))
    base = front.ask(GET_VRING_BASE, struct.pack("<II", 4, 0))
    assert struct.unpack("<II", base) == (4, 77)


def test_rarp_announces_a_station(valed: Valed, native: Port) -> None:
    """SEND_RARP: everybody gets a RARP of the guest's, and frames for it go to its port."""
    third = valed.open("vale1:c")
    front = front_end(valed)
    assert front.ack(SEND_RARP, GUEST + bytes(2)) == 0
    (rarp,) = native.receive(1)
    assert rarp == frame(BROADCAST, GUEST)[:12] + bytes.fromhex("8035 0001 0800 0604 0003") + (
        GUEST + bytes(4) + GUEST + bytes(22)
    )
    native.send([frame(GUEST, HOST)])
    assert front.receive(1) == [frame(GUEST, HOST)]
    native.flush()
    assert third.drain() == [rarp]
    check_books(valed.qmp().ports())


def test_receivers_of_several_workers() -> None:
    """Four native senders on 4 workers fill one guest's queue while it is being read: each frame
    counted as delivered is read once, in its sender's order."""
    with Valed.run("--workers", "4", "--bridge-batch", "4") as valed:
        valed.qmp().execute("port-add", name="vale1:v", kind="vhost-user")
        front = front_end(valed)
        ports = [valed.open(f"vale1:p{i}") for i in range(4)]

        def blast(i: int) -> None:
            ports[i].send(numbered(GUEST, station(10 + i), 3000), batch=3)
            ports[i].flush()

        front.send([frame(BROADCAST, GUEST)])
        threads = [threading.Thread(target=blast, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        seen: dict[bytes, list[int]] = {}
        while any(thread.is_alive() for thread in threads) or front.used_index(0) != front.seen[0]:
            for data in front.receive((front.used_index(0) - front.seen[0]) & 0xFFFF):
                seen.setdefault(data[6:12], []).append(number(data))
        for numbers in seen.values():
            assert numbers == sorted(set(numbers))
        tx = valed.qmp().port("vale1:v")["tx"]
        assert tx["frames"] == sum(map(len, seen.values()))
        assert tx["frames"] + tx["dropped"].get("ring_full", 0) == 12000


# ----------------------------------------------------------------------------------- dirty logging


def test_writes_are_logged(valed: Valed, native: Port) -> None:
    """With a log, the pages of each received frame and of the used ring are marked."""
    front = front_end(valed, VERSION_1 | MRG_RXBUF | LOG_ALL)
    log = os.memfd_create("log")
    pages = (GPA + MEMORY) // 4096 + 1
    os.ftruncate(log, pages // 8 + 4096)
    front.post(SET_LOG_BASE, struct.pack("<QQ", pages // 8 + 1, 0), [log])
    front.reply(SET_LOG_BASE)
    native.send(numbered(BROADCAST, HOST, 3))
    front.receive(3)
    bits = os.pread(log, pages // 8 + 1, 0)
    dirty = {page - GPA // 4096 for page in range(8 * len(bits)) if bits[page // 8] >> page % 8 & 1}
    assert {0x2000 // 4096, front.buffer(0, 0) // 4096, front.buffer(0, 2) // 4096} <= dirty
    os.close(log)


def test_log_that_is_taken_away(valed: Valed, native: Port) -> None:
    """The front end truncates the log while valed writes to it: it loses its connection, and valed
    lives."""
    front = front_end(valed, VERSION_1 | LOG_ALL)
    log = os.memfd_create("log")
    os.ftruncate(log, 1 << 20)
    front.post(SET_LOG_BASE, struct.pack("<QQ", 1 << 20, 0), [log])
    front.reply(SET_LOG_BASE)
    os.ftruncate(log, 0)
    native.send([frame(BROADCAST, HOST)])
    assert front.hung_up()
    os.close(log)
    front.close()
    valed.clients.remove(front)
    talk(front_end(valed), native)


def test_memory_that_is_taken_away(valed: Valed, native: Port) -> None:
    front = front_end(valed)
    talk(front, native)
    front.mem.close()
    os.ftruncate(front.memfd, 0)
    front.kick(1)
    native.send(numbered(BROADCAST, HOST, 5))
    assert front.hung_up()
    front.close()
    valed.clients.remove(front)
    talk(front_end(valed), native)


# ----------------------------------------------------------------------------------------- hostile


def test_call_descriptor_must_be_an_eventfd(valed: Valed, native: Port) -> None:
    """A pipe that is full would hold a worker for ever."""
    reader, writer = os.pipe()
    for fd in (writer, native.mem_fd, native.sock.fileno()):
        front = FrontEnd(valed.rundir / "vale1:v")
        front.post(SET_VRING_CALL, struct.pack("<Q", 0), [fd])
        assert front.hung_up()
        front.close()
        eventually("it to be let go", lambda: not has_guest_memory(valed))
    os.close(reader)
    os.close(writer)
    talk(front_end(valed), native)


def test_kick_descriptor_must_be_an_eventfd(valed: Valed, native: Port) -> None:
    """epoll asks what lies behind it, and that could be anybody's file."""
    reader, writer = os.pipe()
    for q, fd in ((0, reader), (1, native.mem_fd), (1, native.sock.fileno())):
        front = FrontEnd(valed.rundir / "vale1:v")
        front.post(SET_VRING_KICK, struct.pack("<Q", q), [fd])
        assert front.hung_up()
        front.close()
        eventually("it to be let go", lambda: not has_guest_memory(valed))
    os.close(reader)
    os.close(writer)
    talk(front_end(valed), native)


def has_guest_memory(valed: Valed) -> bool:
    """Whether valed has not let go of a front end yet."""
    return "memfd:guest" in Path(f"/proc/{valed.pid}/maps").read_text()


def test_flood_of_messages_does_not_starve_others(valed: Valed, native: Port) -> None:
    front = front_end(valed)
    over = threading.Event()

    def flood() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                front.sock.send(struct.pack("<III", GET_FEATURES, 1, 0) * 1000)

    front.sock.settimeout(0.5)
    thread = threading.Thread(target=flood)
    thread.start()
    for i in range(20):
        valed.open(f"vale1:p{i}").close()
        valed.qmp().execute("query-version")
    over.set()
    thread.join()


@pytest.mark.parametrize(
    ("request_", "payload", "fds"),
    [
        (0, b"", 0),
        (999, b"", 0),
        (SET_FEATURES, b"", 0),
        (SET_FEATURES, b"\xff" * 8, 0),
        (SET_MEM_TABLE, struct.pack("<II", 0, 0), 0),
        (SET_MEM_TABLE, struct.pack("<II4Q", 1, 0, GPA, MEMORY, 0, 0), 0),
        (SET_MEM_TABLE, struct.pack("<II4Q", 1, 0, GPA, MEMORY + 1, 0, 0), 1),
        (SET_MEM_TABLE, struct.pack("<II4Q", 1, 0, 2**64 - 4096, MEMORY, 0, 0), 1),
        (SET_MEM_TABLE, struct.pack("<II4Q", 1, 0, GPA, MEMORY, 0, 2**64 - 4096), 1),
        (SET_MEM_TABLE, struct.pack("<II4Q", 8, 0, GPA, MEMORY, 0, 0), 8),
        (SET_LOG_BASE, struct.pack("<QQ", 0, 0), 1),
        (SET_LOG_BASE, struct.pack("<QQ", 2**63, 2**63), 1),
        (SET_VRING_ENABLE, struct.pack("<II", 99, 1), 0),
        (SET_VRING_ENABLE, struct.pack("<II", 0, 2), 0),
        (SET_VRING_CALL, struct.pack("<Q", 0), 0),
        (SET_VRING_CALL, struct.pack("<Q", 99), 1),
        (GET_VRING_BASE, struct.pack("<II", 2**31, 0), 0),
        (1, b"x" * 600, 0),
    ],
)
def test_wrong_messages_end_the_connection(
    valed: Valed, native: Port, request_: int, payload: bytes, fds: int
) -> None:
    start = valed.fds()
    with FrontEnd(valed.rundir / "vale1:v") as front:
        front.post(request_, payload, [front.memfd] * fds)
        assert front.hung_up()
    eventually("descriptors to be closed", lambda: valed.fds() <= start)
    talk(front_end(valed), native)


def test_random_rings(valed: Valed, native: Port) -> None:
    """Random descriptors, heads and indexes in both queues; then the next front end is served."""
    dice = random.Random(4)
    for _ in range(20):
        with FrontEnd(valed.rundir / "vale1:v") as front:
            for _ in range(50):
                for _ in range(20):
                    q, i = dice.randrange(2), dice.randrange(SIZE)
                    addr = dice.choice([GPA, GPA + MEMORY - 10, 0, 2**64 - 1, GPA + 100])
                    length = dice.choice([0, 1, 12, 26, 2048, 65535, 2**32 - 1])
                    front.set_desc(q, i, addr, length, dice.randrange(8), dice.randrange(SIZE + 2))
                    front.make_available(q, dice.choice([i, dice.randrange(65536)]))
                if dice.random() < 0.1:
                    front.avail[dice.randrange(2)] = dice.randrange(65536)
                front.kick(1)
                native.send(numbered(BROADCAST, HOST, 5))
                native.drain()
            native.flush()
        eventually("it to be let go", lambda: not has_guest_memory(valed))
        native.drain()  # what came of the last kick
    talk(front_end(valed), native)
    native.flush()
    check_books(valed.qmp().ports())


def test_garbage_on_the_socket(valed: Valed, native: Port) -> None:
    dice = random.Random(5)
    for _ in range(50):
        with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
            sock.connect(str(valed.rundir / "vale1:v"))
            sock.send(dice.randbytes(dice.randrange(1, 300)))
    talk(front_end(valed), native)
