# SPDX-License-Identifier: BSD-2-Clause
"""A topology's tests: what must hold when the lab is ready, with the figures that were found.

One at a time, in the topology's order: what one does to the network must not be another's result.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from valemgr.bench import Trial, TrialSpec, run_trial
from valemgr.conservation import losses
from valemgr.deadline import Deadline
from valemgr.errors import TrialError, ValeError
from valemgr.guest import RunningGuest, expect
from valemgr.labs import Attached
from valemgr.text import last_line
from valemgr.topology import Lab, Test, UdpTest

CONNECT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a test ended."""

    test: str
    passed: bool
    seconds: float
    detail: str


async def run(lab: Attached, say: Callable[[str], None]) -> list[Verdict]:
    """Every test of the lab's topology."""
    verdicts = []
    for test in lab.state.wanted.tests:
        say(f"test: {test.name}")
        began = time.monotonic()
        try:
            passed, detail = await _run(lab, test)
        except ValeError as exc:
            passed, detail = False, str(exc)
        verdicts.append(Verdict(test.name, passed, round(time.monotonic() - began, 3), detail))
    return verdicts


async def _run(lab: Attached, test: Test) -> tuple[bool, str]:
    if test.udp:
        return await _udp(lab, test.udp)
    if test.condition is None:
        raise TrialError(f"test {test.name} says nothing to do")
    guest = await _guest(lab, test.guest)
    deadline = Deadline(test.condition.timeout)
    said = await expect(guest.ssh, test.condition, deadline)
    return True, _line(said, test.condition.expect)


def _line(said: str, expected: str) -> str:
    """What a command said, in one line: the one that was expected, else the last."""
    found = re.search(expected, said) if expected else None
    if found is None:
        return last_line(said)
    begin = said.rfind("\n", 0, found.start()) + 1
    return said[begin:].splitlines()[0].strip()


async def _udp(lab: Attached, udp: UdpTest) -> tuple[bool, str]:
    ends = [end.split(":") for end in (udp.sender, udp.receiver)]
    sender, receiver = [await _guest(lab, guest) for guest, _ in ends]
    spec = TrialSpec("udp", udp.frame, udp.seconds, udp.rate, (ends[0][1], ends[1][1]))
    trial = await run_trial(spec, sender, receiver, lab.switchd)
    return judge(trial, udp, alone=are_alone(lab.state.wanted, udp))


def are_alone(lab: Lab, udp: UdpTest) -> bool:
    """Whether nobody else sends on their switch, so that its counters are the trial's alone."""
    ends = {udp.sender, udp.receiver}
    nics = {f"{guest.name}:{nic.name}": nic for guest, nic in lab.nics()}
    receiver = nics[udp.receiver]
    asks = bool(receiver.switch) and lab.switch(receiver.switch).neighbours == "arp"
    there = {end for end, nic in nics.items() if nic.segment == receiver.segment}
    return not asks and there == ends


def judge(trial: Trial, udp: UdpTest, alone: bool = True) -> tuple[bool, str]:
    """Whether a trial keeps its thresholds, and the figures in words."""
    loss = 100 * trial.loss
    words = f"{trial.received_pps / 1e3:.1f} kpps received, {loss:.3g} % lost"
    where = ", ".join(f"{place} {n}" for place, n in losses(trial.counts).items())
    words += f" ({where})" if where else ""
    faults = list(trial.violations) if alone else []
    if trial.received_pps < udp.min_pps:
        faults.append(f"fewer than {udp.min_pps / 1e3:g} kpps")
    if loss > udp.max_loss:
        faults.append(f"more than {udp.max_loss:g} % lost")
    return not faults, "; ".join([words, *faults])


async def _guest(lab: Attached, name: str) -> RunningGuest:
    guest = lab.guest(name)
    await guest.connect(Deadline(CONNECT_SECONDS))
    return guest
