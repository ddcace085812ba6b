# SPDX-License-Identifier: BSD-2-Clause
"""How a topology's tests are judged, and what is said of them."""

from typing import Any, cast

import pytest

from valemgr import topology
from valemgr.bench import Trial, TrialSpec
from valemgr.conservation import Counts
from valemgr.deadline import Deadline
from valemgr.guest import ConditionError, expect
from valemgr.labtests import _line, are_alone, judge
from valemgr.ssh import RemoteResult, SshSession
from valemgr.topology import Condition, Guest, Lab, Nic, Switch, UdpTest

pytestmark = pytest.mark.unit

A_TO_B = UdpTest(sender="a:vale0", receiver="b:vale0", max_loss=1)


def trial(received: int, violations: tuple[str, ...] = ()) -> Trial:
    counts = Counts(1000, 1000, None, 1000, 0, 1000 - received, received)
    report = {"pps": 1000.0}
    return Trial(
        TrialSpec("udp", 64, 1.0, None, ("vale0", "vale0")), "", report, report, counts, violations
    )


def lab(guests: str, **switch: Any) -> Lab:
    return Lab(
        name="x",
        switches=(Switch(name="vale1", **switch),),
        guests=tuple(Guest(name=g, nics=(Nic(name="vale0", port=f"vale1:{g}"),)) for g in guests),
        tests=(topology.Test(name="t", udp=A_TO_B),),
    )


def test_a_verdict_says_where_frames_were_lost() -> None:
    assert judge(trial(1000), A_TO_B) == (True, "1.0 kpps received, 0 % lost")
    said = "1.0 kpps received, 5 % lost (socket buffer 50); more than 1 % lost"
    assert judge(trial(950), A_TO_B) == (False, said)


def test_counters_that_others_move_are_not_judged() -> None:
    odd = trial(1000, ("its port saw 1001",))
    assert judge(odd, A_TO_B) == (False, "1.0 kpps received, 0 % lost; its port saw 1001")
    assert judge(odd, A_TO_B, alone=False) == (True, "1.0 kpps received, 0 % lost")


def test_who_is_alone() -> None:
    assert are_alone(lab("ab"), A_TO_B)
    assert not are_alone(lab("abc"), A_TO_B)
    assert not are_alone(lab("ab", neighbours="arp"), A_TO_B)


@pytest.mark.parametrize(
    ("expected", "line"),
    [("", "last"), ("two", "line two"), ("one.*\nline t", "line one"), ("nothing", "last")],
)
def test_the_line_that_was_expected_is_the_one_shown(expected: str, line: str) -> None:
    assert _line("line one\nline two\nlast", expected) == line


@pytest.mark.parametrize(
    ("wanted", "status", "said"),
    [(0, 0, ""), (1, 1, ""), (0, 1, "status 1: no route"), (1, 0, "status 0, not 1: no route")],
)
async def test_a_command_ends_as_its_condition_says(wanted: int, status: int, said: str) -> None:
    class Ssh:
        async def run(self, command: str, deadline: Deadline) -> RemoteResult:
            return RemoteResult(status, f"{command}\n", "no route\n")

    condition = Condition(exec="ping", status=wanted)
    work = expect(cast(SshSession, Ssh()), condition, Deadline(1))
    if said:
        with pytest.raises(ConditionError, match=said):
            await work
    else:
        assert await work == "ping\nno route"
