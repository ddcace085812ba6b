# SPDX-License-Identifier: BSD-2-Clause
"""What a guest is told about its NICs: shell scripts, read by a shell and run in a namespace.

    sh: me ── eth1 (or a name to be found by its MAC) ── veth pair ── peer
"""

import json
import shlex
import shutil
import subprocess
from typing import Any

import pytest

from valemgr.segments import (
    change_neighbours,
    change_nic,
    complete_nic,
    neighbours,
    script,
    set_up_nic,
)
from valemgr.topology import Cable, Guest, Lab, Nic, Switch

pytestmark = pytest.mark.unit

MAC = "52:54:00:00:00:01"
KNOWN = {"10.0.0.2": "52:54:00:00:00:02", "fd00::2": "52:54:00:00:00:02"}


def nic(*addresses: str, **more: Any) -> Nic:
    return Nic(**{"name": "eth1", "port": "vale1:a", "mac": MAC, "addresses": addresses} | more)


def lab(neighbours: str = "static") -> Lab:
    """Three guests on vale1, one of them on vale2, too; a and c on a cable."""
    a = Guest(name="a", nics=(
        nic("10.0.0.1/24", "fd00::1/64"),
        Nic(name="eth2", cable=Cable(name="x", listens=True), mac="52:54:00:00:00:0a",
            addresses=("10.9.0.1/30",)),
    ))  # fmt: skip
    b = Guest(name="b", nics=(
        Nic(name="eth1", port="vale1:b", mac="52:54:00:00:00:02", addresses=("10.0.0.2/24",)),
        Nic(name="eth2", port="vale2:b", mac="52:54:00:00:00:03", addresses=("10.0.1.2/24",)),
    ))  # fmt: skip
    c = Guest(name="c", nics=(
        Nic(name="eth1", port="vale1:c", mac="52:54:00:00:00:04"),
        Nic(name="eth2", cable=Cable(name="x", listens=False), mac="52:54:00:00:00:0c",
            addresses=("10.9.0.2/30",)),
    ))  # fmt: skip
    switch = Switch.model_validate({"name": "vale1", "neighbours": neighbours})
    return Lab(name="l", guests=(a, b, c), switches=(switch,))


def test_neighbours_are_all_others_of_the_segment() -> None:
    one = lab()
    found = {f"{g.name}:{n.name}": neighbours(one, g.name, n) for g, n in one.nics()}
    assert found == {
        "a:eth1": {"10.0.0.2": "52:54:00:00:00:02"},
        "a:eth2": {"10.9.0.2": "52:54:00:00:00:0c"},
        "b:eth1": {"10.0.0.1": MAC},  # and no IPv6 one, since its IPv6 is off
        "b:eth2": {},
        "c:eth1": {"10.0.0.1": MAC, "10.0.0.2": "52:54:00:00:00:02"},
        "c:eth2": {"10.9.0.1": "52:54:00:00:00:0a"},
    }


def test_ipv6_neighbours_are_for_those_with_ipv6() -> None:
    one = lab()
    c = one.guests[2]
    dual = c.nics[0].model_copy(update={"addresses": ("fd00::3/64",)})
    assert neighbours(one, "c", dual)["fd00::1"] == MAC


def test_where_guests_ask_by_arp_nobody_is_told() -> None:
    one = lab("arp")
    found = {f"{g.name}:{n.name}": neighbours(one, g.name, n) for g, n in one.nics()}
    assert [end for end, known in found.items() if known] == ["a:eth2", "c:eth2"]


def test_nothing_to_change_is_no_line() -> None:
    assert change_nic(nic("10.0.0.1/24"), nic("10.0.0.1/24"), KNOWN, KNOWN) == []
    assert change_neighbours("eth1", KNOWN, dict(KNOWN)) == []


def test_each_change_is_one_line() -> None:
    one = nic("10.0.0.1/24")
    assert change_nic(one, nic("10.0.0.1/24", mtu=9000), {}, {}) == [
        "ip link set dev eth1 mtu 9000 up"
    ]
    assert change_nic(one, nic("10.0.0.1/24", "10.0.0.3/24"), {}, {}) == [
        "ip addr replace 10.0.0.3/24 dev eth1"
    ]
    assert change_neighbours("eth1", {}, {"10.0.0.2": "52:54:00:00:00:02"}) == [
        "ip neigh replace 10.0.0.2 lladdr 52:54:00:00:00:02 dev eth1 nud permanent"
    ]
    moved = change_neighbours("eth1", {"10.0.0.2": MAC, "10.0.0.3": MAC}, {"10.0.0.2": "x"})
    assert [line.split()[:4] for line in moved] == [
        ["ip", "neigh", "del", "10.0.0.3"], ["ip", "neigh", "replace", "10.0.0.2"],
    ]


SCRIPTS = {
    "set up": set_up_nic(nic("10.0.0.1/24", "fd00::1/64"), KNOWN),
    "change": "\n".join(change_nic(nic("10.0.0.1/24"), nic("fd00::1/64"), {}, KNOWN)),
    "none": set_up_nic(nic(), {}),
}


