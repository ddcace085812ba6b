# SPDX-License-Identifier: BSD-2-Clause
"""Monitors: who watches a port sees copies of its frames, and nobody else notices.

    vale1:a <------------> vale1:b
       |                      |
    monitor of a           monitor of b     TX: what the port sends; RX: what it was delivered
"""

import errno
import grp
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from blackbox.test_pktgen import Pktgen, environment, one_line
from blackbox.test_valed_offload import PORT_HDR_GET, PORT_HDR_SET, Segment, get_header
from blackbox.test_valed_ports import add_tap, source, stream_peer
from blackbox.test_valed_wait import lock, running, waits
from lib import netns
from lib.native import (
    BROADCAST,
    MONITOR_RX,
    MONITOR_TX,
    TXMON,
    ZCOPY_MON,
    Port,
    connect,
    frame,
    message,
    number,
    numbered,
    register,
    request,
    station,
)
from lib.netns import Namespace
from lib.qmp import QmpError
from lib.valed import BINARY, ROOT, Valed, check_books, eventually
from lib.vhost import FrontEnd

pytestmark = pytest.mark.blackbox

A, B, C = (station(n) for n in range(1, 4))
BOTH = MONITOR_RX | MONITOR_TX


def errno_of(valed: Valed, name: str, flags: int) -> int:
    """REGISTER's errno."""
    with connect(valed.rundir) as sock:
        answer = register(sock, name, flags=flags)
        answer.close()
        return answer.error


def seen(monitor: Port, n: int) -> list[tuple[bool, bytes]]:
    """The next n frames, each of one slot, and whether the port has sent it."""
    found = []
    rx = monitor.rx[0]
    for _ in range(n):
        if not rx.room:
            monitor._wait_rx(20)
        sent = bool(rx.slot(rx.head)[2] & TXMON)
        found.append((sent, *monitor.receive(1)))
    return found


def monitors(valed: Valed, switch: str = "vale1") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = valed.qmp().execute("query-monitors", switch=switch)
    for monitor in found:
        copies = monitor["copies"]
        assert copies["offered"] == copies["frames"] + sum(copies["dropped"].values())
    return found


def copies(valed: Valed) -> dict[str, Any]:
    """The counters of the only monitor."""
    (monitor,) = monitors(valed)
    found: dict[str, Any] = monitor["copies"]
    return found


@pytest.fixture
def pair(valed: Valed) -> tuple[Port, Port]:
    """Two ports that know each other's station."""
    a, b = valed.open("vale1:a"), valed.open("vale1:b")
    b.send([frame(BROADCAST, B)])
    a.send([frame(BROADCAST, A)])
    for port in (a, b):
        port.receive(1)
        port.flush()
    return a, b


# ------------------------------------------------------------------------------------- what is seen


@pytest.mark.parametrize("flags", [MONITOR_TX, MONITOR_RX, BOTH, BOTH | ZCOPY_MON])
def test_monitor_of_a_port(valed: Valed, pair: tuple[Port, Port], flags: int) -> None:
    a, b = pair
    monitor = valed.open("vale1:a", flags=flags)
    expected = []
    for i in range(50):
        out, back = frame(B, A, bytes([i])), frame(A, B, bytes([i]))
        a.send([out])
        assert b.receive(1) == [out]
        b.send([back])
        assert a.receive(1) == [back]
        expected += [(True, out)] if flags & MONITOR_TX else []
        expected += [(False, back)] if flags & MONITOR_RX else []
    assert seen(monitor, len(expected)) == expected
    a.flush()
    b.flush()
    ports = valed.qmp().ports()
    check_books(ports)
    assert set(ports) == {"vale1:a", "vale1:b"}
    assert copies(valed) == {
        "offered": len(expected),
        "frames": len(expected),
        "bytes": 60 * len(expected),
        "dropped": {},
    }
    assert not any(rx.room for rx in monitor.rx)


