# SPDX-License-Identifier: BSD-2-Clause
"""Who hears whom, and what a guest is told about it: static neighbours, a NIC's settings.

A segment is a switch or a cable. Everybody on it gets everybody else's address and MAC, so that no
ARP disturbs a measurement; `neighbours: arp` of a switch leaves that to the guests.
"""

import ipaddress
import shlex
from collections.abc import Iterable, Mapping

from valemgr.topology import Lab, Nic

_FIND = """
want={mac}
find() {{
    found=
    for d in /sys/class/net/*; do
        [ "$(cat $d/address)" = $want ] && found=${{d##*/}}
    done
    [ -n "$found" ]
}}
for try in $(seq 200); do
    # Where udev gives it a name of its own, let that be done first.
    find && {{ udevadm settle || :; find; }} && break
    modprobe -aq $(cat /sys/bus/pci/devices/*/modalias /sys/bus/virtio/devices/*/modalias) || :
    sleep 0.05
done 2>/dev/null
[ -n "$found" ] || {{ echo "no NIC has MAC $want" >&2; exit 1; }}
if [ $found != {name} ]; then
    ip link set dev $found down && ip link set dev $found name {name} || exit 1
fi
"""
_IPV6 = """
c=/proc/sys/net/ipv6/conf/{name}
if [ "$(cat $c/disable_ipv6)" = 1 ]; then
    for s in addr_gen_mode=1 accept_ra=0 accept_dad=0 router_solicitations=0 disable_ipv6=0; do
        echo ${{s#*=}} > $c/${{s%=*}}
    done
fi
"""
_LINK_UP = "until grep -q up /sys/class/net/{name}/operstate; do sleep 0.05; done"


def neighbours(lab: Lab, guest: str, me: Nic) -> dict[str, str]:
    """Address to MAC of everybody else on a NIC's segment; IPv6 ones for a NIC that has IPv6."""
    if me.switch and lab.switch(me.switch).neighbours == "arp":
        return {}
    ipv6 = any(":" in address for address in me.addresses)
    return {
        host_of(address): str(nic.mac)
        for other, nic in lab.nics()
        if nic.segment == me.segment and (other.name, nic.name) != (guest, me.name)
        for address in nic.addresses
        if ipv6 or ":" not in address
    }


def host_of(address: str) -> str:
    """`10.0.0.1` of `10.0.0.1/24`."""
    return str(ipaddress.ip_interface(address).ip)


def set_up_nic(nic: Nic, known: Mapping[str, str]) -> str:
    """A shell script that gives a NIC that was just plugged its name and settings."""
    lines = [
        _FIND.format(mac=nic.mac, name=nic.name),
        *_quiet(nic),
        *change_nic(None, nic, {}, known),
    ]
    return "\n".join([*lines, _LINK_UP.format(name=nic.name)])


def complete_nic(nic: Nic, known: Mapping[str, str]) -> list[str]:
    """Shell lines for what a NIC that cloud-init has set up still lacks."""
    return [*_quiet(nic), *change_neighbours(nic.name, {}, known)]


def _quiet(nic: Nic) -> list[str]:
    """Shell lines that keep a NIC without IPv6 addresses from making itself one."""
    if any(":" in address for address in nic.addresses):
        return []
    return [f"c=/proc/sys/net/ipv6/conf/{nic.name}/disable_ipv6", "[ ! -e $c ] || echo 1 > $c"]


def change_nic(
    old: Nic | None, new: Nic, known: Mapping[str, str], wanted: Mapping[str, str]
) -> list[str]:
    """Shell lines from a NIC's present settings and neighbours to those wanted; none: no change."""
    had = old.addresses if old else ()
    lines = []
    if old is None or old.mtu != new.mtu:
        lines.append(f"ip link set dev {new.name} mtu {new.mtu} up")
    gone = [address for address in had if address not in new.addresses]
    lines += [f"ip addr del {address} dev {new.name} 2>/dev/null || :" for address in gone]
    # With the first address of a network, Linux takes the others of it: give all again.
    added = [address for address in new.addresses if gone or address not in had]
    if any(":" in address for address in added):
        lines.append(_IPV6.format(name=new.name))
    lines += [f"ip addr replace {address} dev {new.name}" for address in added]
    return [*lines, *change_neighbours(new.name, known, wanted)]


def change_neighbours(name: str, known: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Shell lines from some neighbours of an interface to others."""
    gone = [
        f"ip neigh del {address} dev {name} 2>/dev/null || :"
        for address in known
        if address not in wanted
    ]
    new = [
        f"ip neigh replace {address} lladdr {mac} dev {name} nud permanent"
        for address, mac in wanted.items()
        if known.get(address) != mac
    ]
    return gone + new


def script(lines: Iterable[str]) -> str:
    """One command for a shell that stops at the first error."""
    return f"sh -ec {shlex.quote(chr(10).join(lines))}"
