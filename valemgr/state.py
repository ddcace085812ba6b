# SPDX-License-Identifier: BSD-2-Clause
"""What is kept about a lab that runs: one directory, one lock, one state file.

    <runtime>/LAB.lock        taken by every command that changes the lab; holds who has it
    <runtime>/LAB/state.json  intent and identity of what was started; the truth is asked from
                              the processes, QMP and the switch
    <runtime>/LAB/...         sockets, keys, consoles

A directory without a holder of the lock, whose lab is not to be kept, was abandoned: the next
command that wants the name, or `down`, cleans it up. A kept lab whose state is not what was wanted
was broken off: the next `up` or `apply` goes on.
"""

import fcntl
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from valemgr import proc, xdg
from valemgr.deadline import Deadline, locked, open_dir
from valemgr.errors import LabError, StoreError, UsageError, WaitTimeoutError
from valemgr.names import check_label
from valemgr.topology import Guest, Lab, Switch

SCHEMA = 3
LOCK_SECONDS = 10.0

# What has been done with a guest, in order.
LAUNCHED, READY, SET_UP = "launched", "ready", "set up"


@dataclass(frozen=True, slots=True)
class NicState:
    """A NIC as it was plugged."""

    name: str
    mac: str
    port: str  # or `cable NAME`
    backend: str
    slot: int | None
    addresses: list[str]


@dataclass(frozen=True, slots=True)
class GuestState:
    """A guest that was started."""

    pid: int
    start_time: int
    stage: str
    ssh_port: int
    host_key: str
    argv: list[str]
    slots: int
    nics: list[NicState]
    spec: dict[str, Any]  # topology.Guest, as it is now
    ready_seconds: dict[str, float]
    shares_memory: bool = False
    has_seed: bool = False
    libvirt: str = ""  # the URI; empty: our own QEMU

    @property
    def ident(self) -> proc.ProcessId:
        return proc.ProcessId(self.pid, self.start_time)

    @property
    def model(self) -> Guest:
        return Guest.model_validate(self.spec)


@dataclass(frozen=True, slots=True)
class LabState:
    """A lab's state file: what is wanted, and what has been done of it."""

    lab: str
    created: str
    boot_id: str
    keep: bool
    accelerator: str
    provider: str
    rundir: str  # of the valed in use; empty: none
    source: str  # the topology file
    topology: dict[str, Any]  # topology.Lab, pinned: what is wanted
    switches: dict[str, Any] = field(default_factory=dict)  # topology.Switch by name, set up so far
    guests: dict[str, GuestState] = field(default_factory=dict)
    settled: dict[str, Any] | None = None  # topology.Lab that was carried out last
    tried: list[dict[str, Any]] = field(default_factory=list)  # since then, and broken off
    libvirt: str = ""  # the URI; empty: QEMUs are our own
    schema: int = SCHEMA

    @property
    def of_this_boot(self) -> bool:
        return self.boot_id == proc.boot_id()

    @property
    def wanted(self) -> Lab:
        return Lab.model_validate(self.topology)

    def check(self) -> None:
        """ValueError or UsageError if another valemgr wrote it, whose models are not ours."""
        _ = self.wanted, [guest.model for guest in self.guests.values()]
        for raw in self.switches.values():
            Switch.model_validate(raw)
        for raw in [*self.tried, *([self.settled] if self.settled else [])]:
            Lab.model_validate(raw)

    @property
    def alive(self) -> bool:
        """Whether any of its guests runs."""
        return self.of_this_boot and any(proc.is_alive(g.ident) for g in self.guests.values())


