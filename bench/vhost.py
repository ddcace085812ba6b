#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""vhost-user to vhost-user on this host: valed, OVS-DPDK, and DPDK's own vhost driver.

One dpdk-testpmd with two virtio-user ports and one forwarding core (io mode) keeps a number of
64-byte frames going round through the switch under test, which has one core of its own; there are
never more of them than a ring holds, so none is lost for want of room:

    testpmd, CPU 1   port 0 ══ vhost-user ══ a ┐
                       ↕ io                    ├ switch, CPU 0
                     port 1 ══ vhost-user ══ b ┘

The switches take turns within one run: valed (one worker; a learning switch, and a link, which is
the closer match to the others), OVS-DPDK (userspace datapath, a flow from each port to the other),
and another testpmd that only moves frames between two ports of DPDK's vhost driver, the leanest
back end there is. Rates are frames received by testpmd, both directions together. The ceiling is
what testpmd itself could do: its clock by the cycles that it spends on a frame, by its own account.

Other load disturbs, and both threads must run for a frame to move: a trial is cut into windows,
and those in which either thread had to wait for its CPU do not count. A trial in which a direction
does not move, or in which testpmd and the switch count differently, ends the run with a message.

Prints a table; every window goes to build/bench/vhost.json.
Huge pages are reserved for the run, and given back. It needs root, and ends what it has started.
"""

import argparse
import contextlib
import json
import os
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import host  # the other benchmark in this folder: where things are, and what machine this is

REPORT = host.BUILD / "bench" / "vhost.json"
TESTPMD = "/usr/bin/dpdk-testpmd"
VSWITCHD = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
PAGES_WANTED = 700  # of 2 MiB
MEMORY = 384  # MiB for each DPDK process
MBUFS = 32768
RING = 1024
BURSTS = 16  # of 32 frames each: those that go round, in each direction
SWITCH_CPU, LOAD_CPU = 0, 1
TIMEOUT = 60
WINDOW = 0.2  # seconds
WAITED = 0.02  # the part of a window for which a thread may wait for its CPU
AGREE = 0.05  # two counters, not read at the same moment
STARTS = 10  # attempts to get frames going in both directions

Paths = tuple[Path, Path]
Counter = Callable[[], int]


@dataclass(frozen=True)
class Switch:
    """One that is running."""

    paths: Paths
    pid: int
    delivered: Counter | None = None  # frames, by its own account


@dataclass(frozen=True)
class Window:
    """A short time of one trial."""

    mpps: float
    waited: float  # part of it for which the one of the two threads that waited longer had no CPU

    @property
    def counts(self) -> bool:
        return self.waited <= WAITED


@dataclass(frozen=True)
class Trial:
    """One switch, once."""

    switch: str
    windows: list[Window]
    ceiling: float  # of testpmd in this trial, Mpps
    busy_before: float


class Testpmd:
    """A dpdk-testpmd that is talked to."""

    def __init__(self, prefix: str, cpu: int, vdevs: list[str], log: Path) -> None:
        other = SWITCH_CPU if cpu == LOAD_CPU else LOAD_CPU
        argv = ["stdbuf", "-oL", TESTPMD, "-l", f"{other},{cpu}", f"--main-lcore={other}"]
        argv += ["--no-pci"]
        argv += ["--in-memory", "--single-file-segments", "-m", str(MEMORY), "--no-telemetry"]
        argv += ["--file-prefix", prefix, "--log-level", "error"]
        argv += [word for vdev in vdevs for word in ("--vdev", vdev)]
        argv += ["--", "-i", "--nb-cores=1", f"--rxd={RING}", f"--txd={RING}", "--no-mlockall"]
        argv += [f"--total-num-mbufs={MBUFS}", "--forward-mode=io"]
        self.log = log
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w")
        )
        self.read_until("testpmd> ", 1)

    def read_until(self, mark: str, times: int) -> str:
        """What it prints until the mark has come so often."""
        stream = self.process.stdout
        assert stream is not None
        text, deadline = "", time.monotonic() + TIMEOUT
        with selectors.DefaultSelector() as ready:
            ready.register(stream, selectors.EVENT_READ)
            while text.count(mark) < times:
                if not ready.select(deadline - time.monotonic()):
                    host.fail("testpmd does not answer", 1)
                piece = os.read(stream.fileno(), 65536).decode()
                if not piece:
                    host.fail(f"testpmd ended: {text}{self.log.read_text()}", 1)
                text += piece
        return text

    def command(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def received(self) -> list[int]:
        """Frames, by each port. The last that is printed of a port is its rate."""
        self.command("show port stats all")
        text = self.read_until("Tx-bps", 2)
        return [int(n) for n in re.findall(r"RX-packets: (\d+) +RX-missed", text)]

    def start(self) -> None:
        """
        Sets frames going. A switch may still be getting its ports ready and lose the first ones, so
        this is done again until they go round in both directions.
        """
        for _ in range(STARTS):
            self.command(f"start tx_first {BURSTS}")
            time.sleep(0.3)
            before, deadline = self.received(), time.monotonic() + 1
            while time.monotonic() < deadline:
                time.sleep(0.05)
                if all(now > then for now, then in zip(self.received(), before, strict=True)):
                    return
            self.command("stop")
        host.fail("frames do not go round in both directions", 1)

    def ceiling(self) -> float:
        """Mpps, by the cycles per frame that it has counted. It forwards no more after this."""
        self.command("stop")
        self.command("show fwd stats all")
        text = self.read_until("MHz Clock", 2)
        cycles, mhz = re.findall(r"CPU cycles/packet=([\d.]+).* at (\d+) MHz", text)[-1]
        return float(mhz) / float(cycles)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.write(b"quit\n")
            self.process.stdin.close()
        end(self.process)


def end(process: "subprocess.Popen[Any]") -> None:
    """Waits for a process that was told to end; kills it where it does not."""
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not path.exists():
        if time.monotonic() > deadline:
            host.fail(f"{path.name} did not appear", 1)
        time.sleep(0.02)


# ------------------------------------------------------------------------------------- switches


class Qmp:
    """As much of QMP as a benchmark needs."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        self.lines = self.sock.makefile()
        self.lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        request = {"execute": command, "arguments": arguments}
        self.sock.sendall(json.dumps(request).encode())
        while "event" in (answer := json.loads(self.lines.readline())):
            pass
        return answer["return"]

    def peer_pid(self) -> int:
        credentials = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], sys.byteorder)


