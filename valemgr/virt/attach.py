# SPDX-License-Identifier: BSD-2-Clause
"""NICs on ports, for domains that others made: attach, detach, move, sync.

Everything that can refuse comes first; a domain that is refused is as it was. What fails half way
is undone. A change concerns the running domain (live), what it starts with next (config), or both.
Domains are read anew by every command: who redefines one meanwhile is not overwritten with what we
read long ago.
"""

import logging
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from valemgr import emulator, switchd
from valemgr.emulator import Emulator
from valemgr.errors import EnvironmentUnfitError, GuestError, LibvirtError, UsageError, ValeError
from valemgr.names import PortName
from valemgr.tasks import uninterrupted
from valemgr.virt import mending, ports
from valemgr.virt.connection import (
    Domain,
    Libvirt,
    default_uri,
    is_session,
)
from valemgr.virt.domxml import DomainView, PluggedPort, base_label
from valemgr.virt.portxml import (
    NAMESPACE,
    PREFIX,
    MappedPort,
    alias_of,
    interface,
    ports_element,
    socket_of,
    stable_mac,
    text_of,
)
from valemgr.words import Backend

log = logging.getLogger(__name__)

Say = Callable[[str], None]

SYSTEM_RUNDIR = Path("/run/vale")  # libvirt's own domains do not know our XDG_RUNTIME_DIR
UNPLUG_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Scope:
    """What a change concerns; None: whatever there is."""

    live: bool | None = None
    config: bool | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """A domain, and how it is as far as the change concerns it."""

    domain: Domain
    live: DomainView | None
    config: DomainView | None
    emulator: Emulator
    user: tuple[int, int] | None  # of its QEMU

    @property
    def views(self) -> list[DomainView]:
        return [view for view in (self.live, self.config) if view]

    async def make_port(self, rundir: Path, port: PortName) -> None:
        """Make a port that its QEMU may connect to."""
        group, owner = ports.group_for(self.user), self.domain.uuid
        await ports.make_port(rundir, port, self.user, group=group, owner=owner)


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
    there = [nic for nic in (view.on(port) for view in it.views) if nic]
    if len(there) == len(it.views):
        raise LibvirtError(f"domain {name} has a NIC on {port} already ({there[0].mac})")
    _check_queues(it, queues)
    rundir = rundir_of(libvirt)
    nic = interface(port, _mac_for(it, port, there, mac), rundir, queues)
    if it.live and not it.live.on(port):
        _check_live(it, it.live, port)
    if it.live and not it.live.on(port):
        await _plug(it, it.live, port, nic, rundir)
        say(f"domain {name}: plugged into {port}")
    if it.config and not it.config.on(port):
        try:
            await _define(libvirt, it, it.config, port, nic, say)
        except BaseException:
            if it.live:
                await uninterrupted(_unplug_quietly(it, port, rundir))
            raise


async def detach(libvirt: Libvirt, name: str, port: PortName, scope: Scope, say: Say) -> None:
    """Take a domain's NIC on a port away; the port goes, too."""
    it = await _subject(libvirt, name, scope)
    _require_on(it, port)
    if it.live and (nic := it.live.on(port)):
        await _unplug(it.domain, nic)
        await _map_live(it.domain, it.live, _without(it.live.mapped, port))
        await ports.free_port(nic.where, port)
        say(f"domain {name}: unplugged from {port}")
    if it.config and it.config.on(port):
        config = mending.without_nic(it.config, port)
        config = mending.with_ports(config, _without(config.mapped, port))
        await libvirt.define(text_of(config.root))
        say(f"domain {name}: starts without its NIC on {port} from now on")


async def move(
    libvirt: Libvirt, name: str, old: PortName, new: PortName, scope: Scope, say: Say
) -> None:
    """Put a domain's NIC on another port; its MAC stays, and the guest sees it go and come."""
    it = await _subject(libvirt, name, scope)
    _require_on(it, old)
    await _require_free(libvirt, it.domain, new)
    if any(view.on(new) for view in it.views):
        raise LibvirtError(f"domain {name} has a NIC on {new} already: detach it first")
    rundir = rundir_of(libvirt)
    if it.live and (nic := it.live.on(old)):
        await _replug(it, it.live, nic, new, rundir)
        say(f"domain {name}: moved from {old} to {new}")
    if it.config and (nic := it.config.on(old)):
        changed = _moved(it.config, nic, new, rundir)
        await libvirt.define(text_of(changed.root))
        say(f"domain {name}: starts on {new} instead of {old} from now on")