class LabDir:
    """A lab's directory."""

    def __init__(self, lab: str) -> None:
        self.lab = check_label("lab", lab)
        self.root = xdg.runtime_dir()
        self.path = self.root / lab

    @property
    def exists(self) -> bool:
        return self.path.is_dir()

    @property
    def key_file(self) -> Path:
        return self.path / "id_ed25519"

    def guest_file(self, guest: str, kind: str) -> Path:
        """A guest's file, as plan.guest_files names them: ctl, console, console.log, qemu.log."""
        return self.path / f"{guest}.{kind}"

    def create(self) -> None:
        """Make the directory; only we may enter."""
        xdg.private_dir(self.root)
        xdg.private_dir(self.path)

    def delete(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.path, ignore_errors=True)

    def write_file(self, path: Path, data: str | bytes) -> None:
        """Write a private file atomically."""
        new = path.with_name(path.name + ".new")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as stream:
                stream.write(data.encode() if isinstance(data, str) else data)
            new.replace(path)
        except OSError as exc:
            raise StoreError(f"cannot write {path}: {exc.strerror}") from exc

    def write(self, state: LabState) -> None:
        """Keep the state."""
        self.write_file(self.path / "state.json", json.dumps(asdict(state), indent=1))

    def read(self) -> LabState | None:
        """The state; None if there is none that can be used."""
        try:
            raw = json.loads((self.path / "state.json").read_text())
            if raw.get("schema") != SCHEMA:
                return None
            guests = {name: _guest_state(guest) for name, guest in raw.pop("guests").items()}
            state = LabState(**raw, guests=guests)
            state.check()
            return state
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
            return None

    @asynccontextmanager
    async def lock(self, command: str) -> AsyncIterator[None]:
        """Hold the lab's lock; after 10 s of waiting name the lab and the holder."""
        xdg.private_dir(self.root)
        deadline = Deadline(LOCK_SECONDS)
        try:
            fd = await deadline.retry("lock", self._try_lock, (BlockingIOError,), every=0.1)
        except WaitTimeoutError as exc:
            holder = self.holder() or "another valemgr"
            raise LabError(
                f"lab {self.lab} is busy: held by {holder}; wait for it, or end it and the lab by "
                f"'valemgr down --force {self.lab}'"
            ) from exc
        try:
            os.truncate(fd, 0)
            me = proc.myself()
            os.pwrite(fd, f"{me.pid}.{me.start_time} {command}".encode(), 0)
            yield
        finally:
            self._lock_path.unlink(missing_ok=True)
            os.close(fd)

    def holder(self) -> str:
        """Who holds the lock, as it said itself."""
        with suppress(OSError):
            who, _, command = self._lock_path.read_text().partition(" ")
            return f"'{command}' (pid {who.partition('.')[0]})" if who else ""
        return ""

    def holder_process(self) -> proc.Process | None:
        """The process that holds the lock; None if nobody does, or it is gone."""
        with suppress(OSError, ValueError):
            pid, _, start_time = self._lock_path.read_text().split(" ")[0].partition(".")
            return proc.find(proc.ProcessId(int(pid), int(start_time))) if self.locked else None
        return None

    @property
    def locked(self) -> bool:
        """Whether a live process holds the lock now."""
        try:
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    @property
    def _lock_path(self) -> Path:
        return self.root / f"{self.lab}.lock"

    async def _try_lock(self) -> int:
        """One attempt. The holder unlinks the file, so what was locked must still be the file."""
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_ino != self._lock_path.stat().st_ino:
                raise BlockingIOError
        except FileNotFoundError as exc:
            os.close(fd)
            raise BlockingIOError from exc
        except BaseException:
            os.close(fd)
            raise
        return fd


@asynccontextmanager
async def claims() -> AsyncIterator[None]:
    """Held while a lab checks that its switches are free and says that they are its own."""
    root = xdg.private_dir(xdg.runtime_dir())
    async with locked(open_dir(root), str(root), LOCK_SECONDS):
        yield


def all_labs() -> list[LabDir]:
    """Every lab that has a directory, by name."""
    root = xdg.runtime_dir()
    if not root.is_dir():
        return []
    return [LabDir(path.name) for path in sorted(root.iterdir()) if _is_lab(path)]


def left_locks() -> list[LabDir]:
    """Labs without a directory whose lock file is there: held, or left by a kill."""
    root = xdg.runtime_dir()
    files = sorted(root.glob("*.lock")) if root.is_dir() else []
    names = [path.stem for path in files if _is_name(path.stem)]
    return [lab_dir for lab_dir in map(LabDir, names) if not lab_dir.exists]


def _is_lab(path: Path) -> bool:
    """Whether it is a directory of ours: what else somebody puts there must not stop us."""
    return path.is_dir() and _is_name(path.name)


def _is_name(text: str) -> bool:
    try:
        return bool(check_label("lab", text))
    except UsageError:
        return False


def _guest_state(raw: dict[str, Any]) -> GuestState:
    return GuestState(**raw | {"nics": [NicState(**nic) for nic in raw["nics"]]})
