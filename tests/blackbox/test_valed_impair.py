# SPDX-License-Identifier: BSD-2-Clause
"""Impairments: what befalls frames on one way of a port, by seed, and what it costs others.

    vale1:a --in: delay, loss, ...--> switch --out: the same--> vale1:b

The expected fate of each frame is computed here, from valed/line.h and not from its code.
"""

import contextlib
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from blackbox.test_valectl import failure, ok
from blackbox.test_valed_offload import ACCEPT_VNET_HDR, Segment, set_header
from blackbox.test_valed_ports import stream_peer
from blackbox.test_valed_wait import lock, running, waits
from lib.native import BROADCAST, MONITOR_RX, MONITOR_TX, Port, frame, number, numbered, station
from lib.qmp import Qmp, QmpError
from lib.valed import ROOT, Valed, check_books, eventually, sanitizer
from lib.vhost import FrontEnd

pytestmark = pytest.mark.blackbox

A, B = station(1), station(2)
LOSS, DUPLICATE, CORRUPT, BIT, REORDER, JITTER = range(6)
MS = 1000  # microseconds
LONG = 30_000 * MS
BOTH = pytest.mark.parametrize("way", ["in", "out"])


def impair(valed: Valed, way: str, **settings: Any) -> None:
    """Of a's way in, or of b's way out."""
    name = "vale1:a" if way == "in" else "vale1:b"
    with Qmp(valed.rundir / "qmp.sock") as qmp:
        qmp.execute("port-set", name=name, **{way: settings})


def books(valed: Valed, way: str) -> dict[str, Any]:
    """The impaired direction's counters; all books balance."""
    with Qmp(valed.rundir / "qmp.sock") as qmp:
        ports = qmp.ports()
    check_books(ports)
    side: dict[str, Any] = ports["vale1:a"]["rx"] if way == "in" else ports["vale1:b"]["tx"]
    return side


@pytest.fixture
def pair(valed: Valed) -> tuple[Port, Port]:
    return valed.open("vale1:a"), valed.open("vale1:b")


def drawn(seed: int, n: int, kind: int, copy: int = 0) -> int:
    """The draw of frame n: an output of splitmix64."""
    mask = 2**64 - 1
    z = (seed + ((n * 2 + copy) * 8 + kind + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    return z ^ z >> 31


def hit(seed: int, n: int, kind: int, percent: float, copy: int = 0) -> bool:
    return (drawn(seed, n, kind, copy) >> 11) * 2.0**-53 * 100 < percent


def hits(seed: int, frames: int, kind: int, percent: float) -> list[int]:
    return [n for n in range(frames) if hit(seed, n, kind, percent)]


def flip(data: bytes, seed: int, n: int, copy: int = 0) -> bytes:
    """Frame n, corrupted."""
    bit = drawn(seed, n, BIT, copy) % (8 * len(data))
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def numbers(frames: list[bytes]) -> list[int]:
    return [number(f) for f in frames]


def settled(valed: Valed, way: str, held: int = 0) -> None:
    """Until the line holds so many frames."""
    name, side = ("vale1:a", "rx") if way == "in" else ("vale1:b", "tx")
    with Qmp(valed.rundir / "qmp.sock") as qmp:
        eventually(f"{held} held", lambda: qmp.port(name)[side]["held"] == held)


# ------------------------------------------------------------------------------------ settings


def test_settings_are_shown_changed_and_removed(valed: Valed) -> None:
    valed.open("vale1:a")
    qmp = valed.qmp()
    assert "in" not in qmp.port("vale1:a")
    impair(valed, "in", delay=5 * MS, loss=1.5, seed=7)
    impair(valed, "in", jitter=100, rate=10**9)
    expected = {
        "delay": 5 * MS,
        "jitter": 100,
        "loss": 1.5,
        "duplicate": 0.0,
        "corrupt": 0.0,
        "reorder": 0.0,
        "rate": 10**9,
        "limit": 4 << 20,
        "seed": 7,
    }
    assert qmp.port("vale1:a")["in"] == expected
    assert "out" not in qmp.port("vale1:a")
    qmp.execute("port-set", name="vale1:a", out=expected)
    assert qmp.port("vale1:a")["out"] == expected
    impair(valed, "in", delay=0, jitter=0, loss=0, rate=0)
    qmp.execute("port-set", name="vale1:a", out=None)
    assert {"in", "out"}.isdisjoint(qmp.port("vale1:a"))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"delay": -1}, "delay and jitter"),
        ({"jitter": 60_000_001}, "delay and jitter"),
        ({"loss": 100.5}, "percentages"),
        ({"corrupt": -0.1}, "percentages"),
        ({"rate": -1}, "rate"),
        ({"delay": 1, "limit": 63}, "limit"),
        ({"delay": 1, "seed": -1}, "seed"),
        ({"delay": "10ms"}, "takes numbers"),
        ({"lost": 1}, "takes numbers"),
        ({"reorder": 5}, "reorder needs a delay"),
        ({"seed": 5}, "need an impairment"),
    ],
)
def test_what_cannot_be_set(valed: Valed, settings: dict[str, Any], line: str) -> None:
    """Nothing changes then, in neither direction."""
    valed.open("vale1:a")
    arguments = {"name": "vale1:a", "in": {"delay": 1}, "out": settings}
    with pytest.raises(QmpError, match=line):
        valed.qmp().execute("port-set", **arguments)
    assert {"in", "out"}.isdisjoint(valed.qmp().port("vale1:a"))


