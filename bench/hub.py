#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Our QEMU backend without a guest: two netmap netdevs on one hub, both ports of a valed.

Runs bench/hub_ndr.sh three times: the highest rate at which no frame is lost between the ports,
and the system calls of the backend per frame at that rate. Prints a table, and writes it to
build/bench/hub.json. QEMU's own backend needs the kernel's switch: make bench-kernel.
"""

import json
import os
import re
import statistics
import subprocess
import sys

import host  # the other benchmark in this folder: where things are, and what machine this is

sys.path.insert(0, str(host.ROOT / "tests"))
from lib.guest import VALE_QEMU, version
from lib.valed import Valed

SCRIPT = host.ROOT / "bench" / "hub_ndr.sh"
REPORT = host.BUILD / "bench" / "hub.json"
RUNS = 3


def run(valed: Valed, number: int) -> dict[str, int]:
    """One search: frames per second without loss, and system calls per million frames."""
    env = os.environ | {"PATH": f"{host.BUILD}/bin:{os.environ['PATH']}"}
    argv = [str(SCRIPT), f"run{number}", str(VALE_QEMU), str(valed.rundir / "netmap.sock")]
    output = subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout
    found = re.search(r"^@run\d\.ndr 0 (\{.*\})$", output, re.MULTILINE)
    if not found:
        host.fail(f"{SCRIPT.name} did not end well: {output[-200:]}", 1)
        raise AssertionError
    result: dict[str, int] = json.loads(found[1])
    return result


def main() -> None:
    for path, how in ((host.VALED, "make tools"), (VALE_QEMU, "make qemu")):
        if not path.exists():
            host.fail(f"no {path}: run '{how}'", 4)
    where = host.machine(host.choose_cpus()) | {"qemu": ".".join(map(str, version(VALE_QEMU)))}
    with Valed.run() as valed:
        runs = [run(valed, number) for number in range(RUNS)]
    print(f"{where['cpu']}, {where['cpus']} CPUs, QEMU {where['qemu']} without a guest, hub;")
    print(f"60-byte frames; load before: {where['load_before']:.2f}\n")
    print(f"{'run':>6} {'kpps without loss':>18} {'system calls per frame':>23}")
    for number, found in enumerate(runs, 1):
        print(f"{number:>6} {found['pps'] / 1e3:>18.0f} {found['syscalls'] / 1e6:>23.4f}")
    pps, calls = (statistics.median(found[key] for found in runs) for key in ("pps", "syscalls"))
    print(f"{'median':>6} {pps / 1e3:>18.0f} {calls / 1e6:>23.4f}")
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps({"machine": where, "runs": runs}, indent=2) + "\n")
    print(f"\nEvery run: {REPORT.relative_to(host.ROOT)}")


if __name__ == "__main__":
    main()
