# SPDX-License-Identifier: BSD-2-Clause
"""A libvirt stream as a socket: what one says, the other gets, until either ends.

It runs in libvirt's thread, in whose event loop libvirt says when a stream can be read or written.
libvirt goes on saying so until it is done: so each is asked for only while somebody waits for it.
"""

import asyncio
import socket
from contextlib import suppress
from typing import Any

CHUNK = 4096
WOULD_BLOCK = -2


class Bridge:
    """Between a stream that does not block, and a socket, which it closes."""

    def __init__(self, library: Any, stream: Any, sock: socket.socket) -> None:
        self._library = library
        self._stream = stream
        self._sock = sock
        self._wanted = 0
        self._happened = {
            library.VIR_STREAM_EVENT_READABLE: asyncio.Event(),
            library.VIR_STREAM_EVENT_WRITABLE: asyncio.Event(),
        }

    async def run(self) -> None:
        """Carry until one side ends."""
        lib = self._library
        self._sock.setblocking(False)
        tasks: list[asyncio.Task[None]] = []
        self._ends = lib.VIR_STREAM_EVENT_ERROR | lib.VIR_STREAM_EVENT_HANGUP
        try:
            self._stream.eventAddCallback(self._ends, self._tell, None)
            tasks = [asyncio.create_task(self._out()), asyncio.create_task(self._in())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for end in (self._stream.eventRemoveCallback, self._stream.abort):
                with suppress(lib.libvirtError):  # it may have ended by itself
                    end()
            self._sock.close()

    async def _out(self) -> None:
        """From the stream."""
        loop = asyncio.get_running_loop()
        while True:
            data = self._stream.recv(CHUNK)
            if data == WOULD_BLOCK:
                await self._until(self._library.VIR_STREAM_EVENT_READABLE)
            elif data:
                await loop.sock_sendall(self._sock, data)
            else:
                return

    async def _in(self) -> None:
        """To the stream."""
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._sock, CHUNK):
            while data:
                sent = self._stream.send(data)
                if sent == WOULD_BLOCK:
                    await self._until(self._library.VIR_STREAM_EVENT_WRITABLE)
                else:
                    data = data[sent:]

    async def _until(self, event: int) -> None:
        self._happened[event].clear()
        self._want(self._wanted | event)
        await self._happened[event].wait()

    def _want(self, events: int) -> None:
        self._wanted = events
        self._stream.eventUpdateCallback(self._ends | events)

    def _tell(self, stream: Any, events: int, _: object) -> None:
        """libvirt's callback. An end wakes up both: what they try then says so."""
        for event, happened in self._happened.items():
            if events & (event | self._ends):
                happened.set()
        self._want(self._wanted & ~events)
