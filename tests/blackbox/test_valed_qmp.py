# SPDX-License-Identifier: BSD-2-Clause
"""qmp.sock: the protocol, for those who speak it and those who do not.

    client --- {"execute": ...} --> valed
    client <-- {"return": ...}, {"error": ...}, {"event": ...} ---
"""

import contextlib
import fcntl
import json
import re
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from lib.qmp import Qmp, QmpError, RawQmp
from lib.valed import ROOT, Valed, eventually

pytestmark = pytest.mark.blackbox


@pytest.fixture
def raw(valed: Valed) -> RawQmp:
    """A connection whose greeting has been read, and capabilities negotiated."""
    client = RawQmp(valed.rundir / "qmp.sock")
    valed.clients.append(client)
    assert "QMP" in client.line()
    client.send(b'{"execute": "qmp_capabilities"}\n')
    assert client.line() == {"return": {}}
    return client


def test_greeting_and_version(valed: Valed) -> None:
    qmp = valed.qmp()
    version = {"major": 0, "minor": 1, "micro": 0}
    assert qmp.greeting["version"]["vale"] == version
    assert (qmp.greeting["protocol"], qmp.greeting["capabilities"]) == (1, [])
    assert qmp.execute("query-version")["vale"] == version


def test_capabilities_come_first_and_once(valed: Valed) -> None:
    with RawQmp(valed.rundir / "qmp.sock") as client:
        client.line()
        client.send(b'{"execute": "query-version"}\n')
        assert client.line()["error"]["class"] == "CommandNotFound"
        valed.open("vale1:a")  # no event before the handshake
        client.send(b'{"execute": "qmp_capabilities"}\n')
        assert client.line() == {"return": {}}
        client.send(b'{"execute": "qmp_capabilities"}\n')
        assert client.line()["error"]["class"] == "CommandNotFound"


def test_commands_are_those_of_the_documentation(valed: Valed) -> None:
    commands = {c["name"] for c in valed.qmp().execute("query-commands")}
    table = (ROOT / "docs/qmp.md").read_text().partition("| command |")[2].partition("\n\n")[0]
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE))
    assert commands - {"qmp_capabilities"} == documented


@pytest.mark.parametrize("ident", [1, -2.5, "x", "é", None, True, [1, {"a": []}], {"deep": [[]]}])
def test_id_is_echoed(raw: RawQmp, ident: object) -> None:
    for command in ("query-switches", "no-such-command"):
        raw.send(json.dumps({"execute": command, "id": ident}).encode())
        raw.send(b"\n")
        assert raw.line()["id"] == ident
    raw.send(json.dumps({"id": ident}).encode() + b"\n")
    assert raw.line()["id"] == ident


def test_unknown_command_and_wrong_arguments(valed: Valed) -> None:
    qmp = valed.qmp()
    wrong: list[tuple[str, dict[str, object], str]] = [
        ("no-such-command", {}, "CommandNotFound"),
        ("query-ports", {"switch": "vale77"}, "GenericError"),
        ("query-ports", {"switch": 5}, "GenericError"),
        ("query-ports", {"swich": "vale1"}, "GenericError"),
    ]
    for command, arguments, kind in wrong:
        with pytest.raises(QmpError) as caught:
            qmp.execute(command, **arguments)
        assert caught.value.kind == kind
        assert "\n" not in caught.value.desc


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "]",
        "}",
        "{'execute': 'query-version'}",
        '{"execute" "query-version"}',
        '{"execute": }',
        "[1, 2",
        "5",
        '"text"',
        '{"execute": "\\uD800"}',
        "\x7f\x01\x02",
        "{" * 5000,
    ],
)
def test_garbage_has_an_error_and_the_next_line_works(raw: RawQmp, text: str) -> None:
    """After garbage the rest of that read is given up; the next command is served."""
    raw.send(text.encode() + b"\n")
    if text == "[1, 2":
        raw.send(b"}\n")  # it could go on for ever
    assert raw.line()["error"]["class"] == "GenericError"
    raw.send(b'{"execute": "query-switches", "id": 1}\n')
    answer = raw.line()
    while "error" in answer:  # a long line may come in two reads, each of them garbage
        answer = raw.line()
    assert answer == {"return": [], "id": 1}


@pytest.mark.parametrize(
    "text",
    [
        '{"execute": 5}',
        '{"execute": "query-version", "arguments": 5}',
        '{"execute": "query-version", "extra": 1}',
        "[]",
        "{}",
        '{"exec-oob": "query-version"}',
    ],
)
def test_objects_that_are_no_command(raw: RawQmp, text: str) -> None:
    raw.send(text.encode() + b"\n")
    assert raw.line()["error"]["class"] == "GenericError"


COMMAND = '{"execute": "query-switches", "id": [true, false, null, 1.5e3, "\\u00e9é\\n\\\\"]}'


