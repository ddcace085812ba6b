# SPDX-License-Identifier: BSD-2-Clause
"""Where frames go, and where they do not.

    vale1:a ---+
    vale1:b ---+--- valed: learn the source, look up the destination ---> one port, or all others
    vale1:c ---+

Every test ends with the counters: who did not receive is as important as who did.
"""

import pytest

from lib.native import BROADCAST, Port, frame, number, numbered, station
from lib.valed import UNIMPAIRED, Valed, check_books

pytestmark = pytest.mark.blackbox

A, B, C = station(1), station(2), station(3)


def introduce(*ports: tuple[Port, bytes], everybody: list[Port]) -> None:
    """Each port says a broadcast word, so that its station is known; all that is heard is read."""
    for port, mac in ports:
        port.send([frame(BROADCAST, mac)])
        port.flush()
    for port in everybody:
        port.drain()


@pytest.fixture
def trio(valed: Valed) -> tuple[Port, Port, Port]:
    a, b, c = (valed.open(f"vale1:{name}") for name in "abc")
    return a, b, c


def deliveries(valed: Valed) -> dict[str, int]:
    """Frames that each port has been given so far."""
    ports = valed.qmp().ports()
    check_books(ports)
    return {name.partition(":")[2]: port["tx"]["frames"] for name, port in ports.items()}


def test_broadcast_reaches_all_others_and_not_the_sender(
    valed: Valed, trio: tuple[Port, Port, Port]
) -> None:
    a, b, c = trio
    sent = frame(BROADCAST, A, b"hello")
    a.send([sent])
    assert b.receive(1) == [sent]
    assert c.receive(1) == [sent]
    a.flush()
    assert deliveries(valed) == {"a": 0, "b": 1, "c": 1}
    rx = valed.qmp().port("vale1:a")["rx"]
    assert rx == {"frames": 1, "bytes": 60, "unicast": 0, "flooded": 1, "dropped": {}, **UNIMPAIRED}


def test_learned_station_is_reached_at_one_port_only(
    valed: Valed, trio: tuple[Port, Port, Port]
) -> None:
    a, b, c = trio
    introduce((b, B), everybody=[a, b, c])
    before = deliveries(valed)
    sent = numbered(B, A, 100)
    a.send(sent)
    assert b.receive(100) == sent
    a.flush()
    after = deliveries(valed)
    assert {name: after[name] - before[name] for name in after} == {"a": 0, "b": 100, "c": 0}
    assert valed.qmp().port("vale1:a")["rx"]["unicast"] == 100
    assert c.drain() == []


@pytest.mark.parametrize(
    ("dst", "what"),
    [
        (station(99), "unknown unicast"),
        (b"\x01\x00\x5e\x00\x00\x01", "IPv4 multicast"),
        (b"\x33\x33\x00\x00\x00\x01", "IPv6 multicast"),
        (b"\x01\x80\xc2\x00\x00\x00", "bridge group address: passes untouched"),
        (b"\0" * 6, "all zeros are no station of port 0"),
    ],
)
def test_flooded_destinations(
    valed: Valed, trio: tuple[Port, Port, Port], dst: bytes, what: str
) -> None:
    a, b, c = trio
    introduce((a, A), (b, B), (c, C), everybody=[a, b, c])
    sent = frame(dst, A, what.encode())
    a.send([sent])
    assert b.receive(1) == [sent]
    assert c.receive(1) == [sent]
    a.flush()
    assert valed.qmp().port("vale1:a")["tx"]["frames"] == 2  # the introductions of b and c
    assert valed.qmp().port("vale1:a")["rx"]["flooded"] == 2


def test_multicast_source_is_not_learned(valed: Valed, trio: tuple[Port, Port, Port]) -> None:
    a, b, c = trio
    group = b"\x03\x00\x00\x00\x00\x01"
    introduce((b, group), everybody=[a, b, c])
    a.send([frame(group, A)])
    b.receive(1)
    c.receive(1)
    assert valed.qmp().execute("query-switches")[0]["stations"] == 1


def test_station_that_moves_is_learned_again(valed: Valed, trio: tuple[Port, Port, Port]) -> None:
    """B speaks at b, then at c, then at b again, each time from its one address."""
    a, b, c = trio
    for i, (here, there) in enumerate([(b, c), (c, b), (b, c), (c, b)]):
        introduce((here, B), everybody=[a, b, c])
        sent = numbered(B, A, 10, first=10 * i)
        a.send(sent)
        assert here.receive(10) == sent
        a.flush()
        assert there.drain() == []
    assert valed.qmp().port("vale1:a")["rx"]["unicast"] == 40


