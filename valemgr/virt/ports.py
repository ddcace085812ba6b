# SPDX-License-Identifier: BSD-2-Clause
"""Ports of valed for domains: made before QEMU starts, and whether QEMU may open their sockets.

A file beside the socket of a port, `vale1:a.domain`, holds the UUID of the domain that it was made
for: a domain that is refused a port, or ends late, takes no port away from another.
"""

import grp
import os
import pwd
import stat
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from valemgr import proc, switchd
from valemgr.deadline import Deadline, locked, open_dir
from valemgr.errors import EnvironmentUnfitError, SwitchError, WaitTimeoutError
from valemgr.names import PortName
from valemgr.switchd import PortStats, Switchd
from valemgr.tasks import uninterrupted

SYSTEM_RUNDIR = Path("/run/vale")  # libvirt's own domains do not know our XDG_RUNTIME_DIR
VHOST_USER = "vhost-user"
SETTLE_SECONDS = 2.5  # a QEMU sees within it that valed is back
LOCK_SECONDS = 30.0
ENTER, WRITE = 1, 2  # bits of a mode


class _UnsettledError(Exception):
    """A port may be another's in a moment."""


async def make_port(
    rundir: Path,
    port: PortName,
    user: tuple[int, int] | None,
    start: bool = True,
    group: str = "",
    *,
    owner: str = "",
    running: bool = False,
) -> bool:
    """Make a port that nobody has at RUNDIR/PORT, and check that QEMU may connect to it.

    False: it was there. user: uid and gid of QEMU, where they are known. start: valed too, for
    this group, where none runs. owner: the UUID of the domain. running: the domain runs, so the
    peer may be its QEMU.
    """
    daemon = await _valed(rundir, start, group)
    async with _connected(daemon), _alone(rundir):
        before = await _find(daemon, port) if running else await _settled(daemon, port, owner)
        if before and (before.kind != VHOST_USER or (_peer(before) and not running)):
            raise SwitchError(_taken(before, rundir))
        try:
            await daemon.add_port({"name": str(port), "kind": VHOST_USER})
            _check(rundir / str(port), user, group, daemon.pid)
            _own(rundir, port, owner)
        except BaseException:
            if before is None:
                await uninterrupted(_remove(daemon, port))
            raise
    return before is None


async def drop_port(rundir: Path, port: PortName, *, owner: str = "") -> None:
    """Remove a port unless somebody is connected to it, or it was made for another domain."""
    daemon = await switchd.at(rundir, start=False) if switchd.usable(rundir) else None
    if daemon is None:
        return
    async with _connected(daemon), _alone(rundir):
        if owner and _owner(rundir, port) not in ("", owner):
            return
        found = await _find(daemon, port)
        if found and found.kind == VHOST_USER and not _peer(found):
            await _remove(daemon, port)
            _own(rundir, port, "")


async def free_port(rundir: Path, port: PortName) -> None:
    """Remove the port of a NIC that is unplugged: QEMU may not have hung up yet."""
    daemon = await switchd.at(rundir, start=False) if switchd.usable(rundir) else None
    if daemon is None:
        return
    try:
        await _remove(daemon, port)
        _own(rundir, port, "")
    finally:
        await daemon.close()


def group_for(user: tuple[int, int] | None) -> str:
    """The group that a valed for QEMU's user needs; none if that is us, or root."""
    return _group_name(user[1]) if user and user[0] not in (0, os.geteuid()) else ""


async def run_valed(rundir: Path, user: tuple[int, int] | None, group: str = "") -> None:
    """Have a valed run in a directory, for NICs that open their ports themselves."""
    daemon = await _valed(rundir, start=True, group=group)
    async with _connected(daemon):
        _check(daemon.netmap_socket, user, group, daemon.pid)


def _check(socket: Path, user: tuple[int, int] | None, group: str, pid: int) -> None:
    """Refuse a socket that QEMU could not connect to; pid: valed's."""
    if user is None and not group:
        return
    uid, gid = user or (-1, _gid(group))
    stop = first_refusal(socket, uid, groups_of(uid, gid))
    if stop is None:
        return
    who = f"QEMU's user {_user_name(uid)} ({uid}:{gid})" if user else f"QEMU's group {group}"
    if stop not in (socket.parent, socket):
        raise EnvironmentUnfitError(
            f"{who} may not enter {stop}, so it cannot connect to {socket}: 'chmod o+x {stop}', or "
            "use another runtime directory of valed"
        )
    what = f"{who} may not connect to {socket}: valed (pid {pid}, {socket.parent})"
    status = socket.stat()
    if user and status.st_mode >> 3 & WRITE:
        theirs = _group_name(status.st_gid)
        raise EnvironmentUnfitError(
            f"{what} has --group {theirs}: 'usermod -a -G {theirs} {_user_name(uid)}'"
        )
    wanted = group or _group_name(gid)
    raise EnvironmentUnfitError(
        f"{what} lacks --group {wanted}: end it by 'kill {pid}', and start it by "
        f"'valed --rundir {socket.parent} --group {wanted}'; its ports and guests come back"
    )