def test_what_somebody_else_gets_is_not_seen(valed: Valed, pair: tuple[Port, Port]) -> None:
    """Floods are, and unicast between others is not."""
    a, b = pair
    c = valed.open("vale1:c")
    monitor = valed.open("vale1:c", flags=BOTH)
    a.send(numbered(B, A, 5))
    b.receive(5)
    a.send([frame(BROADCAST, A)])
    assert c.receive(1) == [frame(BROADCAST, A)]
    assert seen(monitor, 1) == [(False, frame(BROADCAST, A))]
    a.flush()
    assert copies(valed)["offered"] == 1


def test_monitor_of_a_switch(valed: Valed, pair: tuple[Port, Port]) -> None:
    """TX: each frame once, wherever it goes; RX: once for each port that it is delivered to."""
    a, b = pair
    c = valed.open("vale1:c")
    other = valed.open("vale2:a")
    tx, rx = valed.open("vale1:", flags=MONITOR_TX), valed.open("vale1:", flags=MONITOR_RX)
    flood, unicast = frame(BROADCAST, C), frame(B, A)
    c.send([flood])
    a.receive(1)
    b.receive(1)
    a.send([unicast])
    b.receive(1)
    other.send([flood])
    for port in (other, a, c):
        port.flush()
    assert seen(tx, 2) == [(True, flood), (True, unicast)]
    assert seen(rx, 3) == [(False, flood), (False, flood), (False, unicast)]
    assert [m["copies"]["offered"] for m in monitors(valed)] == [2, 3]
    assert monitors(valed, "vale2") == []


def test_a_port_that_comes_later_is_seen_by_the_switchs_monitor(valed: Valed) -> None:
    valed.open("vale1:a")
    monitor = valed.open("vale1:", flags=MONITOR_TX)
    valed.open("vale1:b").send([frame(BROADCAST, B)])
    assert seen(monitor, 1) == [(True, frame(BROADCAST, B))]


def test_several_monitors_see_the_same(valed: Valed, pair: tuple[Port, Port]) -> None:
    a, b = pair
    watching = [valed.open("vale1:a", flags=MONITOR_TX) for _ in range(5)]
    watching += [valed.open("vale1:b", flags=MONITOR_RX) for _ in range(5)]
    watching += [valed.open("vale1:", flags=MONITOR_TX) for _ in range(5)]
    frames = numbered(B, A, 300)
    a.send(frames)
    assert b.receive(300) == frames
    for monitor in watching:
        assert monitor.receive(300) == frames


def test_long_frames_take_several_slots(valed: Valed, pair: tuple[Port, Port]) -> None:
    a, b = pair
    monitor = valed.open("vale1:a", flags=MONITOR_TX)
    frames = numbered(B, A, 20, length=9000)
    a.send(frames)
    assert b.receive(20) == frames
    assert monitor.receive(20) == frames


def test_rings_of_a_monitor_are_those_of_its_port(valed: Valed) -> None:
    a = valed.open("vale1:a", tx_rings=4, rx_rings=2)
    monitor = valed.open("vale1:a", flags=MONITOR_TX, rx_slots=512)
    assert (monitor.rx_rings, monitor.rx_slots) == (4, 512)
    for ring in range(4):
        a.send([frame(BROADCAST, A, bytes([ring]))], ring=ring)
    for ring in range(4):
        assert monitor.receive(1, ring=ring) == [frame(BROADCAST, A, bytes([ring]))]


def test_monitor_cannot_send(valed: Valed, pair: tuple[Port, Port]) -> None:
    """No room in its TX ring; and what is published all the same goes nowhere."""
    a, b = pair
    monitor = valed.open("vale1:a", flags=BOTH)
    assert [tx.room for tx in monitor.tx] == [0]
    monitor.tx[0].put(frame(BROADCAST, C))
    monitor.tx[0].publish()
    monitor.kick()
    a.send([frame(B, A)])
    assert b.receive(1) == [frame(B, A)]
    assert valed.qmp().port("vale1:b")["tx"]["frames"] == 2


