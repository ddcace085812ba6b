# SPDX-License-Identifier: BSD-2-Clause
"""What a restart of valed, clean or by SIGKILL, leaves as it was: ports, settings, traffic.

Times are printed, not asserted beyond what a loaded machine can hold.
"""

import contextlib
import errno
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib.native import (
    BROADCAST,
    HEADER,
    OPT_RESUME,
    OPTION,
    PORT_HDR_SET,
    REGISTER,
    SECONDS,
    Port,
    connect,
    fetch,
    frame,
    message,
    number,
    numbered,
    post,
    register_body,
    request,
    station,
)
from lib.native import VALE_LIST as LIST
from lib.qmp import Qmp, QmpError
from lib.valed import ROOT, Valed, check_books, eventually, sanitizer
from lib.vhost import FrontEnd

pytestmark = pytest.mark.blackbox

ENDS = [signal.SIGTERM, signal.SIGKILL]


def ticks(pid: int) -> int:
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def state(valed: Valed) -> Any:
    path = valed.rundir / "state.json"
    return json.loads(path.read_text()) if path.exists() else None


# -------------------------------------------------------------------------------- the state file


def set_up(valed: Valed) -> None:
    """Everything that is kept: two switches, four ports, two static stations."""
    with valed.qmp() as qmp:
        qmp.execute("switch-set", name="vale1", age=77, cap=9)
        qmp.execute("switch-set", name="vale2", p2p=True)
        qmp.execute("port-add", name="vale1:v", kind="vhost-user", path="v.sock")
        qmp.execute("port-add", name="vale1:s", kind="stream", path="s.sock", connect=True)
        qmp.execute("port-add", name="vale1:n", kind="null", source={"length": 99, "frames": 7})
        qmp.execute("port-add", name="vale2:x", kind="null")
        qmp.execute("port-set", name="vale1:v", out={"delay": 500, "loss": 2.5, "seed": 9})
        qmp.execute("port-set", name="vale1:v", out={"loss": 1.5}, **{"in": {"jitter": 3}})
        qmp.execute("port-set", name="vale1:n", out={"delay": 500})
        qmp.execute("port-set", name="vale1:n", out=None)
        qmp.execute("fdb-add", port="vale1:v", mac="02:00:00:00:00:11")
        qmp.execute("fdb-add", port="vale1:s", mac="02:00:00:00:00:12")
        qmp.execute("fdb-add", port="vale1:s", mac="02:00:00:00:00:13")
        qmp.execute("fdb-del", switch="vale1", mac="02:00:00:00:00:13")


def description(valed: Valed) -> Any:
    """What set_up() made, as the switch tells it."""
    with valed.qmp() as qmp:
        switches = {sw["name"]: sw for sw in qmp.execute("query-switches")}
        ports = {
            name: (port["kind"], port.get("in"), port.get("out"))
            for name, port in qmp.ports().items()
        }
        stations = {
            s["mac"]: s["port"] for s in qmp.execute("query-fdb", switch="vale1") if s["static"]
        }
    for sw in switches.values():
        del sw["stations"]
    return switches, ports, stations


@pytest.mark.parametrize("end", ENDS)
def test_ports_switches_and_static_stations_come_back(valed: Valed, end: signal.Signals) -> None:
    """Twice: what is restored is also kept."""
    set_up(valed)
    before = description(valed)
    assert set(before[1]) == {"vale1:v", "vale1:s", "vale1:n", "vale2:x"}
    assert before[1]["vale1:v"][2]["loss"] == 1.5
    assert before[1]["vale1:n"] == ("null", None, None)
    assert before[2] == {"02:00:00:00:00:11": "vale1:v", "02:00:00:00:00:12": "vale1:s"}
    for _ in range(2):
        valed.restart(end)
        assert description(valed) == before
        with valed.qmp() as qmp:
            assert qmp.port("vale1:n")["rx"]["bytes"] % 99 == 0
    assert (valed.rundir / "v.sock").is_socket()
    assert oct((valed.rundir / "state.json").stat().st_mode) == "0o100600"


