#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Guest to guest under TCG: two ports of valed against QEMU's stream netdevs.

Two micro guests, each with two NICs of one model. --netdev vhost-user: in unmodified QEMU;
netmap: in the QEMU with our backend.

    guest a  vale0 ══ the netdev ══ valed ══ the netdev ══ vale0  guest b
    guest a  vale1 ══ QEMU's stream netdev, back to back ══ vale1  guest b

The pairs take turns. A trial sends UDP datagrams as fast as guest a can, and counts those that a
program in guest b receives, and the CPU time of the host meanwhile: the vCPU of each guest, the
other threads of its QEMU, and valed. Prints two tables; every trial goes to
build/bench/guests-NETDEV-MODEL.json.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import host  # the other benchmark in this folder: where things are, and what machine this is

sys.path.insert(0, str(host.ROOT / "tests"))
from lib.guest import MICRO, QEMU, VALE_QEMU, Guest, netmap, stream, version, vhost_user
from lib.valed import Valed

QEMUS = {"vhost-user": QEMU, "netmap": VALE_QEMU}
MODELS = ("virtio-net-pci", "e1000")
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
    cpu_seconds: dict[str, float]  # by thread: "vcpu a", "qemu a" (all others), ..., "valed"

    def cpu_us(self, *threads: str) -> float:
        """Microseconds per delivered frame."""
        return sum(self.cpu_seconds[name] for name in threads) / self.received * 1e6

    @property
    def outside_us(self) -> float:
        """The same, of all that is not guest code."""
        return self.cpu_us("qemu a", "qemu b", "valed")


def cpu_seconds(pid: int) -> tuple[float, float]:
    """CPU time of a process: its vCPU threads ("CPU 0/TCG"), and the others."""
    total = [0, 0]
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        fields = rest.split()
        total[not name.startswith("CPU ")] += int(fields[11]) + int(fields[12])
    return total[0] / TICK, total[1] / TICK


def cpu_by_thread(a: Guest, b: Guest, valed: Valed) -> dict[str, float]:
    vcpu_a, qemu_a = cpu_seconds(a.process.pid)
    vcpu_b, qemu_b = cpu_seconds(b.process.pid)
    by_thread = {"vcpu a": vcpu_a, "qemu a": qemu_a, "vcpu b": vcpu_b, "qemu b": qemu_b}
    return by_thread | {"valed": cpu_seconds(valed.pid)[1]}


@dataclass(frozen=True)
class Bench:
    """What is measured: a netdev with a NIC model, beside the stream netdev with the same."""

    netdev: str
    model: str
    trials: int
    seconds: float

    @property
    def pairs(self) -> tuple[str, str]:
        """By number of the NIC."""
        return self.netdev, "stream"

    @property
    def qemu(self) -> Path:
        return QEMUS[self.netdev]

    def port(self, valed: Valed, name: str) -> list[str]:
        """The netdev on a port of that name."""
        if self.netdev == "netmap":
            return netmap(valed.rundir, f"vale1:{name}")
        valed.qmp().execute("port-add", name=f"vale1:{name}", kind="vhost-user")
        return vhost_user(valed.rundir / f"vale1:{name}")

    def run_trial(self, a: Guest, b: Guest, valed: Valed, nic: int, length: int) -> Trial:
        receiver = b.ssh.exec_command(f"vale-udp-recv --json --max-seconds {self.seconds + 30}")
        if receiver[1].readline() != "ready\n":
            host.fail("the receiver did not start", 1)
        before = cpu_by_thread(a, b, valed)
        options = f"--frame {length} --seconds {self.seconds} --json"
        sent = json.loads(a.run(f"vale-udp-send --to {b.address(nic)} {options}"))
        got = json.loads(receiver[1].read())
        receiver[1].channel.recv_exit_status()
        used = {k: round(v - before[k], 3) for k, v in cpu_by_thread(a, b, valed).items()}
        return Trial(self.pairs[nic], length, sent["sent"], got["received"], got["pps"], used)

    @contextmanager
    def guests(self, valed: Valed, folder: Path) -> Iterator[tuple[Guest, Guest]]:
        made: list[Guest] = []
        try:
            for number, name in enumerate("ab", 1):
                cable = stream(folder / "cable", server=name == "a")
                netdevs = [self.port(valed, name), cable]
                made.append(
                    Guest(folder, name, number, netdevs, qemu=self.qemu, model=self.model)
                )
                made[0].wait_ready()
            for guest, peer in ((made[0], made[1]), (made[1], made[0])):
                guest.connect()
                for nic in range(len(self.pairs)):
                    to = f"{peer.address(nic)} lladdr {peer.mac(nic)} dev vale{nic}"
                    guest.run(f"ip neigh add {to}")
            yield made[0], made[1]
        finally:
            for guest in made:
                guest.close()

    def run(self) -> list[Trial]:
        """All trials, the pairs by turns."""
        with (
            tempfile.TemporaryDirectory() as folder,
            Valed.run() as valed,
            self.guests(valed, Path(folder)) as (a, b),
        ):
            return [
                self.run_trial(a, b, valed, nic, length)
                for length in LENGTHS
                for _ in range(self.trials)
                for nic in range(len(self.pairs))
            ]


