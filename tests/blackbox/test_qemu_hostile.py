# SPDX-License-Identifier: BSD-2-Clause
"""Providers that are bad, or turn bad, and our netdev backend in a real QEMU (lib/backend.py).

    test --dgram-- hub --netmap-- lib/fake.py, which answers and behaves as a test wants

At the start, or at netdev_add, a bad provider is one line and nothing else. One that was good is
believed nothing either: QEMU lives, and once the provider is good again frames pass as before.
"""

import asyncio
import contextlib
import errno
import os
import random
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError

from lib.backend import (
    ETH_ZLEN,
    MARKS,
    NO_GUEST,
    ROOT,
    SECONDS,
    Hub,
    Qemu,
    Switch,
    clean_env,
    cpu_ticks,
    ended,
    frame,
    hub,
    qemu,
    refused,
    running,
)
from lib.fake import (
    BUF_COUNT,
    BUF_SIZE,
    BUFS_OFFSET,
    FIELDS,
    IF_OFFSET,
    MEMSIZE,
    RX_OFFSET,
    SLOTS,
    TX_OFFSET,
    Answer,
    Fake,
    Port,
    Request,
    memory,
    region,
)
from lib.native import MOREFRAG, REGISTER, REPLY, REPLY_MAGIC
from lib.trace import Trace
from lib.valed import eventually

PKTGEN = ROOT / "build/bin/vale-pktgen"
ROUNDS = 100  # of everything that must leave no trace

pytestmark = MARKS

# ------------------------------------------------------------------------------- bad at the start


def descriptors(request: Request, data: bytes, size: int = MEMSIZE) -> list[int]:
    """What a good answer brings, of a region with these bytes; they end with the request."""
    fds = [memory(data, size), os.eventfd(0)]
    for _ in range(2):
        read, write = os.pipe()
        fds.append(read)
        request.held.append(write)
    request.held += fds
    return fds


def sends(data: bytes) -> Answer:
    """Bytes that are no answer."""
    return lambda request: request.send(data)


def replies(**changes: int) -> Answer:
    """A good answer but for some fields."""
    return lambda request: request.reply(descriptors(request, region()), **changes)


def maps(size: int = MEMSIZE, offset: int = IF_OFFSET, **changes: int) -> Answer:
    """A good answer whose region is not as it should be, nor perhaps what it says of it."""
    return lambda request: request.reply(
        descriptors(request, region(**changes), size), memsize=size, offset=offset
    )


def brings(change: Callable[[list[int], Request], list[int]]) -> Answer:
    """A good answer but for its descriptors."""
    return lambda request: request.reply(change(descriptors(request, region()), request))


def opened(request: Request, path: str | int, flags: int = os.O_RDWR) -> int:
    """A descriptor of something else."""
    fd = path if isinstance(path, int) else os.open(path, flags)
    request.held.append(fd)
    return fd


def instead(index: int, make: Callable[[Request], int]) -> Answer:
    """One descriptor is something else."""

    def change(fds: list[int], request: Request) -> list[int]:
        return [*fds[:index], make(request), *fds[index + 1 :]]

    return brings(change)


def socket_of(request: Request) -> int:
    ours, theirs = socket.socketpair()
    opened(request, theirs.detach())
    return opened(request, ours.detach())


def hangs_up(request: Request) -> None:
    request.hang_up()


def resized(request: Request, size: int) -> int:
    return opened(request, memory(region(), size))


