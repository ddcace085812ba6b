# SPDX-License-Identifier: BSD-2-Clause
"""Switches that wait for room instead of dropping, and what that may not cost anybody else.

    vale1:a --- sends faster than b reads ---> vale1:b    a is held up, nothing is lost
    vale1:c --------------------------------> vale1:d    and these do not notice

A destination that takes nothing for the wait-limit is stalled: from then on frames for it are
dropped, as on any other switch.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from blackbox.test_valed_offload import ACCEPT_VNET_HDR, Segment, set_header
from blackbox.test_valed_ports import stream_peer
from lib.native import BROADCAST, SECONDS, Port, frame, number, numbered, station
from lib.qmp import QmpError
from lib.valed import Valed, check_books, eventually, sanitizer
from lib.vhost import FrontEnd

pytestmark = pytest.mark.blackbox

A, B, C, D = (station(n) for n in range(1, 5))
LONG = 10_000  # milliseconds: nobody stalls


def waits(valed: Valed, limit: int = LONG, **settings: object) -> None:
    valed.qmp().execute(
        "switch-set", name="vale1", overflow="wait", **{"wait-limit": limit}, **settings
    )


def lock(valed: Valed, port: str, mac: bytes) -> None:
    """Makes a station known, and the port its only place."""
    valed.qmp().execute("fdb-add", port=port, mac=mac.hex(":"))


@contextlib.contextmanager
def running(work: Callable[[], None]) -> Iterator[None]:
    """Something that goes on meanwhile; its failure is ours."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as e:
            failures.append(e)

    thread = threading.Thread(target=guarded)
    thread.start()
    yield
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert failures == []


def check_nothing_lost(valed: Valed, receiver: str, frames: int) -> None:
    """Every frame was offered and delivered once, also by the switch's own counters."""
    eventually(
        f"{frames} frames for {receiver}",
        lambda: valed.qmp().port(receiver)["tx"]["offered"] == frames,
    )
    ports = valed.qmp().ports()
    check_books(ports)
    assert ports[receiver]["tx"]["frames"] == frames
    assert ports[receiver]["tx"]["dropped"] == {}


def test_policy_is_shown_and_checked(valed: Valed) -> None:
    waits(valed, 33)
    (switch,) = valed.qmp().execute("query-switches")
    assert (switch["overflow"], switch["wait-limit"]) == ("wait", 33)
    valed.qmp().execute("switch-set", name="vale1", overflow="drop")
    (switch,) = valed.qmp().execute("query-switches")
    assert (switch["overflow"], switch["wait-limit"]) == ("drop", 33)
    for wrong in ({"overflow": "later"}, {"wait-limit": 0}, {"wait-limit": 10_001}):
        with pytest.raises(QmpError, match=r"overflow|wait-limit"):
            valed.qmp().execute("switch-set", name="vale1", **wrong)


@pytest.mark.parametrize("p2p", [False, True])
def test_native_receiver_that_is_slow_gets_everything(valed: Valed, p2p: bool) -> None:
    waits(valed, p2p=p2p)
    a, b = valed.open("vale1:a"), valed.open("vale1:b", rx_slots=64)
    if not p2p:
        lock(valed, "vale1:b", B)
    sent = numbered(B, A, 5000)
    with running(lambda: a.send(sent)):
        for at in range(0, len(sent), 50):
            assert b.receive(50) == sent[at : at + 50]
    check_nothing_lost(valed, "vale1:b", 5000)


def test_guest_that_is_slow_gets_everything(valed: Valed) -> None:
    waits(valed)
    valed.qmp().execute("port-add", name="vale1:v", kind="vhost-user")
    a = valed.open("vale1:a")
    with FrontEnd(valed.rundir / "vale1:v") as front:
        lock(valed, "vale1:v", B)
        sent = numbered(B, A, 2000)
        with running(lambda: a.send(sent)):
            for at in range(0, len(sent), 40):
                assert front.receive(40) == sent[at : at + 40]
                front.kick(0)
        check_nothing_lost(valed, "vale1:v", 2000)


def test_guest_that_sends_is_held_up(valed: Valed) -> None:
    """Chains that are not forwarded yet are not given back."""
    waits(valed)
    valed.qmp().execute("port-add", name="vale1:v", kind="vhost-user")
    b = valed.open("vale1:b", rx_slots=64)
    lock(valed, "vale1:b", B)
    with FrontEnd(valed.rundir / "vale1:v") as front:
        sent = numbered(B, A, 1000)
        with running(lambda: front.send(sent)):
            assert b.receive(1000) == sent
    check_nothing_lost(valed, "vale1:b", 1000)


def test_stream_peer_that_is_slow_gets_everything(valed: Valed) -> None:
    waits(valed)
    a = valed.open("vale1:a")
    with stream_peer(valed, "vale1:s", connect=False) as peer:
        lock(valed, "vale1:s", B)
        sent = numbered(B, A, 3000, length=1514)
        with running(lambda: a.send(sent)):
            for expected in sent:
                assert peer.receive() == expected
        check_nothing_lost(valed, "vale1:s", 3000)