@pytest.mark.parametrize("end", ENDS)
def test_what_was_removed_stays_away(valed: Valed, end: signal.Signals) -> None:
    """Deleted ports, switches that are no longer kept; and with nothing left there is no file."""
    set_up(valed)
    with valed.qmp() as qmp:
        for name in ("vale1:v", "vale1:s", "vale2:x"):
            qmp.execute("port-del", name=name)
        qmp.execute("switch-set", name="vale2", keep=False)
    valed.restart(end)
    switches, ports, stations = description(valed)
    assert (set(switches), set(ports), stations) == ({"vale1"}, {"vale1:n"}, {})
    with valed.qmp() as qmp:
        qmp.execute("port-del", name="vale1:n")
        qmp.execute("switch-set", name="vale1", keep=False)
    eventually("no state", lambda: state(valed) is None)
    valed.restart(end)
    with valed.qmp() as qmp:
        assert qmp.execute("query-switches") == []


def test_switch_that_is_not_kept_has_its_settings_as_long_as_its_ports(valed: Valed) -> None:
    with valed.qmp() as qmp:
        qmp.execute("port-add", name="vale1:n", kind="null")
        qmp.execute("switch-set", name="vale1", age=5, keep=False)
    valed.restart()
    with valed.qmp() as qmp:
        (sw,) = qmp.execute("query-switches")
        assert (sw["age"], sw["kept"]) == (5, False)
        qmp.execute("port-del", name="vale1:n")
    eventually("no state", lambda: state(valed) is None)


@pytest.mark.parametrize("forget", [False, True])
def test_quit_keeps_the_ports_unless_told(valed: Valed, forget: bool) -> None:
    set_up(valed)
    with valed.qmp() as qmp:
        qmp.execute("quit", **({"forget": True} if forget else {}))
    assert valed.wait() == 0
    valed.start()
    with valed.qmp() as qmp:
        assert len(qmp.ports()) == (0 if forget else 4)
        with pytest.raises(QmpError, match="quit takes one argument, forget"):
            qmp.execute("quit", forget="yes")


def test_impairment_of_a_native_port_is_there_before_its_first_frame(valed: Valed) -> None:
    a, b = pair(valed)
    with valed.qmp() as qmp:
        qmp.execute("port-set", name="vale1:a", **{"in": {"loss": 100}})
    valed.freeze()
    a.send(numbered(BROADCAST, station(1), 10))
    valed.restart()
    assert (b.resume(valed.rundir), a.resume(valed.rundir)) == (0, 0)
    a.flush()
    port = valed.qmp().port("vale1:a")
    assert (port["rx"]["frames"], port["rx"]["dropped"]) == (10, {"loss": 10})
    assert b.drain() == []


def test_static_station_of_a_native_port_waits_for_its_client(valed: Valed) -> None:
    valed.open("vale1:a")
    with valed.qmp() as qmp:
        qmp.execute("fdb-add", port="vale1:a", mac="02:00:00:00:00:01")
    valed.close_clients()
    valed.open("vale1:a")
    with valed.qmp() as qmp:
        assert qmp.execute("query-fdb", switch="vale1") == []  # it went with the port
        qmp.execute("fdb-add", port="vale1:a", mac="02:00:00:00:00:01")
    valed.restart()
    valed.close_clients()
    valed.open("vale1:a")
    with valed.qmp() as qmp:
        (found,) = qmp.execute("query-fdb", switch="vale1")
    assert (found["mac"], found["static"]) == ("02:00:00:00:00:01", True)


def rejected(valed: Valed, line: str) -> None:
    """valed started; it said this one line about its state."""
    (said,) = valed.errors().splitlines()
    assert line in said
    valed.log.write_bytes(b"")