# -------------------------------------------------------------------------------- only what arrives


def test_frames_that_are_dropped_were_not_delivered(valed: Valed, pair: tuple[Port, Port]) -> None:
    """Of a receiver that is full: what it was sent is seen as sent, what it got as delivered."""
    a, b = pair
    sent = valed.open("vale1:a", flags=MONITOR_TX, rx_slots=4096)
    delivered = valed.open("vale1:b", flags=MONITOR_RX, rx_slots=4096)
    frames = numbered(B, A, 1500)
    a.send(frames)
    a.flush()
    assert sent.receive(1500) == frames
    got = b.receive(1023)
    assert delivered.receive(1023) == got
    assert [m["copies"]["offered"] for m in monitors(valed)] == [1500, 1023]


def test_bad_slot_of_the_receiver(valed: Valed, pair: tuple[Port, Port]) -> None:
    """The one frame for which the receiver gave no buffer is not seen as delivered."""
    a, b = pair
    monitor = valed.open("vale1:b", flags=MONITOR_RX)
    rx = b.rx[0]
    rx.set_slot(rx.ahead(rx.head, 3), 0, 0, 0)
    frames = numbered(B, A, 10)
    a.send(frames)
    a.flush()
    assert monitor.receive(9) == frames[:3] + frames[4:]
    assert valed.qmp().port("vale1:b")["tx"]["dropped"] == {"bad_slot": 1}
    assert copies(valed)["offered"] == 9


def test_nobody_is_connected(valed: Valed) -> None:
    """A vhost-user port without its guest drops, and its monitor sees nothing of it."""
    valed.qmp().execute("port-add", name="vale1:v", kind="vhost-user")
    monitor = valed.open("vale1:v", flags=BOTH)
    a = valed.open("vale1:a")
    a.send(numbered(BROADCAST, A, 10))
    a.flush()
    assert valed.qmp().port("vale1:v")["tx"]["dropped"] == {"down": 10}
    with FrontEnd(valed.rundir / "vale1:v") as front:
        a.send([frame(BROADCAST, A, b"up")])
        assert front.receive(1) == [frame(BROADCAST, A, b"up")]
    assert seen(monitor, 1) == [(False, frame(BROADCAST, A, b"up"))]


def test_slow_monitor_loses_its_own_copies(valed: Valed, pair: tuple[Port, Port]) -> None:
    """10000 frames pass one that does not read; the pair, and a monitor that reads, lose none."""
    a, b = pair
    slow = valed.open("vale1:a", flags=BOTH)
    total, window = 10000, 500
    fast = valed.open("vale1:a", flags=BOTH)
    for first in range(0, total, window):
        frames = numbered(B, A, window, first=first)
        a.send(frames)
        assert b.receive(window) == frames
        assert fast.receive(window) == frames
    a.flush()
    counted = [m["copies"] for m in monitors(valed)]
    assert counted[0]["offered"] == counted[1]["frames"] == total
    assert counted[0]["dropped"] == {"ring_full": total - 1023}
    assert counted[1]["dropped"] == {}
    ports = valed.qmp().ports()
    check_books(ports)
    assert ports["vale1:b"]["tx"]["dropped"] == {}
    assert slow.receive(1023) == numbered(B, A, 1023)
    a.send([frame(B, A)])
    assert slow.receive(1) == [frame(B, A)]


