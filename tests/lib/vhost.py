# SPDX-License-Identifier: BSD-2-Clause
"""A vhost-user front end in pure Python: QEMU's part for a guest's NIC, and what QEMU never would.

    front = FrontEnd(rundir / "vale1:v")     # connects, negotiates, shares memory, starts queues
    front.send(frame); front.receive(1)
"""

import contextlib
import mmap
import os
import select
import socket
import struct
from pathlib import Path
from typing import Any

from lib.native import SECONDS, Deadline, fence

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE, SET_LOG_BASE = 1, 2, 3, 5, 6
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL = 12, 13
SET_PROTOCOL_FEATURES, SET_VRING_ENABLE, SEND_RARP = 16, 18, 19

VERSION, NEED_REPLY = 0x1, 0x8
MRG_RXBUF, LOG_ALL, PROTOCOL, VERSION_1 = 1 << 15, 1 << 26, 1 << 30, 1 << 32
REPLY_ACK = 1 << 3

SIZE = 256  # of each queue
BUFFER = 2048
HEADER = 12  # virtio-net, VERSION_1
NEXT, WRITE = 1, 2
GPA, UVA = 0x1000_0000, 0x7F00_0000_0000
AREA = 0x4000  # of each queue's rings
AVAIL, USED = 0x1000, 0x2000
BUFFERS = 2 * AREA
MEMORY = BUFFERS + 2 * SIZE * BUFFER


