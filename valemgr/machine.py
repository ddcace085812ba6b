# SPDX-License-Identifier: BSD-2-Clause
"""What a guest runs in: a QEMU of our own, or one that libvirt runs for us.

    QemuMachine      argv; QMP on the socket `ctl`, the console on a socket
    LibvirtMachine   a domain (virt/machine.py)

Both are a process in the end: it is waited for, and found again, in the same way.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from valemgr import hotplug, proc, qmpclient, xdg
from valemgr.deadline import Deadline
from valemgr.errors import GuestError
from valemgr.plan import FW_CFG_NAME, GuestPlan, PlannedNic
from valemgr.qmpclient import Qmp
from valemgr.text import tail
from valemgr.virt.domain import guest_uuid
from valemgr.wiring import Wire, option

QMP_SECONDS = 5.0
STEP_SECONDS = 60.0  # of a change in a guest that runs
CONSOLE_LOOK_SECONDS = 1.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_FORWARD = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\b")
_GUEST_FILE = re.compile(r"([^/,]+)/([^/,.]+)\.(?:ctl|json|seed)(?:,|$)")


class Machine(Protocol):
    """One guest's machine; it may have been started by an earlier valemgr."""

    argv: Sequence[str]  # of its QEMU, once it runs

    async def check(self) -> None:
        """Refuse what cannot be started, before anything changes."""

    async def start(self) -> proc.Process:
        """Start it; its identity is written, its ports are there."""

    async def ssh_port(self, deadline: Deadline) -> int:
        """The port on 127.0.0.1 that leads to its sshd, as soon as it can be asked."""

    async def console_says(self, line: str, deadline: Deadline) -> None:
        """Wait until its console has said a line."""

    def console(self) -> AbstractAsyncContextManager[Streams]:
        """Its console, for a block; who has it has it alone."""

    async def console_is_taken(self) -> bool:
        """Whether somebody has it, as far as can be asked."""

    async def status(self) -> str:
        """What it does, in QEMU's words: running, paused, …"""

    async def plug(self, planned: PlannedNic, wire: Wire) -> None:
        """Give it a NIC."""

    async def unplug(self, mac: str, wire: Wire) -> None:
        """Take a NIC away."""


def machine_of(plan: GuestPlan) -> Machine:
    """The machine of a guest that is to be started, or was."""
    if not plan.libvirt:
        return QemuMachine(plan)
    from valemgr.virt.machine import LibvirtMachine

    return LibvirtMachine(plan)


class QemuMachine:
    """A QEMU that we start."""

    def __init__(self, plan: GuestPlan) -> None:
        self.argv: Sequence[str] = plan.argv
        self._files = plan.files
        self._who = f"guest {plan.name}"
        self._name = plan.name

    async def check(self) -> None:
        """Nothing that is not known from the plan."""

    async def start(self) -> proc.Process:
        return proc.start(self.argv, output=self._files.qemu_log)

    async def ssh_port(self, deadline: Deadline) -> int:
        """QEMU picks the port: so it is asked."""
        qmp = await deadline.retry(
            f"{self._who}: QMP socket",
            lambda: qmpclient.connect(self._files.ctl, self._who),
            (OSError,),
        )
        try:
            reply = await qmp.call("human-monitor-command", **{"command-line": "info usernet"})
        finally:
            await qmp.close()
        return forwarded_port(self._who, str(reply))

    async def console_says(self, line: str, deadline: Deadline) -> None:
        """Read the console until it says so; what QEMU wrote before it let us in is in its log."""
        reader, writer = await asyncio.open_unix_connection(self._files.console)
        heard = b""
        try:
            while line.encode() not in heard and line not in tail(self._files.console_log):
                with suppress(TimeoutError):
                    async with asyncio.timeout(CONSOLE_LOOK_SECONDS):
                        chunk = await reader.read(4096)
                        if not chunk:
                            raise GuestError(f"{self._who}: its console hung up")
                        heard = heard[-len(line) :] + chunk
        finally:
            writer.close()

    @asynccontextmanager
    async def console(self) -> AsyncIterator[Streams]:
        try:
            reader, writer = await asyncio.open_unix_connection(self._files.console)
        except OSError as exc:
            raise GuestError(f"{self._who} has no console: {exc.strerror}") from exc
        try:
            yield reader, writer
        finally:
            writer.close()

    async def console_is_taken(self) -> bool:
        """QEMU's socket serves one client; a second one would wait in silence."""
        try:
            async with self._qmp(QMP_SECONDS) as qmp:
                devices = await qmp.call("query-chardev")
        except OSError as exc:
            raise GuestError(f"{self._who}: QEMU does not answer: {exc.strerror or exc}") from exc
        names = [str(device["filename"]) for device in devices if device["label"] == "console"]
        return not any(name.startswith("disconnected:") for name in names)

    async def status(self) -> str:
        async with self._qmp(QMP_SECONDS) as qmp:
            return str((await qmp.call("query-status"))["status"])

    async def plug(self, planned: PlannedNic, wire: Wire) -> None:
        async with self._qmp(STEP_SECONDS) as qmp:
            await hotplug.plug(self._name, qmp, wire)

    async def unplug(self, mac: str, wire: Wire) -> None:
        async with self._qmp(STEP_SECONDS) as qmp:
            await hotplug.unplug(self._name, qmp, wire)

    def _qmp(self, seconds: float) -> AbstractAsyncContextManager[Qmp]:
        return qmpclient.session(self._files.ctl, self._who, Deadline(seconds))


