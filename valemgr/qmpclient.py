# SPDX-License-Identifier: BSD-2-Clause
"""QMP, spoken by guests and by the switch alike: a thin layer over qemu.qmp.

Every call is logged and has a deadline: a QEMU whose main loop hangs must not hang us.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, ExecuteError, Message, QMPClient, QMPError, Runstate

from valemgr import proc
from valemgr.deadline import Deadline
from valemgr.errors import ValeError

log = logging.getLogger(__name__)

# qemu.qmp reports a peer that hangs up as an error of its own; ours say it in the caller's words.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

CALL_SECONDS = 10.0


class QmpFailed(ValeError):  # noqa: N818 (a refusal by the peer, translated by every caller)
    """The peer refused a command, or hung up."""


class Qmp:
    """One connection, past its greeting."""

    def __init__(self, client: QMPClient, peer_pid: int) -> None:
        self.peer_pid = peer_pid
        self._client = client
        self._name = client.name

    @property
    def version(self) -> dict[str, Any]:
        """The `version` member of the greeting."""
        greeting = self._client.greeting
        return dict(greeting.QMP.version) if greeting else {}

    async def call(self, command: str, **arguments: object) -> Any:
        """Execute a command and return its answer."""
        log.info("qmp %s: %s %s", self._name, command, arguments or "")
        what = f"{self._name}: answer to {command}"
        try:
            return await Deadline(CALL_SECONDS).wait(
                what, self._client.execute(command, arguments or None)
            )
        except ExecuteError as exc:
            raise QmpFailed(str(exc)) from exc
        except QMPError as exc:
            raise QmpFailed(f"{self._name} hung up during {command}") from exc

    async def call_until(
        self, event: str, data: dict[str, Any], seconds: float, command: str, **arguments: object
    ) -> bool:
        """Execute a command and wait for an event with this data; False: it does not come."""

        def is_it(message: Message) -> bool:
            said = message["data"]
            return isinstance(said, dict) and data.items() <= said.items()

        with self._client.listener(event, is_it) as listener:
            await self.call(command, **arguments)
            try:
                async with asyncio.timeout(seconds):
                    await listener.get()
            except TimeoutError:
                return False
        return True

    async def hung_up(self) -> None:
        """Returns when the peer is gone."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    async def close(self) -> None:
        """Hang up; the peer may have done so first."""
        with suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()


async def connect(path: Path, name: str) -> Qmp:
    """Connect and negotiate. OSError: nobody listens, or hangs up; QmpFailed: it is not QMP."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, str(path))
        pid = proc.peer_pid(sock)
        client = QMPClient(name)
        await client.connect(sock)
    except ConnectError as exc:
        sock.close()
        if isinstance(exc.exc, (OSError, EOFError)):
            raise ConnectionResetError(f"{name}: {path} hung up") from exc
        raise QmpFailed(f"{name}: {path} does not speak QMP ({exc})") from exc
    except BaseException:
        sock.close()
        raise
    return Qmp(client, pid)


@asynccontextmanager
async def session(path: Path, name: str, deadline: Deadline) -> AsyncIterator[Qmp]:
    """A connection held for a few calls."""
    qmp = await deadline.wait(f"{name}: QMP greeting", connect(path, name))
    try:
        yield qmp
    finally:
        await qmp.close()
