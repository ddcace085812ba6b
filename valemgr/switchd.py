# SPDX-License-Identifier: BSD-2-Clause
"""The switch daemon valed: found where it listens, or started on demand.

Servers create their runtime directory, clients search: $VALE_RUNDIR alone if it is set, else
$XDG_RUNTIME_DIR/vale, /run/vale, /tmp/vale-UID. It is started under a lock on that directory, so
that two racing starts make one daemon, and lingers 30 s after its last client. Nobody stops a
valed that they did not start.
"""

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valemgr import locate, proc, qmpclient
from valemgr.deadline import Deadline, locked, open_dir
from valemgr.errors import EnvironmentUnfitError, SwitchError
from valemgr.names import PORTS_MAX
from valemgr.qmpclient import Qmp, QmpFailed
from valemgr.text import tail

log = logging.getLogger(__name__)

LINGER_SECONDS = 30
START_SECONDS = 10.0
NATIVE = "native"  # the kind of ports that their client opens itself
KEPT = "state.json"  # in its directory: what a valed that starts has again


@dataclass(frozen=True, slots=True)
class PortStats:
    """A port with its counters. rx: from the port into the switch; tx: out of the port."""

    name: str
    kind: str
    peer_pid: int
    rx_frames: int
    rx_bytes: int
    rx_dropped: dict[str, int]
    tx_offered: int
    tx_frames: int
    tx_bytes: int
    tx_dropped: dict[str, int]
    impaired: bool = False

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "PortStats":
        """From query-ports' answer."""
        rx, tx = raw["rx"], raw["tx"]
        return cls(
            name=raw["name"],
            kind=raw["kind"],
            peer_pid=int(raw.get("peer", {}).get("pid", 0)),
            rx_frames=rx["frames"],
            rx_bytes=rx["bytes"],
            rx_dropped=dict(rx.get("dropped", {})),
            tx_offered=tx["offered"],
            tx_frames=tx["frames"],
            tx_bytes=tx["bytes"],
            tx_dropped=dict(tx.get("dropped", {})),
            impaired="in" in raw or "out" in raw,
        )


class Switchd:
    """A connection to a running valed."""

    def __init__(self, rundir: Path, qmp: Qmp) -> None:
        self.rundir = rundir
        self._qmp = qmp

    @property
    def pid(self) -> int:
        return self._qmp.peer_pid

    @property
    def netmap_socket(self) -> Path:
        """What the QEMU backend is given as devname."""
        return self.rundir / "netmap.sock"

    @property
    def version(self) -> str:
        """From the greeting."""
        parts = self._qmp.version.get("vale", {})
        return ".".join(str(parts.get(key, "?")) for key in ("major", "minor", "micro"))

    async def switches(self) -> list[dict[str, Any]]:
        """Names, numbers of ports, settings in force."""
        return list(await self._call("query-switches"))

    async def ports(self, switch: str | None = None) -> list[PortStats]:
        """Ports with counters."""
        arguments = {"switch": switch} if switch else {}
        return [PortStats.parse(raw) for raw in await self._call("query-ports", **arguments)]

    async def add_port(self, arguments: dict[str, Any]) -> None:
        """Make a port, as port-add does; one that is there already (after a restart) stays."""
        try:
            await self._call("port-add", **arguments)
        except SwitchError:
            ports = await self.ports(str(arguments["name"]).partition(":")[0])
            if not any((p.name, p.kind) == (arguments["name"], arguments["kind"]) for p in ports):
                raise

    async def free_port(self, name: str, deadline: Deadline) -> None:
        """Remove a port that add_port made; wait for the end of one whose owner is gone."""

        async def attempt() -> None:
            for port in await self.ports():
                if port.name == name:
                    if port.kind != NATIVE:
                        await self._call("port-del", name=name)
                    raise SwitchError(f"pid {port.peer_pid} still has it")

        await deadline.retry(f"end of port {name}", attempt, (SwitchError,))

    async def impair(self, port: str, both: dict[str, dict[str, Any] | None]) -> None:
        """Set directions (`in`, `out`) of a port; None: unimpaired."""
        await self._call("port-set", name=port, **both)

    async def set_switch(self, name: str, settings: dict[str, Any]) -> None:
        """Set up a switch as switch-set does; it stays until it is told not to be kept."""
        await self._call("switch-set", name=name, **settings)

    async def release_switch(self, name: str) -> None:
        """Let a switch that was set up go with its last port."""
        if name in {entry["name"] for entry in await self.switches()}:
            await self._call("switch-set", name=name, keep=False)

    async def require_free(self, wanted: tuple[str, ...]) -> None:
        """Refuse before anything starts what valed would refuse later."""
        switches = {name.partition(":")[0] for name in wanted}
        existing = {entry["name"] for entry in await self.switches()}
        for switch in sorted(switches & existing):
            ports = {port.name: port for port in await self.ports(switch)}
            for name in sorted(set(wanted) & set(ports)):
                raise SwitchError(_taken(ports[name]))
            more = sum(name.startswith(f"{switch}:") for name in wanted)
            if len(ports) + more > PORTS_MAX:
                raise SwitchError(
                    f"switch {switch} is full: {len(ports)} of {PORTS_MAX} ports in use, "
                    f"{more} more wanted; use another switch"
                )

    async def quit(self) -> None:
        """Make it end; for those who started it."""
        process = proc.find(proc.ident_of(self.pid))
        await self._call("quit")
        if process:
            await Deadline(START_SECONDS).wait("end of valed", process.exited())

    async def gone(self) -> SwitchError:
        """Wait until valed hangs up; the error that says so."""
        await self._qmp.hung_up()
        return SwitchError(
            f"valed (pid {self.pid}, {self.rundir}) went away; see {self.rundir}/valed.log"
        )

    async def close(self) -> None:
        await self._qmp.close()

    async def _call(self, command: str, **arguments: object) -> Any:
        try:
            return await self._qmp.call(command, **arguments)
        except QmpFailed as exc:
            raise SwitchError(f"valed: {exc}") from exc


