# SPDX-License-Identifier: BSD-2-Clause
"""A lab from its file: up, looked at, tested, saved, up again, down. Every way to wire a NIC.

    a  vale0 virtio  netmap ────────── vale1:a ┐
       vale1 virtio  vhost-user ────── vale2:a │ ┐
       eth1  virtio  netmap ───┐               │ │
                      link (p2p, 9000 bytes)   [ vale1 ]
    b  eth1  virtio  netmap ───┘               │ │
       vale0 e1000   stream ────────── vale1:b ┤ │
       vale1 e1000   netmap ────────── vale2:b │ ┴ [ vale2 ]
    c  vale0 virtio  netmap, 2 queues  vale1:c ┘

c comes after a, and a is ready when it hears b. Nothing may be left in the end.
"""

import csv
import io
import json
import re
from collections.abc import Iterator

import pytest

from lib.place import Place, finish, missing, until_said

pytestmark = pytest.mark.guest

if missing():
    pytest.skip(missing(), allow_module_level=True)

LAB = """
name: life
description: every way to wire a NIC
switches:
  vale1:
  vale2: {age: 300s}
defaults:
  startup: ["echo defaults >> /tmp/order"]
groups:
  talkers:
    startup: ["echo group >> /tmp/order"]
guests:
  a:
    group: talkers
    files: [{from: hello.txt, to: /etc/deep/er/hello, mode: "0600"}]
    startup: ["echo guest >> /tmp/order", "wc -c < /etc/deep/er/hello >> /tmp/order"]
    nics:
      - {switch: vale1, backend: netmap}
      - {switch: vale2, backend: vhost-user}
    ready:
      - {exec: "ping -c 1 -W 5 198.18.0.2", expect: "1 packets received, 0% packet loss"}
  b:
    group: talkers
    nics:
      - {switch: vale1, model: e1000, backend: stream}
      - {switch: vale2, model: e1000}
  c:
    cpus: 2
    after: [a]
    nics: [{switch: vale1, queues: 2}]
links:
  - endpoints: ["a:eth1", "b:eth1"]
    mtu: 9000
tests:
  - {name: ping, from: c, exec: "ping -c 2 -W 5 198.18.0.1", expect: "2 packets received"}
  - name: slow and whole
    udp: {from: "a", to: "c:vale0", rate: 500, seconds: 1s}
    min-kpps: 0.3
    max-loss: 0%
  - name: more than can be
    udp: {from: "a:vale1", to: "b:vale1", seconds: 0.5s, rate: 1000}
    min-kpps: 100000
  - {name: never, from: b, exec: "echo no; exit 1"}
"""
SIX_ENDS = {  # port: backend
    "a:vale0": "netmap", "a:vale1": "vhost-user", "a:eth1": "netmap", "b:vale0": "stream",
    "b:vale1": "netmap", "b:eth1": "netmap", "c:vale0": "netmap",
}  # fmt: skip


class Life:
    """The lab that runs, and what was said meanwhile."""

    def __init__(self, place: Place) -> None:
        self.place = place
        (place.root / "hello.txt").write_text("hello, guest\n")
        self.file = place.write("life", LAB)
        process = place.start("up", self.file, "--test", "--format", "json")
        place.wait_for("state file", lambda: place.state("life"))
        self.early = place.status("life")
        self.waited = place.run("wait", "life")
        self.up = finish(process)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    place = Place(tmp_path_factory.mktemp("p"))
    try:
        yield Life(place)
    finally:
        place.close()


