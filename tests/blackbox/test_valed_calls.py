# SPDX-License-Identifier: BSD-2-Clause
"""A front end that fills its call eventfd and makes it blocking, so that the worker's write sleeps.

    a, b: honest, native ------+
                               +--- valed, one worker
    v: a front end that does --+

The worker is freed, everybody else goes on, and the port is closed with its reason.
"""

import contextlib
import os
import signal
import struct

import pytest

from lib.native import BROADCAST, Port, numbered, station
from lib.qmp import Qmp
from lib.valed import Valed, sanitizer
from lib.vhost import HEADER, SET_VRING_ENABLE, FrontEnd

pytestmark = pytest.mark.blackbox

REASON = "its front end blocked a call"


@pytest.fixture
def pair(valed: Valed) -> tuple[Port, Port]:
    return valed.open("vale1:a"), valed.open("vale1:b")


@pytest.fixture
def qmp(valed: Valed) -> Qmp:
    qmp = valed.qmp()
    qmp.execute("port-add", name="vale1:v", kind="vhost-user")
    return qmp


def block(fd: int) -> None:
    """From here on a write to the eventfd sleeps."""
    os.set_blocking(fd, False)
    full = False
    while not full:  # valed may write in between
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(fd, 2**64 - 2)
            full = True
    os.set_blocking(fd, True)


def honest_traffic(pair: tuple[Port, Port]) -> None:
    """100 frames arrive, unless the worker sleeps for ever."""
    a, b = pair
    sent = numbered(BROADCAST, station(1), 100)
    a.send(sent)
    assert b.receive(100) == sent


def wait_closed(qmp: Qmp) -> None:
    while (event := qmp.event())[0] != "PORT_REMOVED":
        pass
    assert (event[1]["name"], event[1]["reason"]) == ("vale1:v", REASON)


def test_call_for_frames_that_arrived(valed: Valed, pair: tuple[Port, Port], qmp: Qmp) -> None:
    with FrontEnd(valed.rundir / "vale1:v") as front:
        honest_traffic(pair)
        front.receive(100)
        block(front.calls[0])
        honest_traffic(pair)
        wait_closed(qmp)
        assert front.hung_up()
    honest_traffic(pair)
    assert set(valed.qmp().ports()) == {"vale1:a", "vale1:b"}


def test_call_for_frames_that_were_sent(valed: Valed, pair: tuple[Port, Port], qmp: Qmp) -> None:
    with FrontEnd(valed.rundir / "vale1:v") as front:
        block(front.calls[1])
        for i in range(10):  # as send() does, which would go on to read the eventfd
            front.offer(1, i, HEADER + 60)
        front.kick(1)
        honest_traffic(pair)
        wait_closed(qmp)
    honest_traffic(pair)


def test_call_when_a_queue_starts(valed: Valed, pair: tuple[Port, Port], qmp: Qmp) -> None:
    """The control thread makes none: commands are answered meanwhile."""
    with FrontEnd(valed.rundir / "vale1:v") as front:
        for q in range(2):
            front.ack(SET_VRING_ENABLE, struct.pack("<II", q, 0))
        for fd in front.calls:
            block(fd)
        for q in range(2):
            front.post(SET_VRING_ENABLE, struct.pack("<II", q, 1))
        assert "vale1:a" in valed.qmp().ports()
        honest_traffic(pair)
        wait_closed(qmp)
    honest_traffic(pair)


def test_end_while_a_worker_is_stuck(valed: Valed, pair: tuple[Port, Port], qmp: Qmp) -> None:
    with FrontEnd(valed.rundir / "vale1:v") as front:
        block(front.calls[1])
        front.offer(1, 0, HEADER + 60)
        front.kick(1)
        valed.stop()


def test_again_and_again_in_a_loop(valed: Valed, pair: tuple[Port, Port], qmp: Qmp) -> None:
    """A second process blocks and frees its eventfd as fast as it can: what a look at it would
    say is wrong a moment later. Frames go on."""
    with FrontEnd(valed.rundir / "vale1:v") as front:
        child = os.fork()
        if child == 0:
            while True:
                for fd in front.calls:
                    block(fd)
        try:
            for _ in range(20):
                honest_traffic(pair)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    honest_traffic(pair)


@pytest.mark.skipif(sanitizer() != "", reason="sanitizers have threads of their own")
def test_no_timer_is_left_when_calls_end(valed: Valed, pair: tuple[Port, Port], qmp: Qmp) -> None:
    """Calls are watched while there are some, and not for ever: then nothing wakes up."""
    with FrontEnd(valed.rundir / "vale1:v") as front:
        honest_traffic(pair)
        front.receive(100)
        assert qmp.port("vale1:v")["calls"] > 0
        signal.sigtimedwait([], 1.5)  # the timer runs out
        before = valed.wakeups()
        signal.sigtimedwait([], 1)
        assert valed.wakeups() == before