GOOD_PORT = '"vale1:n": {"add": {"name": "vale1:n", "kind": "null"}}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 2, "switches": {}, "ports": {}}',
        '{"version": 1, "switches": [], "ports": {}}',
        '{"version": 1, "switches": {}, "ports": {}, "more": 1}',
        "[" * 100000,
        "\0\0\0",
        '{"version": 1, "switches": {}, "ports": {' + GOOD_PORT + "," + GOOD_PORT + "}}",
    ],
)
def test_broken_state_is_moved_aside(valed: Valed, text: str) -> None:
    valed.stop()
    (valed.rundir / "state.json").write_text(text)
    valed.start()
    rejected(valed, "nothing is restored, the file is now state.json.bad")
    assert (valed.rundir / "state.json.bad").read_text() == text
    assert state(valed) is None
    with valed.qmp() as qmp:
        assert qmp.ports() == {}


def test_state_that_is_no_file_is_moved_aside(valed: Valed, tmp_path: Path) -> None:
    valed.stop()
    (valed.rundir / "state.json").symlink_to(tmp_path / "elsewhere")
    valed.start()
    rejected(valed, "state.json.bad")
    valed.stop()
    (valed.rundir / "state.json").mkdir()
    valed.start()
    rejected(valed, "state.json: ")
    with valed.qmp() as qmp:
        qmp.execute("port-add", name="vale1:n", kind="null")
    assert state(valed)["ports"].keys() == {"vale1:n"}


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ('{"add": 5}', "not restored: vale1:x: its arguments are no object"),
        ('{"add": {"kind": "null"}}', "not restored: vale1:x: port-add takes name, kind"),
        ('{"add": {"name": "vale1:x", "kind": "moon"}}', "moon: no such kind of port"),
        ('{"add": {"name": "vale1:x", "kind": "stream", "path": "/no/where"}}', "/no/where"),
        ('{"add": {"name": "vale1:n", "kind": "null"}}', "there is such a port already"),
        ('{"add": {"name": "vale1:x", "kind": "tap", "fd": "t"}}', "vale1:x: its descriptor ended"),
        ('{"add": {"name": "vale1:x", "kind": "null"}, "fdb": [7]}', "fdb-add takes port and mac"),
    ],
)
def test_one_bad_port_is_one_line_and_the_others_come_back(
    valed: Valed, record: str, line: str
) -> None:
    valed.stop()
    (valed.rundir / "state.json").write_text(
        '{"version": 1, "switches": {}, "ports": {' + f'{GOOD_PORT}, "vale1:x": {record}' + "}}"
    )
    valed.start()
    rejected(valed, line)
    with valed.qmp() as qmp:
        assert "vale1:n" in qmp.ports()
    valed.restart()
    if "fdb" not in record:
        assert valed.errors() == ""  # what failed is forgotten
    valed.log.write_bytes(b"")


def test_state_that_cannot_be_written_is_said_and_the_command_works(valed: Valed) -> None:
    (valed.rundir / "state.json.new").mkdir()
    with valed.qmp() as qmp:
        qmp.execute("port-add", name="vale1:n", kind="null")
        assert "vale1:n" in qmp.ports()
    rejected(valed, "a restart will not restore what has changed")


def test_a_full_switch_comes_back(valed: Valed) -> None:
    with valed.qmp() as qmp:
        for i in range(254):
            qmp.execute("port-add", name=f"vale1:p{i}", kind="null")
            if i % 8 == 0:
                mac = ":".join(f"{b:02x}" for b in station(i + 1))
                qmp.execute("fdb-add", port=f"vale1:p{i}", mac=mac)
    valed.restart()
    with valed.qmp() as qmp:
        assert len(qmp.ports()) == 254
        assert len(qmp.execute("query-fdb", switch="vale1")) == 32


# --------------------------------------------------------------------------------- native ports


def pair(valed: Valed, **body: int) -> tuple[Port, Port]:
    return valed.open("vale1:a", **body), valed.open("vale1:b", **body)