def forwarded_port(who: str, usernet: str) -> int:
    """The port that QEMU has picked, of what `info usernet` says."""
    forward = _FORWARD.search(usernet)
    if forward is None:
        raise GuestError(f"{who}: QEMU forwards no port to its SSH: {usernet.strip()}")
    return int(forward.group(1))


@dataclass(frozen=True, slots=True)
class FoundQemu:
    """A QEMU that is a lab's guest, and its lab's directory, whether that exists."""

    ident: proc.ProcessId
    folder: Path
    uuid: str  # of its domain; empty: it is our own


def all_running() -> Iterator[FoundQemu]:
    """Every QEMU that is a guest of a lab of ours, by the files in its command line.

    To ask at sockets would not do: who was just started has none yet, and who is frozen does not
    answer. libvirt's may be of another user; such a one must have the UUID that is our guest's, so
    that nobody who writes a command line has us end a domain.
    """
    root = xdg.runtime_dir()
    starts = (
        option({"type": "socket", "id": "ctl", "path": f"{root}{os.sep}"}),
        option({"name": FW_CFG_NAME, "file": f"{root}{os.sep}"}),
        option({"if": "none", "id": "seed", "file": f"{root}{os.sep}"}),
    )
    for ident, uid, argv in proc.everybody():
        found = next(filter(None, (_guest_in(word, starts) for word in argv)), None)
        if found is None:
            continue
        uuid = argv[argv.index("-uuid") + 1] if "-uuid" in argv[:-1] else ""
        folder = root / found[0]
        ours = not uuid and uid == os.geteuid()
        if ours or uuid == guest_uuid(folder, found[1]):
            yield FoundQemu(ident, folder, uuid)


def find(ident: proc.ProcessId, uuid: str, uri: str) -> proc.Process | None:
    """A guest's process that was started earlier; libvirt ends a domain's, by its UUID."""
    process = proc.find(ident)
    if process and uuid:
        from valemgr.virt.machine import destroy

        process.ask_to_end = partial(destroy, uri, uuid)
    return process


async def until_started(uri: str, uuids: Sequence[str]) -> None:
    """Wait for domains that libvirt is just making."""
    from valemgr.virt import machine

    await machine.until_started(uri, uuids)


def _guest_in(word: str, starts: Sequence[str]) -> tuple[str, str] | None:
    """Lab and guest of a word of a command line that names a file of a guest."""
    rest = next((word.removeprefix(start) for start in starts if word.startswith(start)), "")
    match = _GUEST_FILE.match(rest)
    return (match[1], match[2]) if match else None
