# SPDX-License-Identifier: BSD-2-Clause
"""One UDP trial between two guests, by the programs that are in the image.

    1  counters: guests' NICs and sockets, the switch's ports
    2  the receiver starts and says `ready`, then the sender starts
    3  both report in JSON; counters again; do they add up (conservation.py)

"Frame" includes the FCS: 64 bytes are 18 bytes of UDP payload over IPv4. Only the received rate is
called throughput; Mbit/s are those of the received frames, FCS included, preamble and gap not.
"""

import asyncio
import json
import shlex
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from valemgr.conservation import Counts, PortDelta, losses, violations
from valemgr.deadline import Deadline
from valemgr.errors import TrialError
from valemgr.guest import RunningGuest
from valemgr.segments import host_of
from valemgr.ssh import RemoteProgram, RemoteResult
from valemgr.switchd import PortStats, Switchd
from valemgr.text import harmless, last_line

PORT = 9000
SLACK_SECONDS = 30.0

# Every way in which a socket loses a datagram: buffer full, the kernel's memory limit, checksum.
_SOCKET_COUNTER = "InErrors"
_NIC_COUNTERS = ("tx_packets", "rx_packets", "rx_dropped", "rx_missed_errors")


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """What is to be measured."""

    path: str  # the backend's name, or the baseline's
    frame: int
    seconds: float
    rate: int | None  # frames a second offered; None is as fast as it goes
    nics: tuple[str, str]  # the sender's and the receiver's interface


@dataclass(frozen=True, slots=True)
class Trial:
    """What was measured: both programs' reports, untouched, and every counter's difference."""

    spec: TrialSpec
    started: str
    sender: dict[str, Any]
    receiver: dict[str, Any]
    counts: Counts
    violations: tuple[str, ...]

    @property
    def conserved(self) -> bool:
        return not self.violations

    @property
    def sent_pps(self) -> float:
        return float(self.sender["pps"])

    @property
    def received_pps(self) -> float:
        return float(self.receiver["pps"])

    @property
    def loss(self) -> float:
        """Share of the sent frames that was not received."""
        sent = self.counts.sent
        return max(0.0, (sent - self.counts.received) / sent) if sent else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For the store and for JSON output."""
        return {
            **asdict(self),
            "conserved": self.conserved,
            "sent_pps": self.sent_pps,
            "received_pps": self.received_pps,
            "received_bps": self.received_pps * self.spec.frame * 8,
            "loss": self.loss,
            "losses": losses(self.counts),
        }


@dataclass(frozen=True, slots=True)
class Sight:
    """All counters at one moment."""

    sender_nic: dict[str, int]
    receiver_nic: dict[str, int]
    sender_port: PortStats | None
    receiver_port: PortStats | None


async def run_trial(
    spec: TrialSpec, sender: RunningGuest, receiver: RunningGuest, switchd: Switchd | None
) -> Trial:
    """Measure once, from `sender` to `receiver`."""
    sending, receiving = sender.nic(spec.nics[0]), receiver.nic(spec.nics[1])
    # Across a router nothing is conserved: it may drop, and the switches see other traffic too.
    direct = receiving.segment == sending.segment
    on_switch = switchd if receiving.port and direct else None
    started = datetime.now(UTC).isoformat(timespec="seconds")
    before = await _look(spec, sender, receiver, on_switch)
    tx, rx = await _exchange(spec, sender, receiver)
    after = await _look(spec, sender, receiver, on_switch)
    counts = count(tx, rx, before, after)
    found = violations(counts) if direct else ()
    return Trial(spec, started, tx, rx, counts, tuple(found))


def count(tx: dict[str, Any], rx: dict[str, Any], before: Sight, after: Sight) -> Counts:
    """Both programs' reports and two looks at all counters, brought together."""

    def gained(name: str) -> int:
        return after.receiver_nic[name] - before.receiver_nic[name]

    return Counts(
        sent=int(tx["sent"]),
        nic_tx=after.sender_nic["tx_packets"] - before.sender_nic["tx_packets"],
        port=_port_delta(before, after),
        nic_rx=gained("rx_packets"),
        nic_rx_dropped=gained("rx_dropped") + gained("rx_missed_errors"),
        socket_dropped=gained(_SOCKET_COUNTER),
        received=int(rx["received"]),
    )


