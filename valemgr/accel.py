# SPDX-License-Identifier: BSD-2-Clause
"""KVM or TCG: decided once, said in every result.

KVM is used only if /dev/kvm opens and the CPU shows vmx or svm: a machine can offer /dev/kvm and
still be unable to run an ordinary guest kernel.
"""

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from valemgr.errors import EnvironmentUnfitError


class AccelChoice(StrEnum):
    """What a user may ask for."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What guests run on, and why."""

    name: str
    reason: str


def kvm_obstacle(device: Path = Path("/dev/kvm"), cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Why KVM cannot be used; empty if it can."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return f"{device}: {exc.strerror}"
    if not cpu_flags(cpuinfo) & {"vmx", "svm"}:
        return "the CPU shows neither vmx nor svm"
    return ""


def cpu_flags(cpuinfo: Path) -> set[str]:
    """The first CPU's flags."""
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def choose(choice: AccelChoice, obstacle: str | None = None) -> Accelerator:
    """The accelerator for a choice; EnvironmentUnfitError if KVM was demanded in vain."""
    if choice is AccelChoice.TCG:
        return Accelerator("tcg", "asked for")
    obstacle = kvm_obstacle() if obstacle is None else obstacle
    if not obstacle:
        return Accelerator("kvm", "/dev/kvm opens and the CPU shows vmx or svm")
    if choice is AccelChoice.KVM:
        raise EnvironmentUnfitError(f"KVM is not usable here: {obstacle}; use --accel tcg")
    return Accelerator("tcg", obstacle)
