# SPDX-License-Identifier: BSD-2-Clause
"""NICs on ports, for domains that others made: attach, detach, move, sync.

Everything that can refuse comes first; a domain that is refused is as it was. A change concerns the
running domain (live), what it starts with next (config), or both:

    config   read anew and defined at once, so that what others changed meanwhile stays
    live     the port is made, the guest takes the NIC or lets it go, metadata says so
    ports    that nobody needs any more go last

What fails half way is undone backwards. Undoing looks at what the domain has then: what libvirt
was asked for may have happened all the same.
"""

import logging
import os
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from valemgr import emulator, switchd
from valemgr.emulator import Emulator
from valemgr.errors import EnvironmentUnfitError, GuestError, LibvirtError, UsageError, ValeError
from valemgr.names import PortName
from valemgr.tasks import uninterrupted
from valemgr.virt import mending, ports
from valemgr.virt.connection import Domain, Libvirt, default_uri, is_session
from valemgr.virt.domxml import DomainView, PluggedPort, base_label
from valemgr.virt.portxml import (
    NAMESPACE,
    PREFIX,
    MappedPort,
    interface,
    ports_element,
    stable_mac,
    text_of,
)
from valemgr.words import Backend

log = logging.getLogger(__name__)

Say = Callable[[str], None]
Mapped = tuple[MappedPort, ...]

UNPLUG_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Scope:
    """What a change concerns; None: whatever there is."""

    live: bool | None = None
    config: bool | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """A domain: both halves that it has, and which of them a change concerns."""

    domain: Domain
    live: DomainView | None
    config: DomainView | None
    changes_live: bool
    changes_config: bool
    emulator: Emulator
    user: tuple[int, int] | None  # of its QEMU

    @property
    def halves(self) -> list[DomainView]:
        return [view for view in (self.live, self.config) if view]

    @property
    def changing(self) -> list[DomainView]:
        chosen = ((self.live, self.changes_live), (self.config, self.changes_config))
        return [view for view, changes in chosen if view and changes]

    def live_nic(self, port: PortName) -> PluggedPort | None:
        """The NIC that it has now on a port, if that is to change."""
        return self.live.on(port) if self.live and self.changes_live else None

    async def make_port(self, rundir: Path, port: PortName) -> bool:
        """Make a port that its QEMU may connect to; False: it was there."""
        group, owner = ports.group_for(self.user), self.domain.uuid
        return await ports.make_port(rundir, port, self.user, group=group, owner=owner)


async def attach(
    libvirt: Libvirt,
    name: str,
    port: PortName,
    scope: Scope,
    say: Say,
    mac: str | None = None,
    queues: int = 1,
) -> None:
    """Give a domain a NIC on a port."""
    it = await _subject(libvirt, name, scope)
    await _require_free(libvirt, it.domain, port)
    if all(view.on(port) for view in it.changing):
        raise LibvirtError(f"domain {name} has a NIC on {port} already")
    _check_queues(it, queues)
    address, rundir = _mac_for(it, port, mac), rundir_of(libvirt)
    nic = interface(port, address, rundir, queues)
    plugs = it.live if it.changes_live and it.live and not it.live.on(port) else None
    if plugs:
        _check_live(it, plugs, port)
    added: list[str] = []

    def change(config: DomainView) -> DomainView:
        if config.on(port):
            return config
        changed, more = mending.mended(config, it.emulator, 1)
        added.append(f", with {' and '.join(more)}" if more else "")
        changed = mending.with_nic(changed, deepcopy(nic))
        return mending.with_ports(changed, _with(config.mapped, MappedPort(port, address)))

    async with _configured(libvirt, it, change):
        if plugs:
            await _plug(it, plugs, MappedPort(port, address), nic, rundir)
            say(f"domain {name}: plugged into {port}")
    if added:
        say(f"domain {name}: starts with a NIC on {port} from now on{added[0]}")


