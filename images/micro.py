# SPDX-License-Identifier: BSD-2-Clause
# ruff: noqa: T201 (a program: it prints)
"""Build the micro guest: Debian's kernel and an initramfs, from packages unpacked, not installed.

    python3 micro.py OUT_DIR [PROGRAM...]

OUT_DIR receives vmlinuz, initrd.img and manifest.json; PROGRAM... go to /usr/bin of the guest.
Packages come from the package sources that this machine has, through apt-get download, as they
are now; nothing is installed and apt's configuration is only read. Shared libraries are found
by walking what the programs need through the unpacked packages, so that an update of a package
needs no change here.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from initramfs import ImageError, Tree, elf_needs, guest_path

KERNEL = "linux-image-amd64"
PACKAGES = ("busybox-static", "dash", "dropbear-bin", "ethtool", "iperf3", "iproute2", "tcpdump")
PROGRAMS = ("bin/dash", "usr/bin/dropbearconvert", "usr/bin/iperf3", "bin/ip", "sbin/tc",
            "sbin/bridge", "sbin/ethtool", "usr/sbin/ethtool", "usr/bin/tcpdump",
            "usr/sbin/dropbear")
MODULES = ("virtio_pci", "virtio_net", "virtio-rng", "virtio_balloon", "qemu_fw_cfg",
           "e1000", "e1000e", "e100", "8139cp", "8139too", "ne2k-pci", "pcnet32", "tulip",
           "vmxnet3", "xhci_pci", "rndis_host",
           "button", "evdev", "pktgen", "tun", "bridge", "veth", "vxlan", "8021q", "vhost_net")
APPEND = ("console=ttyS0 quiet panic=-1 rootfstype=ramfs mitigations=off "
          "random.trust_cpu=on cryptomgr.notests")
TOOLS = ("apt-cache", "apt-get", "dpkg-deb", "readelf", "zstd")
EXIT_UNFIT = 4


class UnfitError(ImageError):
    """This machine lacks something."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command to its end and give its output; a failure carries its last error line."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False,
                          env={**os.environ, "LC_ALL": "C"})
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise ImageError(f"{command[0]} {command[1]}: {last}")
    return done.stdout


def dependencies(packages: set[str]) -> set[str]:
    """Give the packages that these depend on directly."""
    text = run("apt-cache", "depends", "--important", *sorted(packages))
    return set(re.findall(r"^ +\|?(?:Pre)?Depends: ([^<\s]+)", text, re.MULTILINE))


def package_names() -> set[str]:
    """Name the packages to fetch: the kernel, the programs, and all libraries behind them."""
    try:
        kernel = {name for name in dependencies({KERNEL}) if name.startswith("linux-image-")}
    except ImageError as error:
        raise UnfitError(f"apt knows no package {KERNEL} ({error}): run apt-get update") from error
    names = set(PACKAGES)
    found = set(PACKAGES)
    while found:
        found = {n for n in dependencies(found) if re.match("lib|zlib", n)} - names
        names |= found
    return names | kernel


def unpack_packages(out: Path, root: Path) -> dict[str, str]:
    """Download the packages and unpack them into root; give name -> version."""
    debs = out / "packages"
    debs.mkdir(parents=True, exist_ok=True)
    names = package_names()
    print(f"micro: fetching {len(names)} packages", flush=True)
    try:
        run("apt-get", "download", "--option", "APT::Sandbox::User=root", *sorted(names), cwd=debs)
    except ImageError as error:
        raise UnfitError(f"packages cannot be fetched ({error}): check the network, "
                         "then run apt-get update") from error
    shutil.rmtree(root, ignore_errors=True)
    versions = {}
    for name in sorted(names):
        deb = max(debs.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_ctime)
        run("dpkg-deb", "--extract", deb, root)
        versions[name] = run("dpkg-deb", "--field", deb, "Version").strip()
    return versions


def add_program(tree: Tree, root: Path, path: str) -> None:
    """Add a program of the unpacked packages with the libraries that it needs."""
    source = (root / path).resolve()
    tree.copy(source, path)
    for need in elf_needs(source):
        library = need.lstrip("/") if "/" in need else f"usr/lib/x86_64-linux-gnu/{need}"
        if guest_path(library) in tree.entries:
            continue
        places = [root / library, root / library.removeprefix("usr/")]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise ImageError(f"/{path} needs {need}, which none of the fetched packages has")
        add_program(tree, root, str(found.relative_to(root)))


