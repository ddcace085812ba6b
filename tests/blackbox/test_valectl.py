# SPDX-License-Identifier: BSD-2-Clause
"""valectl against a real valed: what it changes, what it prints, and how it fails."""

import json
import os
import re
import socket
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from lib import netns
from lib.native import BROADCAST, SECONDS, frame, station
from lib.netns import Namespace
from lib.valed import ROOT, Valed, environment

VALECTL = Path(os.environ.get("VALECTL", ROOT / "build/bin/valectl")).absolute()

pytestmark = [
    pytest.mark.blackbox,
    pytest.mark.skipif(not VALECTL.exists(), reason=f"no {VALECTL}: run 'make tools'"),
]

A = station(1)


def run(*argv: str, rundir: Path | None = None, cwd: Path | None = None) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    env = environment() | ({"VALE_RUNDIR": str(rundir)} if rundir else {})
    done = subprocess.run(
        [VALECTL, *argv], env=env, cwd=cwd, capture_output=True, text=True, timeout=SECONDS
    )
    return done.returncode, done.stdout, done.stderr


def ok(valed: Valed, *argv: str) -> str:
    """The output of a command that succeeds."""
    code, out, err = run(*argv, rundir=valed.rundir)
    assert (code, err) == (0, "")
    return out


def as_json(valed: Valed, *argv: str) -> Any:
    return json.loads(ok(valed, "--json", *argv))


def failure(*argv: str, rundir: Path) -> tuple[int, str]:
    """Exit code and the one line of a command that fails."""
    code, out, err = run(*argv, rundir=rundir)
    assert out == ""
    assert err.startswith("valectl: ")
    assert err.count("\n") == 1, err
    return code, err.removeprefix("valectl: ").rstrip()


# ------------------------------------------------------------------------------- add, del, list


def test_add_list_show_del(valed: Valed) -> None:
    assert ok(valed, "list") == ""
    assert ok(valed, "add", "vale1:a", "--null") == ""
    assert ok(valed, "add", "vale2:b", "--null") == ""
    out = ok(valed, "list")
    assert re.sub(" +", " ", out) == (
        "vale1 ports 1, stations 0\n vale1:a null \nvale2 ports 1, stations 0\n vale2:b null \n"
    )
    assert "vale2" not in ok(valed, "list", "vale1")
    assert as_json(valed, "list", "vale2")["ports"][0]["name"] == "vale2:b"
    shown = dict(line.split(maxsplit=1) for line in ok(valed, "show", "vale1:a").splitlines())
    assert shown["kind"] == "null"
    assert shown["rx.frames"] == "0"
    assert as_json(valed, "show", "vale1:a") == valed.qmp().port("vale1:a") | {"monitors": []}
    ok(valed, "del", "vale1:a")
    assert list(valed.qmp().ports()) == ["vale2:b"]


def test_stream_port_with_a_path_relative_to_the_caller(valed: Valed) -> None:
    place = valed.rundir.parent
    code, out, err = run(
        "add", "vale1:s", "--stream", "here.sock", "--json", rundir=valed.rundir, cwd=place
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["kind"] == "stream"
    native = valed.open("vale1:n")
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(place / "here.sock"))
        sent = frame(BROADCAST, A)
        peer.send(struct.pack(">I", len(sent)) + sent)
        assert native.receive(1) == [sent]


