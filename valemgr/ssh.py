# SPDX-License-Identifier: BSD-2-Clause
"""SSH into guests by paramiko: host keys are ours, unknown ones are rejected.

paramiko blocks, so every session has an executor of two threads (one reads stdout, one stderr);
the loop's default pool would be too small for a lab. Cancelling a call closes the transport,
which unblocks them. Nothing is ever timed by SSH latency.
"""

import asyncio
import base64
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import paramiko

from valemgr.deadline import Deadline
from valemgr.errors import SshError, WaitTimeoutError

log = logging.getLogger(__name__)
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

T = TypeVar("T")

OUTPUT_MAX = 1 << 20
# A guest that does not listen yet swallows a connection silently: give up on it, try a fresh one.
# One that listens is busy, and each connection that is given up makes it more so.
BANNER_SECONDS_FIRST, BANNER_SECONDS_MAX, BANNER_SECONDS_SLOW = 0.5, 5.0, 15.0
_PASSING_ERRORS = (OSError, EOFError, paramiko.SSHException)


@dataclass(frozen=True, slots=True)
class SshTarget:
    """Where a guest's sshd is and how both sides prove themselves."""

    guest: str
    port: int
    host_key: str
    key_file: Path
    listens: bool = False  # for certain
    keys_come_late: bool = False  # it boots slowly, and its sshd may run before it has them


@dataclass(frozen=True, slots=True)
class RemoteResult:
    """What a command left behind."""

    status: int
    stdout: str
    stderr: str


class RemoteProgram:
    """A program that runs in a guest."""

    def __init__(self, session: "SshSession", channel: paramiko.Channel) -> None:
        self._session = session
        self._channel = channel
        self._stdout = channel.makefile("rb")

    async def line(self, deadline: Deadline) -> str:
        """Its next line of output; empty at the end."""
        self._channel.settimeout(deadline.left)
        raw: bytes = await self._session.call("output", self._stdout.readline)
        return raw.decode(errors="replace")

    async def result(self, deadline: Deadline) -> RemoteResult:
        """Wait for its end."""
        self._channel.settimeout(deadline.left)
        stderr = self._channel.makefile_stderr("rb")
        out, err = await asyncio.gather(
            self._session.call("output", lambda: self._stdout.read(OUTPUT_MAX)),
            self._session.call("output", lambda: stderr.read(OUTPUT_MAX)),
        )
        status = await self._session.call("exit status", self._channel.recv_exit_status)
        return RemoteResult(status, out.decode(errors="replace"), err.decode(errors="replace"))


class SshSession:
    """A connection to one guest."""

    def __init__(self, target: SshTarget) -> None:
        self.target = target
        self.client = paramiko.SSHClient()
        self._executor = ThreadPoolExecutor(2, thread_name_prefix=f"ssh-{target.guest}")

    @classmethod
    async def connect(cls, target: SshTarget, deadline: Deadline) -> Self:
        """Try until sshd shows its banner, then log in; a refused key or host key is final.

        Unless keys come late: then these are tried until they are there.
        """
        session = cls(target)
        passing = (*_PASSING_ERRORS, SshError) if target.keys_come_late else _PASSING_ERRORS
        patience = deadline.left if target.listens else BANNER_SECONDS_FIRST
        most = BANNER_SECONDS_SLOW if target.keys_come_late else BANNER_SECONDS_MAX

        async def attempt() -> None:
            nonlocal patience
            sock = await _banner(target.port, min(patience, deadline.left))
            patience = min(patience * 1.5, most)
            await session._log_in(sock, deadline.left)

        try:
            await deadline.retry(f"guest {target.guest}: SSH", attempt, passing, every=0.05)
        except BaseException:
            session.close()
            raise
        return session

    async def _log_in(self, sock: socket.socket, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(
                self._executor, _log_in, self.client, self.target, sock, seconds
            )
        except BaseException:
            sock.close()
            raise

    async def open(self, command: str) -> paramiko.Channel:
        """Start a command; its channel."""
        log.info("ssh %s: %s", self.target.guest, command)

        def open_channel() -> paramiko.Channel:
            transport = self.client.get_transport()
            if transport is None:
                raise EOFError("closed")
            channel = transport.open_session(timeout=10)
            channel.exec_command(command)
            return channel

        return await self.call(command, open_channel)

    async def start(self, command: str) -> RemoteProgram:
        """Start a command; its output is read later."""
        return RemoteProgram(self, await self.open(command))

    async def run(self, command: str, deadline: Deadline) -> RemoteResult:
        """Run a command to its end."""
        return await (await self.start(command)).result(deadline)

    async def call(self, what: str, function: Callable[[], T]) -> T:
        """Run a blocking paramiko call in this session's threads."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, function)
        guest = self.target.guest
        try:
            return await future
        except asyncio.CancelledError:
            self.client.close()
            raise
        except TimeoutError as exc:
            raise WaitTimeoutError(f"guest {guest}: no {what} in time") from exc
        except _PASSING_ERRORS as exc:
            raise SshError(
                f"guest {guest}: SSH broke off: {str(exc) or 'connection lost'}"
            ) from exc

    def close(self) -> None:
        """Hang up; threads that wait on it end by themselves."""
        self.client.close()
        self._executor.shutdown(wait=False)


async def _banner(port: int, seconds: float) -> socket.socket:
    """A connection on which the other side has begun to talk."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    readable = asyncio.Event()
    try:
        await loop.sock_connect(sock, ("127.0.0.1", port))
        loop.add_reader(sock, readable.set)
        try:
            async with asyncio.timeout(seconds):
                await readable.wait()
        finally:
            loop.remove_reader(sock)
        if not sock.recv(1, socket.MSG_PEEK):
            raise ConnectionRefusedError("connection refused")
    except TimeoutError as exc:
        sock.close()
        raise OSError("sshd is silent") from exc
    except ConnectionRefusedError as exc:
        sock.close()
        raise OSError("connection refused") from exc
    except BaseException:
        sock.close()
        raise
    return sock


def _log_in(
    client: paramiko.SSHClient, target: SshTarget, sock: socket.socket, seconds: float
) -> None:
    sock.setblocking(True)
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    kind, blob = target.host_key.split()[:2]
    known = paramiko.PKey.from_type_string(kind, base64.b64decode(blob))
    client.get_host_keys().add(f"[127.0.0.1]:{target.port}", kind, known)
    try:
        client.connect(
            "127.0.0.1",
            port=target.port,
            username="root",
            pkey=paramiko.Ed25519Key.from_private_key_file(str(target.key_file)),
            sock=sock,
            timeout=seconds,
            banner_timeout=seconds,
            auth_timeout=seconds,
            allow_agent=False,
            look_for_keys=False,
        )
    except paramiko.BadHostKeyException as exc:
        raise SshError(f"guest {target.guest}: its SSH host key is not the one we gave it") from exc
    except paramiko.AuthenticationException as exc:
        raise SshError(f"guest {target.guest}: SSH refuses our key: {exc}") from exc
