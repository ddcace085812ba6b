# SPDX-License-Identifier: BSD-2-Clause
"""A guest image as its manifest.json describes it.

Looked for in $VALE_IMAGES, in the clone's build/images, in the data directory, in
PREFIX/lib/vale/images; the name is the folder's name, and a path to such a folder works too.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valemgr import xdg
from valemgr.errors import EnvironmentUnfitError
from valemgr.findings import closest
from valemgr.locate import clone_root, install_prefix, remedy


@dataclass(frozen=True, slots=True)
class Image:
    """Kernel, initial RAM file system and how to boot them."""

    name: str
    kernel: Path
    initrd: Path
    append: str
    ready_line: str  # what its console says when sshd listens; empty if it says nothing
    manifest: dict[str, Any]


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
    candidates = [Path(name)] if os.sep in name else [d / name for d in image_dirs()]
    for folder in candidates:
        if (folder / "manifest.json").is_file():
            return _read(folder)
    looked = ", ".join(str(folder.parent) for folder in candidates)
    meant = "" if os.sep in name else closest(name, image_names())
    guess = f", or did you mean '{meant}'?" if meant else ""
    raise EnvironmentUnfitError(f"no image '{name}' in {looked}: {remedy('vale-images')}{guess}")


def _read(folder: Path) -> Image:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        image = Image(
            name=folder.name,
            kernel=folder / manifest.get("kernel", "vmlinuz"),
            initrd=folder / manifest.get("initrd", "initrd.img"),
            append=manifest["append"],
            ready_line=manifest.get("ready", ""),
            manifest=manifest,
        )
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as exc:
        raise EnvironmentUnfitError(
            f"image {folder}: manifest.json is not usable ({exc!r}): {remedy('vale-images')}"
        ) from exc
    for part in (image.kernel, image.initrd):
        if not part.is_file():
            raise EnvironmentUnfitError(
                f"image {folder}: {part.name} is missing: {remedy('vale-images')}"
            )
    return image
