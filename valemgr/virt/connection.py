# SPDX-License-Identifier: BSD-2-Clause
"""libvirt-python, behind types: a connection, its domains, their events.

All calls are made in one thread, in which libvirtaio's event loop runs, too: libvirt's event
implementation is one for a process and knows nothing of threads. Callers await in loops of their
own, and hear of events through a queue.
"""

import asyncio
import json
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from valemgr.deadline import Deadline
from valemgr.errors import EnvironmentUnfitError, LibvirtError, NoDomainError, UsageError
from valemgr.virt.bridge import Bridge

T = TypeVar("T")

SYSTEM, SESSION = "qemu:///system", "qemu:///session"
ANSWER_SECONDS, CLOSE_SECONDS = 15.0, 1.0
CLOSED = "closed"  # the event that says that libvirtd is gone
DEVICE_REMOVED, METADATA_CHANGED = "device-removed", "metadata-changed"
_LIFECYCLE = (
    "defined", "undefined", "started", "suspended", "resumed", "stopped", "shutdown", "suspended",
    "crashed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """Something that happened to a domain: a word of _LIFECYCLE or above; detail: a device."""

    kind: str
    domain: str = ""
    uuid: str = ""
    detail: str = ""


class Domain:
    """A domain of a connection. It may be gone or another by the time that it is asked."""

    def __init__(self, libvirt: "Libvirt", raw: Any, name: str, uuid: str) -> None:
        self.name = name
        self.uuid = uuid
        self._libvirt = libvirt
        self._raw = raw

    async def running(self) -> bool:
        return bool(await self._libvirt.call(self._raw.isActive))

    async def persistent(self) -> bool:
        return bool(await self._libvirt.call(self._raw.isPersistent))

    async def live_xml(self) -> str:
        """As it runs, or would run."""
        return str(await self._libvirt.call(self._raw.XMLDesc, 0))

    async def config_xml(self) -> str:
        """As it will start next; with secrets, so that it can be defined again."""
        lib = _library()
        flags = lib.VIR_DOMAIN_XML_INACTIVE | lib.VIR_DOMAIN_XML_SECURE
        return str(await self._libvirt.call(self._raw.XMLDesc, flags))

    async def attach(self, xml: str) -> None:
        """Plug a device into the running domain."""
        flags = _library().VIR_DOMAIN_AFFECT_LIVE
        await self._libvirt.call(self._raw.attachDeviceFlags, xml, flags)

    async def detach(self, xml: str, alias: str, seconds: float) -> bool:
        """Ask the running guest to let a device go; whether it has, within that time."""
        flags = _library().VIR_DOMAIN_AFFECT_LIVE
        async with self._libvirt.events() as events:
            try:
                async with asyncio.timeout(seconds):
                    await self._libvirt.call(self._raw.detachDeviceFlags, xml, flags)
                    await self._until_removed(events, alias)
            except TimeoutError:
                return False
        return True

    async def _until_removed(self, events: "asyncio.Queue[DomainEvent]", alias: str) -> None:
        while True:
            event = await events.get()
            if event.kind == CLOSED:
                raise LibvirtError("libvirtd went away")
            if event.uuid == self.uuid and event.kind in ("stopped", "crashed"):
                raise LibvirtError(f"domain {self.name} has ended")
            if (event.kind, event.uuid, event.detail) == (DEVICE_REMOVED, self.uuid, alias):
                return

    async def set_metadata(self, xml: str | None, prefix: str, uri: str) -> None:
        """Write the element of a name space while the domain runs; None removes it."""
        lib = _library()
        kind, flags = lib.VIR_DOMAIN_METADATA_ELEMENT, lib.VIR_DOMAIN_AFFECT_LIVE
        await self._libvirt.call(self._raw.setMetadata, kind, xml, prefix, uri, flags)

    async def destroy(self) -> None:
        """End its process."""
        await self._libvirt.call(self._raw.destroy)

    async def monitor(self, command: str, **arguments: object) -> Any:
        """One QMP command, past libvirt's own view of the domain; LibvirtError with its reason."""
        import libvirt_qemu

        words = json.dumps({"execute": command, "arguments": arguments})
        said = await self._libvirt.call(libvirt_qemu.qemuMonitorCommand, self._raw, words, 0)
        answer = json.loads(said)
        if "error" in answer:
            raise LibvirtError(f"domain {self.name}: {command}: {answer['error']['desc']}")
        return answer["return"]

    @asynccontextmanager
    async def console(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Its console, for a block; refused while somebody else has it."""
        lib = _library()
        stream = await self._libvirt.call(self._libvirt.raw.newStream, lib.VIR_STREAM_NONBLOCK)
        await self._libvirt.call(self._raw.openConsole, None, stream, lib.VIR_DOMAIN_CONSOLE_SAFE)
        ours, theirs = socket.socketpair()
        bridge = asyncio.ensure_future(_thread().run(Bridge(lib, stream, theirs).run()))
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            yield reader, writer
        finally:
            writer.close()  # which ends the bridge
            await bridge


class Libvirt:
    """A connection."""

    def __init__(self, uri: str, raw: Any) -> None:
        self.uri = uri
        self.raw = raw

    @property
    def session(self) -> bool:
        """Whether domains run as ourselves, not as libvirt's user."""
        return is_session(self.uri)

    async def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call libvirt in its thread; what it refuses becomes an error of ours.

        It cannot be stopped half way: who is cancelled learns of that when it is over.
        """
        calling = asyncio.ensure_future(_thread().call(function, *arguments))
        try:
            return await asyncio.shield(calling)
        except asyncio.CancelledError:
            await asyncio.wait({calling}, timeout=ANSWER_SECONDS)
            raise

    async def domain(self, name: str) -> Domain:
        """A domain by name or UUID; NoDomainError if there is none."""
        raw = await _thread().call(_lookup, self.raw, name)
        if raw is None:
            where = "" if self.uri == default_uri() else f" -c {self.uri}"
            raise NoDomainError(f"no domain {name} at {self.uri}: see 'virsh{where} list --all'")
        return self._domain(raw)

    async def domains(self) -> list[Domain]:
        """All of them, by name."""
        found = [self._domain(raw) for raw in await self.call(self.raw.listAllDomains, 0)]
        return sorted(found, key=lambda domain: domain.name)

    async def create(self, xml: str) -> Domain:
        """Start a transient domain."""
        return self._domain(await self.call(self.raw.createXML, xml, 0))

    async def define(self, xml: str) -> Domain:
        """Make or change what a domain will start with."""
        return self._domain(await self.call(self.raw.defineXML, xml))

    async def capabilities(self) -> str:
        """The host's capabilities, XML."""
        return str(await self.call(self.raw.getCapabilities))

    async def domain_capabilities(self, emulator: str, kind: str) -> str:
        """What domains of an emulator can have, XML; kind: kvm or qemu."""
        words = (emulator, "x86_64", "q35", kind)
        return str(await self.call(self.raw.getDomainCapabilities, *words))

    @asynccontextmanager
    async def events(self) -> AsyncIterator["asyncio.Queue[DomainEvent]"]:
        """What happens to domains meanwhile; CLOSED comes when libvirtd is gone."""
        queue: asyncio.Queue[DomainEvent] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: DomainEvent) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, event)

        ids = await self.call(_register, self.raw, tell)
        try:
            yield queue
        finally:
            await self.call(_deregister, self.raw, ids)

    def _domain(self, raw: Any) -> Domain:
        return Domain(self, raw, raw.name(), raw.UUIDString())