def test_there_must_be_such_a_port(valed: Valed) -> None:
    for name, line in (("vale1:a", "no such port"), ("other:a", "vale")):
        with pytest.raises(QmpError, match=line):
            valed.qmp().execute("port-set", name=name)


def test_valectl_sets_them_in_the_words_of_a_shell(valed: Valed) -> None:
    valed.open("vale1:a")
    words = "in.delay=10ms in.jitter=1.5ms in.rate=10Mbit in.limit=1MiB in.seed=3"
    ok(valed, "set", "vale1:a", *words.split(), "out.loss=1%", "out.corrupt=2")
    port = valed.qmp().port("vale1:a")
    want = {"delay": 10_000, "jitter": 1500, "rate": 10_000_000, "limit": 1 << 20, "seed": 3}
    assert {key: port["in"][key] for key in want} == want
    assert (port["out"]["loss"], port["out"]["corrupt"]) == (1.0, 2.0)
    shown = dict(line.split(maxsplit=1) for line in ok(valed, "show", "vale1:a").splitlines())
    assert (shown["in.delay"], shown["out.loss"]) == ("10000", "1.0")
    ok(valed, "set", "vale1:a", "in.delay=2s", "in.rate=none", "out=none")
    port = valed.qmp().port("vale1:a")
    assert (port["in"]["delay"], port["in"]["rate"], port["in"]["jitter"]) == (2_000_000, 0, 1500)
    assert "out" not in port


@pytest.mark.parametrize(
    "word", ["in.delay=10Mbit", "in.rate=5ms", "in.loss=1ms", "in.delay=", "in=5"]
)
def test_valectl_refuses_units_of_something_else(valed: Valed, word: str) -> None:
    valed.open("vale1:a")
    code, line = failure("set", "vale1:a", word, rundir=valed.rundir)
    assert code == 1
    assert re.search("takes numbers", line)


# --------------------------------------------------------------------------------- each impairment


@BOTH
def test_loss_takes_the_frames_that_the_seed_says(
    valed: Valed, pair: tuple[Port, Port], way: str
) -> None:
    a, b = pair
    impair(valed, way, loss=30, seed=42)
    lost = set(hits(42, 1000, LOSS, 30))
    assert 230 < len(lost) < 370  # 5 sigma
    kept = [n for n in range(1000) if n not in lost]
    for _ in range(2):  # the same seed, set again: the same fate
        a.send(numbered(BROADCAST, A, 1000))
        assert numbers(b.receive(len(kept))) == kept
        impair(valed, way, seed=42)
    settled(valed, way)
    side = books(valed, way)
    assert side["dropped"] == {"loss": 2 * len(lost)}
    assert b.drain() == []


