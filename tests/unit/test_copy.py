# SPDX-License-Identifier: BSD-2-Clause
"""`valemgr cp` against a server in this process that runs commands with this machine's own tar."""

import asyncio
import os
import socket
import stat
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import paramiko
import pytest

from valemgr import copy, keys
from valemgr.cli_guest import parse_place
from valemgr.copy import complaint, copy_from, copy_to
from valemgr.deadline import Deadline
from valemgr.errors import GuestError, WaitTimeoutError
from valemgr.ssh import SshSession, SshTarget

pytestmark = [
    pytest.mark.unit,
    # Tests hang up on the server while its threads write: they die of it, as they should.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


class Shell(paramiko.ServerInterface):
    """Runs every command by sh, in a folder that stands for the guest."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.answer: bytes | None = None  # instead of running anything
        self.silent = False

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self.obey, args=(channel, command.decode()), daemon=True).start()
        return True

    def obey(self, channel: paramiko.Channel, command: str) -> None:
        channel.event.wait(0.05)  # until the client has its answer to the request
        if self.silent:
            return
        if self.answer is not None:
            channel.sendall(self.answer)
            channel.send_exit_status(0)
        else:
            self.run(channel, command)
        channel.close()

    def run(self, channel: paramiko.Channel, command: str) -> None:
        program = subprocess.Popen(
            ["sh", "-c", command], cwd=self.home,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        assert program.stdin
        assert program.stdout
        assert program.stderr
        threading.Thread(target=self.feed, args=(channel, program), daemon=True).start()
        while data := os.read(program.stdout.fileno(), 65536):
            channel.sendall(data)
        channel.sendall_stderr(program.stderr.read())
        channel.send_exit_status(program.wait())

    def feed(self, channel: paramiko.Channel, program: "subprocess.Popen[bytes]") -> None:
        assert program.stdin
        try:
            while data := channel.recv(65536):
                program.stdin.write(data)
            program.stdin.close()
        except OSError:
            print("the program reads no more")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def shell(there: Path) -> Shell:
    return Shell(there)


@pytest.fixture
async def session(shell: Shell, tmp_path: Path) -> AsyncIterator[SshSession]:
    client, host = keys.generate(), keys.generate()
    (tmp_path / "id").write_text(client.private)
    (tmp_path / "host").write_text(host.private)
    listener = socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve() -> None:
        transport = paramiko.Transport(listener.accept()[0])
        transport.add_server_key(paramiko.Ed25519Key.from_private_key_file(str(tmp_path / "host")))
        kept.append(transport)
        transport.start_server(server=shell)

    threading.Thread(target=serve, daemon=True).start()
    target = SshTarget("a", listener.getsockname()[1], host.public, tmp_path / "id")
    connected = await SshSession.connect(target, Deadline(10))
    yield connected
    connected.close()
    listener.close()
    for transport in kept:
        transport.close()


def make_tree(root: Path) -> None:
    (root / "d/e").mkdir(parents=True)
    (root / "d/e/f").write_text("text")
    (root / "d/e/f").chmod(0o751)
    (root / "d/é ü").write_text("")
    (root / "d" / ("n" * 200)).write_text("long")
    (root / "d/up").symlink_to("e/f")
    (root / "d/again").hardlink_to(root / "d/e/f")


def listing(root: Path) -> dict[str, object]:
    """Every path with its mode and content."""
    return {
        str(path.relative_to(root)): (
            path.readlink() if path.is_symlink()
            else path.read_bytes() if path.is_file() else None,
            stat.S_IMODE(path.lstat().st_mode),
        )
        for path in root.rglob("*")
    }  # fmt: skip


async def test_a_folder_there_and_back_is_the_same(
    session: SshSession, here: Path, there: Path
) -> None:
    make_tree(here)
    tally = await copy_to(session, Path("d"), "new")
    assert listing(there / "new") == listing(here / "d")
    assert tally.files == 3  # and a hard link
    await copy_to(session, Path("d"), "new")
    assert listing(there / "new/d") == listing(here / "d")
    await copy_from(session, "new/d/", Path("back"))
    assert listing(here / "back") == listing(here / "d")
    (there / "link").symlink_to("new")
    await copy_from(session, "link", Path("back"))
    assert listing(here / "back/link") == listing(there / "new")


async def test_a_file_into_the_guest(session: SshSession, here: Path, there: Path) -> None:
    (here / "f").write_text("1")
    (here / "f").chmod(0o750)
    (here / "l").symlink_to("f")
    await copy_to(session, Path("f"), f"{there}/deep/er/name with 'quotes'", "0600")
    made = there / "deep/er/name with 'quotes'"
    assert (made.read_text(), stat.S_IMODE(made.stat().st_mode)) == ("1", 0o600)
    await copy_to(session, Path("l"), "deep")
    made = there / "deep/l"
    assert (made.is_symlink(), made.read_text()) == (False, "1")
    assert stat.S_IMODE(made.stat().st_mode) == 0o750
    (here / "f").write_text("2")
    await copy_to(session, here / "f", "deep/l", parents=False)
    assert made.read_text() == "2"
    await copy_to(session, here / "f", "")
    assert (there / "f").read_text() == "2"


async def test_a_file_out_of_the_guest(session: SshSession, here: Path, there: Path) -> None:
    (there / "f").write_text("1")
    (there / "-x y").write_text("2")
    await copy_from(session, "f", Path())
    await copy_from(session, f"{there}/f", Path("g"))
    await copy_from(session, "-x y", here)
    assert [(here / name).read_text() for name in ("f", "g", "-x y")] == ["1", "1", "2"]
    (here / "l").symlink_to("g")
    await copy_from(session, "./-x y", Path("l"))
    assert ((here / "l").is_symlink(), (here / "g").read_text()) == (True, "2")
    await copy_from(session, "", Path())  # has no name: the guest's; never one that it says
    assert sorted(path.name for path in (here / "a").iterdir()) == ["-x y", "f"]


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("none", "x", "none: no such file or folder"),
        ("f", "no/x", "guest a: no/x: no such folder"),
        ("f", "no/", "guest a: no/: no such folder"),
        ("d", "f", "guest a: f is a file: a folder cannot be copied onto it"),
        ("d", "f/x", "guest a: f/x: no such folder"),
        ("f", "d", "guest a: d: "),
    ],
)
async def test_mistakes_on_the_way_in(
    session: SshSession, here: Path, there: Path, source: str, target: str, said: str
) -> None:
    (here / "d").mkdir()
    (here / "f").write_text("1")
    (there / "f").write_text("old")
    (there / "d/f/g").mkdir(parents=True)
    with pytest.raises(GuestError) as caught:
        await copy_to(session, Path(source), target, parents=False)
    assert str(caught.value).startswith(said)
    assert (there / "f").read_text() == "old"


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("none", ".", "guest a: none: no such file or folder"),
        ("f", "no/x", "no such folder"),
        ("f", "d/", "Is a directory|no file"),
        ("d", "f", "f: Not a directory"),
        ("fifo", "x", "guest a: fifo: it is neither a file nor a folder"),
    ],
)
async def test_mistakes_on_the_way_out(
    session: SshSession, here: Path, there: Path, source: str, target: str, said: str
) -> None:
    (there / "d").mkdir()
    (there / "f").write_text("1")
    os.mkfifo(there / "fifo")
    (here / "f").write_text("old")
    (here / "d/f").mkdir(parents=True)
    with pytest.raises(GuestError, match=said):
        await copy_from(session, source, Path(target))
    assert sorted(path.name for path in here.iterdir()) == ["d", "f"]


async def test_what_is_no_archive(session: SshSession, shell: Shell, here: Path) -> None:
    for answer in (b"", b"Welcome!\n", b"x" * 1_000_000):
        shell.answer = answer
        with pytest.raises(GuestError, match="guest a: f: its archive is"):
            await copy_from(session, "f", Path())
    assert list(here.iterdir()) == []


async def test_silence_ends(
    session: SshSession, shell: Shell, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy, "STALL_SECONDS", 0.3)
    shell.silent = True
    with pytest.raises(WaitTimeoutError):
        await copy_from(session, "f", Path())


async def test_cancelling_closes_the_transport_and_leaves_no_half_file(
    session: SshSession, shell: Shell, here: Path
) -> None:
    shell.silent = True
    copying = asyncio.ensure_future(copy_from(session, "f", Path()))
    await asyncio.sleep(0.3)
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    transport = session.client.get_transport()
    assert transport is None or not transport.is_active()
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a:x", ("a", "x")), ("a:", ("a", "")), ("lab/a:/x:y", ("lab/a", "/x:y")),
        ("a:~/x", ("a", "x")), ("a:~", ("a", "")), ("./a:b", None), ("/a:b", None),
        ("x", None), ("a/b/c:d", None), (":x", None),
    ],
)
def test_places(text: str, place: tuple[str, str] | None) -> None:
    assert parse_place(text) == place


def test_the_last_line_of_a_complaint() -> None:
    said = "tar: x: \x1b[31mno\x07\ntar: error exit delayed from previous errors\n"
    assert complaint(said) == "x: no"
    assert complaint("") == ""
