# SPDX-License-Identifier: BSD-2-Clause
# ruff: noqa: T201 (a program: it prints)
"""Build a Debian guest image with a disk: systemd, OpenSSH and cloud-init, as cloud images have.

    python3 debian.py OUT_DIR

OUT_DIR receives disk.raw, a file system without a partition table, and what QEMU boots it with:
vmlinuz, initrd.img, manifest.json. The packages are those of the running Debian, from the package
sources that this machine has. No root is needed: mmdebstrap unpacks and configures them in a user
namespace, where there is one, and genext2fs writes the file system.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path

from initramfs import ImageError
from micro import EXIT_UNFIT, UnfitError, run

PACKAGES = ("linux-image-cloud-amd64", "systemd-sysv", "udev", "dbus", "kmod", "openssh-server",
            "cloud-init", "netplan.io", "iproute2", "iputils-ping")
# Of all drivers the initramfs has those that find the disk; the rest is loaded from there.
# cloud-init does what valemgr asks of it, and no more: each module costs seconds under TCG.
FILES = {
    "initramfs-tools/conf.d/vale": "MODULES=list\n",
    "initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\n",
    "cloud/cloud.cfg.d/90_vale.cfg": "datasource_list: [NoCloud]\n"
        "cloud_init_modules: [set_hostname, users-groups, ssh]\n"
        "cloud_config_modules: []\ncloud_final_modules: []\n",
}
DISK_BYTES = 2 << 30  # as the guest sees it; the file has holes
APPEND = ("root=/dev/vda rw console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on "
          "cryptomgr.notests")
TOOLS = {"mmdebstrap": "mmdebstrap", "genext2fs": "genext2fs", "resize2fs": "e2fsprogs",
         "debugfs": "e2fsprogs"}


def sources() -> str:
    """Give the lines of a sources.list: Debian's own archives, as apt has them here."""
    lines = run("apt-get", "indextargets", "--format", "deb $(REPO_URI) $(RELEASE) $(COMPONENT)",
                "Created-By: Packages", "Origin: Debian")
    if not lines:
        raise UnfitError("apt knows no package of Debian: run apt-get update")
    return lines


def build_disk(out: Path) -> Path:
    """Install the packages into a file system in a file; without a name it counts as not made."""
    disk, listing = out / "disk.new.ext2", out / "sources.list"
    listing.write_text(sources())
    hooks = [f"--essential-hook=mkdir -p $1/etc/{Path(name).parent}; "
             f"printf %s '{text}' > $1/etc/{name}" for name, text in FILES.items()]
    hooks.append("--customize-hook=rm -f $1/etc/ssh/ssh_host_*; : > $1/etc/machine-id; "
                 "echo localhost > $1/etc/hostname; "
                 "ln -s /dev/null $1/etc/systemd/system/e2scrub_reap.service")
    print(f"images: installing {len(PACKAGES)} packages and what they need", flush=True)
    run("mmdebstrap", "--quiet", "--variant=minbase", "--format=ext2",
        f"--include={','.join(PACKAGES)}", *hooks,
        platform.freedesktop_os_release()["VERSION_CODENAME"], disk, listing)
    listing.unlink()
    os.truncate(disk, DISK_BYTES)
    run("resize2fs", disk)
    return disk


def take_kernel(disk: Path, out: Path) -> str:
    """Copy kernel and initramfs out of the file system; the kernel's release."""
    shutil.rmtree(out / "boot", ignore_errors=True)
    run("debugfs", "-R", f"rdump /boot {out}", disk)
    (kernel,) = (out / "boot").glob("vmlinuz-*")
    release = kernel.name.partition("-")[2]
    kernel.replace(out / "vmlinuz")
    (out / "boot" / f"initrd.img-{release}").replace(out / "initrd.img")
    shutil.rmtree(out / "boot")
    return release


def build(out: Path) -> None:
    """Build the disk, take the kernel out, and write last the manifest that says all is there."""
    if missing := [package for tool, package in TOOLS.items() if not shutil.which(tool)]:
        raise UnfitError(f"{missing[0]} is not installed: run make image-debian")
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    disk = build_disk(out)
    release = take_kernel(disk, out)
    disk.replace(out / "disk.raw")
    manifest = {
        "name": "debian", "disk": "disk.raw", "format": "raw", "identity": "nocloud",
        "kernel": "vmlinuz", "initrd": "initrd.img", "append": APPEND, "memory_mib": 384,
        "user": "root", "kernel_release": release,
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def main(arguments: list[str]) -> int:
    """Build the image into the given directory."""
    if len(arguments) != 1:
        print("usage: debian.py OUT_DIR", file=sys.stderr)
        return 2
    try:
        build(Path(arguments[0]).absolute())
    except (ImageError, OSError) as error:
        print(f"images: {error}", file=sys.stderr)
        return EXIT_UNFIT if isinstance(error, UnfitError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
