#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""How long a topology of 64 guests takes until it is planned, in one process, without launching.

A file of 64 guests, each with a NIC on one of eight switches and linked to the next, so with 192
NICs, is read, checked and resolved, and planned. The median of some rounds; imports apart, once.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def topology(guests: int) -> str:
    """The file's text."""
    lines = ["groups:", "  all: {memory: 64M, startup: [echo one], nic: {mtu: 1400}}", "guests:"]
    for number in range(guests):
        mac = f"52:54:00:00:01:{number % 256:02x}"
        lines += [
            f"  guest-{number}:",
            "    group: all",
            f"    nics: [{{switch: vale{number % 8}, mac: {mac}}}]",
            "    ready: [ip -br link]",
        ]
    lines += ["links:"]
    for number in range(guests):
        other = (number + 1) % guests
        ends = f'"guest-{number}:next", "guest-{other}:previous"'
        lines += [f"  - {{endpoints: [{ends}], impair: {{delay: 1ms, loss: 0.1%}}}}"]
    lines += ["tests:"]
    lines += [f"  - {{name: t{n}, from: guest-{n}, exec: hostname}}" for n in range(guests)]
    return "\n".join(lines) + "\n"


def median(work: Callable[[], object], rounds: int) -> float:
    """Seconds that one round takes."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--guests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()

    began = time.perf_counter()
    from valemgr.emulator import Emulator
    from valemgr.image import Image
    from valemgr.labfile import load_lab
    from valemgr.plan import Host, pin, plan_guest
    from valemgr.wiring import Place

    imports = time.perf_counter() - began
    image = Image("micro", Path("/i/vmlinuz"), Path("/i/initrd.img"), "", "", {})
    host = Host(
        emulators={"": Emulator(Path("/usr/bin/qemu-system-x86_64"), (7, 2), has_netmap=True)},
        accelerator="tcg",
        place=Place(rundir=Path("/run/vale"), lab_dir=Path("/run/valemgr/lab")),
        images={"micro": image},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.lab.yml"
        path.write_text(topology(options.guests))
        lab = load_lab(path)
        load = median(lambda: load_lab(path), options.rounds)

    def plan() -> None:
        pinned = pin(lab)
        for guest in pinned.guests:
            plan_guest(pinned, guest, host)

    planning = median(plan, options.rounds)
    nics = sum(1 for _ in lab.nics())
    print(f"{options.guests} guests, {nics} NICs, Python {sys.version.split()[0]}")
    print(f"imports              {imports:.3f} s")
    print(f"read, check, resolve {load:.3f} s")
    print(f"plan                 {planning:.3f} s")
    print(f"together             {imports + load + planning:.3f} s")


if __name__ == "__main__":
    main()
