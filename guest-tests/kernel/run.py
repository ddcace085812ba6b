#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
# ruff: noqa: T201 -- a program that prints its report
"""Try everything of ours that speaks to /dev/netmap on the real VALE kernel module.

    run.py [--build DIR] [--bench] [NETMAP_KO]

The module that the user built is booted in the micro guest, because a guest may crash:

    host    run.py --- overlay: module, scenario.sh, our programs, our QEMU
              |  serial console
    guest   scenario.sh --- netmap-abi-test                TAP
                        --- vale-pktgen, netmap-window     one JSON object per program
                        --- the same through qemu -machine none, a hub between two switches

With --bench it measures instead: two netmap netdevs of one QEMU on a hub, paced so that nothing is
lost (bench/hub_ndr.sh), with QEMU's own backend and with ours.

The guest only runs programs and reports; what is right is decided here. Lines of the guest:

    ok N - NAME, not ok N - NAME, 1..N, # comment      TAP of the ABI test
    @NAME EXIT_CODE {JSON}                             a program that has ended
    @done                                              nothing was left out

Exit codes: 0 all passed, or no module was given (said in so many words); 1 the guest did not get
to the end; 2 usage; 3 a test failed; 4 something is missing or does not fit; 5 the guest hung.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OVERLAY = ROOT / "images" / "overlay.sh"
GUEST_DIR = "/usr/libexec/vale-kernel"

TOTAL_SECONDS = 1800
SILENT_SECONDS = 180
CONSOLE_TAIL = 30

EXIT_OK, EXIT_FAILURE, EXIT_TEST, EXIT_UNFIT, EXIT_TIMEOUT, EXIT_INTERRUPT = 0, 1, 3, 4, 5, 130

# The runs of scenario.sh: frames and bytes of a frame. Those of EXACT_RUNS fit a ring and those of
# WINDOW_RUNS never have more under way than one holds, so every frame arrives however slow the
# machine is. What is sent at a rate is reported: VALE drops what a receiver is too slow for.
EXACT_RUNS = {"plain": (1000, 60), "device": (1000, 60), "multislot": (200, 5000),
              "hub_plain": (1000, 60), "hub_multislot": (200, 5000)}
WINDOW_RUNS = {"switch60": (100_000, 60), "switch1514": (50_000, 1514),
               "switch5000": (20_000, 5000), "hub60": (100_000, 60), "hub1514": (50_000, 1514),
               "hub5000": (20_000, 5000)}
RATE_RUNS = {"paced60": 60, "rate60": 60, "rate1514": 1514,
             "hubpaced60": 60, "hubrate60": 60, "hubrate1514": 1514}
REFUSED = ("bad_name_qemu", "busy_tool", "busy_qemu")


class TestKernelError(Exception):
    """The run cannot go on: one line for the user, and the exit code."""

    def __init__(self, message: str, code: int, console: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.console = console


# ------------------------------------------------------------------------------- what is given


@dataclass(frozen=True)
class Parts:
    """The files that take part, all present."""

    module: Path
    qemu: Path
    pktgen: Path
    abi_test: Path
    window: Path
    vnet_test: Path
    kernel: Path
    initrd: Path
    append: str


def module_release(path: Path) -> str:
    """Give the kernel release that a module was built for."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TestKernelError(f"{path}: {error.strerror}: give the netmap.ko that you built",
                              EXIT_UNFIT) from error
    found = re.search(rb"\0vermagic=([^ \0]+)", data)
    if not data.startswith(b"\x7fELF") or not found:
        raise TestKernelError(f"{path} is not a kernel module: give the netmap.ko that netmap's "
                              "own build made, not compressed", EXIT_UNFIT)
    return found[1].decode()


