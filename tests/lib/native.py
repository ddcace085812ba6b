# SPDX-License-Identifier: BSD-2-Clause
"""A client of valed in pure Python: the attach protocol and the memory of a port.

It knows include/vale_proto.h and include/net/netmap.h and nothing of libvale, so it can also do
what libvale never would: publish nonsense, point slots nowhere, send half a message.

    sock = connect(rundir)
    port = Port.open(rundir, "vale1:a")       # REGISTER, memory mapped
    port.send([frame, ...])                    # publish, kick where asked for; waits for room
    port.receive(3)                            # exactly three frames, or a timeout
"""

import contextlib
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REGISTER, PORT_INFO_GET, VALE_ATTACH, VALE_DETACH, VALE_LIST = 1, 2, 3, 4, 5
PORT_HDR_SET = 6
API = 14
ALL_NIC = 1
EXCLUSIVE = 0x0800
MONITOR_TX, MONITOR_RX, ZCOPY_MON = 0x0100, 0x0200, 0x0400

BUF_CHANGED, INDIRECT, MOREFRAG, TXMON = 0x01, 0x10, 0x20, 0x40

MESSAGE_MAX = 4096
HEADER = struct.Struct("<HHI64sQQ")
REGISTER_BODY = struct.Struct("<QQIIHHHHHHII4xQ")
INFO_BODY = struct.Struct("<QIIHHHHH6x")
LIST_BODY = struct.Struct("<HxxI")
OPTION = struct.Struct("<QIIQ")
REPLY = struct.Struct("<IHHiI")
REGION = struct.Struct("<IIQQHHIIII4xQ")
SLOT = struct.Struct("<IHHQ")
OPT_RESUME = 0x56410001
REPLY_MAGIC = 0x454C4156
REGION_MAGIC = 0x6E676572
RING_CTL = 256  # of vale_ring_ctl: where the first is, and its size
IF_RINGS = 56  # ring_ofs[] of netmap_if
RING_HEADER = 256  # of netmap_ring, before its slots

SECONDS = float(os.environ.get("VALE_TEST_SECONDS", "20"))

_lock = threading.Lock()


class AttachError(OSError):
    """valed answered with an errno."""


class Timeout(AssertionError):
    """What had to happen did not."""


def fence() -> None:
    """A full memory barrier: a lock's compare-and-swap is one."""
    with _lock:
        pass


class Deadline:
    """Until when something may take."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.end = time.monotonic() + seconds

    def left(self, what: str) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            raise Timeout(what)
        return left


# ------------------------------------------------------------------------------------- messages


def connect(rundir: Path) -> socket.socket:
    """One open of /dev/netmap."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(str(rundir / "netmap.sock"))  # blocks while valed's backlog is full
    sock.settimeout(SECONDS)
    return sock


@dataclass(frozen=True)
class Answer:
    """valed's answer: an errno, the message written back, descriptors."""

    error: int
    message: bytes
    fds: list[int]

    @property
    def body(self) -> bytes:
        return self.message[HEADER.size :]

    @property
    def name(self) -> str:
        return self.message[8:72].rstrip(b"\0").decode()

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


def message(
    reqtype: int,
    name: str | bytes,
    body: bytes = b"",
    *,
    options: bytes = b"",
    version: int = API,
    reserved: int = 0,
) -> bytes:
    """A request: header, body, options, with offsets for pointers."""
    raw = name.encode() if isinstance(name, str) else name
    body_at = HEADER.size if body else 0
    options_at = HEADER.size + len(body) if options else 0
    return HEADER.pack(version, reqtype, reserved, raw, options_at, body_at) + body + options