@pytest.mark.parametrize("shell", ["sh", "bash", "busybox"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_shells_can_read_them(name: str, shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell}")
    argv = [program, "sh"] if shell == "busybox" else [program]
    done = subprocess.run([*argv, "-n"], input=SCRIPTS[name], text=True, capture_output=True,
                          check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    words = shlex.split(script(SCRIPTS[name].splitlines()))
    assert words == ["sh", "-ec", SCRIPTS[name]]


def _unshare() -> list[str]:
    """How to get a network namespace; empty: not here."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return []
    for argv in (["unshare", "-rnm"], ["unshare", "-nm"]):
        probe = "ip link add name v0 type veth peer name v1 && mount -t sysfs none /sys"
        if subprocess.run([*argv, "sh", "-c", probe], capture_output=True, check=False,
                          timeout=60).returncode == 0:
            return argv
    return []


UNSHARE = _unshare()
in_namespace = pytest.mark.skipif(
    not UNSHARE, reason="no network namespace here: unshare -rnm is restricted, or no iproute2"
)
PREPARE = f"""
mount -t sysfs none /sys
for c in all default; do echo 1 >/proc/sys/net/ipv6/conf/$c/disable_ipv6; done 2>/dev/null
ip link set dev lo up
ip link add name ens9 address {MAC} type veth peer name peer
ip link set dev peer up
"""
SHOW = "echo ===; ip -j addr show dev eth1; echo ===; ip -j neigh show dev eth1"


def run(*scripts: str, prepare: str = PREPARE) -> tuple[dict[str, Any], dict[str, str]]:
    """Run scripts one after the other as a guest would; the interface and its neighbours."""
    steps = [prepare, *(script(text.splitlines()) for text in scripts), SHOW]
    done = subprocess.run([*UNSHARE, "sh", "-e"], input="\n".join(steps), text=True,
                          capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    _, link, neigh = done.stdout.split("===\n")
    (interface,) = json.loads(link)
    told = [one for one in json.loads(neigh) if one["state"] == ["PERMANENT"]]
    return interface, {one["dst"]: one["lladdr"] for one in told}


def addresses(interface: dict[str, Any]) -> list[str]:
    return [f"{one['local']}/{one['prefixlen']}" for one in interface["addr_info"]]


@in_namespace
def test_a_plugged_nic_is_found_named_and_set_up() -> None:
    one = nic("10.0.0.1/24", "10.0.0.3/24", mtu=1400)
    interface, known = run(set_up_nic(one, {"10.0.0.2": KNOWN["10.0.0.2"]}))
    assert (interface["ifname"], interface["mtu"], interface["operstate"]) == ("eth1", 1400, "UP")
    assert addresses(interface) == ["10.0.0.1/24", "10.0.0.3/24"]
    assert known == {"10.0.0.2": KNOWN["10.0.0.2"]}


@in_namespace
def test_set_up_again_is_the_same() -> None:
    once = run(set_up_nic(nic("10.0.0.1/24"), {"10.0.0.2": MAC}))
    twice = run(*[set_up_nic(nic("10.0.0.1/24"), {"10.0.0.2": MAC})] * 2)
    assert [addresses(once[0]), once[1]] == [addresses(twice[0]), twice[1]]


@in_namespace
def test_ipv6_comes_with_the_first_ipv6_address() -> None:
    interface, known = run(set_up_nic(nic("10.0.0.1/24", "fd00::1/64"), KNOWN))
    assert addresses(interface) == ["10.0.0.1/24", "fd00::1/64"]  # and no link-local one
    assert known == KNOWN


@in_namespace
def test_a_nic_that_gets_its_first_ipv6_address_later() -> None:
    before, after = nic("10.0.0.1/24"), nic("10.0.0.1/24", "fd00::1/64")
    change = change_nic(before, after, {"10.0.0.2": MAC}, KNOWN)
    interface, known = run(set_up_nic(before, {"10.0.0.2": MAC}), "\n".join(change))
    assert addresses(interface) == ["10.0.0.1/24", "fd00::1/64"]
    assert known == KNOWN


@in_namespace
def test_a_nic_that_cloud_init_has_set_up_is_completed() -> None:
    prepare = PREPARE.replace("echo 1", "echo 0") + (
        "ip link set dev ens9 name eth1 up; ip addr add 10.0.0.1/24 dev eth1\n"
    )
    known = {"10.0.0.2": KNOWN["10.0.0.2"]}
    lines = "\n".join(complete_nic(nic("10.0.0.1/24"), known))
    interface, told = run(lines, prepare=prepare)
    assert (addresses(interface), told) == (["10.0.0.1/24"], known)  # and no link-local one


@in_namespace
def test_a_nic_that_is_not_there_is_said() -> None:
    prepare = PREPARE.replace(MAC, "52:54:00:00:00:99")
    with pytest.raises(AssertionError, match=f"no NIC has MAC {MAC}"):
        run(set_up_nic(nic(), {}).replace("seq 200", "seq 2"), prepare=prepare)


@in_namespace
def test_the_other_addresses_of_a_network_outlive_its_first() -> None:
    before = nic("10.0.0.1/24", "10.0.0.3/24", "10.1.0.1/24")
    after = nic("10.0.0.3/24", "10.1.0.1/24")
    interface, _ = run(set_up_nic(before, {}), "\n".join(change_nic(before, after, {}, {})))
    assert sorted(addresses(interface)) == ["10.0.0.3/24", "10.1.0.1/24"]


@in_namespace
def test_a_change_can_be_repeated_after_a_kill() -> None:
    before, after = nic("10.0.0.1/24", mtu=1500), nic("10.0.0.9/16", mtu=9000)
    old, new = {"10.0.0.2": MAC, "10.0.0.3": MAC}, {"10.0.0.3": "52:54:00:00:00:07"}
    change = "\n".join(change_nic(before, after, old, new))
    interface, known = run(set_up_nic(before, old), change, change)
    assert (addresses(interface), interface["mtu"], known) == (["10.0.0.9/16"], 9000, new)
