# SPDX-License-Identifier: BSD-2-Clause
"""vale-pktgen and libvale against a real valed, and against sockets that only pretend to be one.

Counts are exact and never depend on speed: what must arrive is either no more than the receiver's
ring holds, or compared with the switch's own counters.
"""

import array
import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PKTGEN = Path(os.environ.get("VALE_PKTGEN", ROOT / "build/bin/vale-pktgen"))
VALED = Path(os.environ.get("VALED", ROOT / "build/bin/valed"))
SECONDS = 20
RING = 1023
BUFFER = 2112

pytestmark = [
    pytest.mark.blackbox,
    pytest.mark.skipif(not (PKTGEN.exists() and VALED.exists()), reason="run 'make' first"),
]


def environment(rundir: Path, **more: str) -> dict[str, str]:
    """An environment in which programs find the switch of this test and no other."""
    kept = {k: v for k, v in os.environ.items() if k not in ("VALE_DEV", "VALE_RUNDIR")}
    return kept | {"VALE_RUNDIR": str(rundir), "VALED": str(VALED)} | more


def one_line(text: str) -> str:
    assert text.endswith("\n"), text
    assert text.count("\n") == 1, text
    return text.strip()


class Pktgen:
    """A vale-pktgen that runs."""

    def __init__(self, env: dict[str, str], *argv: str) -> None:
        self.process = subprocess.Popen(
            [PKTGEN, *argv], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_ready(self) -> "Pktgen":
        assert self.process.stderr is not None
        readable, _, _ = select.select([self.process.stderr], [], [], SECONDS)
        assert readable, "not ready in time"
        assert self.process.stderr.readline() == "ready\n"
        return self

    def end(self, sig: signal.Signals | None = None) -> tuple[int, str, str]:
        if sig is not None:
            self.process.send_signal(sig)
        out, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, out, err

    def result(self, sig: signal.Signals | None = None) -> dict[str, Any]:
        code, out, err = self.end(sig)
        assert (code, err) == (0, ""), err
        return dict(json.loads(one_line(out)))

    def failure(self) -> tuple[int, str]:
        code, out, err = self.end()
        assert out == ""
        return code, one_line(err)


class Switch:
    """A runtime directory and the programs that use it."""

    def __init__(self, rundir: Path) -> None:
        self.rundir = rundir
        self.env = environment(rundir)
        self.started: list[Pktgen] = []

    def pktgen(self, port: str, role: str, *argv: str, **env: str) -> Pktgen:
        program = Pktgen(self.env | env, "-i", port, "-f", role, "--json", *argv)
        self.started.append(program)
        return program

    def receive(self, port: str, *argv: str) -> Pktgen:
        return self.pktgen(port, "rx", *argv).wait_ready()

    def send(self, port: str, *argv: str) -> dict[str, Any]:
        return self.pktgen(port, "tx", *argv).result()

    def qmp(self, command: str) -> Any:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(SECONDS)
            s.connect(str(self.rundir / "qmp.sock"))
            f = s.makefile("rw")
            f.readline()
            for execute in ("qmp_capabilities", command):
                f.write(json.dumps({"execute": execute}) + "\n")
                f.flush()
                answer = json.loads(f.readline())
                while "return" not in answer:
                    answer = json.loads(f.readline())
        return answer["return"]

    def ports(self) -> dict[str, Any]:
        return {port["name"]: port for port in self.qmp("query-ports")}

    def pid(self) -> int:
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(self.rundir / "qmp.sock"))
            creds = s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("iII", creds)[0])

    def close(self) -> None:
        for program in self.started:
            if program.process.poll() is None:
                program.process.kill()
                program.process.communicate()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.01)


@pytest.fixture
def rundir() -> Iterator[Path]:
    """A path that fits sun_path."""
    with tempfile.TemporaryDirectory(prefix="vale-") as name:
        path = Path(name) / "run"
        path.mkdir(mode=0o700)
        yield path