def test_monitor_under_flood_of_workers(pair_valed: Valed) -> None:
    """Monitors come and go while two workers forward both ways; none of the ports loses a frame."""
    valed, total = pair_valed, 20000
    a, b = valed.open("vale1:a"), valed.open("vale1:b")
    valed.open("vale1:c")  # keeps floods from being cheap
    lock(valed, "vale1:a", A)
    lock(valed, "vale1:b", B)
    waits(valed)

    def receive(port: Port) -> None:
        frames = port.receive(total)
        assert [number(f) for f in frames] == list(range(total))

    with (
        running(lambda: receive(a)),
        running(lambda: receive(b)),
        running(lambda: a.send(numbered(B, A, total))),
        running(lambda: b.send(numbered(A, B, total))),
    ):
        for i in range(60):
            name = ("vale1:", "vale1:a", "vale1:b")[i % 3]
            with Port.open(valed.rundir, name, flags=BOTH) as monitor:
                monitor.drain()
    assert monitors(valed) == []
    for port in ("vale1:a", "vale1:b"):
        assert valed.qmp().port(port)["tx"]["dropped"] == {}


@pytest.fixture
def pair_valed() -> Any:
    with Valed.run("--workers", "2") as valed:
        yield valed


# -------------------------------------------------------------------------------------- other kinds


def test_vhost_user(valed: Valed) -> None:
    valed.qmp().execute("port-add", name="vale1:v", kind="vhost-user")
    a = valed.open("vale1:a")
    monitor = valed.open("vale1:v", flags=BOTH)
    with FrontEnd(valed.rundir / "vale1:v") as front:
        out, back = numbered(A, B, 20), numbered(B, A, 20)
        front.send(out)
        assert a.receive(20) == out
        a.send(back)
        assert front.receive(20) == back
        assert seen(monitor, 40) == [(True, f) for f in out] + [(False, f) for f in back]


def test_stream(valed: Valed) -> None:
    with stream_peer(valed, "vale1:s", connect=False) as peer:
        a = valed.open("vale1:a")
        monitor = valed.open("vale1:s", flags=BOTH)
        peer.send(frame(BROADCAST, B))
        a.receive(1)
        a.send([frame(B, A)])
        assert seen(monitor, 2) == [(True, frame(BROADCAST, B)), (False, frame(B, A))]


@pytest.mark.interfaces
def test_tap(valed: Valed) -> None:
    """While the device is down nothing is delivered; its removal ends the monitor."""
    if reason := netns.why_not():
        pytest.skip(reason)
    with Namespace.make("m") as space:
        a = valed.open("vale1:a")
        add_tap(valed.qmp(), "vale1:t", space.open_tap("tap0"))
        monitor = valed.open("vale1:t", flags=MONITOR_RX)
        a.send(numbered(BROADCAST, A, 3))
        a.flush()
        space.up("tap0")
        a.send(numbered(BROADCAST, A, 4, first=3))
        assert monitor.receive(4) == numbered(BROADCAST, A, 4, first=3)
        space.ip("link", "del", "tap0")
        assert monitor.hung_up()


def test_null(valed: Valed) -> None:
    """Both ends of the shortest path there is, to the last frame."""
    qmp = valed.qmp()
    qmp.execute("port-add", name="vale1:sink", kind="null")
    tx = valed.open("vale1:", flags=MONITOR_TX, rx_slots=4096)
    rx = valed.open("vale1:sink", flags=MONITOR_RX, rx_slots=4096)
    qmp.execute("port-add", name="vale1:source", kind="null", source=source(3000, B, A))
    assert len(tx.receive(3000)) == len(rx.receive(3000)) == 3000


def test_p2p(valed: Valed) -> None:
    """A monitor is no third port of a link, and sees what passes untouched there."""
    valed.qmp().execute("switch-set", name="vale1", p2p=True)
    a, b = valed.open("vale1:0"), valed.open("vale1:1")
    monitor = valed.open("vale1:", flags=BOTH)
    lldp = frame(bytes.fromhex("0180c200000e"), A)
    a.send([lldp])
    assert b.receive(1) == [lldp]
    assert seen(monitor, 2) == [(True, lldp), (False, lldp)]


