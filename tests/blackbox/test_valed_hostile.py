# SPDX-License-Identifier: BSD-2-Clause
"""A port that lies, beside two that do not.

    liar ----------+
                   |
    honest one ----+--- valed
    honest two ----+

Whatever the liar stores in its memory, valed lives, its counters say why frames were dropped, and
the honest pair loses nothing. Sanitizer builds of valed run these too.
"""

import contextlib
import os
import random
import signal
import struct

import pytest

from lib.native import (
    BROADCAST,
    INDIRECT,
    MOREFRAG,
    RING_CTL,
    Port,
    frame,
    number,
    numbered,
    station,
)
from lib.valed import Valed, check_books, eventually

pytestmark = pytest.mark.blackbox

LIAR, ONE, TWO = station(0xBAD), station(1), station(2)


@pytest.fixture
def liar(valed: Valed) -> Port:
    return valed.open("vale1:liar")


@pytest.fixture
def pair(valed: Valed) -> tuple[Port, Port]:
    one, two = valed.open("vale1:one"), valed.open("vale1:two")
    for port, mac in ((one, ONE), (two, TWO)):
        port.send([frame(BROADCAST, mac)])
        port.flush()
    one.drain()
    two.drain()
    return one, two


def honest_traffic(pair: tuple[Port, Port], n: int = 500) -> None:
    """n known unicast frames from one to two arrive, in order and whole."""
    one, two = pair
    two.drain()
    sent = numbered(TWO, ONE, n)
    one.send(sent)
    got = [f for f in two.receive_until(number, n) if f[:6] == TWO]
    assert got == sent
    one.flush()


def rx_dropped(valed: Valed) -> dict[str, int]:
    dropped: dict[str, int] = valed.qmp().port("vale1:liar")["rx"]["dropped"]
    return dropped


# ---------------------------------------------------------------------------------- bad TX slots


def publish_slots(port: Port, slots: list[tuple[int, int, int]]) -> None:
    """Fill TX slots from head on with (buf_idx, len, flags); buffers hold broadcast frames."""
    tx = port.tx[0]
    for i, (buf_idx, length, flags) in enumerate(slots):
        if 2 <= buf_idx < port.buf_count:
            at = tx.buffer(buf_idx)
            port.mem[at : at + 14] = BROADCAST + LIAR + b"\x88\xb5"
        tx.set_slot(tx.ahead(tx.head, i), buf_idx, length, flags)
    tx.head = tx.ahead(tx.head, len(slots))
    tx.publish()
    port.flush()


GOOD = (2, 60, 0)


@pytest.mark.parametrize(
    ("slots", "dropped", "passed"),
    [
        ([(2, 0, 0)], {"short": 1}, 0),
        ([(2, 13, 0)], {"short": 1}, 0),
        ([(2, 14, 0)], {}, 1),
        ([(2, 5, MOREFRAG), (3, 5, 0)], {"short": 1}, 0),
        ([(0, 60, 0), (1, 60, 0), GOOD], {"bad_slot": 2}, 1),
        ([(2**32 - 1, 60, 0), GOOD], {"bad_slot": 1}, 1),
        ([(0x7FFFFFFF, 60, 0), (0x80000000, 60, 0)], {"bad_slot": 2}, 0),
        ([(2, 2113, 0), (2, 65535, 0), GOOD], {"bad_slot": 2}, 1),
        ([(2, 60, INDIRECT), GOOD], {"bad_slot": 1}, 1),
        ([(2, 60, MOREFRAG), (0, 60, MOREFRAG), (3, 60, 0), GOOD], {"bad_slot": 1}, 1),
        ([(2, 60, MOREFRAG)], {"truncated": 1}, 0),
        ([GOOD, (2, 60, MOREFRAG), (3, 60, MOREFRAG)], {"truncated": 1}, 1),
        ([(2, 20, MOREFRAG)] * 63 + [GOOD], {}, 1),
        ([(2, 20, MOREFRAG)] * 64 + [GOOD], {"too_long": 1}, 0),
        ([(2, 2112, MOREFRAG)] * 31 + [(2, 64, 0)], {"too_long": 1}, 0),  # 65536 bytes
        ([(2, 2112, MOREFRAG)] * 31 + [(2, 63, 0)], {}, 1),  # 65535 bytes
        ([(2, 2112, MOREFRAG)] * 1000 + [GOOD], {"too_long": 1}, 0),
        ([(2, 60, MOREFRAG)] * 1000, {"truncated": 1}, 0),
        ([(2, 0, MOREFRAG)] * 500 + [GOOD, GOOD], {"too_long": 1}, 1),
    ],
)
def test_bad_slots_are_dropped_with_their_reason(
    valed: Valed,
    liar: Port,
    pair: tuple[Port, Port],
    slots: list[tuple[int, int, int]],
    dropped: dict[str, int],
    passed: int,
) -> None:
    pair[0].drain()
    publish_slots(liar, slots)
    assert rx_dropped(valed) == dropped
    assert len(pair[1].receive(passed)) == passed
    rx = valed.qmp().port("vale1:liar")["rx"]
    assert (rx["frames"], rx["flooded"]) == (sum(dropped.values()) + passed, passed)
    honest_traffic(pair)
    check_books(valed.qmp().ports())


