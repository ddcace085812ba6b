# SPDX-License-Identifier: BSD-2-Clause
"""What `valemgr libvirt` refuses: a clear line, the right exit code, and the domain as it was.

The domains do not boot: that is not looked at before.
"""

import os
from collections.abc import Iterator

import pytest

from lib import libvirtd as private
from lib.domains import ROOT, ROOT_PORT, SHARED, VALEMGR, Place
from lib.guest import QEMU
from lib.libvirtd import Libvirtd, domain

MAC = "52:54:00:03:00:01"
NO_MSIX = (
    "<qemu:commandline><qemu:arg value='-global'/><qemu:arg value='virtio-net-pci.vectors=0'/>"
)
NO_MSIX += "</qemu:commandline>"
PORTS = "<metadata><vale:ports xmlns:vale='urn:vale:ports:1'>{}</vale:ports></metadata>"

pytestmark = [*private.MARKS, pytest.mark.skipif(not QEMU.exists(), reason=f"no {QEMU}")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Libvirtd.make(tmp_path_factory.mktemp("v"), user="libvirt-qemu") as libvirtd:
        yield Place(libvirtd)


@pytest.fixture
def define(place: Place) -> Iterator["Definer"]:
    definer = Definer(place)
    yield definer
    definer.close()


class Definer:
    """Makes domains, and what they are is asked again in the end."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.names: list[str] = []

    def __call__(self, name: str, more: str = SHARED + NO_MSIX, *, start: bool = False) -> str:
        text = domain(name, ROOT + ROOT_PORT * 3, emulator=QEMU, more=more)
        head = "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' "
        self.place.libvirtd.outside(f"/run/{name}.xml").write_text(
            text.replace("<domain ", head, 1)
        )
        self.place.libvirtd.virsh("define", f"/run/{name}.xml")
        self.names.append(name)
        if start:
            self.place.libvirtd.virsh("start", name)
        return name

    def both(self, name: str) -> tuple[str, str]:
        return self.place.xml(name), self.place.xml(name, "--inactive")

    def close(self) -> None:
        for name in self.names:
            self.place.libvirtd.run("virsh", "destroy", name)
            self.place.libvirtd.virsh("undefine", name)


def one_line(said: str) -> str:
    assert said.startswith("valemgr: "), said
    assert said.count("\n") == 1, said
    return said


def test_domains_that_are_not_there(place: Place) -> None:
    for words in (("attach", "x", "vale1:a"), ("detach", "x", "vale1:a"), ("sync", "x"),
                  ("move", "x", "vale1:a", "vale1:b"), ("list", "x"), ("status", "x")):  # fmt: skip
        said = one_line(place.libvirt(*words, code=1))
        assert "no domain x at qemu:///system: see 'virsh list --all'" in said


def test_words_that_cannot_be_meant(place: Place, define: Definer) -> None:
    name = define("d")
    before = define.both(name)
    for words, reason in (
        (("attach", name, "br0"), "is not a port name"),
        (("attach", name, "vale1:a", "--mac", "52:54"), "--mac: '52:54' is not a MAC address"),
        (("attach", name, "vale1:a", "--queues", "2"), "one queue pair only"),
        (("attach", name, "vale1:a", "--queues", "9"), "queues"),
        (("move", name, "vale1:a", "eth0"), "is not a port name"),
        (("xml", "--port", "vale1:a", "x.lab.yml"), "one of them"),
    ):
        assert reason in one_line(place.libvirt(*words, code=2))
    assert define.both(name) == before


def test_ports_that_are_others(place: Place, define: Definer) -> None:
    one, two = define("one"), define("two")
    place.libvirt("attach", one, "vale1:a")
    before = define.both(two)
    said = one_line(place.libvirt("attach", two, "vale1:a", code=2))
    assert "port vale1:a is domain one's" in said
    assert "'valemgr libvirt detach one vale1:a'" in said
    assert "has a NIC on vale1:a already" in place.libvirt("attach", one, "vale1:a", code=1)
    said = place.libvirt("detach", two, "vale1:a", code=1)
    assert "domain two has no NIC on vale1:a: it has none" in said
    assert "does not run" in place.libvirt("attach", two, "vale1:b", "--live", code=1)
    assert define.both(two) == before
    place.libvirt("detach", one, "vale1:a")


def test_metadata_that_is_wrong(place: Place, define: Definer) -> None:
    port = f"<vale:port switch='vale1' name='a' mac='{MAC}'/>"
    wrong = define("wrong", SHARED + PORTS.format(port.replace("switch='vale1' ", "")))
    before = define.both(wrong)
    said = one_line(place.libvirt("sync", wrong, code=2))
    assert "domain wrong: <vale:port> 1 has no switch" in said
    assert define.both(wrong) == before
    none = define("none")
    assert "has no <vale:ports>" in one_line(place.libvirt("sync", none, code=1))
    good = define("good", SHARED + PORTS.format(port))
    said = place.libvirt("sync", good)
    assert f"vale1:a: added ({MAC})" in said
    assert "/run/vale/vale1:a" in place.xml(good)
    assert "are what its metadata says" in place.libvirt("sync", good)
    [row] = place.nics()
    assert (row["domain"], row["state"], row["when"], row["link"]) == (
        "good", "shut off", "config", "no switch",
    )  # fmt: skip


def test_one_that_runs_without_shared_memory(place: Place, define: Definer) -> None:
    name = define("private", NO_MSIX, start=True)
    before = define.both(name)
    said = one_line(place.libvirt("attach", name, "vale1:a", code=4))
    assert "domain private runs without shared memory: " in said
    assert define.both(name) == before


def test_valed_that_qemu_may_not_connect_to(place: Place, define: Definer) -> None:
    """It was started by somebody else, without the group; ours has the group of QEMU's user."""
    name = define("p", start=True)
    before = define.both(name)
    with place.valed():
        said = one_line(place.libvirt("attach", name, "vale1:a", "--live", code=4))
        assert "QEMU's user libvirt-qemu (64055:64055) may not connect to" in said
        assert "lacks --group libvirt-qemu" in said
        assert define.both(name) == before
        assert place.ports() == []
    place.libvirt("attach", name, "vale1:a", "--live")
    [row] = place.nics()
    assert (row["port"], row["link"]) == ("vale1:a", "connected")
    assert place.libvirtd.outside("/run/vale").stat().st_mode & 0o7777 == 0o2750


def test_without_rights_or_libvirtd(place: Place) -> None:
    socket = place.libvirtd.outside("/run/libvirt/libvirt-sock")
    mode = socket.stat().st_mode
    socket.chmod(0o700)
    try:
        if os.geteuid() == 0:
            nobody = ("setpriv", "--reuid=65534", "--clear-groups")
            system = ("-c", "qemu:///system")
            done = place.libvirtd.run(*nobody, VALEMGR, "libvirt", "list", *system)
            assert done.returncode == 4, done.stderr
            assert "join the group libvirt, or use --connect qemu:///session" in one_line(
                done.stderr
            )
    finally:
        socket.chmod(mode & 0o777)
    said = place.libvirt("list", "-c", "qemu+unix:///system?socket=/nowhere", code=4)
    assert "is libvirtd installed, and does it run?" in one_line(said)
    said = place.libvirt("attach", "x", "vale1:a", "-c", "qemu+ssh://far/system", code=4)
    assert "is another machine's libvirt" in one_line(said)
    said = place.libvirt("list", "-c", "nonsense", code=4)
    assert "cannot connect to nonsense" in one_line(said)


def test_a_domain_that_changes_behind_our_back(place: Place, define: Definer) -> None:
    """What libvirt has is what counts, each time anew; a watch follows it."""
    name = define("back")
    watch = place.libvirtd.popen(VALEMGR, "libvirt", "list", "--watch", "--format", "jsonl")
    assert watch.stdout
    place.libvirt("attach", name, "vale1:a")
    assert '"domain": "back"' in watch.stdout.readline()
    text = place.xml(name)
    start, end = text.index("    <interface"), text.index("</interface>") + len("</interface>\n")
    place.libvirtd.outside("/run/back.xml").write_text(text[:start] + text[end:])
    place.libvirtd.virsh("define", "/run/back.xml")
    assert "has no NIC on vale1:a: it has none" in place.libvirt("detach", name, "vale1:a", code=1)
    assert "vale1:a: added" in place.libvirt("sync", name)
    assert '"domain": "back"' in watch.stdout.readline()
    place.libvirtd.restart()
    place.libvirtd.virsh("undefine", name)
    assert "no domain back" in place.libvirt("detach", name, "vale1:a", code=1)
    place.libvirtd.virsh("define", f"/run/{name}.xml")
    place.libvirt("attach", name, "vale2:b", "--config")
    line = watch.stdout.readline()
    while '"port": "vale2:b"' not in line:
        assert line, "the watch has ended"
        line = watch.stdout.readline()
    watch.kill()
    watch.communicate()
