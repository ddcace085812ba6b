# SPDX-License-Identifier: BSD-2-Clause
"""A provider that is no valed: the other side of the attach protocol, as bad as a test likes.

    with Fake(path) as fake:              # answers every REGISTER with a region of one ring pair
        ... a client opens a port with devname=path ...
        fake.port().deliver([frame])

    with Fake(path, answer) as fake:          # answer(request) sends what it likes, or nothing

It knows include/vale_proto.h and include/net/netmap.h, and nothing of valed or libvale.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lib.native import (
    HEADER,
    IF_RINGS,
    MOREFRAG,
    REGION,
    REGION_MAGIC,
    REGISTER,
    REGISTER_BODY,
    REPLY,
    REPLY_MAGIC,
    RING_CTL,
    RING_HEADER,
    SECONDS,
    SLOT,
    Deadline,
    fence,
)

F_ADD_SEALS, SEALS = 1033, 1 | 2 | 4  # no other seal, no shrinking, no growing
SLOTS, BUF_SIZE = 64, 2048
IF_OFFSET = RING_CTL * 3  # behind the control block of two rings
TX_OFFSET = 2048
RX_OFFSET = TX_OFFSET + RING_HEADER + SLOTS * SLOT.size + 256
BUFS_OFFSET = RX_OFFSET + RING_HEADER + SLOTS * SLOT.size + 256
BUF_COUNT = 2 + 2 * SLOTS
MEMSIZE = BUFS_OFFSET + BUF_COUNT * BUF_SIZE

# Where fields are in the region, and how they are packed: for tests that change one.
FIELDS = {
    "magic": (0, "<I"), "version": (4, "<I"), "memsize": (8, "<Q"), "if_offset": (16, "<Q"),
    "tx_rings": (24, "<H"), "rx_rings": (26, "<H"), "tx_slots": (28, "<I"), "rx_slots": (32, "<I"),
    "buf_size": (36, "<I"), "buf_count": (40, "<I"),
    "ni_tx_rings": (IF_OFFSET + 24, "<I"), "ni_rx_rings": (IF_OFFSET + 28, "<I"),
    "ni_host_tx_rings": (IF_OFFSET + 36, "<I"), "ni_host_rx_rings": (IF_OFFSET + 40, "<I"),
    "tx_ring_ofs": (IF_OFFSET + IF_RINGS, "<q"), "rx_ring_ofs": (IF_OFFSET + IF_RINGS + 8, "<q"),
    "tx_buf_ofs": (TX_OFFSET, "<q"), "rx_buf_ofs": (RX_OFFSET, "<q"),
    "tx_num_slots": (TX_OFFSET + 8, "<I"), "rx_num_slots": (RX_OFFSET + 8, "<I"),
    "tx_nr_buf_size": (TX_OFFSET + 12, "<I"), "rx_nr_buf_size": (RX_OFFSET + 12, "<I"),
}  # fmt: skip


def region(**changes: int) -> bytes:
    """A region's first bytes, up to its buffers: sound but for the fields given."""
    data = bytearray(BUFS_OFFSET)
    sizes = (1, 1, SLOTS, SLOTS, BUF_SIZE, BUF_COUNT, 1)
    REGION.pack_into(data, 0, REGION_MAGIC, 1, MEMSIZE, IF_OFFSET, *sizes)
    struct.pack_into("<16s4I", data, IF_OFFSET, b"fake", 14, 1, 1, 1)
    offsets = (TX_OFFSET - IF_OFFSET, RX_OFFSET - IF_OFFSET)
    struct.pack_into("<2q", data, IF_OFFSET + IF_RINGS, *offsets)
    for ring, at in enumerate((TX_OFFSET, RX_OFFSET)):
        struct.pack_into("<qIIHH", data, at, BUFS_OFFSET - at, SLOTS, BUF_SIZE, 0, ring)
        for i in range(SLOTS):
            slot = at + RING_HEADER + SLOT.size * i
            SLOT.pack_into(data, slot, 2 + ring * SLOTS + i, 0, 0, 0)
    for name, value in changes.items():
        at, packing = FIELDS[name]
        struct.pack_into(packing, data, at, value)
    return bytes(data)