def test_buffers_used_twice_are_copied_twice(liar: Port, pair: tuple[Port, Port]) -> None:
    """All slots point at one buffer: a silly client, not a dangerous one."""
    publish_slots(liar, [(7, 100, 0)] * 500)
    assert len(set(pair[1].receive(500))) == 1


def test_last_buffer_is_usable_and_the_next_is_not(valed: Valed, liar: Port) -> None:
    publish_slots(liar, [(liar.buf_count - 1, 2112, 0), (liar.buf_count, 60, 0)])
    assert rx_dropped(valed) == {"bad_slot": 1}
    assert valed.qmp().port("vale1:liar")["rx"]["bytes"] == 2112


# ------------------------------------------------------------------------------------- bad heads


@pytest.mark.parametrize("head", [1024, 1025, 4096, 2**31, 2**32 - 1])
def test_impossible_tx_head_is_ignored_and_the_port_recovers(
    valed: Valed, liar: Port, pair: tuple[Port, Port], head: int
) -> None:
    liar.tx[0].store_head(head)
    liar.kick()
    qmp = valed.qmp()
    eventually("it to be counted", lambda: qmp.port("vale1:liar")["bad-head"] > 0)
    assert qmp.port("vale1:liar")["rx"]["frames"] == 0
    assert (liar.tx[0].hwcur, liar.tx[0].hwtail) == (0, 1023)
    honest_traffic(pair)
    liar.send(numbered(BROADCAST, LIAR, 10))
    liar.flush()
    assert qmp.port("vale1:liar")["rx"]["frames"] == 10
    ticks = valed.cpu_ticks()
    signal.sigtimedwait([], 0.3)
    assert valed.cpu_ticks() - ticks <= 2  # valed does not go on looking at it


@pytest.mark.parametrize("head", [500, 1024, 2**32 - 1])
def test_impossible_rx_head_is_ignored_and_the_port_recovers(
    valed: Valed, liar: Port, pair: tuple[Port, Port], head: int
) -> None:
    """The liar gives back what it was never given: it is told nothing new, and loses frames only
    once its ring is really full."""
    one, _ = pair
    got = len(liar.drain())
    liar.rx[0].store_head(head)
    one.send(numbered(BROADCAST, ONE, 5))
    one.flush()
    qmp = valed.qmp()
    assert qmp.port("vale1:liar")["bad-head"] > 0
    tx = qmp.port("vale1:liar")["tx"]
    assert (tx["offered"], tx["frames"], tx["dropped"]) == (got + 5, got + 5, {})
    liar.rx[0].store_head(liar.rx[0].head)
    assert [number(f) for f in liar.receive(5)] == [0, 1, 2, 3, 4]
    honest_traffic(pair)


