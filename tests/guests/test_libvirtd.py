# SPDX-License-Identifier: BSD-2-Clause
"""lib/libvirtd.py: what tests of libvirt rely on, and that nothing of it is left."""

from pathlib import Path

import pytest

from lib.libvirtd import MARKS, Libvirtd, domain
from lib.place import pids_with
from lib.valed import eventually

pytestmark = MARKS

MACHINE = ["/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"]
MACHINE += ["/run/libvirt", "/run/libvirtd.pid"]


def files() -> list[Path]:
    """What the machine has where a libvirtd leaves something."""
    return sorted(path for top in MACHINE for path in [Path(top), *Path(top).rglob("*")])


@pytest.mark.parametrize("session", [False, True], ids=["system", "session"])
def test_a_domain_outlives_libvirtd_and_nothing_outlives_the_end(
    tmp_path: Path, session: bool
) -> None:
    before = files()
    xml = tmp_path / "d.xml"
    xml.write_text(domain("vale-test-d"))
    with Libvirtd.make(tmp_path, session=session) as libvirtd:
        assert libvirtd.run("id", "-u").stdout == ("1000\n" if session else "0\n")
        libvirtd.virsh("create", xml)
        console = libvirtd.outside("/run/vale-test-d.console")
        eventually("boot", lambda: "vale: ready" in console.read_text("latin-1"), 90)
        qemu = pids_with("guest=vale-test-d")
        for sig in ("TERM", "KILL"):
            libvirtd.restart(sig)
            assert "running" in libvirtd.virsh("domstate", "vale-test-d")
        assert pids_with("guest=vale-test-d") == qemu
    assert pids_with("guest=vale-test-d") == []
    assert files() == before
