# SPDX-License-Identifier: BSD-2-Clause
"""Clients that are killed at any moment leave nothing behind.

Six clients at a time, native ones and vhost-user front ends, that attach, send to everybody, read
now and then; one after the other is killed at random and replaced. In the end valed has no port,
descriptor or mapping more than before, and no more memory. VALE_KILLS says how many are killed
(`make test-all`: 1000).
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.native import BROADCAST, Port, number, numbered, station
from lib.qmp import Qmp
from lib.valed import Valed, check_books, eventually, sanitizer
from lib.vhost import FrontEnd

pytestmark = pytest.mark.blackbox

KILLS = int(os.environ.get("VALE_KILLS", "100"))
CLIENTS = 6
VHOST_PORTS = 3
MARGIN_KB = 256


def native_client(rundir: Path, n: int) -> None:
    """Sends bursts, with a ring that others fill; now and then reads it."""
    dice = random.Random(n)
    port = Port.open(rundir, f"vale1:n{n}", tx_rings=dice.choice([1, 2]), tx_slots=256)
    while True:
        port.send(numbered(BROADCAST, station(n), dice.randrange(1, 300)))
        if dice.random() < 0.3:
            port.drain()


def front_end(rundir: Path, n: int) -> None:
    """Connects, which fails while a dead one is still let go, and sends."""
    dice = random.Random(n)
    front = FrontEnd(rundir / f"vale1:v{n % VHOST_PORTS}")
    while True:
        front.send(numbered(BROADCAST, station(n), dice.randrange(1, 200)))


def start(rundir: Path, n: int) -> int:
    child = os.fork()
    if child == 0:
        with contextlib.suppress(Exception):
            (front_end if n % 2 else native_client)(rundir, n)
        signal.pause()  # to be killed all the same
    return child


class Crowd:
    """Clients, of which one dies at a time."""

    def __init__(self, rundir: Path) -> None:
        self.rundir, self.born = rundir, 0
        self.alive = [self.new() for _ in range(CLIENTS)]
        self.dice = random.Random(8)

    def new(self) -> int:
        self.born += 1
        return start(self.rundir, self.born)

    def kill(self, n: int) -> None:
        for _ in range(n):
            time.sleep(self.dice.random() * 0.02)  # any moment of their lives
            i = self.dice.randrange(CLIENTS)
            self.end(self.alive[i])
            self.alive[i] = self.new()

    @staticmethod
    def end(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def end_all(self) -> None:
        while self.alive:
            self.end(self.alive.pop())


@contextlib.contextmanager
def crowd(rundir: Path) -> Iterator[Crowd]:
    clients = Crowd(rundir)
    try:
        yield clients
    finally:
        clients.end_all()


def mappings(valed: Valed) -> list[str]:
    """Memory that clients have, or had: by name, without the addresses."""
    lines = Path(f"/proc/{valed.pid}/maps").read_text().splitlines()
    return sorted(li.split(maxsplit=5)[5] for li in lines if "memfd:" in li)


def is_quiet(valed: Valed, qmp: Qmp, ports: set[str]) -> bool:
    """Only the ports from before are there, and no front end in one of them."""
    return set(qmp.ports()) == ports and not mappings(valed)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_clients_leave_nothing(workers: str) -> None:
    with Valed.run("--workers", workers) as valed:
        qmp = valed.qmp()
        for i in range(VHOST_PORTS):
            qmp.execute("port-add", name=f"vale1:v{i}", kind="vhost-user")
        ports, fds = set(qmp.ports()), valed.fds()
        with crowd(valed.rundir) as clients:  # the heap takes what it needs
            clients.kill(KILLS // 5)
        eventually("the first to go", lambda: is_quiet(valed, qmp, ports))
        memory = valed.status("RssAnon")
        with crowd(valed.rundir) as clients:
            clients.kill(KILLS)
        eventually("all to go", lambda: is_quiet(valed, qmp, ports))
        eventually("their descriptors to be closed", lambda: valed.fds() == fds)
        check_books(qmp.ports())
        assert sum(p["rx"]["frames"] for p in qmp.ports().values()) > 0
        if not sanitizer():  # those keep freed memory for a while
            grown = valed.status("RssAnon") - memory
            print(f"{KILLS} kills: RssAnon grew by {grown} kB")
            assert grown <= MARGIN_KB
        still_forwards(valed)


def still_forwards(valed: Valed) -> None:
    a, b = valed.open("vale1:a"), valed.open("vale1:b")
    a.send(numbered(BROADCAST, station(1), 100))
    assert [number(f) for f in b.receive(100)] == list(range(100))
