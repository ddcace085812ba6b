# SPDX-License-Identifier: BSD-2-Clause
"""The siege: hostile clients all at once, and an honest pair on the same switch and worker.

    scribbler  thief  chains  deaf  silent  hoarder  mumbler  mayfly      tests/lib/attackers.py
        |        |      |      |      |        |        |        |
    ----+--------+------+------+------+--------+--------+--------+----- valed, one worker
        |                                                        |
    vale-pktgen tx, paced                                   vale-pktgen rx: losses, latency

The honest pair has rings of 4096 slots: at 50,000 frames a second a receiver that does not get the
CPU for 80 ms loses nothing. A machine that is busier than that says nothing about the switch, so
the pair has three attempts.
"""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lib.attackers import ATTACKERS, SWITCH, VHOST_PORTS, Attacker, attack
from lib.native import SECONDS
from lib.qmp import Qmp
from lib.valed import ROOT, Valed, check_books, environment, eventually, sanitizer

pytestmark = pytest.mark.blackbox

PKTGEN = ROOT / "build/bin/vale-pktgen"
TWO = "02:00:00:00:00:02"
ATTEMPTS = 3
RATE = 5_000 if sanitizer() else 50_000
LATENCY_US = 50_000


def pktgen(rundir: Path, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PKTGEN, "--device", rundir / "netmap.sock", "--json", "--slots", "4096", *argv],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=SECONDS * 2)
    assert process.returncode == 0, err
    return dict(json.loads(out))


class Pair:
    """Two ports of honest people, there before the attack."""

    def __init__(self, valed: Valed, seconds: float) -> None:
        self.valed = valed
        self.rx = pktgen(valed.rundir, "-i", f"{SWITCH}:two", "-f", "rx", "--latency")
        assert self.rx.stderr is not None
        assert self.rx.stderr.readline() == "ready\n"
        with valed.qmp() as qmp:
            qmp.execute("fdb-add", port=f"{SWITCH}:two", mac=TWO)
        what = ("-i", f"{SWITCH}:one", "-f", "tx", "-D", TWO, "-l", "62", "--latency")
        pace = ("-b", "64", "-R", str(RATE), "--seconds", str(seconds))
        self.tx = pktgen(valed.rundir, *what, *pace)
        with valed.qmp() as qmp:
            eventually("the sender to begin", lambda: has_sent(qmp))

    def results(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The sender ends when all is forwarded; the receiver reads what is in its ring."""
        tx = result(self.tx)
        with self.valed.qmp() as qmp:
            print(qmp.port(f"{SWITCH}:two")["tx"])
        self.rx.send_signal(signal.SIGTERM)
        rx = result(self.rx)
        print(f"sent {tx['packets']}, lost {rx['drops']}, latency {rx['latency_us']}")
        return tx, rx


def has_sent(qmp: Qmp) -> bool:
    port = qmp.ports().get(f"{SWITCH}:one")
    return port is not None and port["rx"]["frames"] > 0


def is_unharmed(tx: dict[str, Any], rx: dict[str, Any]) -> bool:
    """Nothing lost, nothing twice, nothing late."""
    came = (rx["packets"] - rx["unnumbered"], rx["drops"], rx["late"])
    return came == (tx["packets"], 0, 0) and (
        bool(sanitizer()) or rx["latency_us"]["p99"] < LATENCY_US
    )


def besiege(valed: Valed, attackers: tuple[Attacker, ...], seconds: float) -> None:
    """No client of qmp.sock lives through an attack: it would have to read all the events."""
    with valed.qmp() as qmp:
        for name in VHOST_PORTS:
            qmp.execute("port-add", name=f"{SWITCH}:{name}", kind="vhost-user")
        fds, base = valed.fds(), set(qmp.ports())
    for attempt in range(ATTEMPTS):
        pair = Pair(valed, seconds)
        with attack(valed.rundir, attackers):
            tx, rx = pair.results()
        if is_unharmed(tx, rx):
            break
        assert attempt + 1 < ATTEMPTS, (tx, rx)
    with valed.qmp() as qmp:
        eventually("the attackers' ports to go", lambda: set(qmp.ports()) == base)
        eventually("their descriptors to be closed", lambda: valed.fds() <= fds)
        check_books(qmp.ports())


@pytest.mark.parametrize("attacker", ATTACKERS, ids=lambda a: a.__name__)
def test_one_attacker(valed: Valed, attacker: Attacker) -> None:
    besiege(valed, (attacker,), 1)


def test_all_at_once(valed: Valed) -> None:
    besiege(valed, ATTACKERS, float(os.environ.get("VALE_SIEGE_SECONDS", "3")))


def test_every_active_port_gets_the_same_budget(valed: Valed) -> None:
    """Six sources that always have frames, short and long, one worker: as many frames from each."""
    qmp = valed.qmp()
    for i in range(6):
        mac = f"02:00:00:00:01:{i:02x}"
        source = {"length": [60, 60, 60, 1514, 9000, 60000][i], "destination": mac}
        source["source"] = f"02:00:00:00:02:{i:02x}"
        qmp.execute("port-add", name=f"{SWITCH}:sink{i}", kind="null")
        qmp.execute("fdb-add", port=f"{SWITCH}:sink{i}", mac=mac)
        qmp.execute("port-add", name=f"{SWITCH}:from{i}", kind="null", source=source)
    before = frames_from(qmp)
    eventually("a million frames", lambda: sum(frames_from(qmp)) - sum(before) > 1_000_000, 60)
    grown = [b - a for a, b in zip(before, frames_from(qmp), strict=True)]
    print(grown)
    assert max(grown) - min(grown) <= 0.1 * max(grown)


def frames_from(qmp: Qmp) -> list[int]:
    ports = qmp.ports()
    return [ports[f"{SWITCH}:from{i}"]["rx"]["frames"] for i in range(6)]
