# SPDX-License-Identifier: BSD-2-Clause
"""The micro-frr image: a router with a firewall, and its neighbour, on one switch.

    r1 lo 10.1.1.1                      r2 ── veth ── 10.2.2.2 host (a network namespace of r2)
       vale0 ── vale1:r1 ── [ vale1 ] ── vale1:r2 ── vale0

r2 announces the host's network by OSPF; what r1 sends there, r2 forwards, unless nft forbids it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.guest import MARKS, MICRO_FRR, VALE_QEMU, Guest, netmap
from lib.valed import Valed, eventually

MINUTES = 120  # for an answer of guests under TCG on a loaded machine
PINGS = 3

pytestmark = [
    *MARKS,
    pytest.mark.skipif(not VALE_QEMU.exists(), reason=f"no {VALE_QEMU}: run 'make qemu'"),
    pytest.mark.skipif(
        not (MICRO_FRR / "manifest.json").exists(), reason=f"no {MICRO_FRR}: run 'make image'"
    ),
]

OSPF = """
interface {loopback}
 ip ospf area 0
!
interface vale0
 ip ospf area 0
 ip ospf network point-to-point
 ip ospf hello-interval 1
 ip ospf dead-interval 20
!
router ospf
 ospf router-id {router}
!
"""
R1 = "interface lo\n ip address 10.1.1.1/32\n!" + OSPF.format(loopback="lo", router="1.1.1.1")
R2 = OSPF.format(loopback="inside", router="2.2.2.2")
HOST = """
    ip netns add host && ip link add inside type veth peer name eth0 netns host &&
    ip addr add 10.2.2.1/24 dev inside && ip link set inside up &&
    ip -n host addr add 10.2.2.2/24 dev eth0 && ip -n host link set eth0 up &&
    ip -n host route add default via 10.2.2.1
"""
FIREWALL = """
table inet firewall {
    chain forward {
        type filter hook forward priority filter
        ct state established,related accept
        iif vale0 icmp type echo-request counter drop
    }
}
"""


class Boot:
    """Guests of micro-frr."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Guest] = []

    def __call__(self, *netdevs: list[list[str]]) -> list[Guest]:
        """r1, r2 and so on, with these NICs, all booting at once."""
        for number, nics in enumerate(netdevs, start=1):
            name = f"r{number}"
            self.made.append(
                Guest(self.folder, name, number, nics, qemu=VALE_QEMU, image=MICRO_FRR)
            )
        for guest in self.made:
            guest.connect()
        return self.made


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    guests = Boot(tmp_path)
    yield guests
    for guest in guests.made:
        guest.close()


def set_up(guest: Guest, config: str) -> None:
    guest.write_file("/etc/frr/frr.conf", config.encode())
    guest.run("frr start")


def has_route(guest: Guest, prefix: str) -> bool:
    """Whether OSPF has given it one, and the kernel has it, too."""
    routes = json.loads(guest.run(f"vtysh -c 'show ip route {prefix} json'"))
    return any(r["protocol"] == "ospf" and r.get("installed") for r in routes.get(prefix, []))


def failure(guest: Guest, command: str) -> str:
    """The one line of a command that must fail."""
    _, stdout, stderr = guest.ssh.exec_command(command, timeout=MINUTES)
    said: str = stderr.read().decode()
    assert stdout.channel.recv_exit_status() == 1, said
    assert said.count("\n") == 1
    return said


def test_routers_find_each_other_and_one_has_a_firewall(valed: Valed, boot: Boot) -> None:
    r1, r2 = boot([netmap(valed.rundir, "vale1:r1")], [netmap(valed.rundir, "vale1:r2")])
    r2.run(HOST)
    set_up(r1, R1)
    set_up(r2, R2)
    eventually("r1 learns the host", lambda: has_route(r1, "10.2.2.0/24"), MINUTES)
    eventually("r2 learns r1", lambda: has_route(r2, "10.1.1.1/32"), MINUTES)

    ping = f"ping -c {PINGS} -i 0.2 -I 10.1.1.1 10.2.2.2"
    assert f"{PINGS} packets received" in r1.run(f"{ping} -W 20")

    r2.write_file("/etc/firewall", FIREWALL.encode())
    r2.run("nft -f /etc/firewall")
    assert ", 0 packets received" in r1.run(f"{ping} -W 1 || true")
    rules = json.loads(r2.run("nft -j list chain inet firewall forward"))["nftables"]
    (counter,) = [
        part["counter"] for entry in rules for part in entry.get("rule", {}).get("expr", [])
        if "counter" in part
    ]  # fmt: skip
    assert counter["packets"] == PINGS
    answers = r2.run(f"ip netns exec host ping -c {PINGS} -i 0.2 -W 20 10.1.1.1")
    assert f"{PINGS} packets received" in answers  # asked from inside

    r2.run("nft flush ruleset")
    assert f"{PINGS} packets received" in r1.run(f"{ping} -W 20")
    r1.run("frr stop")
    assert "proto ospf" not in r1.run("ip route")
    eventually("r2 forgets r1", lambda: not has_route(r2, "10.1.1.1/32"), MINUTES)


def test_frr_starts_what_its_configuration_needs(boot: Boot) -> None:
    (r1,) = boot([])
    daemons = "vtysh -c 'show daemons'"
    r1.run("frr start")
    assert r1.run(daemons).split() == ["zebra", "staticd"]
    assert r1.run("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding") == (
        "1\n1\n"
    )
    config = """
        router bgp 65001
         neighbor 10.0.2.2 remote-as 65002
         neighbor 10.0.2.2 bfd
        !
        router isis one
         net 49.0001.0000.0000.0001.00
        !
        router ospf6
        !
        router rip
        !"""
    r1.write_file("/etc/frr/daemons", b"ospfd=yes\nripngd=no\n")
    set_up(r1, "\n".join(line.removeprefix(" " * 8) for line in config.splitlines()))
    assert set(r1.run(daemons).split()) == {
        "zebra", "staticd", "bfdd", "bgpd", "isisd", "ospfd", "ospf6d", "ripd",
    }  # fmt: skip
    assert "65002" in r1.run("vtysh -c 'show bgp summary'")
    memory = dict(line.split(":") for line in r1.run("cat /proc/meminfo").splitlines())
    assert int(memory["MemAvailable"].split()[0]) > 16 * 1024

    r1.write_file("/etc/frr/frr.conf", b"router ospf\n router-id nonsense\n!\n")
    assert failure(r1, "frr reload").startswith("frr: frr.conf: line 2: % Unknown command")
    assert "/usr/lib/frr/" not in r1.run("ps")
    r1.run("rm /usr/lib/frr/ospfd")
    assert failure(r1, "frr start").startswith("frr: ospfd does not start: ")


def test_shaping_and_devices_need_no_modprobe(boot: Boot) -> None:
    (r1,) = boot([])
    r1.run("ip link add d0 type dummy && ip link set d0 up")
    for discipline in ("netem delay 5ms 1ms distribution normal loss 1%", "htb", "fq", "sfq",
                       "tbf rate 1mbit burst 10kb latency 50ms"):  # fmt: skip
        r1.run(f"tc qdisc replace dev d0 root {discipline}")
        assert f"qdisc {discipline.split()[0]} " in r1.run("tc qdisc show dev d0")
    for device in ("vrf table 10", "gre local 10.0.2.15 remote 10.0.2.2", "bridge", "ifb"):
        r1.run(f"ip link add x type {device} && ip link del x")
