# SPDX-License-Identifier: BSD-2-Clause
"""What is kept about a lab: it comes back as it was, or is None; one lock, one holder."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from valemgr import proc, xdg
from valemgr.errors import LabError, StoreError, WaitTimeoutError
from valemgr.plan import pin
from valemgr.state import (
    READY,
    SCHEMA,
    SET_UP,
    GuestState,
    LabDir,
    LabState,
    NicState,
    all_labs,
    claims,
)
from valemgr.topology import Guest, Lab, Nic, Switch

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("home")]

LAB = pin(
    Lab(
        name="l",
        guests=(
            Guest(name="a", nics=(Nic(name="eth1", port="vale1:a", addresses=("10.0.0.1/24",)),)),
            Guest(name="b", startup=("true",)),
        ),
        switches=(Switch(name="vale1", age=5),),
    )
)
DUMP = LAB.model_dump(mode="json")


def guest_state(guest: Guest, process: proc.ProcessId, stage: str = SET_UP) -> GuestState:
    return GuestState(
        pid=process.pid, start_time=process.start_time, stage=stage, ssh_port=2222,
        host_key="ssh-ed25519 K", argv=["qemu", "-name", f"l/{guest.name}"], slots=5,
        nics=[
            NicState(n.name, str(n.mac), str(n.port), "netmap", slot, list(n.addresses))
            for slot, n in enumerate(guest.nics)
        ],
        spec=guest.model_dump(mode="json"), ready_seconds={"qmp": 0.25},
    )  # fmt: skip


def state(**changed: Any) -> LabState:
    me = proc.myself()
    values: dict[str, Any] = {
        "lab": "l", "created": "2026-01-01T00:00:00+00:00", "boot_id": proc.boot_id(),
        "keep": True, "accelerator": "tcg", "provider": "user", "rundir": "/run/vale",
        "source": "/x/l.lab.yml", "topology": DUMP,
        "switches": {"vale1": LAB.switches[0].model_dump(mode="json")},
        "guests": {guest.name: guest_state(guest, me) for guest in LAB.guests},
        "settled": DUMP, "tried": [DUMP],
    }  # fmt: skip
    return LabState(**values | changed)


@pytest.fixture
def lab() -> LabDir:
    made = LabDir("l")
    made.create()
    return made


def test_a_state_comes_back_as_it_was(lab: LabDir) -> None:
    lab.write(state())
    found = lab.read()
    assert found == state()
    assert found.wanted == LAB
    assert [entry.model for entry in found.guests.values()] == list(LAB.guests)
    assert found.guests["a"].ident == proc.myself()
    assert (found.of_this_boot, found.alive, found.schema) == (True, True, SCHEMA)
    path = lab.path / "state.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in lab.path.iterdir()] == ["state.json"]


def test_a_state_of_another_boot_is_read_but_nobody_of_it_is_alive(lab: LabDir) -> None:
    lab.write(state(boot_id="another"))
    found = lab.read()
    assert found
    assert (found.of_this_boot, found.alive) == (False, False)


def test_a_pid_that_another_process_has_is_not_alive(lab: LabDir) -> None:
    me = proc.myself()
    other = proc.ProcessId(me.pid, me.start_time + 1)
    lab.write(state(guests={"a": guest_state(LAB.guests[0], other, READY)}))
    found = lab.read()
    assert found
    assert not found.alive


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    raw = json.loads(json.dumps(DUMP_OF_STATE))
    change(raw)
    return json.dumps(raw)


DUMP_OF_STATE: dict[str, Any] = {
    "lab": "l", "created": "now", "boot_id": "b", "keep": True, "accelerator": "tcg",
    "provider": "user", "rundir": "", "source": "", "topology": DUMP, "switches": {},
    "guests": {
        "b": {
            "pid": 1, "start_time": 1, "stage": SET_UP, "ssh_port": 1, "host_key": "", "argv": [],
            "slots": 0, "nics": [], "spec": DUMP["guests"][1], "ready_seconds": {},
        }
    },
    "schema": SCHEMA,
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "[]", "7", "null", "{}",
        changed(lambda raw: raw.update(schema=SCHEMA + 1)),
        changed(lambda raw: raw.pop("schema")),
        changed(lambda raw: raw.update(new="field")),
        changed(lambda raw: raw.pop("rundir")),
        changed(lambda raw: raw["guests"]["b"].update(new="field")),
        changed(lambda raw: raw["guests"]["b"].pop("pid")),
        changed(lambda raw: raw["guests"]["b"]["nics"].append({"name": "eth1"})),
        changed(lambda raw: raw["guests"]["b"]["spec"].update(new="field")),
        changed(lambda raw: raw["topology"].update(new="field")),
        changed(lambda raw: raw["topology"]["guests"][0].update(cpus=0)),
        changed(lambda raw: raw["switches"].update(vale1={"name": "vale1", "new": 1})),
        changed(lambda raw: raw.update(tried=[{}])),
        changed(lambda raw: raw.update(settled={"name": "../x"})),
    ],
)  # fmt: skip
def test_what_another_valemgr_wrote_is_no_state(lab: LabDir, text: str) -> None:
    (lab.path / "state.json").write_text(text)
    assert lab.read() is None


def test_the_text_that_was_changed_is_a_state(lab: LabDir) -> None:
    (lab.path / "state.json").write_text(changed(lambda raw: None))
    assert lab.read()


def test_a_full_disk_keeps_the_old_state_and_says_so(
    lab: LabDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.write(state())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("valemgr.state.os.open", full)
    with pytest.raises(StoreError, match=r"cannot write .*/state.json: No space left"):
        lab.write(state(keep=False))
    assert lab.read() == state()


def test_other_things_in_the_directory_are_no_labs(lab: LabDir) -> None:
    for name in (".hidden", "with space", "-"):
        (xdg.runtime_dir() / name).mkdir()
    (xdg.runtime_dir() / "file").touch()
    assert [one.lab for one in all_labs()] == ["l"]


async def test_the_second_waits_until_the_first_is_done() -> None:
    order = []
    inside = asyncio.Event()

    async def first() -> None:
        async with LabDir("l").lock("up"):
            inside.set()
            await asyncio.sleep(0)
            order.append("first")

    async def second() -> None:
        await inside.wait()
        async with LabDir("l").lock("down"):
            order.append("second")

    await asyncio.gather(second(), first())
    assert order == ["first", "second"]
    assert not LabDir("l").locked


async def test_the_holder_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = LabDir("l")
    assert (lab.holder(), lab.holder_process(), lab.locked) == ("", None, False)
    async with lab.lock("apply"):
        assert lab.holder() == f"'apply' (pid {os.getpid()})"
        holder = lab.holder_process()
        assert holder
        assert holder.ident == proc.myself()
        monkeypatch.setattr("valemgr.state.LOCK_SECONDS", 0.0)
        with pytest.raises(LabError, match=r"lab l is busy: held by 'apply' \(pid") as caught:
            async with LabDir("l").lock("down"):
                pass
        assert "'valemgr down --force l'" in str(caught.value)
    assert (lab.holder(), lab.holder_process()) == ("", None)


def test_who_left_a_lock_file_and_is_gone_holds_nothing() -> None:
    code = (
        "import asyncio, os\nfrom valemgr.state import LabDir\n"
        "async def main():\n    async with LabDir('l').lock('up'): os._exit(9)\n"
        "asyncio.run(main())"
    )
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    lab = LabDir("l")
    assert lab.holder().startswith("'up' (pid ")
    assert (lab.locked, lab.holder_process()) == (False, None)


@pytest.mark.parametrize("text", ["", "x", "1", "1.x up", "-1.1 up", "99999999.1 up"])
async def test_nonsense_in_a_held_lock_names_no_process(text: str) -> None:
    lab = LabDir("l")
    async with lab.lock("up"):
        (xdg.runtime_dir() / "l.lock").write_text(text)
        assert lab.locked
        assert lab.holder_process() is None


async def test_locks_of_labs_are_their_own() -> None:
    async with LabDir("l").lock("up"), LabDir("m").lock("up"):
        assert LabDir("l").locked
        assert LabDir("m").locked


async def test_claims_are_made_by_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = 0, 0

    async def claim() -> None:
        nonlocal inside, most
        async with claims():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(claim() for _ in range(6)))
    assert most == 1
    monkeypatch.setattr("valemgr.state.LOCK_SECONDS", 0.0)
    async with claims():
        with pytest.raises(WaitTimeoutError, match="lock on"):
            async with claims():
                pass
    async with claims():
        pass
