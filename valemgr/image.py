# SPDX-License-Identifier: BSD-2-Clause
"""A guest image: a folder with a manifest.json, or a disk as distributions publish it.

A folder is looked for in $VALE_IMAGES, in the clone's build/images, in the data directory, in
PREFIX/lib/vale/images; the name is the folder's name, and a path to such a folder works too. A
path to a file is a disk with a boot loader and cloud-init.
"""

import json
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from valemgr import xdg
from valemgr.errors import EnvironmentUnfitError
from valemgr.findings import closest
from valemgr.locate import clone_root, install_prefix, remedy

BOOT_SECONDS = 120.0
DISK_BOOT_SECONDS = 600.0  # a distribution's system takes minutes without KVM
DISK_MEMORY_MIB = 512  # what a disk without a manifest needs
QCOW2_MAGIC = b"QFI\xfb"
DISK_SUFFIXES = (".qcow2", ".img", ".raw")


class Identity(StrEnum):
    """How a guest learns who it is."""

    FW_CFG = "fw_cfg"
    NOCLOUD = "nocloud"


class DiskFormat(StrEnum):
    """What a disk's file is; said to QEMU, which never guesses."""

    QCOW2 = "qcow2"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that guests start from, and never write to."""

    path: Path
    format: DiskFormat


@dataclass(frozen=True, slots=True)
class Image:
    """What is booted: a kernel with an initial RAM file system, a disk, or both."""

    name: str
    kernel: Path | None
    initrd: Path | None
    append: str
    ready_line: str  # what its console says when sshd listens; empty if it says nothing
    manifest: dict[str, Any]
    disk: Disk | None = None
    identity: Identity = Identity.FW_CFG

    @property
    def boot_seconds(self) -> float:
        """How long it may take until it is ready."""
        usual = DISK_BOOT_SECONDS if self.disk else BOOT_SECONDS
        return float(self.manifest.get("boot_seconds", usual))

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it consists of."""
        parts = (self.kernel, self.initrd, self.disk and self.disk.path)
        return tuple(part for part in parts if part)


def image_dirs() -> list[Path]:
    """Where images are looked for, in order."""
    dirs = [Path(d) for d in os.environ.get("VALE_IMAGES", "").split(os.pathsep) if d]
    root = clone_root()
    if root:
        dirs.append(root / "build" / "images")
    dirs.append(xdg.data_dir() / "images")
    prefix = install_prefix()
    return [*dirs, prefix / "lib/vale/images"] if prefix else dirs


def image_names() -> list[str]:
    """Images that are here."""
    return sorted({path.parent.name for d in image_dirs() for path in d.glob("*/manifest.json")})


def load(name: str) -> Image:
    """The image of that name, or EnvironmentUnfitError naming where it was looked for."""
    if name.endswith(DISK_SUFFIXES):
        return _bare_disk(Path(name).absolute())
    candidates = [Path(name)] if os.sep in name else [d / name for d in image_dirs()]
    for folder in candidates:
        if (folder / "manifest.json").is_file():
            return _read(folder)
    looked = ", ".join(str(folder.parent) for folder in candidates)
    meant = "" if os.sep in name else closest(name, image_names())
    guess = f", or did you mean '{meant}'?" if meant else ""
    raise EnvironmentUnfitError(f"no image '{name}' in {looked}: {_remedy(name)}{guess}")


def _remedy(name: str) -> str:
    """What makes it, if it is one of ours."""
    return "run 'make image-debian'" if name == "debian" else remedy("vale-images")


def _bare_disk(path: Path) -> Image:
    """A disk without a manifest: it boots itself, and cloud-init is in it."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(QCOW2_MAGIC))
    except OSError as exc:
        raise EnvironmentUnfitError(f"image {path}: {exc.strerror}") from exc
    # Distributions have qcow2 in files named .img. Guests do not write here, so no guest decides.
    form = DiskFormat.QCOW2 if start == QCOW2_MAGIC else DiskFormat.RAW
    if path.suffix == ".qcow2" and form is DiskFormat.RAW:
        raise EnvironmentUnfitError(f"image {path}: this is no qcow2 file")
    manifest = {"memory_mib": DISK_MEMORY_MIB}
    return Image(path.name, None, None, "", "", manifest, Disk(path, form), Identity.NOCLOUD)


def _read(folder: Path) -> Image:
    try:
        image = _from_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as exc:
        raise EnvironmentUnfitError(
            f"image {folder}: manifest.json is not usable ({exc!r}): {remedy('vale-images')}"
        ) from exc
    for part in image.files:
        if not part.is_file():
            raise EnvironmentUnfitError(
                f"image {folder}: {part.name} is missing: {remedy('vale-images')}"
            )
    return image


def _from_manifest(folder: Path, manifest: dict[str, Any]) -> Image:
    """A disk may boot itself; what has none is a kernel with an initramfs."""
    disk = None
    if "disk" in manifest:
        disk = Disk(folder / manifest["disk"], DiskFormat(manifest.get("format", "qcow2")))
    boots_kernel = disk is None or "kernel" in manifest
    usual = Identity.NOCLOUD if disk else Identity.FW_CFG
    image = Image(
        name=folder.name,
        kernel=folder / manifest.get("kernel", "vmlinuz") if boots_kernel else None,
        initrd=folder / manifest.get("initrd", "initrd.img") if boots_kernel else None,
        append=manifest["append"] if boots_kernel else "",
        ready_line=manifest.get("ready", ""),
        manifest=manifest,
        disk=disk,
        identity=Identity(manifest.get("identity", usual)),
    )
    _ = image.boot_seconds  # a mistake there is one of the manifest
    return image