def test_frames_published_before_the_kill_arrive_after_it_once(valed: Valed) -> None:
    """Also those that were received and not yet read; counters begin anew and balance."""
    a, b = pair(valed)
    a.send(numbered(BROADCAST, station(1), 50))
    a.flush()
    valed.freeze()
    a.send(numbered(BROADCAST, station(1), 100, first=50))
    valed.restart()
    assert a.hung_up()
    assert b.resume(valed.rundir) == 0
    assert a.resume(valed.rundir) == 0
    a.send(numbered(BROADCAST, station(1), 50, first=150))
    assert [number(f) for f in b.receive(200)] == list(range(200))
    a.flush()
    ports = valed.qmp().ports()
    check_books(ports)
    assert ports["vale1:a"]["rx"]["frames"] == ports["vale1:b"]["tx"]["frames"] == 150
    b.send([frame(station(1), station(2))])
    assert a.receive(1)


def test_clean_end_then_start(valed: Valed) -> None:
    a, b = pair(valed, tx_slots=128, rx_slots=256, tx_rings=3, rx_rings=2, extra_bufs=7)
    valed.restart(signal.SIGTERM)
    for n, port in enumerate((a, b)):
        assert port.resume(valed.rundir) == 0, n
    for ring in range(3):
        a.send(numbered(BROADCAST, station(1), 200), ring=ring)
        assert b.receive(200) == numbered(BROADCAST, station(1), 200)


def test_fifty_kills_under_traffic(valed: Valed) -> None:
    """No frame is lost, each comes at most twice, and no descriptor stays."""
    a, b = pair(valed)
    sent, got = 0, []
    valed.restart()
    assert (b.resume(valed.rundir), a.resume(valed.rundir)) == (0, 0)
    fds = valed.fds()
    for lap in range(10 if sanitizer() else 50):
        # Sooner or later in the batch, from lap to lap.
        for _ in range(lap % 5 + 1):
            a.send(numbered(BROADCAST, station(1), 100, first=sent))
            sent += 100
        valed.restart()
        assert (b.resume(valed.rundir), a.resume(valed.rundir)) == (0, 0)
        a.flush()
        got += [number(f) for f in b.drain()]
        eventually("no more descriptors", lambda: valed.fds() <= fds)
    assert sorted(set(got)) == list(range(sent))
    assert max(got.count(n) for n in set(got)) <= 2


def test_a_virtio_net_header_comes_back_with_the_port(valed: Valed) -> None:
    """The option says it, since no command could before the first frame is forwarded."""
    a, b = pair(valed)
    body = struct.pack("<I4x", 12)
    assert request(a.sock, message(PORT_HDR_SET, "vale1:a", body)).error == 0
    valed.freeze()
    a.send([bytes(12) + data for data in numbered(BROADCAST, station(1), 5)])
    valed.restart()
    assert (b.resume(valed.rundir), a.resume(valed.rundir, header=12)) == (0, 0)
    assert b.receive(5) == numbered(BROADCAST, station(1), 5)


def test_port_that_was_taken_away_does_not_come_back(valed: Valed) -> None:
    a, b = pair(valed)
    valed.qmp().execute("port-del", name="vale1:a")
    assert a.hung_up()
    assert a.resume(valed.rundir) == errno.ENXIO
    valed.restart()
    assert b.resume(valed.rundir) == 0
    assert "vale1:a" not in valed.qmp().ports()


def test_processes_that_share_a_port_come_back_one_by_one(valed: Valed) -> None:
    """By their memory: a stranger with memory of its own is refused, also with the right name."""
    a, b = pair(valed)
    stranger = Port.open(valed.rundir, "vale1:c")
    known = a.region[10]
    valed.restart()
    assert a.resume(valed.rundir) == 0
    with connect(valed.rundir) as again:
        answer = fetch(post(again, a.resumption(incarnation=known), [a.mem_fd]))
        assert answer.error == 0
        answer.close()
        assert b.resume(valed.rundir) == 0
        stranger.name = "vale1:a"
        assert stranger.resume(valed.rundir) == errno.EBUSY
        a.close()
        valed.clients.remove(a)
        assert "vale1:a" in valed.qmp().ports()  # the other one holds it
        b.send([frame(BROADCAST, station(2))])
    eventually("its last user to be gone", lambda: "vale1:a" not in valed.qmp().ports())
    stranger.close()


