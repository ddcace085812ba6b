# SPDX-License-Identifier: BSD-2-Clause
"""NICs on VALE ports for domains that somebody else made.

domain a ── NIC attached ── vale1:a ── [ vale1 ] ── vale1:b ── NIC attached ── domain b
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib import libvirtd as private
from lib.domains import DomainGuest, Place
from lib.guest import BUILD, QEMU
from lib.libvirtd import SECONDS, Libvirtd
from lib.trace import Trace

A, B = "52:54:00:02:00:0a", "52:54:00:02:00:0b"
PINGS = 5
CYCLES = 50

# What `attach` and `detach` do, so often in one program that what they leave would show.
LOOP = f"""
import asyncio
from valemgr.names import parse_port
from valemgr.virt.attach import Scope, attach, detach
from valemgr.virt.connection import connect

async def main():
    port = parse_port("vale1:a")
    async with connect() as libvirt:
        for _ in range({CYCLES}):
            await attach(libvirt, "a", port, Scope(live=True, config=True), print)
            await detach(libvirt, "a", port, Scope(live=True, config=True), print)

asyncio.run(main())
"""

pytestmark = private.MARKS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Libvirtd.make(tmp_path_factory.mktemp("v")) as libvirtd:
        yield Place(libvirtd)


@pytest.fixture(scope="module")
def guests(place: Place) -> Iterator[tuple[DomainGuest, DomainGuest]]:
    """Two that run, without a NIC on a port, on our QEMU and on the distribution's."""
    stock = DomainGuest(place.libvirtd, "b", 2, emulator=QEMU)
    both = DomainGuest(place.libvirtd, "a", 1), stock
    for guest in both:
        guest.define()
        place.libvirtd.virsh("start", guest.name)
    for guest in both:
        guest.connect()
    yield both
    for guest in both:
        guest.close()
        place.libvirtd.virsh("destroy", guest.name)
        place.libvirtd.virsh("undefine", guest.name)


def ping(one: DomainGuest, other: str) -> None:
    assert f"{PINGS} packets received" in one.run(f"ping -c {PINGS} -i 0.1 -W 20 {other}")


def test_attach_live_and_config(place: Place, guests: tuple[DomainGuest, DomainGuest]) -> None:
    a, b = guests
    said = place.libvirt("attach", "a", "vale1:a", "--mac", A)
    assert "domain a: plugged into vale1:a" in said
    assert "starts with a NIC on vale1:a from now on" in said
    place.libvirt("attach", "b", "vale1:b", "--live", "--mac", B)
    a.set_up(A, "198.18.5.1")
    b.set_up(B, "198.18.5.2")
    ping(a, "198.18.5.2")
    rows = {row["port"]: row for row in place.nics()}
    assert set(rows) == {"vale1:a", "vale1:b"}
    assert rows["vale1:a"] | {"when": "live, config", "link": "connected"} == rows["vale1:a"]
    assert (rows["vale1:b"]["when"], rows["vale1:b"]["mac"]) == ("live", B)
    assert rows["vale1:a"]["rx_frames"] >= PINGS
    assert rows["vale1:b"]["tx_frames"] >= PINGS
    for xml in (place.xml("a"), place.xml("a", "--inactive")):
        assert f'<vale:port switch="vale1" name="a" mac="{A}"/>' in xml
        assert "/run/vale/vale1:a" in xml
    assert "vale:ports" not in place.xml("b", "--inactive")
    place.libvirt("attach", "b", "vale1:b", "--config")  # the other half has the same MAC
    [row] = [row for row in place.nics() if row["port"] == "vale1:b"]
    assert (row["when"], row["mac"]) == ("live, config", B)

    said = place.libvirt("move", "a", "vale1:a", "vale2:x")
    assert "moved from vale1:a to vale2:x" in said
    place.libvirt("move", "b", "vale1:b", "vale2:y")
    a.set_up(A, "198.18.5.1")
    b.set_up(B, "198.18.5.2")
    ping(b, "198.18.5.1")
    assert {(row["port"], row["when"]) for row in place.nics()} == {
        ("vale2:x", "live, config"),
        ("vale2:y", "live, config"),
    }

    assert "unplugged from vale2:x" in place.libvirt("detach", "a", "vale2:x")
    place.libvirt("detach", "b", "vale2:y")
    assert a.nics() == b.nics() == 0
    assert place.nics() == []
    assert "vale:ports" not in place.xml("a", "--inactive") + place.xml("a") + place.xml("b")


def test_fifty_times_leave_nothing(place: Place, guests: tuple[DomainGuest, DomainGuest]) -> None:
    a, _ = guests
    place.libvirt("attach", "a", "vale1:a")  # what a first time leaves behind stays
    place.libvirt("detach", "a", "vale1:a")
    pid = int(place.libvirtd.outside("/run/libvirt/qemu/a.pid").read_text())
    before = Trace.of(qemu_outside(place, pid))
    place.libvirtd.run(BUILD / "venv/bin/python", "-c", LOOP, ok=True, timeout=10 * SECONDS)
    assert Trace.of(qemu_outside(place, pid)) == before
    assert a.nics() == 0
    assert place.nics() == []
    assert not re.search(r"BUG|WARNING|Oops", a.run("dmesg"))


def qemu_outside(place: Place, inside: int) -> int:
    """The pid outside of a process that has this one in its own PID namespace."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            found = re.search(r"^NSpid:\s+(\d+)\s+(\d+)", status.read_text(), re.M)
        except OSError:
            continue
        if found and int(found[2]) == inside and _is_below(int(found[1]), place.libvirtd.pid):
            return int(found[1])
    raise AssertionError(f"no process {inside} inside")


def _is_below(pid: int, first: str) -> bool:
    ours, theirs = (Path(f"/proc/{each}/ns/pid").readlink() for each in (pid, first))
    return ours == theirs


def test_what_a_running_domain_lacks(place: Place) -> None:
    """It is refused, and not touched; --config adds what is missing, and the next start has it."""
    plain = DomainGuest(place.libvirtd, "plain", 3, more="", spare=0, arguments=())
    plain.define()
    plain.start()
    before = place.xml("plain"), place.xml("plain", "--inactive")
    said = place.libvirt("attach", "plain", "vale1:p", code=4)
    assert "runs without shared memory and vectors=0" in said
    assert "'valemgr libvirt attach plain vale1:p --config' adds it" in said
    assert (place.xml("plain"), place.xml("plain", "--inactive")) == before
    assert place.nics() == []

    said = place.libvirt("attach", "plain", "vale1:p", "--config")
    assert "with shared memory and 2 root ports and vectors=0 for its virtio NICs" in said
    assert place.xml("plain") == before[0]
    plain.close()
    place.libvirtd.virsh("destroy", "plain")
    # Without the hook somebody else makes the port.
    valectl = BUILD / "bin/valectl"
    with place.valed():
        place.libvirtd.run(valectl, "add", "vale1:p", "--vhost-user", "/run/vale/vale1:p", ok=True)
        plain.start()
        assert plain.nics() == 1
        [row] = place.nics()
        assert (row["port"], row["link"], row["when"]) == ("vale1:p", "connected", "live, config")
        place.libvirt("attach", "plain", "vale1:q", "--live")  # there are root ports to spare now
        place.libvirt("attach", "plain", "vale1:r", "--live")
        said = place.libvirt("attach", "plain", "vale1:s", "--live", code=4)
        assert "domain plain runs without a free root port:" in said
        assert plain.nics() == 3
        place.libvirtd.virsh("destroy", "plain")
    plain.close()
    place.libvirtd.virsh("undefine", "plain")