def test_switch_that_waits(valed: Valed) -> None:
    """Frames that wait are seen once, when they are through; a full monitor holds up nobody."""
    waits(valed)
    a, b = valed.open("vale1:a"), valed.open("vale1:b")
    lock(valed, "vale1:b", B)
    sent = valed.open("vale1:a", flags=MONITOR_TX, rx_slots=4096)
    delivered = valed.open("vale1:b", flags=MONITOR_RX, rx_slots=4096)
    full = valed.open("vale1:", flags=BOTH, rx_slots=64)
    frames = numbered(B, A, 3000)
    with running(lambda: a.send(frames)):
        eventually("a full receiver", lambda: b.rx[0].room == 1023)
        assert b.receive(3000) == frames
    a.flush()
    assert sent.receive(3000) == delivered.receive(3000) == frames
    counted = [m["copies"] for m in monitors(valed)]
    assert [c["offered"] for c in counted] == [3000, 3000, 6000]
    assert counted[2]["dropped"] == {"ring_full": 6000 - 63}
    assert len(full.receive(63)) == 63


# ----------------------------------------------------------------------------------------- offloads


def test_frames_are_shown_as_they_came(valed: Valed) -> None:
    """Not completed for a monitor; one with a header is told; what was cut is shown whole, once."""
    a, b = valed.open("vale1:a"), valed.open("vale1:b")
    lock(valed, "vale1:b", B)
    plain = valed.open("vale1:a", flags=MONITOR_TX)
    told = valed.open("vale1:b", flags=MONITOR_RX)
    body = struct.pack("<I4x", 12)
    assert request(told.sock, message(PORT_HDR_SET, "vale1:b", body)).error == 0
    answer = request(told.sock, message(PORT_HDR_GET, "vale1:b", body))
    assert struct.unpack_from("<I", answer.body)[0] == 12
    assert get_header(valed, "vale1:b") == 0  # the port's own
    with connect(valed.rundir) as sock:
        assert request(sock, message(PORT_HDR_SET, "vale1:a", body)).error == 0
    segment = Segment(os.urandom(3000))
    header, whole = segment.header(1000), segment.build(complete=False)
    a.send([header + whole])
    assert b.receive(3) == [s.build() for s in segment.cut(1000)]
    assert plain.receive(1) == [whole]
    (shown,) = told.receive(1)
    assert shown[12:] == whole
    assert shown[:2] == header[:2]
    a.flush()
    assert [m["copies"]["offered"] for m in monitors(valed)] == [1, 1]


def test_frame_that_lost_a_segment_was_not_delivered(valed: Valed) -> None:
    a, b = valed.open("vale1:a"), valed.open("vale1:b", rx_slots=64)
    lock(valed, "vale1:b", B)
    monitor = valed.open("vale1:b", flags=MONITOR_RX)
    with connect(valed.rundir) as sock:
        body = struct.pack("<I4x", 12)
        assert request(sock, message(PORT_HDR_SET, "vale1:a", body)).error == 0
    segment = Segment(bytes(3000))
    frames = [segment.header(100) + segment.build(complete=False)] * 3  # of 30 segments each
    a.send(frames)
    a.flush()
    assert len(b.receive(63)) == 63
    assert monitor.receive(2) == [segment.build(complete=False)] * 2
    assert copies(valed)["offered"] == 2


# --------------------------------------------------------------------------- who may, and what ends


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("vale1:b", BOTH),
        ("vale2:a", BOTH),
        ("vale2:", BOTH),
        ("vale1:a", ZCOPY_MON),
        ("vale1", BOTH),
        ("vale1:a/r", BOTH),
        ("vale1:", 0),
    ],
)
def test_nothing_to_watch(valed: Valed, name: str, flags: int) -> None:
    valed.open("vale1:a")
    assert errno_of(valed, name, flags) == errno.EINVAL
    assert monitors(valed) == []
    assert set(valed.qmp().ports()) == {"vale1:a"}


