# SPDX-License-Identifier: BSD-2-Clause
"""What a restart of valed, clean or by SIGKILL, leaves as it was: ports, settings, connections, traffic.

Times are printed, not asserted beyond what a loaded machine can hold.
"""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from lib.native import station
from lib.qmp import QmpError
from lib.valed import Valed, eventually

pytestmark = pytest.mark.blackbox

ENDS = [signal.SIGTERM, signal.SIGKILL]


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
        qmp.execute("fdb-add", port="vale1:v", mac="02:00:00:00:00:11")
        qmp.execute("fdb-add", port="vale1:s", mac="02:00:00:00:00:12")
        qmp.execute("fdb-add", port="vale1:s", mac="02:00:00:00:00:13")
        qmp.execute("fdb-del", switch="vale1", mac="02:00:00:00:00:13")


def description(valed: Valed) -> Any:
    """What set_up() made, as the switch tells it."""
    with valed.qmp() as qmp:
        switches = {sw["name"]: sw for sw in qmp.execute("query-switches")}
        ports = {name: port["kind"] for name, port in qmp.ports().items()}
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
