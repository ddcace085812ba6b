# SPDX-License-Identifier: BSD-2-Clause
"""What is wrong with a lab is found before anything is started, or leaves nothing when it fails.

No guest boots here: the emulator is a script that answers what is asked before a launch, and
refuses to run. Images are empty files with a manifest.
"""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib.place import VALEMGR, Place
from lib.valed import BINARY
from valemgr.errors import EnvironmentUnfitError
from valemgr.lab import Lab as RunnableLab
from valemgr.state import LabDir, LabState
from valemgr.topology import Lab

pytestmark = [
    pytest.mark.blackbox,
    pytest.mark.skipif(not BINARY.exists(), reason=f"no {BINARY}: run 'make tools'"),
    pytest.mark.skipif(not VALEMGR.exists(), reason=f"no {VALEMGR}: run 'make venv'"),
]

EMULATOR = """#!/bin/sh
case "$*" in
*--version) echo "QEMU emulator version {version}" ;;
*-netdev*help) printf '{netdevs}' ;;
*)
    echo "console of a kernel that" >{console}
    echo "comes to its last words" >>{console}
    echo "qemu-system-x86_64: -m: cannot set up guest memory 'mem'" >&2
    exit 1
    ;;
esac
"""


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("p"))
    images = made.root / "images"
    for name, least in (("empty", 32), ("big", 512)):
        (images / name).mkdir(parents=True)
        for file in ("vmlinuz", "initrd.img"):
            (images / name / file).touch()
        manifest = {"append": "quiet", "ready": "", "memory_mib": least}
        (images / name / "manifest.json").write_text(json.dumps(manifest))
    made.env["VALE_IMAGES"] = str(images)
    add_emulator(made, "ours", "8.2.0", "netmap\\nstream\\nvhost-user\\n")
    add_emulator(made, "stock", "7.2.0", "stream\\nvhost-user\\n")
    add_emulator(made, "old", "6.2.0", "vhost-user\\n")
    yield made
    made.close()


def add_emulator(place: Place, name: str, version: str, netdevs: str) -> None:
    path = place.root / name
    console = place.labs / "wrong" / "a.console.log"
    path.write_text(EMULATOR.format(version=version, netdevs=netdevs, console=console))
    path.chmod(0o755)


def lab(text: str) -> str:
    return "defaults: {image: empty, qemu: ./ours}\n" + text


def refused(place: Place, code: int, text: str) -> str:
    """What `up` says when it refuses a topology, in one line; nothing was begun."""
    said = place.fails(code, "up", place.write("wrong", lab(text)))
    assert len(said.splitlines()) == 1, said
    assert said.startswith("valemgr: ")
    place.assert_nothing_left()
    return said


