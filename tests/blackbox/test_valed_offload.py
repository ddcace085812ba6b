# SPDX-License-Identifier: BSD-2-Clause
"""Checksums and segmentation that a sender leaves undone, between ports that know and do not know.

    vale1:a  virtio-net header of 12 bytes ---+
    vale1:b  no header                     ---+--- valed: passes, completes, or refuses
    vale1:c  virtio-net header of 10 bytes ---+

What b receives is compared byte by byte with frames made here, by the RFCs and not by valed.
"""

import errno
import os
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lib.native import MOREFRAG, AttachError, Port, connect, message, request, station
from lib.valed import BINARY, ROOT, Valed, check_books, sanitizer

pytestmark = pytest.mark.blackbox

PORT_HDR_SET, PORT_HDR_GET = 6, 7
ACCEPT_VNET_HDR = 0x8000
A, B = station(1), station(2)
TCP4, TCP6, ECN = 1, 4, 0x80
FIN, PSH, ACK, CWR = 1, 8, 16, 128


def checksum(data: bytes) -> int:
    """RFC 1071, of 16-bit words."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True)
class Segment:
    """A TCP segment in Ethernet, over IPv4 or IPv6."""

    payload: bytes
    seq: int = 0xFFFFFF00  # wraps on the way
    flags: int = ACK | PSH
    ident: int = 0xFFFE
    ipv6: bool = False
    tags: bytes = b""
    options: bytes = b"\x01\x01\x08\x0atsvaltse"

    @property
    def ip_at(self) -> int:
        return 14 + len(self.tags)

    @property
    def tcp_at(self) -> int:
        return self.ip_at + (40 if self.ipv6 else 20)

    def build(self, dst: bytes = B, *, complete: bool = True) -> bytes:
        """The frame, its TCP checksum complete or only the pseudo-header's sum."""
        length = 20 + len(self.options) + len(self.payload)
        if self.ipv6:
            ends = bytes(range(32))
            ip = struct.pack(">IHBB", 0x60000000, length, 6, 64) + ends
            pseudo = ends + struct.pack(">II", length, 6)
        else:
            ends = bytes([10, 0, 0, 1, 10, 0, 0, 2])
            first = struct.pack(">BBHHHBB", 0x45, 0, 20 + length, self.ident, 0x4000, 64, 6)
            ip = first + struct.pack(">H", checksum(first + b"\0\0" + ends)) + ends
            pseudo = ends + struct.pack(">BBH", 0, 6, length)
        offset = (20 + len(self.options)) // 4 << 4
        tcp = struct.pack(">HHIIBBH", 1, 2, self.seq, 7, offset, self.flags, 500)
        rest = b"\0\0" + self.options + self.payload
        partial = ~checksum(pseudo) & 0xFFFF
        check = checksum(pseudo + tcp + b"\0\0" + rest) or 0xFFFF if complete else partial
        kind = b"\x86\xdd" if self.ipv6 else b"\x08\x00"
        return dst + A + self.tags + kind + ip + tcp + struct.pack(">H", check) + rest

    def cut(self, size: int) -> list["Segment"]:
        """What a NIC would make of it."""
        starts = range(0, len(self.payload), size)
        return [
            replace(
                self,
                payload=self.payload[at : at + size],
                seq=(self.seq + at) % 2**32,
                ident=(self.ident + number) % 2**16,
                flags=self.flags
                & ~(0 if at + size >= len(self.payload) else FIN | PSH)
                & ~(CWR if at else 0),
            )
            for number, at in enumerate(starts)
        ]

    def header(self, size: int = 0, *, length: int = 12, **changed: int) -> bytes:
        """The virtio-net header of a frame that is to be completed, and cut if there is a size."""
        fields = {
            "flags": 1,
            "gso_type": (TCP6 if self.ipv6 else TCP4) | (ECN if self.flags & CWR else 0),
            "hdr_len": 0x1234,
            "gso_size": size,
            "csum_start": self.tcp_at,
            "csum_offset": 16,
        }
        if not size:
            fields["gso_type"] = 0
        return struct.pack("<BBHHHH", *(fields | changed).values()) + b"\0" * (length - 10)


def set_header(valed: Valed, name: str, length: int) -> int:
    """PORT_HDR_SET; the errno."""
    with connect(valed.rundir) as sock:
        return request(sock, message(PORT_HDR_SET, name, struct.pack("<I4x", length))).error


def get_header(valed: Valed, name: str) -> int:
    with connect(valed.rundir) as sock:
        answer = request(sock, message(PORT_HDR_GET, name, struct.pack("<I4x", 99)))
    assert answer.error == 0
    length: int = struct.unpack_from("<I", answer.body)[0]
    return length


