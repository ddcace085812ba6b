# SPDX-License-Identifier: BSD-2-Clause
"""One log per lab in the state directory: every argv, QMP call and SSH command of a run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from valemgr import xdg
from valemgr.errors import StoreError, ValeError


@contextmanager
def lab_log(lab: str) -> Iterator[None]:
    """Log to the lab's file; a disk that fills up meanwhile costs lines, not the run."""
    path = xdg.state_dir() / "logs" / f"{lab}.log"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = logging.FileHandler(path)
    except OSError as exc:
        raise StoreError(
            f"lab log {path}: {exc.strerror}: set XDG_STATE_HOME to a place with room"
        ) from exc
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("valemgr")
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    try:
        yield
    except ValeError as exc:
        ours.error("%s", exc)
        raise
    finally:
        ours.removeHandler(handler)
        with suppress(OSError):
            handler.close()
