# SPDX-License-Identifier: BSD-2-Clause
"""Which domains sit on which switch: libvirt says where NICs belong, valed what is there.

Domains come, go and are redefined while we look: one that is gone meanwhile is left out, and
`watch` looks again whenever libvirt tells of a change.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from valemgr import switchd
from valemgr.deadline import Deadline
from valemgr.errors import EnvironmentUnfitError, LibvirtError, UsageError
from valemgr.switchd import PortStats
from valemgr.virt import connection
from valemgr.virt.connection import CLOSED, Domain, DomainEvent, Libvirt
from valemgr.virt.domxml import DomainView, PluggedPort
from valemgr.words import Backend

RETURN_SECONDS = 3600.0  # for libvirtd, to come back
SETTLE_SECONDS = 0.2  # events come in groups: a domain that starts tells five things


@dataclass(frozen=True, slots=True)
class PluggedNic:
    """A NIC of a domain on a port. Counters are the port's, as valed counts: None: no such port."""

    domain: str
    state: str  # running, or shut off
    port: str
    switch: str
    mac: str
    backend: str
    when: str  # live, config, or both: whether the domain has it now, and when it starts next
    link: str  # connected, no peer, no port, or no switch
    rundir: str
    rx_frames: int | None
    rx_bytes: int | None
    rx_dropped: dict[str, int] | None
    tx_frames: int | None
    tx_bytes: int | None
    tx_dropped: dict[str, int] | None


async def rows(libvirt: Libvirt, domain: str | None = None) -> list[PluggedNic]:
    """Every NIC on a port, of all domains or of one, by switch and port."""
    domains = [await libvirt.domain(domain)] if domain else await libvirt.domains()
    found: list[tuple[Domain, bool, PluggedPort, str]] = []
    for each in domains:
        with suppress(LibvirtError, UsageError):  # gone, or nothing that we understand
            found += await _nics(each)
    stats = await _stats({_rundir(nic) for _, _, nic, _ in found})
    made = [_row(each, running, nic, when, stats) for each, running, nic, when in found]
    return sorted(made, key=lambda row: (row.switch, row.port, row.domain))


async def watch(uri: str | None, domain: str | None) -> AsyncIterator[list[PluggedNic]]:
    """The rows, and again whenever a domain's NICs, or whether it runs, have changed."""
    last: list[PluggedNic] | None = None
    while True:
        async with connection.connect(uri) as libvirt, libvirt.events() as events:
            alive = True
            while alive:
                now = await rows(libvirt, domain)
                if last is None or _shape(now) != _shape(last):
                    yield now
                last = now
                alive = await _something(events)
        await Deadline(RETURN_SECONDS).retry(
            "libvirtd", lambda: _answers(uri), (EnvironmentUnfitError,), every=0.2
        )


async def _something(events: "asyncio.Queue[DomainEvent]") -> bool:
    """Wait for news, and until no more come at once; False: libvirtd is gone."""
    heard = [await events.get()]
    with suppress(TimeoutError):
        while True:
            async with asyncio.timeout(SETTLE_SECONDS):
                heard.append(await events.get())
    return all(event.kind != CLOSED for event in heard)


async def _answers(uri: str | None) -> None:
    async with connection.connect(uri):
        pass


def _shape(found: list[PluggedNic]) -> list[tuple[str, ...]]:
    return [(row.domain, row.state, row.port, row.mac, row.when) for row in found]


async def _nics(domain: Domain) -> list[tuple[Domain, bool, PluggedPort, str]]:
    running = await domain.running()
    live = DomainView.parse(await domain.live_xml()).plugged if running else ()
    persistent = await domain.persistent()
    config = DomainView.parse(await domain.config_xml()).plugged if persistent else ()
    there = {(nic.port, nic.mac): nic for nic in (*config, *live)}
    lists = {"live": live, "config": config}
    return [
        (domain, running, nic, ", ".join(w for w, nics in lists.items() if _has(nics, nic)))
        for nic in there.values()
    ]


def _has(nics: tuple[PluggedPort, ...], nic: PluggedPort) -> bool:
    return any((each.port, each.mac) == (nic.port, nic.mac) for each in nics)


def _rundir(nic: PluggedPort) -> Path:
    """A native port's device is a socket in it."""
    return nic.where.parent if nic.backend is Backend.NETMAP else nic.where


async def _stats(rundirs: set[Path]) -> dict[Path, dict[str, PortStats]]:
    """Ports of every valed that answers."""
    found = {}
    for rundir in rundirs:
        daemon = await switchd.at(rundir, start=False) if switchd.usable(rundir) else None
        if daemon:
            found[rundir] = {port.name: port for port in await daemon.ports()}
            await daemon.close()
    return found


def _row(
    domain: Domain, running: bool, nic: PluggedPort, when: str,
    stats: dict[Path, dict[str, PortStats]],
) -> PluggedNic:  # fmt: skip
    rundir = _rundir(nic)
    port = stats.get(rundir, {}).get(str(nic.port))
    link = "no switch" if rundir not in stats else "no port"
    if port:
        link = "connected" if port.peer_pid else "no peer"
    return PluggedNic(
        domain=domain.name,
        state="running" if running else "shut off",
        port=str(nic.port),
        switch=nic.port.switch,
        mac=nic.mac,
        backend=str(nic.backend),
        when=when,
        link=link,
        rundir=str(rundir),
        rx_frames=port.rx_frames if port else None,
        rx_bytes=port.rx_bytes if port else None,
        rx_dropped=port.rx_dropped if port else None,
        tx_frames=port.tx_frames if port else None,
        tx_bytes=port.tx_bytes if port else None,
        tx_dropped=port.tx_dropped if port else None,
    )