async def sync(libvirt: Libvirt, name: str, say: Say) -> list[str]:
    """Make a domain's interfaces, as it starts next, what its `<vale:ports>` say; the changes."""
    it = await _subject(libvirt, name, Scope(live=False, config=True))
    config = it.config
    if config is None or not config.mapped:
        raise LibvirtError(
            f"domain {name} has no <vale:ports> in its metadata: 'valemgr libvirt attach {name} "
            "vale1:a' writes it, docs/libvirt.md shows it"
        )
    rundir = rundir_of(libvirt)
    for each in config.mapped:
        await _require_free(libvirt, it.domain, each.port)
    native = {nic.mac for nic in config.plugged if nic.backend is Backend.NETMAP}
    wanted = {
        each.mac: interface(each.port, each.mac, rundir)
        for each in config.mapped
        if each.mac not in native
    }
    changed, words = mending.synced(config, wanted)
    coming = sum(": added" in word for word in words)
    changed, added = mending.mended(changed, it.emulator, coming)
    if words or added:
        await libvirt.define(text_of(changed.root))
    words += [f"{name}: {what} added" for what in added]
    if words and await it.domain.running():
        say(f"domain {name} runs: this is what it starts with next")
    return words


def rundir_of(libvirt: Libvirt) -> Path:
    """The runtime directory of the valed that a connection's domains use."""
    return rundir_at(libvirt.uri)


def rundir_at(uri: str | None) -> Path:
    """The same, without a connection."""
    is_mine = is_session(uri or default_uri()) or bool(os.environ.get("VALE_RUNDIR"))
    return switchd.server_dir() if is_mine else SYSTEM_RUNDIR


async def _subject(libvirt: Libvirt, name: str, scope: Scope) -> Subject:
    domain = await libvirt.domain(name)
    running, persistent = await domain.running(), await domain.persistent()
    if scope.live and not running:
        raise LibvirtError(f"domain {name} does not run: start it, or use --config alone")
    if scope.config and not persistent:
        raise LibvirtError(f"domain {name} is transient, nothing is kept of it: use --live alone")
    asked = scope.live is not None or scope.config is not None
    wants_live = bool(scope.live) if asked else running
    wants_config = bool(scope.config) if asked else persistent
    live = DomainView.parse(await domain.live_xml()) if wants_live else None
    config = DomainView.parse(await domain.config_xml()) if wants_config else None
    view = live or config
    assert view is not None  # a domain runs, or is persistent
    for each in (live, config):
        if each:
            _ = each.mapped  # what is wrong there is said before anything is done
    program = await emulator.examine(Path(view.emulator))
    user = view.qemu_user or base_label(await libvirt.capabilities(), view.kind)
    return Subject(domain, live, config, program, user)


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
    found = [nic for nic in (view.on(port) for view in it.views) if nic]
    if not found:
        on = ", ".join(str(nic.port) for view in it.views[:1] for nic in view.plugged)
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
    if queues > 1 and any(mending.needs_no_vectors(view, it.emulator) for view in it.views):
        raise UsageError(
            f"--queues {queues}: QEMU before 8.0 under TCG has vhost-user with one queue pair only"
        )


def _mac_for(it: Subject, port: PortName, there: list[PluggedPort], mac: str | None) -> str:
    """The MAC asked for, the one that the other half of the domain has, or a stable one."""
    used = {each for view in it.views for each in view.macs} - {nic.mac for nic in there}
    if mac and mac in used:
        raise UsageError(f"--mac {mac}: domain {it.domain.name} has a NIC with it")
    if there and mac not in (None, there[0].mac):
        raise UsageError(f"--mac {mac}: the NIC on {port} has {there[0].mac} already")
    return mac or (there[0].mac if there else stable_mac(it.domain.name, port, used))


async def _plug(
    it: Subject, live: DomainView, port: PortName, nic: ET.Element, rundir: Path
) -> None:
    """Port, NIC, metadata; backwards if it fails."""
    await it.make_port(rundir, port)
    try:
        await it.domain.attach(text_of(nic))
        mapped = MappedPort(port, str(nic.find("mac").get("address")))  # type: ignore[union-attr]
        await _map_live(it.domain, live, (*_without(live.mapped, port), mapped))
    except BaseException:
        await uninterrupted(ports.free_port(rundir, port))
        raise


