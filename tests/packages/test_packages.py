# SPDX-License-Identifier: BSD-2-Clause
"""The Debian packages, in a fresh Debian: they install, work and go without a trace.

The folder is made by debootstrap from the system's own mirror, with the system's apt configuration,
and entered with namespaces of its own. Needs root and some minutes: `make test-all`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEBS = sorted((ROOT / "build/deb").glob("*.deb"))
PACKAGES = ["valed", "libvale-dev", "vale-qemu", "valemgr", "vale-images"]
# What apt and Python are told about mirrors, and whom to trust.
CONFIGURATION = [
    "etc/apt",
    "etc/ssl/certs",
    "usr/share/ca-certificates",
    "usr/local/share",
    "usr/share/keyrings",
    "etc/hosts",
    "etc/resolv.conf",
]

pytestmark = [
    pytest.mark.blackbox,
    pytest.mark.skipif(not os.environ.get("VALE_PACKAGES"), reason="long: make test-all"),
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap needs root"),
    pytest.mark.skipif(len(DEBS) != len(PACKAGES), reason="no packages: run 'make deb'"),
]

USE = r"""
set -eux
valed --version
mkdir -m 700 /tmp/run; export VALE_RUNDIR=/tmp/run
valed --rundir /tmp/run & pid=$!
until valectl list; do kill -0 $pid; sleep 0.1; done
vale-pktgen -i vale1:b -f rx -n 5000 --seq --seconds 60 --json > /tmp/rx 2> /tmp/rx.err & rx=$!
until grep ready /tmp/rx.err; do kill -0 $rx; sleep 0.1; done
vale-pktgen -i vale1:a -f tx -n 5000 -R 20000 --seq
wait $rx
grep '"packets": 5000' /tmp/rx

# QEMU: a netdev without a guest, and a machine that finds its firmware without being told where.
printf '%s\n' '{"execute": "qmp_capabilities"}' '{"execute": "qom-get", "arguments":
    {"path": "/netmap/n", "property": "state"}}' '{"execute": "quit"}' |
    qemu-system-x86_64-vale -machine none -nodefaults -display none -qmp stdio \
        -netdev netmap,id=n,ifname=vale1:q > /tmp/qmp
grep '"return": "connected"' /tmp/qmp
echo quit | qemu-system-x86_64-vale -machine pc -S -display none -accel tcg -monitor stdio \
    -net nic -net netmap,ifname=vale1:q > /tmp/qemu 2>&1
if grep -iE 'could not|failed to' /tmp/qemu; then exit 1; fi

# libvale: a program is built and opens a port.
apt-get install -y -q --no-install-recommends gcc pkg-config > /dev/null
cat > /tmp/x.c << 'C'
#include <libvale.h>
#include <stdio.h>
int main(void)
{
    struct vale_error err;
    struct vale_port *port = vale_open(&(struct vale_open_args){.name = "vale1:c"}, &err);
    puts(port ? port->name : err.text);
    return !port;
}
C
gcc -o /tmp/x /tmp/x.c $(pkg-config --cflags --libs vale)
test "$(/tmp/x)" = vale1:c

# valemgr: two guests on a switch, measured.
valemgr --version
valemgr doctor || test $? = 4
valemgr pair vale2 --seconds 1 --frame 64
kill $pid
wait $pid
"""

PURGE = f"""
set -eu
for package in {" ".join(PACKAGES)}; do
    dpkg -L $package | while read -r path; do
        [ -d "$path" ] && [ ! -L "$path" ] || echo "$path"
    done
done > /tmp/files
test $(wc -l < /tmp/files) -gt 100
apt-get purge -y -q {" ".join(PACKAGES)} > /tmp/purge.log
while read -r path; do if [ -e "$path" ]; then echo "left: $path"; exit 1; fi; done < /tmp/files
test ! -e /usr/lib/valemgr
"""


class Debian:
    """A folder with a Debian, and how commands run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        suite = subprocess.run(
            [". /etc/os-release; echo $VERSION_CODENAME"],
            shell=True,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        mirror = subprocess.run(
            [
                "apt-get",
                "indextargets",
                "--format",
                "$(REPO_URI)",
                "Created-By: Packages",
                f"Release: {suite}",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()[0]
        self.call(
            "debootstrap",
            "--variant=minbase",
            "--include=ca-certificates",
            suite,
            str(folder),
            mirror,
        )
        (folder / "etc/apt/sources.list").unlink(missing_ok=True)
        for name in CONFIGURATION:
            self.take(name)

    def take(self, name: str) -> None:
        """Copy a file or folder of this system to the same place."""
        source, target = (Path("/") / name).resolve(), self.folder / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            self.call("cp", "-aT", "--remove-destination", str(source), str(target))

    @staticmethod
    def call(*argv: str) -> None:
        print("+", *argv, flush=True)
        subprocess.run(argv, check=True)

    def run(self, script: str) -> None:
        """Run a shell script in it; its processes end with it."""
        self.call(
            "unshare",
            "--mount",
            "--pid",
            "--ipc",
            "--fork",
            "--kill-child",
            f"--mount-proc={self.folder}/proc",
            "chroot",
            str(self.folder),
            "/usr/bin/env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
            "DEBIAN_FRONTEND=noninteractive",
            "sh",
            "-c",
            f"mount -t tmpfs none /dev/shm 2>/dev/null || true\n{script}",
        )


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debian]:
    folder = tmp_path_factory.mktemp("debian")
    try:
        made = Debian(folder / "root")
        for deb in DEBS:
            shutil.copy(deb, made.folder / "tmp")
        yield made
    finally:
        shutil.rmtree(folder)


def test_lintian_has_no_errors() -> None:
    Debian.call("lintian", "--fail-on", "error", *map(str, DEBS))


def test_packages_work_and_go(debian: Debian) -> None:
    debian.run(
        "apt-get update -q > /dev/null && apt-get install -y -q /tmp/*.deb > /tmp/log 2>&1"
        " || { tail -n 30 /tmp/log; exit 1; }"
    )
    debian.run(USE)
    debian.run(PURGE)
