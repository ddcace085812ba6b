# SPDX-License-Identifier: BSD-2-Clause
"""Labs carried out in a world of fakes, and broken off at every single step.

A fake QEMU (a process that sleeps) keeps chardevs, netdevs and devices, a fake valed its ports and
switches, a fake guest the names, addresses and neighbours of its interfaces. Whatever step a kill
or an error comes at, the next command makes the world what the topology says, and `down` leaves
nothing. `VALE_EVERY_STEP=1` tries every step.
"""

import asyncio
import json
import os
import re
import shlex
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from valemgr import hotplug, lifecycle, proc, runner
from valemgr.accel import AccelChoice, Accelerator
from valemgr.deadline import Deadline
from valemgr.emulator import Emulator
from valemgr.environment import Environment
from valemgr.errors import GuestError, LabError, SwitchError, UsageError, ValeError
from valemgr.guest import RunningGuest
from valemgr.image import Image
from valemgr.lifecycle import Outcome
from valemgr.plan import PlannedNic, pin
from valemgr.qmpclient import QmpFailed
from valemgr.runner import RunOptions
from valemgr.segments import neighbours
from valemgr.ssh import RemoteResult
from valemgr.state import READY, SET_UP, LabDir, LabState
from valemgr.switchd import Switchd
from valemgr.topology import Cable, Condition, Engine, Guest, Impair, Impairment, Lab, Nic, Switch
from valemgr.wiring import Wire

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("home")]

T = TypeVar("T")
SLEEP = ["sleep", "600"]
MICRO = Image("micro", Path("/i/vmlinuz"), Path("/i/initrd"), "quiet", "", {})
OURS = Emulator(Path("/q/vale"), (7, 2), has_netmap=True)
STOCK = Emulator(Path("/q/stock"), (7, 2), has_netmap=False)


class Killed(BaseException):
    """SIGKILL of valemgr, from inside: nothing that it does later has an effect."""


@dataclass
class Machine:
    """A fake guest: what its QEMU has, and its interfaces."""

    process: proc.Process
    chardevs: set[str] = field(default_factory=set)
    netdevs: dict[str, str] = field(default_factory=dict)  # id: port, of those that open it
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    interfaces: dict[str, dict[str, Any]] = field(default_factory=dict)
    told: int = 0

    def plugged(self, device: dict[str, Any]) -> None:
        self.devices[device["id"]] = device
        self.interfaces[device["mac"]] = {"name": "?", "mtu": 0, "addresses": [], "neighbours": {}}

    def shell(self, script: str) -> None:
        """As far as our own scripts go."""
        self.told += 1
        want = re.search(r"^want=(\S+)", script, re.MULTILINE)
        if want:
            self.interfaces[want[1]]["name"] = script.rpartition("net/")[2].partition("/")[0]
        for line in script.splitlines():
            match line.split():
                case ["ip", "link", "set", "dev", name, "mtu", mtu, "up"]:
                    self._nic(name)["mtu"] = int(mtu)
                case ["ip", "addr", "del", address, "dev", name, *_]:
                    if address in self._nic(name)["addresses"]:
                        self._nic(name)["addresses"].remove(address)
                case ["ip", "addr", "replace", address, "dev", name]:
                    if address not in self._nic(name)["addresses"]:
                        self._nic(name)["addresses"].append(address)
                case ["ip", "neigh", "del", address, "dev", name, *_]:
                    self._nic(name)["neighbours"].pop(address, None)
                case ["ip", "neigh", "replace", address, "lladdr", mac, "dev", name, *_]:
                    self._nic(name)["neighbours"][address] = mac

    def _nic(self, name: str) -> dict[str, Any]:
        (found,) = [one for one in self.interfaces.values() if one["name"] == name]
        return found


