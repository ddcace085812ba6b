# SPDX-License-Identifier: BSD-2-Clause
"""`valemgr doctor`: is this machine fit, what is wrong, what to do about it."""

import os
import re
import resource
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from valemgr import accel, image, labs, locate, proc, switchd, xdg
from valemgr.deadline import Deadline
from valemgr.errors import ValeError
from valemgr.lifecycle import down
from valemgr.results import ResultStore
from valemgr.state import all_labs

STATE_BYTES_MIN = 64 << 20
MEMORY_MIB_MIN = 512
FILES_MIN = 1024


class Health(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report."""

    check: str
    health: Health
    detail: str
    remedy: str = ""


async def examine(fix: bool = False) -> list[Finding]:
    """Every check, in order; with `fix` leftovers are cleaned first."""
    findings = await _fix_leftovers() if fix else []
    checks: list[Callable[[], Coroutine[Any, Any, list[Finding]]]] = [
        _qemu,
        _valed,
        _image,
        _accelerator,
        _directories,
        _limits,
        _leftovers,
    ]
    for check in checks:
        findings += await check()
    return findings


async def _qemu() -> list[Finding]:
    path = locate.find(locate.QEMU)
    if path is None:
        return [Finding("qemu", Health.BAD, f"no {locate.QEMU}", locate.remedy("vale-qemu"))]
    status, text = await proc.output_of([str(path), "--version"], Deadline(10))
    first = text.splitlines()[0] if text else "no answer"
    if status != 0:
        return [Finding("qemu", Health.BAD, f"{path}: {first}", locate.remedy("vale-qemu"))]
    _, netdevs = await proc.output_of([str(path), "-netdev", "help"], Deadline(10))
    findings = [Finding("qemu", Health.OK, f"{path}: {first}")]
    if "netmap" not in netdevs.split():
        findings.append(
            Finding("qemu netmap", Health.BAD, f"{path} lacks netmap", locate.remedy("vale-qemu"))
        )
    if _version(first) < (8, 0) and accel.kvm_obstacle():
        detail = "QEMU before 8.0 under TCG crashes with vhost-user and MSI-X"
        findings.append(Finding("qemu vhost-user", Health.WARN, detail, "vectors=0 on such NICs"))
    return findings


async def _valed() -> list[Finding]:
    path = locate.find(locate.VALED)
    findings = []
    if path is None:
        findings.append(Finding("valed", Health.BAD, "no valed", locate.remedy("valed")))
    else:
        findings.append(Finding("valed", Health.OK, str(path)))
    async with switchd.connected() as running:
        if running:
            detail = f"runs (pid {running.pid}, {running.version}) in {running.rundir}"
            findings.append(Finding("switch", Health.OK, detail))
        else:
            detail = f"none runs; one is started on demand in {switchd.server_dir()}"
            findings.append(Finding("switch", Health.OK, detail))
        if Path("/dev/netmap").exists():
            detail = "/dev/netmap is here too: the same switch name exists once in each"
            findings.append(
                Finding("kernel provider", Health.WARN if running else Health.OK, detail)
            )
    return findings


async def _image() -> list[Finding]:
    try:
        micro = image.load("micro")
    except ValeError as exc:
        return [Finding("image", Health.BAD, str(exc), locate.remedy("vale-images"))]
    kernel = micro.manifest.get("kernel_release", "?")
    return [Finding("image", Health.OK, f"{micro.kernel.parent}, Linux {kernel}")]


async def _accelerator() -> list[Finding]:
    obstacle = accel.kvm_obstacle()
    if not obstacle:
        return [Finding("accelerator", Health.OK, "KVM")]
    remedy = "enable (nested) virtualisation; TCG works, slower"
    return [Finding("accelerator", Health.WARN, f"TCG: {obstacle}", remedy)]


async def _directories() -> list[Finding]:
    findings = []
    try:
        path = xdg.private_dir(xdg.runtime_dir())
        findings.append(Finding("runtime directory", Health.OK, str(path)))
    except ValeError as exc:
        findings.append(Finding("runtime directory", Health.BAD, str(exc), "set XDG_RUNTIME_DIR"))
    try:
        store = ResultStore()
        free = shutil.disk_usage(store.path.parent).free
        detail = f"{store.path}: {len(store.list(10**6))} results, {free >> 20} MiB free"
        store.close()
        health = Health.OK if free > STATE_BYTES_MIN else Health.WARN
        findings.append(Finding("result store", health, detail, "" if free else "free some space"))
    except ValeError as exc:
        findings.append(Finding("result store", Health.BAD, str(exc), "set XDG_STATE_HOME"))
    return findings


async def _limits() -> list[Finding]:
    memory = int(re.findall(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[0]) >> 10
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    cores = len(os.sched_getaffinity(0))
    return [
        Finding(
            "memory",
            Health.OK if memory >= MEMORY_MIB_MIN else Health.WARN,
            f"{memory} MiB available",
            "" if memory >= MEMORY_MIB_MIN else "two micro guests need 512 MiB",
        ),
        Finding(
            "cores",
            Health.OK if cores >= 2 else Health.WARN,
            f"{cores}",
            "" if cores >= 2 else "figures of a pair on one core say little",
        ),
        Finding(
            "open files",
            Health.OK if files >= FILES_MIN else Health.WARN,
            f"limit {files}",
            "" if files >= FILES_MIN else f"ulimit -n {FILES_MIN}",
        ),
    ]


async def _leftovers() -> list[Finding]:
    return [
        Finding("leftover", Health.WARN, f"lab {lab.lab} was abandoned", f"valemgr down {lab.lab}")
        for lab in all_labs()
        if labs.is_abandoned(lab)
    ]


async def _fix_leftovers() -> list[Finding]:
    fixed = []
    for lab in filter(labs.is_abandoned, all_labs()):
        async with lab.lock("doctor --fix"):
            ended = await down(lab)
        fixed.append(Finding("fixed", Health.OK, f"lab {lab.lab}: {ended} processes ended"))
    return fixed


def _version(text: str) -> tuple[int, int]:
    found = re.search(r"version (\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)