@contextlib.contextmanager
def run_valed(folder: Path, p2p: bool) -> Iterator[Switch]:
    with host.switch(host.Cpus(SWITCH_CPU, LOAD_CPU, LOAD_CPU)) as env:
        rundir = Path(env["VALE_RUNDIR"])
        qmp = Qmp(rundir / "qmp.sock")
        qmp.execute("switch-set", name="vale1", p2p=p2p)
        for name in "ab":
            qmp.execute("port-add", name=f"vale1:{name}", kind="vhost-user")

        def delivered() -> int:
            return sum(int(port["tx"]["frames"]) for port in qmp.execute("query-ports"))

        yield Switch((rundir / "vale1:a", rundir / "vale1:b"), qmp.peer_pid(), delivered)


@contextlib.contextmanager
def run_ovs(folder: Path) -> Iterator[Switch]:
    """In a directory and a network namespace of its own."""
    directories = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")
    env = os.environ | {name: str(folder) for name in directories}
    log = (folder / "log").open("w")

    def run(*argv: str) -> str:
        done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
        if done.returncode:
            host.fail(f"{' '.join(argv)}: {(folder / 'log').read_text()[-2000:]}", 1)
        return done.stdout

    def daemon(*argv: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(argv, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def vsctl(*words: str) -> None:
        run("ovs-vsctl", f"--db=unix:{folder}/db.sock", "--timeout=60", *words)

    run("ovsdb-tool", "create", str(folder / "conf.db"), SCHEMA)
    database = daemon("ovsdb-server", f"--remote=punix:{folder}/db.sock", f"{folder}/conf.db")
    daemons = [database]
    try:
        wait_for(folder / "db.sock")
        vsctl("--no-wait", "init")
        settings = {
            "dpdk-init": "true",
            "pmd-cpu-mask": hex(1 << SWITCH_CPU),
            "dpdk-lcore-mask": hex(1 << LOAD_CPU),
            "dpdk-alloc-mem": str(MEMORY),
            "dpdk-extra": "--no-pci --in-memory --single-file-segments --no-telemetry",
        }
        words = [f'other_config:{key}="{value}"' for key, value in settings.items()]
        vsctl("--no-wait", "set", "Open_vSwitch", ".", *words)
        daemons.append(daemon("unshare", "--net", VSWITCHD, f"unix:{folder}/db.sock", "--pidfile"))
        vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        for name in "ab":
            vsctl("add-port", "br0", name, "--", "set", "Interface", name, "type=dpdkvhostuser")
        management = f"unix:{folder}/br0.mgmt"
        run("ovs-ofctl", "del-flows", management)
        run("ovs-ofctl", "add-flow", management, "in_port=a,actions=output:b")
        run("ovs-ofctl", "add-flow", management, "in_port=b,actions=output:a")

        def delivered() -> int:
            text = run("ovs-appctl", "-t", "ovs-vswitchd-dpdk", "dpif-netdev/pmd-stats-show")
            return sum(int(n) for n in re.findall(r"packets received: (\d+)", text))

        wait_for(folder / "b")
        yield Switch((folder / "a", folder / "b"), daemons[-1].pid, delivered)
    finally:
        for process in reversed(daemons):
            process.terminate()
            end(process)


@contextlib.contextmanager
def run_vhost_pmd(folder: Path) -> Iterator[Switch]:
    paths = folder / "a", folder / "b"
    vdevs = [f"net_vhost{i},iface={path}" for i, path in enumerate(paths)]
    switch = Testpmd("switch", SWITCH_CPU, vdevs, folder / "log")
    try:
        switch.command("start")
        yield Switch(paths, switch.process.pid)
    finally:
        switch.close()


SWITCHES = {
    "valed": partial(run_valed, p2p=False),
    "valed, link": partial(run_valed, p2p=True),
    "OVS-DPDK": run_ovs,
    "DPDK vhost": run_vhost_pmd,
}

# --------------------------------------------------------------------------------------- trials


class Busiest:
    """The thread of a process that uses the most CPU time: the one that forwards."""

    def __init__(self, pid: int, seconds: float) -> None:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        before = [self.times(task)[0] for task in tasks]
        time.sleep(seconds)
        used = [self.times(task)[0] - then for task, then in zip(tasks, before, strict=True)]
        self.task = tasks[used.index(max(used))]

    @staticmethod
    def times(task: Path) -> tuple[int, int]:
        """Nanoseconds that it ran, and waited for a CPU."""
        ran, waited, _ = (task / "schedstat").read_text().split()
        return int(ran), int(waited)

    def waited(self) -> float:
        return self.times(self.task)[1] / 1e9


def measure(load: Testpmd, threads: list[Busiest]) -> Window:
    began, first = time.monotonic(), sum(load.received())
    waited = [-thread.waited() for thread in threads]
    time.sleep(WINDOW)
    waited = [then + thread.waited() for then, thread in zip(waited, threads, strict=True)]
    ended, last = time.monotonic(), sum(load.received())
    return Window((last - first) / (ended - began) / 1e6, max(waited) / (ended - began))


def run_trial(name: str, windows: int) -> Trial:
    busy = host.wait_quiet()
    with (
        tempfile.TemporaryDirectory(prefix="vale-bench-") as folder,
        SWITCHES[name](Path(folder)) as switch,
    ):
        vdevs = [
            f"net_virtio_user{i},path={path},queues=1,queue_size={RING},mac=02:00:00:00:01:0{i}"
            for i, path in enumerate(switch.paths)
        ]
        load = Testpmd("load", LOAD_CPU, vdevs, Path(folder) / "load.log")
        try:
            for i in (0, 1):
                load.command(f"set eth-peer {i} 02:00:00:00:01:0{1 - i}")
            load.command("set record-core-cycles on")
            load.start()
            threads = [Busiest(pid, 0.1) for pid in (load.process.pid, switch.pid)]
            before = (sum(load.received()), switch.delivered() if switch.delivered else 0)
            measured = [measure(load, threads) for _ in range(windows)]
            after = (sum(load.received()), switch.delivered() if switch.delivered else 0)
            ceiling = load.ceiling()
        finally:
            load.close()
    moved, own = (b - a for a, b in zip(before, after, strict=True))
    if switch.delivered and abs(own / moved - 1) > AGREE:
        host.fail(f"{name}: testpmd received {moved} frames, the switch says {own}", 1)
    return Trial(name, measured, ceiling, round(busy, 3))


@contextlib.contextmanager
def huge_pages() -> Iterator[None]:
    """As many as the run needs, for its length."""
    before = int(HUGE_PAGES.read_text())
    wanted = max(before, PAGES_WANTED)
    HUGE_PAGES.write_text(f"{wanted}\n")
    try:
        if int(HUGE_PAGES.read_text()) < wanted:
            host.fail(f"cannot reserve {wanted} huge pages: {HUGE_PAGES}", 4)
        yield
    finally:
        HUGE_PAGES.write_text(f"{before}\n")


def print_table(names: list[str], trials: list[Trial]) -> None:
    rates = {
        name: [w.mpps for t in trials if t.switch == name for w in t.windows if w.counts]
        for name in names
    }
    print(f"{'switch':<12} {'Mpps':>8} {'best':>8} {'windows':>8} {'ceiling':>8} {'valed is':>9}")
    for name, own in rates.items():
        if not own:
            print(f"{name:<12} disturbed all the time")
            continue
        ceiling = statistics.median(t.ceiling for t in trials if t.switch == name)
        best = max(own)
        row = f"{name:<12} {statistics.median(own):>8.2f} {best:>8.2f} {len(own):>8}"
        row += f" {ceiling:>8.1f}"
        if rates.get("valed"):
            row += f" {statistics.median(rates['valed']) / statistics.median(own):>8.2f}x"
        print(row)


def main() -> None:
    parser = argparse.ArgumentParser(description="vhost-user to vhost-user, beside other switches.")
    parser.add_argument("--trials", type=int, default=5, help="of each switch (default 5)")
    parser.add_argument("--windows", type=int, default=10, help=f"of {WINDOW} s each, in a trial")
    parser.add_argument("--only", choices=SWITCHES, action="append", help="measure these alone")
    options = parser.parse_args()
    if os.geteuid() != 0:
        host.fail("reserving huge pages and making a network namespace needs root", 4)
    if not host.VALED.exists() or not Path(TESTPMD).exists() or not Path(VSWITCHD).exists():
        host.fail("something is missing: run 'make bench-peers'", 4)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was reserved is given back
    where = host.machine(host.Cpus(SWITCH_CPU, LOAD_CPU, LOAD_CPU))
    names = options.only or list(SWITCHES)
    trials: list[Trial] = []
    with huge_pages():
        for _ in range(options.trials):
            trials += [run_trial(name, options.windows) for name in names]
    print(f"{where['cpu']}, {where['cpus']} CPUs, Linux {where['kernel']}; testpmd, 64-byte frames")
    print(f"load before: {where['load_before']:.2f}; {options.trials} trials each, medians of the")
    print(f"undisturbed ones of {options.windows} windows of {WINDOW} s\n")
    print_table(names, trials)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": where, "trials": [asdict(t) for t in trials]}
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nEvery window: {REPORT.relative_to(host.ROOT)}")


if __name__ == "__main__":
    main()