def test_too_many(valed: Valed) -> None:
    valed.open("vale1:a")
    for _ in range(15):
        valed.open("vale1:a", flags=MONITOR_TX, rx_slots=64)
    last = valed.open("vale1:", flags=MONITOR_TX, rx_slots=64)
    assert errno_of(valed, "vale1:a", MONITOR_TX) == errno.ENOMEM
    last.close()
    eventually("a monitor less", lambda: len(monitors(valed)) == 15)
    assert errno_of(valed, "vale1:a", MONITOR_TX) == 0


def test_a_connection_binds_one_thing(valed: Valed) -> None:
    a = valed.open("vale1:a")
    assert register(a.sock, "vale1:a", flags=MONITOR_TX).error == errno.EBUSY
    monitor = valed.open("vale1:a", flags=MONITOR_TX)
    assert register(monitor.sock, "vale1:b").error == errno.EBUSY


def test_hangs_up_with_its_port(valed: Valed, pair: tuple[Port, Port]) -> None:
    """After the last frame that the port had published; others' monitors stay."""
    a, b = pair
    ending = [valed.open("vale1:a", flags=BOTH) for _ in range(3)]
    staying = [valed.open("vale1:b", flags=BOTH), valed.open("vale1:", flags=BOTH)]
    frames = numbered(B, A, 200)
    qmp = valed.qmp()
    a.send(frames)
    a.close()
    for monitor in ending:
        assert monitor.hung_up()
        assert monitor.receive(200) == frames
    for monitor in staying:
        assert not monitor.hung_up(0)
    events = [qmp.event() for _ in range(4)]
    assert [e for e, _ in events] == ["PORT_REMOVED", *["MONITOR_REMOVED"] * 3]
    assert {d["reason"] for _, d in events[1:]} == {"its port has gone"}
    assert {d["copies"]["frames"] for _, d in events[1:]} == {200}
    assert valed.open("vale1:a").name == "vale1:a"
    assert len(monitors(valed)) == 2
    b.drain()


def test_hangs_up_with_its_switch(valed: Valed) -> None:
    a = valed.open("vale1:a")
    monitor = valed.open("vale1:", flags=BOTH)
    a.close()
    assert monitor.hung_up()
    assert valed.qmp().execute("query-switches") == []


def test_a_kept_switch_is_watched_without_ports(valed: Valed) -> None:
    qmp = valed.qmp()
    qmp.execute("switch-set", name="vale1", keep=True)
    monitor = valed.open("vale1:", flags=BOTH)
    with valed.open("vale1:a") as a:
        a.send([frame(BROADCAST, A)])
        assert seen(monitor, 1) == [(True, frame(BROADCAST, A))]
    assert not monitor.hung_up(0)
    qmp.execute("switch-set", name="vale1", keep=False)
    assert monitor.hung_up()


def test_nothing_is_left_behind(valed: Valed, pair: tuple[Port, Port]) -> None:
    a, b = pair
    before = valed.fds()
    for i in range(50):
        with Port.open(valed.rundir, "vale1:a", flags=BOTH, rx_slots=64):
            a.send([frame(B, A, bytes([i]))])
            b.receive(1)
    eventually("no monitors", lambda: monitors(valed) == [])
    valed.close_clients()
    eventually("all descriptors closed", lambda: valed.fds() < before)


def as_nobody(valed: Valed, name: str) -> int:
    return valed.as_nobody(lambda: errno_of(valed, name, BOTH))


@pytest.mark.another_user
@pytest.mark.parametrize("name", ["vale1:a", "vale1:", "vale9:x"])
def test_others_may_not(valed: Valed, name: str) -> None:
    """Also of a port of their own uid, and without a word about what there is."""
    valed.open("vale1:a")
    assert as_nobody(valed, name) == errno.EPERM


@pytest.mark.another_user
def test_not_even_their_own(valed: Valed) -> None:
    def own() -> int:
        with Port.open(valed.rundir, "vale1:n"):
            return errno_of(valed, "vale1:n", BOTH)

    assert valed.as_nobody(own) == errno.EPERM