@BOTH
def test_other_impairments_leave_the_losses_as_they_are(
    valed: Valed, pair: tuple[Port, Port], way: str
) -> None:
    a, b = pair
    impair(valed, way, loss=10, duplicate=20, corrupt=5, delay=100, jitter=50, reorder=10, seed=9)
    a.send(numbered(BROADCAST, A, 600))
    lost = hits(9, 600, LOSS, 10)
    kept = [n for n in range(600) if n not in set(lost)]
    doubled = [n for n in kept if hit(9, n, DUPLICATE, 20)]
    frames = b.receive(len(kept) + len(doubled))
    settled(valed, way)
    side = books(valed, way)
    assert side["dropped"] == {"loss": len(lost)}
    assert side["duplicated"] == len(doubled)
    copies = [(n, 0) for n in kept] + [(n, 1) for n in doubled]
    corrupted = [(n, copy) for n, copy in copies if hit(9, n, CORRUPT, 5, copy)]
    assert side["corrupted"] == len(corrupted)
    sent = numbered(BROADCAST, A, 600)
    expected = [
        flip(sent[n], 9, n, copy) if (n, copy) in corrupted else sent[n] for n, copy in copies
    ]
    assert sorted(frames) == sorted(expected)
    assert b.drain() == []


@BOTH
def test_duplicates_come_right_behind(valed: Valed, pair: tuple[Port, Port], way: str) -> None:
    a, b = pair
    impair(valed, way, duplicate=25, seed=1)
    a.send(numbered(BROADCAST, A, 400))
    doubled = set(hits(1, 400, DUPLICATE, 25))
    expected = [n for n in range(400) for _ in range(2 if n in doubled else 1)]
    assert numbers(b.receive(len(expected))) == expected
    settled(valed, way)
    assert books(valed, way)["duplicated"] == len(doubled)


@BOTH
def test_corruption_flips_one_bit_and_not_in_the_senders_memory(
    valed: Valed, pair: tuple[Port, Port], way: str
) -> None:
    a, b = pair
    lock(valed, "vale1:b", B)
    impair(valed, way, corrupt=100, seed=5)
    sent = numbered(B, A, 50, length=200)
    if way == "in":  # addresses are bits too: what is flooded reaches b as well
        valed.qmp().execute("fdb-del", switch="vale1", mac=B.hex(":"))
    a.send(sent)
    assert b.receive(50) == [flip(data, 5, n) for n, data in enumerate(sent)]
    settled(valed, way)
    assert books(valed, way)["corrupted"] == 50
    tx = a.tx[0]
    for i, data in enumerate(sent):
        at = tx.buffer(tx.slot(i)[0])
        assert bytes(a.mem[at : at + len(data)]) == data


@BOTH
def test_delay_is_never_shorter(valed: Valed, pair: tuple[Port, Port], way: str) -> None:
    a, b = pair
    impair(valed, way, delay=20 * MS)
    for i in range(10):
        before = time.monotonic()
        a.send(numbered(BROADCAST, A, 1, first=i))
        assert numbers(b.receive(1)) == [i]
        assert 0.02 <= time.monotonic() - before < 5
    settled(valed, way)
    assert books(valed, way)["dropped"] == {}


@BOTH
@pytest.mark.parametrize("workers", [1, 2])
def test_short_delay_keeps_the_order(way: str, workers: int) -> None:
    """Of a busy line, whose worker is that of its senders, or another."""
    with Valed.run("--workers", str(workers)) as valed:
        waits(valed)
        a, b = valed.open("vale1:a"), valed.open("vale1:b")
        lock(valed, "vale1:b", B)
        impair(valed, way, delay=30)
        sent = numbered(B, A, 5000)
        with running(lambda: a.send(sent)):
            assert b.receive(5000) == sent
        settled(valed, way)
        assert books(valed, way)["dropped"] == {}


@BOTH
def test_jitter_spreads_and_orders_by_seed(valed: Valed, pair: tuple[Port, Port], way: str) -> None:
    """One batch enters at one time, so the jitter alone decides the order."""
    a, b = pair
    impair(valed, way, delay=50 * MS, jitter=40 * MS, seed=3)
    before = time.monotonic()
    a.send(numbered(BROADCAST, A, 60))
    got = numbers(b.receive(60))
    assert time.monotonic() - before >= 0.05  # the latest of 60
    offset = [drawn(3, n, JITTER) % (2 * 40_000_000 + 1) for n in range(60)]
    assert got == sorted(range(60), key=lambda n: offset[n])
    settled(valed, way)
    books(valed, way)


