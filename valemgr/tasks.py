# SPDX-License-Identifier: BSD-2-Clause
"""Several waits at once: run together, break off together, finish cleaning up whatever comes."""

import asyncio
import logging
import signal
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from valemgr.errors import InterruptedRunError, ValeError

log = logging.getLogger(__name__)

T = TypeVar("T")

NEWS_SECONDS = 0.5


async def together(waits: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all; the first failure ends the others and is raised itself, not in a group."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await cancel(*tasks)


async def unless(
    watches: Iterable[Coroutine[Any, Any, ValeError]], work: Coroutine[Any, Any, T]
) -> T:
    """Do work, but give up at once with the error that one of the watches returns."""
    watchers = [asyncio.ensure_future(watch) for watch in watches]
    task = asyncio.ensure_future(work)
    try:
        everything: set[asyncio.Future[Any]] = {task, *watchers}
        await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
        if _failed(task) and watchers:
            # What dies first breaks off the work: let its end be the news, not that.
            await asyncio.wait(watchers, timeout=NEWS_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        lost = [watcher.result() for watcher in watchers if watcher.done()]
        if lost and (_failed(task) or not task.done()):
            raise lost[0]
        return await task
    finally:
        await cancel(task, *watchers)


async def cancel(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel and wait until all are over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def uninterrupted(cleanup: Coroutine[Any, Any, Any]) -> None:
    """Finish cleaning up even if Ctrl-C comes again meanwhile."""
    task = asyncio.ensure_future(cleanup)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            log.info("interrupted again while cleaning up: finishing first")


def run_interruptibly(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, with SIGINT, SIGTERM and SIGHUP all ending things orderly, also the second."""

    async def wrapped() -> T:
        task = asyncio.ensure_future(main)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            raise InterruptedRunError("interrupted; what it began was cleaned up") from None

    return asyncio.run(wrapped())


def _failed(task: "asyncio.Future[Any]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None
