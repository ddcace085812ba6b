# SPDX-License-Identifier: BSD-2-Clause
"""valed as a program: its command line, its directory, how it starts, idles and ends.

    rundir/  valed.lock (held)   netmap.sock (0600)   qmp.sock (0600)
"""

import os
import re
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib import native
from lib.native import BROADCAST, Port, numbered, station
from lib.qmp import Qmp
from lib.valed import BINARY, Valed, environment, sanitizer

pytestmark = pytest.mark.blackbox


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose sockets fit sun_path."""
    with tempfile.TemporaryDirectory(prefix="vale-") as name:
        yield Path(name)


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """valed that ends by itself, at once."""
    print("+ valed", *argv)
    command = [str(BINARY), *argv]
    return subprocess.run(
        command,
        env=environment() | env,
        capture_output=True,
        text=True,
        timeout=native.SECONDS,
        check=False,
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.stdout == ""
    assert re.fullmatch(r"valed: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


# ------------------------------------------------------------------------------- command line


def test_help_names_every_option() -> None:
    for option in ("-h", "--help"):
        done = run(option)
        assert (done.returncode, done.stderr) == (0, "")
        for name in ("rundir", "group", "workers", "cpus", "linger", "ready-fd", "version"):
            assert f"--{name}" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 120


def test_version() -> None:
    for option in ("-V", "--version"):
        done = run(option)
        assert (done.returncode, done.stdout, done.stderr) == (0, "valed 0.1.0\n", "")


@pytest.mark.parametrize(
    "argv",
    [
        ["--workers", "0"],
        ["--workers", "65"],
        ["--workers", "-1"],
        ["--workers", "two"],
        ["--workers", "1x"],
        ["--workers", ""],
        ["--workers", "99999999999999999999"],
        ["--linger", "-1"],
        ["--bridge-batch", "0"],
        ["--bridge-batch", "1025"],
        ["--max-bridges", "0"],
        ["argument"],
        ["--group", "no-such-group-here"],
        ["--cpus", "x"],
        ["--cpus", "3-1"],
        ["--cpus", ""],
        ["--cpus", "0,99999"],
        ["--ready-fd", "77"],
        ["--tap", "tap0"],
        ["--tap", "=tap0"],
        ["--tap", "vale1:t="],
        ["--socket-dir", "/no/such/directory"],
    ],
)
def test_wrong_options_are_one_line_and_exit_2(short: Path, argv: list[str]) -> None:
    done = run("--rundir", str(short / "run"), *argv)
    assert done.returncode == 2
    one_line(done)


@pytest.mark.parametrize("argv", [["--no-such"], ["--workers"], ["-x"]])
def test_unknown_options_exit_2(argv: list[str]) -> None:
    done = run(*argv)
    assert done.returncode == 2
    assert "valed --help" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


# ------------------------------------------------------------------------ the runtime directory


def test_directory_is_made_and_sockets_are_not_for_all(short: Path) -> None:
    rundir = short / "made"
    valed = Valed(rundir)
    modes = {p.name: stat.S_IMODE(p.lstat().st_mode) for p in (rundir, *rundir.iterdir())}
    assert modes == {"made": 0o700, "valed.lock": 0o600, "netmap.sock": 0o600, "qmp.sock": 0o600}
    valed.stop()
    assert [p.name for p in rundir.iterdir()] == ["valed.lock"]


def test_directory_that_is_a_link_or_open_to_all_is_refused(short: Path) -> None:
    (short / "real").mkdir()
    (short / "link").symlink_to(short / "real")
    (short / "open").mkdir()
    (short / "open").chmod(0o777)
    (short / "file").write_text("")
    for name in ("link", "open", "file"):
        done = run("--rundir", str(short / name))
        assert done.returncode == 1
        assert str(short / name) in one_line(done)
    done = run("--rundir", str(short / ("x" * 100)))
    assert done.returncode == 1
    assert "too long" in one_line(done)


def test_second_valed_in_one_directory(valed: Valed) -> None:
    """Exit code 4 and one line that names the directory; the first one does not notice."""
    for _ in range(3):
        done = run("--rundir", str(valed.rundir))
        assert done.returncode == 4
        assert str(valed.rundir) in one_line(done)
    done = run(VALE_RUNDIR=str(valed.rundir))
    assert done.returncode == 4
    valed.open("vale1:a")
    assert len(valed.qmp().ports()) == 1


def test_stale_sockets_are_replaced_after_sigkill(short: Path) -> None:
    first = Valed(short / "run")
    port = Port.open(first.rundir, "vale1:a")
    first.process.kill()
    assert first.wait() == -signal.SIGKILL
    assert port.hung_up()
    port.close()
    assert sorted(p.name for p in first.rundir.iterdir()) == [
        "netmap.sock",
        "qmp.sock",
        "valed.lock",
    ]
    second = Valed(first.rundir)
    with Port.open(second.rundir, "vale1:a") as again:
        again.send(numbered(BROADCAST, station(1), 1))
    second.stop()


def test_restart_a_hundred_times(short: Path) -> None:
    for _ in range(30 if sanitizer() else 100):
        valed = Valed(short / "run")
        Port.open(valed.rundir, "vale1:a").close()
        valed.stop()


# ------------------------------------------------------------------------------- beginning, ending


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_with_ports_open(valed: Valed, sig: signal.Signals) -> None:
    """Also in the middle of traffic on several switches; clients see the hang-up."""
    ports = [valed.open(f"vale{i % 3}:p{i}") for i in range(12)]
    clients = [valed.qmp() for _ in range(3)]
    for port in ports:
        port.send(numbered(BROADCAST, station(1), 900), batch=900)
    valed.process.send_signal(sig)
    assert valed.wait() == 0
    assert all(port.hung_up() for port in ports)
    for client in clients:
        while (line := client.line()) is not None:
            assert line["event"] in ("PORT_ADDED", "SWITCH_ADDED", "PORT_REMOVED", "SWITCH_REMOVED")


def test_frames_published_before_the_end_leave() -> None:
    """SIGTERM while half a ring is published: the receiver's memory has all of it."""
    with Valed.run() as valed:
        a, b = valed.open("vale1:a"), valed.open("vale1:b")
        for data in numbered(BROADCAST, station(1), 512):
            a.tx[0].put(data)
        a.tx[0].publish()
        valed.process.send_signal(signal.SIGTERM)
        assert valed.wait() == 0
        assert [native.number(data) for data in b.drain()] == list(range(512))