@BOTH
def test_reordered_frames_are_sent_at_once(valed: Valed, pair: tuple[Port, Port], way: str) -> None:
    a, b = pair
    impair(valed, way, delay=100 * MS, reorder=20, seed=8)
    a.send(numbered(BROADCAST, A, 60))
    early = hits(8, 60, REORDER, 20)
    assert early
    late = [n for n in range(60) if n not in early]
    assert numbers(b.receive(60)) == early + late
    settled(valed, way)


@BOTH
def test_rate_is_never_exceeded(valed: Valed, pair: tuple[Port, Port], way: str) -> None:
    """A frame of 1000 bytes takes 1 ms at 8 Mbit/s, and so does each of a hundred."""
    a, b = pair
    impair(valed, way, rate=8_000_000)
    before = time.monotonic()
    a.send(numbered(BROADCAST, A, 100, length=1000))
    for n in range(100):
        assert numbers(b.receive(1)) == [n]
        assert time.monotonic() - before >= (n + 1) * 0.001
    settled(valed, way)
    books(valed, way)


@BOTH
def test_what_finds_no_room_in_the_line_is_counted(
    valed: Valed, pair: tuple[Port, Port], way: str
) -> None:
    """A frame takes its length and 32 bytes, rounded up to 32: 96 for 60, so ten fit 1000."""
    a, b = pair
    impair(valed, way, delay=LONG, limit=1000)
    a.send(numbered(BROADCAST, A, 25))
    settled(valed, way, held=10)
    eventually("the drops", lambda: books(valed, way)["dropped"] == {"delay_full": 15})
    impair(valed, way, delay=0)
    assert numbers(b.receive(10)) == list(range(10))
    settled(valed, way)
    books(valed, way)


@BOTH
def test_room_in_the_line_is_used_again(valed: Valed, pair: tuple[Port, Port], way: str) -> None:
    """Many times round the pool, with frames of all lengths."""
    a, b = pair
    impair(valed, way, delay=100, limit=70_000)
    dice = random.Random(1)
    for i in range(60):
        sent = [frame(BROADCAST, A, dice.randbytes(60), dice.randrange(60, 9000)) for _ in range(7)]
        a.send(sent)
        assert b.receive(7) == sent, f"round {i}"
    settled(valed, way)
    assert books(valed, way)["dropped"] == {}


@BOTH
def test_frames_of_up_to_64_kib_pass(valed: Valed, pair: tuple[Port, Port], way: str) -> None:
    a, b = pair
    impair(valed, way, delay=1 * MS, duplicate=100)
    sent = [frame(BROADCAST, A, os.urandom(40), length) for length in (65_535, 14 + 46, 65_534)]
    a.send(sent)
    assert b.receive(6) == [f for f in sent for _ in range(2)]
    settled(valed, way)
    books(valed, way)


# ------------------------------------------------------------------------------- changing, ending


@BOTH
def test_changing_a_delay_keeps_what_is_held(
    valed: Valed, pair: tuple[Port, Port], way: str
) -> None:
    a, b = pair
    impair(valed, way, delay=300 * MS)
    before = time.monotonic()
    a.send(numbered(BROADCAST, A, 5))
    settled(valed, way, held=5)
    impair(valed, way, delay=1, loss=0.0)
    a.send(numbered(BROADCAST, A, 5, first=5))
    assert numbers(b.receive(5)) == list(range(5, 10))
    assert numbers(b.receive(5)) == list(range(5))
    assert time.monotonic() - before >= 0.3


@BOTH
@pytest.mark.parametrize("settings", [{"delay": 0}, {"limit": 1 << 20}])
def test_line_that_ends_lets_go_of_its_frames(
    valed: Valed, pair: tuple[Port, Port], way: str, settings: dict[str, int]
) -> None:
    a, b = pair
    impair(valed, way, delay=LONG)
    a.send(numbered(BROADCAST, A, 500))
    settled(valed, way, held=500)
    impair(valed, way, **settings)
    assert numbers(b.receive(500)) == list(range(500))
    settled(valed, way)
    books(valed, way)


@BOTH
def test_port_that_closes_lets_go_of_its_frames(valed: Valed, way: str) -> None:
    """Its name is free at once, not when the delay is over."""
    a, b, c = (valed.open(f"vale1:{n}") for n in "abc")
    impair(valed, way, delay=LONG)
    a.send(numbered(BROADCAST, A, 100))
    settled(valed, way, held=100)
    (a if way == "in" else b).close()
    eventually("b or a has gone", lambda: len(valed.qmp().ports()) == 2)
    assert numbers(c.receive(100)) == list(range(100))
    check_books(valed.qmp().ports())


