# SPDX-License-Identifier: BSD-2-Clause
"""A guest moves between two unmodified QEMUs while frames go to it and come from it.

    QEMU 1  vale0 ── vhost-user ── vale1:a ──┐
       ║ migration                           ├── valed ── vale1:n ── this test
    QEMU 2  vale0 ── vhost-user ── vale1:b ──┘

Towards the guest: numbered datagrams, each filled with bytes that only its number tells. Their
reader in the guest is stopped meanwhile, so that they lie where valed wrote them, in pages that
no guest CPU touches: QEMU moves them only if valed has logged each write. From the guest: another
numbered stream. The rings move with the memory, so not one frame may be missing or come twice.
"""

from __future__ import annotations

import itertools
import random
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.guest import DEADLINE, MARKS, Guest, vhost_user
from lib.native import Deadline, Port, station
from lib.qmp import Qmp
from lib.valed import Valed, check_books, eventually

pytestmark = MARKS

US = station(9)
OUR_ADDRESS = "198.18.0.9"
PORT = 9001
RECORD = 1200
PER_TICK, TICK = 10, 0.01  # 1000 frames/s
RARP = b"\x80\x35"
BANDWIDTH = 48 << 20  # bytes/s: copying the memory takes a few seconds


def record(number: int) -> bytes:
    """The datagram with this number."""
    return struct.pack(">I", number) + random.Random(number).randbytes(RECORD - 4)


def checksum(header: bytes) -> int:
    total = sum(struct.unpack(f">{len(header) // 2}H", header))
    return 0xFFFF - (total % 0xFFFF or 0xFFFF)


def datagram(guest: Guest, payload: bytes) -> bytes:
    """A frame to the guest; its UDP checksum is left out, as IPv4 allows."""
    addresses = bytes(map(int, (OUR_ADDRESS + "." + guest.address()).split(".")))
    head = struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0) + addresses
    head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    udp = struct.pack(">HHHH", PORT, PORT, 8 + len(payload), 0)
    return bytes.fromhex(guest.mac(0).replace(":", "")) + US + b"\x08\x00" + head + udp + payload


class Peer:
    """Sends records at a steady rate and keeps what comes, in a thread."""

    def __init__(self, port: Port, guest: Guest) -> None:
        self.port, self.guest = port, guest
        self.sent = 0
        self.frames: list[bytes] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(TICK):
            numbers = range(self.sent, self.sent + PER_TICK)
            self.port.send([datagram(self.guest, record(n)) for n in numbers])
            self.sent += PER_TICK
            self.frames += self.port.drain()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._over.set()
            self._thread.join()
            self.port.flush()
            self.frames += self.port.drain()

    def sequence(self) -> list[int]:
        """The numbers that vale-udp-send gave its datagrams, end markers aside (vale_udp.h)."""
        return [
            int.from_bytes(frame[50:58], "big")
            for frame in self.frames
            if frame[:6] == US and frame[42:46] == b"VA\0\0"
        ]

    def rarps(self) -> int:
        return sum(frame[12:14] == RARP for frame in self.frames)


class Lab:
    """The guest, wherever it is now."""

    def __init__(self, valed: Valed, folder: Path, nic_options: str) -> None:
        self.valed, self.folder, self.nic_options = valed, folder, nic_options
        self.qmp = valed.qmp()
        for name in "ab":
            self.qmp.execute("port-add", name=f"vale1:{name}", kind="vhost-user")
        self.native = valed.open("vale1:n", rx_slots=4096)
        self.guest = self._launch("a", None)
        self.guest.connect()

    def _launch(self, port: str, like: Guest | None) -> Guest:
        folder = self.folder / f"{time.monotonic_ns()}"
        folder.mkdir()
        netdev = vhost_user(self.valed.rundir / f"vale1:{port}")
        options = {"nic_options": self.nic_options, "append": "init_on_alloc=0"}
        return Guest(folder, "g", 1, [netdev], like=like, **options)

    def migrate(self, port: str) -> None:
        """Move the guest to a new QEMU on this port."""
        old, new = self.guest, self._launch(port, self.guest)
        uri = f"unix:{self.folder}/migration-to-{port}"
        with new.qmp() as target, old.qmp() as source:
            try:
                target.execute("migrate-incoming", uri=uri)
                capability = {"capability": "events", "state": True}
                source.execute("migrate-set-capabilities", capabilities=[capability])
                source.execute("migrate-set-parameters", max_bandwidth=BANDWIDTH)
                source.execute("migrate", uri=uri)
                migrated(source)
                while target.event()[0] != "RESUME":
                    pass
            except BaseException:
                new.close()
                raise
        old.close()
        self.guest = new
        new.connect(migrated=True)

    def tx_frames(self, port: str) -> int:
        """Frames delivered to a port."""
        return int(self.qmp.port(f"vale1:{port}")["tx"]["frames"])


