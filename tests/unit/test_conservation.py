# SPDX-License-Identifier: BSD-2-Clause
"""Conservation of frames: what adds up passes, and each single leak is named."""

from dataclasses import replace

import pytest

from valemgr.bench import Sight, Trial, TrialSpec, count, parse_counters
from valemgr.conservation import Counts, PortDelta, losses, violations
from valemgr.pair import PairRequest, specs, summarize
from valemgr.switchd import PortStats

pytestmark = pytest.mark.unit

PORT = PortDelta(1020, {"runt": 10}, 1010, 1000, {"ring_full": 10})
SWITCH = Counts(1000, 1020, PORT, 990, 10, 30, 945)
CABLE = Counts(1000, 1020, None, 1000, 20, 30, 955)


@pytest.mark.parametrize("counts", [SWITCH, CABLE])
def test_what_adds_up(counts: Counts) -> None:
    assert violations(counts) == []


def test_losses_are_attributed() -> None:
    assert losses(SWITCH) == {
        "ingress runt": 10, "port ring_full": 10, "guest nic": 10, "socket buffer": 30,
    }
    assert losses(CABLE) == {"guest nic": 20, "socket buffer": 30}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sent": 1021}, "the sender sent 1021 frames, its NIC 1020"),
        ({"sent": 900}, "the sender sent 900"),
        ({"nic_tx": 1019}, "its port saw 1020"),
        ({"nic_rx": 989}, "the receiver's NIC took 989"),
        ({"nic_rx_dropped": 0}, "dropped 0"),
        ({"socket_dropped": 46}, "its socket dropped 46"),
        ({"received": 2000}, "the program received 2000"),
        ({"received": 800}, "the program received 800"),
    ],
)
def test_a_leak_in_a_guest_is_named(changed: dict[str, int], said: str) -> None:
    found = violations(replace(SWITCH, **changed))
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize(
    "changed", [{"rx_frames": 1021}, {"tx_offered": 1009}, {"tx_frames": 999}, {"tx_dropped": {}}]
)
def test_a_leak_in_the_switch_is_named(changed: dict[str, object]) -> None:
    assert violations(replace(SWITCH, port=replace(PORT, **changed)))


def test_a_leak_of_a_cable_is_named() -> None:
    assert violations(replace(CABLE, nic_rx=999))


SNMP = """tx_packets 7
rx_packets 9
rx_dropped 1
rx_missed_errors 2
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors
Udp: 5 0 3 6 2
"""


def test_counters_are_read_by_name() -> None:
    found = parse_counters(SNMP)
    assert (found["tx_packets"], found["InErrors"], found["RcvbufErrors"]) == (7, 3, 2)
    with pytest.raises(ValueError, match="unpack"):
        parse_counters("tx_packets 7\n")


def _port(frames: int, dropped: dict[str, int]) -> PortStats:
    return PortStats("vale1:a", "native", 1, frames, 0, dropped, frames, frames, 0, dropped)


def test_counts_are_differences_of_two_looks() -> None:
    nic = {"tx_packets": 5, "rx_packets": 5, "rx_dropped": 0, "rx_missed_errors": 0, "InErrors": 1}
    later = {name: n + 100 for name, n in nic.items()}
    counts = count(
        {"sent": 90}, {"received": 80},
        Sight(nic, nic, _port(5, {}), _port(5, {"ring_full": 1})),
        Sight(later, later, _port(105, {}), _port(105, {"ring_full": 3, "stalled": 4})),
    )
    assert (counts.nic_tx, counts.nic_rx, counts.nic_rx_dropped) == (100, 100, 200)
    assert counts.socket_dropped == 100
    assert counts.port == PortDelta(100, {}, 100, 100, {"ring_full": 2, "stalled": 4})


def _trial(path: str, frame: int, pps: float, received: int = 1000) -> Trial:
    spec = TrialSpec(path, frame, 1.0, None, 0)
    counts = Counts(1000, 1000, None, received, 1000 - received, 0, received)
    return Trial(spec, "", {"pps": 2 * pps}, {"pps": pps}, counts, tuple(violations(counts)))


def test_rows_are_medians_with_a_ratio_to_the_baseline() -> None:
    trials = [_trial("netmap", 64, pps, 990) for pps in (10e3, 90e3, 30e3)]
    trials += [_trial("stream", 64, pps) for pps in (20e3, 10e3, 60e3)]
    ours, baseline = summarize(trials, "user", "tcg", 4.04)
    assert (ours.received_kpps, ours.sent_kpps, ours.ratio) == (30.0, 60.0, 1.5)
    assert (ours.mbit_s, ours.loss_percent, ours.ready_s) == (15.4, 1.0, 4.0)
    assert (baseline.received_kpps, baseline.ratio, baseline.provider) == (20.0, None, "none")


def test_one_trial_that_does_not_add_up_spoils_its_row() -> None:
    bad = replace(_trial("netmap", 64, 1e3), violations=("leak",))
    (row,) = summarize([_trial("netmap", 64, 1e3), bad], "user", "tcg", 1.0)
    assert not row.conserved


def test_trials_alternate_with_the_baseline() -> None:
    request = PairRequest("vale1", (64, 1518), baseline=True, trials=2)
    order = [(spec.frame, spec.path, spec.nics[0]) for spec in specs(request, "netmap")]
    one_round = [
        (frame, path, nic) for frame in (64, 1518)
        for path, nic in (("netmap", "vale0"), ("stream", "vale1"))
    ]
    assert order == one_round * 2