class FrontEnd:
    """One queue pair in a memfd of its own."""

    def __init__(
        self, path: Path | socket.socket, features: int = VERSION_1 | MRG_RXBUF
    ) -> None:
        self.connect(path)
        self.memfd = os.memfd_create("guest")
        os.ftruncate(self.memfd, MEMORY)
        self.mem = mmap.mmap(self.memfd, MEMORY)
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.features = features
        self.avail, self.seen = [0, 0], [0, 0]
        self.start()

    def connect(self, path: Path | socket.socket) -> None:
        """To where the switch listens, or from a socket of ours that listens."""
        if isinstance(path, socket.socket):
            path.settimeout(SECONDS)
            self.sock = path.accept()[0]
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(path))  # blocks while the backlog is full
        self.sock.settimeout(SECONDS)

    def reconnect(self, path: Path | socket.socket) -> None:
        """As QEMU does when the switch was restarted: the guest's memory and rings stay."""
        self.sock.close()
        self.connect(path)
        self.start([self.used_index(0), self.used_index(1)])

    def close(self) -> None:
        self.sock.close()
        self.mem.close()
        for fd in (self.memfd, *self.kicks, *self.calls):
            os.close(fd)

    def __enter__(self) -> "FrontEnd":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # Messages.
    def post(self, request: int, payload: bytes = b"", fds: list[int] | None = None) -> None:
        data = struct.pack("<III", request, VERSION, len(payload)) + payload
        socket.send_fds(self.sock, [data], fds or [])

    def ack(self, request: int, payload: bytes = b"", fds: list[int] | None = None) -> int:
        """Send a message and wait for its acknowledgement."""
        data = struct.pack("<III", request, VERSION | NEED_REPLY, len(payload)) + payload
        socket.send_fds(self.sock, [data], fds or [])
        (value,) = struct.unpack("<Q", self.reply(request))
        return int(value)

    def reply(self, request: int) -> bytes:
        header = self.sock.recv(12, socket.MSG_WAITALL)
        if len(header) < 12:
            raise ConnectionResetError("valed hung up")
        answered, flags, size = struct.unpack("<III", header)
        assert (answered, flags) == (request, VERSION | 0x4)
        return self.sock.recv(size, socket.MSG_WAITALL)

    def ask(self, request: int, payload: bytes = b"") -> bytes:
        self.post(request, payload)
        return self.reply(request)

    def hung_up(self) -> bool:
        with contextlib.suppress(ConnectionResetError):
            while self.sock.recv(4096):
                pass
        return True

    def start(self, base: list[int] | None = None) -> None:
        """Negotiate, and start the queues; at these indexes they go on."""
        (offered,) = struct.unpack("<Q", self.ask(GET_FEATURES))
        assert offered & self.features == self.features
        self.post(SET_PROTOCOL_FEATURES, struct.pack("<Q", REPLY_ACK))
        self.post(SET_OWNER)
        assert self.ack(SET_FEATURES, struct.pack("<Q", self.features | PROTOCOL)) == 0
        table = struct.pack("<II4Q", 1, 0, GPA, MEMORY, UVA, 0)
        assert self.ack(SET_MEM_TABLE, table, [self.memfd]) == 0
        for q in range(2):
            at = UVA + q * AREA
            self.post(SET_VRING_NUM, struct.pack("<II", q, SIZE))
            self.post(SET_VRING_BASE, struct.pack("<II", q, base[q] if base else 0))
            addr = struct.pack("<II4Q", q, 0, at, at + USED, at + AVAIL, 0)
            assert self.ack(SET_VRING_ADDR, addr) == 0
            assert self.ack(SET_VRING_CALL, struct.pack("<Q", q), [self.calls[q]]) == 0
            assert self.ack(SET_VRING_KICK, struct.pack("<Q", q), [self.kicks[q]]) == 0
        for i in range(0 if base else SIZE):
            self.offer(0, i, BUFFER, WRITE)
        self.kick(0)
        for q in range(2):
            assert self.ack(SET_VRING_ENABLE, struct.pack("<II", q, 1)) == 0

    # Rings.
    def buffer(self, q: int, i: int) -> int:
        return BUFFERS + (q * SIZE + i) * BUFFER

    def set_desc(self, q: int, i: int, addr: int, length: int, flags: int, follow: int = 0) -> None:
        struct.pack_into("<QIHH", self.mem, q * AREA + 16 * i, addr, length, flags, follow)

    def offer(self, q: int, i: int, length: int, flags: int = 0) -> None:
        """Descriptor i with its own buffer, made available."""
        self.set_desc(q, i, GPA + self.buffer(q, i), length, flags)
        self.make_available(q, i)

    def make_available(self, q: int, head: int) -> None:
        at = q * AREA + AVAIL
        struct.pack_into("<H", self.mem, at + 4 + 2 * (self.avail[q] % SIZE), head)
        self.avail[q] = (self.avail[q] + 1) & 0xFFFF
        fence()
        struct.pack_into("<H", self.mem, at + 2, self.avail[q])

    def kick(self, q: int) -> None:
        os.eventfd_write(self.kicks[q], 1)

    def used_index(self, q: int) -> int:
        (index,) = struct.unpack_from("<H", self.mem, q * AREA + USED + 2)
        return int(index)

    def _wait_used(self, q: int, index: int) -> None:
        deadline = Deadline()
        poller = select.poll()
        poller.register(self.calls[q], select.POLLIN)
        while (self.used_index(q) - index) & 0xFFFF > 0x8000:
            left = deadline.left(f"queue {q}: used index {self.used_index(q)}, not {index}")
            if poller.poll(min(left, 0.1) * 1000):
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.calls[q])

    def send(self, frames: list[bytes]) -> None:
        """Send frames, and wait until the switch has taken them all."""
        for i, frame in enumerate(frames):
            slot = self.avail[1] % SIZE
            if i >= SIZE:
                self._wait_used(1, (self.avail[1] - SIZE + 1) & 0xFFFF)
            at = self.buffer(1, slot)
            self.mem[at : at + HEADER + len(frame)] = bytes(HEADER) + frame
            self.offer(1, slot, HEADER + len(frame))
            self.kick(1)
        self._wait_used(1, self.avail[1])

    def receive(self, n: int) -> list[bytes]:
        """n frames that fit one buffer each."""
        frames = []
        for _ in range(n):
            self._wait_used(0, (self.seen[0] + 1) & 0xFFFF)
            at = USED + 4 + 8 * (self.seen[0] % SIZE)
            head, length = struct.unpack_from("<II", self.mem, at)
            data = self.buffer(0, head)
            frames.append(bytes(self.mem[data + HEADER : data + length]))
            self.seen[0] = (self.seen[0] + 1) & 0xFFFF
            self.make_available(0, head)
        return frames
