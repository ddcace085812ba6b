# SPDX-License-Identifier: BSD-2-Clause
"""SSH against a server in this process: the right keys pass, every refusal is named."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from valemgr import keys
from valemgr.deadline import Deadline
from valemgr.errors import SshError, WaitTimeoutError
from valemgr.ssh import SshSession, SshTarget

pytestmark = [
    pytest.mark.unit,
    # Tests hang up on the server while its threads write: they die of it, as they should.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


class Door(paramiko.ServerInterface):
    """Lets one key in; `exec` echoes, hangs, or ends with the status that is asked for."""

    def __init__(self, authorized: str) -> None:
        self.authorized = authorized

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        known = f"{key.get_name()} {key.get_base64()}" == self.authorized
        return paramiko.AUTH_SUCCESSFUL if known else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self.obey, args=(channel, command.decode()), daemon=True).start()
        return True

    def obey(self, channel: paramiko.Channel, command: str) -> None:
        time.sleep(0.05)  # until the client has its answer to the request
        if command == "hang":
            return
        channel.sendall(b"ready\n" + command.encode())
        channel.sendall_stderr(b"err")
        channel.send_exit_status(7)
        channel.close()


class Server:
    """A listening socket and the sessions on it."""

    def __init__(self, tmp_path: Path) -> None:
        self.client, self.host = keys.generate(), keys.generate()
        self.key_file = tmp_path / "id"
        self.key_file.write_text(self.client.private)
        self.host_file = tmp_path / "host"
        self.host_file.write_text(self.host.private)
        self.authorized = self.client.public
        self.silent = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.kept: list[object] = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.kept.append(sock)
            if not self.silent:
                transport = paramiko.Transport(sock)
                transport.add_server_key(
                    paramiko.Ed25519Key.from_private_key_file(str(self.host_file))
                )
                transport.start_server(server=Door(self.authorized))
                self.kept.append(transport)

    def target(self, host_key: str | None = None) -> SshTarget:
        port = self.listener.getsockname()[1]
        return SshTarget("a", port, host_key or self.host.public, self.key_file)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.listener.close()


async def test_a_command_and_its_output(server: Server) -> None:
    session = await SshSession.connect(server.target(), Deadline(10))
    result = await session.run("uname", Deadline(10))
    assert (result.status, result.stdout, result.stderr) == (7, "ready\nuname", "err")
    program = await session.start("x")
    assert await program.line(Deadline(10)) == "ready\n"
    session.close()


async def test_a_foreign_host_key_is_refused_at_once(server: Server) -> None:
    with pytest.raises(SshError, match="host key is not the one we gave it"):
        await SshSession.connect(server.target(keys.generate().public), Deadline(10))


async def test_keys_that_come_late_are_tried_until_they_are_there(server: Server) -> None:
    theirs, server.authorized = server.authorized, keys.generate().public
    asyncio.get_running_loop().call_later(0.3, setattr, server, "authorized", theirs)
    target = replace(server.target(), keys_come_late=True)
    session = await SshSession.connect(target, Deadline(20))
    assert (await session.run("uname", Deadline(10))).status == 7
    session.close()
    never = replace(server.target(keys.generate().public), keys_come_late=True)
    with pytest.raises(WaitTimeoutError):
        await SshSession.connect(never, Deadline(0.5))


async def test_one_that_listens_is_asked_once(server: Server) -> None:
    server.silent = True
    with pytest.raises(WaitTimeoutError, match="sshd is silent"):
        await SshSession.connect(replace(server.target(), listens=True), Deadline(1.5))
    assert len(server.kept) == 1


async def test_a_refused_key_is_named(server: Server) -> None:
    server.authorized = keys.generate().public
    with pytest.raises(SshError, match="refuses our key"):
        await SshSession.connect(server.target(), Deadline(10))


async def test_silence_and_refusal_end_at_the_deadline(server: Server) -> None:
    server.silent = True
    with pytest.raises(WaitTimeoutError, match="sshd is silent"):
        await SshSession.connect(server.target(), Deadline(0.7))
    target = server.target()
    server.listener.shutdown(socket.SHUT_RDWR)
    with pytest.raises(WaitTimeoutError, match="refused"):
        await SshSession.connect(target, Deadline(0.3))


async def test_cancelling_closes_the_transport(server: Server) -> None:
    session = await SshSession.connect(server.target(), Deadline(10))
    call = asyncio.ensure_future(session.run("hang", Deadline(60)))
    await asyncio.sleep(0.2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    with pytest.raises(SshError):
        await session.run("uname", Deadline(5))


async def test_no_answer_is_a_timeout(server: Server) -> None:
    session = await SshSession.connect(server.target(), Deadline(10))
    with pytest.raises(WaitTimeoutError, match="no output in time"):
        await session.run("hang", Deadline(0.3))
    session.close()