def test_stream_peer_that_sends_is_held_up(valed: Valed) -> None:
    waits(valed)
    b = valed.open("vale1:b", rx_slots=64)
    lock(valed, "vale1:b", B)
    with stream_peer(valed, "vale1:s", connect=False) as peer:
        sent = numbered(B, A, 3000)
        with running(lambda: peer.send(*sent)):
            assert b.receive(3000) == sent
    check_nothing_lost(valed, "vale1:b", 3000)


@pytest.mark.parametrize("workers", [1, 2])
def test_many_senders_lose_nothing_at_one_receiver(workers: int) -> None:
    with Valed.run("--workers", str(workers)) as valed:
        waits(valed)
        senders = [valed.open(f"vale1:a{i}") for i in range(4)]
        b = valed.open("vale1:b", rx_slots=64)
        lock(valed, "vale1:b", B)
        received: dict[bytes, list[int]] = {station(10 + i): [] for i in range(4)}
        with contextlib.ExitStack() as stack:
            for i, port in enumerate(senders):
                sent = numbered(B, station(10 + i), 1000)
                stack.enter_context(running(lambda p=port, s=sent: p.send(s)))  # type: ignore[misc]
            for data in b.receive(4000):
                received[data[6:12]].append(number(data))
        assert all(numbers == list(range(1000)) for numbers in received.values())
        check_nothing_lost(valed, "vale1:b", 4000)


def test_segments_are_neither_lost_nor_doubled(valed: Valed) -> None:
    """A frame that is cut on its way stops in the middle, and goes on there."""
    waits(valed)
    a = valed.open("vale1:a", flags=ACCEPT_VNET_HDR)
    set_header(valed, "vale1:a", 12)
    b = valed.open("vale1:b", rx_slots=64)
    lock(valed, "vale1:b", station(2))
    whole = [Segment(payload=bytes([i]) * 60_000, seq=i << 16, ident=i << 8) for i in range(20)]
    sent = [s.header(500) + s.build(complete=False) for s in whole]
    expected = [part.build() for s in whole for part in s.cut(500)]
    with running(lambda: a.send(sent)):
        assert b.receive(len(expected)) == expected
    eventually("the books", lambda: valed.qmp().port("vale1:b")["tx"]["segmented"]["frames"] == 20)
    ports = valed.qmp().ports()
    check_books(ports)
    assert ports["vale1:b"]["tx"]["dropped"] == {}
    assert ports["vale1:b"]["tx"]["segmented"]["segments"] == len(expected)


def test_guest_that_never_reads_is_dropped_for_until_it_moves(valed: Valed) -> None:
    waits(valed, 20)
    a, b = valed.open("vale1:a"), valed.open("vale1:b", rx_slots=64)
    lock(valed, "vale1:b", B)
    a.send(numbered(B, A, 5000))
    a.flush()
    port = valed.qmp().port("vale1:b")
    assert port["tx"]["frames"] == 63
    assert port["tx"]["dropped"] == {"stalled": 5000 - 63}
    b.drain()
    a.send(numbered(B, A, 10, first=5000))
    assert [number(data) for data in b.receive(10)] == list(range(5000, 5010))
    check_books(valed.qmp().ports())


def test_only_the_blocked_source_is_held_up(valed: Valed) -> None:
    waits(valed)
    a, b = valed.open("vale1:a"), valed.open("vale1:b", rx_slots=64)
    c, d = valed.open("vale1:c"), valed.open("vale1:d")
    lock(valed, "vale1:b", B)
    lock(valed, "vale1:d", D)
    a.send(numbered(B, A, 200))
    sent = numbered(D, C, 20_000)
    with running(lambda: c.send(sent)):
        assert d.receive(20_000) == sent
    assert a.tx[0].room < a.tx[0].num_slots - 1, "a was not held up"
    assert b.receive(200) == numbered(B, A, 200)
    check_nothing_lost(valed, "vale1:b", 200)


def test_what_is_flooded_never_waits(valed: Valed) -> None:
    waits(valed)
    a, b = valed.open("vale1:a"), valed.open("vale1:b", rx_slots=64)
    a.send(numbered(BROADCAST, A, 500))
    a.flush()
    dropped = valed.qmp().port("vale1:b")["tx"]["dropped"]
    assert dropped == {"ring_full": 500 - 63}
    assert len(b.drain()) == 63


def test_frames_behind_a_blocked_one_stay_in_order(valed: Valed) -> None:
    """To b and d by turns: d gets nothing that was sent after the frame that b has no room for."""
    waits(valed)
    a, b, d = valed.open("vale1:a"), valed.open("vale1:b", rx_slots=64), valed.open("vale1:d")
    lock(valed, "vale1:b", B)
    lock(valed, "vale1:d", D)
    to_b, to_d = numbered(B, A, 300), numbered(D, A, 300)
    a.send([f for pair in zip(to_b, to_d, strict=True) for f in pair])
    assert d.receive(63) == to_d[:63]
    assert b.receive(300) == to_b
    assert d.receive(237) == to_d[63:]
    assert d.drain() == []
    check_nothing_lost(valed, "vale1:b", 300)


