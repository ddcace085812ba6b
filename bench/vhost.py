#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""vhost-user to vhost-user on this host: valed, OVS-DPDK, and DPDK's own vhost driver.

One dpdk-testpmd with two virtio-user ports and one forwarding core (io mode) keeps a number of
64-byte frames going round through the switch under test, which has one core of its own; there are
never more of them than a ring holds, so none is lost for want of room:

    testpmd, CPU 1   port 0 ══ vhost-user ══ a ┐
                       ↕ io                    ├ switch, CPU 0
                     port 1 ══ vhost-user ══ b ┘

The switches take turns within one run: valed (one worker, a learning switch), OVS-DPDK (userspace
datapath, a flow from each port to the other), and another testpmd that only moves frames between
two ports of DPDK's vhost driver: what the load generator itself can do against the leanest back
end there is. Rates are frames received by testpmd, both directions together; the switch's own
counters are in the report, and it says so where they differ.

Prints a table; every trial goes to build/bench/vhost.json.
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
AGREE = 0.05  # two counters, not read at the same moment: when to say that they differ

Paths = tuple[Path, Path]
Counter = Callable[[], int]


@dataclass(frozen=True)
class Trial:
    """One switch, once."""

    switch: str
    mpps: float
    switch_mpps: float | None  # by its own counters
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

    def received(self) -> int:
        """Frames, by both ports. The last that is printed of a port is its rate."""
        self.command("show port stats all")
        text = self.read_until("Tx-bps", 2)
        return sum(int(n) for n in re.findall(r"RX-packets: (\d+)", text))

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


@contextlib.contextmanager
def run_valed(folder: Path) -> Iterator[tuple[Paths, Counter]]:
    with host.switch(host.Cpus(SWITCH_CPU, LOAD_CPU, LOAD_CPU)) as env:
        rundir = Path(env["VALE_RUNDIR"])
        qmp = Qmp(rundir / "qmp.sock")
        for name in "ab":
            qmp.execute("port-add", name=f"vale1:{name}", kind="vhost-user")

        def delivered() -> int:
            return sum(int(port["tx"]["frames"]) for port in qmp.execute("query-ports"))

        yield (rundir / "vale1:a", rundir / "vale1:b"), delivered


@contextlib.contextmanager
def run_ovs(folder: Path) -> Iterator[tuple[Paths, Counter]]:
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
        yield (folder / "a", folder / "b"), delivered
    finally:
        for process in reversed(daemons):
            process.terminate()
            end(process)


@contextlib.contextmanager
def run_vhost_pmd(folder: Path) -> Iterator[tuple[Paths, None]]:
    paths = folder / "a", folder / "b"
    vdevs = [f"net_vhost{i},iface={path}" for i, path in enumerate(paths)]
    switch = Testpmd("switch", SWITCH_CPU, vdevs, folder / "log")
    try:
        switch.command("start")
        yield paths, None
    finally:
        switch.close()


SWITCHES = {"valed": run_valed, "OVS-DPDK": run_ovs, "DPDK vhost": run_vhost_pmd}

# --------------------------------------------------------------------------------------- trials


def run_trial(name: str, seconds: float) -> Trial:
    busy = host.wait_quiet()
    with (
        tempfile.TemporaryDirectory(prefix="vale-bench-") as folder,
        SWITCHES[name](Path(folder)) as (paths, delivered),
    ):
        vdevs = [
            f"net_virtio_user{i},path={path},queues=1,queue_size={RING},mac=02:00:00:00:01:0{i}"
            for i, path in enumerate(paths)
        ]
        load = Testpmd("load", LOAD_CPU, vdevs, Path(folder) / "load.log")
        try:
            for i in (0, 1):
                load.command(f"set eth-peer {i} 02:00:00:00:01:0{1 - i}")
            load.command(f"start tx_first {BURSTS}")
            time.sleep(0.5)
            began, first = time.monotonic(), load.received()
            switch_first = delivered() if delivered else 0
            switch_began = time.monotonic()
            time.sleep(seconds)
            ended, last = time.monotonic(), load.received()
            switch_last = delivered() if delivered else 0
            switch_ended = time.monotonic()
        finally:
            load.close()
    rate = (last - first) / (ended - began) / 1e6
    own = (switch_last - switch_first) / (switch_ended - switch_began) / 1e6
    if rate == 0:
        host.fail(f"{name}: testpmd received nothing", 1)
    if delivered and abs(own / rate - 1) > AGREE:
        print(f"{name}: testpmd received {rate:.2f} Mpps, the switch says {own:.2f}", flush=True)
    return Trial(name, rate, own if delivered else None, round(busy, 3))


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


def main() -> None:
    parser = argparse.ArgumentParser(description="vhost-user to vhost-user, beside other switches.")
    parser.add_argument("--trials", type=int, default=5, help="of each switch (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each trial (default 2)")
    parser.add_argument("--only", choices=SWITCHES, help="measure this one alone")
    options = parser.parse_args()
    if os.geteuid() != 0:
        host.fail("reserving huge pages and making a network namespace needs root", 4)
    if not host.VALED.exists() or not Path(TESTPMD).exists() or not Path(VSWITCHD).exists():
        host.fail("something is missing: run 'make bench-peers'", 4)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was reserved is given back
    where = host.machine(host.Cpus(SWITCH_CPU, LOAD_CPU, LOAD_CPU))
    names = [options.only] if options.only else list(SWITCHES)
    trials: list[Trial] = []
    with huge_pages():
        for _ in range(options.trials):
            trials += [run_trial(name, options.seconds) for name in names]
    print(f"{where['cpu']}, {where['cpus']} CPUs, Linux {where['kernel']}; testpmd, 64-byte frames")
    print(f"load before: {where['load_before']:.2f}; {options.trials} trials each, medians\n")
    medians = {n: statistics.median(t.mpps for t in trials if t.switch == n) for n in names}
    print(f"{'switch':<12} {'Mpps':>8} {'least':>8} {'most':>8} {'valed is':>10}")
    for name, median in medians.items():
        rates = [t.mpps for t in trials if t.switch == name]
        ratio = f"{medians['valed'] / median:9.2f}x" if "valed" in medians else ""
        print(f"{name:<12} {median:>8.2f} {min(rates):>8.2f} {max(rates):>8.2f} {ratio:>10}")
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": where, "trials": [asdict(t) for t in trials]}
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nEvery trial: {REPORT.relative_to(host.ROOT)}")


if __name__ == "__main__":
    main()
