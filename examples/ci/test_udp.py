# SPDX-License-Identifier: BSD-2-Clause
"""Two machines without a topology file, one with an old NIC model in both."""

import pytest

from valemgr.lab import SyncLab

pytestmark = pytest.mark.vale_pair(model="e1000")


def test_datagrams_arrive(vale_pair: SyncLab) -> None:
    trial = vale_pair.udp("a", "b", frame=512, rate=500, seconds=2)
    assert trial.conserved, trial.violations  # every counter on the way agrees
    assert trial.loss < 0.01