async def detach(libvirt: Libvirt, name: str, port: PortName, scope: Scope, say: Say) -> None:
    """Take a domain's NIC on a port away; the port goes, too."""
    it = await _subject(libvirt, name, scope)
    _require_on(it, port)

    def change(config: DomainView) -> DomainView:
        return mending.with_ports(mending.without_nic(config, port), _without(config.mapped, port))

    nic = it.live_nic(port)
    async with _configured(libvirt, it, change):
        if nic:
            await _unplug(it.domain, nic)
    if nic:
        await _forget(it, nic)
        say(f"domain {name}: unplugged from {port}")
    if it.changes_config:
        say(f"domain {name}: starts without a NIC on {port} from now on")


async def move(
    libvirt: Libvirt, name: str, old: PortName, new: PortName, scope: Scope, say: Say
) -> None:
    """Put a domain's NIC on another port; its MAC stays, and the guest sees it go and come."""
    it = await _subject(libvirt, name, scope)
    _require_on(it, old)
    await _require_free(libvirt, it.domain, new)
    if any(view.on(new) for view in it.halves):
        raise LibvirtError(f"domain {name} has a NIC on {new} already: detach it first")
    rundir, nic = rundir_of(libvirt), it.live_nic(old)
    async with _configured(libvirt, it, lambda config: _moved(config, old, new, rundir)):
        if nic:
            await _replug(it, nic, new, rundir)
    if nic:
        await _forget(it, nic)
        say(f"domain {name}: moved from {old} to {new}")
    if it.changes_config:
        say(f"domain {name}: starts on {new} instead of {old} from now on")


async def sync(libvirt: Libvirt, name: str, say: Say) -> list[str]:
    """Make a domain's interfaces, as it starts next, what its `<vale:ports>` say; the changes."""
    it = await _subject(libvirt, name, Scope(live=False, config=True))
    if it.config is None or not it.config.mapped:
        raise LibvirtError(
            f"domain {name} has no <vale:ports> in its metadata: 'valemgr libvirt attach {name} "
            "vale1:a' writes it, docs/libvirt.md shows it"
        )
    rundir = rundir_of(libvirt)
    for each in it.config.mapped:
        await _require_free(libvirt, it.domain, each.port)
    words: list[str] = []

    def change(config: DomainView) -> DomainView:
        native = {nic.mac for nic in config.plugged if nic.backend is Backend.NETMAP}
        mapped = [each for each in config.mapped if each.mac not in native]
        wanted = {each.mac: interface(each.port, each.mac, rundir) for each in mapped}
        changed, said = mending.synced(config, wanted)
        coming = sum(": added" in word for word in said)
        changed, added = mending.mended(changed, it.emulator, coming)
        words.extend([*said, *(f"{name}: {what} added" for what in added)])
        return changed if words else config

    async with _configured(libvirt, it, change):
        pass
    if words and it.live:
        say(f"domain {name} runs: this is what it starts with next")
    return words


def rundir_of(libvirt: Libvirt) -> Path:
    """The runtime directory of the valed that a connection's domains use."""
    return rundir_at(libvirt.uri)


def rundir_at(uri: str | None) -> Path:
    """The same, without a connection."""
    is_mine = is_session(uri or default_uri()) or bool(os.environ.get("VALE_RUNDIR"))
    return switchd.server_dir() if is_mine else ports.SYSTEM_RUNDIR


async def _subject(libvirt: Libvirt, name: str, scope: Scope) -> Subject:
    domain = await libvirt.domain(name)
    running, persistent = await domain.running(), await domain.persistent()
    if scope.live and not running:
        raise LibvirtError(f"domain {name} does not run: start it, or use --config alone")
    if scope.config and not persistent:
        raise LibvirtError(f"domain {name} is transient, nothing is kept of it: use --live alone")
    asked = scope.live is not None or scope.config is not None
    live = DomainView.parse(await domain.live_xml()) if running else None
    config = DomainView.parse(await domain.config_xml()) if persistent else None
    view = live or config
    if view is None:
        raise LibvirtError(f"domain {name} has just ended")
    for each in (live, config):
        if each:
            _ = each.mapped  # what is wrong there is said before anything is done
    return Subject(
        domain=domain,
        live=live,
        config=config,
        changes_live=bool(scope.live) if asked else running,
        changes_config=bool(scope.config) if asked else persistent,
        emulator=await emulator.examine(Path(view.emulator)),
        user=view.qemu_user or base_label(await libvirt.capabilities(), view.kind),
    )


