# SPDX-License-Identifier: BSD-2-Clause
"""A guest of a lab as a transient domain: libvirt starts its QEMU and ends it.

A connection is held for one step, so that nothing breaks when libvirtd is restarted meanwhile. A
domain is found by its UUID, which its lab's directory and its name say.
"""

import asyncio
import logging
import os
import shlex
import socket
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from valemgr import hotplug, machine, proc
from valemgr.deadline import Deadline
from valemgr.emulator import Emulator
from valemgr.errors import (
    EnvironmentUnfitError,
    GuestError,
    LabError,
    LibvirtError,
    NoDomainError,
    ValeError,
    WaitTimeoutError,
)
from valemgr.machine import Streams, forwarded_port
from valemgr.plan import GuestPlan, LibvirtHost, PlannedNic
from valemgr.qmpclient import QmpFailed
from valemgr.tasks import uninterrupted
from valemgr.text import tail
from valemgr.virt import access, ports
from valemgr.virt.connection import Domain, Libvirt, connect
from valemgr.virt.domain import (
    domain_name,
    domain_type,
    guest_uuid,
    nic_element,
    nic_place,
    placed,
    transient,
)
from valemgr.virt.domxml import DomainView, base_label, has_passt
from valemgr.virt.portxml import text_of
from valemgr.wiring import Wire

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
FOUND_SECONDS = 5.0  # until a process that runs is seen
DEVICES = "/machine/peripheral"


class LibvirtMachine:
    """A QEMU that libvirt starts."""

    def __init__(self, plan: GuestPlan) -> None:
        self.argv: Sequence[str] = plan.argv
        self._plan = plan
        self._who = f"guest {plan.name}"
        self._folder = plan.files.identity.parent
        self._uuid = guest_uuid(self._folder, plan.name)

    async def check(self) -> None:
        """Refuse what libvirt or its user could not do."""
        transient(self._plan)
        access.check(self._plan)
        async with connect(self._plan.libvirt) as libvirt:
            await self._check_management(libvirt)
            await self._check_name(libvirt)

    async def _check_name(self, libvirt: Libvirt) -> None:
        name = domain_name(self._plan.lab, self._plan.name)
        with suppress(NoDomainError):
            if (await libvirt.domain(name)).uuid != self._uuid:
                raise LabError(
                    f"{self._who}: {libvirt.uri} has another domain {name}: rename the lab, or see "
                    f"'virsh -c {libvirt.uri} dominfo {name}'"
                )

    async def _check_management(self, libvirt: Libvirt) -> None:
        """A QEMU without user networking needs a libvirt that starts passt."""
        emulator = self._emulator
        if emulator and not emulator.has_user:
            kind = domain_type(self._plan)
            if not has_passt(await libvirt.domain_capabilities(str(emulator.path), kind)):
                raise EnvironmentUnfitError(
                    f"{self._who}: {emulator.path} has no user networking, and this libvirt does "
                    "not start passt: use another emulator (qemu:)"
                )

    @property
    def _emulator(self) -> Emulator | None:
        """None: it was started earlier."""
        host = self._plan.host
        return host.emulators[self._plan.spec.qemu] if host else None

    async def start(self) -> proc.Process:
        access.check_ports(self._plan, zip(self._plan.nics, self._plan.wires, strict=True))
        access.hand_over(self._plan)
        plan = self._plan
        passt = self._emulator is not None and not self._emulator.has_user
        log.info("%s: domain %s at %s", self._who, self._uuid, plan.libvirt)
        making = asyncio.ensure_future(self._make(transient(plan, _free_port() if passt else 0)))
        try:
            return await asyncio.shield(making)
        except LibvirtError as exc:
            raise GuestError(f"{self._who}: {exc}") from exc
        except asyncio.CancelledError:
            # libvirt cannot be stopped half way: what it makes is ended then.
            await uninterrupted(_undo(making))
            raise

    async def _make(self, xml: str) -> proc.Process:
        async with connect(self._plan.libvirt) as libvirt:
            await libvirt.create(xml)
        self._link_log()
        what = f"{self._who}: its QEMU"
        try:
            process = await Deadline(FOUND_SECONDS).retry(what, self._find, (ProcessLookupError,))
            self.argv = proc.command_line(process.pid)
        except (WaitTimeoutError, OSError) as exc:
            last = "".join(tail(self._plan.files.qemu_log, 1)) or "without a word"
            raise GuestError(f"{self._who}: QEMU ended at once: {last}") from exc
        log.info("started by libvirt: %s", shlex.join(self.argv))
        return process

    async def ssh_port(self, deadline: Deadline) -> int:
        """The one that passt was told, else the one that QEMU has picked."""
        async with self._domain() as domain:
            view = DomainView.parse(await domain.live_xml())
            if view.forwarded:
                return view.forwarded
            words = {"command-line": "info usernet"}
            reply = await domain.monitor("human-monitor-command", **words)
        return forwarded_port(self._who, str(reply))

    async def console_says(self, line: str, deadline: Deadline) -> None:
        """libvirt keeps the console's log, and a console is for one reader."""

        async def attempt() -> None:
            if line not in tail(self._plan.files.console_log):
                raise GuestError(f"its console has not said '{line}'")

        await deadline.retry(self._who, attempt, (GuestError,), every=LOOK_SECONDS)

    @asynccontextmanager
    async def console(self) -> AsyncIterator[Streams]:
        async with self._domain() as domain, AsyncExitStack() as stack:
            try:
                streams = await stack.enter_async_context(domain.console())
            except LibvirtError as exc:
                raise LabError(f"console of {self._who}: it serves one at a time: {exc}") from exc
            yield streams

    async def console_is_taken(self) -> bool:
        """libvirt cannot be asked; it refuses a second one."""
        return False

    async def status(self) -> str:
        async with self._domain() as domain:
            return str((await domain.monitor("query-status"))["status"])

    async def plug(self, planned: PlannedNic, wire: Wire) -> None:
        place = nic_place(planned.slot, 0)
        element = nic_element(planned.nic, wire, place)
        async with self._domain() as domain:
            if element is None:
                await hotplug.plug(self._plan.name, Monitor(domain), placed(wire, place))
                return
            access.check_ports(self._plan, [(planned, wire)])
            try:
                await domain.attach(text_of(element))
            except LibvirtError as exc:
                nic = planned.nic.name
                raise GuestError(f"{self._who}: NIC {nic} cannot be plugged: {exc}") from exc

    async def unplug(self, mac: str, wire: Wire) -> None:
        async with self._domain() as domain:
            view = DomainView.parse(await domain.live_xml())
            nic = view.with_mac(mac)
            if nic and nic.element is not None:
                await self._detach(domain, nic.element, nic.alias, wire.netdev["id"])
            else:
                await hotplug.unplug(self._plan.name, Monitor(domain), wire)

    async def _detach(self, domain: Domain, nic: ET.Element, alias: str, name: str) -> None:
        """An interface goes when the guest lets it go."""
        seconds = hotplug.UNPLUG_SECONDS
        try:
            gone = await domain.detach(text_of(nic), alias, seconds)
        except LibvirtError as exc:
            raise GuestError(f"{self._who}: NIC {name} cannot be unplugged: {exc}") from exc
        if not gone:
            raise GuestError(
                f"{self._who} does not let NIC {name} go within {seconds:g} s: its port and its "
                "slot are not free: is its system still well?"
            )

    @asynccontextmanager
    async def _domain(self) -> AsyncIterator[Domain]:
        async with connect(self._plan.libvirt) as libvirt:
            yield await libvirt.domain(self._uuid)

    async def _find(self) -> proc.Process:
        """The process that libvirt has started."""
        owner = access.uid(self._plan)
        for ident, uid, argv in proc.everybody():
            if uid == owner and "-uuid" in argv and self._uuid in argv:
                process = machine.find(ident, self._uuid, self._plan.libvirt)
                if process:
                    return process
        raise ProcessLookupError(f"no QEMU has the UUID {self._uuid}")

    def _link_log(self) -> None:
        """libvirt keeps what QEMU says; `valemgr logs` looks for it beside the console."""
        name = f"{domain_name(self._plan.lab, self._plan.name)}.log"
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        session = self._plan.libvirt.endswith("/session")
        folder = cache / "libvirt/qemu/log" if session else Path("/var/log/libvirt/qemu")
        self._plan.files.qemu_log.unlink(missing_ok=True)
        self._plan.files.qemu_log.symlink_to(folder / name)


