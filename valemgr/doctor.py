# SPDX-License-Identifier: BSD-2-Clause
"""`valemgr doctor`: is this machine fit, what is wrong, what to do about it."""

import os
import resource
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from valemgr import __version__, accel, emulator, image, leftovers, locate, proc, switchd, xdg
from valemgr.deadline import Deadline
from valemgr.environment import available_mib
from valemgr.errors import ValeError
from valemgr.results import ResultStore
from valemgr.state import all_labs
from valemgr.wiring import KERNEL_DEVICE, MSIX_SINCE

STATE_BYTES_MIN = 64 << 20
DISK_BYTES_MIN = 1 << 30
RUNTIME_BYTES_MIN = 16 << 20
LOG_BYTES_MAX = 100 << 20
MEMORY_MIB_MIN = 512
FILES_MIN = 1024
NAMES_LENGTH = len("/vale1-lab/guest-name.console")
LIBRARIES = ("qemu.qmp", "paramiko", "pydantic", "typer", "cryptography")
IMAGES = ("micro", "micro-frr")


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
    findings = []
    if fix:
        findings = [Finding("fixed", Health.OK, done) for done in await leftovers.clean()]
    checks: list[Callable[[], Coroutine[Any, Any, list[Finding]]]] = [
        _versions,
        _emulators,
        _valed,
        _kernel_provider,
        _images,
        _accelerator,
        _directories,
        _limits,
        _leftovers,
    ]
    for check in checks:
        findings += await check()
    return findings


def judged(check: str, fit: bool, detail: str, remedy: str) -> Finding:
    """A finding that warns, with its remedy, unless all is well."""
    return Finding(check, Health.OK if fit else Health.WARN, detail, "" if fit else remedy)


async def _versions() -> list[Finding]:
    parts = [f"valemgr {__version__}"]
    parts += [f"{name} {metadata.version(name)}" for name in LIBRARIES]
    return [Finding("versions", Health.OK, ", ".join(parts))]


async def _emulators() -> list[Finding]:
    ours, stock = locate.find(locate.QEMU), locate.find(emulator.STOCK)
    findings = []
    if ours is None:
        health = Health.WARN if stock else Health.BAD
        what = f"no {locate.QEMU}: NICs join by vhost-user or stream" if stock else "no QEMU"
        findings.append(Finding("qemu", health, what, locate.remedy("vale-qemu")))
    for path in (ours, stock):
        if path:
            findings += await _emulator(path, is_ours=path == ours)
    return findings


async def _emulator(path: Path, is_ours: bool) -> list[Finding]:
    remedy = locate.remedy("vale-qemu") if is_ours else f"install {emulator.STOCK} anew"
    try:
        found = await emulator.examine(path)
    except ValeError as exc:
        return [Finding("qemu", Health.BAD, str(exc), remedy)]
    version = ".".join(map(str, found.version))
    netmap = "with" if found.has_netmap else "without"
    findings = [Finding("qemu", Health.OK, f"{path}: {version}, {netmap} netmap")]
    if is_ours and not found.has_netmap:
        findings.append(Finding("qemu netmap", Health.BAD, f"{path} lacks netmap", remedy))
    if found.version < emulator.STREAM_SINCE:
        detail = f"{path}: QEMU {version} has no stream netdev"
        findings.append(Finding("qemu stream", Health.WARN, detail, "QEMU 7.2 or newer"))
    if found.version < MSIX_SINCE and accel.kvm_obstacle():
        detail = f"{path}: QEMU before 8.0 under TCG crashes with vhost-user and MSI-X"
        help_ = "valemgr sets vectors=0 and one queue pair; do so too where you start QEMU yourself"
        findings.append(Finding("known crash", Health.WARN, detail, help_))
    return findings


async def _valed() -> list[Finding]:
    path = locate.find(locate.VALED)
    if path is None:
        return [Finding("valed", Health.BAD, "no valed", locate.remedy("valed"))]
    _, about = await proc.output_of([str(path), "--version"], Deadline(10))
    version = about.strip().removeprefix("valed ")
    findings = [Finding("valed", Health.OK, f"{path}: {version}")]
    async with switchd.connected() as running:
        if running is None:
            detail = f"none runs; one is started on demand in {switchd.server_dir()}"
            return [*findings, Finding("switch", Health.OK, detail)]
        same = running.version == version
        detail = f"valed {running.version} (pid {running.pid}) runs in {running.rundir}"
        remedy = f"it is not the {version} that is installed: restart it when no lab runs"
        return [*findings, judged("switch", same, detail, remedy)]


