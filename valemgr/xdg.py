# SPDX-License-Identifier: BSD-2-Clause
"""Where files live, by the XDG rules.

runtime   $XDG_RUNTIME_DIR/valemgr, else /run/valemgr (root), else /tmp/valemgr-UID
          one directory per lab: sockets, keys, state, consoles; gone after `down`
state     $XDG_STATE_HOME/valemgr: results.db, one log per lab
data      $XDG_DATA_HOME/valemgr: images
"""

import os
from pathlib import Path

from valemgr.errors import EnvironmentUnfitError, StoreError, UsageError

SOCKET_PATH_MAX = 107


def runtime_dir() -> Path:
    """The directory of all labs' directories (not created here)."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "valemgr"
    if os.geteuid() == 0:
        return Path("/run/valemgr")
    return Path(f"/tmp/valemgr-{os.geteuid()}")


def state_dir() -> Path:
    """Results and logs."""
    return _home_dir("XDG_STATE_HOME", ".local/state")


def data_dir() -> Path:
    """Images."""
    return _home_dir("XDG_DATA_HOME", ".local/share")


def private_dir(path: Path) -> Path:
    """Create `path` with mode 0700 if needed; refuse one that is a link or somebody else's."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as exc:
        raise StoreError(f"cannot make directory {path}: {exc.strerror}") from exc
    if path.is_symlink() or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise EnvironmentUnfitError(
            f"{path} is a link, not yours, or writable by others: remove it, or set XDG_RUNTIME_DIR"
        )
    return path


def socket_path(path: Path, variables: str = "XDG_RUNTIME_DIR") -> Path:
    """A path that a socket can have; UsageError names what to set if it is too long."""
    if len(str(path)) > SOCKET_PATH_MAX:
        raise UsageError(
            f"{path} is too long for a socket ({SOCKET_PATH_MAX} bytes): use shorter names, or set "
            f"{variables} to a shorter path"
        )
    return path


def _home_dir(variable: str, fallback: str) -> Path:
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / fallback) / "valemgr"