@BOTH
@pytest.mark.parametrize("workers", [1, 2])
def test_changes_under_traffic_lose_nothing(way: str, workers: int) -> None:
    """Every frame is delivered, dropped with a reason, or held; descriptors are given back."""
    with Valed.run("--workers", str(workers)) as valed:
        a, b = valed.open("vale1:a"), valed.open("vale1:b")
        lock(valed, "vale1:b", B)
        qmp = valed.qmp()
        before = valed.fds()
        stop = threading.Event()
        sent = 0

        def send() -> None:
            nonlocal sent
            while not stop.is_set():
                a.send(numbered(B, A, 64, first=sent))
                sent += 64
                if sent % 512 == 0:
                    b.drain()

        dice = random.Random(6)
        with running(send):
            try:
                for _ in range(60):
                    impair(
                        valed,
                        way,
                        delay=dice.choice([0, 50, 500, 3 * MS]),
                        loss=dice.choice([0, 3]),
                        duplicate=dice.choice([0, 10]),
                        rate=dice.choice([0, 10**8, 10**10]),
                    )
                    if dice.random() < 0.2:
                        impair(valed, way, delay=100, limit=dice.choice([10_000, 1 << 20]))
            finally:
                stop.set()
        name = "vale1:a" if way == "in" else "vale1:b"
        qmp.execute("port-set", name=name, **{way: None})
        a.flush()
        settled(valed, way)
        ports = qmp.ports()
        check_books(ports)
        assert ports["vale1:a"]["rx"]["frames"] == sent
        assert set(ports["vale1:a"]["rx"]["dropped"]) <= {"loss", "delay_full"}
        eventually("descriptors", lambda: valed.fds() == before)


def test_seed_is_the_only_source_of_fate(valed: Valed, pair: tuple[Port, Port]) -> None:
    """Without a seed it is drawn, and shown, so that a run can be repeated."""
    a, b = pair
    impair(valed, "in", loss=50)
    seed = valed.qmp().port("vale1:a")["in"]["seed"]
    a.send(numbered(BROADCAST, A, 200))
    kept = [n for n in range(200) if not hit(seed, n, LOSS, 50)]
    assert numbers(b.receive(len(kept))) == kept


@pytest.mark.skipif(bool(sanitizer()), reason="sanitizers have threads of their own")
@BOTH
def test_idle_costs_nothing(valed: Valed, pair: tuple[Port, Port], way: str) -> None:
    """Neither a line that holds nothing, nor one whose frames are not due."""
    a, b = pair
    impair(valed, way, delay=5 * MS)
    for held in (0, 100):
        a.send(numbered(BROADCAST, A, 100))
        b.receive(0 if held else 100)
        settled(valed, way, held)
        signal.sigtimedwait([], 0.1)  # a worker that polls goes to sleep
        before = valed.wakeups()
        signal.sigtimedwait([], 0.5)  # a stretch of time in which nothing may happen
        assert valed.wakeups() == before
        impair(valed, way, delay=LONG)


# --------------------------------------------------------------------- kinds, offloads, and waiting


@pytest.mark.parametrize("where", ["v", "a"])
def test_guest_on_vhost_user(valed: Valed, where: str) -> None:
    valed.qmp().execute("port-add", name="vale1:v", kind="vhost-user")
    a = valed.open("vale1:a")
    valed.qmp().execute(
        "port-set",
        name=f"vale1:{where}",
        **{way: {"delay": 2 * MS, "duplicate": 100} for way in ("in", "out")},
    )
    with FrontEnd(valed.rundir / "vale1:v") as front:
        front.send(numbered(BROADCAST, A, 50))
        assert numbers(a.receive(100)) == [n for n in range(50) for _ in range(2)]
        a.send(numbered(BROADCAST, B, 50))
        assert numbers(front.receive(100)) == [n for n in range(50) for _ in range(2)]
    check_books(valed.qmp().ports())


