# SPDX-License-Identifier: BSD-2-Clause
"""A running lab becomes another one, by the difference alone.

    a  vale0 ── netmap ───── vale1:a ┐
    b  vale0 ── vhost-user ─ vale1:b ┴ [ vale1 ]

These two stay: they keep their pids, and a flow from a to b loses no frame while others come, go
and change.

Each test applies a file to the lab that the one before has left, and looks at what the guests, the
switch and the state file say then.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lib.place import Flow, Place, missing

pytestmark = pytest.mark.guest

if missing():
    pytest.skip(missing(), allow_module_level=True)

RATE = 200  # frames a second of the flow: what a busy host under TCG still carries
STAY = "  a: {nics: [{switch: vale1}%s]}\n  b: {nics: [{switch: vale1, backend: vhost-user}%s]}\n"
C = "  c: {nics: [{switch: vale1}]}\n"


def lab(a: str = "", b: str = "", guests: str = "", rest: str = "") -> str:
    """A topology: what a and b have besides their first NICs, more guests, and the rest."""
    return f"switches: {{vale1: , vale2: }}\nguests:\n{STAY % (a, b)}{guests}{rest}"


class Running:
    """The lab of this module."""

    def __init__(self, place: Place) -> None:
        self.place = place
        place.ok("up", place.write("apply", lab()))
        self.pids = self.stayed()

    def stayed(self) -> list[int]:
        guests = self.place.state("apply")["guests"]
        alive = self.place.guests()
        return [guests[name]["pid"] for name in "ab" if guests[name]["pid"] in alive]

    def apply(self, text: str, *words: str) -> list[str]:
        """Make it so; what was said that changes. Who stays is whom we knew."""
        changes = self.place.json("apply", self.place.write("apply", text), *words)["changes"]
        assert self.stayed() == self.pids
        return [change["change"] for change in changes]

    def again(self, text: str) -> None:
        """Nothing is left to do."""
        assert self.apply(text) == []

    def nics(self) -> dict[str, Any]:
        nics = self.place.json("inspect", "apply")["nics"]
        return {f"{nic['guest']}:{nic['nic']}": nic for nic in nics}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = Place(tmp_path_factory.mktemp("p"))
    try:
        yield Running(place)
    finally:
        place.close()


def delivered(place: Place) -> int:
    """Frames that have gone out of b's port."""
    return int(place.ports()["vale1:b"]["tx"]["frames"])


@contextmanager
def flow(place: Place) -> Iterator[None]:
    """UDP from a to b, for as long as the block runs; then every frame must have come."""
    before = place.ports()
    with Flow(place, "a", "b", "198.18.0.2", RATE) as made:
        place.wait_for("frames", lambda: delivered(place) > 10)
        yield
        so_far = delivered(place)
        place.wait_for("frames behind it", lambda: delivered(place) > so_far + 10)
    assert made.got["sent_by_peer"] == made.sent["sent"] > 20
    assert (made.got["lost"], made.got["duplicated"], made.got["reordered"]) == (0, 0, 0)
    assert made.got["received"] == made.sent["sent"]
    after = place.ports()
    for port in ("vale1:a", "vale1:b"):
        for side in ("rx", "tx"):
            assert after[port][side]["dropped"] == before[port][side]["dropped"] == {}


def test_a_dry_run_changes_nothing(running: Running) -> None:
    place = running.place
    before = place.state_file("apply").read_bytes(), place.ports(), place.guests()
    changes = running.apply(lab(b=", {switch: vale2}", guests=C), "--dry-run")
    assert changes == ["+ guest c", "+ nic b:vale1 on vale2:b"]
    assert (place.state_file("apply").read_bytes(), place.ports(), place.guests()) == before
    table = place.ok("apply", place.write("apply", lab(guests=C)), "-n")
    assert table == "+ guest c\n"


def test_a_guest_comes_and_nobody_loses_a_frame(running: Running) -> None:
    with flow(running.place):
        assert running.apply(lab(guests=C)) == ["+ guest c"]
    running.place.ping("c", "198.18.0.1")
    known = running.place.ok("exec", "a", "ip neigh show dev vale0")
    assert "198.18.0.3" in known, "a was not told of c"
    running.again(lab(guests=C))


