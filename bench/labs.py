#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""What labs cost: how soon they are ready, what a change does to others, what a command takes.

Everything is run as a user runs it, in directories of its own and with a valed of its own; seconds
are those of the whole command, from its start to its end, but for the 64 guests that are only read
and planned. Medians of trials.

Prints a table; writes build/bench/labs.json.
"""

import argparse
import asyncio
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import host

sys.path.insert(0, str(host.ROOT / "tests"))
from lib.place import VALEMGR, Flow, Place, missing
from valemgr import environment, labfile, plan
from valemgr.accel import AccelChoice
from valemgr.wiring import Place as Sockets

REPORT = host.BUILD / "bench" / "labs.json"
RATE = 1000  # frames a second of the flow that an apply must not disturb


@contextmanager
def world() -> Iterator[Place]:
    """Directories and a valed of our own; nothing may be left in them."""
    with tempfile.TemporaryDirectory(prefix="vale-", ignore_cleanup_errors=True) as name:
        place = Place(Path(name))
        try:
            yield place
            place.ok("down", "--all")
            place.assert_nothing_left()
        finally:
            place.close()


def topology(guests: int) -> str:
    """Guests on one switch."""
    return "guests:\n" + "".join(f"  g{i}: {{nics: [{{switch: vale1}}]}}\n" for i in range(guests))


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.monotonic()
    work()
    return round(time.monotonic() - began, 3)


def ready(guests: int) -> float:
    """Seconds of `valemgr up`."""
    with world() as place:
        file = place.write("lab", topology(guests))
        return seconds_of(lambda: place.ok("up", file))


def apply_under_flow() -> dict[str, Any]:
    """Frames that a flow loses while one more guest comes."""
    with world() as place:
        place.ok("up", place.write("lab", topology(2)))
        file = place.write("lab", topology(3))
        with Flow(place, "g0", "g1", "198.18.0.2", RATE) as flow:
            seconds = seconds_of(lambda: place.ok("apply", file))
        ports = place.ports()
        dropped = [ports[f"vale1:g{i}"][side]["dropped"] for i in (0, 1) for side in ("rx", "tx")]
        return {
            "seconds": seconds,
            "sent": flow.sent["sent"],
            "received": flow.got["received"],
            "lost": flow.sent["sent"] - flow.got["received"],
            "dropped": sum(sum(reasons.values()) for reasons in dropped),
        }


def help_text() -> float:
    """Seconds of `valemgr --help`."""
    return seconds_of(
        lambda: subprocess.run([VALEMGR, "--help"], stdout=subprocess.DEVNULL, check=True)
    )


def planned(guests: int) -> dict[str, float]:
    """Seconds to read, check and plan a topology; and of `valemgr validate`."""
    with world() as place:
        path = Path(place.write("lab", topology(guests)))
        env = asyncio.run(environment.find(labfile.load_lab(path), AccelChoice.AUTO))
        sockets = Sockets(place.rundir, place.labs / "lab")
        machine = plan.Host(env.emulators, env.accelerator.name, sockets, env.images)

        def work() -> None:
            lab = plan.pin(labfile.load_lab(path))
            assert len([plan.plan_guest(lab, guest, machine) for guest in lab.guests]) == guests

        return {
            "plan": seconds_of(work),
            "validate": seconds_of(lambda: place.ok("validate", str(path))),
        }


def row(what: str, value: str, goal: str = "", met: bool = True) -> None:
    print(f"{what:<52} {value:>24}   {goal:<12} {'' if met else 'missed'}".rstrip(), flush=True)


def seconds_row(what: str, values: list[float], goal: float | None = None) -> None:
    median = statistics.median(values)
    words = "" if goal is None else f"at most {goal:g}"
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    row(what, f"{median:.2f} s{spread}", words, goal is None or median <= goal)


def quietly(measure: Callable[[], Any], trials: int) -> list[Any]:
    """Trials without the commands that the tests' library prints, on a machine at rest."""
    found = []
    for _ in range(trials):
        host.wait_quiet()
        with redirect_stdout(io.StringIO()) as said:
            try:
                found.append(measure())
            except BaseException:
                sys.stderr.write(said.getvalue())
                raise
    return found


def run(trials: int, many: int) -> dict[str, Any]:
    report: dict[str, Any] = {}
    r = report["help"] = quietly(help_text, 3 * trials)
    seconds_row("valemgr --help", r, 0.3)
    r = report["planned"] = quietly(lambda: planned(64), trials)
    seconds_row("64 guests read, checked and planned", [each["plan"] for each in r], 0.5)
    seconds_row("valemgr validate of them", [each["validate"] for each in r])
    r = report["pair"] = quietly(lambda: ready(2), trials)
    seconds_row("valemgr up of a pair", r, 6)
    r = report["apply"] = quietly(apply_under_flow, trials)
    seconds_row("valemgr apply of one more guest, under a flow", [each["seconds"] for each in r])
    lost = sum(each["lost"] + each["dropped"] for each in r)
    sent = sum(each["sent"] for each in r)
    row("frames that the flow lost meanwhile", f"{lost} of {sent}", "none", not lost)
    r = quietly(lambda: ready(many), 1)
    report["many"] = {"guests": many, "seconds": r}
    seconds_row(f"valemgr up of {many} guests", r, 60 if many == 16 else None)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="What labs cost.")
    parser.add_argument("--trials", type=int, default=5, help="of each measure (default 5)")
    parser.add_argument("--many", type=int, default=16, help="guests of the big lab (default 16)")
    options = parser.parse_args()
    if lack := missing():
        host.fail(lack, 4)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    report = run(options.trials, options.many)
    REPORT.write_text(
        json.dumps({"machine": host.machine(host.choose_cpus())} | report, indent=2) + "\n"
    )
    print(f"\nEvery trial: {REPORT.relative_to(host.ROOT)}")


if __name__ == "__main__":
    main()