def test_spoofed_station_comes_back_with_its_next_frame(
    valed: Valed, trio: tuple[Port, Port, Port]
) -> None:
    """c steals B's address; B needs no second address to have its own back."""
    a, b, c = trio
    introduce((b, B), (c, B), (b, B), everybody=[a, b, c])
    sent = numbered(B, A, 5)
    a.send(sent)
    assert b.receive(5) == sent
    a.flush()
    assert c.drain() == []


def test_to_itself_is_dropped_and_counted(valed: Valed, trio: tuple[Port, Port, Port]) -> None:
    a, b, c = trio
    introduce((a, A), everybody=[a, b, c])
    a.send([frame(A, station(7)), frame(A, A)])
    a.flush()
    rx = valed.qmp().port("vale1:a")["rx"]
    assert rx["dropped"] == {"self": 2}
    assert deliveries(valed) == {"a": 0, "b": 1, "c": 1}


def test_port_alone_sends_to_nobody(valed: Valed) -> None:
    a = valed.open("vale1:a")
    a.send(numbered(BROADCAST, A, 3))
    a.flush()
    rx = valed.qmp().port("vale1:a")["rx"]
    assert (rx["frames"], rx["flooded"], rx["dropped"]) == (3, 3, {})


def test_switches_are_apart(valed: Valed) -> None:
    """vale1:a and vale1:b on one, vale2:b on another: same port name, same stations."""
    a, b, other = valed.open("vale1:a"), valed.open("vale1:b"), valed.open("vale2:b")
    a.send(numbered(BROADCAST, A, 10))
    assert len(b.receive(10)) == 10
    a.flush()
    assert other.drain() == []
    assert valed.qmp().port("vale2:b")["tx"]["offered"] == 0


def test_stations_go_with_their_port(valed: Valed, trio: tuple[Port, Port, Port]) -> None:
    """b closes; frames for B are flooded then, also when a new port has b's place."""
    a, b, c = trio
    introduce((b, B), (c, C), everybody=[a, b, c])
    qmp = valed.qmp()
    b.close()
    while qmp.event()[0] != "PORT_REMOVED":
        pass
    assert qmp.execute("query-switches")[0]["stations"] == 1
    d = valed.open("vale1:d")
    a.send([frame(B, A)])
    assert len(c.receive(1)) == len(d.receive(1)) == 1
    a.flush()
    assert qmp.port("vale1:a")["rx"]["flooded"] == 1


def test_order_is_kept_between_unicast_and_flooded(
    valed: Valed, trio: tuple[Port, Port, Port]
) -> None:
    """In one batch alternate: to B, to all, to C; each receiver sees its own in order."""
    a, b, c = trio
    introduce((b, B), (c, C), everybody=[a, b, c])
    dst = [B, BROADCAST, C]
    a.send([numbered(dst[i % 3], A, 1, first=i)[0] for i in range(600)], batch=300)
    assert [number(f) for f in b.receive(400)] == [i for i in range(600) if i % 3 != 2]
    assert [number(f) for f in c.receive(400)] == [i for i in range(600) if i % 3 != 0]


def test_order_is_kept_over_many_laps(valed: Valed, trio: tuple[Port, Port, Port]) -> None:
    a, b, c = trio
    introduce((b, B), everybody=[a, b, c])
    for lap in range(20):
        a.send(numbered(B, A, 900, first=900 * lap))
        assert [number(f) for f in b.receive(900)] == list(range(900 * lap, 900 * lap + 900))
    assert valed.qmp().port("vale1:b")["tx"]["dropped"] == {}


# --------------------------------------------------------------------------------------- lengths