def test_up_tells_what_it_does_and_what_the_tests_found(life: Life) -> None:
    assert life.up.returncode == 3  # two tests are meant to fail
    said = json.loads(life.up.stdout)
    assert said["schema_version"] == 1
    assert {row["guest"]: row["state"] for row in said["guests"]} == dict.fromkeys("abc", "running")
    found = {test["test"]: test for test in said["tests"]}
    assert {name: test["passed"] for name, test in found.items()} == {
        "ping": True, "slow and whole": True, "more than can be": False, "never": False,
    }  # fmt: skip
    assert re.fullmatch(r"0\.[3-6] kpps received, 0 % lost", found["slow and whole"]["detail"])
    assert found["more than can be"]["detail"].endswith("fewer than 100000 kpps")
    assert found["never"]["detail"] == "status 1: no"
    lines = life.up.stderr.splitlines()
    condition = "guest a: waiting for its cond"
    assert in_order(lines, "guest a: booting", "guest a: ready after", condition)
    assert in_order(lines, "guest b: ready after", condition, "guest c: booting")
    assert "vale0 on vale1:b by stream" in life.up.stderr


def in_order(lines: list[str], *words: str) -> bool:
    """Whether lines with these words come one behind the other."""
    places = [next(i for i, line in enumerate(lines) if word in line) for word in words]
    return places == sorted(places)


def test_meanwhile_status_and_wait_knew_how_far_it_was(life: Life) -> None:
    assert set(life.early) == set("abc")
    assert life.early["c"]["state"] == "waiting"
    assert {life.early[name]["state"] for name in "ab"} <= {"waiting", "starting"}
    assert life.waited.returncode == 0
    assert "lab life: every guest is ready" in life.waited.stderr


def test_status_and_inspect_in_every_format(life: Life) -> None:
    place = life.place
    status = place.status("life")
    assert [status[name]["state"] for name in "abc"] == ["running"] * 3
    assert sorted(row["pid"] for row in status.values()) == sorted(place.guests())
    table = place.ok("status").splitlines()
    assert len(table) == 2 + 3
    assert table[1].split()[:3] == ["lab", "guest", "state"]

    nics = place.json("inspect", "life")["nics"]
    assert {f"{nic['guest']}:{nic['nic']}": nic["backend"] for nic in nics} == SIX_ENDS
    by_name = {f"{nic['guest']}:{nic['nic']}": nic for nic in nics}
    assert by_name["a:eth1"]["peer"] == "b:eth1"
    assert by_name["a:eth1"]["mtu"] == 9000
    assert by_name["c:vale0"]["addresses"] == ["198.18.0.3/24"]
    lines = [json.loads(line) for line in place.ok("inspect", "--format", "jsonl").splitlines()]
    assert [{"schema_version": 1, **nic} for nic in nics] == lines
    rows = list(csv.DictReader(io.StringIO(place.ok("inspect", "--format", "csv"))))
    assert [row["mac"] for row in rows] == [nic["mac"] for nic in nics]
    shown = {name: place.ok("exec", name, "--", "ip", "addr") for name in "abc"}
    for nic in nics:  # what is said is what the guest has
        show = re.split(r"^\d+: ", shown[nic["guest"]], flags=re.MULTILINE)
        (mine,) = (part for part in show if part.startswith(f"{nic['nic']}:"))
        assert nic["mac"] in mine
        assert f"mtu {nic['mtu']} " in mine
        assert all(f"inet {address} " in mine for address in nic["addresses"])


def test_files_and_startup_in_their_order(life: Life) -> None:
    place = life.place
    said = place.ok("exec", "a", "cd /etc/deep/er; cat hello; ls -l hello; cat /tmp/order")
    hello, listed, *order = said.splitlines()
    assert hello == "hello, guest"
    assert listed.startswith("-rw-------")
    assert order == ["defaults", "group", "guest", "13"]
    assert place.ok("exec", "c", "cat /tmp/order").split() == ["defaults"]


