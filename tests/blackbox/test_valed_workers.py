# SPDX-License-Identifier: BSD-2-Clause
"""Several workers at once: books that balance to the frame, order within each stream, none twice.

    p0 --\\                       /-- p0
    p1 ---+-- worker 0 | 1 | 2 --+--- p1     rings are dealt to workers, and every
    ...  /                        \\-- ...     receiver may be filled by all of them
"""

import os
import random
import signal
import struct
import threading
from collections import Counter

import pytest

from lib.native import BROADCAST, MOREFRAG, Deadline, Port, frame, number, numbered, station
from lib.valed import Valed, check_books, eventually

pytestmark = pytest.mark.blackbox


def make_known(ports: list[Port]) -> None:
    """Everybody's station is learned, and what was heard is read."""
    for i, port in enumerate(ports):
        port.send([frame(BROADCAST, station(i))])
        port.flush()
    for port in ports:
        port.drain()


def totals(ports: dict[str, dict[str, dict[str, int]]], way: str, field: str) -> int:
    return sum(port[way][field] for port in ports.values())


def test_rings_are_dealt_evenly() -> None:
    with Valed.run("--workers", "3") as valed:
        valed.open("vale1:a", tx_rings=4)
        valed.open("vale1:b")
        valed.open("vale2:a")
        assert [w["rings"] for w in valed.qmp().execute("query-workers")] == [2, 2, 2]


@pytest.mark.parametrize("workers", ["1", "2", "4"])
def test_many_to_many_is_exact(workers: str) -> None:
    """8 ports, each sends 2000 numbered frames to each other one, as room allows; every receiver
    gets every stream complete and in order."""
    n, rounds, burst = 8, 40, 10
    with Valed.run("--workers", workers) as valed:
        ports = [valed.open(f"vale1:p{i}") for i in range(n)]
        make_known(ports)
        start = valed.qmp().ports()
        got: list[dict[bytes, list[int]]] = [{} for _ in ports]
        for lap in range(rounds):
            for i, port in enumerate(ports):
                streams = [
                    numbered(station(j), station(i), burst, first=burst * lap)
                    for j in range(n)
                    if j != i
                ]
                port.send([f for burst_of in zip(*streams, strict=True) for f in burst_of])
            for j, port in enumerate(ports):
                for data in port.receive(burst * (n - 1)):
                    got[j].setdefault(data[6:12], []).append(number(data))
        for port in ports:
            port.flush()
            assert port.drain() == []
        for j in range(n):
            others = {station(i) for i in range(n)} - {station(j)}
            assert got[j] == {mac: list(range(rounds * burst)) for mac in others}
        end = valed.qmp().ports()
        check_books(end)
        expected = n * (n - 1) * rounds * burst
        for way, field in (("rx", "frames"), ("rx", "unicast"), ("tx", "frames")):
            assert totals(end, way, field) - totals(start, way, field) == expected, (way, field)
        assert totals(end, "rx", "flooded") == totals(start, "rx", "flooded")


def test_senders_that_crowd_one_receiver_lose_only_what_is_counted() -> None:
    """6 threads on 3 workers fill one small ring faster than it is read, for a while: frames read
    = frames counted, each stream in order, offered = read + ring_full."""
    senders, frames = 6, 4000
    with Valed.run("--workers", "3", "--bridge-batch", "8") as valed:
        sink = valed.open("vale1:sink", rx_slots=256)
        ports = [valed.open(f"vale1:p{i}", tx_slots=128) for i in range(senders)]
        make_known([sink, *ports])
        qmp = valed.qmp()
        start = qmp.port("vale1:sink")["tx"]["frames"]

        def blast(i: int) -> None:
            ports[i].send(numbered(station(0), station(i + 1), frames), batch=5)
            ports[i].flush()

        threads = [threading.Thread(target=blast, args=(i,)) for i in range(senders)]
        for thread in threads:
            thread.start()
        seen: dict[bytes, list[int]] = {}
        while any(thread.is_alive() for thread in threads):
            for data in sink.drain():
                seen.setdefault(data[6:12], []).append(number(data))
        for thread in threads:
            thread.join()
        for data in sink.drain():
            seen.setdefault(data[6:12], []).append(number(data))
        for numbers in seen.values():
            assert numbers == sorted(set(numbers))
        read = sum(map(len, seen.values()))
        tx = qmp.port("vale1:sink")["tx"]
        assert tx["frames"] - start == read
        assert tx["frames"] - start + tx["dropped"].get("ring_full", 0) == senders * frames
        check_books(qmp.ports())


def test_worker_that_is_interrupted_in_a_copy_holds_back_the_others() -> None:
    """4 workers on one CPU, batches of 2 frames: one that is interrupted while it copies lets the
    others fill hundreds of runs behind its own. Nothing may be published before it is there."""
    with Valed.run("--workers", "4", "--cpus", "0", "--bridge-batch", "2") as valed:
        sink = valed.open("vale1:sink", rx_slots=4096)
        ports = [valed.open(f"vale1:p{i}") for i in range(4)]
        make_known([sink, *ports])
        for lap in range(60):
            for i, port in enumerate(ports):
                for data in numbered(station(0), station(i + 1), 1000, 1000 * lap, 2112):
                    port.tx[0].put(data)
            for port in ports:
                port.tx[0].publish()
            seen: dict[bytes, list[int]] = {}
            for data in sink.receive(4000):
                seen.setdefault(data[6:12], []).append(number(data))
            wanted = list(range(1000 * lap, 1000 * lap + 1000))
            assert seen == {station(i + 1): wanted for i in range(4)}
            for port in ports:
                port.flush()
        assert valed.qmp().port("vale1:sink")["tx"]["dropped"] == {}