@pytest.fixture
def empty(rundir: Path) -> Iterator[Switch]:
    """A runtime directory without a valed; one that was started on demand is ended."""
    switch = Switch(rundir)
    yield switch
    switch.close()
    if (rundir / "qmp.sock").exists():
        try:
            switch.qmp("quit")
        except (ConnectionRefusedError, FileNotFoundError):
            return
        wait_until(lambda: not (rundir / "qmp.sock").exists())


@pytest.fixture
def switch(rundir: Path) -> Iterator[Switch]:
    """A valed of this test."""
    ready, ready_w = os.pipe()
    valed = subprocess.Popen(
        [VALED, *f"--rundir {rundir} --linger 60 --workers 1 --ready-fd {ready_w}".split()],
        pass_fds=[ready_w],
    )
    os.close(ready_w)
    assert os.read(ready, 1) != b""
    os.close(ready)
    s = Switch(rundir)
    yield s
    s.close()
    valed.terminate()
    assert valed.wait(SECONDS) in (0, -signal.SIGKILL)


# ------------------------------------------------------------------------------------------ traffic


@pytest.mark.parametrize("length", [42, 53, 54, 60, 64, 1514, BUFFER, BUFFER + 1, 9014, 65535])
def test_every_frame_arrives_whole(switch: Switch, length: int) -> None:
    count = RING // -(-length // BUFFER)
    seq = ["--seq"] if length >= 54 else []
    rx = switch.receive("vale1:b", "-n", str(count), *seq)
    tx = switch.send("vale1:a", "-n", str(count), "-l", str(length), *seq)
    got = rx.result()
    assert tx["packets"] == got["packets"] == count
    assert tx["bytes"] == got["bytes"] == count * length
    if seq:
        assert (got["drops"], got["late"], got["unnumbered"]) == (0, 0, 0)


def test_report_is_one_object(switch: Switch) -> None:
    rx = switch.receive("vale1:b", "-n", "100")
    tx = switch.send("vale1:a", "-n", "100")
    got = rx.result()
    for report, role in ((tx, "tx"), (got, "rx")):
        keys = ("role", "packets", "bytes", "seconds", "pps", "bps", "drops", "provider")
        assert set(keys) <= set(report)
        assert (report["role"], report["provider"]) == (role, "user")
    assert (tx["drops"], got["drops"]) == (0, None)


def test_pace_is_never_exceeded(switch: Switch) -> None:
    rx = switch.receive("vale1:b", "-n", "1000", "--seq")
    tx = switch.send("vale1:a", "-n", "1000", "-R", "5000", "--seq")
    assert tx["packets"] == 1000
    assert tx["seconds"] >= 999 / 5000
    assert rx.result()["drops"] == 0


def test_latency_is_reported(switch: Switch) -> None:
    """In order, and none longer than the whole run."""
    begin = time.monotonic()
    rx = switch.receive("vale1:b", "-n", "1000", "--latency", "--slots", "4096")
    switch.send("vale1:a", "-n", "1000", "-R", "5000", "-l", "62", "--latency")
    result = rx.result()
    took = (time.monotonic() - begin) * 1e6
    us = result["latency_us"]
    assert 0 < us["p50"] <= us["p99"] <= us["p999"] <= us["max"] < took
    assert (result["drops"], result["late"], result["unnumbered"]) == (0, 0, 0)


def test_no_latency_without_times(switch: Switch) -> None:
    rx = switch.receive("vale1:b", "-n", "100", "--latency")
    switch.send("vale1:a", "-n", "100", "-l", "100", "--seq")
    assert "latency_us" not in rx.result()


def test_counts_agree_with_the_switch_under_overload(switch: Switch) -> None:
    rx = switch.receive("vale1:b")
    count = 300_000
    assert switch.send("vale1:a", "-n", str(count), "-l", "200")["packets"] == count
    counters = switch.ports()["vale1:b"]["tx"]
    got = rx.result(signal.SIGINT)
    assert counters["offered"] == count
    assert counters["frames"] + sum(counters["dropped"].values()) == count
    assert got["packets"] == counters["frames"]
    assert got["bytes"] == got["packets"] * 200


