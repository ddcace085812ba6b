# SPDX-License-Identifier: BSD-2-Clause
"""The black-box tests of valed once more, on builds with sanitizers (`make sanitized`).

A report of a sanitizer makes valed exit with a code of its own, and every test asserts exit 0.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.valed import ROOT

pytestmark = pytest.mark.blackbox

MINUTES = 5


@pytest.mark.skipif("VALED" in os.environ, reason="VALED names the one binary to be tested")
@pytest.mark.parametrize("name", ["asan", "tsan"])
def test_suite_on_a_sanitizer_build(name: str) -> None:
    valed = ROOT / "build" / name / "bin/valed"
    if not valed.exists():
        pytest.skip(f"no {valed}: run 'make sanitized'")
    if valed.stat().st_mtime < max(p.stat().st_mtime for p in (ROOT / "valed").glob("*.[ch]")):
        pytest.skip(f"{valed} is older than its sources: run 'make sanitized'")
    here = Path(__file__)
    suite = sorted(str(p) for p in here.parent.glob("test_valed_*.py") if p != here)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *suite]
    print("+", f"VALED={valed}", *command)
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"VALED": str(valed), "VALE_TEST_SECONDS": "60"},
        capture_output=True,
        text=True,
        timeout=60 * MINUTES,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"with {valed}:\n{done.stdout}{done.stderr}", pytrace=False)