async def _kernel_provider() -> list[Finding]:
    device = Path(KERNEL_DEVICE)
    if not device.exists():
        return [Finding("kernel provider", Health.OK, f"no {device}: switches are valed's")]
    fit = os.access(device, os.R_OK | os.W_OK)
    detail = f"{device} is here: the same switch name exists once in each provider"
    return [judged("kernel provider", fit, detail, "you may not open it: chgrp and chmod it")]


async def _images() -> list[Finding]:
    findings = []
    for name in IMAGES:
        try:
            found = image.load(name)
        except ValeError as exc:
            health = Health.BAD if name == IMAGES[0] else Health.WARN
            findings.append(Finding("image", health, str(exc), locate.remedy("vale-images")))
        else:
            kernel = found.manifest.get("kernel_release", "?")
            findings.append(Finding("image", Health.OK, f"{found.files[0].parent}, Linux {kernel}"))
    return findings


async def _accelerator() -> list[Finding]:
    obstacle = accel.kvm_obstacle()
    if not obstacle:
        return [Finding("accelerator", Health.OK, "KVM")]
    remedy = "enable (nested) virtualisation; TCG works, slower"
    if "Permission denied" in obstacle:
        remedy = "add yourself to the group kvm, and log in anew; TCG works, slower"
    return [Finding("accelerator", Health.WARN, f"TCG: {obstacle}", remedy)]


async def _directories() -> list[Finding]:
    findings = []
    try:
        path = xdg.private_dir(xdg.runtime_dir())
        room = xdg.SOCKET_PATH_MAX - len(str(path))
        fit = room >= NAMES_LENGTH
        detail = f"{path}, {room} bytes left for names of labs, guests and sockets"
        findings.append(judged("runtime directory", fit, detail, "set XDG_RUNTIME_DIR shorter"))
        free = shutil.disk_usage(path).free
        detail = f"{free >> 20} MiB free for consoles and keys"
        findings.append(judged("runtime space", free > RUNTIME_BYTES_MIN, detail, "free some"))
    except ValeError as exc:
        findings.append(Finding("runtime directory", Health.BAD, str(exc), "set XDG_RUNTIME_DIR"))
    return [*findings, _disk_room(), *_store()]


def _disk_room() -> Finding:
    """Where QEMU keeps what guests write to their disks (it does not take /tmp)."""
    said = os.environ.get("TMPDIR", "/tmp")
    folder = Path("/var/tmp" if said == "/tmp" else said)
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    detail = f"{folder}: {free >> 20} MiB free for what guests write to their disks"
    return judged("disk space", free > DISK_BYTES_MIN, detail, "free some, or set TMPDIR")


def _store() -> list[Finding]:
    try:
        store = ResultStore()
        free = shutil.disk_usage(store.path.parent).free
        detail = f"{store.path}: {len(store.list(10**6))} results, {free >> 20} MiB free"
        store.close()
    except ValeError as exc:
        return [Finding("result store", Health.BAD, str(exc), "set XDG_STATE_HOME")]
    logs = xdg.state_dir() / "logs"
    size = sum(path.stat().st_size for path in logs.glob("*.log"))
    return [
        judged("result store", free > STATE_BYTES_MIN, detail, "free some space"),
        judged("logs", size < LOG_BYTES_MAX, f"{logs}: {size >> 20} MiB", f"rm {logs}/*.log"),
    ]


async def _limits() -> list[Finding]:
    memory = available_mib()
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    cores = len(os.sched_getaffinity(0))
    return [
        judged(
            "memory", memory >= MEMORY_MIB_MIN, f"{memory} MiB available",
            f"two micro guests need {MEMORY_MIB_MIN} MiB",
        ),
        judged("cores", cores >= 2, f"{cores}", "figures of a pair on one core say little"),
        judged("open files", files >= FILES_MIN, f"limit {files}", f"ulimit -n {FILES_MIN}"),
        _process_limit(),
    ]


def _process_limit() -> Finding:
    """A QEMU has some threads; the limit counts all of a user's."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    fit = limit == resource.RLIM_INFINITY or limit >= FILES_MIN
    words = "none" if limit == resource.RLIM_INFINITY else str(limit)
    return judged("processes", fit, f"limit {words}", f"ulimit -u {FILES_MIN}")


async def _leftovers() -> list[Finding]:
    found = await leftovers.find()
    if not found:
        running = len(all_labs())
        return [Finding("leftovers", Health.OK, f"none; {running} labs run")]
    return [Finding("leftover", Health.WARN, each.what, each.remedy) for each in found]