def memory(data: bytes, size: int = MEMSIZE, seals: int = SEALS) -> int:
    """A sealed memfd with these bytes first; the caller closes it."""
    fd = os.memfd_create("fake", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, data[:size], 0)
    if seals:
        fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd


class Ring:
    """One ring as its provider sees it."""

    def __init__(self, mem: mmap.mmap, ctl: int, base: int, call: int) -> None:
        self.mem, self.base, self._call = mem, base, call
        self.words = memoryview(mem).cast("I")
        self.ctl = (RING_CTL + RING_CTL * ctl) // 4
        self.at = 0  # where our next slot is

    @property
    def head(self) -> int:
        """The client's."""
        return self.words[self.ctl]

    def publish(self, hwcur: int, hwtail: int) -> None:
        """Store any numbers, and call the client if it wants that."""
        self.words[self.ctl + 32] = hwcur
        self.words[self.ctl + 33] = hwtail
        fence()
        if self.words[self.ctl + 2]:
            self.call()

    def call(self) -> None:
        """A byte into the pipe; a client that does not read has been called often enough."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._call, b"c")

    def slot(self, i: int) -> tuple[int, int, int, int]:
        at = self.base + RING_HEADER + SLOT.size * i
        buf_idx, length, flags, ptr = SLOT.unpack_from(self.mem, at)
        return buf_idx, length, flags, ptr

    def set_slot(self, i: int, buf_idx: int, length: int, flags: int = 0) -> None:
        SLOT.pack_into(self.mem, self.base + RING_HEADER + SLOT.size * i, buf_idx, length, flags, 0)

    def buffer(self, buf_idx: int) -> int:
        return BUFS_OFFSET + buf_idx * BUF_SIZE


class Port:
    """The port of a client that was answered well."""

    def __init__(self, mem_fd: int, calls: Sequence[int], kick: int) -> None:
        self.mem_fd, self.calls, self.kick = mem_fd, calls, kick
        self.mem = mmap.mmap(mem_fd, os.fstat(mem_fd).st_size)
        self.tx = Ring(self.mem, 0, TX_OFFSET, calls[1])
        self.rx = Ring(self.mem, 1, RX_OFFSET, calls[0])

    def repair(self) -> None:
        """All slots good and empty, TX with all room, RX without frames; where the client is."""
        for number, ring in enumerate((self.tx, self.rx)):
            for i in range(SLOTS):
                ring.set_slot(i, 2 + number * SLOTS + i, 0)
            ring.at = ring.head % SLOTS
        self.tx.publish(self.tx.at, (self.tx.at - 1) % SLOTS)
        self.rx.publish(self.rx.at, self.rx.at)
        self.want_kicks(True)

    def want_kicks(self, wanted: bool) -> None:
        for ring in (self.tx, self.rx):
            ring.words[ring.ctl + 34] = wanted
        fence()

    def deliver(self, frames: Iterable[bytes]) -> None:
        """Frames of one buffer each, as many as fit the ring."""
        ring = self.rx
        for data in frames:
            buf_idx = ring.slot(ring.at)[0]
            at = ring.buffer(buf_idx)
            self.mem[at : at + len(data)] = data
            ring.set_slot(ring.at, buf_idx, len(data))
            ring.at = (ring.at + 1) % SLOTS
        ring.publish(ring.head, ring.at)

    def collect(self, count: int) -> list[bytes]:
        """So many frames that the client sends."""
        ring = self.tx
        frames: list[bytes] = []
        parts: list[bytes] = []
        deadline = Deadline()
        while len(frames) < count:
            while ring.at == ring.head:
                select.select([self.kick], [], [], min(0.05, deadline.left("frames of the client")))
            buf_idx, length, flags, _ = ring.slot(ring.at)
            at = ring.buffer(buf_idx)
            parts.append(self.mem[at : at + length])
            ring.at = (ring.at + 1) % SLOTS
            if not flags & MOREFRAG:
                frames.append(b"".join(parts))
                parts = []
            ring.publish(ring.at, (ring.at - 1) % SLOTS)
        return frames

    def close(self) -> None:
        for ring in (self.tx, self.rx):
            ring.words.release()
        self.mem.close()
        for fd in (self.mem_fd, *self.calls, self.kick):
            os.close(fd)


@dataclass
class Request:
    """What a client asks, and how it may be answered."""

    conn: socket.socket
    data: bytes
    fds: list[int]
    held: list[int] = field(default_factory=list)  # more descriptors that end with the request

    @property
    def type(self) -> int:
        return int(HEADER.unpack_from(self.data)[1])

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Raw bytes to where the client waits; it may have gone."""
        with (
            contextlib.suppress(BrokenPipeError, ConnectionResetError),
            socket.socket(fileno=os.dup(self.fds[0])) as sock,
        ):
            socket.send_fds(sock, [data], fds)

    def reply(
        self, fds: Sequence[int] = (), *, error: int = 0, magic: int = REPLY_MAGIC,
        version: int = 1, longer: int = 0, cut: int = 0, offset: int = IF_OFFSET,
        memsize: int = MEMSIZE,
    ) -> None:  # fmt: skip
        """A REGISTER's answer, sound but for what is given."""
        message = bytearray(self.data)
        body = (offset, memsize, SLOTS, SLOTS, 1, 1, 0, 0, 0, 0, 1, 0, 0)
        REGISTER_BODY.pack_into(message, HEADER.size, *body)
        head = REPLY.pack(magic, version, 0, error, len(message) + longer)
        self.send((head + message)[: len(head + message) - cut], fds)

    def hang_up(self) -> None:
        self.conn.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for fd in (*self.fds, *self.held):
            os.close(fd)


