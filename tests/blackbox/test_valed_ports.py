# SPDX-License-Identifier: BSD-2-Clause
"""Stream, null and tap ports, alone and mixed.

    test --socket-- [stream] --+                  +-- [tap] -- namespace
                               +--- vale1 of a ---+
    test --memory-- [native] --+      valed       +-- [null]

Frames are compared byte by byte and every count is exact.
"""

import array
import contextlib
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib import netns
from lib.native import BROADCAST, SECONDS, frame, number, numbered, station
from lib.netns import Namespace
from lib.qmp import Qmp, QmpError
from lib.valed import UNIMPAIRED, Valed, check_books, eventually

pytestmark = pytest.mark.blackbox

A, B, C = station(1), station(2), station(3)
LENGTHS = [14, 15, 59, 60, 61, 1514, 2047, 2048, 2049, 4096, 9014, 65535]


def varied(dst: bytes, src: bytes) -> list[bytes]:
    """One frame of each length, no two bytes of which could be swapped unnoticed."""
    text = b"".join(struct.pack(">I", i) for i in range(65536 // 4))
    return [(dst + src + b"\x88\xb5" + text)[:length] for length in LENGTHS]


def ports_after(qmp: Qmp, **sent: int) -> dict[str, dict[str, Any]]:
    """All ports of vale1, once those named have sent so many frames; the books are right then.

    A port's rx is counted last, when its batch has reached every destination.
    """
    for name, frames in sent.items():
        port = f"vale1:{name}"
        eventually(
            f"{frames} frames from {port}",
            lambda port=port, frames=frames: qmp.port(port)["rx"]["frames"] == frames,
        )
    ports = qmp.ports()
    check_books(ports)
    return ports


# --------------------------------------------------------------------------------------- stream


class Peer:
    """The other end of a stream port."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(SECONDS)

    @classmethod
    def connect(cls, path: Path) -> "Peer":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        return cls(sock)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.sock.close()

    def send(self, *frames: bytes) -> None:
        self.sock.sendall(b"".join(struct.pack(">I", len(f)) + f for f in frames))

    def _exactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            part = self.sock.recv(n - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def receive(self) -> bytes:
        (length,) = struct.unpack(">I", self._exactly(4))
        return self._exactly(length)

    def hung_up(self) -> bool:
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True


@contextlib.contextmanager
def stream_peer(valed: Valed, name: str, connect: bool) -> Iterator[Peer]:
    """A stream port and its peer; connect: valed does, else the peer."""
    path = valed.rundir / "stream.sock"
    with contextlib.ExitStack() as stack:
        if connect:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(SECONDS)
        qmp = valed.qmp()
        qmp.execute("port-add", name=name, kind="stream", path=str(path), connect=connect)
        peer = Peer(listener.accept()[0]) if connect else Peer.connect(path)
        stack.enter_context(peer)
        wait_event(qmp, "PORT_UP", name)
        yield peer


def wait_event(qmp: Qmp, event: str, name: str) -> dict[str, Any]:
    """Pass over events until this one of this port."""
    while True:
        got, data = qmp.event()
        if (got, data["name"]) == (event, name):
            return data


@pytest.mark.parametrize("connect", [False, True], ids=["valed listens", "valed connects"])
def test_stream_frames_arrive_byte_for_byte_both_ways(valed: Valed, connect: bool) -> None:
    native = valed.open("vale1:n")
    with stream_peer(valed, "vale1:s", connect) as peer:
        out, back = varied(BROADCAST, A), varied(BROADCAST, B)
        native.send(out)
        assert [peer.receive() for _ in out] == out
        peer.send(*back)
        assert native.receive(len(back)) == back
        native.flush()
        ports = ports_after(valed.qmp(), s=len(LENGTHS))
    assert ports["vale1:s"]["tx"]["frames"] == ports["vale1:s"]["rx"]["frames"] == len(LENGTHS)
    assert ports["vale1:s"]["tx"]["bytes"] == ports["vale1:s"]["rx"]["bytes"] == sum(LENGTHS)
    assert ports["vale1:s"]["peer"]["pid"] == os.getpid()
    eventually("nobody to be there", lambda: valed.qmp().port("vale1:s")["peer"]["pid"] == 0)


def test_stream_frames_may_come_in_any_pieces(valed: Valed) -> None:
    native = valed.open("vale1:n")
    frames = numbered(BROADCAST, A, 20, length=61)
    data = b"".join(struct.pack(">I", len(f)) + f for f in frames)
    with stream_peer(valed, "vale1:s", connect=False) as peer:
        for size in (1, 3, 64, 67):
            for at in range(0, len(data), size):
                peer.sock.send(data[at : at + size])
            assert native.receive(20) == frames


def test_stream_frame_that_is_too_short_is_dropped_and_counted(valed: Valed) -> None:
    native = valed.open("vale1:n")
    good = frame(BROADCAST, A)
    with stream_peer(valed, "vale1:s", connect=False) as peer:
        peer.send(b"", b"x" * 13, good)
        assert native.receive(1) == [good]
        rx = ports_after(valed.qmp(), s=3)["vale1:s"]["rx"]
    assert (rx["frames"], rx["dropped"]) == (3, {"short": 2})


@pytest.mark.parametrize("length", [65536, 0x7FFFFFFF, 0xFFFFFFFF])
def test_impossible_length_ends_the_connection_and_not_the_port(valed: Valed, length: int) -> None:
    native = valed.open("vale1:n")
    first, second = numbered(BROADCAST, A, 2)
    with stream_peer(valed, "vale1:s", connect=False) as peer:
        peer.send(first)
        peer.sock.send(struct.pack(">I", length) + bytes(100))
        assert native.receive(1) == [first]
        assert peer.hung_up()
    with Peer.connect(valed.rundir / "stream.sock") as peer:
        peer.send(second)
        assert native.receive(1) == [second]


def test_peer_that_never_reads_loses_its_own_frames_only(valed: Valed) -> None:
    a, b = valed.open("vale1:a"), valed.open("vale1:b")
    sent = numbered(BROADCAST, A, 500, length=9014)
    with stream_peer(valed, "vale1:s", connect=False) as peer:
        for at in range(0, len(sent), 50):
            a.send(sent[at : at + 50])
            assert b.receive(50) == sent[at : at + 50]
        a.flush()
        tx = valed.qmp().port("vale1:s")["tx"]
        assert tx["offered"] == 500
        assert 0 < tx["frames"] < 500
        assert tx["dropped"] == {"ring_full": 500 - tx["frames"]}
        # What it got is whole: the last frame is finished once there is room again.
        assert [peer.receive() for _ in range(tx["frames"])] == sent[: tx["frames"]]
        a.send([sent[-1]])
        assert peer.receive() == sent[-1]
    check_books(valed.qmp().ports())


@pytest.mark.parametrize("overflow", ["drop", "wait"])
def test_what_a_peer_sent_before_it_hung_up_is_forwarded(valed: Valed, overflow: str) -> None:
    """Twenty times, all that the socket holds; the next peer is not mixed in."""
    qmp = valed.qmp()
    qmp.execute("switch-set", name="vale1", overflow=overflow)
    native = valed.open("vale1:n", rx_slots=4096)
    total = 0
    qmp.execute("port-add", name="vale1:s", kind="stream", path="stream.sock")
    for lap in range(20):
        with Peer.connect(valed.rundir / "stream.sock") as peer:
            peer.sock.setblocking(False)
            count = 0
            with contextlib.suppress(BlockingIOError):
                while count < 1000:
                    data = frame(BROADCAST, A, struct.pack(">I", count), 60 + lap)
                    peer.sock.send(struct.pack(">I", len(data)) + data)
                    count += 1
        assert [number(f) for f in native.receive(count)] == list(range(count))
        total += count
    assert total > 1000
    eventually("counters", lambda: qmp.port("vale1:s")["rx"]["frames"] == total)
    check_books(qmp.ports())


def test_what_a_peer_sent_before_its_port_ends_is_forwarded(valed: Valed) -> None:
    qmp = valed.qmp()
    native = valed.open("vale1:n")
    with stream_peer(valed, "vale1:s", connect=False) as peer:
        peer.send(frame(BROADCAST, A))
        native.receive(1)
        os.kill(valed.pid, signal.SIGSTOP)
        qmp.send(b'{"execute": "port-del", "arguments": {"name": "vale1:s"}}\n')
        peer.send(*numbered(BROADCAST, A, 500))
        os.kill(valed.pid, signal.SIGCONT)
        eventually("all", lambda: native.rx[0].room >= 500)
        assert [number(f) for f in native.drain()] == list(range(500))
        assert peer.hung_up()


def test_next_peer_begins_anew(valed: Valed) -> None:
    native = valed.open("vale1:n")
    qmp = valed.qmp()
    whole = frame(BROADCAST, A)
    with stream_peer(valed, "vale1:s", connect=False) as peer:
        peer.send(whole)
        assert native.receive(1) == [whole]
        peer.sock.send(struct.pack(">I", 60) + b"half a frame")
    wait_event(qmp, "PORT_DOWN", "vale1:s")
    native.send([whole] * 3)
    native.flush()
    assert qmp.port("vale1:s")["tx"]["dropped"] == {"down": 3}
    with Peer.connect(valed.rundir / "stream.sock") as peer:
        wait_event(qmp, "PORT_UP", "vale1:s")
        peer.send(whole)
        assert native.receive(1) == [whole]
        native.send([whole])
        assert peer.receive() == whole
    ports_after(qmp, s=2)


def test_valed_connects_again_when_its_peer_comes_back(valed: Valed) -> None:
    native = valed.open("vale1:n")
    path = valed.rundir / "peer.sock"
    qmp = valed.qmp()
    qmp.execute("port-add", name="vale1:s", kind="stream", path=str(path), connect=True)
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(SECONDS)
            with Peer(listener.accept()[0]) as peer:
                sent = frame(BROADCAST, A)
                peer.send(sent)
                assert native.receive(1) == [sent]
        wait_event(qmp, "PORT_DOWN", "vale1:s")
        path.unlink()


# ----------------------------------------------------------------------------------------- null


def source(frames: int, dst: bytes, src: bytes, length: int = 60) -> dict[str, Any]:
    return {
        "frames": frames,
        "length": length,
        "destination": dst.hex(":"),
        "source": src.hex(":"),
    }


def test_null_source_sends_exactly_its_count(valed: Valed) -> None:
    qmp = valed.qmp()
    b = valed.open("vale1:b")
    b.send([frame(BROADCAST, B)])
    b.flush()
    qmp.execute("port-add", name="vale1:c", kind="null")
    qmp.execute("port-add", name="vale1:a", kind="null", source=source(1000, B, A, 1514))
    expected = frame(B, A, length=1514)
    assert b.receive(1000) == [expected] * 1000
    ports = ports_after(qmp, a=1000)
    assert ports["vale1:a"]["rx"] == {
        "frames": 1000, "bytes": 1514000, "unicast": 1000, "flooded": 0, "dropped": {},
        **UNIMPAIRED,
    }  # fmt: skip
    assert ports["vale1:c"]["tx"]["offered"] == 0


def test_null_sink_takes_everything(valed: Valed) -> None:
    qmp = valed.qmp()
    qmp.execute("port-add", name="vale1:b", kind="null")
    qmp.execute("port-add", name="vale1:a", kind="null", source=source(1234567, BROADCAST, A))
    tx = ports_after(qmp, a=1234567)["vale1:b"]["tx"]
    assert (tx["offered"], tx["frames"], tx["bytes"]) == (1234567, 1234567, 1234567 * 60)
    before = valed.cpu_ticks()
    qmp.execute("query-version")
    assert valed.cpu_ticks() - before <= 1  # a source that is done costs nothing


def test_endless_source_lasts_until_it_is_removed(valed: Valed) -> None:
    qmp = valed.qmp()
    qmp.execute("port-add", name="vale1:b", kind="null")
    qmp.execute("port-add", name="vale1:a", kind="null", source=source(0, BROADCAST, A))
    eventually("many frames", lambda: qmp.port("vale1:b")["tx"]["frames"] > 100000)
    qmp.execute("port-del", name="vale1:a")
    last = wait_event(qmp, "PORT_REMOVED", "vale1:a")
    assert qmp.port("vale1:b")["tx"]["frames"] == last["rx"]["frames"]


def test_sources_are_dealt_to_workers_and_sinks_burden_none() -> None:
    with Valed.run("--workers", "2") as valed:
        qmp = valed.qmp()
        for sw in ("vale1", "vale2"):
            qmp.execute("port-add", name=f"{sw}:b", kind="null")
            qmp.execute("port-add", name=f"{sw}:a", kind="null", source=source(0, BROADCAST, A))
        assert [w["rings"] for w in qmp.execute("query-workers")] == [1, 1]
        for sw in ("vale1", "vale2"):
            eventually("frames", lambda sw=sw: qmp.port(f"{sw}:b")["tx"]["frames"] > 100000)


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": -1},
        {"length": 13},
        {"length": 65536},
        {"destination": "nobody"},
        {"source": "02:00:00:00:00"},
        {"speed": 1},
    ],
)
def test_wrong_source_is_refused(valed: Valed, wrong: dict[str, Any]) -> None:
    with pytest.raises(QmpError, match="a null port takes source"):
        valed.qmp().execute("port-add", name="vale1:a", kind="null", source=wrong)
    assert valed.qmp().ports() == {}


def test_kinds_know_their_arguments(valed: Valed) -> None:
    qmp = valed.qmp()
    for kind, line in {
        "stream": "a stream port takes path, connect",
        "vhost-user": "a vhost-user port takes path",
        "tap": "a tap port takes fd",
        "null": "a null port takes source",
        "bridge": "bridge: no such kind of port",
    }.items():
        with pytest.raises(QmpError, match=line):
            qmp.execute("port-add", name="vale1:a", kind=kind, colour="red")
    with pytest.raises(QmpError, match="takes name, kind"):
        qmp.execute("port-add", name="vale1:a")


def test_all_kinds_end_with_valed(valed: Valed) -> None:
    """SIGTERM while a source sends and a stream port listens: PORT_REMOVED for each."""
    qmp = valed.qmp()
    qmp.execute("port-add", name="vale1:s", kind="stream", path="s.sock")
    qmp.execute("port-add", name="vale1:a", kind="null", source=source(0, BROADCAST, A))
    valed.stop()
    removed: dict[str, str] = {}
    while len(removed) < 2:
        event, data = qmp.event()
        if event == "PORT_REMOVED":
            removed[data["name"]] = data["reason"]
    assert removed == {"vale1:a": "valed ends", "vale1:s": "valed ends"}
    assert not list(valed.rundir.glob("*.sock"))


# -------------------------------------------------------------------------------- getfd, closefd


def hand_over(qmp: Qmp, name: str, *fds: int) -> Any:
    """getfd; the descriptors travel with a space before the command."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    qmp.sock.sendmsg([b" "], rights if fds else [])
    return qmp.execute("getfd", fdname=name)


def test_handed_descriptors_are_closed_sooner_or_later(valed: Valed) -> None:
    qmp = valed.qmp()
    before = valed.fds()
    with open("/dev/null", "rb") as null:
        hand_over(qmp, "a", null.fileno())
        hand_over(qmp, "b", null.fileno())
        assert valed.fds() == before + 2
        hand_over(qmp, "a", null.fileno())  # replaces the first
        assert valed.fds() == before + 2
        qmp.execute("closefd", fdname="b")
        assert valed.fds() == before + 1
        with pytest.raises(QmpError, match="a name given by getfd"):
            qmp.execute("closefd", fdname="b")
        hand_over(qmp, "c", *[null.fileno()] * 100)  # one counts
        assert valed.fds() == before + 2
        other = valed.qmp()
        with pytest.raises(QmpError, match="no descriptor of that name"):
            other.execute("port-add", name="vale1:t", kind="tap", fd="a")
        for i in range(14):
            hand_over(qmp, f"more{i}", null.fileno())
        with pytest.raises(QmpError, match="too many descriptors"):
            hand_over(qmp, "one too many", null.fileno())
        other.close()
    qmp.close()
    eventually("all closed", lambda: valed.fds() == before - 1)


def test_getfd_without_a_descriptor_or_name(valed: Valed) -> None:
    qmp = valed.qmp()
    with pytest.raises(QmpError, match="SCM_RIGHTS"):
        qmp.execute("getfd", fdname="a")
    with open("/dev/null", "rb") as null, pytest.raises(QmpError, match="63 characters"):
        hand_over(qmp, "x" * 64, null.fileno())


# ------------------------------------------------------------------------------------------ tap


@pytest.fixture
def spaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Two network namespaces."""
    if reason := netns.why_not():
        pytest.skip(reason)
    with Namespace.make("a") as a, Namespace.make("b") as b:
        yield a, b


def add_tap(qmp: Qmp, port: str, fd: int) -> None:
    """Hand an open tap over and make a port of it."""
    try:
        hand_over(qmp, "tap", fd)
    finally:
        os.close(fd)
    qmp.execute("port-add", name=port, kind="tap", fd="tap")


@pytest.mark.interfaces
def test_ping_between_two_namespaces(valed: Valed, spaces: tuple[Namespace, Namespace]) -> None:
    """198.18.0.1 in one, 198.18.0.2 in the other; no ARP, so that echoes are all there is."""
    qmp = valed.qmp()
    for n, ns in enumerate(spaces, 1):
        add_tap(qmp, f"vale1:t{n}", ns.open_tap("tap0"))
        ns.up("tap0", f"198.18.0.{n}/24")
    for n, (ns, other) in enumerate((spaces, spaces[::-1]), 1):
        address = f"198.18.0.{3 - n}"
        ns.ip("neigh", "add", address, "lladdr", other.mac("tap0"), "dev", "tap0")
    # It fails when no answer comes; how many come is counted here: ping gives up on late ones.
    spaces[0].run("ping", "-c", "5", "-i", "0.01", "-s", "1000", "198.18.0.2")
    ports = ports_after(qmp, t1=5, t2=5)
    for port, flooded in (("vale1:t1", 1), ("vale1:t2", 0)):
        assert ports[port]["rx"] == {
            "frames": 5, "bytes": 5 * 1042, "unicast": 5 - flooded, "flooded": flooded,
            "dropped": {}, **UNIMPAIRED,
        }  # fmt: skip
        tx = ports[port]["tx"]
        assert (tx["offered"], tx["frames"], tx["bytes"]) == (5, 5, 5 * 1042)


@pytest.mark.interfaces
def test_tap_that_is_down_or_removed(valed: Valed, spaces: tuple[Namespace, Namespace]) -> None:
    qmp = valed.qmp()
    native = valed.open("vale1:n")
    add_tap(qmp, "vale1:t", spaces[0].open_tap("tap0"))
    native.send([frame(BROADCAST, A)] * 3)
    native.flush()
    assert qmp.port("vale1:t")["tx"]["dropped"] == {"down": 3}
    spaces[0].up("tap0")
    native.send([frame(BROADCAST, A)] * 4)
    native.flush()
    tx = qmp.port("vale1:t")["tx"]
    assert (tx["frames"], tx["dropped"]) == (4, {"down": 3})
    spaces[0].ip("link", "del", "tap0")
    gone = wait_event(qmp, "PORT_REMOVED", "vale1:t")
    assert gone["reason"] == "its tap device was removed"


@pytest.mark.interfaces
def test_tap_by_name_at_the_start(spaces: tuple[Namespace, Namespace]) -> None:
    """A valed inside the namespace opens taps before it gives up the right to."""
    taps = ("--tap", "vale1:t=tap7", "--tap", "vale1:u=tap8")
    with Valed.run(*taps, under=tuple(spaces[0].argv())) as valed:
        qmp = valed.qmp()
        assert [qmp.port(f"vale1:{name}")["kind"] for name in "tu"] == ["tap", "tap"]
        spaces[0].up("tap7")
        native = valed.open("vale1:n")
        with spaces[0].packet_socket("tap7") as wire:
            native.send([frame(BROADCAST, A)])
            assert wire.recv(2048) == frame(BROADCAST, A)
        qmp.execute("port-del", name="vale1:t")
        eventually("the tap is gone", lambda: "tap7" not in spaces[0].ip("link"))
        assert "tap8" in spaces[0].ip("link")


@pytest.mark.interfaces
def test_what_is_no_bare_tap_is_refused_and_closed(
    valed: Valed, spaces: tuple[Namespace, Namespace]
) -> None:
    qmp = valed.qmp()
    before = valed.fds()
    headers = spaces[0].open_tap("tap1", netns.IFF_TAP | netns.IFF_NO_PI | netns.IFF_VNET_HDR)
    with pytest.raises(QmpError, match="its frames have headers"):
        add_tap(qmp, "vale1:t", headers)
    with pytest.raises(QmpError, match="not a tap"):
        add_tap(qmp, "vale1:t", spaces[0].open_tap("tun1", netns.IFF_TUN | netns.IFF_NO_PI))
    with pytest.raises(QmpError, match="not a tap"):
        add_tap(qmp, "vale1:t", os.open("/dev/null", os.O_RDWR))
    assert valed.fds() == before
    assert qmp.ports() == {}


# ---------------------------------------------------------------------------------------- mixed


@pytest.mark.interfaces
def test_mixed_kinds_carry_every_length(valed: Valed, spaces: tuple[Namespace, Namespace]) -> None:
    """native, stream and tap on one switch: each sends to each, all lengths, byte for byte."""
    qmp = valed.qmp()
    add_tap(qmp, "vale1:t", spaces[0].open_tap("tap0"))
    spaces[0].up("tap0", mtu=65521)
    native = valed.open("vale1:n")
    with (
        spaces[0].packet_socket("tap0") as wire,
        stream_peer(valed, "vale1:s", connect=False) as peer,
    ):
        # One by one: the socket's buffer holds no more of the longest.
        for f in varied(BROADCAST, A):
            native.send([f])
            assert peer.receive() == wire.recv(70000) == f
        for f in varied(BROADCAST, B):
            peer.send(f)
            assert native.receive(1) == [f] == [wire.recv(70000)]
        frames = varied(BROADCAST, C)
        for f in frames:
            wire.send(f)
        assert native.receive(len(frames)) == frames
        assert [peer.receive() for _ in frames] == frames
        # Learned by now: unicast reaches one.
        wire.send(frame(A, C, b"for the native port"))
        assert native.receive(1) == [frame(A, C, b"for the native port")]
        native.send([frame(C, A, b"for the tap")])
        assert wire.recv(70000) == frame(C, A, b"for the tap")
        native.flush()
        n = len(LENGTHS)
        ports = ports_after(qmp, n=n + 1, s=n, t=n + 1)
    counts = {k: (p["rx"]["frames"], p["tx"]["frames"]) for k, p in ports.items()}
    assert counts == {"vale1:n": (n + 1, 2 * n + 1), "vale1:s": (n, 2 * n),
                      "vale1:t": (n + 1, 2 * n + 1)}  # fmt: skip
    assert all(not p["tx"]["dropped"] and not p["rx"]["dropped"] for p in ports.values())