@dataclass
class World:
    """Everything outside valemgr."""

    emulator: Emulator = STOCK
    machines: dict[str, Machine] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=dict)  # made by port-add
    impaired: dict[str, dict[str, Any]] = field(default_factory=dict)
    switches: dict[str, dict[str, Any]] = field(default_factory=dict)  # set up and kept
    log: list[str] = field(default_factory=list)
    kill_at: int | None = None
    fail_at: int | None = None
    holds: dict[str, asyncio.Event] = field(default_factory=dict)  # conditions of guests
    down: bool = False

    def step(self, what: str) -> None:
        """One effect on the world is about to happen."""
        if self.down or self.kill_at == len(self.log):
            self.down = True
            raise Killed
        failing = self.fail_at == len(self.log)
        self.log.append(what)
        if failing:
            raise GuestError("this step fails")

    def alive(self) -> dict[str, Machine]:
        return {n: m for n, m in self.machines.items() if proc.is_alive(m.process.ident)}

    def forget(self) -> None:
        """Ports that are gone take their impairments along."""
        there = {*self.ports, *self.native_ports()}
        self.impaired = {port: how for port, how in self.impaired.items() if port in there}

    def native_ports(self) -> dict[str, proc.Process]:
        return {
            port: m.process for m in self.alive().values() for port in m.netdevs.values() if port
        }


