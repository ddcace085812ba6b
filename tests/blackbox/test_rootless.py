# SPDX-License-Identifier: BSD-2-Clause
"""As an ordinary user: tests that make interfaces run in a user and network namespace."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.blackbox

FOLDER = Path(__file__).parent
ISOLATE = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
# ip keeps its namespaces in /run/netns: a /run of our own.
PREPARE = 'mount -t tmpfs run /run && exec "$@"'


def obstacle() -> str:
    """Why this cannot be done here; empty if it can."""
    if os.geteuid() == 0:
        return "root runs them directly"
    if not shutil.which("unshare"):
        return "no unshare: apt-get install util-linux"
    done = subprocess.run([*ISOLATE, "true"], capture_output=True, text=True, check=False)
    return f"user namespaces are restricted: {done.stderr.strip()}" if done.returncode else ""


def test_interfaces_in_a_user_namespace() -> None:
    if reason := obstacle():
        pytest.skip(reason)
    inner = [sys.executable, "-m", "pytest", "-m", "interfaces", "-p", "no:cacheprovider", "-q"]
    argv = [*ISOLATE, "sh", "-c", PREPARE, "sh", *inner, str(FOLDER)]
    print("+", *argv, flush=True)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|skipped)", done.stdout)}
    assert counts == {"passed": 6, "skipped": 1}  # that one needs root of the host
