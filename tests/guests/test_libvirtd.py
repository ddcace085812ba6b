# SPDX-License-Identifier: BSD-2-Clause
"""lib/libvirtd.py: what tests of libvirt rely on, and that nothing of it is left."""

import os
from pathlib import Path

import pytest

from lib.guest import MICRO
from lib.libvirtd import MARKS, Libvirtd, domain
from lib.place import pids_with
from lib.valed import eventually

pytestmark = MARKS

QEMU = ["pgrep", "-f", "guest=vale-test-d"]
MACHINE = ["/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"]
MACHINE += ["/run/libvirt", "/run/libvirtd.pid"]


def files() -> list[object]:
    """What the machine has where a libvirtd leaves something, and whose the images are."""
    left = sorted(path for top in MACHINE for path in [Path(top), *Path(top).rglob("*")])
    images = [(path.stat().st_uid, os.listxattr(path)) for path in sorted(MICRO.iterdir())]
    return [*left, *images]


@pytest.mark.parametrize("user", ["root", "libvirt-qemu", "somebody"])
def test_a_domain_outlives_libvirtd_and_nothing_outlives_the_end(tmp_path: Path, user: str) -> None:
    session = user == "somebody"
    before = files()
    xml = tmp_path / "d.xml"
    xml.write_text(domain("vale-test-d"))
    with Libvirtd.make(tmp_path, user=user, session=session) as libvirtd:
        assert libvirtd.run("id", "-un").stdout == ("somebody\n" if session else "root\n")
        libvirtd.virsh("create", xml)
        console = libvirtd.outside("/run/vale-test-d.console")
        eventually("console", lambda: "ACPI" in console.read_text("latin-1"), 90)
        qemu = pids_with("guest=vale-test-d")
        pid = libvirtd.run(*QEMU).stdout.strip()
        assert libvirtd.run("ps", "-o", "user:20=", "-p", pid).stdout.strip() == user
        for sig in ("TERM", "KILL"):
            libvirtd.restart(sig)
            assert "running" in libvirtd.virsh("domstate", "vale-test-d")
        assert pids_with("guest=vale-test-d") == qemu
    assert pids_with("guest=vale-test-d") == []
    assert files() == before