# What is wrong, the exit code, what is said. No switch is started for these.
NOT_EVEN_A_SWITCH = {
    "image missing": (4, "guests: {a: {image: nosuch}}", ["no image 'nosuch' in"]),
    "emulator missing": (4, "guests: {a: {qemu: /no/qemu}}", ["/no/qemu is no program"]),
    "no emulator": (4, "guests: {a: {qemu: ./images/empty/vmlinuz}}", ["is no program"]),
    "more memory than there is": (
        4, "guests: {a: {memory: 1T}}",
        ["1048616 MiB of memory are needed for one guest", "MiB are available"],
    ),
    "less than the image needs": (
        4, "guests: {a: {image: big, memory: 64M}}",
        ["guest a: image big needs 512 MiB of memory, not 64: give it memory: 512M"],
    ),
    "netmap without our QEMU": (
        4, "guests: {a: {qemu: ./stock, nics: [{switch: vale1, backend: netmap}]}}",
        ["guest a: NIC vale0", "lacks the netmap backend", "or use backend: auto"],
    ),
    "stream before 7.2": (
        4, "guests: {a: {qemu: ./old, nics: [{switch: vale1, model: e1000}]}}",
        ["guest a: NIC vale0", "has no stream netdev: it comes with QEMU 7.2"],
    ),
    "e1000 by vhost-user": (
        2, "guests: {a: {nics: [{switch: vale1, model: e1000, backend: vhost-user}]}}",
        ["vhost-user serves virtio-net-pci only, not e1000"],
    ),
    "e1000 with two queues": (
        2, "guests: {a: {nics: [{switch: vale1, model: e1000, queues: 2}]}}",
        ["e1000 has one queue"],
    ),
    "stream with two queues": (
        2, "guests: {a: {nics: [{switch: vale1, backend: stream, queues: 2}]}}",
        ["a stream socket has one queue"],
    ),
    "kernel's switch by stream": (
        2, "provider: kernel\nguests: {a: {nics: [{switch: vale1, backend: stream}]}}",
        ["stream does not reach the kernel's switch"],
    ),
    "kernel's switch impaired": (
        2, "provider: kernel\nguests: {a: {nics: [{switch: vale1, impair: {loss: 1%}}]}}",
        ["the kernel's switch cannot impair"],
    ),
    "the same port twice": (
        2, "guests: {a: {nics: [{port: 'vale1:x'}]}, b: {nics: [{port: 'vale1:x'}]}}",
        ["port vale1:x of b:vale0 is that of a:vale0 already"],
    ),
    "a circle": (
        2, "guests: {a: {after: [b]}, b: {after: [a]}}", ["guests wait for each other: a → b → a"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_EVEN_A_SWITCH)
def test_refused_before_anything_starts(place: Place, what: str) -> None:
    code, text, words = NOT_EVEN_A_SWITCH[what]
    said = refused(place, code, text)
    for word in words:
        assert word in said
    assert not place.rundir.exists()


@pytest.mark.skipif(Path("/dev/netmap").exists(), reason="this machine has netmap.ko loaded")
def test_the_kernels_switch_is_asked_for_and_absent(place: Place) -> None:
    text = "provider: kernel\nguests: {a: {nics: [{switch: vale1}]}}"
    said = refused(place, 4, text)
    assert "provider kernel: /dev/netmap is not here: load netmap.ko, or use" in said
    assert place.fails(4, "apply", place.write("wrong", lab(text))) == said
    assert not place.rundir.exists()


@pytest.mark.parametrize("which", ["XDG_RUNTIME_DIR", "VALE_RUNDIR"])
def test_paths_too_long_for_a_socket(place: Place, which: str) -> None:
    long = place.root / ("x" * (100 - len(str(place.root))))
    long.mkdir(mode=0o700)
    place.env[which] = str(long)
    if which == "XDG_RUNTIME_DIR":
        place.labs = long / "valemgr"
    else:
        place.rundir = long
    text = "guests: {a: {nics: [{switch: vale1, backend: vhost-user}]}}"
    said = refused(place, 2, text)
    assert "is too long for a socket (107 bytes): use shorter names, or set" in said
    assert which in said
    assert list(long.iterdir()) == [place.labs] * (which == "XDG_RUNTIME_DIR")


def test_a_port_that_somebody_else_has(place: Place) -> None:
    place.rundir.mkdir(mode=0o700)
    valed = subprocess.Popen([BINARY, "--rundir", place.rundir, "--linger", "60"])
    place.wait_for("valed", place.valed_runs)
    pktgen = subprocess.Popen(
        [BINARY.with_name("vale-pktgen"), "-i", "vale1:b", "-f", "rx", "--seconds", "60"],
        env={**place.env, "VALE_DEV": str(place.rundir / "netmap.sock")},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        place.wait_for("the port", lambda: "vale1:b" in place.ports())
        file = place.write("wrong", lab("guests: {b: {nics: [{switch: vale1}]}}"))
        said = place.fails(1, "up", file)
        assert f"port vale1:b is taken by pid {pktgen.pid}: use another switch, or end" in said
        assert place.guests() == []
        assert list(place.labs.iterdir()) == []
        assert list(place.ports()) == ["vale1:b"]
        assert place.ports()["vale1:b"]["peer"]["pid"] == pktgen.pid
    finally:
        pktgen.terminate()
        pktgen.wait()
        valed.terminate()
        valed.wait()


def claim(place: Place, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    """Another lab, which has switch vale1."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", place.env["XDG_RUNTIME_DIR"])
    switch: dict[str, Any] = {"name": "vale1", "shared": shared}
    other = Lab.model_validate({"name": "other", "switches": [switch]})
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    lab_dir = LabDir("other")
    lab_dir.create()
    lab_dir.write(
        LabState(
            lab="other", created="2026-01-01T00:00:00+00:00", boot_id=boot_id, keep=True,
            accelerator="tcg", provider="user", rundir="", source="",
            topology=other.model_dump(mode="json"),
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_a_switch_of_another_lab(
    place: Place, monkeypatch: pytest.MonkeyPatch, ours: bool, theirs: bool
) -> None:
    claim(place, monkeypatch, theirs)
    shared = str(ours).lower()
    text = f"switches: {{vale1: {{shared: {shared}}}}}\n"
    text += "guests: {a: {nics: [{switch: vale1}]}}"
    file = place.write("wrong", lab(text))
    if ours and theirs:  # they get along: the emulator is the next obstacle
        assert "cannot set up guest memory" in place.fails(1, "up", file)
    else:
        said = place.fails(2, "up", file)
        assert "switch vale1 is in use by lab other: take another name, or say 'shared" in said
    place.ok("down", "other")
    place.assert_nothing_left()


def test_what_the_emulator_says_when_it_refuses(place: Place) -> None:
    """One line with its reason, the last lines of the console, and nothing that stays."""
    text = """
guests:
  a: {nics: [{switch: vale1, backend: stream}, {switch: vale1, backend: vhost-user}]}
  b: {after: [a], nics: [{switch: vale2}]}
"""
    file = place.write("wrong", lab(text))
    for command in ("up", "apply"):
        said = place.fails(1, command, file).splitlines()
        first = said.index(
            "valemgr: guest a: QEMU ended (exit code 1): -m: cannot set up guest memory 'mem'"
        )
        assert said[first + 1 :] == [
            "    console of a kernel that", "    comes to its last words",
        ]  # fmt: skip
        place.assert_nothing_left()
    log = (place.root / "s" / "valemgr" / "logs" / "wrong.log").read_text()
    assert f"{place.root}/ours -name wrong/a" in log


def test_two_who_need_a_switch_at_once_start_one(place: Place) -> None:
    """Both fail at their emulator, and by then have found the same valed."""
    files = [
        place.write(name, lab(f"guests: {{a: {{nics: [{{switch: vale{name}}}]}}}}"))
        for name in ("one", "two", "three")
    ]
    started = [place.start("up", file) for file in files]
    said = [process.communicate(timeout=60)[1] for process in started]
    assert [process.returncode for process in started] == [1, 1, 1], said
    assert all("cannot set up guest memory" in text for text in said)
    rundir = str(place.rundir)
    daemons = [
        path for path in Path("/proc").glob("[0-9]*/cmdline") if is_valed_at(path, rundir)
    ]
    assert len(daemons) == 1
    place.assert_nothing_left()


def is_valed_at(path: Path, rundir: str) -> bool:
    try:
        words = path.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return Path(words[0]).name == "valed" and rundir in words


def test_down_needs_nothing(place: Place) -> None:
    """No lab, no valed, no file: that is done already."""
    assert place.run("down", "none").returncode == 0
    assert place.run("down").returncode == 0
    assert place.run("down", "--all").returncode == 0
    assert not place.rundir.exists()
    assert place.json("status") == {"schema_version": 1, "guests": []}
    assert "no lab none" in place.fails(1, "status", "none")
    assert "no lab" in place.fails(1, "save", "none")
    assert "no lab" in place.fails(1, "inspect", "none")


def test_asyncio_sees_the_same(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python the errors are those of the tree, with the same words."""
    for key, value in place.env.items():
        monkeypatch.setenv(key, value)
    file = place.write("wrong", lab("guests: {a: {image: nosuch}}"))
    with pytest.raises(EnvironmentUnfitError, match="no image 'nosuch' in"):
        asyncio.run(RunnableLab(file).up())
    place.assert_nothing_left()