@pytest.mark.parametrize("where", ["s", "a"])
def test_stream_peer(valed: Valed, where: str) -> None:
    a = valed.open("vale1:a")
    with stream_peer(valed, "vale1:s", connect=False) as peer:
        valed.qmp().execute(
            "port-set",
            name=f"vale1:{where}",
            **{way: {"delay": 2 * MS, "duplicate": 100} for way in ("in", "out")},
        )
        sent = numbered(BROADCAST, A, 50, length=1514)
        peer.send(*sent)
        assert a.receive(100) == [f for f in sent for _ in range(2)]
        a.send(sent)
        assert [peer.receive() for _ in range(100)] == [f for f in sent for _ in range(2)]


def test_source_of_a_null_port_is_impaired(valed: Valed) -> None:
    """A port without rings of its own on the way out, and one that sends as fast as it can."""
    qmp = valed.qmp()
    qmp.execute("port-add", name="vale1:b", kind="null")
    qmp.execute("port-set", name="vale1:b", out={"loss": 10, "seed": 2, "limit": 64 << 20})
    qmp.execute("port-add", name="vale1:a", kind="null", source={"frames": 10_000, "length": 60})
    lost = len(hits(2, 10_000, LOSS, 10))
    eventually("all", lambda: qmp.port("vale1:b")["tx"]["frames"] == 10_000 - lost)
    settled(valed, "out")
    assert books(valed, "out")["dropped"] == {"loss": lost}


@contextlib.contextmanager
def offloading(valed: Valed) -> Iterator[tuple[Port, Port]]:
    a = valed.open("vale1:a", flags=ACCEPT_VNET_HDR)
    set_header(valed, "vale1:a", 12)
    yield a, valed.open("vale1:b")


@BOTH
def test_what_a_frame_needs_is_held_with_it(valed: Valed, way: str) -> None:
    """Cut behind the line, for a receiver that takes no large frames."""
    with offloading(valed) as (a, b):
        impair(valed, way, delay=1 * MS, duplicate=100)
        whole = [Segment(payload=bytes([i]) * 20_000, seq=i << 16, ident=i << 8) for i in range(5)]
        plain = Segment(payload=b"only a checksum")
        a.send([s.header(1000) + s.build(complete=False) for s in whole])
        a.send([plain.header() + plain.build(complete=False)])
        expected = [p.build() for s in whole for _ in range(2) for p in s.cut(1000)]
        expected += [plain.build()] * 2
        assert b.receive(len(expected)) == expected
        settled(valed, way)
        side = books(valed, way)
        assert side["duplicated"] == 6
        assert valed.qmp().port("vale1:b")["tx"]["segmented"]["frames"] == 10


@BOTH
def test_checksum_that_is_filled_in_does_not_hide_the_error(valed: Valed, way: str) -> None:
    with offloading(valed) as (a, b):
        impair(valed, way, corrupt=100, seed=11)
        sent = Segment(payload=os.urandom(500))
        a.send([sent.header() + sent.build(complete=False)])
        assert b.receive(1) == [flip(sent.build(), 11, 0)]


@BOTH
def test_rings_of_a_sender_go_where_they_would_go(valed: Valed, way: str) -> None:
    """Frames of two TX rings stay on the RX rings of these numbers."""
    a = valed.open("vale1:a", tx_rings=2)
    b = valed.open("vale1:b", rx_rings=2)
    impair(valed, way, delay=20 * MS)
    for i in range(20):
        a.send(numbered(BROADCAST, A, 1, first=i), ring=i % 2)
    for ring in range(2):
        assert numbers(b.receive(10, ring=ring)) == list(range(ring, 20, 2))


@BOTH
def test_line_waits_for_room_like_any_ring(valed: Valed, way: str) -> None:
    waits(valed)
    a, b = valed.open("vale1:a"), valed.open("vale1:b", rx_slots=64)
    lock(valed, "vale1:b", B)
    impair(valed, way, delay=1 * MS)
    sent = numbered(B, A, 2000)
    a.send(sent)
    for at in range(0, 2000, 50):
        assert b.receive(50) == sent[at : at + 50]
    settled(valed, way)
    assert books(valed, way)["dropped"] == {}


