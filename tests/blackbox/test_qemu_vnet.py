# SPDX-License-Identifier: BSD-2-Clause
"""Headers between our backend's virtio-net NIC and another port; a program drives the NIC."""

import subprocess

import pytest

from lib.backend import QEMU, ROOT
from lib.valed import Valed

PROGRAM = ROOT / "build/guest/qemu-vnet-test"

pytestmark = [
    pytest.mark.blackbox,
    pytest.mark.skipif(not QEMU.exists(), reason=f"no {QEMU}: run 'make qemu'"),
]


def test_headers_and_offloads() -> None:
    subprocess.run(["make", "-s", PROGRAM.relative_to(ROOT)], cwd=ROOT, check=True)
    with Valed.run() as valed:
        argv = [PROGRAM, QEMU, valed.rundir / "netmap.sock"]
        run = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    print(run.stdout, run.stderr)
    assert run.returncode == 0
    assert run.stdout.count("\nok") + run.stdout.startswith("ok") == 6