class Monitor:
    """QMP by way of libvirt, for what it has no words for."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain

    async def call(self, command: str, **arguments: object) -> Any:
        log.info("qmp %s: %s %s", self._domain.name, command, arguments or "")
        try:
            return await self._domain.monitor(command, **arguments)
        except LibvirtError as exc:
            raise QmpFailed(str(exc)) from exc

    async def call_until(
        self, event: str, data: dict[str, Any], seconds: float, command: str, **arguments: object
    ) -> bool:
        """libvirt passes no event on for a device that it does not know: QEMU's list is read."""
        await self.call(command, **arguments)

        async def attempt() -> None:
            devices = await self._domain.monitor("qom-list", path=DEVICES)
            if any(device["name"] == data["device"] for device in devices):
                raise GuestError(f"{data['device']} is still there")

        deadline = Deadline(seconds)
        try:
            await deadline.retry(event, attempt, (GuestError,), every=LOOK_SECONDS)
        except ValeError as exc:
            log.info("%s: %s", self._domain.name, exc)
            return False
        return True


async def host(accelerator: str) -> LibvirtHost:
    """The libvirt that guests are to run on; EnvironmentUnfitError if it is not there for us."""
    async with connect() as libvirt:
        kind = "kvm" if accelerator == "kvm" else "qemu"
        user = base_label(await libvirt.capabilities(), kind)
        if libvirt.session or user is None:
            return LibvirtHost(libvirt.uri)
        if user[0] == os.geteuid():
            return LibvirtHost(libvirt.uri, user)
        if os.geteuid() != 0:
            raise EnvironmentUnfitError(
                f"{libvirt.uri} runs QEMU as user {user[0]}, who cannot have files of yours: set "
                "LIBVIRT_DEFAULT_URI=qemu:///session, or be root"
            )
        return LibvirtHost(libvirt.uri, user, ports.group_for(user))


async def destroy(uri: str, uuid: str) -> None:
    """End a domain; an empty URI: at the usual libvirt."""
    async with connect(uri or None) as libvirt:
        with suppress(NoDomainError):
            await (await libvirt.domain(uuid)).destroy()


async def until_started(uri: str, uuids: Sequence[str]) -> None:
    """Wait for what libvirt was told to start just before a kill: it goes on by itself.

    libvirt answers to a question about a domain when it has made it.
    """
    try:
        async with connect(uri) as libvirt:
            for uuid in uuids:
                with suppress(NoDomainError):
                    await (await libvirt.domain(uuid)).live_xml()
    except ValeError as exc:
        log.warning("domains that were just being started are not seen: %s", exc)


async def _undo(making: "asyncio.Future[proc.Process]") -> None:
    with suppress(ValeError):
        await (await making).stop()


def _free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on; passt takes it a moment later."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