def post(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> socket.socket:
    """Send a request; the answer will come on the socket returned."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(SECONDS)
    with theirs:
        socket.send_fds(sock, [data], [theirs.fileno(), *fds])
    return ours


def fetch(reply: socket.socket) -> Answer:
    """Wait for an answer."""
    with reply:
        data, fds, _, _ = socket.recv_fds(reply, REPLY.size + MESSAGE_MAX, 8)
    if not data:
        raise ConnectionResetError("valed closed the reply socket without an answer")
    magic, version, _, error, length = REPLY.unpack_from(data)
    assert (magic, version) == (REPLY_MAGIC, 1)
    assert len(data) == REPLY.size + length
    return Answer(error, data[REPLY.size :], fds)


def request(sock: socket.socket, data: bytes) -> Answer:
    return fetch(post(sock, data))


def register_body(
    *,
    tx_slots: int = 0,
    rx_slots: int = 0,
    tx_rings: int = 0,
    rx_rings: int = 0,
    extra_bufs: int = 0,
    mode: int = ALL_NIC,
    flags: int = EXCLUSIVE,
) -> bytes:
    return REGISTER_BODY.pack(
        0, 0, tx_slots, rx_slots, tx_rings, rx_rings, 0, 0, 0, 0, mode, extra_bufs, flags
    )


def register(sock: socket.socket, name: str | bytes, **body: int) -> Answer:
    """REGISTER; the caller looks at the errno and closes the descriptors."""
    return request(sock, message(REGISTER, name, register_body(**body)))


# ---------------------------------------------------------------------------------------- rings


class Ring:
    """One ring: its control words, its slots, and the client's own head."""

    def __init__(self, port: "Port", index: int, ofs: int) -> None:
        self.port = port
        self._mem, self._words = port.mem, port.words
        self.ctl = (RING_CTL + RING_CTL * index) // 4
        self.base = ofs
        header: tuple[int, int, int, int, int] = struct.unpack_from("<qIIHH", self._mem, ofs)
        buf_ofs, self.num_slots, self.buf_size, self.ringid, self.dir = header
        self.bufs = ofs + buf_ofs
        self.head = self._words[self.ctl]
        self._wish = 0

    # Words of the control block.
    @property
    def hwcur(self) -> int:
        return int(self._words[self.ctl + 32])

    @property
    def hwtail(self) -> int:
        return int(self._words[self.ctl + 33])

    @property
    def need_kick(self) -> int:
        return int(self._words[self.ctl + 34])

    def store_head(self, head: int) -> None:
        """Publish any number as head, and look whether a kick is asked for."""
        self._words[self.ctl] = head
        self._words[self.ctl + 1] = head
        fence()
        if self.need_kick:
            self.port.kick()

    def arm(self) -> None:
        """Ask to be called."""
        self._wish += 1
        self._words[self.ctl + 2] = self._wish
        fence()

    # Slots and buffers.
    def slot(self, i: int) -> tuple[int, int, int, int]:
        """(buf_idx, len, flags, ptr) of slot i."""
        slot: tuple[int, int, int, int] = SLOT.unpack_from(
            self._mem, self.base + RING_HEADER + SLOT.size * i
        )
        return slot

    def set_slot(self, i: int, buf_idx: int, length: int, flags: int, ptr: int = 0) -> None:
        at = self.base + RING_HEADER + SLOT.size * i
        SLOT.pack_into(self._mem, at, buf_idx, length, flags, ptr)

    def buffer(self, buf_idx: int) -> int:
        """Where a buffer begins in the region."""
        return self.bufs + buf_idx * self.buf_size

    def ahead(self, i: int, by: int = 1) -> int:
        return (i + by) % self.num_slots

    @property
    def room(self) -> int:
        """TX: slots to be filled. RX: slots received."""
        return (self.hwtail - self.head) % self.num_slots

    # TX.
    def fill(self, data: bytes, flags: int = 0) -> None:
        """Put bytes into the slot at head, and move head; nothing is published."""
        buf_idx = self.slot(self.head)[0]
        at = self.buffer(buf_idx)
        self._mem[at : at + len(data)] = data
        self.set_slot(self.head, buf_idx, len(data), flags)
        self.head = self.ahead(self.head)

    def put(self, frame: bytes, cuts: Sequence[int] = ()) -> None:
        """One frame, in pieces of the lengths given and then of whole buffers."""
        pieces = split(frame, cuts, self.buf_size)
        for piece in pieces[:-1]:
            self.fill(piece, MOREFRAG)
        self.fill(pieces[-1])

    def publish(self) -> None:
        self.store_head(self.head)

    # RX.
    def take(self) -> bytes:
        """The frame at head; head moves behind it, nothing is published."""
        parts = []
        flags = MOREFRAG
        while flags & MOREFRAG:
            buf_idx, length, flags, _ = self.slot(self.head)
            at = self.buffer(buf_idx)
            parts.append(bytes(self._mem[at : at + length]))
            self.head = self.ahead(self.head)
        return b"".join(parts)


def split(frame: bytes, cuts: Sequence[int], size: int) -> list[bytes]:
    """A frame in pieces: first those of `cuts`, then of `size`."""
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(frame[at : at + cut])
        at += cut
    pieces += [frame[i : i + size] for i in range(at, len(frame), size)]
    return pieces or [b""]


class Port:
    """An open native port."""

    def __init__(self, sock: socket.socket, name: str, answer: Answer) -> None:
        self.sock, self.name = sock, name
        mem_fd, self._kick, self._call_rx, self._call_tx = answer.fds
        fields = REGISTER_BODY.unpack_from(answer.body)
        self.offset, self.memsize, self.tx_slots, self.rx_slots = fields[:4]
        self.tx_rings, self.rx_rings, self.extra_bufs = fields[4], fields[5], fields[11]
        self.mem_fd = mem_fd
        self.mem = mmap.mmap(mem_fd, self.memsize)
        self.words = memoryview(self.mem).cast("I")
        self.region = REGION.unpack_from(self.mem)
        self.buf_count = self.region[9]
        count = self.tx_rings + 1 + self.rx_rings
        ofs = struct.unpack_from(f"<{count}q", self.mem, self.offset + IF_RINGS)
        tx, rx = range(self.tx_rings), range(self.rx_rings)
        self.tx = [Ring(self, i, self.offset + ofs[i]) for i in tx]
        self.rx = [
            Ring(self, self.tx_rings + i, self.offset + ofs[self.tx_rings + 1 + i]) for i in rx
        ]

    @classmethod
    def open(cls, rundir: Path, name: str, **body: int) -> "Port":
        """Connect and REGISTER; AttachError when refused."""
        sock = connect(rundir)
        answer = register(sock, name, **body)
        if answer.error:
            sock.close()
            raise AttachError(answer.error, f"{name}: {os.strerror(answer.error)}")
        return cls(sock, name, answer)

    def resume(self, rundir: Path, **changes: Any) -> int:
        """Come back to a valed that was restarted, as the owner of this memory; the errno."""
        sock = connect(rundir)
        answer = fetch(post(sock, self.resumption(**changes), changes.get("fds", [self.mem_fd])))
        if answer.error:
            sock.close()
            return answer.error
        old = (self._kick, self._call_rx, self._call_tx, self.sock)
        mem_fd, self._kick, self._call_rx, self._call_tx = answer.fds
        os.close(mem_fd)
        for fd in old[:3]:
            os.close(fd)
        self.sock.close()
        self.sock = sock
        self.kick()
        return 0

    def resumption(
        self, *, incarnation: int | None = None, header: int = 0, cut: int = 0, **body: Any
    ) -> bytes:
        """The REGISTER that asks for it."""
        body.pop("fds", None)
        was = {
            "tx_slots": self.tx_slots, "rx_slots": self.rx_slots, "tx_rings": self.tx_rings,
            "rx_rings": self.rx_rings, "extra_bufs": self.extra_bufs,
        }  # fmt: skip
        known = self.region[10] if incarnation is None else incarnation
        option = OPTION.pack(0, OPT_RESUME, 0, 0) + struct.pack("<QII", known, header, 0)
        return message(
            REGISTER, self.name, register_body(**(was | body)), options=option[: 40 - cut]
        )

    def close(self) -> None:
        """The last close of a descriptor: the port goes."""
        self.words.release()
        for ring in (*self.tx, *self.rx):
            ring._words.release()
        self.mem.close()
        for fd in (self.mem_fd, self._kick, self._call_rx, self._call_tx):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.sock.close()

    def __enter__(self) -> "Port":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def kick(self) -> None:
        os.write(self._kick, struct.pack("<Q", 1))

    @staticmethod
    def _wait_call(fd: int, seconds: float) -> None:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if poller.poll(seconds * 1000):
            os.read(fd, 4096)

    def _wait_rx(self, seconds: float) -> None:
        """Until some RX ring has frames, or the time is over."""
        for ring in self.rx:
            ring.arm()
        if not any(ring.room for ring in self.rx):
            self._wait_call(self._call_rx, seconds)

    def wait_room(self, ring: int, slots: int) -> None:
        """Until so many slots of a TX ring are free."""
        tx, deadline = self.tx[ring], Deadline()
        while tx.room < slots:
            tx.arm()
            if tx.room < slots:
                self._wait_call(self._call_tx, deadline.left(f"{self.name}: no room to send"))

    def flush(self) -> None:
        """Until the switch has forwarded everything published; its counters are final then."""
        for i, tx in enumerate(self.tx):
            self.wait_room(i, tx.num_slots - 1)

    def send(self, frames: Iterable[bytes], ring: int = 0, batch: int = 256) -> None:
        """Publish frames in batches, waiting for room where there is none."""
        tx, held = self.tx[ring], 0
        for frame in frames:
            need = max(1, -(-len(frame) // tx.buf_size))
            if tx.room < need:
                tx.publish()
                self.wait_room(ring, need)
            tx.put(frame)
            held += 1
            if held % batch == 0:
                tx.publish()
        tx.publish()

    def receive(
        self, n: int, ring: int | None = None, deadline: Deadline | None = None
    ) -> list[bytes]:
        """Exactly n frames, from one ring or from all."""
        rings = self.rx if ring is None else [self.rx[ring]]
        frames: list[bytes] = []
        deadline = deadline or Deadline()
        while len(frames) < n:
            for rx in rings:
                while rx.room and len(frames) < n:
                    frames.append(rx.take())
                rx.store_head(rx.head)
            if len(frames) < n and not any(rx.room for rx in rings):
                self._wait_rx(deadline.left(f"{self.name}: {len(frames)} of {n} frames came"))
        return frames

    def receive_until(self, number: Callable[[bytes], int], n: int) -> list[bytes]:
        """Frames up to the n-th that carries its number, others in between included."""
        frames: list[bytes] = []
        expected = 0
        deadline = Deadline()
        while expected < n:
            deadline.left(f"{self.name}: {expected} of {n} frames came")
            (data,) = self.receive(1, deadline=deadline)
            frames.append(data)
            expected += len(data) >= 18 and number(data) == expected
        return frames

    def receive_until_last(self, last: int) -> list[bytes]:
        """Frames up to the one that carries this number in an unicast frame to somebody."""
        frames: list[bytes] = []
        deadline = Deadline()
        while not frames or frames[-1][0] & 1 or number(frames[-1]) != last:
            deadline.left(f"{self.name}: frame {last} did not come")
            frames += self.receive(1, deadline=deadline)
        return frames

    def drain(self) -> list[bytes]:
        """Everything that is there now."""
        frames = []
        for rx in self.rx:
            while rx.room:
                frames.append(rx.take())
            rx.store_head(rx.head)
        return frames

    def hung_up(self, seconds: float = SECONDS) -> bool:
        """Whether valed took the port away: its connection and its pipes hang up."""
        poller = select.poll()
        poller.register(self._call_rx, 0)
        return bool(poller.poll(seconds * 1000)) and self.sock.recv(1) == b""


# --------------------------------------------------------------------------------------- frames

BROADCAST = b"\xff" * 6


def station(n: int) -> bytes:
    """The n-th unicast address."""
    return b"\x02\x00" + n.to_bytes(4, "big")


def frame(dst: bytes, src: bytes, payload: bytes = b"", length: int = 60) -> bytes:
    """An Ethernet frame (type 0x88b5, local experiments), filled up to `length` bytes."""
    return (dst + src + b"\x88\xb5" + payload).ljust(length, b"\0")


def numbered(dst: bytes, src: bytes, n: int, first: int = 0, length: int = 60) -> list[bytes]:
    """n frames that carry their number."""
    return [frame(dst, src, struct.pack(">I", first + i), length) for i in range(n)]


def number(data: bytes) -> int:
    """The number of a frame made by numbered()."""
    return int.from_bytes(data[14:18], "big")