def test_unicast_reaches_only_its_destination(switch: Switch) -> None:
    """b speaks once, so the switch knows where it is."""
    b_mac = "02:00:00:00:00:0b"
    a, c = switch.receive("vale1:a", "-n", "1"), switch.receive("vale1:c")
    switch.send("vale1:b", "-n", "1", "-S", b_mac)
    assert a.result()["packets"] == 1
    b = switch.receive("vale1:b", "-n", "51")
    switch.send("vale1:d", "-n", "1", "-S", b_mac)  # floods to b and c; b's address moves to d
    switch.send("vale1:d", "-n", "50")
    assert b.result()["packets"] == 51
    assert c.result(signal.SIGINT)["packets"] == 52


def test_switches_are_apart(switch: Switch) -> None:
    other = switch.receive("vale2:b")
    rx = switch.receive("vale1:b", "-n", "10")
    switch.send("vale1:a", "-n", "10")
    assert rx.result()["packets"] == 10
    assert other.result(signal.SIGTERM)["packets"] == 0


def test_several_rings(switch: Switch) -> None:
    rx = switch.receive("vale1:b", "-n", "800", "--rings", "4")
    tx = switch.send("vale1:a", "-n", "800", "--rings", "4", "-b", "10")
    assert tx["packets"] == rx.result()["packets"] == 800


def test_receiver_ends_when_idle_or_late(switch: Switch) -> None:
    rx = switch.receive("vale1:b", "--wait-idle", "0.2")
    switch.send("vale1:a", "-n", "7")
    assert rx.result()["packets"] == 7
    assert switch.receive("vale1:b", "--seconds", "0.2").result()["packets"] == 0


def test_early_names_are_the_same_port(switch: Switch) -> None:
    rx = switch.receive("vale:vale_foo", "-n", "5")
    code, line = switch.pktgen("vale-foo", "rx").failure()
    assert code == 1
    assert "vale:vale_foo" in line
    switch.send("vale0", "-n", "5")
    assert rx.result()["packets"] == 5


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["-i", "vale1:a"],
        ["-f", "tx"],
        ["-i", "vale1:a", "-f", "ping"],
        ["-i", "vale1:a", "-f", "tx", "-l", "41"],
        ["-i", "vale1:a", "-f", "tx", "-l", "65536"],
        ["-i", "vale1:a", "-f", "tx", "-l", "60x"],
        ["-i", "vale1:a", "-f", "tx", "-n", "-1"],
        ["-i", "vale1:a", "-f", "tx", "-b", "0"],
        ["-i", "vale1:a", "-f", "tx", "-R", "nan"],
        ["-i", "vale1:a", "-f", "tx", "-S", "02:00:00:00:00"],
        ["-i", "vale1:a", "-f", "tx", "-s", "10.0.0"],
        ["-i", "vale1:a", "-f", "tx", "-l", "50", "--seq"],
        ["-i", "vale1:a", "-f", "tx", "-l", "61", "--latency"],
        ["-i", "vale1:a", "-f", "tx", "--slots", "63"],
        ["-i", "vale1:a", "-f", "tx", "more"],
        ["-i", "eth0", "-f", "tx"],
        ["-i", "vale1:a:b", "-f", "tx"],
        ["-i", "vale1:a\nb", "-f", "tx"],
        ["-i", "vale1:lo", "-f", "tx"],
        ["--nonsense"],
    ],
)
def test_wrong_usage_is_one_line_and_2(empty: Switch, argv: list[str]) -> None:
    code, line = Pktgen(empty.env, *argv).failure()
    assert code == 2
    assert line.startswith(("vale-pktgen: ", str(PKTGEN)))
    assert not list(empty.rundir.iterdir()), "nothing was started"


@pytest.mark.parametrize("argv", ["--help", "--version"])
def test_help_and_version(empty: Switch, argv: str) -> None:
    code, out, err = Pktgen(empty.env, argv).end()
    assert (code, err) == (0, "")
    assert "vale-pktgen" in out


