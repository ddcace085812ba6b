# SPDX-License-Identifier: BSD-2-Clause
"""Ports that come up with a domain: `virsh start` alone, libvirt as root, QEMU as its own user.

domain a ── vale1:a ── [ vale1 ] ── vale1:b ── domain b
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib import libvirtd as private
from lib.domains import QEMU, SHARED, DomainGuest
from lib.guest import BUILD
from lib.libvirtd import SECONDS, Libvirtd, domain
from lib.qmp import Qmp
from lib.valed import eventually

VALEMGR, VALED, VALECTL = (BUILD / "bin" / name for name in ("valemgr", "valed", "valectl"))
GROUP = "libvirt-qemu"
PINGS = 5

pytestmark = private.MARKS


class Place:
    """A libvirtd with our hook."""

    def __init__(self, libvirtd: Libvirtd) -> None:
        self.libvirtd = libvirtd

    def ports(self, rundir: str = "/run/vale") -> dict[str, Any]:
        """valed's, by name."""
        with Qmp(self.libvirtd.outside(f"{rundir}/qmp.sock")) as qmp:
            return qmp.ports()

    def valed(self) -> int:
        """Its pid inside."""
        done = self.libvirtd.run("pgrep", "-f", "valed --rundir /run/vale ", ok=True)
        return int(done.stdout)

    def fds(self, pid: int) -> set[str]:
        """What the descriptors of a process are."""
        argv = ("find", f"/proc/{pid}/fd", "-type", "l", "-printf", "%l\n")
        return set(self.libvirtd.run(*argv, ok=True).stdout.split("\n"))

    def refuses(self, name: str) -> str:
        """What `virsh start` says of a domain that does not start."""
        done = self.libvirtd.run("virsh", "-c", self.libvirtd.uri, "start", name)
        assert done.returncode == 1
        assert "shut off" in self.libvirtd.virsh("domstate", name)
        (line,) = re.findall(r"unexpected exit status 1: (vale: .*)", done.stderr)
        return str(line)

    def log(self, rundir: str = "/run/vale") -> str:
        return self.libvirtd.outside(f"{rundir}/valed.log").read_text()

    def define(self, name: str, listed: str, socket: str = "", *, mac: str = "") -> None:
        """A domain that need not boot."""
        address = mac or "52:54:00:0f:00:01"
        text = domain(name, nic(address, socket) if socket else "", more=metadata(listed, address))
        path = self.libvirtd.outside(f"/run/{name}.xml")
        path.write_text(text.replace("<devices>", f"{SHARED}<devices>"))
        self.libvirtd.virsh("define", f"/run/{name}.xml")


def metadata(listed: str, mac: str) -> str:
    switch, _, name = listed.partition(":")
    port = f"<vale:port switch='{switch}' name='{name}' mac='{mac}'/>"
    return f"<metadata><vale:ports xmlns:vale='urn:vale:ports:1'>{port}</vale:ports></metadata>"


def nic(mac: str, socket: str) -> str:
    return f"""<interface type='vhostuser'><mac address='{mac}'/>
      <source type='unix' path='{socket}' mode='client'>
        <reconnect enabled='yes' timeout='1'/>
      </source><model type='virtio'/></interface>"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("v")
    with Libvirtd.make(folder, user=GROUP) as libvirtd:
        said = libvirtd.run(VALEMGR, "libvirt", "install-hook", ok=True).stderr
        assert "installed /etc/libvirt/hooks/qemu.d/50-vale" in said
        libvirtd.restart()  # it looks for hooks when it starts
        yield Place(libvirtd)


@pytest.fixture(scope="module")
def pair(place: Place) -> Iterator[tuple[DomainGuest, DomainGuest]]:
    """Two domains of one switch, started by virsh alone."""
    guests = []
    for number, name in enumerate(("a", "b"), 1):
        mac = f"52:54:00:00:00:0{number}"
        more = SHARED + metadata(f"vale1:{name}", mac)
        devices = nic(mac, f"/run/vale/vale1:{name}")
        guests.append(DomainGuest(place.libvirtd, name, number, devices=devices, more=more))
        guests[-1].define()
    for guest in guests:
        place.libvirtd.virsh("start", guest.name)
    for guest in guests:
        guest.connect()
    yield guests[0], guests[1]
    for guest in guests:
        guest.close()


def ping(pair: tuple[DomainGuest, DomainGuest]) -> None:
    one, other = pair
    said = one.run(f"ping -c {PINGS} -i 0.1 -W 20 {other.address()}")
    assert f"{PINGS} packets received" in said


def test_start_alone_brings_up_the_ports(
    place: Place, pair: tuple[DomainGuest, DomainGuest]
) -> None:
    ping(pair)
    found = place.ports()
    assert set(found) == {"vale1:a", "vale1:b"}
    assert {port["kind"] for port in found.values()} == {"vhost-user"}
    assert {port["peer"]["uid"] for port in found.values()} == {64055}
    assert all(port["rx"]["frames"] >= PINGS for port in found.values())
    for guest in pair:
        line = f"domain {guest.name}: port vale1:{guest.name} is ready for NIC {guest.mac(0)}"
        assert line in place.log()


def test_valed_has_nothing_of_libvirtd(place: Place, pair: tuple[DomainGuest, DomainGuest]) -> None:
    """libvirt waits for whoever keeps its pipes; and an end of its session is not valed's."""
    pid = place.valed()
    theirs = place.libvirtd.outside("/run/libvirtd.own-pid").read_text().strip()
    links = place.fds(pid)
    shared = links & place.fds(int(theirs))
    assert {each for each in shared if each.startswith(("pipe:", "socket:"))} == set()
    assert "/run/vale/valed.log" in links
    stat = place.libvirtd.run("cat", f"/proc/{pid}/stat").stdout.rpartition(")")[2].split()
    assert int(stat[3]) == pid  # its session
    assert f"--group\0{GROUP}" in place.libvirtd.run("cat", f"/proc/{pid}/cmdline").stdout