def find_parts(build: Path, module: Path) -> Parts:
    """Find all that takes part; what is missing or does not fit is an error."""
    micro = build / "images" / "micro"
    try:
        manifest = json.loads((micro / "manifest.json").read_text())
    except OSError as error:
        raise TestKernelError(f"{error.filename} is missing: run 'make'", EXIT_UNFIT) from error
    guest = build / "guest"
    parts = Parts(module, build / "bin/qemu-system-x86_64-vale", build / "bin/vale-pktgen",
                  guest / "netmap-abi-test", guest / "netmap-window", guest / "qemu-vnet-test",
                  micro / manifest["kernel"], micro / manifest["initrd"], manifest["append"])
    for path in (parts.qemu, parts.pktgen, parts.abi_test, parts.window,
                 parts.vnet_test, parts.kernel,
                 parts.initrd):
        if not path.is_file():
            raise TestKernelError(f"{path} is missing: run 'make'", EXIT_UNFIT)
    release = module_release(module)
    if release != manifest["kernel_release"]:
        raise TestKernelError(f"{module} is for kernel {release}, the micro guest runs "
                              f"{manifest['kernel_release']}: build netmap for that one "
                              "(docs/testing-kernel.md)", EXIT_UNFIT)
    return parts


def say_not_tested(build: Path) -> None:
    """Say loudly what stays untested without a module."""
    try:
        manifest = json.loads((build / "images/micro/manifest.json").read_text())
        kernel = f"kernel {manifest['kernel_release']}"
    except OSError:
        kernel = "micro's kernel"
    print("test-kernel: NOT TESTED, no NETMAP_KO given: the netmap ABI, libvale, vale-pktgen and "
          "QEMU's netmap backend on the VALE kernel module (/dev/netmap)")
    print(f"test-kernel: build netmap.ko for {kernel} as netmap's documentation says, then run: "
          "make test-kernel NETMAP_KO=FILE (docs/testing-kernel.md)")


# ------------------------------------------------------------------------------------ the guest


def test_files(parts: Parts) -> dict[Path, str]:
    """What the tests need in the guest, and its names there."""
    return {HERE / "scenario.sh": "run.sh", parts.abi_test: "netmap-abi-test",
            parts.window: "netmap-window", parts.vnet_test: "qemu-vnet-test"}


def bench_files(build: Path) -> dict[Path, str]:
    """What the measurement needs there."""
    upstream = build / "qemu/bookworm-upstream/qemu-system-x86_64-vale"
    if not upstream.is_file():
        raise TestKernelError(f"{upstream} is missing: run 'make qemu QEMU_VARIANT=upstream'",
                              EXIT_UNFIT)
    return {HERE / "hub_bench.sh": "run.sh", ROOT / "bench/hub_ndr.sh": "hub_ndr.sh",
            upstream: "qemu-upstream", build / "bin/valed": "valed"}


async def build_initrd(parts: Parts, more: dict[Path, str], folder: Path) -> Path:
    """Lay our files over micro's initrd."""
    overlay = folder / "overlay.img"
    files = {parts.module: "netmap.ko", parts.pktgen: "vale-pktgen",
             parts.qemu: "qemu-system-x86_64", **more}
    process = await asyncio.create_subprocess_exec(
        OVERLAY, overlay, *(f"{path}={GUEST_DIR}/{name}" for path, name in files.items()),
        stderr=asyncio.subprocess.PIPE)
    _, errors = await process.communicate()
    if process.returncode:
        raise TestKernelError(f"overlay: {errors.decode().strip()}", EXIT_FAILURE)
    initrd = folder / "initrd.img"
    initrd.write_bytes(parts.initrd.read_bytes() + overlay.read_bytes())
    return initrd


def guest_argv(parts: Parts, initrd: Path) -> list[str]:
    """QEMU's command line.

    TCG everywhere: the figures compare, and no machine is excluded. Without the CPU's "fast" string
    moves, because the kernel would then copy frames with rep movsb, which TCG does byte by byte:
    1514-byte frames pass 5 times slower.
    """
    return [str(parts.qemu), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm",
            "-smp", "2", "-m", "1024M", "-kernel", str(parts.kernel), "-initrd", str(initrd),
            "-append", f"{parts.append} vale.run={GUEST_DIR}/run.sh", "-serial", "stdio"]


@dataclass
class Report:
    """What the guest said."""

    tap: list[tuple[bool, str]] = field(default_factory=list)
    planned: int = 0
    runs: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)
    done: bool = False

    def add(self, line: str) -> bool:
        """Take one line of the console; False if it is none of ours."""
        if found := re.fullmatch(r"(ok|not ok) \d+ - (.*)", line):
            self.tap.append((found[1] == "ok", found[2]))
        elif found := re.fullmatch(r"1\.\.(\d+)", line):
            self.planned += int(found[1])
        elif found := re.fullmatch(r"@(\w+\.\w+) (\d+) ?(.*)", line):
            self.runs[found[1]] = (int(found[2]), parse_object(found[3]))
        elif line == "@done":
            self.done = True
        elif line.startswith("# "):
            self.figures.append(line)
        else:
            return False
        return True


