# SPDX-License-Identifier: BSD-2-Clause
"""A guest with a disk and cloud-init, as clouds have them, beside one that has neither.

    deb    vale0 ── vale1:deb ┐
           eth1  ── vale2:deb │ ┐       eth1 is plugged in while it runs
    micro  vale0 ── vale1:m ──┴ │ [ vale1 ]
           eth1  ── vale2:m ────┴ [ vale2 ]

Neither knows a word of the other's system; both are told who they are from one topology.
"""

import subprocess
from collections.abc import Iterator

import pytest

from lib.place import Place, missing
from valemgr import image
from valemgr.errors import ValeError

pytestmark = pytest.mark.guest

if missing():
    pytest.skip(missing(), allow_module_level=True)
try:
    DEBIAN = image.load("debian")
except ValeError as exc:
    pytest.skip(str(exc), allow_module_level=True)

BOOT_SECONDS = 900  # of a distribution's system under TCG on a loaded machine
LAB = """
name: disk
switches: {{vale1: , vale2: {{neighbours: arp}}}}
guests:
  deb:
    image: debian
    memory: 384M
    startup: ["hostname > /root/started"]
    nics: [{{switch: vale1, mtu: 1400}}{more}]
  m:
    nics: [{{switch: vale1, mtu: 1400}}{more}]
"""
MORE = ', {{switch: vale2, name: eth1, addresses: ["10.9.0.{host}/24"]}}'


def lab(plugged: bool = False) -> str:
    head, tail = LAB.split("  m:\n")
    more = [MORE.format(host=host) if plugged else "" for host in (1, 2)]
    return head.format(more=more[0]) + "  m:\n" + tail.format(more=more[1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("p"))
    try:
        path = place.write("disk", lab())
        process = place.start("up", path, "--timeout", str(BOOT_SECONDS))
        out, err = process.communicate(timeout=2 * BOOT_SECONDS)
        print(out, err, flush=True)
        assert process.returncode == 0
        yield place
    finally:
        place.close()


def said(place: Place, command: str) -> str:
    return place.ok("exec", "deb", "--", command).strip()


def test_it_is_ready_when_cloud_init_is_done(place: Place) -> None:
    stages = place.state("disk")["guests"]["deb"]["ready_seconds"]
    print(stages)
    assert list(stages) == ["process", "qmp", "ssh", "cloud-init", "links", "set up"]
    assert said(place, "cloud-init status") == "status: done"


def test_it_is_who_the_topology_says(place: Place) -> None:
    assert said(place, "hostname; cat started") == "deb\ndeb"
    assert said(place, "cat /sys/class/net/vale0/mtu") == "1400"
    vale0 = said(place, "ip -br addr show dev vale0").split()
    assert vale0 == ["vale0", "UP", "198.18.0.1/24"]  # and no link-local address
    mac = place.json("inspect", "disk")["nics"][1]["mac"]
    assert said(place, "ip neigh show dev vale0") == f"198.18.0.2 lladdr {mac} PERMANENT"
    assert said(place, "ip route show default") == ""


def test_its_host_key_is_ours_and_its_only_one(place: Place) -> None:
    ours = place.state("disk")["guests"]["deb"]["host_key"].split()
    theirs = said(place, "cat /etc/ssh/ssh_host_*_key.pub").split()
    assert theirs[:2] == ours[:2]
    assert said(place, "ls /etc/ssh/ssh_host_*_key | wc -l") == "1"


def test_both_hear_each_other(place: Place) -> None:
    assert " 0% packet loss" in said(place, "ping -c 3 -W 20 198.18.0.2")
    place.ping("m", "198.18.0.1")


def test_a_nic_is_plugged_in_while_it_runs(place: Place) -> None:
    pid = place.status("disk")["deb"]["pid"]
    place.ok("apply", place.write("disk", lab(plugged=True)))
    assert place.status("disk")["deb"]["pid"] == pid
    assert said(place, "ip -br addr show dev eth1").split() == ["eth1", "UP", "10.9.0.1/24"]
    assert " 0% packet loss" in said(place, "ping -c 3 -W 20 10.9.0.2")
    place.ping("m", "10.9.0.1")
    place.ok("apply", place.write("disk", lab()))
    assert said(place, "ls /sys/class/net").split() == ["lo", "mgmt", "vale0"]


def test_what_it_writes_is_not_in_the_image_and_gone_with_it(place: Place) -> None:
    assert DEBIAN.disk
    said(place, "echo only-in-this-guest-$((40 + 2)) > /root/mark && sync")
    found = subprocess.run(["grep", "-q", "only-in-this-guest-42", DEBIAN.disk.path], check=False)
    assert found.returncode == 1
    place.ok("down", "disk")
    place.assert_nothing_left()
