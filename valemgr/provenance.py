# SPDX-License-Identifier: BSD-2-Clause
"""What a result has to say about where it came from, so that it can be believed and repeated."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

from valemgr import __version__, proc
from valemgr.accel import Accelerator
from valemgr.deadline import Deadline
from valemgr.image import Image
from valemgr.locate import clone_root
from valemgr.state import GuestState


def host_facts() -> dict[str, Any]:
    """CPU, kernel, memory, load: the machine at this moment."""
    memory = int(_field(Path("/proc/meminfo"), "MemTotal").split()[0]) // 1024
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "hypervisor": "hypervisor" in _field(Path("/proc/cpuinfo"), "flags").split(),
        "kernel": platform.release(),
        "memory_mib": memory,
        "load": list(os.getloadavg()),
        "distribution": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
    }


async def versions(qemu: Path, valed: str) -> dict[str, str]:
    """Everything that took part."""
    _, text = await proc.output_of([str(qemu), "--version"], Deadline(10))
    return {
        "valemgr": __version__,
        "commit": await _commit(),
        "python": platform.python_version(),
        "qemu": text.splitlines()[0] if text else "",
        "valed": valed,
    }


def image_facts(images: dict[str, Image]) -> dict[str, Any]:
    """Digests and kernel of every image."""
    return {
        name: {
            "sha256": image.manifest.get("sha256", {}),
            "kernel_release": image.manifest.get("kernel_release", ""),
        }
        for name, image in images.items()
    }


def placement(guests: dict[str, GuestState]) -> str:
    """Who shares cores with whom, in words: on a small host this is the headline."""
    cores = len(os.sched_getaffinity(0))
    threads = 2 * len(guests) + 1  # a vCPU and a main loop each, and the switch's worker
    shared = "shared" if threads > cores else "not pinned"
    return f"{len(guests)} guests and the switch on {cores} cores, {shared}"


def accelerator_facts(accelerator: Accelerator) -> dict[str, str]:
    return {"name": accelerator.name, "reason": accelerator.reason}


def command_line() -> list[str]:
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


async def _commit() -> str:
    root = clone_root()
    if root is None or not (root / ".git").exists():
        return ""
    try:
        status, text = await proc.output_of(
            ["git", "-C", str(root), "describe", "--always", "--dirty"], Deadline(10)
        )
    except Exception:  # no git, no commit: never a reason to lose a measurement
        return ""
    return text.strip() if status == 0 else ""


def _field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "0"
