# SPDX-License-Identifier: BSD-2-Clause
# ruff: noqa: T201 (a program: it prints)
"""Build the guest images: Debian's kernel and initramfs, from packages unpacked, not installed.

    python3 micro.py OUT_DIR [PROGRAM...]

OUT_DIR/NAME receives initrd.img and manifest.json of each image of IMAGES, OUT_DIR/micro also the
kernel of them all; PROGRAM... go to /usr/bin of every guest. Packages come from the package
sources that this machine has, through apt-get download, as they are now; nothing is installed and
apt's configuration is only read. Shared libraries are found by walking what the programs need
through the unpacked packages, so that an update of a package needs no change here.
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
from dataclasses import dataclass
from pathlib import Path

from initramfs import ImageError, Tree, elf_needs, elf_runpath, guest_path

KERNEL = "linux-image-amd64"
LIBRARIES = "/usr/lib/x86_64-linux-gnu"


@dataclass(frozen=True)
class Recipe:
    """What an image is made of."""

    name: str
    memory_mib: int
    packages: tuple[str, ...]
    files: tuple[str, ...]    # of the packages, if there; programs bring their libraries along
    modules: tuple[str, ...]  # bring those that they need along
    ours: tuple[str, ...]     # folders beside this program; what is in two is taken from the last


MICRO = Recipe(
    "micro", 128,
    packages=("busybox-static", "dash", "dropbear-bin", "ethtool", "iperf3", "iproute2", "tcpdump"),
    files=("bin/dash", "usr/bin/dropbearconvert", "usr/bin/iperf3", "bin/ip", "sbin/tc",
           "sbin/bridge", "sbin/ethtool", "usr/sbin/ethtool", "usr/bin/tcpdump",
           "usr/sbin/dropbear"),
    modules=("virtio_pci", "virtio_net", "virtio-rng", "virtio_balloon", "qemu_fw_cfg",
             "e1000", "e1000e", "e100", "8139cp", "8139too", "ne2k-pci", "pcnet32", "tulip",
             "vmxnet3", "xhci_pci", "rndis_host",
             "button", "evdev", "pktgen", "tun", "bridge", "veth", "vxlan", "8021q", "vhost_net"),
    ours=("micro",),
)
MICRO_FRR = Recipe(
    "micro-frr", 192,
    packages=(*MICRO.packages, "frr", "ncurses-base", "nftables"),
    files=(*MICRO.files, "usr/bin/vtysh",
           *(f"usr/lib/frr/{daemon}" for daemon in (
               "zebra", "staticd", "bfdd", "bgpd", "ospfd", "ospf6d", "isisd", "ripd",
               "ripngd")),
           "usr/sbin/nft",
           *(f"{LIBRARIES}/tc/{name}.dist" for name in ("normal", "pareto", "paretonormal")),
           *(f"lib/terminfo/{name[0]}/{name}" for name in (
               "linux", "screen", "tmux", "vt100", "vt220", "xterm", "xterm-256color"))),
    modules=(*MICRO.modules,
             "crc32c_generic",  # nf_tables asks for it without saying so
             "nf_tables", "nft_chain_nat", "nft_connlimit", "nft_ct", "nft_fib_inet", "nft_hash",
             "nft_limit", "nft_log", "nft_masq", "nft_meta_bridge", "nft_nat", "nft_numgen",
             "nft_objref", "nft_quota", "nft_redir", "nft_reject_bridge", "nft_reject_inet",
             "nf_conntrack_bridge", "nf_log_syslog",
             "sch_fq", "sch_htb", "sch_ingress", "sch_netem", "sch_prio", "sch_red", "sch_sfq",
             "sch_tbf", "cls_flower", "cls_fw", "cls_matchall", "cls_u32", "act_mirred",
             "act_police", "ifb", "dummy", "ip6_gre", "ip6_tunnel", "ip_gre", "ipip", "sit", "vrf"),
    ours=("micro", "micro-frr"),
)
IMAGES = (MICRO, MICRO_FRR)
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


def package_names(recipe: Recipe) -> set[str]:
    """Name the packages of an image: the kernel, the programs, and all libraries behind them."""
    try:
        kernel = {name for name in dependencies({KERNEL}) if name.startswith("linux-image-")}
    except ImageError as error:
        raise UnfitError(f"apt knows no package {KERNEL} ({error}): run apt-get update") from error
    names = set(recipe.packages)
    found = set(recipe.packages)
    while found:
        found = {n for n in dependencies(found) if re.match("lib|zlib", n)} - names
        names |= found
    return names | kernel


def unpack_packages(names: set[str], debs: Path, root: Path) -> dict[str, str]:
    """Download the packages and unpack them into root; give name -> version."""
    debs.mkdir(parents=True, exist_ok=True)
    print(f"images: fetching {len(names)} packages", flush=True)
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


def add_file(tree: Tree, root: Path, path: str) -> None:
    """Add a file of the unpacked packages, a program with the libraries that it needs."""
    source = (root / path).resolve()
    tree.copy(source, path)
    for need in elf_needs(source):
        folders = [""] if "/" in need else [*elf_runpath(source), LIBRARIES]
        merged = [f"{folder}/{need}".lstrip("/") for folder in folders]
        # Packages of Debian 12 still have some files in /lib.
        places = [place for name in merged for place in (name, name.removeprefix("usr/"))]
        if tree.entries.keys() & {guest_path(place) for place in places}:
            continue
        found = next((place for place in places if (root / place).exists()), None)
        if found is None:
            raise ImageError(f"/{path} needs {need}, which none of the fetched packages has")
        add_file(tree, root, found)


def add_modules(tree: Tree, root: Path, recipe: Recipe, busybox: Path) -> None:
    """Add the kernel modules, what they depend on, and the indexes that modprobe reads."""
    (source,) = (root / "lib/modules").iterdir()
    known = {path.stem.replace("-", "_"): path for path in source.rglob("*.ko")}
    trimmed = root / recipe.name / "lib/modules" / source.name
    waiting = [name.replace("-", "_") for name in recipe.modules]
    while waiting:
        path = known[waiting.pop()]
        target = trimmed / path.relative_to(source)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            depends = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
            waiting += [n.replace("-", "_") for n in depends[1].decode().split(",") if n] \
                if depends else []
    run(busybox, "depmod", "-b", root / recipe.name, source.name)
    for path in sorted(trimmed.rglob("*")):
        if path.is_file():
            tree.copy(path, str(path.relative_to(root / recipe.name)))


def add_system(tree: Tree, root: Path, recipe: Recipe) -> Path:
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
    for files in (Path(__file__).parent / name for name in recipe.ours):
        for path in sorted(files.rglob("*")):
            if path.is_symlink():
                tree.link(str(path.relative_to(files)), str(path.readlink()))
            elif path.is_file() and path.suffix != ".c":
                tree.copy(path, str(path.relative_to(files)))
    return busybox


def build_tree(root: Path, recipe: Recipe, programs: list[Path]) -> Tree:
    """Put a whole guest together."""
    tree = Tree()
    busybox = add_system(tree, root, recipe)
    for program in programs:
        tree.copy(program, f"usr/bin/{program.name}")
    for path in (name.lstrip("/") for name in recipe.files):
        if (root / path).exists():
            add_file(tree, root, path)
    add_modules(tree, root, recipe, busybox)
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


def pack(root: Path, recipe: Recipe, programs: list[Path]) -> bytes:
    """Make the initramfs of an image."""
    print(f"images: packing {recipe.name}", flush=True)
    return compress(build_tree(root, recipe, programs).cpio())


def build(out: Path, programs: list[Path]) -> None:
    """Build the kernel, each initramfs and, last, the manifests that say that all is there."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise UnfitError(f"{missing[0]} is not installed: run make deps")
    root = out / "root"
    names = {recipe: package_names(recipe) for recipe in IMAGES}
    versions = unpack_packages(set().union(*names.values()), out / "packages", root)
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    vmlinuz = unpack_kernel(kernel.read_bytes())
    initrds = {recipe: pack(root, recipe, programs) for recipe in IMAGES}
    for recipe in IMAGES:
        (out / recipe.name).mkdir(exist_ok=True)
        (out / recipe.name / "manifest.json").unlink(missing_ok=True)
    (out / MICRO.name / "vmlinuz").write_bytes(vmlinuz)
    for recipe, initrd in initrds.items():
        (out / recipe.name / "initrd.img").write_bytes(initrd)
        files = {"vmlinuz": vmlinuz, "initrd.img": initrd}
        manifest = {
            "name": recipe.name, "append": APPEND, "memory_mib": recipe.memory_mib,
            "kernel": "vmlinuz" if recipe is MICRO else f"../{MICRO.name}/vmlinuz",
            "initrd": "initrd.img", "user": "root", "ready": "vale: ready",
            "kernel_release": kernel.name.partition("-")[2],
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            "bytes": {name: len(data) for name, data in files.items()},
            "packages": {name: versions[name] for name in names[recipe]},
        }
        text = json.dumps(manifest, indent=2, sort_keys=True)
        (out / recipe.name / "manifest.json").write_text(text + "\n")
    shutil.rmtree(root)


def main(arguments: list[str]) -> int:
    """Build the images into the given directory."""
    if not arguments:
        print("usage: micro.py OUT_DIR [PROGRAM...]", file=sys.stderr)
        return 2
    try:
        build(Path(arguments[0]).absolute(), [Path(name) for name in arguments[1:]])
    except (ImageError, OSError) as error:
        print(f"images: {error}", file=sys.stderr)
        return EXIT_UNFIT if isinstance(error, UnfitError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
