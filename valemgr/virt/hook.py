# SPDX-License-Identifier: BSD-2-Clause
"""What libvirt runs when a domain with VALE ports starts and ends (hookfile.py has the shell part).

    python -m valemgr.virt.hook GROUP DOMAIN OPERATION …    the domain's XML on stdin

    prepare    before QEMU is: valed runs, the ports are there and free, QEMU may connect to them;
               else the domain does not start, and libvirt shows our line
    start      the same again where no group says who QEMU will be: only now the XML does
    reconnect  libvirtd is back: a port that vanished is made again. It never fails: libvirt would
               end the guest
    release    the domain has ended, or did not start: its ports go

libvirt waits for us, so it is never called from here, and nothing that is left running has a
descriptor of ours. What is done is noted in valed.log, and what is wrong in the system's log too.
"""

import asyncio
import os
import sys
import syslog
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from valemgr import switchd
from valemgr.errors import UsageError, ValeError
from valemgr.virt import ports
from valemgr.virt.domxml import DomainView, PluggedPort
from valemgr.virt.portxml import MappedPort
from valemgr.words import Backend

PREPARE, START, RECONNECT, RELEASE = "prepare", "start", "reconnect", "release"
NETMAP_SOCKET = "netmap.sock"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a domain needs of valed; `missing`: what its metadata lists in vain."""

    nics: tuple[PluggedPort, ...]
    missing: tuple[MappedPort, ...]


def needs(view: DomainView) -> Needs:
    """What a domain's metadata and its NICs agree upon; UsageError where they contradict."""
    missing = []
    for mapped in view.mapped:
        nic = view.with_mac(mapped.mac)
        if nic is None:
            missing.append(mapped)
        elif nic.port != mapped.port:
            raise UsageError(
                f"NIC {mapped.mac} is on port {nic.port}, but its metadata says {mapped.port}: "
                f"{_sync(view)}"
            )
        elif nic.backend is Backend.VHOST_USER and not nic.where.is_absolute():
            raise UsageError(
                f"NIC {mapped.mac}: the path of its socket is not absolute: {_sync(view)}"
            )
    return Needs(agreed(view), tuple(missing))


def agreed(view: DomainView) -> tuple[PluggedPort, ...]:
    """NICs that sit where the metadata says."""
    found = [(view.with_mac(mapped.mac), mapped.port) for mapped in view.mapped]
    return tuple(nic for nic, port in found if nic and nic.port == port)


def require_sockets(view: DomainView) -> None:
    """Refuse a NIC whose port nobody makes: QEMU would wait for it, and libvirt for QEMU."""
    listed = {mapped.mac for mapped in view.mapped}
    for nic in view.plugged:
        socket = nic.where / str(nic.port)
        if nic.backend is Backend.VHOST_USER and nic.mac not in listed and not socket.exists():
            raise UsageError(
                f"NIC {nic.mac} is on port {nic.port}, which its metadata does not list, and there "
                f"is no {socket}: add it to <vale:ports>, or make it by 'valectl add {nic.port} "
                f"--vhost-user {socket}'"
            )


def rundir_of(nic: PluggedPort) -> Path | None:
    """The directory of the valed that a NIC needs; None: it finds its switch by itself."""
    if nic.backend is Backend.VHOST_USER:
        return nic.where
    ours = nic.where.is_absolute() and nic.where.name == NETMAP_SOCKET
    return nic.where.parent if ours else None


async def start(view: DomainView, group: str, *, running: bool) -> None:
    """Have the ports of a domain; running: its QEMU may be connected to them."""
    needed = needs(view)
    if not running:
        require_sockets(view)
    user = view.qemu_user or (None if os.geteuid() == 0 else (os.geteuid(), os.getegid()))
    for nic in needed.nics:
        rundir = rundir_of(nic)
        if rundir is None:
            continue
        try:
            await _have(nic, rundir, user, group or ports.group_for(user), view.uuid, running)
        except ValeError as exc:
            _note(rundir, f"domain {view.name}: {exc}")
            if not running:
                raise
            _complain(f"domain {view.name}: {exc}")  # the guest runs: the others' turn
            continue
        _note(rundir, f"domain {view.name}: port {nic.port} is ready for NIC {nic.mac}")
    for mapped in needed.missing:
        line = f"no NIC {mapped.mac} for port {mapped.port} of its metadata: {_sync(view)}"
        _complain(f"domain {view.name}: {line}")
        for rundir in {each for each in map(rundir_of, needed.nics) if each}:
            _note(rundir, f"domain {view.name}: {line}")


async def _have(
    nic: PluggedPort,
    rundir: Path,
    user: tuple[int, int] | None,
    group: str,
    uuid: str,
    running: bool,
) -> None:
    if nic.backend is Backend.VHOST_USER:
        await ports.make_port(rundir, nic.port, user, group=group, owner=uuid, running=running)
    else:
        await ports.run_valed(rundir, user, group)


async def release(view: DomainView) -> None:
    """Remove the ports of a domain that is gone; one that cannot be removed keeps no other."""
    for nic in agreed(view):
        if nic.backend is Backend.VHOST_USER and nic.where.is_absolute():
            try:
                await ports.drop_port(nic.where, nic.port, owner=view.uuid)
            except ValeError as exc:
                _complain(f"domain {view.name}: {exc}")
            else:
                _note(nic.where, f"domain {view.name}: released port {nic.port}")


async def run(operation: str, text: str, group: str) -> None:
    """Do what an operation asks for."""
    view = DomainView.parse(text)
    if operation == RELEASE:
        await release(view)
    else:
        await start(view, group, running=operation == RECONNECT)


def main() -> int:
    """As libvirt calls it: exit code 1 keeps a domain from starting."""
    group, domain, operation = sys.argv[1:4]
    text = sys.stdin.buffer.read().decode(errors="replace")
    try:
        # Of a session, QEMU is the user that we are.
        asyncio.run(run(operation, text, group if os.geteuid() == 0 else ""))
    except (ValeError, OSError) as exc:
        _complain(f"domain {domain}: {exc}")
        return int(operation in (PREPARE, START))
    return 0


def _sync(view: DomainView) -> str:
    return f"run 'valemgr libvirt sync {view.name}'"


def _complain(line: str) -> None:
    """Where libvirt reads, and where a person looks."""
    sys.stderr.write(f"vale: {line}\n")
    syslog.openlog("vale-hook")
    syslog.syslog(syslog.LOG_WARNING, line)


def _note(rundir: Path, line: str) -> None:
    """In valed's log, if there is such a directory that we may trust; a log decides nothing."""
    if not switchd.usable(rundir):
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    with suppress(OSError), os.fdopen(os.open(rundir / "valed.log", flags, 0o600), "w") as stream:
        stream.write(f"hook: {time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


if __name__ == "__main__":
    sys.exit(main())
