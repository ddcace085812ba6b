# SPDX-License-Identifier: BSD-2-Clause
"""Processes, deadlines, locks and the accelerator's rule, on real processes and files."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from valemgr import guests, labs, proc, xdg
from valemgr.accel import AccelChoice, choose, kvm_obstacle
from valemgr.deadline import Deadline
from valemgr.errors import (
    EnvironmentUnfitError,
    InterruptedRunError,
    LabError,
    UsageError,
    WaitTimeoutError,
)
from valemgr.lifecycle import clear_place, down
from valemgr.state import READY, GuestState, LabDir, LabState
from valemgr.tasks import run_interruptibly
from valemgr.text import last_line
from valemgr.topology import Guest, Lab

pytestmark = pytest.mark.unit

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable, "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True);"
    "time.sleep(60)",
]


async def test_a_process_ends_with_its_status(tmp_path: Path) -> None:
    process = proc.start(["sh", "-c", "echo out; echo err >&2; exit 7"], output=tmp_path / "log")
    assert await process.exited() == 7
    assert (tmp_path / "log").read_text() == "out\nerr\n"
    assert not proc.is_alive(process.ident)


async def test_stop_terminates_and_if_need_be_kills(tmp_path: Path) -> None:
    meek = proc.start(SLEEP)
    await meek.stop()
    assert meek.exit_status == -signal.SIGTERM
    stubborn = proc.start(STUBBORN, output=tmp_path / "log")
    await Deadline(10).retry("up", lambda: _has_text(tmp_path / "log"), (ValueError,))
    await stubborn.stop(grace=0.1)
    assert stubborn.exit_status == -signal.SIGKILL
    await stubborn.stop()


async def _has_text(path: Path) -> None:
    if not path.read_text():
        raise ValueError("empty")


async def test_a_recycled_pid_is_never_signalled() -> None:
    process = proc.start(SLEEP)
    assert proc.find(proc.ProcessId(process.pid, process.ident.start_time + 1)) is None
    found = proc.find(process.ident)
    assert found
    await found.stop()
    assert await process.exited() == -signal.SIGTERM
    assert proc.find(process.ident) is None


async def test_output_of_a_short_command() -> None:
    assert await proc.output_of(["sh", "-c", "echo hi; exit 3"], Deadline(10)) == (3, "hi\n")
    with pytest.raises(EnvironmentUnfitError, match="cannot run /nowhere"):
        await proc.output_of(["/nowhere"], Deadline(10))
    with pytest.raises(WaitTimeoutError):
        await proc.output_of(SLEEP, Deadline(0.2))


async def test_deadline_keeps_the_last_error() -> None:
    calls = 0

    async def attempt() -> None:
        nonlocal calls
        calls += 1
        raise ConnectionRefusedError("refused")

    with pytest.raises(WaitTimeoutError, match=r"thing: not within 0.1 s \(refused\)") as caught:
        await Deadline(0.1).retry("thing", attempt, (OSError,))
    assert calls > 1
    assert caught.value.exit_code == 5
    with pytest.raises(WaitTimeoutError):
        await Deadline(0.05).wait("thing", asyncio.sleep(5))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_orderly_even_if_they_come_twice(number: signal.Signals) -> None:
    cleaned = []

    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.sleep(10)
        finally:
            cleaned.append(True)

    with pytest.raises(InterruptedRunError):
        run_interruptibly(work())
    assert cleaned


def test_kvm_needs_the_device_and_the_flag(tmp_path: Path) -> None:
    device, info = tmp_path / "kvm", tmp_path / "cpuinfo"
    info.write_text("flags\t\t: fpu vme\n")
    assert "No such file" in kvm_obstacle(device, info)
    device.touch()
    assert "neither vmx nor svm" in kvm_obstacle(device, info)
    info.write_text("flags\t\t: fpu svm\n")
    assert kvm_obstacle(device, info) == ""


def test_the_choice_of_the_accelerator() -> None:
    assert choose(AccelChoice.AUTO, "").name == "kvm"
    assert choose(AccelChoice.AUTO, "no").reason == "no"
    assert choose(AccelChoice.TCG, "").name == "tcg"
    with pytest.raises(EnvironmentUnfitError, match="not usable here: no") as caught:
        choose(AccelChoice.KVM, "no")
    assert caught.value.exit_code == 4


def state(lab: str, process: proc.Process | None = None, **changed: object) -> LabState:
    guests = {}
    if process:
        guests["a"] = GuestState(
            pid=process.pid, start_time=process.ident.start_time, stage=READY, ssh_port=1,
            host_key="ssh-ed25519 K", argv=[], slots=0, nics=[],
            spec=Guest(name="a").model_dump(mode="json"), ready_seconds={},
        )
    values: dict[str, Any] = {"keep": True, "boot_id": proc.boot_id()} | changed
    return LabState(
        lab, "now", accelerator="tcg", provider="user", rundir="", source="",
        topology=Lab(name=lab).model_dump(mode="json"), guests=guests, **values,
    )


@pytest.mark.usefixtures("home")
class TestLabDir:
    async def test_state_survives_and_nonsense_is_none(self) -> None:
        lab = LabDir("vale1")
        lab.create()
        assert lab.path.stat().st_mode & 0o777 == 0o700
        assert lab.read() is None
        lab.write(state("vale1"))
        assert lab.read() == state("vale1")
        for nonsense in ("", "[]", "{}", json.dumps({"schema": 99})):
            (lab.path / "state.json").write_text(nonsense)
            assert lab.read() is None

    async def test_the_second_waits_then_names_lab_and_holder(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("valemgr.state.LOCK_SECONDS", 0.3)
        async with LabDir("vale1").lock("pair vale1"):
            assert LabDir("vale1").locked
            began = time.monotonic()
            with pytest.raises(LabError, match=rf"lab vale1.*'pair vale1' \(pid {os.getpid()}\)"):
                async with LabDir("vale1").lock("down"):
                    pass
            assert time.monotonic() - began >= 0.3
        assert not LabDir("vale1").locked
        assert list(xdg.runtime_dir().iterdir()) == []

    async def test_many_contenders_one_holder_at_a_time(self) -> None:
        inside, most = 0, 0

        async def contend() -> None:
            nonlocal inside, most
            async with LabDir("vale1").lock("test"):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.005)
                inside -= 1

        await asyncio.gather(*(contend() for _ in range(8)))
        assert most == 1

    def test_a_killed_holder_frees_the_lock(self) -> None:
        code = (
            "import asyncio, os; from valemgr.state import LabDir\n"
            "async def main():\n"
            "    async with LabDir('vale1').lock('x'): os.kill(os.getpid(), 9)\n"
            "asyncio.run(main())"
        )
        subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
        assert not LabDir("vale1").locked

        async def take() -> None:
            async with LabDir("vale1").lock("y"):
                assert LabDir("vale1").locked

        asyncio.run(take())

    async def test_a_kept_lab_is_refused_an_abandoned_one_is_cleaned(self) -> None:
        lab = LabDir("vale1")
        lab.create()
        process = proc.start(SLEEP)
        lab.write(state("vale1", process))
        assert not labs.is_abandoned(lab)
        with pytest.raises(LabError, match=r"runs already.*valemgr down vale1"):
            await clear_place(lab)
        lab.write(state("vale1", process, keep=False))
        assert labs.is_abandoned(lab)
        await clear_place(lab)
        assert not lab.exists
        assert await process.exited() == -signal.SIGTERM

    async def test_after_a_reboot_pids_mean_nothing(self) -> None:
        lab = LabDir("vale1")
        lab.create()
        process = proc.start(SLEEP)
        lab.write(state("vale1", process, boot_id="another"))
        assert [guest.state for guest in await labs.status()] == ["gone (the host was rebooted)"]
        assert await down(lab) == 0
        assert proc.is_alive(process.ident)
        await process.stop()

    async def test_guests_are_found_by_name(self) -> None:
        process = proc.start(SLEEP)
        for name in ("vale1", "vale2"):
            LabDir(name).create()
            LabDir(name).write(state(name, process))
        with pytest.raises(UsageError, match=r"several labs \(vale1, vale2\)"):
            guests.find_alive("a")
        assert guests.find_alive("a", "vale2").lab_dir.lab == "vale2"
        with pytest.raises(LabError, match="no guest z"):
            guests.find_alive("z")
        with pytest.raises(UsageError, match="name the lab once"):
            guests.find_alive("vale1/a", "vale2")
        assert guests.find_alive("vale1/a").ssh.key_file.parent.name == "vale1"
        with pytest.raises(UsageError, match="which lab"):
            labs.labs_to_end(None, everything=False)
        await process.stop()
        with pytest.raises(LabError, match="dead"):
            guests.find_alive("a", "vale1")
        assert guests.find("a", "vale1").file("console.log").name == "a.console.log"

    def test_somebody_elses_directory_is_refused(self, home: Path) -> None:
        elsewhere = home / "elsewhere"
        elsewhere.mkdir()
        xdg.runtime_dir().symlink_to(elsewhere)
        with pytest.raises(EnvironmentUnfitError, match="is a link"):
            LabDir("vale1").create()


@pytest.mark.parametrize(
    ("said", "shown"),
    [("", "silent"), ("\n \n", "silent"), ("a\n\x1b[31mb\x07\r\n\n", "b"), ("one", "one")],
)
def test_what_a_guest_said_last(said: str, shown: str) -> None:
    assert last_line(said, "silent") == shown