class FakeQmp:
    """QEMU's side of hotplug.py."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name

    async def call(self, command: str, **words: Any) -> Any:
        self.world.step(f"{self.name}: {command}")
        machine = self.world.machines[self.name]
        kinds: dict[str, Any] = {
            "chardev": machine.chardevs, "netdev": machine.netdevs, "device": machine.devices,
        }
        what, verb = re.split("[-_]", command)
        if verb == "add" and words["id"] in kinds[what]:
            raise QmpFailed(f"Duplicate ID '{words['id']}'")
        if verb in ("del", "remove") and words["id"] not in kinds[what]:
            raise QmpFailed(f"Device '{words['id']}' not found")
        match command:
            case "chardev-add":
                machine.chardevs.add(words["id"])
            case "netdev_add":
                machine.netdevs[words["id"]] = words.get("ifname", "")
            case "device_add":
                assert words["bus"] not in {d["bus"] for d in machine.devices.values()}
                machine.plugged(words)
            case "device_del":
                del machine.interfaces[machine.devices.pop(words["id"])["mac"]]
            case "netdev_del":
                del machine.netdevs[words["id"]]
                self.world.forget()
            case "chardev-remove":
                machine.chardevs.remove(words["id"])

    async def call_until(
        self, event: str, data: dict[str, Any], seconds: float, command: str, **words: Any
    ) -> bool:
        await self.call(command, **words)
        return True


class FakeSsh:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name

    async def run(self, command: str, deadline: Deadline) -> RemoteResult:
        self.world.step(f"{self.name}: ssh")
        self.world.machines[self.name].shell(shlex.split(command)[-1])
        return RemoteResult(0, "", "")

    def close(self) -> None:
        pass


class FakeSwitchd(Switchd):
    """valed's side of switchd.py; `version` and `pid` are of no interest here."""

    version, pid = "0", 0

    def __init__(self, world: World) -> None:
        self.rundir = Path("/run/fake")
        self.world = world

    async def gone(self) -> SwitchError:
        await asyncio.Event().wait()
        raise AssertionError

    async def close(self) -> None:
        pass

    async def _call(self, command: str, **words: Any) -> Any:
        world, name = self.world, words.get("name", "")
        if not command.startswith("query"):
            world.step(f"valed: {command} {name}")
        native = world.native_ports()
        match command:
            case "query-switches":
                used = {port.partition(":")[0] for port in [*world.ports, *native]}
                names = sorted(used | world.switches.keys())
                return [{"name": n, "ports": 0, **world.switches.get(n, {})} for n in names]
            case "query-ports":
                counts = {"frames": 0, "bytes": 0, "offered": 0}
                return [
                    {"name": n, "kind": kind, "rx": counts, "tx": counts}
                    | {k: v for k, v in world.impaired.get(n, {}).items() if v}
                    for n, kind in [*world.ports.items(), *((n, "native") for n in native)]
                    if n.startswith(words.get("switch", ""))
                ]
            case "port-add":
                if name in world.ports or name in native:
                    raise SwitchError(f"{name} is there already")
                world.ports[name] = words["kind"]
            case "port-del":
                del world.ports[name]
                world.forget()
            case "port-set":
                if name not in world.ports and name not in native:
                    raise SwitchError(f"no port {name}")
                world.impaired[name] = {key: words[key] for key in ("in", "out")}
            case "switch-set":
                if words.get("keep") is False:
                    world.switches.pop(name, None)
                else:
                    settings = {k: v for k, v in words.items() if k != "name"}
                    world.switches[name] = world.switches.get(name, {}) | settings
        return {}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World()

    class FakeGuest(RunningGuest):
        async def launch(self, client_key: str) -> None:
            world.step(f"{self.name}: launch")
            self._process = proc.start(SLEEP)
            machine = world.machines[self.name] = Machine(self._process)
            for wire, planned in zip(self.plan.wires, self.plan.nics, strict=True):
                if wire.chardev:
                    machine.chardevs.add(wire.chardev["id"])
                machine.netdevs[wire.netdev["id"]] = wire.netdev.get("ifname", "")
                machine.plugged({"bus": planned.slot} | wire.device)
            for nic in self.plan.identity["nics"]:
                if nic["mac"] in machine.interfaces:
                    known = {one["address"]: one["mac"] for one in nic["neighbours"]}
                    machine.interfaces[nic["mac"]] = {
                        "name": nic["name"], "mtu": nic["mtu"],
                        "addresses": list(nic["addresses"]), "neighbours": known,
                    }
            self._passed("process")

        async def wait_qmp(self, deadline: Deadline) -> None:
            world.step(f"{self.name}: qmp")
            self._port = 1

        async def wait_ready(self, deadline: Deadline) -> None:
            await asyncio.sleep(0)
            world.step(f"{self.name}: ready")
            self._passed("links")
            self.stage = READY

        async def set_up(self, deadline: Deadline) -> None:
            world.step(f"{self.name}: set up")
            self.stage = SET_UP

        async def wait_conditions(self) -> None:
            world.step(f"{self.name}: conditions")
            if self.name in world.holds:
                await world.holds[self.name].wait()

        async def connect(self, deadline: Deadline) -> Any:
            assert self.stage in (READY, SET_UP)
            return FakeSsh(world, self.name)

        async def plug(self, planned: PlannedNic, wire: Wire) -> None:
            await hotplug.plug(self.name, FakeQmp(world, self.name), wire)

        async def unplug(self, nic: Nic, wire: Wire) -> None:
            await hotplug.unplug(self.name, FakeQmp(world, self.name), wire)

    async def environment(lab: Lab, choice: AccelChoice) -> Environment:
        return Environment({"": world.emulator}, Accelerator("tcg", ""), {"micro": MICRO})

    async def switchd(*_: object, **__: object) -> Switchd:
        return FakeSwitchd(world)

    async def processes(lab_dir: LabDir, state: LabState | None) -> list[proc.Process]:
        return [machine.process for machine in world.alive().values()]

    def write(lab_dir: LabDir, state: LabState) -> None:
        world.step("write")
        real_write(lab_dir, state)

    def delete(lab_dir: LabDir) -> None:
        world.step("delete")
        real_delete(lab_dir)

    async def stop(process: proc.Process, grace: float = 5.0) -> None:
        world.step("stop")
        await real_stop(process, grace)
        world.forget()

    async def probe(path: Path) -> None:
        world.step("probe")

    real_write, real_delete, real_stop = LabDir.write, LabDir.delete, proc.Process.stop
    monkeypatch.setattr(LabDir, "write", write)
    monkeypatch.setattr(LabDir, "delete", delete)
    monkeypatch.setattr(proc.Process, "stop", stop)
    monkeypatch.setattr(runner, "RunningGuest", FakeGuest)
    monkeypatch.setattr(hotplug, "probe", probe)
    monkeypatch.setattr(lifecycle, "_processes", processes)
    monkeypatch.setattr("valemgr.environment.find", environment)
    for name in ("find", "find_or_start", "at"):
        monkeypatch.setattr(f"valemgr.switchd.{name}", switchd)
    monkeypatch.setattr(lifecycle, "_keeps", lambda _: True)
    monkeypatch.setattr("valemgr.tasks.NEWS_SECONDS", 0)  # nobody else has news here
    yield world
    world.down, world.kill_at, world.fail_at = False, None, None
    for machine in world.alive().values():
        asyncio.run(real_stop(machine.process))