def memory(size: int, seals: int = 0xF & ~fcntl.F_SEAL_WRITE, flags: int = 0) -> int:
    fd = os.memfd_create("region", os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_what_is_not_such_memory_is_refused(valed: Valed, tmp_path: Path) -> None:
    """Wrong kinds, sizes, seals and configurations; afterwards no descriptor or mapping is left."""
    a, b = pair(valed)
    size = a.memsize
    all_seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, size)
    ends = os.pipe()
    read_only = os.open(f"/proc/self/fd/{a.mem_fd}", os.O_RDONLY)
    bad = [
        memory(size, 0),
        memory(size, all_seals & ~fcntl.F_SEAL_SHRINK),
        memory(size, all_seals & ~fcntl.F_SEAL_GROW),
        memory(size, all_seals & ~fcntl.F_SEAL_SEAL),
        memory(size, all_seals | fcntl.F_SEAL_WRITE),
        memory(size - 4096),
        memory(size + 4096),
        memory(0),
        file,
        *ends,
        read_only,
        a.sock.fileno(),
    ]
    valed.restart()
    before = valed.fds()
    for i, fd in enumerate(bad):
        assert a.resume(valed.rundir, fds=[fd]) == errno.EINVAL, i
    assert a.resume(valed.rundir, fds=[]) == errno.EINVAL
    assert a.resume(valed.rundir, header=11) == errno.EINVAL
    assert a.resume(valed.rundir, cut=8) == errno.EINVAL
    for name in ("tx_slots", "rx_slots", "tx_rings", "rx_rings", "extra_bufs"):
        for value in (0, 1, 63, 65, 4097, 65535):
            if value != getattr(a, name) and (name, value) != ("extra_bufs", 1):  # it would fit
                assert a.resume(valed.rundir, **{name: value}) == errno.EINVAL, (name, value)
    eventually("descriptors to be closed", lambda: valed.fds() <= before)
    assert b"memfd:" not in Path(f"/proc/{valed.pid}/maps").read_bytes()
    # More descriptors than are asked for do no harm, nor does memory without the option.
    assert a.resume(valed.rundir, fds=[a.mem_fd, *ends]) == 0
    with connect(valed.rundir) as sock:
        answer = fetch(post(sock, message(REGISTER, "vale1:x", register_body()), [b.mem_fd]))
        assert answer.error == 0
        answer.close()
    with connect(valed.rundir) as sock:
        asked = HEADER.pack(14, LIST, 0, b"", HEADER.size, 0) + OPTION.pack(0, OPT_RESUME, 0, 0)
        assert request(sock, asked).error == errno.EOPNOTSUPP
    assert b.resume(valed.rundir) == 0
    for fd in bad[:-1]:
        os.close(fd)


@pytest.mark.parametrize("seed", range(10))
def test_control_block_full_of_nonsense(valed: Valed, seed: int) -> None:
    """The liar's rings may be empty or hold rubbish; an honest pair does not notice."""
    a, b = pair(valed)
    liar = valed.open("vale1:l", tx_rings=4, rx_rings=4)
    valed.freeze()
    chance = random.Random(seed)
    print("seed", seed)
    for ring in (*liar.tx, *liar.rx):
        for word in (0, 1, 2, 32, 33, 34):
            liar.words[ring.ctl + word] = chance.choice(
                [0, 1, 1023, 1024, 1025, 0x7FFFFFFF, 0xFFFFFFFF, chance.getrandbits(32)]
            )
        for slot in range(0, 1024, 3):
            ring.set_slot(slot, *(chance.getrandbits(n) for n in (32, 16, 16)))
    valed.restart()
    assert [port.resume(valed.rundir) for port in (liar, a, b)] == [0, 0, 0]
    for ring in (*liar.tx, *liar.rx):
        assert ring.hwcur < 1024
        assert ring.hwtail < 1024
    b.drain()
    a.send(numbered(station(2), station(1), 300))
    b.receive_until(number, 300)
    a.flush()
    liar.kick()
    check_books({name: valed.qmp().port(name) for name in ("vale1:a", "vale1:b")})


