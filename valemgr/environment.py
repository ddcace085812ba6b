# SPDX-License-Identifier: BSD-2-Clause
"""What this machine offers to a lab; found, and found sufficient, before anything is started."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from valemgr import accel, emulator, image
from valemgr.emulator import Emulator
from valemgr.errors import EnvironmentUnfitError
from valemgr.plan import LibvirtHost
from valemgr.tasks import together
from valemgr.topology import Guest, Lab
from valemgr.wiring import KERNEL_DEVICE
from valemgr.words import Engine, Provider

QEMU_MIB = 40  # what a QEMU takes beside its guest's memory


@dataclass(frozen=True, slots=True)
class Environment:
    """Emulators by the guests' `qemu`, the accelerator, images by name."""

    emulators: dict[str, Emulator]
    accelerator: accel.Accelerator
    images: dict[str, image.Image]
    libvirt: LibvirtHost | None = None  # None: QEMUs are our own

    @property
    def boots_at_once(self) -> int:
        """How many guests may boot at the same time: more only make each other slow."""
        cores = len(os.sched_getaffinity(0))
        return cores if self.accelerator.name == "tcg" else 4 * cores


async def find(lab: Lab, choice: accel.AccelChoice) -> Environment:
    """Everything a lab needs from this machine, or EnvironmentUnfitError."""
    images = {name: image.load(name) for name in sorted({g.image for g in lab.guests})}
    for guest in lab.guests:
        least = int(images[guest.image].manifest.get("memory_mib", 0))
        if guest.memory_mib < least:
            raise EnvironmentUnfitError(
                f"guest {guest.name}: image {guest.image} needs {least} MiB of memory, not "
                f"{guest.memory_mib}: give it memory: {least}M"
            )
    wanted = sorted({guest.qemu for guest in lab.guests})
    paths = {name: emulator.find(name) for name in wanted}
    found = await together(emulator.examine(path) for path in paths.values())
    if any(switch.provider is Provider.KERNEL for switch in lab.all_switches().values()):
        _check_kernel()
    accelerator = accel.choose(choice)
    libvirt = await _libvirt(accelerator.name) if lab.engine is Engine.LIBVIRT else None
    return Environment(dict(zip(paths, found, strict=True)), accelerator, images, libvirt)


async def _libvirt(accelerator: str) -> LibvirtHost:
    from valemgr.virt import machine

    return await machine.host(accelerator)


def check_memory(guests: Iterable[Guest], ended: Iterable[Guest] = ()) -> None:
    """Refuse guests that the free memory does not hold, with that of guests that end first."""
    new = list(guests)
    needed = sum(guest.memory_mib + QEMU_MIB for guest in new)
    free = available_mib() + sum(guest.memory_mib for guest in ended)
    if needed > free:
        raise EnvironmentUnfitError(
            f"{needed} MiB of memory are needed for {_guests(len(new))}, {free} MiB are available: "
            "give them less, or end something"
        )


def _guests(number: int) -> str:
    return "one guest" if number == 1 else f"{number} guests"


def available_mib(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that can be had without swapping, MiB."""
    return int(re.findall(r"MemAvailable:\s+(\d+)", meminfo.read_text())[0]) >> 10


def _check_kernel() -> None:
    if not Path(KERNEL_DEVICE).exists():
        raise EnvironmentUnfitError(
            f"provider kernel: {KERNEL_DEVICE} is not here: load netmap.ko, or use provider: user"
        )
    if not os.access(KERNEL_DEVICE, os.R_OK | os.W_OK):
        raise EnvironmentUnfitError(
            f"provider kernel: {KERNEL_DEVICE} may not be opened: chmod or chgrp it, or use "
            "provider: user"
        )