def apply(lab: Lab) -> Coroutine[Any, Any, Outcome]:
    options = RunOptions(keep=True)
    return lifecycle.apply(lab, AccelChoice.TCG, options, lambda _: None)


def up(lab: Lab, keep_on_error: bool = False) -> Coroutine[Any, Any, Outcome]:
    options = RunOptions(keep=True, keep_on_error=keep_on_error)
    return lifecycle.up(lab, AccelChoice.TCG, options, lambda _: None)


def down(lab: str = "l") -> Coroutine[Any, Any, int]:
    return lifecycle.end(LabDir(lab), force=False)


def nic(name: str, port: str, *addresses: str, **more: Any) -> Nic:
    return Nic(**{"name": name, "port": port, "addresses": addresses} | more)


LOSSY = Impair(into=Impairment(loss=1))
OLD = Lab(
    name="l",
    guests=(
        Guest(name="a", nics=(
            nic("eth1", "vale1:a", "10.0.0.1/24"), nic("eth2", "vale2:a", "10.0.2.1/24"),
            nic("eth3", "vale3:a"),
        )),
        Guest(name="b", nics=(nic("eth1", "vale1:b", "10.0.0.2/24"),)),
        Guest(name="c", after=("a",), nics=(nic("eth1", "vale1:c", "10.0.0.3/24"),)),
    ),
    switches=(Switch(name="vale1", age=60), Switch(name="vale3", cap=9)),
)  # fmt: skip
NEW = Lab(
    name="l",
    guests=(
        Guest(name="a", nics=(
            nic("eth4", "vale4:a", "10.0.4.1/24", impair=LOSSY),
            nic("eth1", "vale1:a", "10.0.0.9/24", mtu=9000),
            nic("eth2", "vale1:a2", "10.0.0.5/24", impair=LOSSY),
        )),
        Guest(name="b", cpus=2, nics=(nic("eth1", "vale1:b", "10.0.0.2/24", impair=LOSSY),)),
        Guest(name="d", after=("b",), nics=(nic("eth1", "vale1:d", "10.0.0.4/24"),)),
    ),
    switches=(Switch(name="vale1", age=90),),
)  # fmt: skip


def assert_is(world: World, lab: Lab) -> None:
    """The world is what the topology says: all of it, and nothing else."""
    wanted = pin(lab)
    state = LabDir(lab.name).read()
    assert state
    alive = world.alive()
    assert alive.keys() == {guest.name for guest in wanted.guests} == state.guests.keys()
    ours = world.emulator.has_netmap
    assert world.ports.keys() == (set() if ours else set(wanted.ports))
    assert world.native_ports().keys() == (set(wanted.ports) if ours else set())
    for guest in wanted.guests:
        machine, entry = alive[guest.name], state.guests[guest.name]
        assert entry.model == guest
        assert entry.stage == SET_UP
        assert [one.name for one in entry.nics] == [one.name for one in guest.nics]
        assert machine.netdevs.keys() == {one.name for one in guest.nics}
        slots = {d["netdev"]: d["bus"] for d in machine.devices.values()}
        assert slots == {one.name: f"slot{one.slot}" for one in entry.nics}
        for one in guest.nics:
            interface = machine.interfaces[str(one.mac)]
            known = dict(neighbours(wanted, guest.name, one))
            assert (interface["name"], interface["mtu"]) == (one.name, one.mtu)
            assert sorted(interface["addresses"]) == sorted(one.addresses)
            assert interface["neighbours"] == known
            said = world.impaired.get(str(one.port), {}).get("in")
            assert said == (one.impair.into.settings() if one.impair.into else None)
    assert world.switches.keys() == {s.name for s in wanted.switches if s.settings()}
    assert state.switches.keys() == wanted.all_switches().keys()


