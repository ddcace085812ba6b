#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""What the switch costs when it grows: more workers, ports, switches, monitors; and nobody there.

Frames come from null sources and end in null sinks, so that only the switch is measured; or from
programs of the test's own that sleep. Times of a worker are its processor time (schedstat), per
frame: other load disturbs them less than it disturbs rates. Ratios are of trials that alternate.

Prints a table; writes build/bench/scale.json.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import host

sys.path.insert(0, str(host.ROOT / "tests"))
from lib.native import MONITOR_RX, station
from lib.valed import Valed, eventually

ROUNDTRIP = host.BUILD / "bench" / "roundtrip"
REPORT = host.BUILD / "bench" / "scale.json"
FRAME = 60


@contextmanager
def switch(*options: str) -> Iterator[Valed]:
    """A valed of our own, without the commands that the tests' library prints."""
    with redirect_stdout(io.StringIO()), Valed.run(*options) as valed:
        yield valed


def pair(valed: Valed, switch: str, n: int) -> str:
    """A source and a sink that it is known to reach; the source's name."""
    qmp = valed.qmp()
    qmp.execute("port-add", name=f"{switch}:k{n}", kind="null")
    qmp.execute("fdb-add", port=f"{switch}:k{n}", mac=station(2 * n + 2).hex(":"))
    source = {
        "frames": 0,
        "length": FRAME,
        "destination": station(2 * n + 2).hex(":"),
        "source": station(2 * n + 1).hex(":"),
    }
    qmp.execute("port-add", name=f"{switch}:s{n}", kind="null", source=source)
    return f"{switch}:s{n}"


def frames_of(valed: Valed, sources: list[str]) -> int:
    ports = valed.qmp().ports()
    return sum(int(ports[name]["rx"]["frames"]) for name in sources)


def worker_ns(valed: Valed) -> int:
    """Processor time of all threads but the first, in nanoseconds."""
    tasks = [t for t in Path(f"/proc/{valed.pid}/task").iterdir() if t.name != str(valed.pid)]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def cost(valed: Valed, sources: list[str], seconds: float) -> float:
    """Nanoseconds of the workers per frame."""
    frames, ns = frames_of(valed, sources), worker_ns(valed)
    time.sleep(seconds)
    frames_after, ns_after = frames_of(valed, sources), worker_ns(valed)
    return (ns_after - ns) / (frames_after - frames)


def rate(valed: Valed, sources: list[str], seconds: float) -> float:
    """Frames per second."""
    frames, begin = frames_of(valed, sources), time.monotonic()
    time.sleep(seconds)
    return (frames_of(valed, sources) - frames) / (time.monotonic() - begin)


# ---------------------------------------------------------------------------------------- measures

Measure = Callable[[float], float]


def with_workers(workers: int) -> Measure:
    """Two sources with as many workers: frames per second."""

    def measure(seconds: float) -> float:
        cpus = sorted(os.sched_getaffinity(0))[:workers]
        cpu_list = ",".join(map(str, cpus))
        with switch("--workers", str(workers), "--cpus", cpu_list) as valed:
            return rate(valed, [pair(valed, "vale1", 0), pair(valed, "vale1", 1)], seconds)

    return measure


def with_idle_ports(idle: int) -> Measure:
    """One pair that is busy, beside ports that are open and silent: ns per frame."""

    def measure(seconds: float) -> float:
        with switch() as valed:
            for i in range(idle):
                valed.open(f"vale1:p{i}", tx_slots=64, rx_slots=64)
            return cost(valed, [pair(valed, "vale1", 0)], seconds)

    return measure


def with_switches(switches: int) -> Measure:
    """One busy pair on each of so many switches: ns per frame."""

    def measure(seconds: float) -> float:
        with switch() as valed:
            return cost(valed, [pair(valed, f"vale{i}", i) for i in range(switches)], seconds)

    return measure


def with_full_monitor(watch: bool) -> Measure:
    """A sink that is watched, or not, by one who does not read: ns per frame."""

    def measure(seconds: float) -> float:
        with switch() as valed:
            source = pair(valed, "vale1", 0)
            if watch:
                full = valed.open("vale1:k0", flags=MONITOR_RX).rx[0]
                eventually("a full monitor", lambda: full.room == full.num_slots - 1)
            return cost(valed, [source], seconds)

    return measure


def with_read_monitor(seconds: float) -> float:
    """The same, watched by vale-pktgen, which reads: ns per frame."""
    with switch() as valed:
        source = pair(valed, "vale1", 0)
        env = {k: v for k, v in os.environ.items() if k != "VALE_DEV"}
        argv = [str(host.PKTGEN), "-i", "vale1:k0/r", "-f", "rx", "--json"]
        reader = host.start(host.choose_cpus().rx, argv, env | {"VALE_RUNDIR": str(valed.rundir)})
        try:
            assert reader.stderr is not None
            if reader.stderr.readline() != "ready\n":
                host.fail("the monitor did not start", 1)
            return cost(valed, [source], seconds)
        finally:
            reader.terminate()
            reader.communicate(timeout=host.TIMEOUT)


@contextmanager
def crowd(ports: int, switches: int) -> Iterator[Valed]:
    with switch() as valed:
        for i in range(ports):
            valed.open(f"vale{i % switches}:p{i}")
        yield valed


def idle(seconds: float) -> dict[str, float]:
    """Wake-ups and clock ticks of 254 ports on 16 switches that nobody uses."""
    with crowd(254, 16) as valed:
        time.sleep(0.5)
        wakeups, ticks = sum(valed.wakeups().values()), valed.cpu_ticks()
        time.sleep(seconds)
        return {
            "seconds": seconds,
            "wakeups": sum(valed.wakeups().values()) - wakeups,
            "ticks": valed.cpu_ticks() - ticks,
        }