def parse_counters(text: str) -> dict[str, int]:
    """NIC counters, one `name value` a line, and /proc/net/snmp's two Udp lines."""
    lines = text.splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Udp: "))
    found = {name: int(value) for name, value in zip(names, values, strict=True)}
    pairs = (line.split() for line in lines if not line.startswith("Udp: "))
    return found | {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


async def _exchange(
    spec: TrialSpec, sender: RunningGuest, receiver: RunningGuest
) -> tuple[dict[str, Any], dict[str, Any]]:
    deadline = Deadline(spec.seconds + SLACK_SECONDS)
    limit = int(spec.seconds + SLACK_SECONDS)
    rx_program = await receiver.ssh.start(
        f"vale-udp-recv --port {PORT} --json --max-seconds {limit}"
    )
    await _expect_ready(receiver, rx_program, deadline)
    tx_program = await sender.ssh.start(_send_command(spec, receiver))
    tx_result = await tx_program.result(deadline)
    tx = _report(sender, "vale-udp-send", tx_result)
    rx_result = await rx_program.result(deadline)
    return tx, _report(receiver, "vale-udp-recv", rx_result)


def _send_command(spec: TrialSpec, receiver: RunningGuest) -> str:
    addresses = receiver.nic(spec.nics[1]).addresses
    if not addresses:
        raise TrialError(f"guest {receiver.name}: NIC {spec.nics[1]} has no address to send to")
    address = host_of(addresses[0])
    command = ["vale-udp-send", "--to", address, "--port", str(PORT), "--json"]
    command += ["--frame", str(spec.frame), "--seconds", f"{spec.seconds:g}"]
    if spec.rate is not None:
        command += ["--rate", str(spec.rate)]
    return shlex.join(command)


async def _expect_ready(guest: RunningGuest, program: RemoteProgram, deadline: Deadline) -> None:
    line = (await program.line(deadline)).strip()
    if line != "ready":
        result = await program.result(deadline)
        said = last_line(result.stderr or line, "silent")
        raise TrialError(f"guest {guest.name}: vale-udp-recv did not start: {said}")


def _report(guest: RunningGuest, program: str, result: RemoteResult) -> dict[str, Any]:
    try:
        report = json.loads(result.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        report = None
    if result.status != 0 or not isinstance(report, dict):
        said = last_line(result.stderr or result.stdout, "silent")
        raise TrialError(f"guest {guest.name}: {program} failed (status {result.status}): {said}")
    return report


async def _look(
    spec: TrialSpec, sender: RunningGuest, receiver: RunningGuest, switchd: Switchd | None
) -> Sight:
    sender_nic, receiver_nic = await asyncio.gather(
        _guest_counters(sender, spec.nics[0]), _guest_counters(receiver, spec.nics[1])
    )
    ports: list[PortStats | None] = [None, None]
    if switchd:
        names = [str(g.nic(n).port) for g, n in zip((sender, receiver), spec.nics, strict=True)]
        known = {port.name: port for port in await switchd.ports(names[0].partition(":")[0])}
        missing = [name for name in names if name not in known]
        if missing:
            raise TrialError(f"port {missing[0]} is gone from the switch: a guest lost its link")
        ports = [known[name] for name in names]
    return Sight(sender_nic, receiver_nic, ports[0], ports[1])


async def _guest_counters(guest: RunningGuest, interface: str) -> dict[str, int]:
    folder = f"/sys/class/net/{interface}/statistics"
    names = " ".join(_NIC_COUNTERS)
    command = f"cd {folder} && for f in {names}; do echo $f $(cat $f); done"
    result = await guest.ssh.run(f"{command}; grep ^Udp: /proc/net/snmp", Deadline(SLACK_SECONDS))
    try:
        counters = parse_counters(result.stdout)
        return {name: counters[name] for name in (*_NIC_COUNTERS, _SOCKET_COUNTER)}
    except (ValueError, KeyError) as exc:
        raise TrialError(
            f"guest {guest.name}: no counters of {interface}: {harmless(result.stderr).strip()}"
        ) from exc


def _port_delta(before: Sight, after: Sight) -> PortDelta | None:
    if not (before.sender_port and before.receiver_port):
        return None
    if not (after.sender_port and after.receiver_port):
        return None
    rx0, rx1 = before.sender_port, after.sender_port
    tx0, tx1 = before.receiver_port, after.receiver_port
    return PortDelta(
        rx_frames=rx1.rx_frames - rx0.rx_frames,
        rx_dropped=_gain(rx0.rx_dropped, rx1.rx_dropped),
        tx_offered=tx1.tx_offered - tx0.tx_offered,
        tx_frames=tx1.tx_frames - tx0.tx_frames,
        tx_dropped=_gain(tx0.tx_dropped, tx1.tx_dropped),
    )


def _gain(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {reason: n - before.get(reason, 0) for reason, n in after.items()}
