# SPDX-License-Identifier: BSD-2-Clause
"""Promises of docs/security.md that no other file tests, and hostile clients all at once.

    vale1: a, b       honest
    vale2: everybody who is not, on the same worker
"""

import contextlib
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from lib import native
from lib.native import (
    BROADCAST,
    REGISTER,
    Port,
    frame,
    message,
    numbered,
    post,
    register_body,
    station,
)
from lib.valed import Valed, check_books, eventually
from lib.vhost import FrontEnd

pytestmark = pytest.mark.blackbox

A, B = station(1), station(2)


def test_ports_have_no_memory_in_common(valed: Valed) -> None:
    """Each region is a file of its own, and what one port writes no other finds in its memory."""
    ports = [valed.open(f"vale1:p{i}", tx_slots=64, rx_slots=64) for i in range(3)]
    assert len({os.fstat(port.mem_fd).st_ino for port in ports}) == 3
    secret = bytes(range(200, 232))
    at = ports[0].tx[0].buffer(5)
    ports[0].mem[at : at + len(secret)] = secret
    for port in ports[1:]:
        assert port.mem.find(secret) == -1


@pytest.mark.parametrize("size", [14, 17, 60, 63, 64, 65, 100, 1514, 2111])
def test_no_byte_beyond_the_frame(valed: Valed, size: int) -> None:
    """Neither of the sender's buffer, which is full of something, nor of anything else."""
    a, b = valed.open("vale1:a"), valed.open("vale1:b")
    tx, rx = a.tx[0], b.rx[0]
    sent = frame(BROADCAST, A, bytes(size))[:size]
    at = tx.buffer(tx.slot(tx.head)[0])
    a.mem[at : at + tx.buf_size] = b"\xee" * tx.buf_size
    to = rx.buffer(rx.slot(rx.head)[0])
    b.mem[to : to + rx.buf_size] = b"\x11" * rx.buf_size
    a.send([sent])
    assert b.receive(1) == [sent]
    assert b.mem[to + size : to + rx.buf_size] == b"\x11" * (rx.buf_size - size)


def test_locked_address_cannot_be_claimed(valed: Valed) -> None:
    """Frames with it from another port are dropped, and it is still reached where it is."""
    owner, thief, other = (valed.open(f"vale1:{name}") for name in ("owner", "thief", "other"))
    qmp = valed.qmp()
    qmp.execute("fdb-add", port="vale1:owner", mac=A.hex(":"))
    thief.send(numbered(BROADCAST, A, 10))
    thief.flush()
    rx = qmp.port("vale1:thief")["rx"]
    assert (rx["frames"], rx["dropped"]) == (10, {"mac_locked": 10})
    assert (owner.drain(), other.drain()) == ([], [])
    sent = numbered(A, B, 10)
    other.send(sent)
    assert owner.receive(10) == sent
    assert thief.drain() == []
    check_books(qmp.ports())


# ------------------------------------------------------------------------------ all at once


@contextlib.contextmanager
def for_ever(act: Callable[[], object], nobody: bool = False) -> Iterator[None]:
    """A process that does it again and again, whatever comes of it; as another user."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        if nobody and os.geteuid() == 0:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
        while os.getppid() == parent:  # it ends when the test is killed
            with contextlib.suppress(Exception):
                act()
        os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_all_of_them_at_once() -> None:
    dice = random.Random(7)
    with Valed.run("--ports-per-uid", "40") as valed, contextlib.ExitStack() as stack:
        rundir = valed.rundir
        qmp = valed.qmp()
        for name in "xyz":
            qmp.execute("port-add", name=f"vale2:{name}", kind="vhost-user")
        a, b = valed.open("vale1:a"), valed.open("vale1:b")
        b.send([frame(BROADCAST, B)])
        b.flush()
        a.drain()

        def scribble() -> None:
            with Port.open(rundir, "vale2:liar", tx_slots=64, rx_slots=64) as liar:
                for _ in range(200):
                    for _ in range(100):
                        liar.words[dice.randrange(2000)] = dice.choice([0, 1, 60, 63, 2**32 - 1])
                    with contextlib.suppress(BlockingIOError):
                        liar.kick()

        def attach_and_die() -> None:
            child = os.fork()
            if child == 0:
                try:
                    Port.open(rundir, f"vale2:d{os.getpid() % 5}").send(numbered(BROADCAST, A, 50))
                finally:
                    os._exit(0)
            os.waitpid(child, 0)

        def read_no_answer() -> None:
            data = message(REGISTER, "vale2:unread", register_body(tx_slots=64, flags=0))
            held: list[socket.socket] = []
            for _ in range(50):
                held.append(native.connect(rundir))
                held.append(post(held[-1], data))

        def take_all_ports() -> None:
            held = []
            with contextlib.suppress(OSError):
                for i in range(100):
                    held.append(Port.open(rundir, f"vale2:t{i}", tx_slots=64, rx_slots=64))
            for port in held:
                port.close()

        def take_memory_away() -> None:
            with FrontEnd(rundir / "vale2:x") as front:
                front.offer(1, 0, 100)
                os.ftruncate(front.memfd, 0)
                front.kick(1)
                front.hung_up()

        def block_calls() -> None:
            with FrontEnd(rundir / "vale2:y") as front:
                for i in range(200):
                    fd = front.calls[i % 2]
                    os.set_blocking(fd, False)
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_write(fd, 2**64 - 2)
                    os.set_blocking(fd, True)
                    front.offer(1, i, 100)
                    front.kick(1)

        def talk_nonsense() -> None:
            with FrontEnd(rundir / "vale2:z") as front:
                for _ in range(50):
                    front.sock.send(dice.randbytes(dice.randrange(1, 300)))

        rundir.parent.chmod(0o755)
        rundir.chmod(0o755)
        (rundir / "netmap.sock").chmod(0o666)  # nobody may come in
        for act in (scribble, attach_and_die, read_no_answer, take_all_ports):
            stack.enter_context(for_ever(act, nobody=True))
        for act in (take_memory_away, block_calls, talk_nonsense):
            stack.enter_context(for_ever(act))
        for _ in range(100):
            sent = numbered(B, A, 100)
            a.send(sent)
            assert b.receive(100) == sent
            signal.sigtimedwait([], 0.02)
        assert "vale1:a" in valed.qmp().ports()
        stack.close()
        for name in "xyz":
            if f"vale2:{name}" in valed.qmp().ports():
                valed.qmp().execute("port-del", name=f"vale2:{name}")
        eventually("all go", lambda: set(valed.qmp().ports()) == {"vale1:a", "vale1:b"})
        a.send(numbered(B, A, 10))
        assert len(b.receive(10)) == 10
        check_books(valed.qmp().ports())
        lines = valed.errors().splitlines()
        who = os.geteuid() or 65534  # an ordinary user cannot become nobody
        assert all(line.startswith(f"valed: uid {who} is refused more") for line in lines), lines
        rundir.chmod(0o700)
        valed.log.write_text("")