async def _require_free(libvirt: Libvirt, mine: Domain, port: PortName) -> None:
    """Refuse a port that is another domain's."""
    for other in await libvirt.domains():
        if other.uuid == mine.uuid:
            continue
        with suppress(LibvirtError):  # it went away while we looked
            texts = [await other.live_xml(), await other.config_xml()]
            if any(DomainView.parse(text).on(port) for text in texts):
                raise UsageError(
                    f"port {port} is domain {other.name}'s: take another, or "
                    f"'valemgr libvirt detach {other.name} {port}'"
                )


def _require_on(it: Subject, port: PortName) -> None:
    found = [nic for nic in (view.on(port) for view in it.changing) if nic]
    if not found:
        on = ", ".join(str(nic.port) for view in it.changing[:1] for nic in view.plugged)
        raise LibvirtError(f"domain {it.domain.name} has no NIC on {port}: it has {on or 'none'}")
    if any(nic.backend is not Backend.VHOST_USER for nic in found):
        raise EnvironmentUnfitError(
            f"domain {it.domain.name}: its NIC on {port} is QEMU's alone (qemu:commandline), "
            f"libvirt cannot change it: 'virsh edit {it.domain.name}', and start it anew"
        )


def _check_live(it: Subject, live: DomainView, port: PortName) -> None:
    """Refuse what the running domain lacks, and say how it gets that."""
    gaps = mending.lacks(live, it.emulator)
    if gaps:
        name = it.domain.name
        raise EnvironmentUnfitError(
            f"domain {name} runs without {' and '.join(gaps)}: 'valemgr libvirt attach {name} "
            f"{port} --config' adds it with the NIC; then shut it down and start it"
        )


def _check_queues(it: Subject, queues: int) -> None:
    if queues > 1 and any(mending.needs_no_vectors(view, it.emulator) for view in it.changing):
        raise UsageError(
            f"--queues {queues}: QEMU before 8.0 under TCG has vhost-user with one queue pair only"
        )


def _mac_for(it: Subject, port: PortName, mac: str | None) -> str:
    """The MAC asked for, the one that the other half of the domain has, or a stable one."""
    there = [nic for nic in (view.on(port) for view in it.halves) if nic]
    used = {each for view in it.halves for each in view.macs} - {nic.mac for nic in there}
    if mac and mac in used:
        raise UsageError(f"--mac {mac}: domain {it.domain.name} has a NIC with it")
    if there and mac not in (None, there[0].mac):
        raise UsageError(f"--mac {mac}: the NIC on {port} has {there[0].mac} already")
    return mac or (there[0].mac if there else stable_mac(it.domain.name, port, used))


@asynccontextmanager
async def _configured(
    libvirt: Libvirt, it: Subject, change: Callable[[DomainView], DomainView]
) -> AsyncIterator[None]:
    """Change what a domain starts with next; put that back if what follows fails."""
    old = None
    if it.changes_config:
        if not await it.domain.persistent():
            raise LibvirtError(f"domain {it.domain.name} was undefined meanwhile")
        old = await it.domain.config_xml()
        config = DomainView.parse(old)
        changed = change(config)
        if changed is not config:
            await libvirt.define(text_of(changed.root))
    try:
        yield
    except BaseException:
        if old:
            await uninterrupted(_restore(libvirt, it.domain, old))
        raise


async def _restore(libvirt: Libvirt, domain: Domain, old: str) -> None:
    try:
        if await domain.persistent():  # else somebody has undefined it meanwhile
            await libvirt.define(old)
    except ValeError as exc:
        log.warning("domain %s: what it starts with stays changed: %s", domain.name, exc)