def test_more_memory_is_another_guest_in_its_place(running: Running) -> None:
    place = running.place
    before = place.status("apply")["c"]
    more = "  c: {memory: 160M, nics: [{switch: vale1}]}\n"
    assert running.apply(lab(guests=more)) == [
        "~ guest c: started anew (memory_mib 128 becomes 160)"
    ]
    after = place.status("apply")["c"]
    assert after["pid"] != before["pid"]
    assert after["addresses"] == before["addresses"]
    assert len(place.guests()) == 3
    place.ping("a", "198.18.0.3")


def test_a_guest_goes_and_nobody_loses_a_frame(running: Running) -> None:
    with flow(running.place):
        assert running.apply(lab()) == ["- guest c"]
    assert set(running.place.status("apply")) == {"a", "b"}
    assert set(running.place.ports()) == {"vale1:a", "vale1:b"}
    assert "198.18.0.3" not in running.place.ok("exec", "a", "ip neigh show dev vale0")
    assert len(running.place.guests()) == 2


# What is plugged into both: model, backend asked for, kind of port.
PLUGGED = {
    "virtio by netmap": ("virtio-net-pci", "netmap", "native"),
    "virtio by stream": ("virtio-net-pci", "stream", "stream"),
    "virtio by vhost-user": ("virtio-net-pci", "vhost-user", "vhost-user"),
    "e1000 by netmap": ("e1000", "netmap", "native"),
    "e1000 by stream": ("e1000", "stream", "stream"),
}


def plugged(what: str, switch: str = "vale2") -> str:
    model, backend, _ = PLUGGED[what]
    keys = f"name: x1, switch: {switch}, model: {model}, backend: {backend}"
    return f", {{{keys}}}"


def more(keys: str) -> str:
    """The same NIC with these keys besides."""
    return plugged("virtio by netmap").replace("}", f", {keys}}}")


@pytest.mark.parametrize("what", PLUGGED)
def test_a_nic_is_plugged_and_carries_frames(running: Running, what: str) -> None:
    """Each one takes the place of the one before: unplugged, and plugged anew."""
    place, (_, backend, kind) = running.place, PLUGGED[what]
    topology = lab(plugged("virtio by netmap"), plugged(what))
    changes = running.apply(topology)
    assert any(re.match(r"[+~] nic b:x1 on vale2:b", change) for change in changes)
    place.ping("b", "198.18.1.1")
    ports = place.ports()
    assert ports["vale2:b"]["kind"] == kind
    assert ports["vale2:b"]["rx"]["frames"] >= 3
    nic = running.nics()["b:x1"]
    assert (nic["backend"], nic["addresses"], nic["slot"]) == (backend, ["198.18.1.2/24"], 1)
    if what == "e1000 by stream":
        running.again(topology)


def test_a_nic_moves_to_another_switch(running: Running) -> None:
    place = running.place
    x1 = plugged("virtio by netmap")
    with flow(place):
        changes = running.apply(
            lab(plugged("virtio by netmap", "vale3"), x1).replace("vale2: }", "vale2: , vale3: }")
        )
    assert "~ nic a:x1 on vale3:a, plugged anew" in changes
    assert set(place.ports()) == {"vale1:a", "vale1:b", "vale3:a", "vale2:b"}
    assert place.run("exec", "a", "ping -c 1 -W 1 198.18.1.2").returncode == 1
    running.apply(lab(x1, x1))
    place.ping("a", "198.18.1.2")


def test_addresses_and_mtu_change_in_place(running: Running) -> None:
    place = running.place
    had = running.nics()["a:x1"]
    mine = more("mtu: 1400, addresses: [10.9.0.1/24, 'fd09::1/64']")
    topology = lab(mine, more("addresses: [10.9.0.2/24, 'fd09::2/64']"))
    assert running.apply(topology) == [
        "~ nic a:x1: address 198.18.1.1/24 goes, address 10.9.0.1/24 comes, "
        "address fd09::1/64 comes, MTU 1500 becomes 1400",
        "~ nic b:x1: address 198.18.1.2/24 goes, address 10.9.0.2/24 comes, "
        "address fd09::2/64 comes",
    ]
    shown = place.ok("exec", "a", "ip addr show dev x1; ip neigh show dev x1")
    assert "mtu 1400" in shown
    assert "198.18.1." not in shown
    assert "10.9.0.2 lladdr" in shown
    place.ping("a", "10.9.0.2")
    place.ping("a", "fd09::2")
    assert running.nics()["a:x1"]["mac"] == had["mac"]
    running.again(topology)