def test_linger_begins_when_the_last_one_has_gone(short: Path) -> None:
    """--linger 1: alive while a port, a connection or a QMP client is there; gone 1 s after."""
    valed = Valed(short / "run", "--linger", "1")
    port, qmp = Port.open(valed.rundir, "vale1:a"), Qmp(valed.rundir / "qmp.sock")
    idle = native.connect(valed.rundir)
    time.sleep(1.3)
    port.close()
    qmp.close()
    time.sleep(1.3)
    assert valed.process.poll() is None
    idle.close()
    begin = time.monotonic()
    assert valed.wait() == 0
    assert 0.9 < time.monotonic() - begin < 2.5
    assert [p.name for p in valed.rundir.iterdir()] == ["valed.lock"]


def test_linger_also_ends_one_that_nobody_ever_used(short: Path) -> None:
    valed = Valed(short / "run", "--linger", "1")
    begin = time.monotonic()
    assert valed.wait() == 0
    assert time.monotonic() - begin < 2.5


def test_descriptors_it_was_started_with_do_not_leak(valed: Valed) -> None:
    """--ready-fd is closed after use; nothing that valed makes survives an exec."""
    links = {}
    for fd in Path(f"/proc/{valed.pid}/fdinfo").iterdir():
        flags = re.search(r"flags:\s*(\d+)", fd.read_text())
        assert flags is not None
        links[int(fd.name)] = int(flags[1], 8)
    assert all(flags & os.O_CLOEXEC for fd, flags in links.items() if fd > 2)


