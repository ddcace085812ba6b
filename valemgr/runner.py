# SPDX-License-Identifier: BSD-2-Clause
"""A lab that runs: carries out a Diff step by step, and writes down each step before it counts.

    what goes          NICs are unplugged, guests end, their ports are removed
    switches           set up, ports made where QEMU does not open them itself
    guests that come   so many at once as the machine has cores: launch, ready, set up
    guests that stay   NICs plugged, settings, neighbours and impairments changed, over QMP and SSH
    conditions         what the topology calls ready, when every guest is up

The state file has what is wanted from the beginning, and every guest from the moment that its
process exists: who comes after a kill can go on, or clean up.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from valemgr import hotplug, keys, proc, segments, switchd
from valemgr.deadline import Deadline
from valemgr.environment import Environment, check_memory
from valemgr.errors import GuestError, LabError, SwitchError, ValeError, WaitTimeoutError
from valemgr.guest import RunningGuest, plan_of
from valemgr.machine import STEP_SECONDS, machine_of
from valemgr.plan import Host, PlannedNic, guest_files, plan_guest, plan_nic, wire_nic
from valemgr.reconcile import Diff, GuestDiff, Running, neighbour_changes
from valemgr.state import SET_UP, GuestState, LabDir, LabState
from valemgr.switchd import PortStats, Switchd
from valemgr.tasks import together, uninterrupted, unless
from valemgr.text import last_line
from valemgr.topology import Guest, Impair, Lab, Nic, Switch, listeners
from valemgr.wiring import Place, Wire
from valemgr.words import Backend, Provider

log = logging.getLogger(__name__)

T = TypeVar("T")
Say = Callable[[str], None]

PORT_SECONDS = 5.0  # until valed has noticed that a port's owner is gone


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a lab is to run; `timeout` is for each guest, from its launch until it is set up.

    Without one, each has as long as its image may take.
    """

    keep: bool = False
    timeout: float | None = None
    keep_on_error: bool = False
    source: str = ""


