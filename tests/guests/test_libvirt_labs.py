# SPDX-License-Identifier: BSD-2-Clause
"""Labs whose guests are domains of libvirt: the system's, those of an ordinary user's session, and
those whose QEMU is a user of its own.

    a  vale0 virtio  ── vale1:a ┐
       eth9  virtio  ── vale2:a │ ┐       eth9 is plugged in and taken away while they run
    b  vale0 virtio  ── vale1:b ┴ │ [ vale1 ]
       eth9  virtio  ── vale2:b ──┴ [ vale2 ]
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib import libvirtd as private
from lib.libvirtd import Libvirtd, domain
from lib.place import VALEMGR, Place, finish, missing, pids_with

pytestmark = private.MARKS

if missing():
    pytest.skip(missing(), allow_module_level=True)

LAB = """
name: l
engine: {engine}
guests:
  a: {{nics: [{{switch: vale1, backend: {backend}}}{more}]}}
  b: {{nics: [{{switch: vale1, backend: {backend}}}{more}]}}
"""
MORE = ", {{switch: vale2, name: eth9, backend: {backend}}}"
ONE = """
name: one
engine: libvirt
guests:
  a: {nics: [{switch: vale1, backend: vhost-user}, {switch: vale1, backend: netmap}]}
"""
FRAMES, SECONDS = 1000, 1
# A trial, counted by both guests and by valed.
MEASURE = f"""
import asyncio, dataclasses, json, sys
from valemgr import Lab