async def _plug(
    it: Subject, live: DomainView, mapped: MappedPort, nic: ET.Element, rundir: Path
) -> None:
    """Port, NIC, metadata; backwards if it fails."""
    made = await it.make_port(rundir, mapped.port)
    try:
        await it.domain.attach(text_of(nic))
        await _map_live(it.domain, live.mapped, _with(live.mapped, mapped))
    except BaseException:
        await uninterrupted(_take_back(it.domain, mapped.port, rundir if made else None))
        raise


async def _replug(it: Subject, nic: PluggedPort, new: PortName, rundir: Path) -> None:
    """Out of one port, into another, in the same place on the bus; back if it is not taken."""
    assert it.live is not None
    moved = _moved(it.live, nic.port, new, rundir)
    there = moved.on(new)
    assert there is not None
    assert there.element is not None
    made = await it.make_port(rundir, new)
    try:
        await _unplug(it.domain, nic)
        await it.domain.attach(text_of(there.element))
        await _map_live(it.domain, it.live.mapped, moved.mapped)
    except BaseException:
        await uninterrupted(_take_back(it.domain, new, rundir if made else None, nic))
        raise


async def _take_back(
    domain: Domain, port: PortName, made_in: Path | None, before: PluggedPort | None = None
) -> None:
    """Have a domain as it was: no NIC on a port, but the one before; no port that we made."""
    try:
        live = DomainView.parse(await domain.live_xml())
        nic = live.on(port)
        if nic:
            await _unplug(domain, nic)
        if before and before.element is not None and not live.on(before.port):
            await domain.attach(text_of(before.element))
        if made_in:
            await ports.free_port(made_in, port)
    except ValeError as exc:
        log.warning("domain %s: its NIC on %s is not as it was: %s", domain.name, port, exc)


async def _unplug(domain: Domain, nic: PluggedPort) -> None:
    """Until the guest has let it go; GuestError if it does not."""
    assert nic.element is not None
    if not await domain.detach(text_of(nic.element), nic.alias, UNPLUG_SECONDS):
        raise GuestError(
            f"domain {domain.name} does not let its NIC on {nic.port} go within "
            f"{UNPLUG_SECONDS:g} s, and may yet do so: is its system up, and well?"
        )


async def _forget(it: Subject, nic: PluggedPort) -> None:
    """What is left of a NIC that has gone; that this stays is no failure of what was asked."""
    try:
        live = DomainView.parse(await it.domain.live_xml())
        await _map_live(it.domain, live.mapped, _without(live.mapped, nic.port))
        await ports.free_port(nic.where, nic.port)
    except ValeError as exc:
        log.warning("domain %s: port %s stays: %s", it.domain.name, nic.port, exc)


async def _map_live(domain: Domain, before: Mapped, mapped: Mapped) -> None:
    """Let the running domain's metadata say which ports it has: the hook removes these."""
    if mapped != before:
        text = text_of(ports_element(mapped, bare=True)) if mapped else None
        await domain.set_metadata(text, PREFIX, NAMESPACE)


def _moved(view: DomainView, old: PortName, new: PortName, rundir: Path) -> DomainView:
    """A description in which a NIC is on another port."""
    changed = DomainView(deepcopy(view.root))
    nic = changed.on(old)
    if nic is None or nic.element is None:
        return view
    mending.repoint(nic.element, interface(new, nic.mac, rundir))
    renamed = tuple(
        replace(each, port=new) if each.port == old else each for each in changed.mapped
    )
    return mending.with_ports(changed, _with(renamed, MappedPort(new, nic.mac)))


def _with(mapped: Mapped, one: MappedPort) -> Mapped:
    return mapped if one in mapped else (*_without(mapped, one.port), one)


def _without(mapped: Mapped, port: PortName) -> Mapped:
    return tuple(each for each in mapped if each.port != port)