def assert_nothing(world: World) -> None:
    assert (world.alive(), world.ports, world.switches) == ({}, {}, {})
    assert not LabDir("l").exists


@pytest.mark.parametrize("emulator", [OURS, STOCK], ids=["netmap", "vhost-user"])
async def test_up_apply_and_back_and_down(world: World, emulator: Emulator) -> None:
    world.emulator = emulator
    outcome = await up(OLD)
    assert outcome.changes == (
        "+ guest a", "+ guest b", "+ guest c", "~ switch vale1: set up", "~ switch vale3: set up",
    )
    assert_is(world, OLD)
    first = {name: machine.process.pid for name, machine in world.machines.items()}
    assert (await up(OLD)).changes == ()
    await apply(NEW)
    assert_is(world, NEW)
    assert world.machines["a"].process.pid == first["a"]
    assert (await apply(NEW)).changes == ()
    with pytest.raises(LabError, match="runs already, with another topology"):
        await up(OLD)
    await apply(OLD)
    assert_is(world, OLD)
    assert world.machines["a"].process.pid == first["a"]
    assert await down() == 3
    assert_nothing(world)
    assert await down() == 0


async def test_a_guest_that_stays_the_same_is_not_touched(world: World) -> None:
    await up(OLD)
    told = world.machines["b"].told
    lone = nic("eth1", "vale9:d", "10.9.0.1/24")
    more = OLD.model_copy(update={"guests": (*OLD.guests, Guest(name="d", nics=(lone,)))})
    began = len(world.log)
    await apply(more)
    assert_is(world, more)
    assert world.machines["b"].told == told
    touched = {step.partition(":")[0] for step in world.log[began:]}
    assert not touched & {"a", "b", "c"}


async def _steps(world: World, work: Coroutine[Any, Any, object]) -> int:
    """How many steps it takes."""
    began = len(world.log)
    await work
    return len(world.log) - began


async def _killed(world: World, step: int, work: Coroutine[Any, Any, T]) -> None:
    world.kill_at = len(world.log) + step
    with pytest.raises((Killed, ValeError, BaseExceptionGroup)):
        await work
    assert world.down
    world.down, world.kill_at = False, None


# All steps together take two minutes: by default one in five, always the same.
STRIDE = 1 if os.environ.get("VALE_EVERY_STEP") else 5


@pytest.mark.parametrize("emulator", [OURS, STOCK], ids=["netmap", "vhost-user"])
async def test_up_killed_at_every_step_goes_on(
    world: World, emulator: Emulator
) -> None:
    world.emulator = emulator
    steps = await _steps(world, up(OLD))
    await down()
    assert steps > 20
    for step in range(0, steps, STRIDE):
        await _killed(world, step, up(OLD))
        await up(OLD)
        assert_is(world, OLD)
        await down()
        assert_nothing(world)


@pytest.mark.parametrize("emulator", [OURS, STOCK], ids=["netmap", "vhost-user"])
async def test_apply_killed_at_every_step_goes_on_and_back(
    world: World, emulator: Emulator
) -> None:
    world.emulator = emulator
    await up(OLD)
    steps = await _steps(world, apply(NEW))
    await down()
    assert steps > 40
    for step in range(0, steps, STRIDE):
        await up(OLD)
        await _killed(world, step, apply(NEW))
        await apply(NEW)
        assert_is(world, NEW)
        await down()
        await up(OLD)
        await _killed(world, step, apply(NEW))
        await apply(OLD)
        assert_is(world, OLD)
        await down()
        assert_nothing(world)