async def main():
    trial = await Lab(sys.argv[1]).udp("a", "b", rate={FRAMES // SECONDS}, seconds={SECONDS})
    print(json.dumps({{**dataclasses.asdict(trial.counts), "violations": trial.violations}}))

asyncio.run(main())
"""
# Somebody else who has a console, until its input ends.
HOLD = """
import asyncio, sys
from valemgr.virt.connection import connect

async def main():
    async with connect() as libvirt:
        async with (await libvirt.domain("l.a")).console():
            print("held", flush=True)
            await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""
# valemgr that is killed when libvirt has made the first domain, or while it makes it.
KILLED = """
import os, signal, sys, threading
from valemgr import cli
from valemgr.virt.connection import Libvirt

create = Libvirt.create
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)

async def killed(self, xml):
    if when == "amid":
        threading.Timer(0.05, kill).start()
    await create(self, xml)
    kill()

Libvirt.create = killed
when = sys.argv.pop(1)
cli.main()
"""
NO_LIBVIRT = "import sys; sys.modules['libvirt'] = None; from valemgr import cli; cli.main()"


class Inside(Place):
    """valemgr beside a private libvirtd."""

    def __init__(self, libvirtd: Libvirtd) -> None:
        self.libvirtd = libvirtd
        self.root = libvirtd.folder
        self.rundir = libvirtd.outside("/run/home/sw")
        self.labs = libvirtd.outside("/run/home/runtime/valemgr")
        self.env = {"VALE_RUNDIR": "/run/home/sw", "COLUMNS": "200"}
        # libvirt locks a console's terminal there.
        libvirtd.outside("/run/lock").mkdir(mode=0o777)

    def start(self, *words: str, killed: Path | None = None) -> "subprocess.Popen[str]":
        assert killed is None
        return self._run(VALEMGR, *words)

    def python(self, *words: str) -> "subprocess.Popen[str]":
        return self._run(VALEMGR.with_name("python"), *words)

    def _run(self, *words: str | Path) -> "subprocess.Popen[str]":
        return self.libvirtd.popen(*words, env=self.env, cwd=Path("/"))

    def guests(self) -> list[int]:
        """QEMUs, as seen from outside; those of another libvirtd are in another namespace."""
        mine = Path(f"/proc/{self.libvirtd.pid}/ns/pid").readlink()
        found = pids_with("/run/home/runtime/valemgr/", "qemu")
        return [pid for pid in found if Path(f"/proc/{pid}/ns/pid").readlink() == mine]

    def lab(self, backend: str, *, more: bool = False, engine: str = "libvirt") -> str:
        extra = MORE.format(backend=backend) if more else ""
        return self.write("l", LAB.format(backend=backend, more=extra, engine=engine))

    def domains(self) -> set[str]:
        return set(self.libvirtd.virsh("list", "--all", "--name").split())

    def measure(self, file: str) -> dict[str, Any]:
        done = finish(self.python("-c", MEASURE, file))
        assert done.returncode == 0
        counts: dict[str, Any] = json.loads(done.stdout)
        return counts

    def nothing_left(self) -> None:
        self.assert_nothing_left()
        assert self.domains() == set()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    with Libvirtd.make(tmp_path_factory.mktemp("v")) as libvirtd:
        place = Inside(libvirtd)
        yield place
        place.close()


def test_a_lab_on_vhost_user_through_its_whole_life(system: Inside) -> None:
    file = system.lab("vhost-user")
    system.ok("up", file)
    assert system.domains() == {"l.a", "l.b"}
    assert [row["state"] for row in system.status("l").values()] == ["running"] * 2
    conserved(system.measure(file))
    look_into(system)

    xml = system.libvirtd.virsh("dumpxml", "l.a")
    assert "urn:vale:lab:1" in xml
    refused = system.fails(2, "apply", system.lab("vhost-user", engine="qemu"))
    assert (
        "lab l runs with engine libvirt, its topology says qemu: 'valemgr down l' first" in refused
    )
    assert system.domains() == {"l.a", "l.b"}

    system.libvirtd.restart("KILL")
    assert [row["state"] for row in system.status("l").values()] == ["running"] * 2
    plug_and_unplug(system, "vhost-user")
    assert "2 guests ended" in system.run("down", "l").stderr
    system.nothing_left()


def conserved(counts: dict[str, Any]) -> None:
    """Every frame that was sent was received, and every counter on the way agrees."""
    assert counts["violations"] == []
    assert 0.9 * FRAMES < counts["received"] == counts["sent"]


def plug_and_unplug(place: Inside, backend: str) -> None:
    place.ok("apply", place.lab(backend, more=True))
    ports = place.ports()
    assert set(ports) == {"vale1:a", "vale1:b", "vale2:a", "vale2:b"}
    by_port = {nic["port"]: nic for nic in place.json("inspect", "l")["nics"]}
    assert by_port["vale2:a"]["backend"] == backend
    place.ping("a", by_port["vale2:b"]["addresses"][0].partition("/")[0])
    place.ok("apply", place.lab(backend))
    assert set(place.ports()) == {"vale1:a", "vale1:b"}
    assert "eth9" not in place.ok("exec", "a", "ls /sys/class/net")


def look_into(place: Inside) -> None:
    assert place.ok("exec", "a", "--", "echo", "over", "ssh") == "over ssh\n"
    said = place.ok("console", "a", "--for", "3", stdin="\necho con$((40 + 2))sole\n")
    assert "con42sole" in said
    assert "con42sole" in place.ok("logs", "a")
    holder = place.python("-c", HOLD)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    refused = "console of guest a: it serves one at a time: libvirt: operation failed: Active con"
    assert refused in place.fails(1, "console", "a")
    assert finish(holder).returncode == 0
    assert "custom-argv" in place.ok("logs", "a", "--kind", "qemu")  # libvirt's word on itself
    (place.root / "run" / "there").write_text("there and back\n")
    place.ok("cp", "/run/there", "a:/tmp/there")
    assert place.ok("exec", "a", "cat /tmp/there") == "there and back\n"


@pytest.mark.parametrize("when", ["behind", "amid"])
def test_down_ends_what_a_kill_left(system: Inside, when: str) -> None:
    file = system.write("one", ONE)
    killed = finish(system.python("-c", KILLED, when, "up", file))
    assert killed.returncode != 0
    assert system.state("one")["guests"] == {}
    said = system.run("down", "one").stderr
    assert when == "amid" or "1 guests ended" in said
    system.nothing_left()


def test_up_goes_on_where_a_kill_came(system: Inside) -> None:
    file = system.write("one", ONE)
    finish(system.python("-c", KILLED, "behind", "up", file))
    system.ok("up", file)
    assert len(system.guests()) == 1
    assert system.ok("exec", "a", "echo here") == "here\n"
    system.ok("down", "one")
    system.nothing_left()


def test_what_is_missing_or_taken_is_said_in_a_line(system: Inside) -> None:
    file = system.write("one", ONE)
    (system.root / "taken.xml").write_text(domain("one.a"))
    system.libvirtd.virsh("define", system.root / "taken.xml")
    taken = system.fails(1, "up", file)
    assert taken.splitlines()[-1].startswith("valemgr: guest a: qemu:///system has another domain")
    system.libvirtd.virsh("undefine", "one.a")

    done = finish(system.python("-c", NO_LIBVIRT, "up", file))
    assert done.returncode == 4
    assert "libvirt-python is not installed: " in done.stderr

    system.env["LIBVIRT_DEFAULT_URI"] = "qemu+unix:///system?socket=/run/nobody"
    try:
        assert "is libvirtd installed, and does it run?" in system.fails(4, "up", file)
    finally:
        del system.env["LIBVIRT_DEFAULT_URI"]
    system.nothing_left()


def test_an_ordinary_user_has_labs_on_netmap_in_the_session(tmp_path: Path) -> None:
    with Libvirtd.make(tmp_path, session=True) as libvirtd:
        place = Inside(libvirtd)
        file = place.lab("netmap")
        place.ok("up", file)
        assert place.domains() == {"l.a", "l.b"}
        conserved(place.measure(file))
        plug_and_unplug(place, "netmap")
        libvirtd.stop()
        assert {row["state"] for row in place.status("l").values()} == {"not answering"}
        assert place.ok("exec", "a", "echo still there") == "still there\n"
        assert "2 guests ended" in place.run("down", "l").stderr
        assert place.guests() == []
        libvirtd.start()
        place.nothing_left()


def test_qemu_of_another_user_has_its_identity_and_nothing_else(tmp_path: Path) -> None:
    with Libvirtd.make(tmp_path, user="libvirt-qemu") as libvirtd:
        place = Inside(libvirtd)
        file = place.write("one", ONE)
        closed = place.fails(4, "up", file)
        assert "user 64055, who may not enter /run/home/runtime" in closed
        libvirtd.outside("/run/home/runtime").chmod(0o711)
        place.ok("up", file)
        (pid,) = place.guests()
        assert Path(f"/proc/{pid}").stat().st_uid == 64055
        identity = place.labs / "one" / "a.json"
        assert (identity.stat().st_uid, identity.stat().st_mode & 0o777) == (64055, 0o400)
        others = [path for path in identity.parent.iterdir() if path.is_file() and path != identity]
        assert others
        assert not any(path.stat().st_mode & 0o077 for path in others)
        assert identity.parent.stat().st_mode & 0o777 == 0o711
        place.ok("down", "one")
        place.nothing_left()
