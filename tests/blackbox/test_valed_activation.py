# SPDX-License-Identifier: BSD-2-Clause
"""valed under a service manager: sockets it is handed (LISTEN_FDS), what it says (NOTIFY_SOCKET).

The test is the service manager: it listens, starts valed with the sockets from descriptor 3 on,
and is told when it is ready and when it stops.
"""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.native import BROADCAST, SECONDS, Port, frame, station
from lib.qmp import Qmp
from lib.valed import BINARY, ROOT, environment

pytestmark = [
    pytest.mark.blackbox,
    pytest.mark.skipif(not BINARY.exists(), reason=f"no {BINARY}: run 'make tools'"),
]

# Moves the descriptors given to 3, 4, ... and starts valed with the pid that LISTEN_PID promises.
LAUNCH = """
n=3
for fd in $FDS; do eval "exec $n<&$fd"; n=$((n + 1)); done
export LISTEN_PID="$$"
exec "$@"
"""


class Manager:
    """A service manager for one valed."""

    def __init__(self, directory: Path) -> None:
        self.rundir = directory / "run"
        self.rundir.mkdir(mode=0o700)
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notices.settimeout(SECONDS)
        self.process: subprocess.Popen[str] | None = None

    def listen(self, name: str, kind: socket.SocketKind) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.bind(str(self.rundir / name))
        sock.listen()
        return sock

    def start(
        self, *sockets: socket.socket, notify: str = "", launch: str = LAUNCH, **env: str
    ) -> None:
        """Start valed; notify: the address of NOTIFY_SOCKET."""
        if notify:
            self.notices.bind(notify.replace("@", "\0"))
            env["NOTIFY_SOCKET"] = notify
        # Descriptors far from 3, so that moving one does not overwrite another.
        fds = [os.dup2(s.fileno(), 60 + i) for i, s in enumerate(sockets)]
        self.process = subprocess.Popen(
            ["bash", "-c", launch, "bash", str(BINARY), "--rundir", str(self.rundir)],
            pass_fds=fds,
            env=environment() | {"FDS": " ".join(map(str, fds)), "LISTEN_FDS": str(len(fds))} | env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for fd in fds:
            os.close(fd)

    def notice(self) -> str:
        return self.notices.recv(4096).decode()

    def end(self) -> tuple[int, str]:
        """Its exit code and what it wrote to stderr."""
        assert self.process is not None
        _, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, err

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.end() == (0, "")

    def close(self) -> None:
        self.notices.close()
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def manager() -> Iterator[Manager]:
    with tempfile.TemporaryDirectory(prefix="vale-") as name:
        manager = Manager(Path(name))
        with contextlib.closing(manager):
            yield manager


def test_clients_that_come_before_valed_are_served(manager: Manager) -> None:
    """The sockets are there first: who connects waits in the backlog. They outlive valed."""
    ports = manager.listen("netmap.sock", socket.SOCK_SEQPACKET)
    qmp = manager.listen("qmp.sock", socket.SOCK_STREAM)
    with ports, qmp:
        early = socket.socket(socket.AF_UNIX)
        early.connect(str(manager.rundir / "qmp.sock"))
        early.settimeout(SECONDS)
        manager.start(qmp, ports)  # in any order: they are told apart by their type
        with early:
            assert b'"QMP"' in early.recv(4096)
        with (
            Port.open(manager.rundir, "vale1:a") as a,
            Port.open(manager.rundir, "vale1:b") as b,
        ):
            sent = frame(BROADCAST, station(1))
            a.send([sent])
            assert b.receive(1) == [sent]
        manager.stop()
        assert sorted(p.name for p in manager.rundir.glob("*.sock")) == ["netmap.sock", "qmp.sock"]


def test_one_socket_handed_over_the_other_made(manager: Manager) -> None:
    with manager.listen("netmap.sock", socket.SOCK_SEQPACKET) as ports:
        manager.start(ports, notify=str(manager.rundir / "notify"))
        assert manager.notice() == "READY=1"
        assert Qmp(manager.rundir / "qmp.sock").execute("query-ports") == []
        Port.open(manager.rundir, "vale1:a").close()
        manager.stop()
        assert [p.name for p in manager.rundir.glob("*.sock")] == ["netmap.sock"]


def test_sockets_of_ports_do_not_depend_on_the_umask_given(manager: Manager) -> None:
    """Also where valed made no socket of its own; those that it was handed are left alone."""
    ports = manager.listen("netmap.sock", socket.SOCK_SEQPACKET)
    qmp = manager.listen("qmp.sock", socket.SOCK_STREAM)
    before = (manager.rundir / "netmap.sock").stat().st_mode
    with ports, qmp:
        manager.start(ports, qmp, launch="umask 0" + LAUNCH)
        with Qmp(manager.rundir / "qmp.sock") as client:
            client.execute("port-add", name="vale1:v", kind="vhost-user")
        assert stat.S_IMODE((manager.rundir / "vale1:v").stat().st_mode) == 0o600
        assert (manager.rundir / "netmap.sock").stat().st_mode == before
        manager.stop()


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_says_when_it_is_ready_and_when_it_stops(manager: Manager, kind: str) -> None:
    path = str(manager.rundir / "notify") if kind == "path" else f"@vale-test-{os.getpid()}"
    manager.start(notify=path)
    assert manager.notice() == "READY=1"
    Qmp(manager.rundir / "qmp.sock").close()  # it listens by then
    manager.stop()
    assert manager.notice() == "STOPPING=1"


def test_descriptors_meant_for_another_process_are_left_alone(manager: Manager) -> None:
    """LISTEN_PID is inherited by children; theirs it is not."""
    with manager.listen("elsewhere.sock", socket.SOCK_SEQPACKET) as sock:
        manager.start(
            sock, notify=str(manager.rundir / "notify"), launch=LAUNCH.replace('"$$"', "1")
        )
        assert manager.notice() == "READY=1"
        Port.open(manager.rundir, "vale1:a").close()
        manager.stop()


def test_a_notify_socket_that_is_gone_is_said_once_and_no_reason_to_end(manager: Manager) -> None:
    manager.start(NOTIFY_SOCKET=str(manager.rundir / "nobody"))
    assert manager.process is not None
    assert manager.process.stderr is not None
    assert "nobody: No such file or directory" in manager.process.stderr.readline()
    manager.process.send_signal(signal.SIGTERM)
    code, _ = manager.end()
    assert code == 0


@pytest.mark.parametrize(
    ("kinds", "line"),
    [
        ("dgram", "descriptor 3 of LISTEN_FDS is not a Unix socket that listens"),
        ("seqpacket seqpacket", "LISTEN_FDS has two sockets of one type"),
    ],
)
def test_unusable_sockets_are_one_line(manager: Manager, kinds: str, line: str) -> None:
    with contextlib.ExitStack() as stack:
        sockets = []
        for i, kind in enumerate(kinds.split()):
            sock = stack.enter_context(
                socket.socket(socket.AF_UNIX, getattr(socket, f"SOCK_{kind.upper()}"))
            )
            sock.bind(str(manager.rundir / f"{i}.sock"))
            if kind != "dgram":
                sock.listen()
            sockets.append(sock)
        manager.start(*sockets)
        code, err = manager.end()
    assert code == 4
    assert line in err
    assert err.count("\n") == 1


@pytest.mark.skipif(not Path("/usr/bin/systemd-analyze").exists(), reason="no systemd-analyze")
def test_units_are_valid_and_expose_little(tmp_path: Path) -> None:
    units = []
    for unit in (ROOT / "contrib/systemd").glob("*.s[eo][rc]*"):
        text = unit.read_text().replace("/usr/bin/valed", str(BINARY))
        # Manual pages are checked elsewhere; here they are not installed.
        lines = [line for line in text.splitlines() if not line.startswith("Documentation=")]
        (tmp_path / unit.name).write_text("\n".join(lines) + "\n")
        units.append(str(tmp_path / unit.name))
    assert len(units) == 3
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=SECONDS
    )
    assert (done.returncode, done.stderr) == (0, "")
    subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager",
         str(tmp_path / "valed.service")],
        check=True, capture_output=True, timeout=SECONDS,
    )  # fmt: skip