def test_random_run_balances() -> None:
    """2000 random bursts: 12 ports on 2 switches, all kinds of destination, all lengths, pieces,
    bad slots, ports that come and go, receivers that read when they like."""
    dice = random.Random(7)
    with Valed.run("--workers", "2") as valed:
        qmp = valed.qmp()
        ports: dict[str, Port] = {}

        def come(name: str) -> None:
            ports[name] = Port.open(
                valed.rundir,
                name,
                tx_rings=dice.randrange(1, 4),
                rx_rings=dice.randrange(1, 4),
                tx_slots=dice.choice([64, 256, 1024]),
                rx_slots=dice.choice([64, 256, 1024]),
            )

        names = [f"vale{s}:p{i}" for s in (1, 2) for i in range(6)]
        for name in names:
            come(name)
        sent: Counter[str] = Counter()
        for lap in range(2000):
            name = dice.choice(names)
            port = ports[name]
            if lap % 100 == 99:
                port.close()
                come(name)
                sent[name] = 0
                continue
            ring = dice.randrange(port.tx_rings)
            tx = port.tx[ring]
            for _ in range(dice.randrange(1, 30)):
                length = dice.choice([0, 13, 14, 60, 61, 1514, 2112, 2113, 9000])
                dst = dice.choice([BROADCAST, station(dice.randrange(14)), b"\x01" * 6])
                data = frame(dst, station(dice.randrange(12)), dice.randbytes(40), length)[:length]
                if tx.room < 16:
                    break
                tx.put(data, dice.choice([[], [], [1], [7, 7], [0]]))
                if dice.random() < 0.02:
                    last = tx.ahead(tx.head, -1)
                    tx.set_slot(last, tx.slot(last)[0], 2113, 0)
                sent[name] += 1
            tx.publish()
            if dice.random() < 0.5:
                ports[dice.choice(names)].drain()
        for port in ports.values():
            port.flush()
        counted = qmp.ports()
        check_books(counted)
        assert {n: counted[n]["rx"]["frames"] for n in names} == {n: sent[n] for n in names}
        assert totals(counted, "rx", "unicast") > 100
        assert totals(counted, "tx", "frames") > 1000
        for port in ports.values():
            port.close()


def test_ports_come_and_go_under_traffic() -> None:
    """Two ports talk on 2 workers while others open and close 300 times, and shout meanwhile."""
    with Valed.run("--workers", "2") as valed:
        a, b = valed.open("vale1:a"), valed.open("vale1:b")
        make_known([a, b])
        over = threading.Event()

        def crowd(name: str) -> None:
            for _ in range(150):
                with Port.open(valed.rundir, name, tx_slots=64, rx_slots=64) as port:
                    port.send(numbered(BROADCAST, station(9), 3))
            over.set()

        threads = [threading.Thread(target=crowd, args=(f"vale1:x{i}",)) for i in range(2)]
        for thread in threads:
            thread.start()
        lap = 0
        while not over.is_set():
            a.send(numbered(station(1), station(0), 100, first=100 * lap))
            got = [f for f in b.receive_until_last(100 * lap + 99) if f[:6] == station(1)]
            assert [number(f) for f in got] == list(range(100 * lap, 100 * lap + 100))
            a.drain()
            lap += 1
        for thread in threads:
            thread.join()
        eventually("all to go", lambda: len(valed.qmp().ports()) == 2)
        a.flush()
        check_books(valed.qmp().ports())


def test_liars_on_two_workers() -> None:
    """Two processes scribble over their ports' slots and heads; both workers copy from and to the
    same spoiled buffers; an honest pair on another switch talks on and loses nothing."""
    with Valed.run("--workers", "2") as valed:
        a, b = valed.open("vale2:a"), valed.open("vale2:b")
        liars = [valed.open(f"vale1:l{i}", tx_rings=2, tx_slots=64, rx_slots=64) for i in range(2)]
        make_known([a, b])
        children = []
        for seed, liar in enumerate(liars):
            child = os.fork()
            if child == 0:
                scribble(liar, seed)
            children.append(child)
        try:
            for lap in range(100):
                a.send(numbered(station(1), station(0), 200, first=200 * lap))
                got = [number(f) for f in b.receive(200)]
                assert got == list(range(200 * lap, 200 * lap + 200))
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        assert all(valed.qmp().port(f"vale1:l{i}")["rx"]["frames"] > 0 for i in range(2))


def scribble(liar: Port, seed: int) -> None:
    """Never returns."""
    dice = random.Random(seed)
    rings = [*liar.tx, *liar.rx]
    for i in range(2, 40):
        liar.mem[liar.tx[0].buffer(i)] = 0xFF
    while True:
        for ring in rings:
            for i in range(64):
                flags = MOREFRAG if dice.random() < 0.2 else 0
                ring.set_slot(i, dice.randrange(40), dice.choice([13, 60, 2112, 2113]), flags)
            liar.words[ring.ctl] = dice.randrange(66)
        os.write(liar._kick, struct.pack("<Q", 1))


def test_unread_calls_do_not_stop_a_worker(valed: Valed) -> None:
    """A client that arms again and again and never reads its pipe: once it is full, no call gets
    through, and nobody waits for it."""
    a, b = valed.open("vale1:a"), valed.open("vale1:b")
    deadline = Deadline()
    for i in range(70000):
        b.rx[0].arm()
        a.tx[0].put(frame(BROADCAST, station(1)))
        a.tx[0].publish()
        if i % 200 == 0:
            deadline.left("70000 frames")
            a.wait_room(0, 1023)
            b.drain()
    a.flush()
    port = valed.qmp().port("vale1:b")
    assert port["tx"]["offered"] == 70000
