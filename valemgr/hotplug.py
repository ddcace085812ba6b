# SPDX-License-Identifier: BSD-2-Clause
"""NICs that come to a running guest and go, by QMP: chardev, netdev, device, and back.

A socket is probed before QEMU is told to connect to it: a netdev whose provider is silent would
stop QEMU's main loop. What fails half way is undone.
"""

import asyncio
import errno
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from valemgr.errors import GuestError, SwitchError
from valemgr.qmpclient import QmpFailed
from valemgr.tasks import uninterrupted
from valemgr.wiring import Wire

UNPLUG_SECONDS = 30.0
PROBE_SECONDS = 5.0


class Monitor(Protocol):
    """QMP of a guest: our own connection, or by way of libvirt; QmpFailed if it refuses."""

    async def call(self, command: str, **arguments: object) -> Any:
        """Execute a command and return its answer."""

    async def call_until(
        self, event: str, data: dict[str, Any], seconds: float, command: str, **arguments: object
    ) -> bool:
        """Execute a command and wait for an event with this data; False: it does not come."""


async def plug(guest: str, qmp: Monitor, wire: Wire) -> None:
    """Give a guest a NIC; GuestError with QEMU's reason if it does not take it."""
    try:
        await _plug(guest, qmp, wire)
    except GuestError as exc:
        if "uplicate" not in str(exc):
            raise
        # Remains of an attempt that was killed half way.
        await unplug(guest, qmp, wire)
        await _plug(guest, qmp, wire)


async def _plug(guest: str, qmp: Monitor, wire: Wire) -> None:
    name = wire.netdev["id"]
    undo: list[tuple[str, str]] = []
    try:
        if wire.chardev:
            chardev = wire.chardev["id"]
            await qmp.call("chardev-add", id=chardev, backend=wire.chardev_backend())
            undo.append(("chardev-remove", chardev))
        await qmp.call("netdev_add", **wire.netdev)
        undo.append(("netdev_del", name))
        await qmp.call("device_add", **wire.device)
    except BaseException as exc:
        await uninterrupted(_undo(qmp, undo))
        if isinstance(exc, QmpFailed):
            raise GuestError(f"guest {guest}: NIC {name} cannot be plugged: {exc}") from exc
        raise


async def _undo(qmp: Monitor, steps: list[tuple[str, str]]) -> None:
    for command, what in reversed(steps):
        with suppress(QmpFailed):  # the error that led here is the one to tell
            await qmp.call(command, id=what)


async def unplug(guest: str, qmp: Monitor, wire: Wire) -> None:
    """Take a NIC away; GuestError if the guest does not let it go. The port is free then."""
    name, device = wire.netdev["id"], wire.device["id"]
    try:
        gone = await qmp.call_until(
            "DEVICE_DELETED", {"device": device}, UNPLUG_SECONDS, "device_del", id=device
        )
    except QmpFailed as exc:
        if "not found" not in str(exc):
            raise GuestError(f"guest {guest}: NIC {name} cannot be unplugged: {exc}") from exc
        gone = True
    for command, what in (("netdev_del", name), ("chardev-remove", f"{name}-chr")):
        try:
            await qmp.call(command, id=what)
        except QmpFailed as exc:
            if "not found" not in str(exc):
                raise GuestError(f"guest {guest}: NIC {name}: {command}: {exc}") from exc
    if not gone:
        raise GuestError(
            f"guest {guest} does not let NIC {name} go within {UNPLUG_SECONDS:g} s: its port is "
            "free, its slot is not: is its system still well?"
        )


async def probe(path: Path) -> None:
    """Whether somebody accepts connections there; SwitchError if not."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            try:
                await _connect(path, socket.SOCK_STREAM)
            except OSError as exc:
                if exc.errno != errno.EPROTOTYPE:
                    raise
                await _connect(path, socket.SOCK_SEQPACKET)  # as netmap.sock is
    except (OSError, TimeoutError) as exc:
        reason = getattr(exc, "strerror", None) or "no answer"
        raise SwitchError(f"nobody serves {path}: {reason}: is valed well?") from exc


async def _connect(path: Path, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(path))