@pytest.mark.another_user
@pytest.mark.parametrize("how", ["primary", "supplementary", "neither"])
def test_members_of_the_group_may(how: str) -> None:
    group = grp.getgrnam("daemon")
    gid = group.gr_gid if how == "primary" else 65534
    groups = (12345, group.gr_gid) if how == "supplementary" else (12345,)
    with Valed.run("--monitor-group", group.gr_name) as valed:
        valed.open("vale1:a")
        got = valed.as_nobody(lambda: errno_of(valed, "vale1:a", BOTH), gid, groups)
    assert got == (errno.EPERM if how == "neither" else 0)


def test_unknown_group_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [BINARY, "--rundir", str(tmp_path / "run"), "--monitor-group", "nogroup-at-all"],
        capture_output=True, text=True, timeout=20, check=False,
    )
    assert done.returncode == 2
    assert one_line(done.stderr).endswith("--monitor-group nogroup-at-all: no such group")


# -------------------------------------------------------------------------------------------- tools


def test_query_monitors(valed: Valed) -> None:
    valed.open("vale1:a")
    valed.open("vale1:a", flags=MONITOR_TX)
    valed.open("vale1:", flags=MONITOR_RX)
    of_port, of_switch = monitors(valed)
    assert (of_port["name"], of_port["tx"], of_port["rx"]) == ("vale1:a", True, False)
    assert (of_switch["name"], of_switch["tx"], of_switch["rx"]) == ("vale1:", False, True)
    assert of_port["peer"] == {"uid": os.getuid(), "pid": os.getpid()}
    assert valed.qmp().execute("query-monitors") == [of_port, of_switch]
    with pytest.raises(QmpError):
        valed.qmp().execute("query-monitors", switch="vale9")


@pytest.mark.parametrize(
    ("suffix", "expected"), [("/t", 100), ("/r", 50), ("/rt", 150), ("/tr", 150)]
)
def test_pktgen_watches(valed: Valed, pair: tuple[Port, Port], suffix: str, expected: int) -> None:
    a, b = pair
    options = ["-i", f"vale1:a{suffix}", "-f", "rx", "-n", str(expected), "--json"]
    watching = Pktgen(environment(valed.rundir), *options).wait_ready()
    a.send(numbered(B, A, 100))
    b.receive(100)
    b.send(numbered(A, B, 50))
    a.receive(50)
    report = watching.result()
    assert (report["packets"], report["bytes"]) == (expected, expected * 60)


@pytest.mark.parametrize(
    ("name", "role", "code", "words"),
    [
        ("vale1:b/rt", "rx", 1, "not open on"),
        ("vale2:/rt", "rx", 1, "not open on"),
        ("vale1:a/x", "rx", 2, "ends in no monitor"),
        ("vale1:a/", "rx", 2, "ends in no monitor"),
        ("vale1:a/rt", "tx", 2, "only receives"),
        ("vale1:", "rx", 2, "is not a port name"),
    ],
)
def test_pktgen_says_why_not(valed: Valed, name: str, role: str, code: int, words: str) -> None:
    valed.open("vale1:a")
    failed, line = Pktgen(environment(valed.rundir), "-i", name, "-f", role).failure()
    assert failed == code, line
    assert words in line


def test_valectl_shows_monitors(valed: Valed, pair: tuple[Port, Port]) -> None:
    a, b = pair
    valed.open("vale1:a", flags=BOTH)
    valed.open("vale1:b", flags=BOTH)
    valed.open("vale1:", flags=MONITOR_TX)
    a.send(numbered(B, A, 7))
    b.receive(7)
    a.flush()
    shown = subprocess.run(
        [ROOT / "build/bin/valectl", "--rundir", str(valed.rundir), "show", "vale1:a"],
        capture_output=True, text=True, timeout=20, check=True,
    ).stdout
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "monitors.0.copies.frames 7" in lines
    assert "monitors.1.name vale1:" in lines
    assert not any(line.startswith("monitors.2") for line in lines)