@pytest.mark.parametrize("kind", ["stream", "vhost-user"])
def test_connect_goes_to_a_socket_that_is_there(valed: Valed, tmp_path: Path, kind: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        listener.settimeout(SECONDS)
        ok(valed, "add", "vale1:s", f"--{kind}", str(tmp_path / "sock"), "--connect")
        listener.accept()[0].close()


def test_vhost_user_port_listens(valed: Valed) -> None:
    path = valed.rundir.parent / "v.sock"
    ok(valed, "add", "vale1:v", "--vhost-user", str(path), "--allow-file-memory")
    assert path.is_socket()
    ok(valed, "del", "vale1:v")


@pytest.mark.interfaces
def test_tap_is_opened_where_valectl_runs(valed: Valed) -> None:
    if reason := netns.why_not():
        pytest.skip(reason)
    with Namespace.make("ctl") as ns:
        ns.run(str(VALECTL), "--rundir", str(valed.rundir), "add", "vale1:t", "--tap", "tap0")
        ns.up("tap0", mtu=1500)
        native = valed.open("vale1:n")
        with ns.packet_socket("tap0") as wire:
            sent = frame(BROADCAST, A)
            native.send([sent])
            assert wire.recv(2048) == sent
    code, line = failure("add", "vale1:x", "--tap", "lo", rundir=valed.rundir)
    assert code == 1
    assert line.startswith("lo: Invalid argument: there is an interface of that name")


# ----------------------------------------------------------------------------------- stats, top


def test_stats_are_the_counters_with_reasons(valed: Valed) -> None:
    a, b = valed.open("vale1:a"), valed.open("vale1:b")
    a.send([frame(BROADCAST, A)] * 10 + [b"short"])
    a.flush()
    b.receive(10)
    lines = [line.split() for line in ok(valed, "stats").splitlines()]
    assert lines[0][0] == "PORT"
    assert lines[1] == ["vale1:a", "11", "600", "0", "0", "rx.short", "1"]
    assert lines[2] == ["vale1:b", "0", "0", "10", "600"]
    assert len(ok(valed, "stats", "vale1:b").splitlines()) == 2
    assert as_json(valed, "stats", "vale1")[0]["rx"]["dropped"] == {"short": 1}


def test_top_shows_rates(valed: Valed) -> None:
    a = valed.open("vale1:a")
    valed.open("vale1:b")
    stop = threading.Event()

    def flood() -> None:
        while not stop.wait(0.002):
            a.send([frame(BROADCAST, A)])

    sender = threading.Thread(target=flood)
    sender.start()
    try:
        out = ok(valed, "top", "--count", "2", "--interval", "0.3")
        looks = ok(valed, "--json", "top", "--count", "2", "--interval", "0.3").splitlines()
    finally:
        stop.set()
        sender.join()
    assert "\033" not in out  # no terminal, no escapes
    tables = [line.split() for line in out.splitlines()]
    assert [t[0] for t in tables] == ["PORT", "vale1:a", "vale1:b"] * 2
    assert 10 < int(tables[1][1]) < 600
    assert tables[1][1:5] != tables[2][1:5]
    for look in map(json.loads, looks):
        a_rates, b_rates = look["ports"]
        assert look["seconds"] == pytest.approx(0.3, abs=0.2)
        assert a_rates["rx"]["pps"] == pytest.approx(b_rates["tx"]["pps"], rel=0.3)
        assert a_rates["rx"]["bps"] == pytest.approx(a_rates["rx"]["pps"] * 480)


# ------------------------------------------------------------------------------------- set, fdb


def test_fdb_and_set(valed: Valed) -> None:
    a = valed.open("vale1:a")
    valed.open("vale1:b")
    a.send([frame(BROADCAST, A)])
    a.flush()
    lines = [line.split() for line in ok(valed, "fdb", "vale1").splitlines()]
    assert lines == [["STATION", "PORT", "AGE"], [A.hex(":"), "vale1:a", "0", "s"]]
    ok(valed, "fdb", "add", "vale1:b", "02:00:00:00:00:77")
    assert "static" in ok(valed, "fdb", "vale1")
    ok(valed, "fdb", "flush", "vale1")
    assert [s["mac"] for s in as_json(valed, "fdb", "vale1")] == ["02:00:00:00:00:77"]
    ok(valed, "fdb", "del", "vale1", "02:00:00:00:00:77")
    assert as_json(valed, "fdb", "vale1") == []
    ok(valed, "set", "vale1", "p2p=on", "age=60")
    code, line = failure("add", "vale1:c", "--null", rundir=valed.rundir)
    assert code == 1
    assert line.startswith("vale1:c: ")
    assert failure("set", "vale1", "age=0", rundir=valed.rundir)[0] == 1


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "a command is needed"),
        (["frobnicate"], "no such command: frobnicate"),
        (["del"], "wrong number of arguments: del"),
        (["show", "vale1:a", "vale1:b"], "wrong number of arguments: show"),
        (["add", "vale1:a"], "add needs a kind"),
        (["add", "vale1:a", "--null", "--tap", "tap0"], "one kind"),
        (["add", "vale1:a", "--null", "--connect"], "--connect is for"),
        (["add", "vale1:a", "--tap", "t", "--connect"], "--connect is for"),
        (["add", "vale1:a", "--stream", "x", "--allow-file-memory"], "is for --vhost-user"),
        (["list", "--null"], "an option that is not for this command: list"),
        (["stats", "--count", "3"], "an option that is not for this command: stats"),
        (["top", "--count", "0"], "--count is a number of tables, not: 0"),
        (["top", "--interval", "soon"], "--interval is a time in seconds, not: soon"),
        (["add", "va1:a", "--null"], '"va1:a" is not a port name'),
        (["add", "vale1:t", "--tap", "x" * 16], "not the name of a network interface"),
        (["set", "vale1", "p2p"], "not KEY=VALUE: p2p"),
        (["fdb", "add", "vale1:a"], "wrong number of arguments: fdb"),
        (["fdb", "vale1", "vale2"], "fdb takes a switch, or add, del or flush, not: vale1"),
        (["--colour"], "unrecognized option '--colour'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(valed: Valed, argv: list[str], line: str) -> None:
    code, out, err = run(*argv, rundir=valed.rundir)
    assert (code, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1
    assert err.startswith(("valectl: ", str(VALECTL)))


def test_what_valed_refuses_is_its_line_and_exit_1(valed: Valed) -> None:
    ok(valed, "add", "vale1:a", "--null")
    for argv, line in {
        ("add", "vale1:a", "--null"): "vale1:a: there is such a port already",
        ("del", "vale1:zz"): "vale1:zz: no such port; query-ports lists them",
        ("show", "vale1:zz"): "vale1:zz: no such port; valectl list shows them",
        ("stats", "vale9"): "no such switch; query-switches lists them",
        ("add", "vale1:s", "--stream", "/no/s"): "vale1:s: /no/s: No such file or directory",
    }.items():
        assert failure(*argv, rundir=valed.rundir) == (1, line)


def test_without_a_valed_exit_4(tmp_path: Path) -> None:
    code, line = failure("list", rundir=tmp_path)
    assert code == 4
    assert line == (
        f"{tmp_path}/qmp.sock: no valed answers (No such file or directory): "
        "start valed, or say --rundir DIR"
    )
    assert failure("list", "--rundir", "/" + "x" * 200, rundir=tmp_path)[0] == 4


@pytest.mark.parametrize(
    ("greeting", "line"),
    [
        (b'{"QMP": {"version": {}, "protocol": 99, "capabilities": []}}\n', "speaks protocol 99"),
        (b'{"QMP": {"version": {"qemu": {}}, "capabilities": []}}\n', "not a valed"),
        (b"SSH-2.0-OpenSSH\n", "does not speak QMP"),
        (b"", "has hung up"),
    ],
)
def test_what_is_not_our_valed_exit_4(tmp_path: Path, greeting: bytes, line: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as ports:
        listener.bind(str(tmp_path / "qmp.sock"))
        ports.bind(str(tmp_path / "netmap.sock"))
        listener.listen()
        listener.settimeout(SECONDS)

        def answer() -> None:
            client = listener.accept()[0]
            with client:
                client.sendall(greeting)

        server = threading.Thread(target=answer)
        server.start()
        code, text = failure("list", rundir=tmp_path)
        server.join()
    assert code == 4
    assert line in text


def test_manual_page_has_the_options_and_commands_of_the_help() -> None:
    help_text = run("--help")[1]
    page = (ROOT / "docs/man/valectl.1").read_text()
    assert set(re.findall(r"--([a-z-]+)", help_text)) == set(
        re.findall(r"\bFl (?:\w , )?-([a-z-]+)", page)
    )
    commands = re.findall(r"^  ([a-z]+) ", help_text, re.MULTILINE)
    assert set(commands) <= set(re.findall(r"^\.Cm ([a-z]+)", page, re.MULTILINE))


def test_help_and_version() -> None:
    assert run("--help")[1].startswith("Usage: valectl")
    assert run("-V")[:2] == (0, "valectl 0.1.0\n")