@pytest.fixture
def trio(valed: Valed) -> tuple[Port, Port, Port]:
    """Ports with a header of 12 bytes, none, and 10 bytes; b's station is known."""
    a, b, c = (valed.open(f"vale1:{name}") for name in "abc")
    assert set_header(valed, "vale1:a", 12) == set_header(valed, "vale1:c", 10) == 0
    b.send([b"\xff" * 6 + B + b"\x88\xb5" + bytes(46)])
    for port in (a, c):
        (heard,) = port.receive(1)
        assert heard[:-60] == b"\0" * (12 if port is a else 10)
    return a, b, c


def segmented(valed: Valed, name: str) -> tuple[int, int, int]:
    entry = valed.qmp().port(name)["tx"]["segmented"]
    return entry["frames"], entry["segments"], entry["bytes"]


def put(port: Port, pieces: Sequence[bytes]) -> None:
    """One frame whose slots hold these pieces."""
    for piece in pieces[:-1]:
        port.tx[0].fill(piece, MOREFRAG)
    port.tx[0].fill(pieces[-1])
    port.tx[0].publish()


def test_header_length_is_set_and_told(valed: Valed) -> None:
    assert set_header(valed, "vale1:a", 12) == errno.ENXIO
    valed.open("vale1:a", flags=0)
    assert get_header(valed, "vale1:a") == 0
    assert set_header(valed, "vale1:a", 11) == errno.EINVAL
    for length in (12, 10, 0, 10):
        assert set_header(valed, "vale1:a", length) == 0
        assert get_header(valed, "vale1:a") == length
    with pytest.raises(AttachError) as refusal:
        valed.open("vale1:a", flags=0)
    assert refusal.value.errno == errno.EIO
    valed.open("vale1:a", flags=ACCEPT_VNET_HDR)


@pytest.mark.another_user
def test_header_of_another_user_is_not_set(valed: Valed) -> None:
    valed.open("vale1:a")
    assert valed.as_nobody(lambda: set_header(valed, "vale1:a", 12)) == errno.EPERM
    assert get_header(valed, "vale1:a") == 0


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 999, 1448])
def test_checksum_is_completed(
    valed: Valed, trio: tuple[Port, Port, Port], *, length: int, ipv6: bool
) -> None:
    a, b, _ = trio
    sent = Segment(bytes(range(256)) * 6, ipv6=ipv6)
    sent = replace(sent, payload=sent.payload[:length])
    a.send([sent.header() + sent.build(complete=False)])
    assert b.receive(1) == [sent.build()]
    assert segmented(valed, "vale1:b") == (0, 0, 0)


@pytest.mark.parametrize("tags", [b"", b"\x81\x00\x00\x05", b"\x88\xa8\x00\x07\x81\x00\x00\x05"])
@pytest.mark.parametrize("ipv6", [False, True])
def test_tcp_is_segmented(
    valed: Valed, trio: tuple[Port, Port, Port], tags: bytes, *, ipv6: bool
) -> None:
    a, b, _ = trio
    payload = bytes(i * 7 % 251 for i in range(60001))
    for flags in (ACK, ACK | PSH | FIN, ACK | CWR | PSH):
        sent = Segment(payload, ipv6=ipv6, tags=tags, flags=flags)
        a.send([sent.header(1400) + sent.build(complete=False)])
        assert b.receive(43) == [segment.build() for segment in sent.cut(1400)]
    a.flush()
    total = 3 * (60001 + 43 * (sent.tcp_at + 32))
    assert segmented(valed, "vale1:b") == (3, 129, total)
    counters = valed.qmp().port("vale1:b")["tx"]
    assert (counters["offered"], counters["frames"], counters["bytes"]) == (3, 129, total)


def test_between_ports_that_know_the_frame_passes_whole(
    valed: Valed, trio: tuple[Port, Port, Port]
) -> None:
    a, _, c = trio
    c.send([b"\0" * 10 + b"\xff" * 6 + station(3) + b"\x88\xb5" + bytes(46)])
    a.receive(1)
    sent = Segment(bytes(60000))
    a.send([sent.header(1400) + sent.build(station(3), complete=False)])
    (got,) = c.receive(1)
    real = len(sent.build()) - 60000
    expected = sent.header(1400, length=10, hdr_len=real)
    assert got == expected + sent.build(station(3), complete=False)
    assert segmented(valed, "vale1:c") == (0, 0, 0)