def test_no_provider_is_4(empty: Switch) -> None:
    for env, named in (
        ({"VALED": "/nonexistent/valed"}, "/nonexistent/valed"),
        ({"VALED": "/bin/false"}, "/bin/false"),
        ({"VALE_DEV": "/nonexistent"}, "/nonexistent"),
    ):
        code, line = empty.pktgen("vale1:a", "tx", **env).failure()
        assert code == 4
        assert named in line
    code, line = empty.pktgen("vale1:a", "tx", "--device", "/nonexistent").failure()
    assert (code, "/nonexistent" in line) == (4, True)


def test_taken_port(switch: Switch) -> None:
    holder = switch.receive("vale1:a")
    code, line = switch.pktgen("vale1:a", "tx").failure()
    assert code == 1
    assert "vale1:a" in line
    assert "taken" in line
    holder.end(signal.SIGKILL)
    wait_until(lambda: "vale1:a" not in switch.ports())
    assert switch.send("vale1:a", "-n", "1")["packets"] == 1


def test_valed_killed_under_traffic(switch: Switch) -> None:
    rx = switch.receive("vale1:b")
    idle = switch.receive("vale1:c")
    tx = switch.pktgen("vale1:a", "tx")
    wait_until(lambda: switch.ports()["vale1:b"]["tx"]["frames"] > 0)
    os.kill(switch.pid(), signal.SIGKILL)
    for program in (rx, idle, tx):
        code, line = program.failure()
        assert code == 1
        assert "gone" in line


# ---------------------------------------------------------------------------------- false providers


def sealed_memory(size: int) -> int:
    fd = os.memfd_create("region", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def reply(message: bytes, error: int = 0, version: int = 1, magic: int = 0x454C4156) -> bytes:
    return struct.pack("<IHHiI", magic, version, 0, error, len(message)) + message


def with_memsize(message: bytes, size: int) -> bytes:
    """nr_memsize of the body, which stands behind the header of 88 bytes."""
    return message[:96] + struct.pack("<Q", size) + message[104:]


Answer = Callable[[bytes], tuple[bytes, list[int]]]

SIZE = 1 << 20


def four_fds(memory: int) -> list[int]:
    return [memory, os.eventfd(0), os.pipe()[0], os.pipe()[0]]


ANSWERS: dict[str, Answer] = {
    "nonsense": lambda m: (b"hello", []),
    "empty": lambda m: (b"", []),
    "magic": lambda m: (reply(m, magic=1), []),
    "no descriptors": lambda m: (reply(m), []),
    "error out of range": lambda m: (reply(m, error=-22), []),
    "too long": lambda m: (reply(m + bytes(4000)), []),
    "too short": lambda m: (reply(m)[:40], four_fds(sealed_memory(SIZE))),
    "too many descriptors": lambda m: (reply(m), [os.eventfd(0) for _ in range(9)]),
    "memory without seals": lambda m: (
        reply(with_memsize(m, SIZE)),
        four_fds(os.memfd_create("region")),
    ),
    "memory of another size": lambda m: (
        reply(with_memsize(m, SIZE * 2)),
        four_fds(sealed_memory(SIZE)),
    ),
    "a pipe to kick": lambda m: (
        reply(with_memsize(m, SIZE)),
        [sealed_memory(SIZE), os.pipe()[1], os.pipe()[0], os.pipe()[0]],
    ),
    "empty region": lambda m: (reply(with_memsize(m, SIZE)), four_fds(sealed_memory(SIZE))),
    "another version": lambda m: (reply(m, version=99), []),
}


class FalseValed(threading.Thread):
    """Listens where valed would, and answers the first request as told."""

    def __init__(self, path: Path, answer: Answer | None) -> None:
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.answer = answer
        self.start()

    def run(self) -> None:
        conn, _ = self.listener.accept()
        message, fds, _, _ = socket.recv_fds(conn, 4096, 4)
        if self.answer is not None:
            data, sent = self.answer(message)
            with socket.socket(fileno=fds[0]) as reply_socket:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sent))
                reply_socket.sendmsg([data], [rights] if sent else [])
        conn.recv(1)


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_that_are_not_valeds(empty: Switch, answer: str) -> None:
    path = empty.rundir / "netmap.sock"
    server = FalseValed(path, ANSWERS[answer])
    code, line = empty.pktgen("vale1:a", "tx", "--device", str(path)).failure()
    assert code == 1
    assert str(path) in line
    server.join(SECONDS)
    server.listener.close()