# ---------------------------------------------------------------------------------- programs


@contextlib.contextmanager
def pktgen(valed: Valed, *argv: str) -> Iterator[subprocess.Popen[str]]:
    program = subprocess.Popen(
        [ROOT / "build/bin/vale-pktgen", "--json", *argv],
        env=os.environ | {"VALE_DEV": str(valed.rundir / "netmap.sock")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield program
    finally:
        program.kill()
        program.communicate()


def open_fds(process: subprocess.Popen[str]) -> list[str]:
    return sorted(path.name for path in Path(f"/proc/{process.pid}/fd").iterdir())


@pytest.mark.parametrize("end", ENDS)
def test_programs_go_on(valed: Valed, end: signal.Signals) -> None:
    """Sender and receiver run across three restarts, keep their ports and their descriptors."""

    def received() -> int:
        ports = valed.qmp().ports()
        return ports["vale1:b"]["tx"]["frames"] if len(ports) == 2 else 0

    with (
        pktgen(valed, "-i", "vale1:b", "-f", "rx") as rx,
        pktgen(valed, "-i", "vale1:a", "-f", "tx", "-R", "20000") as tx,
    ):
        eventually("traffic", lambda: received() > 100)
        fds = [open_fds(program) for program in (rx, tx)]
        for _ in range(3):
            valed.close_clients()
            valed.restart(end)
            began = time.monotonic()
            eventually("traffic again", lambda: received() > 0)
            print(f"forwarding {time.monotonic() - began:.3f} s after valed was ready")
            eventually("more of it", lambda: received() > 100)
            eventually("no more", lambda: [open_fds(program) for program in (rx, tx)] == fds)
        for program in (tx, rx):
            program.send_signal(signal.SIGINT)
            out, err = program.communicate(timeout=SECONDS)
            assert program.returncode == 0, err
            assert json.loads(out)["packets"] > 300


def test_program_whose_port_was_taken_away_ends_at_once(valed: Valed) -> None:
    with pktgen(valed, "-i", "vale1:b", "-f", "rx") as rx:
        eventually("its port", lambda: "vale1:b" in valed.qmp().ports())
        valed.qmp().execute("port-del", name="vale1:b")
        _, err = rx.communicate(timeout=5)
        assert rx.returncode == 1
        assert "the switch is gone" in err
        assert valed.qmp().ports() == {}


def test_program_waits_for_a_valed_that_is_late(valed: Valed) -> None:
    """It does not spin meanwhile."""
    with pktgen(valed, "-i", "vale1:b", "-f", "rx") as rx:
        eventually("its port", lambda: "vale1:b" in valed.qmp().ports())
        valed.close_clients()
        valed.kill()
        before = ticks(rx.pid)
        time.sleep(2)
        assert ticks(rx.pid) - before < 0.25 * 2 * os.sysconf("SC_CLK_TCK")
        valed.start()
        eventually("its port again", lambda: "vale1:b" in valed.qmp().ports())


# -------------------------------------------------------------------- vhost-user and stream ports


def listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(4)
    return sock


def retried(path: Path) -> Path:
    """Where valed listens again, for who tries until it does."""

    def answers() -> bool:
        with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
            sock.connect(str(path))
            return True
        return False

    eventually(f"{path.name} to be there", answers)
    return path


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("connect_", [False, True])
def test_guest_is_served_again(valed: Valed, connect_: bool, end: signal.Signals) -> None:
    """Its memory and rings go on where they were; what it sent meanwhile is forwarded."""
    path = valed.rundir.parent / "guest.sock"
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(listener(path)) if connect_ else path
        qmp = stack.enter_context(valed.qmp())
        qmp.execute(
            "port-add", name="vale1:v", kind="vhost-user", path=str(path), connect=connect_
        )
        b = valed.open("vale1:b")
        front = stack.enter_context(FrontEnd(where))
        for lap in range(4):
            front.send(numbered(BROADCAST, station(1), 100))
            assert b.receive(100) == numbered(BROADCAST, station(1), 100)
            b.send(numbered(BROADCAST, station(2), 100, first=lap))
            assert front.receive(100) == numbered(BROADCAST, station(2), 100, first=lap)
            b.flush()  # or some may come twice
            valed.restart(end)
            began = time.monotonic()
            assert b.resume(valed.rundir) == 0
            front.reconnect(where if connect_ else retried(path))
            front.send(numbered(BROADCAST, station(1), 1))
            assert b.receive(1)
            print(f"forwarding {time.monotonic() - began:.3f} s after valed was ready")


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("connect_", [False, True])
def test_stream_is_served_again(valed: Valed, connect_: bool, end: signal.Signals) -> None:
    path = valed.rundir.parent / "stream.sock"
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(listener(path)) if connect_ else None
        qmp = stack.enter_context(valed.qmp())
        qmp.execute("port-add", name="vale1:s", kind="stream", path=str(path), connect=connect_)
        b = valed.open("vale1:b")
        for _ in range(3):
            if where:
                where.settimeout(SECONDS)
                peer = where.accept()[0]
            else:
                peer = socket.socket(socket.AF_UNIX)
                peer.connect(str(path))
            with peer:
                peer.settimeout(SECONDS)
                data = frame(BROADCAST, station(1))
                peer.sendall(struct.pack(">I", len(data)) + data)
                assert b.receive(1) == [data]
                b.send([data])
                assert peer.recv(64, socket.MSG_WAITALL) == struct.pack(">I", 60) + data
                b.flush()  # or it may come twice
                valed.restart(end)
                assert b.resume(valed.rundir) == 0
                with contextlib.suppress(ConnectionResetError):
                    assert peer.recv(1) == b""


@contextlib.contextmanager
def unmodified_qemu(control: Path, *argv: str) -> Iterator[None]:
    bare = ("-machine", "none", "-nodefaults", "-display", "none")
    qmp = ("-qmp", f"unix:{control},server=on,wait=off")
    program = subprocess.Popen(
        ["qemu-system-x86_64", *bare, *qmp, *argv], stdin=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        program.kill()
        program.wait()


@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="no qemu-system-x86_64")
@pytest.mark.parametrize(("role", "limit"), [("server=on,wait=off", 1), ("reconnect=1", 3)])
def test_unmodified_qemu_comes_back(valed: Valed, role: str, limit: int) -> None:
    """Its vhost-user netdev, in either role; `limit` is what a machine at rest keeps to."""
    path, control = valed.rundir.parent / "qemu.sock", valed.rundir.parent / "control.sock"
    chardev = f"socket,id=c,path={path},{role}"

    def is_connected() -> None:
        with valed.qmp() as qmp:
            eventually("QEMU", lambda: qmp.port("vale1:v")["peer"]["pid"] > 0)

    with (
        valed.qmp() as qmp,
        unmodified_qemu(control, "-chardev", chardev, "-netdev", "vhost-user,id=n,chardev=c"),
    ):
        connect_ = "server" in role
        qmp.execute(
            "port-add", name="vale1:v", kind="vhost-user", path=str(path), connect=connect_
        )
        is_connected()
        with Qmp(retried(control)) as qemu:
            for _ in range(3):
                # QEMU 7.2 gives up when the other side ends in the middle of negotiating: its main
                # loop answers after that.
                qemu.execute("query-status")
                valed.restart()
                began = time.monotonic()
                is_connected()
                print(f"{role}: {time.monotonic() - began:.3f} s after valed was ready ({limit} s)")
