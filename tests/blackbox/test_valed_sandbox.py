# SPDX-License-Identifier: BSD-2-Clause
"""What a valed that runs has given up (valed/sandbox.h), as /proc and its own log say.

What each part of the sandbox refuses is tried in tests/unit/test_sandbox.c.
"""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.native import BROADCAST, frame, station
from lib.qmp import QmpError
from lib.valed import Valed, eventually, sanitizer

pytestmark = pytest.mark.blackbox


def status(path: Path) -> dict[str, str]:
    """A status file of /proc."""
    lines = path.read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def threads(valed: Valed) -> list[dict[str, str]]:
    return [status(task / "status") for task in Path(f"/proc/{valed.pid}/task").iterdir()]


def run_and_read_log(*options: str) -> str:
    """What valed says on stderr from its start to its end."""
    with tempfile.TemporaryDirectory(prefix="vale-") as name:
        valed = Valed(Path(name) / "run", *options)
        valed.process.send_signal(signal.SIGTERM)
        assert valed.wait() == 0
        return valed.errors()


@pytest.mark.skipif(sanitizer() == "tsan", reason="TSan has a thread of its own, from the start")
def test_no_thread_has_privileges() -> None:
    with Valed.run("--workers", "3") as valed:
        found = threads(valed)
        assert len(found) == 4
        for thread in found:
            for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                assert int(thread[kind], 16) == 0, (thread["Name"], kind)
            assert thread["NoNewPrivs"] == "1"


@pytest.mark.skipif(sanitizer() != "", reason="builds with sanitizers have no seccomp")
def test_every_thread_has_a_filter() -> None:
    with Valed.run("--workers", "3") as valed:
        assert {t["Seccomp"] for t in threads(valed)} == {"2"}
        ours = int(status(Path("/proc/self/status"))["Seccomp_filters"])
        # One more than it inherited: workers have not the control thread's.
        assert [int(t["Seccomp_filters"]) for t in threads(valed)] == [ours + 1] * 4


def test_the_log_says_what_is_on() -> None:
    line = next(li for li in run_and_read_log("-v").splitlines() if "sandbox" in li)
    assert "no capabilities" in line
    assert ("seccomp" in line) == (sanitizer() == "")


def test_no_sandbox() -> None:
    assert "valed: sandbox: off\n" in run_and_read_log("-v", "--no-sandbox")
    with Valed.run("--no-sandbox") as valed:
        ours = status(Path("/proc/self/status"))
        for field in ("Seccomp_filters", "NoNewPrivs", "CapEff"):
            assert {t[field] for t in threads(valed)} == {ours[field]}


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of its own, whose sockets fit sun_path."""
    with tempfile.TemporaryDirectory(prefix="vale-") as name:
        yield Path(name)


def test_sockets_of_ports_lie_in_the_directories_given(place: Path) -> None:
    with Valed.run("--socket-dir", str(place)) as valed:
        qmp = valed.qmp()
        for n, path in enumerate(("here.sock", f"{place}/there.sock")):
            qmp.execute("port-add", name=f"vale1:{n}", kind="stream", path=path)
        assert (valed.rundir / "here.sock").is_socket()
        assert (place / "there.sock").is_socket()
        qmp.execute("port-del", name="vale1:1")
        eventually("it is removed", lambda: not (place / "there.sock").exists())


@pytest.mark.parametrize("kind", ["stream", "vhost-user"])
def test_sockets_of_ports_elsewhere_are_refused(valed: Valed, place: Path, kind: str) -> None:
    """As far as the kernel has Landlock; the line says what to do."""
    if "Landlock ABI" not in run_and_read_log("-v"):
        pytest.skip("no Landlock in this kernel, or in this build")
    with pytest.raises(QmpError, match="in each --socket-dir"):
        valed.qmp().execute("port-add", name="vale1:x", kind=kind, path=f"{place}/sock")
    assert list(place.iterdir()) == []


def test_memory_that_a_worker_would_need_is_there_from_the_start(valed: Valed) -> None:
    """Every kind of port, single frames and long ones, floods and unicast: workers allocate
    nothing, since a worker's first allocation would be valed's end."""
    qmp = valed.qmp()
    a, b = (valed.open(f"vale1:{name}", tx_rings=4, rx_rings=4) for name in "ab")
    for kind in ("null", "stream", "vhost-user"):
        qmp.execute("port-add", name=f"vale1:{kind[0]}", kind=kind)
    for _ in range(3):
        a.send([frame(BROADCAST, station(1), bytes(size)) for size in (46, 1500, 9000)] * 20)
        a.flush()
        b.send([frame(station(1), station(2), bytes(9000))] * 50)
        b.flush()
    assert qmp.port("vale1:n")["tx"]["frames"] >= 180
    for name in ("vale1:n", "vale1:s", "vale1:v"):
        qmp.execute("port-del", name=name)
