# SPDX-License-Identifier: BSD-2-Clause
"""What one user can hold of a switch (valed/quota.h), and what others notice of it: nothing.

    root: the honest one ---+
                            +--- valed --ports-per-uid ...
    nobody: takes all ------+
"""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib import native
from lib.native import (
    BROADCAST,
    PORT_INFO_GET,
    REGISTER,
    AttachError,
    Port,
    message,
    numbered,
    post,
    register_body,
    station,
)
from lib.valed import Valed, eventually

pytestmark = pytest.mark.blackbox


@contextlib.contextmanager
def valed_that_warns(*options: str, warning: str, under: tuple[str, ...] = ()) -> Iterator[Valed]:
    """One that says that line on stderr, once, and nothing else."""
    with Valed.run(*options, under=under) as valed:
        yield valed
        assert valed.errors() == f"valed: {warning}\n"
        valed.log.write_text("")


def open_until_refused(rundir: Path, ports: list[Port]) -> int:
    """Open native ports; the errno of the first that is refused."""
    try:
        for i in range(100):
            ports.append(Port.open(rundir, f"vale2:p{i}", tx_slots=64, rx_slots=64))
    except AttachError as refused:
        return refused.errno or 0
    return 0


def try_open(rundir: Path, ports: list[Port]) -> bool:
    with contextlib.suppress(AttachError):
        ports.append(Port.open(rundir, "vale2:again", tx_slots=64, rx_slots=64))
        return True
    return False


def honest_traffic(a: Port, b: Port) -> None:
    """No frame from one to the other is lost. Who inherits the ports may do it too."""
    sent = numbered(BROADCAST, station(1), 100)
    a.send(sent)
    assert b.receive(100) == sent


@pytest.mark.another_user
def test_ports_of_one_user() -> None:
    warning = "uid 65534 is refused more: 5 ports are its limit"
    with valed_that_warns("--ports-per-uid", "5", warning=warning) as valed:
        a, b = valed.open("vale1:a"), valed.open("vale1:b")

        def run() -> int:
            ports: list[Port] = []
            assert open_until_refused(valed.rundir, ports) == errno.EDQUOT
            assert len(ports) == 5
            honest_traffic(a, b)
            ports.pop().close()
            eventually("its place is free", lambda: try_open(valed.rundir, ports))
            return 0

        assert valed.as_nobody(run) == 0
        honest_traffic(a, b)
        eventually("they are gone", lambda: set(valed.qmp().ports()) == {"vale1:a", "vale1:b"})


@pytest.mark.another_user
def test_memory_of_one_user() -> None:
    """5 MiB hold one port of the default size, of 4.4 MiB, and not two."""
    limit = 5 << 20
    warning = f"uid 65534 is refused more: {limit} bytes of ports are its limit"
    with valed_that_warns("--memory-per-uid", "5", warning=warning) as valed:
        valed.open("vale1:a")

        def run() -> int:
            with Port.open(valed.rundir, "vale1:b"):
                with pytest.raises(AttachError) as refused:
                    Port.open(valed.rundir, "vale1:c")
                assert refused.value.errno == errno.EDQUOT
                Port.open(valed.rundir, "vale1:d", tx_slots=64, rx_slots=64).close()
            return 0

        assert valed.as_nobody(run) == 0


def is_served(sock: socket.socket) -> bool:
    """Whether a connection gets an answer, and is not hung up."""
    with contextlib.suppress(ConnectionError):
        data = message(PORT_INFO_GET, "vale1:x", bytes(native.INFO_BODY.size))
        native.request(sock, data).close()
        return True
    return False


@pytest.mark.another_user
def test_connections_of_one_user() -> None:
    """Twice the ports and 16; the next is hung up, and others are served."""
    warning = "uid 65534 is refused more: 24 connections are its limit"
    with valed_that_warns("--ports-per-uid", "4", warning=warning) as valed:
        root = native.connect(valed.rundir)

        def run() -> int:
            held = [native.connect(valed.rundir) for _ in range(24)]
            assert all(is_served(sock) for sock in held)
            for _ in range(10):
                with native.connect(valed.rundir) as sock:
                    assert not is_served(sock)
            assert all(is_served(sock) for sock in (root, *held))
            held.pop().close()

            def another() -> bool:
                held.append(native.connect(valed.rundir))
                return is_served(held[-1])

            eventually("its place is free", another)
            return 0

        with root:
            assert valed.as_nobody(run) == 0


@pytest.mark.another_user
def test_answers_that_one_user_does_not_read() -> None:
    """512 of them, with their descriptors; then who wants more is hung up. What is read or
    closed does not count any more."""
    warning = "uid 65534 is refused more: 512 unread answers are its limit"
    with valed_that_warns(warning=warning) as valed:
        start = valed.fds()
        root = native.connect(valed.rundir)
        data = message(REGISTER, "vale2:a", register_body(tx_slots=64, rx_slots=64))
        info = message(PORT_INFO_GET, "vale1:x", bytes(native.INFO_BODY.size))

        def run() -> int:
            with native.connect(valed.rundir) as sock:
                replies = [post(sock, data)] + [post(sock, info) for _ in range(511)]
                with pytest.raises(ConnectionError):
                    native.request(sock, info)
                assert is_served(root)
                os.read(replies[0].fileno(), 1)
                with native.connect(valed.rundir) as another:
                    assert is_served(another)
            return 0

        with root:
            assert valed.as_nobody(run) == 0
            eventually("descriptors to be closed", lambda: valed.fds() == start + 1)
            assert is_served(root)


def test_management_goes_on_when_descriptors_run_out() -> None:
    """Programs are refused while there is a reserve, and commands are served from it."""
    warning = "out of descriptors: a client is refused"
    with valed_that_warns(warning=warning, under=("prlimit", "--nofile=256:256")) as valed:
        held = [native.connect(valed.rundir) for _ in range(300)]
        assert not is_served(held[-1])
        for _ in range(8):
            valed.qmp().execute("query-ports")
        for sock in held:
            sock.close()