def migrated(source: Qmp) -> None:
    """Wait until the migration is over."""
    deadline = Deadline(DEADLINE)
    while True:
        deadline.left("the migration to be over")
        name, data = source.event()
        if name == "MIGRATION":
            assert data["status"] != "failed", source.execute("query-migrate")
            if data["status"] == "completed":
                return


@pytest.fixture
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Valed.run() as valed:
        made = Lab(valed, tmp_path, request.param)
        try:
            yield made
        finally:
            made.guest.close()


def start_reader(guest: Guest, folder: Path) -> None:
    """A reader that writes datagrams to a file, and outlives this SSH session."""
    program = folder / "udp_to_file"
    source = Path(__file__).with_name("udp_to_file.c")
    subprocess.run(["gcc", "-O1", "-static", "-o", program, source], check=True)
    guest.write_file("/tmp/udp_to_file", program.read_bytes())
    guest.run("sysctl -w net.ipv4.udp_mem='65536 65536 65536'")
    guest.run(f"chmod +x /tmp/udp_to_file; /tmp/udp_to_file {PORT} /tmp/got")


def read_records(guest: Guest) -> list[int]:
    """What has come, when the reader has read it all: the numbers, each with the right bytes."""
    guest.run("killall -CONT udp_to_file")
    read = f"grep -q ':{PORT:04X} .* 00000000:00000000 ' /proc/net/udp"
    guest.run(f"until {read}; do sleep 0.1; done; killall udp_to_file")
    data = guest.read_file("/tmp/got")
    assert len(data) % RECORD == 0
    records = [data[at : at + RECORD] for at in range(0, len(data), RECORD)]
    numbers = [int.from_bytes(piece[:4], "big") for piece in records]
    wrong = [n for n, piece in zip(numbers, records, strict=True) if piece != record(n)]
    assert not wrong, f"{len(wrong)} of {len(records)} datagrams hold wrong bytes: {wrong[:20]}"
    return numbers


def wait_for_frames(lab: Lab, port: str, more: int) -> None:
    """Until so many more frames have been delivered to the port."""
    want = lab.tx_frames(port) + more
    eventually(f"frames to reach {port}", lambda: lab.tx_frames(port) >= want, DEADLINE)


@pytest.mark.parametrize(
    "lab",
    [
        pytest.param("", id="announces itself"),
        pytest.param(",guest_announce=off", id="is announced by RARP"),
    ],
    indirect=True,
)
def test_live_migration(lab: Lab, tmp_path: Path) -> None:
    """There and back. A guest that is to be announced sends nothing by itself."""
    silent = "announce=off" in lab.nic_options
    start_reader(lab.guest, tmp_path)
    if not silent:
        lab.guest.run(
            f"ip neigh add {OUR_ADDRESS} lladdr {US.hex(':')} dev vale0;"
            f"setsid vale-udp-send --to {OUR_ADDRESS} --rate 500 --seconds 600 > /dev/null 2>&1 &"
        )
    peer = Peer(lab.native, lab.guest)
    try:
        wait_for_frames(lab, "a", 100)
        lab.guest.run("killall -STOP udp_to_file")
        for port in "ba":
            before = peer.sent
            lab.migrate(port)
            assert peer.sent - before > 500  # while the memory was copied
            wait_for_frames(lab, port, 500)
        lab.guest.run("killall vale-udp-send || true")
    finally:
        peer.stop()

    numbers = read_records(lab.guest)
    assert numbers == sorted(set(numbers))
    assert lab.guest.snmp("Udp", "InErrors") == 0
    ports = lab.qmp.ports()
    check_books(ports)
    delivered = {name: ports[name]["tx"] for name in ("vale1:a", "vale1:b")}
    print({name: (tx["frames"], tx["dropped"]) for name, tx in delivered.items()})
    assert len(numbers) == sum(tx["frames"] for tx in delivered.values())

    if silent:
        assert peer.rarps() >= 2
    else:
        sequence = peer.sequence()
        steps = [(a, b) for a, b in itertools.pairwise([-1, *sequence]) if b != a + 1]
        assert not steps, f"from the guest, a number and the next: {steps}"
        assert len(sequence) > 1000
        assert peer.rarps() == 0
