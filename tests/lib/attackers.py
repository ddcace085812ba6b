# SPDX-License-Identifier: BSD-2-Clause
"""Hostile clients of one valed. Each is a function that attacks for ever, in a process of its own.

    with attack(rundir, ATTACKERS): ...      # all of them, until the block ends

Their processes have the lowest priority: what is tested is the switch, not who gets the CPU.
"""

import contextlib
import errno
import mmap
import os
import random
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lib.native import (
    BROADCAST,
    REGISTER,
    RING_CTL,
    AttachError,
    Port,
    connect,
    frame,
    message,
    numbered,
    post,
    register,
    register_body,
    station,
)
from lib.qmp import RawQmp
from lib.vhost import GPA, MEMORY, SIZE, FrontEnd

SWITCH = "vale1"
INDIRECT = 4
TABLE = 32768  # descriptors of the longest indirect table
VHOST_PORTS = ("thief", "chains", "deaf", "plug")  # to be added before


def scribbler(rundir: Path) -> None:
    """Random values over every shared field of a native port, kicks in between."""
    dice = random.Random(1)
    port = Port.open(rundir, f"{SWITCH}:scribbler", tx_rings=2, rx_rings=2, tx_slots=64)
    end = port.tx[0].buffer(2) // 4
    likely = [0, 1, 2, 63, 64, 65, 100, 1023, 1024, 2**31, 2**32 - 1, 60, 0x200000 | 60, 2112]
    while True:
        for _ in range(200):
            word = dice.randrange(2**32) if dice.random() < 0.3 else dice.choice(likely)
            port.words[dice.randrange(end)] = word
        for ring in range(4):
            at = (RING_CTL + RING_CTL * ring) // 4
            port.words[at] = dice.randrange(70)
            port.words[at + 2] = dice.randrange(3)
        with contextlib.suppress(BlockingIOError):
            port.kick()


def thief(rundir: Path) -> None:
    """A front end that takes its memory away under traffic: cut short, or punched full of holes."""
    dice = random.Random(2)
    while True:
        with (
            contextlib.suppress(OSError, ValueError, AssertionError),
            FrontEnd(rundir / f"{SWITCH}:thief") as front,
        ):
            for i in range(50):
                front.offer(1, i, 60)
                front.kick(1)
            if dice.random() < 0.5:
                os.ftruncate(front.memfd, dice.choice([0, 4096, MEMORY // 2]))
            else:
                for _ in range(20):
                    punch(front.memfd, dice.randrange(MEMORY), 4096)
            front.kick(1)
            front.sock.recv(1)


def punch(fd: int, at: int, length: int) -> None:
    """fallocate(2) with FALLOC_FL_PUNCH_HOLE, which Python has no name for."""
    page = at & ~(mmap.PAGESIZE - 1)
    with mmap.mmap(fd, MEMORY) as memory:
        memory.madvise(mmap.MADV_REMOVE, page, length)


def chains(rundir: Path) -> None:
    """Every entry of the ring leads to a table as long as can be, of descriptors without a byte."""
    with FrontEnd(rundir / f"{SWITCH}:chains") as front:
        memory = TABLE * 16
        table = os.memfd_create("table")
        os.ftruncate(table, memory)
        entries = b"".join(
            struct.pack("<QIHH", GPA, 0, 1, i + 1 & 0xFFFF) for i in range(TABLE - 1)
        )
        os.pwrite(table, entries + struct.pack("<QIHH", GPA, 60, 0, 0), 0)
        region = struct.pack("<Q4Q", 0, 0x4000_0000, memory, 0x7E00_0000_0000, 0)
        front.post(37, region, [table])  # ADD_MEM_REG
        while True:
            for i in range(SIZE):
                front.set_desc(1, i, 0x4000_0000, memory, INDIRECT)
                front.make_available(1, i)
            front.kick(1)
            with contextlib.suppress(AssertionError):
                front._wait_used(1, front.avail[1])


def deaf(rundir: Path) -> None:
    """A guest that sends, never takes back what was used, and never gives a buffer."""
    front = FrontEnd(rundir / f"{SWITCH}:deaf")
    data = frame(BROADCAST, station(0xDEAF))
    while True:
        at = front.buffer(1, 0)
        front.mem[at : at + 12 + len(data)] = bytes(12) + data
        front.offer(1, 0, 12 + len(data))
        front.kick(1)
        time.sleep(0.001)


def silent(rundir: Path) -> None:
    """REGISTER after REGISTER whose answers, with descriptors, nobody reads."""
    while True:
        kept: list[socket.socket] = []
        with contextlib.suppress(OSError):
            for i in range(200):
                sock = connect(rundir)
                kept.append(sock)
                kept.append(post(sock, message(REGISTER, f"vale3:s{i}", register_body())))
        time.sleep(0.2)
        for sock in kept:
            sock.close()


def hoarder(rundir: Path) -> None:
    """Ports until there are no more, and more again when somebody else has closed one."""
    kept = []
    for i in range(10**9):
        sock = connect(rundir)
        answer = register(sock, f"{SWITCH}:h{i % 100000}")
        answer.close()
        if answer.error:
            sock.close()
            time.sleep(0.05)
        else:
            kept.append(sock)


def mumbler(rundir: Path) -> None:
    """A QMP client that asks and asks and never reads."""
    while True:
        with contextlib.suppress(OSError), RawQmp(rundir / "qmp.sock") as client:
            client.send(b'{"execute": "qmp_capabilities"}\n')
            while True:
                client.send(b'{"execute": "query-ports"}\n' * 4)
                time.sleep(0.01)


def mayfly(rundir: Path) -> None:
    """Attaches, sends, dies."""
    while True:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(OSError):
                port = Port.open(rundir, f"{SWITCH}:mayfly", tx_slots=64, rx_slots=64)
                port.send(numbered(BROADCAST, station(0xF1), 20))
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)


def plug(rundir: Path) -> None:
    """A front end whose eventfds are full, and block who writes to them: O_NONBLOCK is shared."""
    while True:
        with (
            contextlib.suppress(OSError, AssertionError),
            FrontEnd(rundir / f"{SWITCH}:plug") as front,
        ):
            for fd in front.calls:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
                os.eventfd_write(fd, 2**64 - 2)
                os.set_blocking(fd, True)
            while True:
                front.offer(1, 0, 60)
                front.kick(1)
                time.sleep(0.01)


Attacker = Callable[[Path], None]
# Without plug, for as long as a worker that is held in write() is not rescued.
ATTACKERS: tuple[Attacker, ...] = (
    *(scribbler, thief, chains, deaf),
    *(silent, hoarder, mumbler, mayfly),
)


def run(attacker: Attacker, rundir: Path) -> None:
    """The life of an attacker's process. Whatever the switch does to it, it comes again."""
    os.nice(19)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    while True:
        try:
            attacker(rundir)
        except (OSError, AssertionError, AttachError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOENT:
                os._exit(0)
        time.sleep(0.01)


@contextlib.contextmanager
def attack(rundir: Path, attackers: Iterable[Attacker]) -> Iterator[None]:
    """All of them at once for the length of a block."""
    children = []
    for attacker in attackers:
        child = os.fork()
        if child == 0:
            try:
                os.setpgid(0, 0)  # and what it forks
                run(attacker, rundir)
            finally:
                sys.stdout.flush()
                os._exit(1)
        with contextlib.suppress(OSError):
            os.setpgid(child, child)
        children.append(child)
    try:
        yield
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