def pattern(length: int) -> bytes:
    """A frame of A to B of any length with a payload that repeats nowhere near."""
    body = b"".join((i * 2654435761 % 2**32).to_bytes(4, "big") for i in range(length // 4 + 1))
    return (B + A + b"\x88\xb5" + body)[:length]


def test_every_length_of_one_slot_arrives_as_it_was(
    valed: Valed, trio: tuple[Port, Port, Port]
) -> None:
    """14 to 2112 bytes. Beyond the frame's end the receiver's buffer stays as it was."""
    a, b, c = trio
    introduce((b, B), everybody=[a, b, c])
    rx = b.rx[0]
    size = rx.buf_size
    assert size == 2112
    for first in range(14, size + 1, 500):
        lengths = range(first, min(first + 500, size + 1))
        marks = {}
        for i, length in enumerate(lengths):
            at = rx.buffer(rx.slot(rx.ahead(rx.head, i))[0])
            b.mem[at : at + size] = b"\xa5" * size
            marks[at] = length
        a.send([pattern(length) for length in lengths])
        assert b.receive(len(lengths)) == [pattern(length) for length in lengths]
        for at, length in marks.items():
            assert bytes(b.mem[at + length : at + size]) == b"\xa5" * (size - length), length
    ports = valed.qmp().ports()
    assert ports["vale1:b"]["tx"]["bytes"] == sum(range(14, size + 1))


@pytest.mark.parametrize("length", [2113, 4223, 4224, 4225, 9000, 16384, 65534, 65535])
def test_long_frames_take_several_slots(
    valed: Valed, trio: tuple[Port, Port, Port], length: int
) -> None:
    a, b, c = trio
    introduce((b, B), everybody=[a, b, c])
    slots = -(-length // a.tx[0].buf_size)
    a.send([pattern(length)] * 20, batch=7)
    head = b.rx[0].head
    assert b.receive(20) == [pattern(length)] * 20
    flags = [b.rx[0].slot(b.rx[0].ahead(head, i))[2] for i in range(slots)]
    assert [f >> 8 for f in flags] == [slots] * slots
    assert [bool(f & 0x20) for f in flags] == [True] * (slots - 1) + [False]
    a.flush()
    assert valed.qmp().port("vale1:b")["tx"]["bytes"] == 20 * length
    assert c.drain() == []


CUTS: list[tuple[list[int], int]] = [
    ([1], 60),  # first slot shorter than an address
    ([5, 5, 5], 60),  # both addresses spread over three slots
    ([1] * 13, 64),
    ([0, 0, 60], 60),  # empty slots are legal
    ([6, 6, 2], 200),
    ([12], 60),
    ([11, 1], 60),
    ([1] * 63, 100),  # 64 slots, the most
    ([100, 2112, 3, 2112], 6000),
    ([60, 0], 60),  # the last one is empty
]


@pytest.mark.parametrize(("cuts", "length"), CUTS)
def test_frames_in_pieces_are_looked_up_and_joined(
    valed: Valed, trio: tuple[Port, Port, Port], cuts: list[int], length: int
) -> None:
    a, b, c = trio
    introduce((b, B), everybody=[a, b, c])
    for _ in range(3):
        a.tx[0].put(pattern(length), cuts)
    a.tx[0].publish()
    assert b.receive(3) == [pattern(length)] * 3
    a.flush()
    assert c.drain() == []
    ports = valed.qmp().ports()
    check_books(ports)
    assert ports["vale1:a"]["rx"]["unicast"] == 3


# ---------------------------------------------------------------------------------- several rings


def test_queues_map_onto_the_receivers_rings(valed: Valed) -> None:
    """a with 4 TX rings; b has 2 RX rings, c has 8, d has one: ring i goes to i modulo theirs."""
    a = valed.open("vale1:a", tx_rings=4)
    b, c = valed.open("vale1:b", rx_rings=2), valed.open("vale1:c", rx_rings=8)
    d = valed.open("vale1:d")
    assert (len(a.tx), len(a.rx)) == (4, 1)
    for ring in range(4):
        a.send(numbered(BROADCAST, A, 10 + ring, first=100 * ring), ring=ring)
        a.flush()
    want = {ring: [100 * ring + i for i in range(10 + ring)] for ring in range(4)}
    for ring in range(2):
        got = [number(f) for f in b.receive(len(want[ring] + want[ring + 2]), ring=ring)]
        assert got == want[ring] + want[ring + 2]
    for ring in range(4):
        assert [number(f) for f in c.receive(len(want[ring]), ring=ring)] == want[ring]
    assert [number(f) for f in d.receive(46)] == sum(want.values(), [])
    assert b.drain() == c.drain() == d.drain() == []
    ports = valed.qmp().ports()
    check_books(ports)
    assert ports["vale1:a"]["rings"] == 4
    assert ports["vale1:a"]["rx"]["frames"] == 46