def test_json_may_be_cut_anywhere(raw: RawQmp) -> None:
    """One command in two pieces, cut at every byte: in words, numbers, escapes, UTF-8."""
    data = COMMAND.encode()
    for cut in range(1, len(data)):
        raw.send(data[:cut])
        if cut % 7 == 0:
            raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # let valed read it
        eventually("it to be read", lambda: unread(raw) == 0)
        raw.send(data[cut:] + b"\n")
        assert raw.line() == {"return": [], "id": [True, False, None, 1500.0, "éé\n\\"]}, cut


def unread(client: RawQmp) -> int:
    """Bytes that we sent and valed has not read: SIOCOUTQ."""
    left: int = struct.unpack("i", fcntl.ioctl(client.sock, 0x5411, b"\0" * 4))[0]
    return left


def test_json_may_be_joined(raw: RawQmp) -> None:
    """50 commands in one write, with and without space between them."""
    one = '{"execute": "query-switches", "id": %d}'
    for separator in ("", "\n", "\r\n", "  \t\n\n"):
        raw.send(separator.join(one % i for i in range(50)).encode())
        assert [raw.line()["id"] for _ in range(50)] == list(range(50))


def test_pretty_printed_json(raw: RawQmp) -> None:
    raw.send(json.dumps({"execute": "query-switches", "id": 3}, indent=4).encode())
    assert raw.line() == {"return": [], "id": 3}


def test_input_without_end_is_given_up(valed: Valed, raw: RawQmp) -> None:
    """A string longer than valed's input: an error, no growth, and the connection still works."""
    before = valed.status("VmRSS")
    raw.send(b'{"execute": "' + b"x" * 1_000_000)
    assert raw.line()["error"]["class"] == "GenericError"
    assert valed.status("VmRSS") < before + 4096
    raw.sock.shutdown(socket.SHUT_WR)
    while raw.line() is not None:
        pass


def test_nul_ends_the_connection(raw: RawQmp) -> None:
    raw.send(b'{"execute":\0 "query-version"}\n')
    assert raw.line() is None


def test_client_that_never_reads_is_hung_up(valed: Valed) -> None:
    """It asks and asks; when 1 MiB waits for it, it is gone, and others are served meanwhile."""
    other = valed.qmp()
    for i in range(20):
        valed.open(f"vale1:p{i}", tx_slots=64, rx_slots=64)
    with RawQmp(valed.rundir / "qmp.sock") as client:
        client.send(b'{"execute": "qmp_capabilities"}\n')
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100_000):
                client.send(b'{"execute": "query-ports"}\n')
            pytest.fail("valed keeps answers without end")
        assert len(other.ports()) == 20


def test_events_reach_every_client_in_order(valed: Valed) -> None:
    clients = [valed.qmp() for _ in range(10)]
    for i in range(5):
        valed.open(f"vale{i}:a", tx_slots=64, rx_slots=64)
    for client in clients:
        told = [client.event() for _ in range(10)]
        assert [(name, data["name"]) for name, data in told] == [
            event
            for i in range(5)
            for event in (("SWITCH_ADDED", f"vale{i}"), ("PORT_ADDED", f"vale{i}:a"))
        ]


def test_events_carry_a_time(raw: RawQmp, valed: Valed) -> None:
    valed.open("vale1:a")
    event = raw.line()
    assert set(event) == {"event", "data", "timestamp"}
    assert 0 <= event["timestamp"]["microseconds"] < 1_000_000


def test_clients_that_come_and_go(valed: Valed) -> None:
    valed.qmp().execute("query-version")
    start = valed.fds()
    for _ in range(200):
        RawQmp(valed.rundir / "qmp.sock").close()
    for _ in range(50):
        Qmp(valed.rundir / "qmp.sock").close()
    eventually("all to go", lambda: valed.fds() <= start)


def test_quit_answers_closes_and_ends(valed: Valed) -> None:
    """The answer comes, then the ports' ends as events, then the end; the sockets are gone."""
    qmp = valed.qmp()
    port = valed.open("vale1:a")
    while qmp.event()[0] != "PORT_ADDED":
        pass
    assert qmp.execute("quit") == {}
    assert [qmp.event()[0] for _ in range(2)] == ["PORT_REMOVED", "SWITCH_REMOVED"]
    assert qmp.line() is None
    assert port.hung_up()
    assert valed.wait() == 0
    assert sorted(path.name for path in Path(valed.rundir).iterdir()) == ["valed.lock"]


async def test_qemu_qmp_drives_it(valed: Valed) -> None:
    """The QMPClient of the qemu.qmp package connects, executes and listens."""
    from qemu.qmp import ExecuteError, QMPClient

    client = QMPClient("test")
    await client.connect(str(valed.rundir / "qmp.sock"))
    with client.listener("PORT_ADDED") as listener:
        valed.open("vale1:a")
        event: Any = await listener.get()
        assert event["data"]["name"] == "vale1:a"
    ports: Any = await client.execute("query-ports", {"switch": "vale1"})
    assert len(ports) == 1
    with pytest.raises(ExecuteError):
        await client.execute("query-ports", {"switch": "vale9"})
    await client.disconnect()
