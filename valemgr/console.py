# SPDX-License-Identifier: BSD-2-Clause
"""A guest's serial console on our own terminal: what `console` does.

A console serves one client. So whoever has it holds a lock on its log, and the machine is asked
whether somebody else is connected. While a valemgr waits for a QEMU of ours to boot, that one is
connected: until it lets go, the log is shown.
"""

import asyncio
import fcntl
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from valemgr import guests, logfiles
from valemgr.errors import GuestError, LabError
from valemgr.guest import plan_of
from valemgr.guests import FoundGuest
from valemgr.machine import Machine, machine_of
from valemgr.screen import Screen, raw_terminal
from valemgr.text import tail

LEAVE = b"\x1d"  # Ctrl-]
CHUNK = 4096
SHOWN_LINES = 10
AFTER_INPUT_SECONDS = 2.0  # of a script: how long the guest may take to answer
# Colours and a hidden cursor that the guest has left behind.
_PLAIN = b"\x1b[0m\x1b[?25h"


@dataclass(frozen=True, slots=True)
class Ends:
    """Our side: what is a terminal of it."""

    keyboard: bool
    screen: bool

    @classmethod
    def of_process(cls) -> "Ends":
        return cls(sys.stdin.isatty(), sys.stdout.isatty())


async def attach(found: FoundGuest, seconds: float | None) -> bool:
    """Until the user leaves, or the input and then `seconds` are over; False: the guest ended."""
    ends = Ends.of_process()
    with _claim(found):
        machine = machine_of(plan_of(found.entry, found.lab_dir))
        await _until_free(found, machine)
        async with machine.console() as (reader, writer):
            with _terminal(ends):
                if ends.keyboard:
                    _greet(found, ends)
                return await _relay(reader, writer, ends, seconds)


async def _relay(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ends: Ends, seconds: float | None
) -> bool:
    showing = asyncio.ensure_future(_show(reader, Screen(sys.stdout, strip=not ends.keyboard)))
    sending = asyncio.ensure_future(_send(writer, ends.keyboard))
    try:
        limit = seconds if ends.keyboard else None
        await asyncio.wait({showing, sending}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if not ends.keyboard and not showing.done():
            await asyncio.wait(
                {showing}, timeout=AFTER_INPUT_SECONDS if seconds is None else seconds
            )
        for task in (showing, sending):
            if task.done():
                task.result()
        return not showing.done()
    finally:
        showing.cancel()
        sending.cancel()
        await asyncio.gather(showing, sending, return_exceptions=True)


async def _show(reader: asyncio.StreamReader, screen: Screen) -> None:
    """Print until the console hangs up."""
    while True:
        try:
            data = await reader.read(CHUNK)
        except OSError:
            return
        if not data:
            return
        screen.write(data)
        screen.pause()


async def _send(writer: asyncio.StreamWriter, keyboard: bool) -> None:
    """Send until the input ends or says so; that the console hung up is seen by `_show`."""
    async for data in _typed():
        keys, leave, _ = data.partition(LEAVE) if keyboard else (data, b"", b"")
        with suppress(OSError):
            writer.write(keys)
            await writer.drain()
        if leave:
            return


async def _typed() -> AsyncIterator[bytes]:
    """Stdin, whatever it is: a file cannot be waited for, so a thread reads. It may outlive us."""
    loop = asyncio.get_running_loop()
    keys: asyncio.Queue[bytes] = asyncio.Queue(1)

    def read() -> None:
        with suppress(RuntimeError, asyncio.CancelledError, OSError):  # nobody listens any more
            while data := os.read(sys.stdin.fileno(), CHUNK):
                asyncio.run_coroutine_threadsafe(keys.put(data), loop).result()
            asyncio.run_coroutine_threadsafe(keys.put(b""), loop).result()

    threading.Thread(target=read, daemon=True).start()
    while data := await keys.get():
        yield data


async def _until_free(found: FoundGuest, machine: Machine) -> None:
    """Return when nobody is connected. While the guest boots that is valemgr: show its log."""
    if not await machine.console_is_taken():
        return
    log = logfiles.Log(f"console of guest {found.name}", found.file("console.log"), lambda: True)
    if not _refreshed(found).booting:
        raise LabError(f"{log.what} is in use by another program: it serves one at a time")
    _say(f"guest {found.name} boots, its console is still read by valemgr: this is what it says")
    watching = asyncio.ensure_future(logfiles.show(log, 0, Screen(sys.stdout), follow=True))
    try:
        while await machine.console_is_taken():
            _refreshed(found).require_alive()
            await asyncio.sleep(logfiles.LOOK_SECONDS)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _refreshed(found: FoundGuest) -> FoundGuest:
    return guests.find(found.name, found.lab_dir.lab)


@contextmanager
def _claim(found: FoundGuest) -> Iterator[None]:
    """Hold the console, as far as valemgr's own commands are concerned."""
    path = found.file("console.log")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise GuestError(f"guest {found.name} has no console: {path}: {exc.strerror}") from exc
    try:
        _lock(fd, found.name)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, guest: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise LabError(
            f"console of guest {guest} is in use by another 'valemgr console': "
            "it serves one at a time"
        ) from exc


@contextmanager
def _terminal(ends: Ends) -> Iterator[None]:
    with ExitStack() as stack:
        if ends.keyboard:
            stack.enter_context(raw_terminal(sys.stdin.fileno()))
        try:
            yield
        finally:
            if ends.keyboard and ends.screen:
                sys.stdout.buffer.write(_PLAIN)
                sys.stdout.flush()


def _greet(found: FoundGuest, ends: Ends) -> None:
    """Say how to leave, and show where the guest is; a raw terminal needs every \\r said."""
    _say(f"console of guest {found.name}: Ctrl-] leaves, press Enter for a prompt", end="\r\n")
    lines = tail(found.file("console.log"), SHOWN_LINES) if ends.screen else []
    sys.stdout.write("".join(f"{line}\r\n" for line in lines))
    sys.stdout.flush()


def _say(text: str, end: str = "\n") -> None:
    sys.stderr.write(f"valemgr: {text}{end}")