Answer = Callable[[Request], None]


class Fake:
    """A listening socket at a path, whose requests are answered in a thread."""

    def __init__(
        self, path: Path, answer: Answer | None = None, changes: dict[str, int] | None = None
    ) -> None:
        """changes: of the fields of the region in a good answer."""
        self.path, self.answer, self.changes = path, answer or self.accept, changes or {}
        self.ports: list[Port] = []
        self.conns: list[socket.socket] = []
        self.registers = 0  # requests of this kind that have been answered
        self._news = threading.Condition()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen()
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        """Accept, and answer one request after the other, until close()."""
        while True:
            socks = {sock.fileno(): sock for sock in (self.listener, *self.conns)}
            ready = select.select([self._stop, *socks], [], [])[0]
            if self._stop in ready:
                return
            for fd in ready:
                if socks[fd] is self.listener:
                    self.conns.append(self.listener.accept()[0])
                else:
                    self._receive(socks[fd])

    def _receive(self, sock: socket.socket) -> None:
        """One request, or the end of a connection."""
        try:
            data, fds, _, _ = socket.recv_fds(sock, 4096, 8)
        except ConnectionResetError:
            data, fds = b"", []
        if not data:
            self.conns.remove(sock)
            sock.close()
            return
        request = Request(sock, data, fds)
        self.answer(request)
        request.close()
        with self._news:
            self.registers += request.type == REGISTER
            self._news.notify_all()

    def accept(self, request: Request) -> None:
        """A good answer: a new port, or the old one with new descriptors."""
        if request.type != REGISTER:
            request.reply(error=errno.EOPNOTSUPP)
            return
        resumed = len(request.fds) > 1
        mem_fd = os.dup(request.fds[1]) if resumed else memory(region(**self.changes))
        kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        pipes = [os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(2)]
        port = Port(mem_fd, [write for _, write in pipes], kick)
        port.repair()
        request.reply([mem_fd, kick, *(read for read, _ in pipes)])
        for read, _ in pipes:
            os.close(read)
        self.ports.append(port)

    def wait_registers(self, count: int) -> None:
        """Until so many REGISTERs have been answered."""
        with self._news:
            done = self._news.wait_for(lambda: self.registers >= count, SECONDS)
        assert done, f"{self.registers} of {count} REGISTERs came"

    def port(self) -> Port:
        """The last client's port, when it has one."""
        self.wait_registers(1)
        return self.ports[-1]

    def hang_up(self) -> None:
        """Die, as far as clients can see: all connections and pipes end."""
        for conn in list(self.conns):
            conn.shutdown(socket.SHUT_RDWR)
        while self.ports:
            self.ports.pop().close()

    def close(self) -> None:
        os.write(self._stopped, b"s")
        self._thread.join()
        self.hang_up()
        for sock in (self.listener, *self.conns):
            sock.close()
        os.close(self._stop)
        os.close(self._stopped)
        self.path.unlink()

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
