# SPDX-License-Identifier: BSD-2-Clause
"""The C unit tests of libvale, its tools and valed, with two sanitizers."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "tests"
FLAGS = [
    *("-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    *("-Iinclude", "-Ilibvale", "-Itools", "-Ivaled"),
]

UNITS = {
    "test_name": (
        ["libvale/name.c", "libvale/error.c"],
        ["-ljansson"],
        ["tests/vectors/names.json"],
    ),
    "test_sync": (["libvale/sync.c"], [], []),
    "test_frame": (["tools/frame.c"], [], []),
    "test_histogram": (["tools/histogram.c"], [], []),
    "test_offload": (["valed/offload.c"], [], []),
    "test_sandbox": (
        ["valed/sandbox.c", "valed/log.c"],
        ["-fno-sanitize=all"],
        [],
    ),
    "test_fdb": (["valed/fdb.c"], ["-pthread"], []),
}


def run(argv: list[str]) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}{done.stderr}"


@pytest.mark.unit
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("unit", UNITS)
def test_c_unit(unit: str, compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}: apt-get install {compiler}")
    sources, libraries, arguments = UNITS[unit]
    program = BUILD / f"{unit}-{compiler}"
    BUILD.mkdir(parents=True, exist_ok=True)
    source = f"tests/unit/{unit}.c"
    run([compiler, *FLAGS, "-o", str(program), source, *sources, *libraries])
    run([str(program), *arguments])