@BOTH
def test_line_gives_up_waiting_after_the_limit(valed: Valed, way: str) -> None:
    waits(valed, 20)
    a, b = valed.open("vale1:a"), valed.open("vale1:b", rx_slots=64)
    lock(valed, "vale1:b", B)
    impair(valed, way, delay=1 * MS)
    a.send(numbered(B, A, 500))
    eventually("drops", lambda: "stalled" in valed.qmp().port("vale1:b")["tx"]["dropped"])
    settled(valed, way)
    assert valed.qmp().port("vale1:b")["tx"]["dropped"] == {"stalled": 500 - 63}
    check_books(valed.qmp().ports())
    b.drain()
    a.send(numbered(B, A, 10, first=500))
    assert numbers(b.receive(10)) == list(range(500, 510))


def test_segments_wait_behind_a_line(valed: Valed) -> None:
    waits(valed)
    a = valed.open("vale1:a", flags=ACCEPT_VNET_HDR)
    set_header(valed, "vale1:a", 12)
    b = valed.open("vale1:b", rx_slots=64)
    lock(valed, "vale1:b", station(2))
    impair(valed, "out", delay=1 * MS)
    whole = [Segment(payload=bytes([i]) * 60_000, seq=i << 16, ident=i << 8) for i in range(10)]
    expected = [part.build() for s in whole for part in s.cut(500)]
    with running(lambda: a.send([s.header(500) + s.build(complete=False) for s in whole])):
        assert b.receive(len(expected)) == expected
    settled(valed, "out")
    assert books(valed, "out")["dropped"] == {}


def test_monitors_see_what_has_come_through(valed: Valed) -> None:
    """What a sends is shown behind its line, what b gets behind b's: once lost, never seen."""
    a, b = valed.open("vale1:a"), valed.open("vale1:b")
    sent, got = (
        valed.open("vale1:a", flags=MONITOR_TX),
        valed.open("vale1:b", flags=MONITOR_RX),
    )
    impair(valed, "in", loss=20, seed=1)
    impair(valed, "out", duplicate=30, seed=2)
    a.send(numbered(BROADCAST, A, 300))
    entered = [n for n in range(300) if not hit(1, n, LOSS, 20)]
    doubled = set(hits(2, len(entered), DUPLICATE, 30))
    left = [n for i, n in enumerate(entered) for _ in range(2 if i in doubled else 1)]
    assert numbers(b.receive(len(left))) == left
    assert numbers(got.receive(len(left))) == left
    assert numbers(sent.receive(len(entered))) == entered
    settled(valed, "out")
    books(valed, "out")
    assert sent.drain() == got.drain() == []


def test_others_are_not_impaired(valed: Valed) -> None:
    a, b, c = (valed.open(f"vale1:{n}") for n in "abc")
    impair(valed, "in", delay=LONG)
    impair(valed, "out", delay=LONG)
    a.send(numbered(BROADCAST, A, 10))
    settled(valed, "in", held=10)
    b.send(numbered(BROADCAST, B, 10))
    assert numbers(c.receive(10)) == list(range(10))
    assert numbers(a.receive(10)) == list(range(10))
    c.send(numbered(BROADCAST, station(3), 10))
    assert numbers(a.receive(10)) == list(range(10))
    assert b.drain() == []
    books(valed, "out")


def test_every_way_of_many_senders(valed: Valed) -> None:
    """Both ways of every port, and nothing is counted twice."""
    ports = [valed.open(f"vale1:p{i}") for i in range(6)]
    for i in range(6):
        settings = {"delay": 500, "jitter": 400, "loss": 5, "duplicate": 5, "corrupt": 1}
        valed.qmp().execute("port-set", name=f"vale1:p{i}", **{"in": settings, "out": settings})
    for i, port in enumerate(ports):
        port.send(numbered(BROADCAST, station(10 + i), 300))
    for port in ports:
        port.flush()
    eventually(
        "empty lines",
        lambda: (
            all(p["rx"]["held"] == p["tx"]["held"] == 0 for p in valed.qmp().ports().values())
            and sum(p["tx"]["offered"] for p in valed.qmp().ports().values()) > 6 * 5 * 250
        ),
    )
    check_books(valed.qmp().ports())


def test_documentation_names_every_key() -> None:
    text = (ROOT / "docs/qmp.md").read_text()
    for key in (
        "delay",
        "jitter",
        "loss",
        "duplicate",
        "corrupt",
        "reorder",
        "rate",
        "limit",
        "seed",
    ):
        assert f"| `{key}` |" in text
