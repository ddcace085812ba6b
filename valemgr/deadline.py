# SPDX-License-Identifier: BSD-2-Clause
"""Waiting: a deadline, an attempt that is repeated, the last error. No bare sleeps elsewhere."""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from valemgr.errors import WaitTimeoutError

T = TypeVar("T")


class Deadline:
    """A point in time that a whole chain of waits shares."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())

    @property
    def expired(self) -> bool:
        return self.left == 0.0

    async def wait(self, what: str, awaitable: Awaitable[T]) -> T:
        """Await something, at most until the deadline."""
        try:
            async with asyncio.timeout(self.left):
                return await awaitable
        except TimeoutError as exc:
            raise self.timeout(what) from exc

    async def retry(
        self,
        what: str,
        attempt: Callable[[], Awaitable[T]],
        retry_on: tuple[type[Exception], ...],
        every: float = 0.02,
    ) -> T:
        """Repeat `attempt` while it raises one of `retry_on`; the last of these is the cause."""
        while True:
            try:
                return await attempt()
            except retry_on as exc:
                if self.expired:
                    raise self.timeout(what, exc) from exc
            await asyncio.sleep(min(every, self.left))

    def timeout(self, what: str, last: Exception | None = None) -> WaitTimeoutError:
        """The error to raise when `what` did not happen in time."""
        because = f" ({last})" if last and str(last) else ""
        return WaitTimeoutError(f"{what}: not within {self.seconds:g} s{because}")


def open_dir(folder: Path) -> int:
    """A descriptor of a directory, to be locked: so no lock file is left behind."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@asynccontextmanager
async def locked(fd: int, what: str, seconds: float) -> AsyncIterator[None]:
    """Hold a lock on an open file; it is closed at the end."""

    async def attempt() -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    try:
        await Deadline(seconds).retry(f"lock on {what}", attempt, (BlockingIOError,))
        yield
    finally:
        os.close(fd)
