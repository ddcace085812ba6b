# SPDX-License-Identifier: BSD-2-Clause
"""Do the counters add up? A trial whose frames cannot be accounted for is no measurement.

One direction, sender's program to receiver's program; each line must hold or the trial is invalid:

    sent + other                    = guest NIC tx         other: ends of run, neighbour discovery
    guest NIC tx                    = port rx              the sender's port
    port rx - dropped at ingress    = port offered         the receiver's port
    port offered - dropped          = port tx
    port tx - dropped by guest NIC  = guest NIC rx
    guest NIC rx - dropped by socket - other = received

A cable has no switch between: its port lines are replaced by NIC tx - dropped = NIC rx.
"""

from dataclasses import dataclass

# Frames that are not the trial's own: a few ends of run and what a kernel says by itself.
OTHER_MAX = 64


@dataclass(frozen=True, slots=True)
class PortDelta:
    """What the two ports of a switch counted during a trial."""

    rx_frames: int
    rx_dropped: dict[str, int]
    tx_offered: int
    tx_frames: int
    tx_dropped: dict[str, int]


@dataclass(frozen=True, slots=True)
class Counts:
    """Everything that counted a trial's frames, in the order in which frames pass."""

    sent: int
    nic_tx: int
    port: PortDelta | None
    nic_rx: int
    nic_rx_dropped: int
    socket_dropped: int
    received: int


def violations(counts: Counts) -> list[str]:
    """Every line that does not hold, in words; empty if frames are conserved."""
    other = counts.nic_tx - counts.sent
    found = []
    if not 0 <= other <= OTHER_MAX:
        found.append(f"the sender sent {counts.sent} frames, its NIC {counts.nic_tx}")
    found += _port_violations(counts, counts.port) if counts.port else _cable_violations(counts)
    arrived = counts.nic_rx - counts.socket_dropped - counts.received
    if not 0 <= arrived <= OTHER_MAX:
        found.append(
            f"the receiver's NIC received {counts.nic_rx} frames, its socket dropped "
            f"{counts.socket_dropped}, the program received {counts.received}"
        )
    return found


def losses(counts: Counts) -> dict[str, int]:
    """Where frames were lost, by place and reason; only places that lost any."""
    lost: dict[str, int] = {}
    if counts.port:
        lost |= {f"ingress {reason}": n for reason, n in counts.port.rx_dropped.items()}
        lost |= {f"port {reason}": n for reason, n in counts.port.tx_dropped.items()}
    lost |= {"guest nic": counts.nic_rx_dropped, "socket buffer": counts.socket_dropped}
    return {place: n for place, n in lost.items() if n}


def _port_violations(counts: Counts, port: PortDelta) -> list[str]:
    ingress, egress = sum(port.rx_dropped.values()), sum(port.tx_dropped.values())
    found = []
    if port.rx_frames != counts.nic_tx:
        found.append(f"the sender's NIC sent {counts.nic_tx} frames, its port saw {port.rx_frames}")
    if port.tx_offered != port.rx_frames - ingress:
        found.append(
            f"of {port.rx_frames} frames {ingress} were dropped at ingress, "
            f"but {port.tx_offered} were offered to the receiver's port"
        )
    if port.tx_frames != port.tx_offered - egress:
        found.append(
            f"of {port.tx_offered} offered frames {egress} were dropped, "
            f"but {port.tx_frames} were delivered"
        )
    if counts.nic_rx + counts.nic_rx_dropped != port.tx_frames:
        found.append(
            f"the port delivered {port.tx_frames} frames, the receiver's NIC took "
            f"{counts.nic_rx} and dropped {counts.nic_rx_dropped}"
        )
    return found


def _cable_violations(counts: Counts) -> list[str]:
    if counts.nic_rx + counts.nic_rx_dropped == counts.nic_tx:
        return []
    return [
        f"the sender's NIC sent {counts.nic_tx} frames, the receiver's took "
        f"{counts.nic_rx} and dropped {counts.nic_rx_dropped}"
    ]
