# SPDX-License-Identifier: BSD-2-Clause
"""Addresses for NICs that ask for none: static, and the same whenever the file is read.

    198.18.0.0/16    a /24 for each switch or cable, in the order in which guests' NICs name them
    198.19.0.0/16    a /30 for each link, in the file's order

Hosts are numbered in the file's order. Where others of the segment have an IPv4 address of their
own, it is the next free one of that network. So what is appended to a file renumbers nothing.
"""

import ipaddress
from collections.abc import Iterator
from itertools import islice

from valemgr.draft import Draft, Sheet, Wires

SWITCH_POOL = ipaddress.IPv4Network("198.18.0.0/16")
LINK_POOL = ipaddress.IPv4Network("198.19.0.0/16")
MGMT_HOST = ipaddress.IPv4Address("10.0.2.2")  # where SSH comes from, as a guest sees it

Network = ipaddress.IPv4Network


def assign(sheet: Sheet, wires: Wires) -> None:
    """Give addresses to all that have None; note those that clash."""
    for segment, number in _segments(wires):
        explicit = [face for one in segment for face in _ipv4(one)]
        asking = [one for one in segment if one.addresses is None]
        if not asking:
            continue
        network = explicit[0].network if explicit else _pool(sheet, segment[0], number)
        if network:
            _number(sheet, asking, network, {face.ip for face in explicit})
    _check_twins(sheet, wires)
    _check_management(sheet, wires)


def _segments(wires: Wires) -> Iterator[tuple[list[Draft], int]]:
    """NICs that hear each other, and the segment's number among its kind."""
    switches: dict[str, list[Draft]] = {}
    for one in wires:
        if one.segment and one.link is None:
            switches.setdefault(one.segment, []).append(one)
    for number, drafts in enumerate(switches.values()):
        yield drafts, number
    for number, link in enumerate(wires.links):
        if link:
            yield list(link), number


def _ipv4(one: Draft) -> list[ipaddress.IPv4Interface]:
    faces = map(ipaddress.ip_interface, one.addresses or ())
    return [face for face in faces if isinstance(face, ipaddress.IPv4Interface)]


def _pool(sheet: Sheet, first: Draft, number: int) -> Network | None:
    pool, length = (SWITCH_POOL, 24) if first.link is None else (LINK_POOL, 30)
    step = 1 << (32 - length)
    if number >= pool.num_addresses // step:
        sheet.note(first.path, f"{pool} has no network left for {first.end}", "give it addresses")
        return None
    return Network((int(pool.network_address) + number * step, length))


def _number(
    sheet: Sheet, asking: list[Draft], network: Network, taken: set[ipaddress.IPv4Address]
) -> None:
    free = (host for host in network.hosts() if host not in taken)
    hosts = list(islice(free, len(asking)))
    for one, host in zip(asking, hosts, strict=False):
        one.addresses = (f"{host}/{network.prefixlen}",)
    for one in asking[len(hosts) :]:
        sheet.note(one.path, f"{network} has no address left for {one.end}", "give it addresses")


def _check_twins(sheet: Sheet, wires: Wires) -> None:
    """An address once on a segment, and once in a guest."""
    seen: dict[tuple[str, str], Draft] = {}
    for one in wires:
        for index, address in enumerate(one.addresses or ()):
            host = address.partition("/")[0]
            other = seen.get((one.segment, host)) or seen.get((f"guest {one.guest}", host))
            if other:
                first = f"of {other.end} already, in line {sheet.line(_address_path(other))}"
                path = (*_address_path(one), index)
                sheet.note(path, f"address {host} of {one.end} is that {first}", "use another")
            for place in (one.segment, f"guest {one.guest}"):
                seen.setdefault((place, host), one)


def _check_management(sheet: Sheet, wires: Wires) -> None:
    for one in wires:
        for index, face in enumerate(_ipv4(one)):
            if MGMT_HOST in face.network and face.network.prefixlen >= 24:
                message = f"{face} of {one.end} hides the management network"
                sheet.note((*_address_path(one), index), message, "10.0.2.0/24 is in every guest")


def _address_path(one: Draft) -> tuple[str | int, ...]:
    return (*one.path, "addresses")
