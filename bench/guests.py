#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Guest to guest under TCG: two vhost-user ports of valed against QEMU's stream netdevs.

Two micro guests in unmodified QEMU, each with two virtio NICs:

    guest a  vale0 ══ vhost-user ══ valed ══ vhost-user ══ vale0  guest b
    guest a  vale1 ══ QEMU's stream netdev, back to back ══ vale1  guest b

The pairs take turns. A trial sends UDP datagrams as fast as guest a can, and counts those that a
program in guest b receives, and the CPU time that the host spends outside of the vCPU threads
meanwhile: QEMU's other threads of both guests, and valed. Prints a table; every trial goes to
build/bench/guests.json.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import host  # the other benchmark in this folder: where things are, and what machine this is

sys.path.insert(0, str(host.ROOT / "tests"))
from lib.guest import MICRO, QEMU, Guest, stream, version, vhost_user
from lib.valed import Valed

REPORT = host.BUILD / "bench" / "guests.json"
PAIRS = ("vhost-user", "stream")  # by number of the NIC
LENGTHS = (64, 1518)  # with FCS
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Trial:
    """One run at one frame length."""

    pair: str
    length: int
    sent: int
    received: int
    pps: float
    cpu_seconds: float  # outside of the vCPU threads

    @property
    def cpu_us(self) -> float:
        """Microseconds per delivered frame."""
        return self.cpu_seconds / self.received * 1e6


def cpu_seconds(pid: int) -> float:
    """CPU time of a process but its vCPU threads ("CPU 0/TCG")."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        fields = rest.split()
        if not name.startswith("CPU "):
            total += int(fields[11]) + int(fields[12])
    return total / TICK


def run_trial(a: Guest, b: Guest, valed: Valed, nic: int, length: int, seconds: float) -> Trial:
    pids = [a.process.pid, b.process.pid, *([valed.pid] if nic == 0 else [])]
    receiver = b.ssh.exec_command(f"vale-udp-recv --json --max-seconds {seconds + 30}")
    if receiver[1].readline() != "ready\n":
        host.fail("the receiver did not start", 1)
    before = sum(cpu_seconds(pid) for pid in pids)
    options = f"--frame {length} --seconds {seconds} --json"
    sent = json.loads(a.run(f"vale-udp-send --to {b.address(nic)} {options}"))
    got = json.loads(receiver[1].read())
    receiver[1].channel.recv_exit_status()
    used = sum(cpu_seconds(pid) for pid in pids) - before
    return Trial(PAIRS[nic], length, sent["sent"], got["received"], got["pps"], round(used, 3))


@contextmanager
def guests(valed: Valed, folder: Path) -> Iterator[tuple[Guest, Guest]]:
    qmp = valed.qmp()
    made: list[Guest] = []
    try:
        for number, name in enumerate("ab", 1):
            qmp.execute("port-add", name=f"vale1:{name}", kind="vhost-user")
            cable = stream(folder / "cable", server=name == "a")
            netdevs = [vhost_user(valed.rundir / f"vale1:{name}"), cable]
            made.append(Guest(folder, name, number, netdevs))
            made[0].wait_ready()
        for guest, peer in ((made[0], made[1]), (made[1], made[0])):
            guest.connect()
            for nic in range(len(PAIRS)):
                guest.run(f"ip neigh add {peer.address(nic)} lladdr {peer.mac(nic)} dev vale{nic}")
        yield made[0], made[1]
    finally:
        for guest in made:
            guest.close()


def print_row(length: int, trials: list[Trial]) -> None:
    pps, cpu = (
        [statistics.median(getattr(t, key) for t in trials if t.pair == pair) for pair in PAIRS]
        for key in ("pps", "cpu_us")
    )
    print(
        f"{length:>6} {pps[0] / 1e3:>11.1f} {pps[1] / 1e3:>8.1f} {pps[0] / pps[1]:>7.2f}"
        f" {cpu[0]:>14.2f} {cpu[1]:>8.2f} {cpu[0] / cpu[1]:>7.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Guest to guest: vhost-user beside stream.")
    parser.add_argument("--trials", type=int, default=5, help="of each pair (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each trial (default 2)")
    options = parser.parse_args()
    for path, how in ((host.VALED, "make tools"), (MICRO / "manifest.json", "make image")):
        if not path.exists():
            host.fail(f"no {path}: run '{how}'", 4)
    if not QEMU.exists():
        host.fail(f"no {QEMU}: run 'apt-get install qemu-system-x86'", 4)
    where = host.machine(host.choose_cpus()) | {"qemu": ".".join(map(str, version(QEMU)))}
    trials: list[Trial] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Valed.run() as valed,
        guests(valed, Path(folder)) as (a, b),
    ):
        for length in LENGTHS:
            for _ in range(options.trials):
                for nic in range(len(PAIRS)):
                    trials.append(run_trial(a, b, valed, nic, length, options.seconds))
    print(f"\n{where['cpu']}, {where['cpus']} CPUs, QEMU {where['qemu']} under TCG; received kpps,")
    print("and CPU microseconds per delivered frame outside of the vCPU threads; medians of")
    print(f"{options.trials} trials; load before: {where['load_before']:.2f}\n")
    print(f"{'bytes':>6} {'vhost-user':>11} {'stream':>8} {'ratio':>7}", end=" ")
    print(f"{'CPU vhost-user':>14} {'stream':>8} {'ratio':>7}")
    for length in LENGTHS:
        print_row(length, [t for t in trials if t.length == length])
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": where, "trials": [asdict(t) | {"cpu_us": t.cpu_us} for t in trials]}
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nEvery trial: {REPORT.relative_to(host.ROOT)}")


if __name__ == "__main__":
    main()
