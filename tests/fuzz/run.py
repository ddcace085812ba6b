# SPDX-License-Identifier: BSD-2-Clause
"""Runs the fuzz targets: `make fuzz MINUTES=n [TARGET=name]`, or with --keep saves what they found.

Each target starts from tests/fuzz/corpus/TARGET and from what earlier runs found, which lies in
build/fuzz/corpus/TARGET. --keep adds of the latter what reaches code that the former does not.
"""

import argparse
import asyncio
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build/fuzz"
TARGETS = sorted(p.name.removeprefix("fuzz_") for p in (BUILD / "bin").glob("fuzz_*"))


@dataclass(frozen=True)
class Result:
    """What one target did."""

    target: str
    executions: int
    edges: int
    added: int
    crashes: list[Path]

    def row(self) -> str:
        numbers = f"{self.executions:12} {self.edges:8} {self.added:8} {len(self.crashes):8}"
        return f"{self.target:10} {numbers}"


def command(target: str, *options: str) -> list[str]:
    """The program, options, its own corpus, and the one of the repository."""
    found = BUILD / "corpus" / target
    found.mkdir(parents=True, exist_ok=True)
    known = HERE / "corpus" / target
    words = HERE / f"{target}.dict"
    dictionary = [f"-dict={words}"] if words.exists() else []
    return [str(BUILD / "bin" / f"fuzz_{target}"), *options, *dictionary, str(found), str(known)]


async def output(argv: list[str]) -> str:
    """Everything that a program prints."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    text, _ = await process.communicate()
    return text.decode(errors="replace")


def last(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


async def fuzz(target: str, minutes: float) -> Result:
    prefix = BUILD / "crashes" / f"{target}-"
    prefix.parent.mkdir(parents=True, exist_ok=True)
    before = set(prefix.parent.iterdir())
    options = (f"-max_total_time={round(minutes * 60)}", f"-artifact_prefix={prefix}")
    text = await output(
        command(target, *options, "-print_final_stats=1", "-timeout=10", "-len_control=0")
    )
    (BUILD / f"{target}.log").write_text(text)
    crashes = sorted(p for p in set(prefix.parent.iterdir()) - before if p.name.startswith(target))
    return Result(
        target,
        last(r"number_of_executed_units: (\d+)", text),
        last(r"cov: (\d+)", text),
        last(r"new_units_added: +(\d+)", text),
        crashes,
    )


async def fuzz_all(targets: list[str], minutes: float) -> int:
    """As many at once as there are CPUs. The exit code."""
    free = asyncio.Semaphore(os.cpu_count() or 1)

    async def one(target: str) -> Result:
        async with free:
            result = await fuzz(target, minutes)
        print(result.row(), flush=True)
        return result

    print(f"{'target':10} {'executions':>12} {'edges':>8} {'new':>8} {'crashes':>8}")
    results = await asyncio.gather(*map(one, targets))
    for result in results:
        for crash in result.crashes:
            print(f"{crash}: breaks {result.target}")
            print(f"once fixed, add it to tests/fuzz/corpus/{result.target}")
        if result.executions == 0:
            print(f"{BUILD / result.target}.log: {result.target} did not run")
    return int(any(r.crashes or r.executions == 0 for r in results))


async def keep(targets: list[str]) -> int:
    for target in targets:
        *start, found, known = command(target, "-set_cover_merge=1", "-use_counters=0")
        before = len(list(Path(known).iterdir()))
        await output([*start, known, found])
        print(f"{target}: {before} inputs, now {len(list(Path(known).iterdir()))}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("target", nargs="*", help=f"one of {' '.join(TARGETS)}; default all")
    args = parser.parse_args()
    targets = args.target or TARGETS
    unknown = [t for t in targets if t not in TARGETS]
    if unknown:
        parser.error(f"{unknown[0]}: no such target; there are {' '.join(TARGETS)}")
    return asyncio.run(keep(targets) if args.keep else fuzz_all(targets, args.minutes))


if __name__ == "__main__":
    sys.exit(main())