def test_impairments_come_are_counted_and_go(running: Running) -> None:
    place = running.place
    x1, late = plugged("virtio by netmap"), more("impair: {in: {delay: 200ms}}")
    bad = more("impair: {in: {delay: 200ms}, out: {loss: 100%}}")
    first = running.apply(lab(late, x1))
    assert "~ impairments of vale2:a (a:x1): in delay 200ms" in first
    said = place.ok("exec", "a", "ping -c 3 -W 10 198.18.1.2")
    trip = float(re.findall(r"min/avg/max = ([\d.]+)/", said)[0])
    assert 200 <= trip < 2000

    assert len(running.apply(lab(bad, x1))) == 1
    before = place.ports()["vale2:a"]["tx"]
    said = place.run("exec", "a", "ping -c 3 -i 0.2 -W 1 198.18.1.2").stdout
    assert "3 packets transmitted, 0 packets received" in said
    after = place.ports()["vale2:a"]["tx"]
    assert after["dropped"]["loss"] - before["dropped"].get("loss", 0) == 3
    assert after["frames"] == before["frames"]

    assert running.apply(lab(x1, x1)) == ["~ impairments of vale2:a (a:x1): none"]
    port = place.ports()["vale2:a"]
    assert "in" not in port
    assert "out" not in port
    said = place.ok("exec", "a", "ping -c 3 -W 10 198.18.1.2")
    assert float(re.findall(r"min/avg/max = ([\d.]+)/", said)[0]) < 200
    running.again(lab(x1, x1))


def test_a_link_comes_and_goes(running: Running) -> None:
    place = running.place
    link = "links: [{endpoints: ['a:p1', 'b:p1'], mtu: 9000}]\n"
    running.apply(lab(rest=link))
    nics = running.nics()
    assert set(nics) == {"a:vale0", "b:vale0", "a:p1", "b:p1"}
    assert nics["a:p1"]["peer"] == "b:p1"
    private = nics["a:p1"]["port"].partition(":")[0]
    assert place.switches()[private]["p2p"] is True
    place.ping("a", nics["b:p1"]["addresses"][0].partition("/")[0], "-s", "8900")
    running.again(lab(rest=link))
    with flow(place):
        running.apply(lab())
    assert set(place.ports()) == {"vale1:a", "vale1:b"}
    assert set(place.switches()) == {"vale1"}
    assert running.place.ok("exec", "a", "ls /sys/class/net").split() == ["lo", "mgmt", "vale0"]


def test_a_step_that_fails_disturbs_nobody(running: Running) -> None:
    """A new guest whose startup fails goes again; with the good file it comes."""
    place = running.place
    startup = "['true', 'echo no luck; exit 7']"
    bad = f"  d: {{nics: [{{switch: vale1, backend: stream}}], startup: {startup}}}\n"
    before = place.ports()
    said = place.fails(1, "apply", place.write("apply", lab(guests=bad)))
    assert "guest d: startup command 'echo no luck; exit 7' failed (status 7): no luck" in said
    assert running.stayed() == running.pids
    after = place.ports()
    assert set(after) == {"vale1:a", "vale1:b"}
    assert all(after[name]["peer"] == before[name]["peer"] for name in after)
    status = place.status("apply")
    assert {name: row["state"] for name, row in status.items()} == {
        "a": "running", "b": "running", "d": "not started",
    }  # fmt: skip
    good = bad.replace("exit 7", "exit 0")
    assert running.apply(lab(guests=good)) == ["+ guest d"]
    place.ping("d", "198.18.0.2")


def test_down_leaves_nothing(running: Running) -> None:
    running.place.ok("down", "apply")
    running.place.assert_nothing_left()