# -------------------------------------------------------------------------------- a ring that fills


def test_ring_full_is_exact(valed: Valed) -> None:
    """A receiver that does not read has room for slots - 1; the rest is dropped, and counted."""
    a, b = valed.open("vale1:a"), valed.open("vale1:b", rx_slots=256)
    qmp = valed.qmp()
    a.send(numbered(BROADCAST, ONE, 1000))
    a.flush()
    tx = qmp.port("vale1:b")["tx"]
    assert (tx["offered"], tx["frames"], tx["bytes"]) == (1000, 255, 255 * 60)
    assert tx["dropped"] == {"ring_full": 745}
    assert [number(f) for f in b.receive(100)] == list(range(100))
    a.send(numbered(BROADCAST, ONE, 150, first=1000))
    a.flush()
    tx = qmp.port("vale1:b")["tx"]
    assert (tx["frames"], tx["dropped"]) == (355, {"ring_full": 795})
    assert [number(f) for f in b.receive(255)] == [*range(100, 255), *range(1000, 1100)]
    check_books(qmp.ports())


def test_ring_full_never_cuts_a_frame(valed: Valed) -> None:
    """63 slots of room, frames of 5 slots: twelve fit, and three slots stay empty."""
    a, b = valed.open("vale1:a"), valed.open("vale1:b", rx_slots=64)
    long = frame(BROADCAST, ONE, b"\x5a" * 9986)
    a.send([long] * 20)
    a.flush()
    tx = valed.qmp().port("vale1:b")["tx"]
    assert (tx["frames"], tx["bytes"]) == (12, 120000)
    assert tx["dropped"] == {"ring_full": 8}
    assert b.receive(12) == [long] * 12
    assert b.drain() == []


def test_guest_that_never_reads_delays_nobody(
    valed: Valed, liar: Port, pair: tuple[Port, Port]
) -> None:
    for _ in range(10):
        pair[0].send(numbered(BROADCAST, ONE, 1000))
        pair[0].flush()
        pair[1].drain()
        honest_traffic(pair)
    tx = valed.qmp().port("vale1:liar")["tx"]
    assert (tx["frames"], tx["dropped"]) == (1023, {"ring_full": 10002 - 1023})


# ------------------------------------------------------------------------------------ bad RX slots


def test_rx_slots_that_point_nowhere(valed: Valed, liar: Port, pair: tuple[Port, Port]) -> None:
    """Every other RX slot has an impossible buffer: those frames are dropped as bad_slot, arrive
    as empty slots, and the others arrive."""
    liar.drain()
    rx = liar.rx[0]
    bad = [0, 1, liar.buf_count, 2**31, 2**32 - 1]
    for i in range(1, rx.num_slots, 2):
        _, length, flags, ptr = rx.slot(rx.ahead(rx.head, i))
        rx.set_slot(rx.ahead(rx.head, i), bad[i % len(bad)], length, flags, ptr)
    before = valed.qmp().port("vale1:liar")["tx"]
    pair[0].send(numbered(BROADCAST, ONE, 100))
    pair[0].flush()
    tx = valed.qmp().port("vale1:liar")["tx"]
    assert (tx["frames"] - before["frames"], tx["dropped"]) == (50, {"bad_slot": 50})
    assert rx.room == 100
    lengths = [rx.slot(rx.ahead(rx.head, i))[1] for i in range(100)]
    assert lengths == [60, 0] * 50
    assert len(pair[1].receive(100)) == 100
    check_books(valed.qmp().ports())