def print_tables(bench: Bench, trials: list[Trial]) -> None:
    def median(pair: str, length: int, value: Callable[[Trial], float]) -> float:
        return statistics.median(value(t) for t in trials if (t.pair, t.length) == (pair, length))

    print(f"{'bytes':>6} {bench.netdev:>11} {'stream':>8} {'ratio':>7}", end=" ")
    print(f"{'CPU ' + bench.netdev:>14} {'stream':>8} {'ratio':>7}")
    for length in LENGTHS:
        pps = [median(pair, length, lambda t: t.pps) for pair in bench.pairs]
        cpu = [median(pair, length, lambda t: t.outside_us) for pair in bench.pairs]
        print(
            f"{length:>6} {pps[0] / 1e3:>11.1f} {pps[1] / 1e3:>8.1f} {pps[0] / pps[1]:>7.2f}"
            f" {cpu[0]:>14.2f} {cpu[1]:>8.2f} {cpu[0] / cpu[1]:>7.2f}"
        )
    names = list(trials[0].cpu_seconds)
    print(f"\n{'bytes':>6} {'pair':<11}" + "".join(f"{name:>8}" for name in names))
    for length in LENGTHS:
        for pair in bench.pairs:
            shares = [median(pair, length, lambda t, n=name: t.cpu_us(n)) for name in names]
            print(f"{length:>6} {pair:<11}" + "".join(f"{share:>8.2f}" for share in shares))


def main() -> None:
    parser = argparse.ArgumentParser(description="Guest to guest: valed beside stream netdevs.")
    parser.add_argument("--netdev", choices=list(QEMUS), default="vhost-user")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help="of all NICs")
    parser.add_argument("--trials", type=int, default=5, help="of each pair (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each trial (default 2)")
    bench = Bench(**vars(parser.parse_args()))
    if bench.netdev == "vhost-user" and bench.model != MODELS[0]:
        parser.error("a vhost-user netdev takes only virtio-net-pci")
    for path, how in ((host.VALED, "make tools"), (MICRO / "manifest.json", "make image")):
        if not path.exists():
            host.fail(f"no {path}: run '{how}'", 4)
    if not bench.qemu.exists():
        host.fail(f"no {bench.qemu}: run 'make qemu', or install qemu-system-x86", 4)
    where = host.machine(host.choose_cpus()) | {"qemu": ".".join(map(str, version(bench.qemu)))}
    trials = bench.run()
    print(f"\n{where['cpu']}, {where['cpus']} CPUs, QEMU {where['qemu']} under TCG, {bench.model};")
    print("received kpps, and CPU microseconds per delivered frame: outside of the vCPU threads,")
    load = where["load_before"]
    print(f"and by thread; medians of {bench.trials} trials; load before: {load:.2f}\n")
    print_tables(bench, trials)
    path = host.BUILD / "bench" / f"guests-{bench.netdev}-{bench.model}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": where, "trials": [asdict(t) for t in trials]}) + "\n")
    print(f"\nEvery trial: {path.relative_to(host.ROOT)}")


if __name__ == "__main__":
    main()
