# SPDX-License-Identifier: BSD-2-Clause
"""One virtual machine: launched, watched until it is ready, stopped.

Ready by stages, each timed from the launch, each with its own way to fail:

    process   QEMU was started, by us or by libvirt
    qmp       it answers; its forwarded SSH port is known
    console   the console says that sshd listens (images that say so)
    ssh       a command has run in the guest
    cloud-init  it is done (images that learn who they are from it)
    links     every data NIC has its link; an e1000 needs a second or two for that
    set up    files are copied in, startup commands have run

Readiness conditions of the topology come last, when every guest of the lab is up.
"""

import asyncio
import json
import logging
import re
import shlex
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from valemgr import keys, machine, nocloud, proc
from valemgr.copy import copy_to
from valemgr.deadline import Deadline
from valemgr.errors import GuestError, LaunchError, ValeError, WaitTimeoutError
from valemgr.plan import GuestPlan, PlannedNic, guest_files, identity
from valemgr.ssh import SshSession, SshTarget
from valemgr.state import LAUNCHED, READY, SET_UP, GuestState, LabDir, NicState
from valemgr.text import harmless, last_line, tail
from valemgr.topology import Condition, Nic
from valemgr.virt.domain import guest_uuid
from valemgr.wiring import Wire
from valemgr.words import Backend, Provider

log = logging.getLogger(__name__)

DEATH_SECONDS = 0.5
CONDITION_SECONDS = 0.25
GRACE_SECONDS = 5.0
PANIC, PANIC_LINES = "Kernel panic - not syncing: ", 100
WAITING_FOR = {
    "process": "QEMU to start",
    "qmp": "QEMU to answer",
    "console": "its system to boot",
    "ssh": "its SSH server",
    "cloud-init": "cloud-init to end",
    "links": "the links of its NICs",
    "ready": "what its topology asks for",
}
# What a NIC without link is given to send vanishes uncounted, so a trial must not begin earlier.
_LINKS_UP = (
    "echo up; cd /sys/class/net || exit 1; for nic in {nics}; do ls $nic >&2 || exit 1; "
    "until grep -q up $nic/operstate; do sleep 0.05; done; done"
)


