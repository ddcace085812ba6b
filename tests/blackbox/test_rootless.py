# SPDX-License-Identifier: BSD-2-Clause
"""As an ordinary user: tests that want more of the system run in a user namespace."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.blackbox

FOLDER = Path(__file__).parent
AS_ROOT = ["unshare", "--user", "--map-root-user"]
# ip keeps its namespaces in /run/netns: a /run of our own.
PREPARE = 'mount -t tmpfs run /run && exec "$@"'
WITH_NETWORK = [*AS_ROOT, "--net", "--mount", "sh", "-c", PREPARE, "sh"]
# The user's subordinate ids (/etc/subuid) become those of others, nobody's among them.
WITH_OTHERS = [*AS_ROOT, "--map-auto"]


def obstacle(isolate: list[str], *programs: str) -> str:
    """Why this cannot be done here; empty if it can."""
    if os.geteuid() == 0:
        return "root runs them directly"
    for program, package in zip(programs[::2], programs[1::2], strict=True):
        if not shutil.which(program):
            return f"no {program}: apt-get install {package}"
    done = subprocess.run([*isolate, "true"], capture_output=True, text=True, check=False)
    return f"user namespaces are restricted: {done.stderr.strip()}" if done.returncode else ""


def run_all(mark: str, isolate: list[str]) -> None:
    """All tests with this mark, inside; none may be left out there."""
    suite = [sys.executable, "-m", "pytest", "-m", mark, "-p", "no:cacheprovider", "-q"]
    argv = [*isolate, *suite, str(FOLDER)]
    print("+", *argv, flush=True)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert set(re.findall(r"\d+ (passed|skipped)", done.stdout)) == {"passed"}


def test_interfaces_in_a_user_namespace() -> None:
    if reason := obstacle(WITH_NETWORK, "unshare", "util-linux"):
        pytest.skip(reason)
    run_all("interfaces", WITH_NETWORK)


def test_another_user_in_a_user_namespace() -> None:
    if reason := obstacle(WITH_OTHERS, "unshare", "util-linux", "newuidmap", "uidmap"):
        pytest.skip(reason)
    run_all("another_user", WITH_OTHERS)