@asynccontextmanager
async def connect(uri: str | None = None) -> AsyncIterator[Libvirt]:
    """A connection for a block; by default to where virsh would connect."""
    lib = _library()
    wanted = uri or default_uri()
    if urlsplit(wanted).netloc:
        raise EnvironmentUnfitError(
            f"{wanted} is another machine's libvirt, and valed is on this one: run valemgr there"
        )
    try:
        opening = _thread().call(lib.open, wanted)
        raw = await Deadline(ANSWER_SECONDS).wait(f"answer of libvirtd at {wanted}", opening)
    except LibvirtError as exc:
        advice = _advice(str(exc))
        raise EnvironmentUnfitError(f"cannot connect to {wanted}: {exc}{advice}") from exc
    try:
        yield Libvirt(wanted, raw)
    finally:
        closing = asyncio.ensure_future(_thread().call(_close, raw))
        await asyncio.wait({closing}, timeout=CLOSE_SECONDS)  # it may hang, and we go on


def default_uri() -> str:
    """As libvirt's own tools choose: $LIBVIRT_DEFAULT_URI, else root's are the system's domains."""
    given = os.environ.get("LIBVIRT_DEFAULT_URI")
    return given or (SYSTEM if os.geteuid() == 0 else SESSION)


def is_session(uri: str) -> bool:
    """Whether domains run as ourselves, not as libvirt's user."""
    return uri.partition("?")[0].endswith("/session")