class RunningGuest:
    """A guest that was launched, by us or by an earlier valemgr."""

    def __init__(self, plan: GuestPlan, lab_dir: LabDir) -> None:
        self.plan = plan
        self.spec = plan.spec
        self.nics = list(plan.nics)
        self.stage = LAUNCHED
        self.stages: dict[str, float] = {}
        self.cloud_init_status = 0
        self.machine = machine.machine_of(plan)
        self._lab_dir = lab_dir
        self._host_key = ""
        self._launched = time.monotonic()
        self._process: proc.Process | None = None
        self._port = 0
        self._ssh: SshSession | None = None

    @classmethod
    def adopt(cls, plan: GuestPlan, lab_dir: LabDir, state: GuestState) -> Self | None:
        """One that an earlier valemgr launched; None if it is dead."""
        uuid = guest_uuid(lab_dir.path, plan.name) if state.libvirt else ""
        process = machine.find(state.ident, uuid, state.libvirt)
        if process is None:
            return None
        guest = cls(plan, lab_dir)
        guest.stage = state.stage
        guest.stages = dict(state.ready_seconds) if state.stage != LAUNCHED else {}
        guest._process, guest._port, guest._host_key = process, state.ssh_port, state.host_key
        return guest

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def ready_seconds(self) -> float:
        """From launch to ready."""
        return self.stages["links"]

    @property
    def process(self) -> proc.Process:
        if self._process is None:
            raise GuestError(f"guest {self.name} was not launched")
        return self._process

    @property
    def ssh(self) -> SshSession:
        if self._ssh is None:
            raise GuestError(f"guest {self.name} is not ready")
        return self._ssh

    async def launch(self, client_key: str) -> None:
        """Start QEMU."""
        key = keys.generate()
        self._host_key = key.public
        self._write_identity(identity(self.plan, client_key, key.private))
        self._launched = time.monotonic()
        self._process = await self.machine.start()
        self._passed("process")

    def _write_identity(self, who: dict[str, Any]) -> None:
        """Where the guest reads who it is."""
        files = self.plan.files
        if self.plan.has_seed:
            volume = nocloud.volume(nocloud.files(self._lab_dir.lab, who))
            self._lab_dir.write_file(files.seed, volume)
        else:
            self._lab_dir.write_file(files.identity, json.dumps(who))

    async def wait_qmp(self, deadline: Deadline) -> None:
        """Wait until QEMU talks, and ask which port it chose for SSH."""
        await self._while_alive(self._greet(deadline), deadline)
        self._passed("qmp")

    async def wait_ready(self, deadline: Deadline) -> None:
        """Wait until a command has run in the guest and its links are up."""
        await self._while_alive(self._first_command(deadline), deadline)
        self._passed("links")
        self.stage = READY

    async def set_up(self, deadline: Deadline) -> None:
        """Copy its files in and run its startup commands, once."""
        await self._while_alive(self._set_up(deadline), deadline)
        self.stage = SET_UP

    async def wait_conditions(self) -> None:
        """Wait until every readiness condition of its topology holds."""
        for condition in self.spec.ready:
            deadline = Deadline(condition.timeout)
            # Its own deadline comes first: it knows what the command said last.
            work = self._holds(condition, deadline)
            await self._while_alive(work, deadline, GRACE_SECONDS)

    async def connect(self, deadline: Deadline) -> SshSession:
        """SSH to a guest that is ready; kept open until `disconnect`."""
        if self._ssh is None:
            self._ssh = await SshSession.connect(self.target, deadline)
        return self._ssh

    def nic(self, name: str) -> Nic:
        """Its NIC of that name."""
        found = self.spec.nic(name)
        if found is None:
            raise GuestError(f"guest {self.name} has no NIC {name}")
        return found

    @property
    def target(self) -> SshTarget:
        """Where its sshd is."""
        key_file, listens = self._lab_dir.key_file, self.stage != LAUNCHED
        late = self.plan.has_seed and not listens
        return SshTarget(self.name, self._port, self._host_key, key_file, listens, late)

    async def plug(self, planned: PlannedNic, wire: Wire) -> None:
        """Give it a NIC while it runs; GuestError if it does not take it."""
        await self.machine.plug(planned, wire)

    async def unplug(self, nic: Nic, wire: Wire) -> None:
        """Take a NIC away; GuestError if the guest does not let it go. The port is free then."""
        await self.machine.unplug(str(nic.mac), wire)

    async def ended(self) -> GuestError:
        """Wait until the guest's process ends unasked; the error that says so."""
        status = await self.process.exited()
        return self._death(status)

    async def stop(self) -> None:
        """End the guest and its connections."""
        self.disconnect()
        if self._process:
            await self._process.stop()

    def disconnect(self) -> None:
        """Let go of it; it keeps running."""
        if self._ssh:
            self._ssh.close()

    def state(self) -> GuestState:
        """What has to be remembered about it."""
        return GuestState(
            pid=self.process.pid,
            start_time=self.process.ident.start_time,
            stage=self.stage,
            ssh_port=self._port,
            host_key=self._host_key,
            argv=list(self.machine.argv),
            slots=self.plan.slots,
            nics=[_nic_state(nic) for nic in self.nics],
            spec=self.spec.model_dump(mode="json"),
            ready_seconds=self.stages,
            shares_memory=self.plan.shares_memory,
            has_seed=self.plan.has_seed,
            libvirt=self.plan.libvirt,
        )

    def _passed(self, stage: str) -> None:
        self.stages[stage] = round(time.monotonic() - self._launched, 3)
        log.info("guest %s: %s after %.3f s", self.name, stage, self.stages[stage])

    async def _greet(self, deadline: Deadline) -> None:
        self._port = await self.machine.ssh_port(deadline)

    async def _first_command(self, deadline: Deadline) -> None:
        if self.plan.ready_line:
            await self.machine.console_says(self.plan.ready_line, deadline)
            self._passed("console")
        ssh = await self.connect(deadline)
        if self.plan.has_seed:
            await self._cloud_init(ssh, deadline)
        names = " ".join(nic.nic.name for nic in self.nics)
        program = await ssh.start(_LINKS_UP.format(nics=names))
        await program.line(deadline)
        if not self.plan.has_seed:
            self._passed("ssh")
        result = await program.result(deadline)
        if result.status != 0:
            raise GuestError(f"guest {self.name}: no data NICs: {harmless(result.stderr).strip()}")

    async def _cloud_init(self, ssh: SshSession, deadline: Deadline) -> None:
        """Wait until it is done. That we are in says that it did what we need."""
        await ssh.run("true", deadline)
        self._passed("ssh")
        result = await ssh.run("cloud-init status --wait > /dev/null", deadline)
        self.cloud_init_status = result.status
        self._passed("cloud-init")

    async def _set_up(self, deadline: Deadline) -> None:
        ssh = await self.connect(deadline)
        for file in self.spec.files:
            await copy_to(ssh, Path(file.source), file.target, file.mode)
        for command in self.spec.startup:
            result = await ssh.run(command, deadline)
            if result.status != 0:
                said = harmless(result.stderr or result.stdout).strip().splitlines()
                raise GuestError(
                    f"guest {self.name}: startup command '{command}' failed (status "
                    f"{result.status}): {said[-1] if said else 'silent'}",
                    said[-12:-1],
                )
        if self.spec.files or self.spec.startup:
            self._passed("set up")

    async def _holds(self, condition: Condition, deadline: Deadline) -> None:
        """Repeat a condition's command until it succeeds and says what it should."""
        ssh = await self.connect(deadline)
        what, last = f"'{condition.exec}'", None

        async def attempt() -> None:
            nonlocal last
            try:
                await expect(ssh, condition, deadline)
            except ConditionError as exc:
                last = exc
                raise

        try:
            await deadline.retry(what, attempt, (ConditionError,), every=CONDITION_SECONDS)
        except WaitTimeoutError as exc:  # perhaps in the middle of one more attempt
            raise deadline.timeout(what, last or exc) from exc

    async def _while_alive(
        self, step: Coroutine[None, None, None], deadline: Deadline, grace: float = 0.0
    ) -> None:
        """Run one stage; the process's death or the deadline becomes an error with a console."""
        task = asyncio.ensure_future(step)
        death = asyncio.ensure_future(self.process.exited())
        try:
            async with asyncio.timeout(deadline.left + grace):
                await asyncio.wait({task, death}, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and task.exception() and not death.done():
                # A guest that dies first hangs up on us: let its end be the news, not that.
                await asyncio.wait({death}, timeout=DEATH_SECONDS)
            if death.done():
                raise self._death(death.result())
            await task
        except (WaitTimeoutError, TimeoutError) as exc:
            raise self._not_ready(deadline, exc) from exc
        finally:
            for pending in (task, death):
                pending.cancel()
                with suppress(asyncio.CancelledError, ValeError, OSError):
                    await pending

    def _not_ready(self, deadline: Deadline, cause: Exception) -> WaitTimeoutError:
        console = tail(self.plan.files.console_log)
        warned = [f"QEMU: {_bare(line)}" for line in tail(self.plan.files.qemu_log, 3)]
        passed = {*self.stages, *(() if self.plan.has_seed else ("cloud-init",))}
        stage = next((name for name in WAITING_FOR if name not in passed), "ready")
        why = f": {cause}" if isinstance(cause, WaitTimeoutError) else ""
        ends = "its console ends:" if console else "its console is empty: does the image boot?"
        return WaitTimeoutError(
            f"guest {self.name} is not ready within {deadline.seconds:g} s, "
            f"waiting for {WAITING_FOR[stage]}{why}; {ends}",
            [*console, *warned],
        )

    def _death(self, status: int | None) -> LaunchError:
        said = tail(self.plan.files.qemu_log, 1)
        reason = panic(self.plan.files.console_log)
        if status == 0 or (status is None and reason):
            what = f"its kernel panicked: {reason}" if reason else "it shut down or rebooted"
        else:
            last = _bare(said[0]) if said else "without a word"
            what = f"QEMU ended{_how(status)}: {last}"
        log.error("guest %s: %s: %s", self.name, what, shlex.join(self.machine.argv))
        return LaunchError(
            f"guest {self.name}: {what}",
            argv=self.machine.argv,
            exit_status=status,
            console=tail(self.plan.files.console_log),
        )


def _how(status: int | None) -> str:
    """Only who started a process is told."""
    if status is None:
        return ""
    return f" (killed by signal {-status})" if status < 0 else f" (exit code {status})"


def panic(console_log: Path) -> str:
    """Why the kernel gave up, as the end of its console says; empty if it did not."""
    said = [line.partition(PANIC)[2] for line in tail(console_log, PANIC_LINES) if PANIC in line]
    return said[-1] if said else ""


class ConditionError(GuestError):
    """A condition does not hold (yet)."""


async def expect(ssh: SshSession, condition: Condition, deadline: Deadline) -> str:
    """Run a condition's command once; what it said, or ConditionError with the reason."""
    result = await ssh.run(condition.exec, deadline)
    said = harmless(result.stdout + result.stderr).strip()
    last = last_line(said, "silent")
    if result.status != condition.status:
        wanted = f", not {condition.status}" if condition.status else ""
        raise ConditionError(f"status {result.status}{wanted}: {last}")
    if condition.expect and not re.search(condition.expect, said):
        raise ConditionError(f"'{condition.expect}' is not in what it says: {last}")
    return said


def plan_of(entry: GuestState, lab_dir: LabDir) -> GuestPlan:
    """The plan of a guest that was launched earlier, as far as it still matters."""
    spec = entry.model
    by_name = {nic.name: nic for nic in spec.nics}
    nics = tuple(
        PlannedNic(
            by_name[nic.name],
            None if by_name[nic.name].cable else Backend(nic.backend),
            nic.slot,
            Provider.USER,
        )
        for nic in entry.nics
    )
    files = guest_files(lab_dir.path, spec.name)
    return GuestPlan(
        lab=lab_dir.lab,
        spec=spec,
        argv=tuple(entry.argv),
        files=files,
        nics=nics,
        wires=(),
        slots=entry.slots,
        identity={},
        ready_line="",
        shares_memory=entry.shares_memory,
        has_seed=entry.has_seed,
        libvirt=entry.libvirt,
    )


def _nic_state(planned: PlannedNic) -> NicState:
    nic = planned.nic
    return NicState(
        name=nic.name,
        mac=str(nic.mac),
        port=nic.port or nic.segment,
        backend=str(planned.backend or Backend.STREAM),
        slot=planned.slot,
        addresses=list(nic.addresses),
    )


def _bare(line: str) -> str:
    """A line of QEMU's without the program's name."""
    return re.sub(r"^\S*qemu\S*: ", "", line)