async def test_down_killed_at_every_step_and_after_any_kill(world: World) -> None:
    await up(OLD)
    steps = await _steps(world, down())
    for step in range(steps):
        await up(OLD)
        await _killed(world, step, down())
        await down()
        assert_nothing(world)
    await up(OLD)
    steps = await _steps(world, apply(NEW))
    await down()
    for step in range(0, steps, STRIDE):
        await up(OLD)
        await _killed(world, step, apply(NEW))
        await down()
        assert_nothing(world)


async def test_an_up_that_fails_at_any_step_leaves_nothing(world: World) -> None:
    steps = await _steps(world, up(OLD))
    await down()
    for step in range(0, steps, STRIDE):
        world.fail_at = len(world.log) + step
        with pytest.raises(ValeError, match=r"this step fails"):
            await up(OLD)
        world.fail_at = None
        assert_nothing(world)


async def test_an_apply_that_fails_at_any_step_can_be_repeated_or_taken_back(
    world: World,
) -> None:
    await up(OLD)
    steps = await _steps(world, apply(NEW))
    await down()
    for step, wanted in [(s, lab) for s in range(0, steps, STRIDE) for lab in (NEW, OLD)]:
        await up(OLD)
        world.fail_at = len(world.log) + step
        with pytest.raises(ValeError, match=r"this step fails"):
            await apply(NEW)
        world.fail_at = None
        await apply(wanted)
        assert_is(world, wanted)
        await down()
        assert_nothing(world)


async def test_a_lab_whose_guests_have_died(world: World) -> None:
    await up(OLD)
    for machine in world.machines.values():
        await machine.process.stop()
    await up(NEW)
    assert_is(world, NEW)


async def test_one_guest_that_died_is_started_anew(world: World) -> None:
    await up(OLD)
    pids = {name: machine.process.pid for name, machine in world.machines.items()}
    await world.machines["b"].process.stop()
    assert (await up(OLD)).changes == ("~ guest b: started anew (it was dead)",)
    assert_is(world, OLD)
    now = {name: machine.process.pid for name, machine in world.machines.items()}
    assert {name for name in now if now[name] != pids[name]} == {"b"}


def order(world: World, *steps: str) -> list[str]:
    return [step for step in world.log if step in steps]


def ready(name: str, **more: Any) -> Guest:
    return Guest(**{"name": name, "ready": (Condition(exec="true"),)} | more)


async def test_conditions_come_when_everybody_is_up_who_does_not_wait_for_them(
    world: World,
) -> None:
    guests = (
        ready("x"), Guest(name="a"), Guest(name="b", after=("a",)), ready("y", after=("x",)),
        Guest(name="z", after=("y",)),
    )
    await up(Lab(name="l", guests=guests))
    steps = order(
        world, "x: conditions", "a: set up", "b: set up", "y: launch", "y: conditions", "z: launch"
    )
    assert steps == [
        "a: set up", "b: set up", "x: conditions", "y: launch", "y: conditions", "z: launch",
    ]


async def test_conditions_of_a_guest_beside_those_that_stay(world: World) -> None:
    a = Guest(name="a")
    await up(Lab(name="l", guests=(a,)))
    guests = (a, ready("x"), Guest(name="b", after=("a",)), Guest(name="c", after=("b",)))
    await apply(Lab(name="l", guests=guests))
    steps = order(world, "b: set up", "c: set up", "x: conditions")
    assert steps == ["b: set up", "c: set up", "x: conditions"]


async def test_nobody_waits_for_ever_over_a_cable(world: World) -> None:
    """a has conditions, b comes after it, c connects to b's cable: a must not wait for c."""
    ends = [Nic(name="eth1", cable=Cable(name="w", listens=listens)) for listens in (True, False)]
    b = Guest(name="b", after=("a",), nics=(ends[0],))
    guests = (ready("a"), b, Guest(name="c", nics=(ends[1],)))
    async with asyncio.timeout(10):
        await up(Lab(name="l", guests=guests))
    steps = order(world, "a: conditions", "b: launch", "b: qmp", "c: launch")
    assert steps == ["a: conditions", "b: launch", "b: qmp", "c: launch"]