SENSE, LAYOUT = "makes no sense", "no valid layout"
HUNG_UP = "hung up without an answer"
BIG = 2**32 - 1
ANSWERS: dict[str, tuple[Answer, str]] = {
    "garbage": (sends(b"garbage" * 40), SENSE),
    "nothing": (sends(b""), HUNG_UP),
    "a byte": (sends(b"V"), SENSE),
    "half a reply": (sends(REPLY.pack(REPLY_MAGIC, 1, 0, 0, 0)[:8]), SENSE),
    "a reply alone": (sends(REPLY.pack(REPLY_MAGIC, 1, 0, 0, 184)), SENSE),
    "4096 bytes": (sends(REPLY.pack(REPLY_MAGIC, 1, 0, 0, 4080) + bytes(4080)), SENSE),
    "cut": (replies(cut=1), SENSE),
    "magic": (replies(magic=0), SENSE),
    "version": (replies(version=2), "another version of the protocol than 1"),
    "length": (replies(longer=1), SENSE),
    "error -1": (replies(error=-1), SENSE),
    "error 4096": (replies(error=4096), SENSE),
    "error 2^31-1": (replies(error=2**31 - 1), SENSE),
    "error of no name": (replies(error=4095), "refused by"),
    "EBUSY": (replies(error=errno.EBUSY), "the port is taken"),
    "no descriptors": (brings(lambda _fds, _request: []), SENSE),
    "three": (brings(lambda fds, _request: fds[:3]), SENSE),
    "five": (brings(lambda fds, _request: [*fds, fds[0]]), SENSE),
    "250": (brings(lambda fds, _request: fds[:1] * 250), SENSE),
    "backwards": (brings(lambda fds, _request: fds[::-1]), SENSE),
    "memory is a pipe": (instead(0, lambda r: r.held[0]), SENSE),
    "memory is a file": (instead(0, lambda r: opened(r, __file__, os.O_RDONLY)), SENSE),
    "memory is a directory": (instead(0, lambda r: opened(r, "/", os.O_RDONLY)), SENSE),
    "memory is /dev/zero": (instead(0, lambda r: opened(r, "/dev/zero")), SENSE),
    "memory is not sealed": (
        instead(0, lambda r: opened(r, memory(region(), seals=0))),
        SENSE,
    ),
    "memory can shrink": (instead(0, lambda r: opened(r, memory(region(), seals=5))), SENSE),
    "memory is empty": (instead(0, lambda r: resized(r, 0)), SENSE),
    "memory is a page too short": (instead(0, lambda r: resized(r, MEMSIZE - 4096)), SENSE),
    "memory is a byte too long": (instead(0, lambda r: resized(r, MEMSIZE + 1)), SENSE),
    "kick is a pipe": (instead(1, lambda r: r.held[0]), SENSE),
    "kick is a socket": (instead(1, socket_of), SENSE),
    "kick is a file": (instead(1, lambda r: opened(r, __file__, os.O_RDONLY)), SENSE),
    "call is an eventfd": (instead(2, lambda r: opened(r, os.eventfd(0))), SENSE),
    "call is a socket": (instead(3, socket_of), SENSE),
    "hang-up": (hangs_up, HUNG_UP),
    "region of no byte": (maps(0), "cannot be mapped"),
    "region of a byte": (maps(1), LAYOUT),
    "region of its header": (maps(256), LAYOUT),
    "region without buffers": (maps(BUFS_OFFSET, memsize=BUFS_OFFSET), LAYOUT),
    "if_offset 0": (maps(offset=0, if_offset=0), LAYOUT),
    "if_offset odd": (maps(offset=IF_OFFSET + 1, if_offset=IF_OFFSET + 1), LAYOUT),
    "if_offset at the end": (maps(offset=MEMSIZE, if_offset=MEMSIZE), LAYOUT),
    "if_offset 2^63": (maps(offset=2**63, if_offset=2**63), LAYOUT),
    "if_offset of the answer": (maps(offset=IF_OFFSET + 8), LAYOUT),
    "buf_count of one more": (maps(buf_count=BUF_COUNT + 1), LAYOUT),
    **{
        f"{name} {value}": (maps(**{name: value}), LAYOUT)
        for name, values in {
            "magic": (0,), "version": (0, 2), "memsize": (0, MEMSIZE + 1, 2**64 - 1),
            "if_offset": (0, IF_OFFSET + 8), "tx_rings": (0, 2, 17, 65535),
            "rx_rings": (0, 2, 17, 65535), "tx_slots": (0, 1, SLOTS + 1, 4097, BIG),
            "rx_slots": (0, 1, SLOTS + 1, 4097, BIG), "buf_size": (0, 63, BUF_SIZE + 1, 65537, BIG),
            "buf_count": (BIG,), "ni_tx_rings": (0, 2, BIG), "ni_rx_rings": (0, 2, BIG),
            "ni_host_tx_rings": (33, BIG), "ni_host_rx_rings": (33, BIG),
            "tx_ring_ofs": (-IF_OFFSET - 128, 1, MEMSIZE, MEMSIZE - IF_OFFSET - 128, -(2**63)),
            "rx_ring_ofs": (-(2**63), 2**63 - 1, MEMSIZE - IF_OFFSET - 256),
            "tx_num_slots": (0, 2, SLOTS + 1, BIG), "rx_num_slots": (0, 2, SLOTS + 1, BIG),
            "tx_nr_buf_size": (0, BUF_SIZE * 2), "rx_nr_buf_size": (0, BUF_SIZE * 2),
            "tx_buf_ofs": (-TX_OFFSET - 1, BUFS_OFFSET, 2**63 - 1, -(2**63)),
            "rx_buf_ofs": (-RX_OFFSET - 1, MEMSIZE, 2**63 - 1, -(2**63)),
        }.items()
        for value in values
    },
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
async def test_bad_answer_is_one_line(short_path: Path, case: str) -> None:
    answer, says = ANSWERS[case]
    path = short_path / "fake"
    with Fake(path, answer) as fake:
        line = await refused(clean_env(short_path), "-netdev", netdev_option(path))
        fake.wait_registers(1)
    assert re.search(says, line)
    assert str(path) in line or "vale1:a" in line


def netdev_option(path: Path) -> str:
    return f"netmap,id=n,ifname=vale1:a,devname={path}"


def netdev(path: Path | str, ifname: str = "vale1:a") -> dict[str, str]:
    return {"type": "netmap", "id": "n", "ifname": ifname, "devname": str(path)}


def trace(process: Qemu) -> Trace:
    return Trace.of(process.process.pid)


async def fails(process: Qemu, arguments: dict[str, Any], says: str) -> None:
    """A netdev_add that is an error with a text."""
    with pytest.raises(ExecuteError) as error:
        await process.qmp.execute("netdev_add", arguments)
    assert error.value.error_class == "GenericError"
    assert re.search(says, str(error.value))
    assert "\n" not in str(error.value)


async def test_bad_answers_to_netdev_add_leave_no_trace(short_path: Path) -> None:
    """All of them, again and again, then a good one: the same QEMU."""
    path = short_path / "fake"
    answers: list[Answer] = []
    with Fake(path, lambda request: answers[0](request)) as fake:
        async with qemu(short_path, "q", clean_env(short_path), *NO_GUEST) as process:
            before = trace(process)
            for _ in range(ROUNDS // 10):
                for answer, says in ANSWERS.values():
                    answers[:] = [answer]
                    await fails(process, netdev(path), says)
            fake.wait_registers(len(ANSWERS) * (ROUNDS // 10))
            assert trace(process) == before
            answers[:] = [fake.accept]
            await process.qmp.execute("netdev_add", netdev(path))
            assert trace(process) != before
            await process.qmp.execute("netdev_del", {"id": "n"})
            assert trace(process) == before
            assert process.said() == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "Parameter 'ifname' is missing"),
        ({"ifname": ""}, "not a port name"),
        ({"ifname": "eth0"}, "eth0"),
        ({"ifname": "vale1:a:b"}, "vale1:a:b"),
        ({"ifname": "vale1:\n"}, r"vale1:\?"),
        ({"ifname": "vale1:\x1b[2J"}, r"vale1:\?\[2J"),
        ({"ifname": "vale1:" + "x" * 4000}, "x" * 40),
        ({"ifname": "vale1:lo"}, "network interface"),
        ({"ifname": 1}, "ifname"),
        ({"ifname": "vale1:a", "devname": ""}, "no switch at"),
        ({"ifname": "vale1:a", "devname": "/nonexistent"}, "/nonexistent"),
        ({"ifname": "vale1:a", "devname": "/" + "x" * 4000}, "x" * 40),
        ({"ifname": "vale1:a", "devname": "/dev/zero"}, "/dev/zero"),
        ({"ifname": "vale1:a", "colour": "red"}, "colour"),
        ({"ifname": "vale1:taken"}, "the port is taken"),
    ],
)
async def test_wrong_values_to_netdev_add_leave_no_trace(
    short_path: Path, switch: Switch, arguments: dict[str, Any], says: str
) -> None:
    async with qemu(short_path, "q", switch.env, *NO_GUEST) as process:
        taken = {"type": "netmap", "id": "t", "ifname": "vale1:taken"}
        await process.qmp.execute("netdev_add", taken)
        before = trace(process)
        for _ in range(ROUNDS):
            await fails(process, {"type": "netmap", "id": "n"} | arguments, says)
        assert trace(process) == before
        await fails(process, taken, "Duplicate")
        assert process.said() == ""


# ------------------------------------------------------------------------------------ no answer


@contextlib.contextmanager
def listening(path: Path, kind: int, backlog: int = 8) -> Iterator[socket.socket]:
    """A socket there that nobody serves."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))
        if kind != socket.SOCK_DGRAM:
            sock.listen(backlog)
        yield sock


@contextlib.contextmanager
def no_provider(kind: str, path: Path) -> Iterator[None]:
    """Something at a path that is no provider."""
    with contextlib.ExitStack() as stack:
        if kind == "stream":
            stack.enter_context(listening(path, socket.SOCK_STREAM))
        elif kind == "dgram":
            stack.enter_context(listening(path, socket.SOCK_DGRAM))
        elif kind == "dead socket":
            with listening(path, socket.SOCK_SEQPACKET):
                pass
        elif kind == "file":
            path.write_bytes(b"garbage")
        elif kind == "directory":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(kind)
        yield


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("stream", "no switch at"),
        ("dgram", "no switch at"),
        ("dead socket", "Connection refused"),
        ("file", "neither a netmap device nor a valed's"),
        ("directory", "neither a netmap device nor a valed's"),
        ("fifo", "neither a netmap device nor a valed's"),
        ("/nonexistent", "No such file"),
        ("/dev/null", "vale1:a"),
        ("/dev/zero", "vale1:a"),
    ],
)
async def test_what_is_no_provider_is_one_line(short_path: Path, kind: str, says: str) -> None:
    path = short_path / "fake"
    with no_provider(kind, path):
        line = await refused(clean_env(short_path), "-netdev", netdev_option(path))
    assert says in line
    assert str(path) in line


async def silence(short_path: Path) -> str:
    """What QEMU says of a provider that says nothing, not before five seconds are over."""
    began = time.monotonic()
    line = await refused(clean_env(short_path), "-netdev", netdev_option(short_path / "fake"))
    assert time.monotonic() - began >= 5
    assert str(short_path / "fake") in line
    return line


async def test_provider_that_never_accepts_is_one_line(short_path: Path) -> None:
    with listening(short_path / "fake", socket.SOCK_SEQPACKET):
        assert "no answer within 5 s" in await silence(short_path)


async def test_provider_that_never_answers_is_one_line(short_path: Path) -> None:
    held: list[int] = []
    with Fake(short_path / "fake", lambda request: held.append(os.dup(request.fds[0]))):
        assert "no answer within 5 s" in await silence(short_path)
    for fd in held:
        os.close(fd)


async def test_provider_whose_backlog_is_full_is_one_line(short_path: Path) -> None:
    path = short_path / "fake"
    with (
        listening(path, socket.SOCK_SEQPACKET, 0),
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client,
    ):
        client.connect(str(path))
        assert "its valed hangs" in await silence(short_path)


async def test_hang_up_at_once_is_one_line(short_path: Path) -> None:
    path = short_path / "fake"
    with listening(path, socket.SOCK_SEQPACKET) as sock:
        accepting = asyncio.create_task(asyncio.to_thread(lambda: sock.accept()[0].close()))
        line = await refused(clean_env(short_path), "-netdev", netdev_option(path))
        await accepting
    assert re.search(HUNG_UP, line)


# ------------------------------------------------------------------------- good, and then bad


@dataclass(frozen=True)
class Joint:
    """A hub whose backend is on a fake provider."""

    hub: Hub
    fake: Fake

    def flood(self) -> None:
        """Frames into QEMU as long as it reads; the rest is what a full ring is for."""
        with contextlib.suppress(BlockingIOError):
            for size in (60, 1514, 2049, 65000):
                self.hub.end.send(frame(size))

    def drain(self) -> int:
        """How many frames have come out."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while self.hub.end.recv(1 << 17):
                count += 1
        return count

    async def alive(self) -> None:
        """QEMU has a main loop that turns."""
        async with asyncio.timeout(SECONDS):
            assert await self.hub.qemu.qmp.execute("query-status")

    async def passes(self, number: int) -> None:
        """A frame out, a frame in: both arrive, behind whatever waits there."""
        async with asyncio.timeout(SECONDS):
            sent = frame(1000, number)
            self.fake.port().deliver([sent])
            while await self.hub.receive() != sent:
                pass
            collecting = asyncio.create_task(asyncio.to_thread(self.until, sent))
            await self.hub.send(sent)
            await collecting

    def until(self, sent: bytes) -> None:
        while self.fake.port().collect(1) != [sent]:
            pass


@contextlib.asynccontextmanager
async def joint(short_path: Path, **changes: int) -> AsyncIterator[Joint]:
    path = short_path / "fake"
    with Fake(path, changes=changes) as fake:
        async with hub(short_path, clean_env(short_path), "vale1:a", f",devname={path}") as made:
            yield Joint(made, fake)


async def test_late_answer_is_good(short_path: Path) -> None:
    path = short_path / "fake"

    def answer(request: Request) -> None:
        time.sleep(2)
        fake.accept(request)

    with Fake(path, answer) as fake:
        async with hub(short_path, clean_env(short_path), "vale1:a", f",devname={path}") as made:
            await Joint(made, fake).passes(1)


NASTY = (0, 1, 2, SLOTS - 1, SLOTS, SLOTS + 1, 4095, 4096, 2**31 - 1, 2**31, BIG)
LENGTHS = (0, 1, 13, 14, 59, 60, BUF_SIZE - 1, BUF_SIZE, BUF_SIZE + 1, 65535)
INDEXES = (0, 1, 2, BUF_COUNT - 1, BUF_COUNT, BUF_COUNT + 1, 2**31, BIG)


def attack_tails(port: Port, dice: random.Random) -> None:
    """hwcur and hwtail are any numbers."""
    for ring in (port.tx, port.rx):
        ring.publish(dice.choice(NASTY), dice.choice([*NASTY, dice.randrange(SLOTS)]))


def attack_slots(port: Port, dice: random.Random) -> None:
    """Slots hold any indexes, lengths and flags, while hwtail jumps within the ring."""
    for ring in (port.tx, port.rx):
        for i in range(SLOTS):
            index = dice.choice([*INDEXES, dice.randrange(BUF_COUNT)])
            ring.set_slot(i, index, dice.choice(LENGTHS), dice.randrange(1 << 16))
        ring.publish(dice.randrange(SLOTS), dice.randrange(SLOTS))


def attack_chains(port: Port, dice: random.Random) -> None:
    """A frame that does not end."""
    for i in range(SLOTS):
        port.rx.set_slot(i, 2 + SLOTS + i, dice.choice(LENGTHS), MOREFRAG)
    port.rx.publish(0, (port.rx.head - 1) % SLOTS)


def attack_frames(port: Port, dice: random.Random) -> None:
    """Slots change while QEMU reads them: the ring is full of them, and tails move on."""
    for _ in range(20):
        attack_slots(port, dice)
        port.rx.publish(0, (port.rx.head - 1) % SLOTS)
        port.tx.publish(0, (port.tx.head - 1) % SLOTS)


def attack_headers(port: Port, dice: random.Random) -> None:
    """What the client keeps in the rings' headers is overwritten: head, cur, tail."""
    for base in (TX_OFFSET, RX_OFFSET):
        for offset in (20, 24, 28):
            struct.pack_into("<I", port.mem, base + offset, dice.choice(NASTY))
    attack_slots(port, dice)


def attack_geometry(port: Port, dice: random.Random) -> None:
    """What was agreed on is another now: buffers elsewhere, of another size, other rings."""
    fields = [name for name in FIELDS if name.startswith(("tx_", "rx_", "buf_"))]
    for name in fields:
        at, packing = FIELDS[name]
        good = struct.unpack_from(packing, region(), at)[0]
        top = 2 ** (8 * struct.calcsize(packing) - 1) - 1
        bad = dice.choice([0, 1, good, good * 2, top])
        struct.pack_into(packing, port.mem, at, min(bad, top))
    attack_slots(port, dice)


def mend(port: Port) -> None:
    """The region as it was at first, but for what the client has published."""
    sound = region()
    for at, packing in FIELDS.values():
        struct.pack_into(packing, port.mem, at, *struct.unpack_from(packing, sound, at))
    port.repair()
    for ring in (port.tx, port.rx):
        ring.call()


@pytest.mark.parametrize(
    "attack",
    [
        attack_tails,
        attack_slots,
        attack_chains,
        attack_frames,
        attack_headers,
        attack_geometry,
    ],
)
async def test_provider_that_turns_bad_is_survived(
    short_path: Path, attack: Callable[[Port, random.Random], None]
) -> None:
    dice = random.Random(1)
    async with joint(short_path) as made:
        await made.passes(0)
        port, came = made.fake.port(), 0
        for lap in range(1, 6):
            for _ in range(ROUNDS):
                attack(port, dice)
                port.rx.call()
                port.tx.call()
                made.flood()
                await made.alive()
                came += made.drain()
            mend(port)
            await made.passes(lap)
        print(f"{came} frames came out meanwhile")
        assert all("hub 0" in line for line in made.hub.qemu.said().splitlines())


async def test_buffers_of_one_ring_are_not_those_of_the_other(short_path: Path) -> None:
    """Two buffers at the end are all that the TX ring has: its slots point out of the memory."""
    end = MEMSIZE - 2 * BUF_SIZE
    async with joint(short_path, tx_buf_ofs=end - TX_OFFSET, buf_count=2) as made:
        for _ in range(8):
            await made.hub.send(frame(1514))
            await made.alive()
        assert int((await made.hub.qemu.info())["tx_dropped"]) == 8
        sent = frame(1000, 1)
        made.fake.port().deliver([sent])
        assert await made.hub.receive() == sent


# --------------------------------------------------------------------------------- gone mid-burst


async def test_provider_that_dies_amid_bursts_is_used_again(short_path: Path) -> None:
    """Both rings are full when it goes; what comes back is a good one."""
    async with joint(short_path) as made:
        await made.passes(0)
        before = trace(made.hub.qemu)
        for lap in range(1, 11):
            made.fake.port().deliver(frame(1514, number) for number in range(SLOTS - 1))
            made.flood()
            requests = made.fake.registers
            made.fake.hang_up()
            await asyncio.to_thread(made.fake.wait_registers, requests + 1)
            await made.alive()
            await made.passes(lap)
        assert trace(made.hub.qemu) == before
        said = made.hub.qemu.said()
        assert said.count("the switch of vale1:a is gone") == 10
        assert said.count("the switch of vale1:a is back") == 10


def answers_nothing(_: Request) -> None:
    """The request is closed, and with it the way of an answer."""


RESUMES: dict[str, tuple[Answer, str]] = {
    "garbage": (sends(b"garbage" * 40), ""),
    "nothing": (sends(b""), ""),
    "version": (replies(version=2), ""),
    "error -1": (replies(error=-1), ""),
    "no descriptors": (brings(lambda _fds, _request: []), ""),
    "250": (brings(lambda fds, _request: fds[:1] * 250), ""),
    "other kinds": (brings(lambda fds, _request: fds[::-1]), ""),
    "memory is not sealed": (instead(0, lambda r: opened(r, memory(region(), seals=0))), ""),
    "hang-up": (hangs_up, ""),
    "no answer": (answers_nothing, ""),
    "ENOMEM": (replies(error=errno.ENOMEM), ""),
    "EAGAIN": (replies(error=errno.EAGAIN), "vale1:a was taken away, the link stays down"),
    "ENXIO": (replies(error=errno.ENXIO), "vale1:a was taken away, the link stays down"),
}


@pytest.mark.parametrize("case", RESUMES)
async def test_bad_answer_to_coming_back_leaves_no_trace(short_path: Path, case: str) -> None:
    answer, says = RESUMES[case]
    path = short_path / "fake"

    def answer_all(request: Request) -> None:
        resumes = request.type == REGISTER and len(request.fds) > 1
        (answer if resumes else fake.accept)(request)

    with Fake(path, answer_all) as fake:
        async with qemu(short_path, "q", clean_env(short_path), *NO_GUEST) as process:
            before = trace(process)
            await process.qmp.execute("netdev_add", netdev(path))
            requests = fake.registers
            fake.hang_up()
            wanted = requests + (1 if says else 3)
            await asyncio.to_thread(fake.wait_registers, wanted)
            await asyncio.to_thread(eventually, says, lambda: says in process.said())
            await process.qmp.execute("netdev_del", {"id": "n"})
            assert trace(process) == before
            assert process.said().count("the switch of vale1:a is gone") == 1


async def test_silence_at_coming_back_costs_nothing(short_path: Path) -> None:
    """A valed that hangs: QEMU waits without waiting, and forgets the request with the netdev."""
    path = short_path / "fake"
    held: list[int] = []

    def answer(request: Request) -> None:
        if len(request.fds) > 1:
            held.append(os.dup(request.fds[0]))
        else:
            fake.accept(request)

    with Fake(path, answer) as fake:
        async with qemu(short_path, "q", clean_env(short_path), *NO_GUEST) as process:
            before = trace(process)
            await process.qmp.execute("netdev_add", netdev(path))
            requests = fake.registers
            fake.hang_up()
            await asyncio.to_thread(fake.wait_registers, requests + 1)
            ticks = cpu_ticks(process.process.pid)
            for _ in range(10):
                await asyncio.sleep(0.1)
                assert await process.qmp.execute("query-status")
            assert cpu_ticks(process.process.pid) - ticks < 0.2 * os.sysconf("SC_CLK_TCK")
            assert fake.registers == requests + 1
            await process.qmp.execute("netdev_del", {"id": "n"})
            assert trace(process) == before
        for fd in held:
            os.close(fd)


async def test_valed_killed_in_a_flood_is_used_again(short_path: Path, switch: Switch) -> None:
    """Frames at full rate from a port, and from QEMU; ten kills leave nothing behind."""
    if not PKTGEN.exists():
        pytest.skip(f"no {PKTGEN}: run 'make tools'")
    command = [str(PKTGEN), "-i", "vale1:f", "-f", "tx", "-l", "1514"]
    valed = switch.process
    async with contextlib.AsyncExitStack() as stack:
        a = await stack.enter_async_context(hub(short_path, switch.env, "vale1:a"))
        flood = await asyncio.create_subprocess_exec(*command, env=switch.env)
        stack.push_async_callback(partial(ended, flood))
        await floods(a)
        before = trace(a.qemu)
        for _ in range(10):
            valed.kill()
            await valed.wait()
            valed = (await stack.enter_async_context(running(switch.rundir))).process
            await floods(a)
        assert trace(a.qemu) == before
        said = a.qemu.said()
        assert said.count("the switch of vale1:a is gone") == 10
        assert said.count("the switch of vale1:a is back") == 10


async def floods(a: Hub) -> None:
    """Frames of the flood come out, more than a ring and a socket hold; ours go in."""
    for number in range(5000):
        assert len(await a.receive()) == 1514
        if number % 10 == 0:
            with contextlib.suppress(BlockingIOError):
                a.end.send(frame(ETH_ZLEN, number))