async def _define(
    libvirt: Libvirt, it: Subject, config: DomainView, port: PortName, nic: ET.Element, say: Say
) -> None:
    name = it.domain.name
    mac = str(nic.find("mac").get("address"))  # type: ignore[union-attr]
    changed, added = mending.mended(config, it.emulator, 1)
    changed = mending.with_nic(changed, deepcopy(nic))
    changed = mending.with_ports(changed, (*_without(config.mapped, port), MappedPort(port, mac)))
    await libvirt.define(text_of(changed.root))
    also = f", with {' and '.join(added)}" if added else ""
    say(f"domain {name}: starts with a NIC on {port} from now on{also}")


async def _replug(
    it: Subject, live: DomainView, nic: PluggedPort, new: PortName, rundir: Path
) -> None:
    """Out of one port, into another, in the same place on the bus; back if it is not taken."""
    moved = _moved(live, nic, new, rundir).on(new)
    await it.make_port(rundir, new)
    try:
        await _unplug(it.domain, nic)
    except BaseException:
        await uninterrupted(ports.free_port(rundir, new))
        raise
    assert moved is not None
    assert moved.element is not None
    assert nic.element is not None
    try:
        await it.domain.attach(text_of(moved.element))
    except BaseException:
        await uninterrupted(_back(it.domain, nic.element, rundir, new))
        raise
    await _map_live(it.domain, live, _renamed(live.mapped, nic, new))
    await ports.free_port(nic.where, nic.port)


async def _back(domain: Domain, nic: ET.Element, rundir: Path, new: PortName) -> None:
    try:
        await domain.attach(text_of(nic))
    except ValeError as exc:
        log.warning("domain %s: its NIC is lost: %s", domain.name, exc)
    await ports.free_port(rundir, new)


def _moved(view: DomainView, nic: PluggedPort, new: PortName, rundir: Path) -> DomainView:
    """A description in which a NIC is on another port."""
    changed = DomainView(deepcopy(view.root))
    found = changed.on(nic.port)
    assert found is not None
    assert found.element is not None
    for tag, key, value in (
        ("source", "path", str(socket_of(rundir, new))),
        ("alias", "name", alias_of(new)),
    ):
        element = found.element.find(tag)
        if element is None:
            element = ET.SubElement(found.element, tag)
        element.set(key, value)
    return mending.with_ports(changed, _renamed(changed.mapped, nic, new))


def _renamed(
    mapped: tuple[MappedPort, ...], nic: PluggedPort, new: PortName
) -> tuple[MappedPort, ...]:
    renamed = tuple(replace(m, port=new) if m.port == nic.port else m for m in mapped)
    known = any(each.port == new for each in renamed)
    return renamed if known else (*renamed, MappedPort(new, nic.mac))


def _without(mapped: tuple[MappedPort, ...], port: PortName) -> tuple[MappedPort, ...]:
    return tuple(each for each in mapped if each.port != port)


async def _unplug(domain: Domain, nic: PluggedPort) -> None:
    """Until the guest has let it go; GuestError if it does not."""
    assert nic.element is not None
    if not await domain.detach(text_of(nic.element), nic.alias, UNPLUG_SECONDS):
        raise GuestError(
            f"domain {domain.name} does not let its NIC on {nic.port} go within "
            f"{UNPLUG_SECONDS:g} s: is its system up, and well?"
        )


async def _unplug_quietly(it: Subject, port: PortName, rundir: Path) -> None:
    """Undo a plug; what led here is the error to tell."""
    try:
        live = DomainView.parse(await it.domain.live_xml())
        nic = live.on(port)
        if nic:
            await _unplug(it.domain, nic)
            await _map_live(it.domain, live, _without(live.mapped, port))
        await ports.free_port(rundir, port)
    except ValeError as exc:
        log.warning("domain %s: %s stays plugged: %s", it.domain.name, port, exc)


async def _map_live(domain: Domain, live: DomainView, mapped: tuple[MappedPort, ...]) -> None:
    """Let the running domain's metadata say which ports it has: the hook removes these."""
    if mapped != live.mapped:
        text = text_of(ports_element(mapped, bare=True)) if mapped else None
        await domain.set_metadata(text, PREFIX, NAMESPACE, live=True)