def test_every_backend_carries_frames(life: Life) -> None:
    place = life.place
    before = place.ports()
    place.ping("a", "198.18.0.2")
    place.ping("b", "198.18.0.3")
    place.ping("a", "198.18.1.2")
    after = place.ports()
    for port, least in (("vale1:a", 3), ("vale1:b", 6), ("vale1:c", 3), ("vale2:a", 3)):
        assert after[port]["rx"]["frames"] - before[port]["rx"]["frames"] >= least, port
    kinds = {name: port["kind"] for name, port in after.items() if not name.startswith("valeL")}
    assert kinds == {
        "vale1:a": "native", "vale1:b": "stream", "vale1:c": "native",
        "vale2:a": "vhost-user", "vale2:b": "native",
    }  # fmt: skip
    assert all(not port["rx"]["dropped"] and not port["tx"]["dropped"] for port in after.values())


def test_two_queues_are_two_rings(life: Life) -> None:
    place = life.place
    assert place.ports()["vale1:c"]["rings"] == 2
    queues = place.ok("exec", "c", "ls -d /sys/class/net/vale0/queues/rx-*").split()
    assert len(queues) == 2


def test_a_link_passes_jumbo_frames_lldp_and_one_mac_on_both_ends(life: Life) -> None:
    place = life.place
    a, b = (nic for nic in place.json("inspect", "life")["nics"] if nic["nic"] == "eth1")
    address = b["addresses"][0].partition("/")[0]
    place.ping("a", address, "-s", "8900")

    capture = place.start(
        "exec", "b",
        "timeout 60 tcpdump -Z root -c 2 -i eth1 -nn ether dst 01:80:c2:00:00:0e and icmp",
    )  # fmt: skip
    until_said(capture, "listening on eth1")
    neighbour = f"ip neigh replace {address} lladdr 01:80:c2:00:00:0e dev eth1 nud permanent"
    place.ok("exec", "a", f"{neighbour}; ping -c 2 -W 1 {address}; :")
    assert finish(capture).stdout.count("ICMP echo request") == 2

    twin = f"ip link set dev eth1 address {b['mac']}"
    place.ok("exec", "a", f"{twin}; ip neigh replace {address} lladdr {b['mac']} dev eth1")
    mine = a["addresses"][0].partition("/")[0]
    place.ok("exec", "b", f"ip neigh replace {mine} lladdr {b['mac']} dev eth1")
    place.ping("a", address)
    assert place.ok("exec", "a", "cat /sys/class/net/eth1/address").strip() == b["mac"]


def test_saved_and_read_again_is_no_difference(life: Life) -> None:
    place = life.place
    saved = place.root / "saved.lab.yml"
    place.ok("save", "life", "-o", str(saved))
    assert saved.read_text() == place.ok("save", "life")
    before = place.state_file("life").read_bytes()
    assert place.json("apply", str(saved), "--dry-run")["changes"] == []
    assert place.state_file("life").read_bytes() == before
    again = place.run("up", str(saved))
    assert again.returncode == 0
    assert "lab life runs as its topology says" in again.stderr


def test_up_again_does_nothing_and_another_topology_is_refused(life: Life) -> None:
    place = life.place
    pids = place.guests()
    began = place.status("life")
    assert "runs as its topology says" in place.run("up", life.file).stderr
    assert place.guests() == pids
    assert place.status("life") == began
    other = place.write("other", LAB.replace("age: 300s", "age: 100s"))
    said = place.fails(1, "up", other)
    assert "lab life runs already, with another topology: 'valemgr apply' shows" in said


def test_tests_alone_change_by_apply(life: Life) -> None:
    """`wait --test` runs those that are wanted now."""
    place = life.place
    file = place.write("calm", LAB[: LAB.index("  - name: more than can be")])
    assert place.json("apply", file)["changes"] == []
    done = place.run("wait", "life", "--test", "--format", "json")
    assert done.returncode == 0
    assert [test["passed"] for test in json.loads(done.stdout)["tests"]] == [True, True]


def test_down_leaves_nothing_and_may_be_repeated(life: Life) -> None:
    place = life.place
    assert "lab life: 3 guests ended" in place.run("down", life.file).stderr
    place.assert_nothing_left()
    assert place.run("down", "life").returncode == 0
    assert place.run("down", life.file).returncode == 0