def memory() -> dict[str, float]:
    """KiB: of valed with one switch and two ports, and what an idle native port adds."""
    with crowd(2, 1) as valed:
        own = valed.status("RssAnon") + valed.status("RssFile")
        before = valed.status("VmRSS")
        for i in range(100):
            valed.open(f"vale0:q{i}")
        return {"own_kib": own, "port_kib": (valed.status("VmRSS") - before) / 100}


def roundtrip(how: str, seconds: float, env: dict[str, str]) -> float:
    """Median of a round trip, in microseconds."""
    command = [str(ROUNDTRIP), how, str(seconds)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        host.fail(done.stderr.strip(), 1)
    return float(json.loads(done.stdout)["median_us"])


# --------------------------------------------------------------------------------------- the table


def row(what: str, value: str, goal: str, met: bool) -> None:
    print(f"{what:<58} {value:>22}   {goal:<14} {'' if met else 'missed'}", flush=True)


def alternate(a: Measure, b: Measure, trials: int, seconds: float) -> dict[str, Any]:
    """Trials of both by turns; the ratio b / a of medians."""
    found: dict[str, list[float]] = {"a": [], "b": []}
    for _ in range(trials):
        host.wait_quiet()
        found["a"].append(a(seconds))
        host.wait_quiet()
        found["b"].append(b(seconds))
    medians = {name: statistics.median(values) for name, values in found.items()}
    return found | {"ratio": medians["b"] / medians["a"], "medians": medians}


def compile_roundtrip() -> None:
    library = host.BUILD / "lib" / "libvale.a"
    flags = ["-std=gnu17", "-O2", "-D_GNU_SOURCE", "-Iinclude", "-Ilibvale"]
    command = ["gcc", *flags, "-o", ROUNDTRIP, "bench/roundtrip.c", library]
    subprocess.run(command, cwd=host.ROOT, check=True)


def compare_roundtrips(trials: int, seconds: float) -> dict[str, Any]:
    with switch() as valed:
        env = {k: v for k, v in os.environ.items() if k != "VALE_DEV"}
        env |= {"VALE_RUNDIR": str(valed.rundir)}
        return alternate(
            lambda s: roundtrip("eventfd", s, env),
            lambda s: roundtrip("vale", s, env),
            trials,
            seconds,
        )


def run(trials: int, seconds: float) -> dict[str, Any]:
    report: dict[str, Any] = {}
    r = report["workers"] = alternate(with_workers(1), with_workers(2), trials, seconds)
    value = f"{r['ratio']:.2f} of {r['medians']['a'] / 1e6:.0f} Mpps"
    row("two workers against one, two null sources", value, "at least 1.7", r["ratio"] >= 1.7)
    r = report["idle_ports"] = alternate(
        with_idle_ports(0), with_idle_ports(252), trials, seconds
    )
    value = f"{r['ratio']:.2f} of {r['medians']['a']:.1f} ns"
    row("a frame of 2 ports, with 252 idle ones", value, "at most 1.2", r["ratio"] <= 1.2)
    r = report["switches"] = alternate(with_switches(1), with_switches(16), trials, seconds)
    value = f"{r['ratio']:.2f} of {r['medians']['a']:.1f} ns"
    row("a frame of 16 busy switches, against 1", value, "at most 1.2", r["ratio"] <= 1.2)
    unwatched = with_full_monitor(False)
    r = report["monitor_full"] = alternate(unwatched, with_full_monitor(True), trials, seconds)
    value = f"{r['ratio']:.2f} of {r['medians']['a']:.1f} ns"
    row("a frame of a port whose monitor is full", value, "at most 1.1", r["ratio"] <= 1.1)
    r = report["monitor_read"] = alternate(unwatched, with_read_monitor, trials, seconds)
    value = f"{r['ratio']:.2f} of {r['medians']['a']:.1f} ns"
    row("a frame of a port whose monitor is read", value, "", True)
    i = report["idle"] = idle(5)
    value = f"{i['wakeups']:.0f} wake-ups, {i['ticks']:.0f} ticks"
    row("254 idle ports on 16 switches, 5 seconds", value, "none", not i["wakeups"] + i["ticks"])
    m = report["memory"] = memory()
    value = f"{m['own_kib'] / 1024:.1f} MiB"
    row("RssAnon + RssFile, 1 switch, 2 ports", value, "at most 8", m["own_kib"] <= 8 * 1024)
    row("an idle native port touches", f"{m['port_kib']:.0f} KiB", "under 64", m["port_kib"] < 64)
    r = report["roundtrip"] = compare_roundtrips(trials, seconds)
    value = f"{r['ratio']:.2f} of {r['medians']['a']:.1f} us"
    row("native round trip, against eventfds alone", value, "at most 1.3", r["ratio"] <= 1.3)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="What the switch costs when it grows.")
    parser.add_argument("--trials", type=int, default=5, help="of each side (default 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each trial (default 1)")
    options = parser.parse_args()
    if not host.VALED.exists():
        host.fail("nothing is built: run 'make tools'", 4)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    compile_roundtrip()
    report = run(options.trials, options.seconds)
    REPORT.write_text(
        json.dumps({"machine": host.machine(host.choose_cpus())} | report, indent=2) + "\n"
    )
    print(f"\nEvery trial: {REPORT.relative_to(host.ROOT)}")


if __name__ == "__main__":
    main()