def add_modules(tree: Tree, root: Path, busybox: Path) -> None:
    """Add the kernel modules, what they depend on, and the indexes that modprobe reads."""
    (source,) = (root / "lib/modules").iterdir()
    known = {path.stem.replace("-", "_"): path for path in source.rglob("*.ko")}
    trimmed = root / "trimmed/lib/modules" / source.name
    waiting = [name.replace("-", "_") for name in MODULES]
    while waiting:
        path = known[waiting.pop()]
        target = trimmed / path.relative_to(source)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            depends = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
            waiting += [n.replace("-", "_") for n in depends[1].decode().split(",") if n] \
                if depends else []
    run(busybox, "depmod", "-b", root / "trimmed", source.name)
    for path in sorted(trimmed.rglob("*")):
        if path.is_file():
            tree.copy(path, str(path.relative_to(root / "trimmed")))


def add_system(tree: Tree, root: Path, files: Path) -> Path:
    """Add directories, devices, busybox and our own files; give the unpacked busybox."""
    for name, target in (("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"),
                         ("lib64", "usr/lib64")):
        tree.link(name, target)
    for name in ("dev", "proc", "sys", "run", "mnt", "var/log", "etc/dropbear"):
        tree.directory(name)
    tree.directory("root", 0o700)
    tree.directory("tmp", 0o1777)
    tree.character_device("dev/console", 5, 1)
    busybox = root / "bin/busybox"
    tree.copy(busybox, "usr/bin/busybox")
    for path in sorted(files.rglob("*")):
        if path.is_file() and path.suffix != ".c":
            tree.copy(path, str(path.relative_to(files)))
    return busybox


def build_tree(root: Path, programs: list[Path]) -> Tree:
    """Put the whole guest together."""
    tree = Tree()
    busybox = add_system(tree, root, Path(__file__).parent / "micro")
    for program in programs:
        tree.copy(program, f"usr/bin/{program.name}")
    for path in PROGRAMS:
        if (root / path).exists():
            add_program(tree, root, path)
    add_modules(tree, root, busybox)
    tree.link("usr/bin/sh", "dash")
    for applet in run(busybox, "--list").split():
        if not {f"usr/bin/{applet}", f"usr/sbin/{applet}"} & tree.entries.keys():
            tree.link(f"usr/bin/{applet}", "busybox")
    return tree


def unpack_kernel(image: bytes) -> bytes:
    """Take the ELF kernel out of a bzImage (Documentation/arch/x86/boot.rst).

    QEMU starts it by its PVH entry, which saves the guest seconds of decompression under TCG.
    """
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start:start + length]
    if not payload.startswith(b"\xfd7zXZ"):
        raise ImageError("the kernel is not compressed with xz: use Debian 12's linux-image-amd64")
    return lzma.LZMADecompressor().decompress(payload)


def compress(archive: bytes) -> bytes:
    """Compress an archive, zero-padded so that another archive can be appended.

    The small window is what the kernel must have in memory while it unpacks; of the compressions
    it knows, this one leaves a guest of 128 MiB the most and costs 0.25 s of boot under TCG.
    """
    done = subprocess.run(["zstd", "-q", "-19", "--zstd=wlog=17", "-c"], input=archive,
                          capture_output=True, check=True)
    return done.stdout + b"\0" * (-len(done.stdout) % 512)


def build(out: Path, programs: list[Path]) -> None:
    """Build kernel, initramfs and, last, the manifest that says that all is there."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise UnfitError(f"{missing[0]} is not installed: run make deps")
    root = out / "root"
    versions = unpack_packages(out, root)
    print("micro: packing kernel and initramfs", flush=True)
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    files = {"vmlinuz": unpack_kernel(kernel.read_bytes()),
             "initrd.img": compress(build_tree(root, programs).cpio())}
    for name, data in files.items():
        (out / name).write_bytes(data)
    manifest = {
        "name": "micro", "kernel": "vmlinuz", "initrd": "initrd.img", "append": APPEND,
        "memory_mib": 128, "user": "root", "ready": "vale: ready",
        "kernel_release": kernel.name.partition("-")[2],
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "bytes": {name: len(data) for name, data in files.items()},
        "packages": versions,
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(root)


def main(arguments: list[str]) -> int:
    """Build the image into the given directory."""
    if not arguments:
        print("usage: micro.py OUT_DIR [PROGRAM...]", file=sys.stderr)
        return 2
    try:
        build(Path(arguments[0]).absolute(), [Path(name) for name in arguments[1:]])
    except (ImageError, OSError) as error:
        print(f"micro: {error}", file=sys.stderr)
        return EXIT_UNFIT if isinstance(error, UnfitError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