def test_silence_ends_after_five_seconds(empty: Switch) -> None:
    path = empty.rundir / "netmap.sock"
    server = FalseValed(path, None)
    begin = time.monotonic()
    code, line = empty.pktgen("vale1:a", "tx").failure()
    assert code == 1
    assert 4 < time.monotonic() - begin < 15
    assert "no answer" in line
    server.listener.close()


def test_hang_up_instead_of_an_answer(empty: Switch) -> None:
    path = empty.rundir / "netmap.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(1)
        program = empty.pktgen("vale1:a", "tx", "--device", str(path))
        conn, _ = listener.accept()
        conn.close()
        assert program.failure()[0] == 1


def test_other_kinds_of_file(empty: Switch) -> None:
    plain = empty.rundir / "plain"
    plain.write_text("")
    assert empty.pktgen("vale1:a", "tx", "--device", str(plain)).failure()[0] == 1
    stream = empty.rundir / "stream"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stream))
        listener.listen(1)
        assert empty.pktgen("vale1:a", "tx", "--device", str(stream)).failure()[0] == 1
    code, line = empty.pktgen("vale1:a", "tx", "--device", str(stream)).failure()
    assert (code, "start valed" in line) == (4, True)


# ------------------------------------------------------------------------------- starting on demand


def test_racing_starts_make_one_valed(empty: Switch) -> None:
    names = [f"vale1:p{i}" for i in range(6)]
    receivers = [empty.pktgen(name, "rx") for name in names]
    for rx in receivers:
        rx.wait_ready()
    assert sorted(empty.ports()) == names
    assert switch_of(empty)["ports"] == len(names)


def switch_of(switch: Switch) -> Any:
    switches = switch.qmp("query-switches")
    assert len(switches) == 1
    return switches[0]


def open_files(pid: int) -> set[str]:
    links = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.add(str(link.readlink()))
    return links


def test_a_started_valed_keeps_nothing_of_its_starter(empty: Switch) -> None:
    inherited, other = os.pipe()
    program = subprocess.run(
        [PKTGEN, "-i", "vale1:a", "-f", "rx", "--seconds", "0.1"],
        env=empty.env,
        pass_fds=[inherited, other],
        capture_output=True,
        check=True,
        timeout=SECONDS,
    )
    assert program.stderr == b"ready\n"
    pid = empty.pid()
    proc = Path(f"/proc/{pid}")
    assert f"pipe:[{os.fstat(inherited).st_ino}]" not in open_files(pid)
    assert (proc / "fd" / "0").readlink() == Path("/dev/null")
    assert (proc / "fd" / "2").readlink() == empty.rundir / "valed.log"
    assert (proc / "cwd").readlink() in (Path("/"), empty.rundir)
    assert os.getsid(pid) != os.getsid(0)
    os.close(inherited)
    os.close(other)


def test_stale_socket_is_replaced(empty: Switch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(empty.rundir / "netmap.sock"))
    assert empty.send("vale1:a", "-n", "1")["packets"] == 1


@pytest.mark.parametrize("kind", ["link", "writable", "file"])
def test_unsafe_runtime_directory_is_refused(empty: Switch, kind: str) -> None:
    path = empty.rundir.parent / "unsafe"
    if kind == "link":
        path.symlink_to(empty.rundir)
    elif kind == "file":
        path.write_text("")
    else:
        path.mkdir()
        path.chmod(0o777)
    code, line = empty.pktgen("vale1:a", "tx", VALE_RUNDIR=str(path)).failure()
    assert code == 4
    assert str(path) in line
    assert not list(empty.rundir.iterdir())


def test_too_long_a_runtime_directory(empty: Switch) -> None:
    code, line = empty.pktgen("vale1:a", "tx", VALE_RUNDIR="/tmp/" + "x" * 100).failure()
    assert code == 4
    assert "too long" in line