class RunningLab:
    """A lab, with the guests that run; `lab` is pinned."""

    def __init__(self, lab: Lab, env: Environment, options: RunOptions, say: Say) -> None:
        self.lab = lab
        self.env = env
        self.options = options
        self.dir = LabDir(lab.name)
        self.guests: dict[str, RunningGuest] = {}
        self.switchd: Switchd | None = None
        self.begun = False  # whether anything may have changed
        self._say = say
        self._key = ""
        self._rundir: Path | None = None
        self._switches: dict[str, Switch] = {}
        self._dead: dict[str, GuestState] = {}
        self._settled: Lab | None = None  # what was carried out last
        self._tried: list[Lab] = []  # since then, and broken off
        self._began = datetime.now(UTC).isoformat(timespec="seconds")
        self._boots = asyncio.Semaphore(env.boots_at_once)
        self._launched = {guest.name: asyncio.Event() for guest in lab.guests}
        self._ready = {guest.name: asyncio.Event() for guest in lab.guests}
        self._torn: tuple[Lab, ...] = ()
        self._booting = 0
        self._quiet = asyncio.Event()

    def adopt(self, state: LabState) -> None:
        """Take over what an earlier valemgr has left running."""
        self._began = state.created
        self._rundir = Path(state.rundir) if state.rundir else None
        self._switches = {n: Switch.model_validate(raw) for n, raw in state.switches.items()}
        self._settled = Lab.model_validate(state.settled) if state.settled else None
        self._tried = [Lab.model_validate(raw) for raw in state.tried]
        for name, entry in state.guests.items():
            guest = RunningGuest.adopt(plan_of(entry, self.dir), self.dir, entry)
            if guest:
                self.guests[name] = guest
            else:
                self._dead[name] = entry
        with suppress(OSError):
            self._key = self.dir.key_file.with_suffix(".pub").read_text()

    @property
    def running(self) -> Running:
        """What runs, for comparing."""
        return Running(
            guests={name: guest.spec for name, guest in self.guests.items()},
            slots={name: guest.plan.slots for name, guest in self.guests.items()},
            switches=self._switches,
            dead=frozenset(self._dead),
            unready=frozenset(n for n, guest in self.guests.items() if guest.stage != SET_UP),
            private=frozenset(n for n, g in self.guests.items() if not g.plan.shares_memory),
            settled=self._settled,
            tried=tuple(self._tried),
        )

    @property
    def state(self) -> LabState:
        """What has to be remembered."""
        guests = {name: guest.state() for name, guest in self.guests.items()}
        return LabState(
            lab=self.lab.name,
            created=self._began,
            boot_id=proc.boot_id(),
            keep=self.options.keep,
            accelerator=self.env.accelerator.name,
            provider=self.provider,
            rundir=str(self.switchd.rundir) if self.switchd else "",
            source=self.options.source,
            topology=self.lab.model_dump(mode="json"),
            switches={n: switch.model_dump(mode="json") for n, switch in self._switches.items()},
            guests={**self._dead, **guests},
            settled=self._settled.model_dump(mode="json") if self._settled else None,
            tried=[lab.model_dump(mode="json") for lab in self._tried],
            libvirt=self.env.libvirt.uri if self.env.libvirt else "",
        )

    @property
    def provider(self) -> str:
        """The provider, or both, of the lab's switches."""
        found = {str(switch.provider) for switch in self.lab.all_switches().values()}
        return " and ".join(sorted(found))

    @property
    def host(self) -> Host:
        """For planning."""
        rundir = self.switchd.rundir if self.switchd else self._rundir or switchd.server_dir()
        place = Place(rundir=rundir, lab_dir=self.dir.path)
        env = self.env
        return Host(env.emulators, env.accelerator.name, place, env.images, env.libvirt)

    async def prepare(self, diff: Diff) -> None:
        """Everything that can refuse, before anything changes; the switch daemon is there then.

        It is started last of all: what is refused for another reason starts none.
        """
        new = [guest for guest in self.lab.guests if guest.name in diff.add]
        check_memory(new, [self.guests[n].spec for n in diff.remove if n in self.guests])
        switches = [*self.lab.all_switches().values(), *self._switches.values()]
        by_us = any(switch.provider is Provider.USER for switch in switches)
        self.switchd = await self._find_switchd() if by_us else None
        for guest in new:
            await machine_of(plan_guest(self.lab, guest, self.host)).check()
        for each in diff.guests.values():
            for nic in each.plug:
                self._plan_plug(_named(self.lab, each.name), nic)
        if by_us and self.switchd is None:
            self.switchd = await self._start_switchd()
        if self.switchd:
            plugged = [nic for each in diff.guests.values() for nic in each.plug]
            wanted = [nic for guest in new for nic in guest.nics] + plugged
            mine = self._own_ports()
            await self.switchd.require_free(
                tuple(n.port for n in wanted if n.port and n.port not in mine and self._by_us(n))
            )

    def _plan_plug(self, guest: Guest, nic: Nic) -> None:
        planned = plan_nic(self.lab, guest, nic, None, self.host)
        wire_nic(guest, planned, self.host)

    async def _find_switchd(self) -> Switchd | None:
        """The daemon that the lab's guests know; for a new lab, any that runs."""
        return await (switchd.at(self._rundir, start=False) if self._rundir else switchd.find())

    async def _start_switchd(self) -> Switchd:
        group = self.env.libvirt.group if self.env.libvirt else ""
        known = await switchd.at(self._rundir, start=True, group=group) if self._rundir else None
        return known or await switchd.find_or_start(group)

    def begin(self) -> None:
        """From now on the directory says what is wanted."""
        self.begun = True
        self.dir.create()
        if not self._key:
            pair = keys.generate()
            self._key = pair.public
            self.dir.write_file(self.dir.key_file, pair.private)
            self.dir.write_file(self.dir.key_file.with_suffix(".pub"), pair.public)
        settled = (self._settled,) if self._settled else ()
        self._torn = (*settled, *self._tried) if self._tried else ()
        self._tried = [lab for lab in self._tried if lab != self.lab] + [self.lab]
        self._write()
        if self.switchd:
            self._say(f"switch: valed {self.switchd.version}, {self.switchd.rundir}")

    async def converge(self, diff: Diff) -> None:
        """Carry a difference out."""
        watches = [self.switchd.gone()] if self.switchd else []
        await unless(watches, self._converge(diff))

    async def guarded(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work, but give up with the reason at once when a guest or the switch goes away."""
        watches: list[Coroutine[Any, Any, ValeError]]
        watches = [guest.ended() for guest in self.guests.values()]
        if self.switchd:
            watches.append(self.switchd.gone())
        return await unless(watches, work)

    async def drop_unready(self) -> None:
        """End guests that were launched and did not get ready."""
        for name in [n for n, guest in self.guests.items() if guest.stage != SET_UP]:
            try:
                await self._remove(name)
            except ValeError as exc:  # what led here is the one to tell
                log.warning("guest %s: %s", name, exc)

    async def disconnect(self) -> None:
        """Let go of everything that keeps running."""
        for guest in self.guests.values():
            guest.disconnect()
        if self.switchd:
            await self.switchd.close()

    async def _converge(self, diff: Diff) -> None:
        before = self._present()
        await together(self._unplug(diff.guests[name]) for name in diff.guests)
        await together(self._remove(name) for name in diff.remove)
        for switch in diff.switches:
            await self._set_up_switch(switch)
        await self._restore(diff)
        stay = dict(self.guests)
        unfinished = [guest for guest in stay.values() if guest.stage != SET_UP]
        for name, guest in stay.items():
            if guest not in unfinished:
                self._launched[name].set()
                self._ready[name].set()
        self._booting = len(diff.add) + len(unfinished)
        self._settle(0)
        new = [guest for guest in self.lab.guests if guest.name in diff.add]
        await together(
            [
                *(self._start(guest) for guest in new),
                *(self._finish(guest) for guest in unfinished),
                *(self._change(each) for each in diff.guests.values()),
            ]
        )
        for guest in stay.values():
            self._take_spec(guest)
        await self._tell_neighbours(before, stay, diff)
        for unused in diff.unused:
            await self._release_switch(unused)
        self._settled, self._tried = self.lab, []
        self._write()
        self._check_alive()

    async def _start(self, guest: Guest) -> None:
        """One guest that comes: when those before it are ready, and the machine has room."""
        for other in guest.after:
            await self._ready[other].wait()
        for other in listeners(self.lab.guests, guest):
            await self._launched[other].wait()
        async with self._boots:
            plan = plan_guest(self.lab, guest, self.host)
            for wire in plan.wires:
                await self._open_port(wire)
            running = RunningGuest(plan, self.dir)
            await running.launch(self._key)
            self._dead.pop(guest.name, None)
            self.guests[guest.name] = running
            self._write()
            deadline = await self._boot(running)
        await self._set_up(running, deadline)

    async def _finish(self, guest: RunningGuest) -> None:
        """A guest that an earlier valemgr launched, and no more."""
        async with self._boots:
            deadline = await self._boot(guest)
        await self._set_up(guest, deadline)

    async def _boot(self, guest: RunningGuest) -> Deadline:
        """Until a command has run in it; what is left of its time."""
        image = self.env.images[guest.spec.image]
        deadline = Deadline(self.options.timeout or image.boot_seconds)
        await guest.wait_qmp(deadline)
        self._launched[guest.name].set()
        self._write()
        await together(self._impair(nic.nic) for nic in guest.nics if nic.nic.impair != Impair())
        how = ", ".join(self._wiring_words(guest, nic) for nic in guest.nics) or "no data NICs"
        self._say(f"guest {guest.name}: booting ({self.env.accelerator.name}); {how}")
        await guest.wait_ready(deadline)
        return deadline

    async def _set_up(self, guest: RunningGuest, deadline: Deadline) -> None:
        """What it does itself then; others may boot meanwhile."""
        if guest.plan.has_seed:
            await self._complete(guest)
        await guest.set_up(deadline)
        self._write()
        self._say(f"guest {guest.name}: ready after {max(guest.stages.values()):.1f} s")
        await self._conditions(guest)

    async def _complete(self, guest: RunningGuest) -> None:
        """Tell a guest what cloud-init could not."""
        if guest.cloud_init_status:
            hint = f"'valemgr exec {guest.name} -- cloud-init status --long' says which"
            self._say(f"guest {guest.name}: cloud-init failed in some things: {hint}")
        for nic in (planned.nic for planned in guest.nics):
            known = segments.neighbours(self.lab, guest.name, nic)
            await self._tell(guest, segments.complete_nic(nic, known))

    async def _conditions(self, guest: RunningGuest) -> None:
        """What the topology calls ready; it may need others, so they come first."""
        if not guest.spec.ready:
            self._ready[guest.name].set()
            self._settle(-1)
            return
        self._settle(-1)
        await self._quiet.wait()
        self._say(f"guest {guest.name}: waiting for its conditions ({len(guest.spec.ready)})")
        await guest.wait_conditions()
        self._ready[guest.name].set()

    def _settle(self, change: int) -> None:
        """Quiet: every guest has booted that does not wait for another's conditions."""
        self._booting += change
        blocked = [
            name
            for name, event in self._launched.items()
            if not event.is_set() and name not in self.guests and self._blocked(name)
        ]
        if self._booting <= len(blocked):
            self._quiet.set()

    def _blocked(self, name: str) -> bool:
        guest = _named(self.lab, name)
        return any(not self._ready[other].is_set() for other in guest.after) or any(
            not self._launched[other].is_set() and self._blocked(other)
            for other in listeners(self.lab.guests, guest)
        )

    async def _remove(self, name: str) -> None:
        guest, entry = self.guests.pop(name, None), self._dead.pop(name, None)
        if guest:
            await guest.stop()
            self._say(f"guest {name}: ended")
        nics = guest.nics if guest else []
        await self._free_ports([nic.nic for nic in nics])
        if entry:
            await self._free_ports(entry.model.nics)
        files = guest_files(self.dir.path, name)
        for path in (files.ctl, files.events, files.console, files.identity, files.seed):
            path.unlink(missing_ok=True)
        self._write()

    async def _unplug(self, diff: GuestDiff) -> None:
        guest = self.guests[diff.name]
        for nic in diff.unplug:
            gone = PlannedNic(nic, None if nic.cable else Backend.NETMAP, None, Provider.USER)
            await guest.unplug(nic, wire_nic(guest.spec, gone, self.host))
            await self._free_ports([nic])
            guest.nics = [planned for planned in guest.nics if planned.nic.name != nic.name]
            guest.spec = _with_nics(guest.spec, [p.nic for p in guest.nics])
            self._write()
            self._say(f"nic {guest.name}:{nic.name}: unplugged from {nic.port or nic.segment}")

    async def _plug(self, guest: RunningGuest, nic: Nic) -> None:
        slot = min(set(range(guest.plan.slots)) - {planned.slot for planned in guest.nics})
        planned = plan_nic(self.lab, guest.spec, nic, slot, self.host)
        wire = wire_nic(guest.spec, planned, self.host)
        try:
            await self._open_port(wire)
            await guest.plug(planned, wire)
            await self._impair(nic)
            known = segments.neighbours(self.lab, guest.name, nic)
            await self._tell(guest, segments.set_up_nic(nic, known).splitlines())
        except BaseException:
            await uninterrupted(self._take_back(guest, planned))
            raise
        # Only now: what is killed before is plugged anew by the next apply.
        guest.nics.append(planned)
        guest.spec = _with_nics(guest.spec, [p.nic for p in guest.nics])
        self._write()
        self._say(f"nic {guest.name}:{nic.name}: plugged; {self._wiring_words(guest, planned)}")

    async def _open_port(self, wire: Wire) -> None:
        """What must be there before QEMU is told to connect."""
        if wire.port_add and self.switchd:
            await self.switchd.add_port(wire.port_add)
        if wire.probe:
            await hotplug.probe(wire.probe)

    async def _take_back(self, guest: RunningGuest, planned: PlannedNic) -> None:
        """Unplug a NIC that could not be set up; that it could not is the error to tell."""
        try:
            await guest.unplug(planned.nic, wire_nic(guest.spec, planned, self.host))
            await self._free_ports([planned.nic])
        except (ValeError, OSError) as exc:
            log.warning("guest %s: NIC %s stays: %s", guest.name, planned.nic.name, exc)

    async def _change(self, diff: GuestDiff) -> None:
        """What changes in a guest that stays."""
        guest = self.guests[diff.name]
        for nic in diff.plug:
            await self._plug(guest, nic)
        for change in diff.change:
            await self._tell(guest, segments.change_nic(change.old, change.new, {}, {}))
        for nic in diff.impair:
            await self._impair(nic)
        self._take_spec(guest)
        self._write()

    def _take_spec(self, guest: RunningGuest) -> None:
        """All of what is wanted of a guest has been done: its NICs are as there, in that order."""
        guest.spec = _named(self.lab, guest.name)
        plugged = {planned.nic.name: planned for planned in guest.nics}
        guest.nics = [replace(plugged[nic.name], nic=nic) for nic in guest.spec.nics]

    async def _tell_neighbours(
        self, before: Lab, stay: dict[str, RunningGuest], diff: Diff
    ) -> None:
        """Those who stay learn who came, went or changed; a NIC that was plugged knows it."""
        kept = {}
        for name, guest in stay.items():
            new = {nic.name for nic in diff.guests[name].plug} if name in diff.guests else set()
            kept[name] = _with_nics(guest.spec, [n for n in guest.spec.nics if n.name not in new])
        await together(
            self._tell(stay[name], segments.change_neighbours(nic.name, known, should))
            for name, nic, known, should in neighbour_changes(before, self.lab, kept, self._torn)
        )

    async def _tell(self, guest: RunningGuest, lines: list[str]) -> None:
        """Run shell lines in a guest."""
        if not lines:
            return
        deadline = Deadline(STEP_SECONDS)
        ssh = await guest.connect(deadline)
        result = await ssh.run(segments.script(lines), deadline)
        if result.status != 0:
            said = last_line(result.stderr or result.stdout, "?")
            raise GuestError(f"guest {guest.name}: its NICs could not be set up: {said}")

    async def _impair(self, nic: Nic) -> None:
        if self.switchd and nic.port and self._by_us(nic):
            both = {"in": nic.impair.into, "out": nic.impair.out}
            said = {key: each.settings() if each else None for key, each in both.items()}
            await self.switchd.impair(nic.port, said)

    async def _restore(self, diff: Diff) -> None:
        """What a valed has lost that was told to forget: settings of switches, ports of guests."""
        if self.switchd is None:
            return
        now = {str(entry["name"]): entry for entry in await self.switchd.switches()}
        for switch in self._switches.values():
            there = now.get(switch.name, {})
            lost = any(there.get(key) != value for key, value in switch.settings().items())
            if lost and switch.name not in diff.unused:
                await self._set_up_switch(switch)
        known = {port.name: port for port in await self.switchd.ports()}
        for guest in self.guests.values():
            for planned in guest.nics:
                if self._by_us(planned.nic) and planned.nic.port:
                    await self._restore_port(guest, planned, known.get(planned.nic.port))

    async def _restore_port(
        self, guest: RunningGuest, planned: PlannedNic, port: PortStats | None
    ) -> None:
        nic, wire = planned.nic, wire_nic(guest.spec, planned, self.host)
        if self.switchd and port is None and wire.port_add:
            await self.switchd.add_port(wire.port_add)
            await self._impair(nic)
            self._say(f"port {nic.port}: made again")
        elif _is_impaired(nic) and guest.stage == SET_UP and not (port and port.impaired):
            # Where QEMU opens the port by itself, it may be just about to.
            deadline = Deadline(PORT_SECONDS)
            try:
                await deadline.retry(f"port {nic.port}", lambda: self._impair(nic), (SwitchError,))
                self._say(f"port {nic.port}: impaired again")
            except WaitTimeoutError as exc:
                self._say(f"port {nic.port}: cannot be impaired: {exc}")

    async def _set_up_switch(self, switch: Switch) -> None:
        labs = [lab.all_switches().get(switch.name) for lab in self._tried]
        before = [s for s in (self._switches.get(switch.name), *labs) if s]
        settings = switch.settings_after(before)
        if self.switchd and switch.provider is Provider.USER and settings:
            await self.switchd.set_switch(switch.name, settings)
        self._switches[switch.name] = switch
        self._write()

    async def _release_switch(self, name: str) -> None:
        had = [lab.all_switches().get(name) for lab in self._torn]
        known = [s for s in (self._switches.pop(name, None), *had) if s]
        if self.switchd and any(s.settings() for s in known) and not any(s.shared for s in known):
            await self.switchd.release_switch(name)

    async def _free_ports(self, nics: Iterable[Nic]) -> None:
        """Remove the ports of NICs that are gone, and wait until valed has noticed the rest."""
        if self.switchd is None:
            return
        ports = [nic.port for nic in nics if nic.port and self._by_us(nic)]
        for port in ports:
            await self.switchd.free_port(port, Deadline(PORT_SECONDS))

    def _present(self) -> Lab:
        """The lab as it runs now; not validated, since ends of links may be missing."""
        guests = tuple(guest.spec for guest in self.guests.values())
        return Lab.model_construct(
            name=self.lab.name, guests=guests, switches=tuple(self._switches.values())
        )

    def _own_ports(self) -> set[str]:
        dead = [nic for entry in self._dead.values() for nic in entry.model.nics]
        alive = [nic for guest in self.guests.values() for nic in guest.spec.nics]
        tried = [nic for lab in self._tried for _, nic in lab.nics()]
        return {nic.port for nic in [*dead, *alive, *tried] if nic.port}

    def _by_us(self, nic: Nic) -> bool:
        """Whether its switch is valed's."""
        switch = self.lab.all_switches().get(nic.switch) or self._switches.get(nic.switch)
        return switch is None or switch.provider is Provider.USER

    def _check_alive(self) -> None:
        """A guest may have died after it was ready, while others still booted."""
        for guest in self.guests.values():
            if not proc.is_alive(guest.process.ident):
                raise LabError(
                    f"guest {guest.name} has died since it was ready: "
                    f"'valemgr logs {guest.name}' shows its console"
                )

    def _wiring_words(self, guest: RunningGuest, planned: PlannedNic) -> str:
        nic, me = planned.nic, f"{guest.name}:{planned.nic.name}"
        peers = (end for link in self.lab.links if me in link.ends for end in link.ends)
        peer = next((end for end in peers if end != me), None)
        where = f"to {peer}" if peer else f"on {nic.port or nic.segment}"
        return f"{nic.name} {where} by {planned.backend or 'cable'}"

    def _write(self) -> None:
        self.dir.write(self.state)


def _named(lab: Lab, name: str) -> Guest:
    found = lab.guest(name)
    if found is None:
        raise LabError(f"lab {lab.name} has no guest {name}")
    return found


def _is_impaired(nic: Nic) -> bool:
    return any(each and each.settings() for each in (nic.impair.into, nic.impair.out))


def _with_nics(guest: Guest, nics: list[Nic]) -> Guest:
    return guest.model_copy(update={"nics": tuple(nics)})
