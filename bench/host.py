#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Throughput of the switch on this host: vale-pktgen to vale-pktgen through a valed of its own.

Each trial measures the switch and, right after it and on the same CPU, a bare memcpy loop
(bench/memcpy.c) in three forms, and divides by them:

    loop      over buffers as valed's ports have them, 2112 bytes each
    2 KiB     over buffers of netmap's own size, whose beginnings share few sets of the cache
    shared    over ours, each frame written and read by the sender's CPU, as a switch's frames are

valed's worker has the first CPU of those allowed, the sender the last,
the receiver one between where there is one. Other load disturbs: a trial waits for a quiet
machine, though not for ever, and says how busy it was before.

Prints a table; writes every trial with a description of the machine to build/bench/host.json.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
VALED = Path(os.environ.get("VALED", BUILD / "bin" / "valed"))
PKTGEN = BUILD / "bin" / "vale-pktgen"
MEMCPY = BUILD / "bench" / "memcpy"
REPORT = BUILD / "bench" / "host.json"
LENGTHS = (60, 1514)
BUFFER = 2112  # bytes, as valed/region.c makes them
NETMAP_BUFFER = 2048
TIMEOUT = 60
QUIET = 0.1  # at most so much of all CPUs in use before a trial
PATIENCE = 15.0  # seconds to wait for that


@dataclass(frozen=True)
class Cpus:
    """Who runs where."""

    valed: int
    tx: int
    rx: int


@dataclass(frozen=True)
class Trial:
    """One run at one frame length (without FCS)."""

    length: int
    sent: int
    received: int
    pps: float
    bps: float
    loop_pps: float
    netmap_pps: float  # the loop over buffers of netmap's size
    shared_pps: float
    busy_before: float

    def ratios(self) -> dict[str, float]:
        """The switch's frames per second, as a part of those of each loop."""
        return {
            "ratio": self.pps / self.loop_pps,
            "ratio_netmap": self.pps / self.netmap_pps,
            "ratio_shared": self.pps / self.shared_pps,
        }