class _Thread:
    """The thread in which libvirt is called."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="libvirt", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._prepare(), self._loop).result()

    async def _prepare(self) -> None:
        import libvirtaio

        libvirtaio.virEventRegisterAsyncIOImpl(self._loop)
        _library().registerErrorHandler(lambda *_: None, None)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def call(self, function: Callable[..., T], *arguments: object) -> T:
        async def called() -> T:
            try:
                return function(*arguments)
            except _library().libvirtError as exc:
                raise _ours(exc) from exc

        return await self.run(called())


_the_thread: _Thread | None = None


def _thread() -> _Thread:
    global _the_thread  # one event implementation is all that libvirt takes
    if _the_thread is None:
        _library()
        _the_thread = _Thread()
    return _the_thread


def _library() -> Any:
    """libvirt-python, which is an extra."""
    try:
        import libvirt
    except ImportError as exc:
        pip = Path(sys.prefix) / "bin/pip"
        raise EnvironmentUnfitError(
            f"libvirt-python is not installed: run '{pip} install libvirt-python', which needs "
            "libvirt-dev and python3-dev, or 'make libvirt' in a clone"
        ) from exc
    return libvirt


def _lookup(raw: Any, name: str) -> Any:
    lib = _library()
    for look in (raw.lookupByName, raw.lookupByUUIDString):
        try:
            return look(name)
        except lib.libvirtError as exc:
            known = (lib.VIR_ERR_NO_DOMAIN, lib.VIR_ERR_INVALID_ARG)
            if exc.get_error_code() not in known:
                raise
    return None


def _register(raw: Any, tell: Callable[[DomainEvent], None]) -> list[int]:
    lib = _library()

    def lifecycle(_: Any, domain: Any, event: int, *rest: Any) -> None:
        kind = _LIFECYCLE[event] if event < len(_LIFECYCLE) else "changed"
        tell(DomainEvent(kind, domain.name(), domain.UUIDString()))

    def removed(_: Any, domain: Any, alias: str, *rest: Any) -> None:
        tell(DomainEvent(DEVICE_REMOVED, domain.name(), domain.UUIDString(), alias))

    def metadata(_: Any, domain: Any, *rest: Any) -> None:
        tell(DomainEvent(METADATA_CHANGED, domain.name(), domain.UUIDString()))

    raw.registerCloseCallback(lambda *_: tell(DomainEvent(CLOSED)), None)
    wanted = {
        lib.VIR_DOMAIN_EVENT_ID_LIFECYCLE: lifecycle,
        lib.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: removed,
        lib.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE: metadata,
    }
    return [raw.domainEventRegisterAny(None, number, told, None) for number, told in wanted.items()]


def _deregister(raw: Any, ids: list[int]) -> None:
    if raw.isAlive():
        for number in ids:
            raw.domainEventDeregisterAny(number)
        raw.unregisterCloseCallback()


def _close(raw: Any) -> None:
    raw.close()


def _ours(exc: Any) -> Exception:
    """libvirt's error as one of ours, with its own words."""
    lib = _library()
    said = " ".join(str(exc).split())
    code = exc.get_error_code()
    if code in (lib.VIR_ERR_XML_ERROR, lib.VIR_ERR_XML_DETAIL, lib.VIR_ERR_XML_INVALID_SCHEMA):
        return UsageError(f"libvirt does not take this XML: {said}")
    if code == lib.VIR_ERR_NO_DOMAIN:
        return NoDomainError(f"the domain is gone: {said}")
    if code in (lib.VIR_ERR_AUTH_FAILED, lib.VIR_ERR_AUTH_UNAVAILABLE, lib.VIR_ERR_ACCESS_DENIED):
        return EnvironmentUnfitError(f"libvirt does not let you: {said}")
    return LibvirtError(f"libvirt: {said}")


def _advice(said: str) -> str:
    if "ermission denied" in said:
        return f": join the group libvirt, or use --connect {SESSION}"
    if "No such file" in said or "refused" in said:
        return ": is libvirtd installed, and does it run?"
    return ""
