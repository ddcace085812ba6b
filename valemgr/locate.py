# SPDX-License-Identifier: BSD-2-Clause
"""Where our programs are: $VALE_BINDIR, the clone's build/bin, beside valemgr, PATH.

Installed, valemgr has an environment of its own at PREFIX/lib/valemgr.
"""

import os
import shutil
import sys
from pathlib import Path

from valemgr.errors import EnvironmentUnfitError

QEMU = "qemu-system-x86_64-vale"
VALED = "valed"

_TARGETS = {"vale-qemu": "qemu", "valed": "tools", "vale-images": "image"}
_PACKAGES = {QEMU: "vale-qemu", VALED: "valed"}


def clone_root() -> Path | None:
    """The clone that this package runs from; None when it is installed."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else None


def remedy(package: str) -> str:
    """What to do where something is missing that this package of ours holds."""
    target = f"make {_TARGETS[package]}"
    if clone_root():
        return f"run '{target}'"
    return f"install the package {package}, or run '{target} install' in the source"


def install_prefix() -> Path | None:
    """PREFIX, where `make install` or a package has put us; None elsewhere."""
    environment = Path(sys.prefix)
    return environment.parents[1] if environment.parts[-2:] == ("lib", "valemgr") else None


def bin_dirs() -> list[Path]:
    """Directories that are searched before PATH."""
    dirs = [Path(os.environ["VALE_BINDIR"])] if os.environ.get("VALE_BINDIR") else []
    root = clone_root()
    if root:
        dirs.append(root / "build" / "bin")
    prefix = install_prefix()
    if prefix:
        dirs.append(prefix / "bin")
    return [*dirs, Path(sys.argv[0]).resolve().parent]


def find(program: str) -> Path | None:
    """The program's path, or None; a program that is a path already stands for itself."""
    if os.sep in program:
        path = Path(program)
        return path if path.is_file() and os.access(path, os.X_OK) else None
    for folder in bin_dirs():
        candidate = folder / program
        if os.access(candidate, os.X_OK) and candidate.is_file():
            return candidate
    on_path = shutil.which(program)
    return Path(on_path) if on_path else None


def require(program: str) -> Path:
    """The program's path, or EnvironmentUnfitError with the remedy."""
    path = find(program)
    if path is None and os.sep in program:
        raise EnvironmentUnfitError(f"{program} is no program that can be run")
    if path is None:
        places = ", ".join(str(folder) for folder in bin_dirs())
        package = _PACKAGES.get(program)
        what = remedy(package) if package else f"install {program}"
        raise EnvironmentUnfitError(f"{program} is not in {places}, PATH: {what}")
    return path