def test_ports_stay_until_all_have_forwarded() -> None:
    """One frame a round, and SIGTERM with thousands published: nobody's receiver leaves before."""
    with Valed.run("--bridge-batch", "1") as valed:
        names = [f"vale1:p{i}" for i in range(10)]
        ports = [valed.open(name, tx_slots=4096, rx_slots=4096) for name in names]
        qmp = valed.qmp()
        for i, name in enumerate(names):
            qmp.execute("fdb-add", port=name, mac=station(i).hex(":"))
        sent = [numbered(station((i + 1) % 10), station(i), 4000) for i in range(10)]
        for port, frames in zip(ports, sent, strict=True):
            for frame in frames:
                port.tx[0].put(frame)
        for port in ports:
            port.tx[0].publish()
        valed.process.send_signal(signal.SIGTERM)
        assert valed.wait() == 0
        for i, port in enumerate(ports):
            assert port.drain() == sent[i - 1]


def test_what_a_delay_line_holds_arrives_before_the_end(valed: Valed) -> None:
    a, b = valed.open("vale1:a"), valed.open("vale1:b")
    valed.qmp().execute("port-set", name="vale1:a", **{"in": {"delay": 20_000_000}})
    sent = numbered(BROADCAST, station(1), 100)
    a.send(sent)
    a.flush()
    assert b.drain() == []
    valed.process.send_signal(signal.SIGTERM)
    assert valed.wait() == 0
    assert b.drain() == sent


# -------------------------------------------------------------------------------------- idleness


@pytest.mark.skipif(bool(sanitizer()), reason="sanitizers have threads of their own")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_idle_costs_nothing(workers: str) -> None:
    """50 open ports that have been used, 2 seconds: no processor time, not one wake-up of any
    thread."""
    with Valed.run("--workers", workers) as valed:
        ports = [valed.open(f"vale1:p{i}", tx_slots=64, rx_slots=64) for i in range(50)]
        for i, port in enumerate(ports):
            port.send(numbered(BROADCAST, station(i), 5))
            port.flush()
        qmp = valed.qmp()
        time.sleep(0.3)
        before, wakeups = valed.cpu_ticks(), valed.wakeups()
        assert len(wakeups) == 1 + int(workers)
        time.sleep(2)
        assert valed.wakeups() == wakeups
        assert valed.cpu_ticks() == before
        ports[0].send(numbered(BROADCAST, station(0), 1))
        ports[1].receive(1)
        assert len(qmp.ports()) == 50


@pytest.mark.skipif(bool(sanitizer()), reason="sanitizers need more memory")
def test_idle_memory_is_small(valed: Valed) -> None:
    """A port's buffers cost nothing until frames use them."""
    before = valed.status("VmRSS")
    for i in range(50):
        valed.open(f"vale1:p{i}")
    assert (valed.status("VmRSS") - before) / 50 < 100  # kB per port


def test_workers_can_be_pinned() -> None:
    with Valed.run("--workers", "2", "--cpus", "0") as valed:
        assert [w["cpu"] for w in valed.qmp().execute("query-workers")] == [0, 0]
        a, b = valed.open("vale1:a"), valed.open("vale1:b")
        a.send(numbered(BROADCAST, station(1), 10))
        assert len(b.receive(10)) == 10


@pytest.mark.another_user
def test_qmp_is_for_its_owner_only(valed: Valed) -> None:
    """Another user may not connect to qmp.sock (0600)."""
    valed.rundir.parent.chmod(0o755)
    valed.rundir.chmod(0o755)
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        try:
            socket.socket(socket.AF_UNIX).connect(str(valed.rundir / "qmp.sock"))
        except PermissionError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