def test_domain_of_somebody_else_starts_as_ever(
    place: Place, pair: tuple[DomainGuest, DomainGuest]
) -> None:
    before = place.log()
    path = place.libvirtd.outside("/run/foreign.xml")
    path.write_text(domain("foreign"))
    place.libvirtd.virsh("create", "/run/foreign.xml")
    place.libvirtd.virsh("destroy", "foreign")
    assert place.log() == before
    assert set(place.ports()) == {"vale1:a", "vale1:b"}


def test_port_of_another_domain_is_refused_and_stays(
    place: Place, pair: tuple[DomainGuest, DomainGuest]
) -> None:
    place.define("thief", "vale1:a", "/run/vale/vale1:a")
    pid = place.ports()["vale1:a"]["peer"]["pid"]
    line = place.refuses("thief")
    assert line.startswith("vale: domain thief: port vale1:a of the valed in /run/vale ")
    assert f" is taken by pid {pid}: " in line
    assert line.removeprefix("vale: ") in place.log()
    assert place.ports()["vale1:a"]["peer"]["pid"] == pid
    ping(pair)


def test_metadata_that_contradicts_the_nics_is_refused(
    place: Place, pair: tuple[DomainGuest, DomainGuest]
) -> None:
    place.define("wrong", "vale1:w", "/run/vale/vale1:x")
    line = place.refuses("wrong")
    assert "is on port vale1:x, but its metadata says vale1:w" in line
    assert line.endswith("run 'valemgr libvirt sync wrong'")
    assert set(place.ports()) == {"vale1:a", "vale1:b"}


def test_listed_port_without_a_nic_makes_nothing(
    place: Place, pair: tuple[DomainGuest, DomainGuest]
) -> None:
    place.define("less", "vale1:l")
    place.libvirtd.virsh("start", "less")
    place.libvirtd.virsh("destroy", "less")
    assert set(place.ports()) == {"vale1:a", "vale1:b"}


def test_valed_that_lacks_the_group_is_named(place: Place) -> None:
    """And the domain has what it needs once that is done which the line says."""
    place.define("late", "vale1:c", "/run/late/vale1:c")
    valed = place.libvirtd.popen(VALED, "--rundir", "/run/late")
    socket = place.libvirtd.outside("/run/late/qmp.sock")
    eventually("valed", socket.exists)
    line = place.refuses("late")
    found = re.search(r"end it by '(kill \d+)', and start it by '(valed .*)'", line)
    assert found, line
    assert "QEMU's group libvirt-qemu may not connect to /run/late/vale1:c: " in line
    assert f"/run/late) lacks --group {GROUP}" in line
    assert place.ports("/run/late") == {}
    place.libvirtd.run(*found[1].split(), ok=True)
    valed.communicate()
    again = place.libvirtd.popen(BUILD / "bin" / found[2].split()[0], *found[2].split()[1:])
    eventually("valed", socket.exists)
    place.libvirtd.virsh("start", "late")
    assert place.ports("/run/late")["vale1:c"]["peer"]["uid"] == 64055
    place.libvirtd.virsh("destroy", "late")
    assert place.ports("/run/late") == {}
    again.kill()
    again.communicate()