def parse_object(text: str) -> dict[str, Any]:
    """A JSON object of a program; empty if it is none."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


async def run_guest(argv: list[str], report: Report) -> None:
    """Boot the guest and read its console to the end; a guest that hangs is killed."""
    console: deque[str] = deque(maxlen=CONSOLE_TAIL)
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT, limit=1 << 20)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(TOTAL_SECONDS):
            while line := await asyncio.wait_for(process.stdout.readline(), SILENT_SECONDS):
                text = printable(line)
                console.append(text)
                report.add(text)
                if text.startswith("# "):
                    print(text, flush=True)
            await process.wait()
    except TimeoutError as error:
        raise TestKernelError("the guest hung and was killed; its last lines were:", EXIT_TIMEOUT,
                              tuple(console)) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not report.done:
        raise TestKernelError(f"the guest did not get to the end (QEMU: exit {process.returncode});"
                              " its last lines were:", EXIT_FAILURE, tuple(console))


def printable(line: bytes) -> str:
    """A console line without its line end and without control characters."""
    return re.sub(r"[^ -~]", "", line.decode("ascii", "replace"))


# ------------------------------------------------------------------------------------- judging


Check = tuple[bool, str]


def judge_run(report: Report, name: str, **wanted: object) -> Check:
    """A program has ended well, and said these values."""
    code, said = report.runs.get(name, (-1, {}))
    wrong = [f"{key} is {said.get(key)}, not {value}"
             for key, value in wanted.items() if said.get(key) != value]
    if code != 0:
        wrong.insert(0, "did not run" if code == -1 else f"exit {code}")
    return not wrong, f"{name}: {'; '.join(wrong) or describe(wanted)}"


def describe(wanted: dict[str, object]) -> str:
    """The values that were found as wanted."""
    return ", ".join(f"{key} {value}" for key, value in wanted.items()) or "exit 0"


def judge_exact(report: Report) -> Iterator[Check]:
    """Runs in which every frame must arrive, once and in order."""
    for name, (count, length) in EXACT_RUNS.items():
        sizes = {"packets": count, "bytes": count * length, "provider": "kernel"}
        yield judge_run(report, f"{name}.tx", **sizes)
        yield judge_run(report, f"{name}.rx", **sizes, drops=0, late=0, unnumbered=0)


def judge_windows(report: Report) -> Iterator[Check]:
    """Runs that compare every byte themselves."""
    for name, (count, length) in WINDOW_RUNS.items():
        yield judge_run(report, f"{name}.window", packets=count, bytes=count * length,
                        provider="kernel")


def judge_rates(report: Report) -> Iterator[Check]:
    """Runs at a rate, or as fast as it goes: something arrives, and nothing twice."""
    for name in RATE_RUNS:
        sent = report.runs.get(f"{name}.tx", (-1, {}))[1].get("packets", 0)
        got = report.runs.get(f"{name}.rx", (-1, {}))[1].get("packets", 0)
        yield 0 < got <= sent, f"{name}: {got} of {sent} frames arrived"


def judge_refusals(report: Report) -> Iterator[Check]:
    """Programs that must fail, with exactly one line."""
    for name in REFUSED:
        code, said = report.runs.get(f"{name}.refused", (-1, {}))
        lines = said.get("lines")
        yield code > 0 and code < 124 and lines == 1, f"{name}: exit {code}, {lines} line on stderr"


def judge(report: Report) -> list[Check]:
    """All that was asked for, passed or not."""
    tests = len(report.tap)
    return [
        judge_run(report, "module.load"),
        (tests == report.planned and tests > 0, f"{tests} of {report.planned} tests ran"),
        *((ok, name) for ok, name in report.tap),
        judge_run(report, "vnet.test"),
        judge_run(report, "queues.qemu", queues=2),
        judge_run(report, "hub.qemu"),
        *judge_exact(report),
        *judge_windows(report),
        *judge_refusals(report),
        *judge_rates(report),
        judge_run(report, "after.rx", provider="kernel"),
    ]


def print_rates(report: Report) -> None:
    """The figures, as a table; they judge nothing."""
    print(f"\n{'run':<12} {'frame':>5} {'sent kpps':>10} {'received kpps':>14} {'Gbit/s':>8}")
    lengths = {name: length for name, (_, length) in WINDOW_RUNS.items()} | RATE_RUNS
    for name, length in lengths.items():
        window = report.runs.get(f"{name}.window", (0, {}))[1]
        tx = report.runs.get(f"{name}.tx", (0, window))[1]
        rx = report.runs.get(f"{name}.rx", (0, window))[1]
        print(f"{name:<12} {length:>5} {tx.get('pps', 0) / 1e3:>10.1f} "
              f"{rx.get('pps', 0) / 1e3:>14.1f} {rx.get('bps', 0) / 1e9:>8.3f}")
    print("frame: bytes without FCS; all programs in one guest, 2 vCPUs under TCG")


# ---------------------------------------------------------------------------------------- main


async def boot(parts: Parts, files: dict[Path, str]) -> Report:
    """Run the guest with these files to its end."""
    report = Report()
    release = module_release(parts.module)
    print(f"test-kernel: booting micro ({release}) with {parts.module}", flush=True)
    with tempfile.TemporaryDirectory(prefix="vale-test-kernel-") as folder:
        initrd = await build_initrd(parts, files, Path(folder))
        await run_guest(guest_argv(parts, initrd), report)
    return report


async def bench_kernel(build: Path, module: Path) -> int:
    """Measure, print a table, and write build/bench/hub-kernel.json."""
    parts = find_parts(build, module)
    report = await boot(parts, bench_files(build))
    rates = {name: [report.runs.get(f"{name}{turn}.ndr", (1, {}))[1].get("pps", 0)
                    for turn in (1, 2, 3)] for name in ("upstream", "module", "valed")}
    base = max(statistics.median(rates["upstream"]), 1)
    print(f"\n{'backend, switch':<28} {'kpps without loss':>20} {'median':>8} {'ratio':>6}")
    labels = {"upstream": "QEMU's own, module", "module": "ours, module", "valed": "ours, valed"}
    for name, label in labels.items():
        median = statistics.median(rates[name])
        each = " ".join(f"{rate / 1e3:.0f}" for rate in rates[name])
        print(f"{label:<28} {each:>20} {median / 1e3:>8.0f} {median / base:>6.2f}")
    path = build / "bench/hub-kernel.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rates, indent=1) + "\n")
    print(f"frames of 60 bytes; all in one guest, 2 vCPUs under TCG; {path}")
    return EXIT_OK


async def test_kernel(build: Path, module: Path) -> int:
    """Run it all; give the exit code."""
    parts = find_parts(build, module)
    began = time.monotonic()
    report = await boot(parts, test_files(parts))
    checks = judge(report)
    for number, (ok, name) in enumerate(checks, start=1):
        print(f"{'ok' if ok else 'not ok'} {number} - {name}")
    print_rates(report)
    failed = sum(not ok for ok, _ in checks)
    print(f"\ntest-kernel: {len(checks) - failed} passed, {failed} failed, "
          f"{time.monotonic() - began:.0f} s")
    return EXIT_TEST if failed else EXIT_OK


def main(arguments: list[str]) -> int:
    """Read the arguments, run, and turn errors into one line."""
    parser = argparse.ArgumentParser(prog="test-kernel", description="Try our programs on a VALE "
                                     "kernel module, in the micro guest.")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="what make has made")
    parser.add_argument("--bench", action="store_true", help="measure instead of testing")
    parser.add_argument("module", nargs="?", type=Path, help="netmap.ko, for micro's kernel")
    options = parser.parse_args(arguments)
    if options.module is None:
        say_not_tested(options.build)
        return EXIT_OK
    try:
        action = bench_kernel if options.bench else test_kernel
        return asyncio.run(action(options.build, options.module))
    except TestKernelError as error:
        print(f"test-kernel: {error}", file=sys.stderr)
        for line in error.console:
            print(f"    {line}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return EXIT_INTERRUPT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