def first_refusal(socket: Path, uid: int, groups: Collection[int]) -> Path | None:
    """What keeps a user out on the way to a socket: a directory, or it itself; None: nothing."""
    for folder in reversed(socket.parents):
        if not may(folder, uid, groups, ENTER):
            return folder
    return None if may(socket, uid, groups, WRITE) else socket


def may(path: Path, uid: int, groups: Collection[int], bit: int) -> bool:
    """By the mode alone. Where there is an ACL, only the kernel knows; then it is let pass."""
    status = path.stat()
    if uid == 0 or "system.posix_acl_access" in os.listxattr(path):
        return True
    if status.st_uid == uid:
        return bool(status.st_mode >> 6 & bit)
    return bool(status.st_mode >> (3 if status.st_gid in groups else 0) & bit)


async def _valed(rundir: Path, start: bool, group: str) -> Switchd:
    """A connection to the valed of a directory that we may trust."""
    if rundir.exists() and not switchd.usable(rundir):
        raise EnvironmentUnfitError(
            f"{rundir} is a link, somebody else's, or writable by others: a NIC of a domain needs "
            "a runtime directory of the user that libvirt runs as"
        )
    _check_parents(rundir)
    daemon = await switchd.at(rundir, start, group)
    if daemon is None:
        raise SwitchError(f"no valed runs in {rundir}: start it by 'valed --rundir {rundir}'")
    return daemon


def _check_parents(rundir: Path) -> None:
    """What root makes and writes there must not be led elsewhere by who owns a parent."""
    for parent in rundir.parents if os.geteuid() == 0 else ():
        try:
            status = parent.stat()
        except FileNotFoundError:
            continue
        shared = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or shared:
            raise EnvironmentUnfitError(
                f"{rundir}: others than root may change {parent}: a NIC of the system's domains "
                f"needs a runtime directory that is root's all the way, as {SYSTEM_RUNDIR}"
            )


@asynccontextmanager
async def _connected(daemon: Switchd) -> AsyncIterator[None]:
    """Hang up at the end."""
    try:
        yield
    finally:
        await daemon.close()


def _alone(rundir: Path) -> AbstractAsyncContextManager[None]:
    """Nobody else makes or removes ports of domains there meanwhile."""
    return locked(open_dir(rundir), str(rundir), LOCK_SECONDS)


async def _find(daemon: Switchd, port: PortName) -> PortStats | None:
    ports = await daemon.ports()
    return next((each for each in ports if each.name == str(port)), None)


async def _settled(daemon: Switchd, port: PortName, owner: str) -> PortStats | None:
    """The port once the QEMU of another domain has come back to it, if it does."""

    async def attempt() -> PortStats | None:
        found = await _find(daemon, port)
        if found and not _peer(found) and _owner(daemon.rundir, port) not in ("", owner):
            raise _UnsettledError
        return found

    if not owner:
        return await _find(daemon, port)
    try:
        what = f"port {port}: return of its peer"
        return await Deadline(SETTLE_SECONDS).retry(what, attempt, (_UnsettledError,))
    except WaitTimeoutError:
        return await _find(daemon, port)


async def _remove(daemon: Switchd, port: PortName) -> None:
    await daemon.free_port(str(port), Deadline(SETTLE_SECONDS))


def _peer(port: PortStats) -> int:
    """Who is connected: valed may not have seen yet that a process has ended."""
    try:
        return port.peer_pid if proc.is_alive(proc.ident_of(port.peer_pid)) else 0
    except OSError:
        return 0


def _taken(port: PortStats, rundir: Path) -> str:
    who = f"pid {port.peer_pid}" if port.peer_pid else f"a port of kind {port.kind}"
    return (
        f"port {port.name} of the valed in {rundir} is taken by {who}: end that, or give the "
        "domain's NIC another port"
    )


def _owner_file(rundir: Path, port: PortName) -> Path:
    return rundir / f"{port}.domain"


def _owner(rundir: Path, port: PortName) -> str:
    """The UUID of the domain that a port was made for, if any."""
    try:
        return _owner_file(rundir, port).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _own(rundir: Path, port: PortName, owner: str) -> None:
    """Note whose port it is; "": nobody's."""
    path = _owner_file(rundir, port)
    try:
        if owner:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            with os.fdopen(os.open(path, flags, 0o644), "w", encoding="ascii") as stream:
                stream.write(f"{owner}\n")
        else:
            path.unlink(missing_ok=True)
    except OSError as exc:
        raise EnvironmentUnfitError(f"{path}: {exc.strerror}") from exc


def groups_of(uid: int, gid: int) -> set[int]:
    """All groups of QEMU: libvirt gives it those of its user."""
    try:
        return {gid, *os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)}
    except (KeyError, OverflowError):
        return {gid}


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise EnvironmentUnfitError(
            f"there is no group {group}: 'valemgr libvirt install-hook --group GROUP' with that of "
            "QEMU's user"
        ) from None


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "without a name"


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