def test_port_that_vanished_is_made_when_libvirtd_is_back(
    place: Place, pair: tuple[DomainGuest, DomainGuest]
) -> None:
    place.libvirtd.stop()
    ping(pair)
    place.libvirtd.run(VALECTL, "--rundir", "/run/vale", "del", "vale1:a", ok=True)
    assert set(place.ports()) == {"vale1:b"}
    place.libvirtd.start()
    eventually("port", lambda: "vale1:a" in place.ports())
    ping(pair)
    place.libvirtd.restart("KILL")
    ping(pair)
    assert "running" in place.libvirtd.virsh("domstate", "a")


def test_traffic_goes_on_when_valed_was_killed(
    place: Place, pair: tuple[DomainGuest, DomainGuest]
) -> None:
    one, other = pair
    before = place.ports()["vale1:b"]["rx"]["frames"]
    output = one.begin(f"ping -c 60 -i 0.1 -W 20 {other.address()}")
    eventually("traffic", lambda: place.ports()["vale1:b"]["rx"]["frames"] > before + PINGS)
    killed = place.valed()
    place.libvirtd.run("kill", "-KILL", str(killed), ok=True)
    argv = (VALED, "--rundir", "/run/vale", "--group", GROUP, "--linger", "30")
    silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    assert place.libvirtd.popen("setsid", "--fork", *argv, **silent).wait(SECONDS) == 0
    said = output()
    found = re.search(r"60 packets transmitted, (\d+) packets received", said)
    assert found, said
    assert PINGS < int(found[1]) <= 60
    assert "seq=59 " in said
    assert place.valed() != killed
    ping(pair)


def test_ports_go_with_their_domains(place: Place, pair: tuple[DomainGuest, DomainGuest]) -> None:
    """Last: it ends the pair."""
    place.libvirtd.virsh("destroy", "a")
    assert set(place.ports()) == {"vale1:b"}
    place.libvirtd.virsh("destroy", "b")
    assert place.ports() == {}
    rundir = place.libvirtd.outside("/run/vale")
    assert [path.name for path in rundir.glob("vale1*")] == []


def test_netmap_nic_finds_a_valed(place: Place) -> None:
    """It opens its port itself; here by the user of QEMU, in the group of valed's sockets."""
    mac, device = "52:54:00:0f:00:02", "/run/native/netmap.sock"
    words = ("-netdev", f"netmap,id=n,ifname=vale1:n,devname={device}",
             "-device", f"e1000,netdev=n,mac={mac},bus=pcie.0,addr=0x10")  # fmt: skip
    line = "".join(f"<qemu:arg value='{word}'/>" for word in words)
    more = f"{metadata('vale1:n', mac)}<qemu:commandline>{line}</qemu:commandline>"
    text = domain("native", more=more).replace("<domain ", f"<domain {QEMU} ", 1)
    place.libvirtd.outside("/run/native.xml").write_text(text)
    place.libvirtd.virsh("create", "/run/native.xml")
    port = place.ports("/run/native")["vale1:n"]
    assert (port["kind"], port["peer"]["uid"]) == ("native", 64055)
    place.libvirtd.virsh("destroy", "native")
    eventually("end of the port", lambda: place.ports("/run/native") == {})


def test_session_has_a_valed_of_its_own(tmp_path: Path) -> None:
    """Its libvirtd runs the system's hook, as the user, with whom the group is of no use."""
    mac, socket = "52:54:00:00:00:01", "/run/home/runtime/vale/vale1:s"
    with Libvirtd.make(tmp_path, session=True) as libvirtd:
        hooks = "/etc/libvirt/hooks/qemu.d"
        install = (VALEMGR, "libvirt", "install-hook", "--group", GROUP, "--dir", hooks)
        libvirtd.run(*install, ok=True)
        libvirtd.restart()
        text = domain("s", nic(mac, socket), more=SHARED + metadata("vale1:s", mac))
        libvirtd.outside("/run/s.xml").write_text(text)
        libvirtd.virsh("create", "/run/s.xml")
        with Qmp(libvirtd.outside("/run/home/runtime/vale/qmp.sock")) as qmp:
            assert {name: port["peer"]["uid"] for name, port in qmp.ports().items()} == {
                "vale1:s": private.USER
            }
            libvirtd.virsh("destroy", "s")
            assert qmp.ports() == {}
