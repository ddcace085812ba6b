# SPDX-License-Identifier: BSD-2-Clause
"""What is set while valed runs: its parameters, and which worker serves what.

    vale1:a --- ring, worker 0 ... 1 ... 0 ---> vale1:b

A ring that moves between workers under traffic loses nothing and keeps its order.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from blackbox.test_valed_ports import stream_peer
from blackbox.test_valed_wait import running
from lib.native import AttachError, numbered, station
from lib.qmp import QmpError
from lib.valed import Valed, check_books, eventually
from lib.vhost import FrontEnd

pytestmark = pytest.mark.blackbox

A, B = station(1), station(2)


@pytest.fixture
def two() -> Iterator[Valed]:
    with Valed.run("--workers", "2") as valed:
        yield valed


def workers_of(valed: Valed, port: str) -> list[int]:
    found: list[int] = valed.qmp().port(port)["workers"]
    return found


def move(valed: Valed, port: str, worker: int) -> None:
    valed.qmp().execute("worker-set", worker=worker, port=port)
    eventually(f"{port} on worker {worker}", lambda: workers_of(valed, port) == [worker])


def test_parameters_of_the_command_line_are_shown_and_changed() -> None:
    options = ("--bridge-batch", "100", "--max-bridges", "7", "--busy-poll", "30")
    with Valed.run(*options) as valed:
        shown = {"bridge_batch": 100, "max_bridges": 7, "verbose": 0, "busy_poll": 30}
        assert valed.qmp().execute("query-parameters") == shown
        shown = {"bridge_batch": 5, "max_bridges": 2, "verbose": 1, "busy_poll": 0}
        assert valed.qmp().call("parameter-set", shown) == shown
        assert valed.qmp().call("parameter-set", {"verbose": 0}) == shown | {"verbose": 0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"bridge_batch": 0},
        {"bridge_batch": 1025},
        {"max_bridges": 0},
        {"verbose": 3},
        {"busy_poll": -1},
        {"busy_poll": 10_001},
        {"busy_poll": "often"},
        {"bridge-batch": 5},
        {"verbose": 1, "bridge_batch": "x"},
    ],
)
def test_wrong_parameters_change_nothing(valed: Valed, wrong: dict[str, Any]) -> None:
    before = valed.qmp().execute("query-parameters")
    with pytest.raises(QmpError):
        valed.qmp().call("parameter-set", wrong)
    assert valed.qmp().execute("query-parameters") == before


def test_bridge_batch_bounds_what_one_round_forwards(valed: Valed) -> None:
    """A thousand frames, at most ten in a round."""
    valed.qmp().call("parameter-set", {"bridge_batch": 10})
    valed.qmp().execute("port-add", name="vale1:sink", kind="null")
    (before,) = valed.qmp().execute("query-workers")
    valed.qmp().execute("port-add", name="vale1:s", kind="null", source={"frames": 1000})
    eventually("1000", lambda: valed.qmp().port("vale1:s")["rx"]["frames"] == 1000)
    (after,) = valed.qmp().execute("query-workers")
    assert after["rounds"] - before["rounds"] >= 99


def test_max_bridges_bounds_the_switches(valed: Valed) -> None:
    valed.qmp().call("parameter-set", {"max_bridges": 1})
    valed.open("vale1:a")
    with pytest.raises(AttachError):
        valed.open("vale2:a")
    valed.qmp().call("parameter-set", {"max_bridges": 2})
    valed.open("vale2:a")


def test_verbose_says_who_comes(valed: Valed) -> None:
    valed.open("vale1:quiet")
    valed.qmp().call("parameter-set", {"verbose": 1})
    valed.open("vale1:loud")
    eventually("a line", lambda: "vale1:loud" in valed.errors())
    assert "vale1:quiet" not in valed.errors()
    valed.qmp().call("parameter-set", {"verbose": 0})
    valed.log.write_text("")  # else the end of the test takes it for a complaint


def test_busy_polling_spares_kicks(valed: Valed) -> None:
    valed.qmp().call("parameter-set", {"busy_poll": 10_000})
    a = valed.open("vale1:a")
    for data in numbered(B, A, 200):
        a.send([data])
        a.flush()
    assert valed.qmp().port("vale1:a")["kicks"] < 100


def test_stats_are_the_ports_counters_flat(valed: Valed) -> None:
    a = valed.open("vale1:a")
    valed.open("vale1:b", rx_slots=64)
    valed.open("vale2:c")
    a.send(numbered(B, A, 100))
    a.flush()
    stats = valed.qmp().execute("query-stats", switch="vale1")
    ports = {port["name"]: port for port in stats["ports"]}
    assert set(ports) == {"vale1:a", "vale1:b"}
    assert (ports["vale1:a"]["rx.frames"], ports["vale1:a"]["rx.flooded"]) == (100, 100)
    assert ports["vale1:b"]["tx.dropped.ring_full"] == 37
    assert ports["vale1:b"]["tx.frames"] == 63
    later = valed.qmp().execute("query-stats")
    assert later["time"] > stats["time"]
    assert len(later["ports"]) == 3
    with pytest.raises(QmpError):
        valed.qmp().execute("query-stats", switch="vale9")


def test_worker_is_pinned_and_let_loose(valed: Valed) -> None:
    cpu = min(os.sched_getaffinity(0))
    valed.qmp().execute("worker-set", worker=0, cpu=cpu)
    assert valed.qmp().execute("query-workers")[0]["cpu"] == cpu
    valed.qmp().execute("worker-set", worker=0, cpu=-1)
    assert valed.qmp().execute("query-workers")[0]["cpu"] == -1
    for wrong in (
        {"worker": 1, "cpu": cpu},
        {"worker": 0, "cpu": 100_000},
        {"worker": 0},
        {"worker": 0, "port": "vale1:nobody"},
        {"worker": 0, "ring": 0},
    ):
        with pytest.raises(QmpError):
            valed.qmp().execute("worker-set", **wrong)


def test_rings_in_use_are_dealt_evenly(two: Valed) -> None:
    """Two guests with one queue pair each get a worker each, however many they might use."""
    for name in ("vale1:v", "vale1:w"):
        two.qmp().execute("port-add", name=name, kind="vhost-user")
        two.clients.append(FrontEnd(two.rundir / name))
    assert sorted(workers_of(two, "vale1:v") + workers_of(two, "vale1:w")) == [0, 1]


def test_ring_moves_between_workers_under_traffic(two: Valed) -> None:
    a, b = two.open("vale1:a"), two.open("vale1:b", rx_slots=4096)
    two.qmp().execute("fdb-add", port="vale1:b", mac=B.hex(":"))
    two.qmp().execute("switch-set", name="vale1", overflow="wait", **{"wait-limit": 10_000})
    sent = numbered(B, A, 30_000)
    with running(lambda: a.send(sent)):
        for turn in range(30):
            move(two, "vale1:a", turn % 2)
            assert b.receive(1000) == sent[1000 * turn : 1000 * turn + 1000]
    check_books(two.qmp().ports())
    assert [w["rings"] for w in two.qmp().execute("query-workers")] in ([1, 1], [0, 2], [2, 0])


def test_guests_ring_moves_with_its_kicks(two: Valed) -> None:
    two.qmp().execute("port-add", name="vale1:v", kind="vhost-user")
    b = two.open("vale1:b")
    with FrontEnd(two.rundir / "vale1:v") as front:
        for turn in range(6):
            move(two, "vale1:v", turn % 2)
            sent = numbered(B, A, 20, first=20 * turn)
            front.send(sent)
            assert b.receive(20) == sent
            back = numbered(A, B, 20, first=20 * turn)
            b.send(back)
            assert front.receive(20) == back


def test_stream_moves_with_what_it_holds_back(two: Valed) -> None:
    """Its socket is full when it moves: the other worker sends the rest of the frame."""
    a = two.open("vale1:a")
    with stream_peer(two, "vale1:s", connect=False) as peer:
        two.qmp().execute("fdb-add", port="vale1:s", mac=B.hex(":"))
        two.qmp().execute("switch-set", name="vale1", overflow="wait", **{"wait-limit": 10_000})
        sent = numbered(B, A, 2000, length=1514)
        with running(lambda: a.send(sent)):
            for turn in range(10):
                move(two, "vale1:s", turn % 2)
                for expected in sent[200 * turn : 200 * turn + 200]:
                    assert peer.receive() == expected


def test_port_may_close_while_it_moves(two: Valed) -> None:
    b = two.open("vale1:b", rx_slots=4096)
    for turn in range(50):
        a = two.open("vale1:a")
        a.send(numbered(B, A, 10))
        two.qmp().execute("worker-set", worker=turn % 2, port="vale1:a")
        a.close()
        assert b.receive(10) == numbered(B, A, 10)
    eventually("a has gone", lambda: list(two.qmp().ports()) == ["vale1:b"])
    assert sum(w["rings"] for w in two.qmp().execute("query-workers")) == 1