def choose_cpus() -> Cpus:
    cpus = sorted(os.sched_getaffinity(0))
    return Cpus(valed=cpus[0], tx=cpus[-1], rx=cpus[len(cpus) // 2])


def fail(message: str, code: int) -> None:
    print(f"bench: {message}", file=sys.stderr)
    raise SystemExit(code)


def compile_memcpy() -> None:
    MEMCPY.parent.mkdir(parents=True, exist_ok=True)
    source = ROOT / "bench" / "memcpy.c"
    subprocess.run(["gcc", "-O2", "-pthread", "-o", str(MEMCPY), str(source)], check=True)


@contextlib.contextmanager
def switch(cpus: Cpus) -> Iterator[dict[str, str]]:
    """A valed of our own; yields the environment of its clients."""
    with tempfile.TemporaryDirectory(prefix="vale-bench-") as rundir:
        ready, ready_w = os.pipe()
        options = f"--rundir {rundir} --workers 1 --cpus {cpus.valed} --ready-fd {ready_w}"
        valed = subprocess.Popen([VALED, *options.split()], pass_fds=[ready_w])
        os.close(ready_w)
        try:
            if not os.read(ready, 1):
                fail("valed did not start", 1)
            env = {k: v for k, v in os.environ.items() if k != "VALE_DEV"}
            yield env | {"VALE_RUNDIR": rundir}
        finally:
            os.close(ready)
            valed.terminate()
            valed.wait(TIMEOUT)


def start(cpu: int, argv: list[str], env: dict[str, str]) -> "subprocess.Popen[str]":
    command = ["taskset", "-c", str(cpu), *argv]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, err = process.communicate(timeout=TIMEOUT)
    if process.returncode != 0:
        fail(err.strip() or f"a program ended with {process.returncode}", 1)
    return dict(json.loads(out))


def cpu_times() -> tuple[int, int]:
    """Jiffies of all CPUs: in all, and idle."""
    times = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(times), times[3] + times[4]


def wait_quiet() -> float:
    """Waits for a quiet machine; returns what part of its CPUs was busy in the end."""
    deadline = time.monotonic() + PATIENCE
    while True:
        total, idle = cpu_times()
        time.sleep(0.3)
        total_after, idle_after = cpu_times()
        busy = 1 - (idle_after - idle) / max(total_after - total, 1)
        if busy <= QUIET or time.monotonic() >= deadline:
            return busy


def run_trial(length: int, seconds: float, cpus: Cpus, env: dict[str, str]) -> Trial:
    busy = wait_quiet()
    pktgen = [str(PKTGEN), "--json", "-f"]
    rx = start(cpus.rx, [*pktgen, "rx", "-i", "vale1:b", "--wait-idle", "0.2"], env)
    assert rx.stderr is not None
    if rx.stderr.readline() != "ready\n":
        fail("the receiver did not start", 1)
    tx_options = ["-i", "vale1:a", "-l", str(length), "--seconds", str(seconds)]
    sent = finish(start(cpus.tx, [*pktgen, "tx", *tx_options], env))
    received = finish(rx)

    def bare(size: int, *shared_with: int) -> float:
        words = [length, seconds / 2, size, *shared_with]
        argv = [str(MEMCPY), *map(str, words)]
        return float(finish(start(cpus.valed, argv, env))["pps"])

    return Trial(
        length=length,
        sent=sent["packets"],
        received=received["packets"],
        pps=received["pps"],
        bps=received["bps"],
        loop_pps=bare(BUFFER),
        netmap_pps=bare(NETMAP_BUFFER),
        shared_pps=bare(BUFFER, cpus.tx),
        busy_before=round(busy, 3),
    )


def machine(cpus: Cpus) -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text()
    models = [
        line.split(":", 1)[1].strip()
        for line in info.splitlines()
        if line.startswith(("model name", "Processor"))
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": os.cpu_count(),
        "virtual": "hypervisor" in info,
        "kernel": platform.release(),
        "placement": asdict(cpus),
        "load_before": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def print_row(trials: list[Trial]) -> None:
    def median(name: str) -> float:
        rows = [asdict(t) | t.ratios() for t in trials]
        return float(statistics.median(row[name] for row in rows))

    lost = 1 - sum(t.received for t in trials) / sum(t.sent for t in trials)
    best = max(t.pps for t in trials)
    print(
        f"{trials[0].length:>6} {median('pps') / 1e6:>10.2f} {best / 1e6:>10.2f}"
        f" {median('bps') / 1e9:>8.1f} {lost:>7.2%}"
        f" {median('loop_pps') / 1e6:>7.1f} {median('ratio'):>6.2f}"
        f" {median('netmap_pps') / 1e6:>7.1f} {median('ratio_netmap'):>6.2f}"
        f" {median('shared_pps') / 1e6:>7.1f} {median('ratio_shared'):>6.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput of the switch on this host.")
    parser.add_argument("--trials", type=int, default=7, help="trials per length (default 7)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each trial (default 1)")
    options = parser.parse_args()
    if not (VALED.exists() and PKTGEN.exists()):
        fail("nothing is built: run 'make tools'", 4)
    compile_memcpy()
    cpus = choose_cpus()
    where = machine(cpus)
    print(f"{where['cpu']}, {where['cpus']} CPUs, Linux {where['kernel']}; valed with one worker")
    print(f"load before: {where['load_before']:.2f}; {options.trials} trials per length, medians")
    print(
        f"\n{'bytes':>6} {'Mpps':>10} {'best Mpps':>10} {'Gbit/s':>8} {'lost':>7}"
        f" {'loop':>7} {'ratio':>6} {'2 KiB':>7} {'ratio':>6} {'shared':>7} {'ratio':>6}"
    )
    trials: list[Trial] = []
    with switch(cpus) as env:
        for length in LENGTHS:
            row = [run_trial(length, options.seconds, cpus, env) for _ in range(options.trials)]
            print_row(row)
            trials += row
    report = {"machine": where, "trials": [asdict(t) | t.ratios() for t in trials]}
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nEvery trial: {REPORT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