def test_source_goes_on_when_its_destination_leaves(valed: Valed) -> None:
    waits(valed)
    a, b = valed.open("vale1:a"), valed.open("vale1:b", rx_slots=64)
    lock(valed, "vale1:b", B)
    a.send(numbered(B, A, 500))
    eventually("a full ring", lambda: b.rx[0].room == 63)
    b.close()
    c = valed.open("vale1:c")
    a.flush()
    a.send([frame(BROADCAST, A, b"still here")])
    eventually("the broadcast", lambda: c.drain()[-1:] == [frame(BROADCAST, A, b"still here")])


def test_peer_that_hangs_up_holds_nobody(valed: Valed) -> None:
    waits(valed)
    a = valed.open("vale1:a")
    sent = numbered(B, A, 5000, length=1514)
    with contextlib.ExitStack() as stack, stream_peer(valed, "vale1:s", connect=False):
        lock(valed, "vale1:s", B)
        stack.enter_context(running(lambda: a.send(sent, batch=64)))
        eventually("a full socket", lambda: valed.qmp().port("vale1:s")["tx"]["frames"] > 0)
    a.flush()
    assert valed.qmp().port("vale1:s")["tx"]["dropped"]["down"] > 0
    check_books(valed.qmp().ports())


def test_switch_that_stops_waiting_lets_go(valed: Valed) -> None:
    waits(valed)
    a, b = valed.open("vale1:a"), valed.open("vale1:b", rx_slots=64)
    lock(valed, "vale1:b", B)
    a.send(numbered(B, A, 500))
    eventually("a full ring", lambda: b.rx[0].room == 63)
    valed.qmp().execute("switch-set", name="vale1", overflow="drop")
    a.flush()
    assert valed.qmp().port("vale1:b")["tx"]["dropped"] == {"ring_full": 437}


def test_blocked_source_can_be_closed(valed: Valed) -> None:
    waits(valed)
    a, b = valed.open("vale1:a"), valed.open("vale1:b", rx_slots=64)
    lock(valed, "vale1:b", B)
    a.send(numbered(B, A, 500))
    eventually("a full ring", lambda: b.rx[0].room == 63)
    a.close()
    eventually("a has gone", lambda: "vale1:a" not in valed.qmp().ports())
    tx = valed.qmp().port("vale1:b")["tx"]
    assert (tx["offered"], tx["frames"], tx["dropped"]) == (500, 63, {"ring_full": 437})


def test_ring_of_three_forwarders_moves_on(valed: Valed) -> None:
    """Each waits for the next, and the ring is full: without the limit nobody would ever move."""
    waits(valed, 20)
    stations = [station(20 + i) for i in range(3)]
    ports = [valed.open(f"vale1:f{i}", tx_slots=64, rx_slots=64) for i in range(3)]
    for i, mac in enumerate(stations):
        lock(valed, f"vale1:f{i}", mac)
    stop = threading.Event()

    def forward(port: Port, to: bytes, me: bytes) -> None:
        rx, tx = port.rx[0], port.tx[0]
        for f in numbered(to, me, 63):
            tx.put(f)
        tx.publish()
        while not stop.is_set():
            if rx.room and tx.room:
                tx.put(frame(to, me, rx.take()[14:]))
                rx.publish()
                tx.publish()
            else:
                os.sched_yield()

    with contextlib.ExitStack() as stack:
        stack.callback(stop.set)
        for i, port in enumerate(ports):
            work = (port, stations[(i + 1) % 3], stations[i])
            stack.enter_context(running(lambda w=work: forward(*w)))  # type: ignore[misc]
        try:
            for _ in range(3):
                before = valed.qmp().port("vale1:f0")["tx"]["offered"]
                eventually(
                    "the ring to turn",
                    lambda before=before: valed.qmp().port("vale1:f0")["tx"]["offered"]
                    > before + 500,
                )
        finally:
            stop.set()
    for port in ports:
        port.drain()
        port.flush()
    check_books(valed.qmp().ports())


def sleeps_for(valed: Valed, seconds: float) -> bool:
    """Whether no thread of valed wakes up for so long."""
    before = valed.wakeups()
    signal.sigtimedwait([], seconds)  # a stretch of time in which nothing may happen
    return valed.wakeups() == before


@pytest.mark.skipif(bool(sanitizer()), reason="sanitizers have threads of their own")
def test_waiting_costs_nothing(valed: Valed) -> None:
    """A source that is held up is woken by its destination, not by asking again and again."""
    waits(valed)
    a, b = valed.open("vale1:a"), valed.open("vale1:b", rx_slots=64)
    lock(valed, "vale1:b", B)
    a.send(numbered(B, A, 500))
    eventually("a full ring", lambda: b.rx[0].room == 63)
    eventually("a sleeping worker", lambda: valed.qmp().execute("query-workers")[0]["sleeps"] > 0)
    eventually("half a second without a wake-up", lambda: sleeps_for(valed, 0.5))
    assert b.receive(500) == numbered(B, A, 500)