def test_long_frame_into_a_bad_slot(valed: Valed, liar: Port, pair: tuple[Port, Port]) -> None:
    """One of five slots has no buffer: the frame is dropped whole in the books."""
    liar.drain()
    rx = liar.rx[0]
    rx.set_slot(rx.ahead(rx.head, 2), 1, 0, 0)
    before = valed.qmp().port("vale1:liar")["tx"]
    pair[0].send([frame(BROADCAST, ONE, b"x" * 9986)] * 2)
    pair[0].flush()
    tx = valed.qmp().port("vale1:liar")["tx"]
    assert (tx["frames"] - before["frames"], tx["dropped"]) == (1, {"bad_slot": 1})
    assert [rx.slot(rx.ahead(rx.head, i))[1] for i in range(5)] == [2112, 2112, 0, 2112, 1552]


# ---------------------------------------------------------------------------------------- garbage


def test_random_garbage_everywhere(valed: Valed, pair: tuple[Port, Port]) -> None:
    """Random words over the control block, netmap's structures and all slots, many times, with
    kicks, while an honest pair talks."""
    dice = random.Random(1)
    liar = valed.open("vale1:liar", tx_rings=2, rx_rings=2, tx_slots=64, rx_slots=128)
    end = liar.tx[0].buffer(0) // 4
    plausible = [0, 1, 2, 63, 64, 65, 100, 127, 128, 2**31, 2**32 - 1, 60, 60 << 16, 2 | 60 << 32]
    for lap in range(300):
        for _ in range(200):
            word = dice.randrange(2**32) if dice.random() < 0.3 else dice.choice(plausible)
            liar.words[dice.randrange(end)] = word & 0xFFFFFFFF
        for ring in range(4):
            liar.words[(RING_CTL + RING_CTL * ring) // 4] = dice.randrange(200)
            liar.words[(RING_CTL + RING_CTL * ring) // 4 + 2] = dice.randrange(3)
        with contextlib.suppress(BlockingIOError):
            liar.kick()
        if lap % 20 == 0:
            honest_traffic(pair, 50)
    honest_traffic(pair)
    liar.close()
    eventually("it to go", lambda: "vale1:liar" not in valed.qmp().ports())
    pair[0].flush()
    pair[1].flush()
    check_books(valed.qmp().ports())


def test_garbage_while_valed_looks(valed: Valed, pair: tuple[Port, Port]) -> None:
    """A second process changes slots, lengths and heads as fast as it can: what valed checked is
    another thing a moment later."""
    liar = valed.open("vale1:liar", tx_slots=256, rx_slots=256)
    child = os.fork()
    if child == 0:
        dice = random.Random(3)
        slots = [(ring.base + 256) // 4 for ring in (liar.tx[0], liar.rx[0])]
        with contextlib.suppress(Exception):
            while True:
                at = dice.choice(slots) + 4 * dice.randrange(256)
                liar.words[at] = dice.choice([2, 3, 300, 513, 514, 2**32 - 1])
                liar.words[at + 1] = dice.choice([60, 2112, 2113, 65535, 0, 13, 0x200000 | 2112])
                liar.words[RING_CTL // 4] = dice.randrange(300)
        os._exit(1)
    try:
        for _ in range(60):
            liar.kick()
            honest_traffic(pair, 100)
            liar.rx[0].store_head(liar.rx[0].hwtail)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert valed.qmp().port("vale1:liar")["rx"]["frames"] > 0
    liar.close()
    eventually("it to go", lambda: "vale1:liar" not in valed.qmp().ports())
    honest_traffic(pair)


def test_port_that_publishes_for_ever_still_goes(valed: Valed, pair: tuple[Port, Port]) -> None:
    """A copy of the mapping keeps moving head and kicking after the connection has closed."""
    for _ in range(10):
        liar = Port.open(valed.rundir, "vale1:liar", tx_slots=64)
        child = os.fork()
        if child == 0:
            liar.sock.close()
            head = 0
            while True:
                head = (head + 1) % 64
                liar.words[RING_CTL // 4] = head
                os.write(liar._kick, struct.pack("<Q", 1))
        signal.sigtimedwait([], 0.02)
        liar.close()
        try:
            eventually("it to go", lambda: "vale1:liar" not in valed.qmp().ports())
            honest_traffic(pair, 100)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
