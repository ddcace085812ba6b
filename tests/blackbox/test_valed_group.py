# SPDX-License-Identifier: BSD-2-Clause
"""valed --group: whose sockets those of valed and of its ports are.

    rundir/ (2750 GROUP)   netmap.sock, vale1:v (0660 GROUP)   qmp.sock, state.json (0600)
"""

import errno
import grp
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.native import SECONDS
from lib.valed import BINARY, NOBODY, Valed, environment

pytestmark = pytest.mark.blackbox

GROUP = grp.getgrnam("daemon")
PORTS = {"vale1:v": "vhost-user", "vale1:s": "stream"}


@pytest.fixture
def shared() -> Iterator[Valed]:
    """With a group, and two ports whose sockets were made when the sandbox was closed."""
    with Valed.run("--group", GROUP.gr_name) as valed:
        valed.rundir.parent.chmod(0o755)
        add_ports(valed)
        yield valed


def add_ports(valed: Valed) -> None:
    for name, kind in PORTS.items():
        valed.qmp().execute("port-add", name=name, kind=kind)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def connect(path: Path, *groups: int) -> int:
    """The errno of somebody else, in these groups besides his own, who connects; or 0."""
    child = os.fork()
    if child == 0:
        kind = socket.SOCK_SEQPACKET if path.name == "netmap.sock" else socket.SOCK_STREAM
        os.setgroups(groups)
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        os._exit(socket.socket(socket.AF_UNIX, kind).connect_ex(str(path)))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_without_a_group_sockets_are_their_owners(valed: Valed) -> None:
    """Also in a --socket-dir; the directory is left as it was."""
    outside = valed.rundir.parent / "s"
    valed.qmp().execute("port-add", name="vale1:o", kind="stream", path=str(outside))
    add_ports(valed)
    for path in (outside, *(valed.rundir / name for name in ("netmap.sock", "qmp.sock", *PORTS))):
        assert (path.is_socket(), mode(path)) == (True, 0o600)
    assert mode(valed.rundir) == 0o700


@pytest.mark.another_user
@pytest.mark.parametrize("before", [None, 0o700, 0o755, 0o2700])
def test_directory_and_sockets_are_the_groups(before: int | None) -> None:
    """Also a directory that was there; what only valed reads stays its own."""
    with tempfile.TemporaryDirectory(prefix="vale-") as name:
        rundir = Path(name) / "run"
        if before is not None:
            rundir.mkdir()
            rundir.chmod(before)
        valed = Valed(rundir, "--group", GROUP.gr_name)
        add_ports(valed)
        private = {"valed.lock": 0o600, "state.json": 0o600, "qmp.sock": 0o600}
        for_group = dict.fromkeys(["netmap.sock", *PORTS], 0o660)
        assert {path.name: mode(path) for path in rundir.iterdir()} == private | for_group
        assert {(rundir / path).stat().st_gid for path in ("", *for_group)} == {GROUP.gr_gid}
        assert mode(rundir) == 0o2750
        valed.close_clients()
        valed.stop()


@pytest.mark.another_user
def test_members_connect_and_others_do_not(shared: Valed) -> None:
    """The same when valed is back and has made the sockets again."""
    for _ in range(2):
        for name in ("netmap.sock", *PORTS):
            assert connect(shared.rundir / name, GROUP.gr_gid) == 0, name
            assert connect(shared.rundir / name) == errno.EACCES, name
        assert connect(shared.rundir / "qmp.sock", GROUP.gr_gid) == errno.EACCES
        shared.close_clients()
        shared.restart()


@pytest.mark.another_user
def test_a_group_that_is_no_longer_named_is_out(shared: Valed) -> None:
    """The next valed, without --group, leaves the directory as it is; sockets are its own."""
    shared.close_clients()
    shared.argv = [arg for arg in shared.argv if arg not in ("--group", GROUP.gr_name)]
    shared.restart()
    assert mode(shared.rundir) == 0o2750
    for name in ("netmap.sock", "qmp.sock", *PORTS):
        assert connect(shared.rundir / name, GROUP.gr_gid) == errno.EACCES, name


@pytest.mark.another_user
@pytest.mark.parametrize(("dir_mode", "dir_gid"), [(0o700, 0), (0o2770, GROUP.gr_gid)])
def test_socket_dir_decides_on_the_group(shared: Valed, dir_mode: int, dir_gid: int) -> None:
    place = shared.rundir.parent / "guests"
    place.mkdir()
    os.chown(place, -1, dir_gid)
    place.chmod(dir_mode)
    shared.qmp().execute("port-add", name="vale1:o", kind="vhost-user", path=f"{place}/o")
    assert (mode(place), mode(place / "o")) == (dir_mode, 0o660)
    assert (place / "o").stat().st_gid == dir_gid
    assert connect(place / "o", GROUP.gr_gid) == (0 if dir_gid else errno.EACCES)


@pytest.mark.another_user
@pytest.mark.parametrize(
    ("member", "dir_mode", "dir_gid", "fits"),
    [
        (True, 0o700, NOBODY, True),
        (False, 0o700, NOBODY, False),
        (False, 0o700, GROUP.gr_gid, False),  # chmod would leave out set-group-ID in silence
        (False, 0o2750, GROUP.gr_gid, True),  # somebody else has done it
    ],
)
def test_valed_that_is_not_root(member: bool, dir_mode: int, dir_gid: int, fits: bool) -> None:
    """It may share its directory with a group that it is in; else one line says what to do."""
    with tempfile.TemporaryDirectory(prefix="vale-") as name:
        Path(name).chmod(0o755)
        program = shutil.copy(BINARY, name)  # which nobody may reach
        rundir = Path(name) / "run"
        rundir.mkdir()
        os.chown(rundir, NOBODY, dir_gid)
        rundir.chmod(dir_mode)
        done = subprocess.run(
            [program, "--rundir", str(rundir), "--group", GROUP.gr_name, "--linger", "1"],
            user=NOBODY, group=NOBODY, extra_groups=[GROUP.gr_gid] if member else [],
            env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        said = f"valed: {rundir}: cannot give it to the group of --group, with mode 2750: "
        if fits:
            assert (done.returncode, done.stderr) == (0, "")
            assert (mode(rundir), rundir.stat().st_gid) == (0o2750, GROUP.gr_gid)
        else:
            assert done.returncode == 1
            assert done.stderr.startswith(said + "Operation not permitted; ")
            assert done.stderr.count("\n") == 1