def test_flooded_frame_comes_to_each_in_its_form(
    valed: Valed, trio: tuple[Port, Port, Port]
) -> None:
    a, b, c = trio
    everybody = b"\xff" * 6
    sent = Segment(bytes(5000))
    plain = everybody + A + b"\x88\xb5" + bytes(46)
    a.send([bytes(12) + plain, sent.header(1000) + sent.build(everybody, complete=False),
            bytes(12) + plain])
    cut = [segment.build(everybody) for segment in sent.cut(1000)]
    assert b.receive(7) == [plain, *cut, plain]
    assert [len(got) for got in c.receive(3)] == [70, 10 + len(sent.build()), 70]
    a.flush()
    check_books({port["name"]: port for port in valed.qmp().execute("query-ports")})


def test_header_in_a_slot_of_its_own_or_with_data(
    valed: Valed, trio: tuple[Port, Port, Port]
) -> None:
    a, b, _ = trio
    sent = Segment(b"x" * 100)
    header, partial = sent.header(), sent.build(complete=False)
    put(a, [header, partial])
    put(a, [header + partial[:1], partial[1:20], partial[20:]])
    assert b.receive(2) == [sent.build()] * 2
    put(a, [header[:11], header[11:] + partial])
    a.flush()
    assert valed.qmp().port("vale1:a")["rx"]["dropped"] == {"bad_header": 1}


HOSTILE = [
    {"csum_start": 65535},
    {"csum_offset": 65535},
    {"csum_start": 13},
    {"gso_size": 0, "gso_type": TCP4},
    {"gso_size": 1, "gso_type": TCP4},
    {"gso_size": 100, "gso_type": TCP6},
    {"gso_size": 100, "gso_type": 3},
    {"gso_size": 100, "gso_type": 2},
    {"gso_size": 100, "gso_type": ECN},
    {"gso_size": 100, "gso_type": TCP4, "flags": 0},
    {"gso_size": 100, "gso_type": TCP4, "csum_offset": 6},
    {"gso_size": 100, "gso_type": TCP4, "csum_start": 33},
]


def test_hostile_headers_are_dropped_and_counted(
    valed: Valed, trio: tuple[Port, Port, Port]
) -> None:
    a, b, _ = trio
    sent = Segment(b"x" * 300)
    a.send([sent.header(**changed) + sent.build(complete=False) for changed in HOSTILE])
    a.send([sent.header() + sent.build(complete=False)])
    assert b.receive(1) == [sent.build()]
    a.flush()
    assert b.drain() == []
    rx = valed.qmp().port("vale1:a")["rx"]
    assert rx["dropped"] == {"bad_header": len(HOSTILE)}
    check_books({port["name"]: port for port in valed.qmp().execute("query-ports")})


def test_segments_that_find_no_room_are_counted(
    valed: Valed, trio: tuple[Port, Port, Port]
) -> None:
    a, b, _ = trio
    sent = Segment(bytes(60000), ipv6=True)
    for _ in range(4):
        a.send([sent.header(100) + sent.build(complete=False)])
    a.flush()
    tx = valed.qmp().port("vale1:b")["tx"]
    assert (tx["offered"], tx["frames"], tx["dropped"]) == (4, 1023, {"ring_full": 1377})
    assert segmented(valed, "vale1:b")[:2] == (4, 2400)
    check_books({"vale1:b": valed.qmp().port("vale1:b")})
    assert b.receive(1023)[:600] == [segment.build() for segment in sent.cut(100)]


def test_libvale_opens_with_a_header(valed: Valed, tmp_path: Path) -> None:
    """`open NAME LENGTH` holds a port until its input ends."""
    program, library = tmp_path / "open", BINARY.parents[1] / "lib/libvale.a"
    source = """
        #include <libvale.h>
        #include <stdio.h>
        #include <stdlib.h>
        int main(int argc, char **argv) {
            struct vale_open_args args = {.name = argv[1], .vnet_hdr_len = atoi(argv[argc - 1])};
            struct vale_error err;
            struct vale_port *port = vale_open(&args, &err);
            printf("%s\\n", port ? "open" : err.text);
            fflush(stdout);
            getchar();
            vale_close(port);
        }
    """
    flags = [f"-I{ROOT}/include", f"-I{ROOT}/libvale", "-x", "c", "-", "-x", "none", library]
    sanitizers = ["-fsanitize=" + {"asan": "address,undefined", "tsan": "thread"}[name]
                  for name in [sanitizer()] if name]
    subprocess.run(["gcc", *sanitizers, "-o", program, *flags], input=source, text=True, check=True)

    env = os.environ | {"VALE_DEV": str(valed.rundir / "netmap.sock")}

    def start(length: int) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [program, "vale1:h", str(length)],
            env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )

    with start(12) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "open\n"
        assert get_header(valed, "vale1:h") == 12
    with start(11) as refused:
        assert refused.stdout
        assert "no virtio-net header of 11 bytes" in refused.stdout.readline()
