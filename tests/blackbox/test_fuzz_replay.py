# SPDX-License-Identifier: BSD-2-Clause
"""Every input of tests/fuzz/corpus once through its fuzz target: seeds, and what was found."""

import shutil
import subprocess
from pathlib import Path

import pytest

from lib.valed import ROOT

pytestmark = pytest.mark.blackbox

CORPUS = ROOT / "tests/fuzz/corpus"
PROGRAMS = ROOT / "build/fuzz/bin"


@pytest.fixture(scope="module")
def programs() -> Path:
    """The targets, made from the sources as they are."""
    if shutil.which("clang") is None:
        pytest.skip("no clang: apt-get install clang libclang-rt-dev")
    runtime = subprocess.run(
        ["clang", "-print-file-name=libclang_rt.fuzzer-x86_64.a"],
        capture_output=True,
        text=True,
        check=True,
    )
    clang_fuzzer = subprocess.run(
        ["clang", "-fsanitize=fuzzer", "-xc", "-", "-o", "/dev/null"],
        input="int LLVMFuzzerTestOneInput(const char *p, long n) { return !p && n; }",
        capture_output=True,
        text=True,
        check=False,
    )
    if clang_fuzzer.returncode != 0:
        pytest.skip(f"no {runtime.stdout.strip()}: apt-get install libclang-rt-dev")
    made = subprocess.run(
        ["make", "-s", "fuzz-targets"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return PROGRAMS


@pytest.mark.parametrize("target", sorted(p.name for p in CORPUS.iterdir()))
def test_corpus(programs: Path, target: str) -> None:
    inputs = sorted(map(str, (CORPUS / target).iterdir()))
    assert inputs
    done = subprocess.run(
        [str(programs / f"fuzz_{target}"), *inputs],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("Executed ") == len(inputs)
