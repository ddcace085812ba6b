# SPDX-License-Identifier: BSD-2-Clause
"""vale-udp-send and vale-udp-recv on loopback: real programs, and datagrams made by hand."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

GUEST = Path(os.environ.get("VALE_BUILD", Path(__file__).parents[2] / "build")) / "guest"
SEND, RECV = GUEST / "vale-udp-send", GUEST / "vale-udp-recv"
RUN = 7
END = 1

pytestmark = [
    pytest.mark.blackbox,
    pytest.mark.skipif(not (SEND.exists() and RECV.exists()),
                       reason=f"{GUEST}/vale-udp-*: not built; run make tools"),
]


def datagram(sequence: int, *, flags: int = 0, run: int = RUN, magic: int = 0x5641) -> bytes:
    """Make a datagram of 18 bytes as the sender does."""
    return struct.pack(">HHIQ2x", magic, flags, run, sequence)


class Receiver:
    """A running vale-udp-recv, and a socket to send to it."""

    def __init__(self, *options: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [RECV, "--port", str(self.port), "--json", "--max-seconds", "30", *options],
            stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def feed(self, *datagrams: bytes) -> None:
        """Send these datagrams in this order."""
        for data in datagrams:
            self.socket.sendto(data, ("127.0.0.1", self.port))

    def report(self) -> dict[str, Any]:
        """Wait for the end and give the report."""
        output, _ = self.process.communicate(timeout=40)
        assert self.process.returncode == 0
        report: dict[str, Any] = json.loads(output)
        return report

    def close(self) -> None:
        """Leave nothing running."""
        self.socket.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.close()


def send(receiver: Receiver, *options: str) -> dict[str, Any]:
    """Run vale-udp-send towards a receiver and give its report."""
    done = subprocess.run([SEND, "--to", "127.0.0.1", "--port", str(receiver.port), "--json",
                           *options], capture_output=True, text=True, check=True, timeout=30)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("frame", [64, 512, 1518])
def test_all_that_is_sent_arrives_at_a_modest_rate(receiver: Receiver, frame: int) -> None:
    tx = send(receiver, "--frame", str(frame), "--rate", "5000", "--seconds", "1")
    rx = receiver.report()
    assert tx["role"] == "tx"
    assert rx["role"] == "rx"
    assert tx["run"] == rx["run"]
    assert tx["sent"] == rx["received"] == rx["sent_by_peer"] == pytest.approx(5000, abs=250)
    assert tx["bytes"] == rx["bytes"] == tx["sent"] * (frame - 46)
    assert [rx[key] for key in ("lost", "reordered", "duplicated", "late", "rcvbuf_errors")] \
        == [0, 0, 0, 0, 0]
    assert tx["pps"] == pytest.approx(5000, rel=0.05)
    assert rx["ended_by"] == "end"


def test_unlimited_rate_is_accounted_exactly(receiver: Receiver) -> None:
    tx = send(receiver, "--seconds", "0.5")
    rx = receiver.report()
    assert rx["sent_by_peer"] == tx["sent"] > 10_000
    assert rx["received"] + rx["lost"] == tx["sent"]
    assert rx["lost"] == rx["rcvbuf_errors"]
    assert rx["reordered"] == rx["duplicated"] == 0


def test_a_receive_buffer_that_is_too_small_shows_as_loss() -> None:
    receiver = Receiver("--rcvbuf", "2048", "--batch", "1")
    try:
        receiver.process.send_signal(signal.SIGSTOP)
        receiver.feed(*(datagram(n) for n in range(500)))
        receiver.process.send_signal(signal.SIGCONT)
        assert select.select([], [receiver.socket], [], 1)[1]
        # The buffer is drained within the AFTER_END silence; markers repeat as the sender's do.
        for _ in range(20):
            select.select([], [], [], 0.01)
            receiver.feed(datagram(500, flags=END))
        rx = receiver.report()
    finally:
        receiver.close()
    assert rx["received"] + rx["lost"] == rx["sent_by_peer"] == 500
    assert rx["lost"] > 0
    assert rx["rcvbuf_errors"] >= rx["lost"]


@pytest.mark.parametrize(
    ("sequences", "sent", "expected"),
    [
        ([0, 1, 2, 3], 4, {"lost": 0, "reordered": 0, "duplicated": 0, "received": 4}),
        ([0, 2, 1, 3], 4, {"lost": 0, "reordered": 1, "duplicated": 0, "received": 4}),
        ([3, 2, 1, 0], 4, {"lost": 0, "reordered": 3, "duplicated": 0, "received": 4}),
        ([0, 1, 1, 3], 4, {"lost": 1, "reordered": 0, "duplicated": 1, "received": 4}),
        ([0, 3, 1, 1, 3, 2], 4, {"lost": 0, "reordered": 2, "duplicated": 2, "received": 6}),
        ([2, 3], 6, {"lost": 4, "reordered": 0, "first_seq": 2, "last_seq": 3}),
        ([0, 200, 64, 64, 127, 128], 201, {"lost": 196, "reordered": 3, "duplicated": 1}),
        ([], 5, {"lost": 5, "received": 0, "seconds": 0, "pps": 0}),
        # Numbers more than a window (2^23) below the highest are too old to be told apart.
        ([0, 1 << 23, 1, 0], (1 << 23) + 1, {"late": 1, "reordered": 1, "duplicated": 0,
                                             "lost": (1 << 23) - 2}),
        # A jump over the whole window leaves no old bit behind.
        ([5, 5 + (1 << 24), 6 + (1 << 23)], 6 + (1 << 24), {"reordered": 1, "duplicated": 0}),
        ([0, (1 << 64) - 2], 2, {"received": 2, "lost": 0}),
    ],
)
def test_accounting_of_hand_made_datagrams(receiver: Receiver, sequences: list[int], sent: int,
                                           expected: dict[str, int]) -> None:
    receiver.feed(*map(datagram, sequences), datagram(sent, flags=END))
    rx = receiver.report()
    assert {key: rx[key] for key in expected} == expected
    assert rx["sent_by_peer"] == sent


def test_datagrams_of_others_are_only_counted(receiver: Receiver) -> None:
    receiver.feed(b"", b"short", datagram(0, magic=1), datagram(0), datagram(1, run=RUN + 1),
                  datagram(9, run=RUN + 1, flags=END), datagram((1 << 64) - 1), datagram(1),
                  datagram(2, flags=END))
    rx = receiver.report()
    assert (rx["received"], rx["lost"], rx["foreign"], rx["sent_by_peer"]) == (2, 0, 6, 2)


def test_data_behind_the_end_marker_still_counts(receiver: Receiver) -> None:
    receiver.feed(datagram(0), datagram(2), datagram(3, flags=END), datagram(1))
    rx = receiver.report()
    assert (rx["received"], rx["lost"], rx["reordered"]) == (3, 0, 1)


def test_silence_ends_a_run_whose_end_markers_were_lost() -> None:
    receiver = Receiver("--idle-ms", "300")
    try:
        receiver.feed(datagram(0), datagram(3))
        rx = receiver.report()
    finally:
        receiver.close()
    assert (rx["ended_by"], rx["sent_by_peer"], rx["lost"]) == ("idle", None, 2)


def test_time_is_up_without_any_traffic() -> None:
    receiver = Receiver("--max-seconds", "0.3")
    try:
        rx = receiver.report()
    finally:
        receiver.close()
    assert (rx["ended_by"], rx["received"]) == ("timeout", 0)


def test_a_signal_ends_with_a_report(receiver: Receiver) -> None:
    receiver.feed(datagram(0))
    receiver.process.terminate()
    assert receiver.report()["ended_by"] == "signal"


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ([SEND], "usage:"),
        ([SEND, "--to", "nowhere"], "--to nowhere: give an IPv4 address"),
        ([SEND, "--to", "127.0.0.1", "--frame", "63"],
         "--frame 63: give a number from 64 to 9216"),
        ([SEND, "--to", "127.0.0.1", "--rate", "fast"], "--rate fast: give a number"),
        ([RECV, "--port", "70000"], "--port 70000: give a number from 1 to 65535"),
        ([RECV, "--port", "nan"], "--port nan: give a number"),
        ([RECV, "extra"], "usage:"),
    ],
)
def test_bad_options_are_usage_errors(command: list[str], complaint: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_a_taken_port_is_one_clear_line(receiver: Receiver) -> None:
    done = subprocess.run([RECV, "--port", str(receiver.port)], capture_output=True, text=True,
                          check=False, timeout=10)
    assert done.returncode == 1
    assert done.stderr == (f"vale-udp-recv: cannot receive on UDP port {receiver.port}: "
                           "Address already in use\n")