async def test_what_only_the_state_keeps_changes_too(world: World) -> None:
    await up(OLD)
    first, *rest = OLD.guests
    more = first.model_copy(update={"ready": (Condition(exec="x"),), "nics": first.nics[::-1]})
    new = OLD.model_copy(update={"guests": (more, *rest)})
    assert (await apply(new)).changes == ()
    assert_is(world, new)


async def test_a_refused_apply_changes_nothing(world: World) -> None:
    await up(OLD)
    before = (LabDir("l").path / "state.json").read_bytes()
    world.ports["vale9:x"] = "vhost-user"  # somebody else's
    one = Guest(name="x", nics=(nic("eth1", "vale9:x"),))
    began = len(world.log)
    with pytest.raises(SwitchError, match="port vale9:x is there already"):
        await apply(OLD.model_copy(update={"guests": (*OLD.guests, one)}))
    assert (LabDir("l").path / "state.json").read_bytes() == before
    assert world.log[began:] == []


async def test_guests_that_run_do_not_change_their_engine(world: World) -> None:
    await up(OLD)
    moved = OLD.model_copy(update={"engine": Engine.LIBVIRT})
    for change in (up, apply):
        with pytest.raises(UsageError, match="runs with engine qemu, its topology says libvirt"):
            await change(moved)
    assert_is(world, OLD)


async def test_a_refused_apply_spares_guests_that_are_not_ready(world: World) -> None:
    await _killed(world, len_of_boot(await _log_of_up(world)), up(OLD))
    before = (LabDir("l").path / "state.json").read_bytes()
    world.ports["vale9:x"] = "vhost-user"
    one = Guest(name="x", nics=(nic("eth1", "vale9:x"),))
    alive = world.alive().keys()
    assert alive
    with pytest.raises(SwitchError, match="port vale9:x is there already"):
        await apply(OLD.model_copy(update={"guests": (*OLD.guests, one)}))
    assert (LabDir("l").path / "state.json").read_bytes() == before
    assert world.alive().keys() == alive


async def _log_of_up(world: World) -> list[str]:
    await up(OLD)
    log = list(world.log)
    await down()
    return log


def len_of_boot(log: list[str]) -> int:
    """Steps until a guest is launched and written down, and not ready."""
    return log.index("a: ready")


async def test_a_switch_of_another_lab_is_refused_also_while_it_is_being_left(
    world: World,
) -> None:
    await up(OLD)
    other = Lab(name="o", guests=(Guest(name="o", nics=(nic("eth1", "vale3:o"),)),))
    with pytest.raises(UsageError, match=r"switch vale3 is in use by lab l: .*'valemgr down l'"):
        await up(other)
    assert not LabDir("o").exists
    unplugged = OLD.guests[0].model_copy(update={"nics": OLD.guests[0].nics[:2]})
    gone = OLD.model_copy(update={"guests": (unplugged, *OLD.guests[1:]), "switches": ()})
    await _killed(world, 2, apply(gone))  # the state wants no vale3, but a is still on it
    with pytest.raises(UsageError, match="switch vale3 is in use by lab l"):
        await up(other)


async def test_settings_of_a_switch_that_are_not_said_any_more(world: World) -> None:
    def with_switch(**settings: Any) -> Lab:
        return OLD.model_copy(update={"switches": (Switch(name="vale1", **settings),)})

    await up(with_switch(age=60, cap=5, overflow="wait", wait_limit=7))
    await apply(with_switch(cap=5))
    assert world.switches["vale1"] == {
        "age": 300, "cap": 5, "overflow": "drop", "wait-limit": 20,
    }
    await apply(with_switch())
    assert "vale1" not in world.switches


async def test_files_are_private(world: World) -> None:
    await up(OLD)
    lab_dir = LabDir("l")
    kinds: Mapping[str, int] = {p.name: p.stat().st_mode & 0o777 for p in lab_dir.path.iterdir()}
    assert kinds["id_ed25519"] == kinds["state.json"] == 0o600
    assert json.loads((lab_dir.path / "state.json").read_text())["lab"] == "l"