def _taken(port: PortStats) -> str:
    if port.peer_pid:
        what = f"port {port.name} is taken by pid {port.peer_pid}"
        return f"{what}: use another switch, or end that process"
    what = f"port {port.name} is there already ({port.kind}, nobody connected)"
    return f"{what}: use another switch, or remove it by 'valectl del {port.name}'"


async def find() -> Switchd | None:
    """A valed that answers, or None."""
    for rundir in search_dirs():
        if usable(rundir):
            found = await _try(rundir)
            if found:
                return found
    return None


async def find_or_start(group: str = "") -> Switchd:
    """A valed that answers; started if there is none."""
    return await find() or await _started(server_dir(), group)


async def at(rundir: Path, start: bool, group: str = "") -> Switchd | None:
    """The valed of one directory; started if asked for and none is there: it knows its ports.

    group: whose members may connect to the ports of one that is started.
    """
    found = await _try(rundir)
    return found if found or not start else await _started(rundir, group)


async def quit_at(rundir: Path) -> None:
    """End the valed of a directory that is ours alone, and wait until it is gone."""
    daemon = await _try(rundir)
    if daemon:
        await daemon.quit()
        await daemon.close()


@asynccontextmanager
async def connected() -> AsyncIterator[Switchd | None]:
    """The running valed for a few queries; never starts one."""
    switchd = await find()
    try:
        yield switchd
    finally:
        if switchd:
            await switchd.close()


def search_dirs() -> list[Path]:
    """Where clients look, in order."""
    if os.environ.get("VALE_RUNDIR"):
        return [Path(os.environ["VALE_RUNDIR"])]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    dirs = [Path(runtime) / "vale"] if runtime else []
    return [*dirs, Path("/run/vale"), Path(f"/tmp/vale-{os.geteuid()}")]


def server_dir() -> Path:
    """Where a server that we start listens."""
    if os.environ.get("VALE_RUNDIR"):
        return Path(os.environ["VALE_RUNDIR"])
    if os.environ.get("XDG_RUNTIME_DIR"):
        return Path(os.environ["XDG_RUNTIME_DIR"]) / "vale"
    return Path("/run/vale" if os.geteuid() == 0 else f"/tmp/vale-{os.geteuid()}")


def usable(rundir: Path) -> bool:
    """Whether a directory may be trusted: no link, ours or root's, not writable by others."""
    try:
        status = rundir.lstat()
    except OSError:
        return False
    if rundir.is_symlink() or status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        log.warning("%s is a link, somebody else's, or too open: not used", rundir)
        return False
    return True


async def _try(rundir: Path) -> Switchd | None:
    try:
        qmp = await Deadline(START_SECONDS).wait(
            "valed", qmpclient.connect(rundir / "qmp.sock", "valed")
        )
    except OSError:
        return None
    except QmpFailed as exc:
        raise SwitchError(str(exc)) from exc
    return Switchd(rundir, qmp)


async def _started(rundir: Path, group: str = "") -> Switchd:
    """Start it, unless somebody else has meanwhile."""
    program = locate.require(locate.VALED)
    async with locked(_open_rundir(rundir), str(rundir), START_SECONDS):
        return await _try(rundir) or await _start(program, rundir, group)


async def _start(program: Path, rundir: Path, group: str) -> Switchd:
    reader, writer = os.pipe()
    argv = [str(program), "--rundir", str(rundir), "--linger", str(LINGER_SECONDS)]
    argv += ["--ready-fd", str(writer), *(["--group", group] if group else [])]
    with os.fdopen(reader, "rb") as ready:
        try:
            process = proc.start(argv, output=rundir / "valed.log", pass_fds=[writer])
        finally:
            os.close(writer)
        try:
            said = await Deadline(START_SECONDS).wait("valed", asyncio.to_thread(ready.read, 1))
        except BaseException:
            await process.stop()
            raise
    found = await _try(rundir) if said else None
    if found is None:
        await process.stop()
        last = tail(rundir / "valed.log", 1)
        raise SwitchError(f"valed did not start in {rundir}: {last[0] if last else 'no message'}")
    return found


def _open_rundir(rundir: Path) -> int:
    """Make the runtime directory, and open it to be locked: one of two that race starts a valed."""
    try:
        rundir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not usable(rundir):
            raise EnvironmentUnfitError(
                f"{rundir} is a link, not yours, or writable by others: set VALE_RUNDIR"
            )
        return open_dir(rundir)
    except OSError as exc:
        who = ": be its owner (sudo), or set VALE_RUNDIR" if exc.errno == errno.EACCES else ""
        raise EnvironmentUnfitError(f"runtime directory {rundir}: {exc.strerror}{who}") from exc
