# SPDX-License-Identifier: BSD-2-Clause
"""Which machine a guest has, which processes are guests' QEMUs, and how these are ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from valemgr import machine, proc, xdg
from valemgr.emulator import Emulator
from valemgr.errors import LibvirtError
from valemgr.image import Image
from valemgr.plan import GuestPlan, Host, LibvirtHost, pin, plan_guest
from valemgr.state import LabDir
from valemgr.topology import pair_lab
from valemgr.virt.domain import guest_uuid
from valemgr.virt.machine import LibvirtMachine
from valemgr.wiring import Place

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("home")]

MICRO = Image("micro", Path("/i/vmlinuz"), Path("/i/initrd"), "quiet", "", {})
SLEEP = "import time; time.sleep(600)"


def plan(libvirt: LibvirtHost | None) -> GuestPlan:
    lab = pin(pair_lab("vale1"))
    host = Host(
        emulators={"": Emulator(Path("/q"), (7, 2), has_netmap=True)},
        accelerator="tcg",
        place=Place(Path("/run/vale"), LabDir("vale1").path),
        images={"micro": MICRO},
        libvirt=libvirt,
    )
    return plan_guest(lab, lab.guests[0], host)


def test_the_engine_decides_on_the_machine() -> None:
    ours = plan(None)
    assert isinstance(machine.machine_of(ours), machine.QemuMachine)
    assert machine.machine_of(ours).argv == ours.argv
    theirs = plan(LibvirtHost("qemu:///session"))
    assert isinstance(machine.machine_of(theirs), LibvirtMachine)
    assert theirs.argv == ()
    assert replace(theirs, argv=ours.argv, libvirt="", host=ours.host) == ours


@contextmanager
def process(*words: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A process with these words in its command line."""
    with subprocess.Popen([sys.executable, "-c", SLEEP, *words]) as child:
        try:
            yield child
        finally:
            child.kill()


def test_guests_are_known_by_files_of_labs_in_their_command_lines() -> None:
    root = xdg.runtime_dir()
    uuid = guest_uuid(root / "l", "a")
    lines = {
        "ours": ("-chardev", f"socket,id=ctl,path={root}/l/a.ctl,server=on"),
        "domain": ("-uuid", uuid, "-fw_cfg", f"name=opt/org.vale/guest,file={root}/l/a.json"),
        "cloud": ("-uuid", uuid, "-drive", f"if=none,id=seed,file={root}/l/a.seed,format=raw"),
        "another domain": (
            "-uuid", guest_uuid(root / "l", "b"), "-fw_cfg",
            f"name=opt/org.vale/guest,file={root}/l/a.json",
        ),
        "another root": ("-chardev", "socket,id=ctl,path=/elsewhere/l/a.ctl,server=on"),
        "another file": ("-chardev", f"socket,id=ctl,path={root}/l/id_ed25519"),
        "nothing": (),
    }  # fmt: skip
    with ExitStack() as stack:
        children = {name: stack.enter_context(process(*line)) for name, line in lines.items()}
        idents = {name: proc.ident_of(child.pid) for name, child in children.items()}
        found = {one.ident: (one.folder, one.uuid) for one in machine.all_running()}
    assert {name: found[ident] for name, ident in idents.items() if ident in found} == {
        "ours": (root / "l", ""), "domain": (root / "l", uuid), "cloud": (root / "l", uuid),
    }  # fmt: skip


async def test_a_domain_is_ended_by_libvirt_and_by_a_signal_where_that_is_away() -> None:
    asked = []

    async def refuse() -> None:
        asked.append(True)
        raise LibvirtError("libvirt: it is away")

    with process() as child:
        found = proc.find(proc.ident_of(child.pid))
        assert found
        found.ask_to_end = refuse
        await found.stop()
        assert asked == [True]
        assert child.wait() == -signal.SIGTERM


async def test_who_is_asked_to_end_is_given_no_signal() -> None:
    with process() as child:
        found = proc.find(proc.ident_of(child.pid))
        assert found

        async def end() -> None:
            os.kill(child.pid, signal.SIGUSR1)

        found.ask_to_end = end
        await found.stop()
        assert child.wait() == -signal.SIGUSR1
