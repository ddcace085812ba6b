# SPDX-License-Identifier: BSD-2-Clause
"""What libvirt's hook decides on, its shell part, and the file that it is."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lib.valed import NOBODY
from valemgr.errors import EnvironmentUnfitError, StoreError, UsageError
from valemgr.virt import hook, hookfile, ports
from valemgr.virt.domxml import DomainView
from valemgr.virt.portxml import NAMESPACE

pytestmark = pytest.mark.unit

MAC = "52:54:00:00:00:01"
OPERATIONS = ("prepare", "start", "started", "stopped", "release", "reconnect", "migrate")
OURS = ("prepare", "start", "reconnect", "release")
FATAL = ("prepare", "start")


def xml(listed: str = "vale1:a", socket: str = "/run/vale/vale1:a", arguments: str = "") -> str:
    """A domain with a port in its metadata and a NIC with that MAC."""
    switch, _, name = listed.partition(":")
    words = "".join(f"<qemu:arg value='{word}'/>" for word in arguments.split())
    nic = f"<mac address='{MAC}'/><source type='unix' path='{socket}' mode='client'/>"
    return f"""\
<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>d</name>
  <metadata><vale:ports xmlns:vale='{NAMESPACE}'>
    <vale:port switch='{switch}' name='{name}' mac='{MAC}'/>
  </vale:ports></metadata>
  <devices>{f"<interface type='vhostuser'>{nic}</interface>" if socket else ""}</devices>
  <qemu:commandline>{words}</qemu:commandline>
</domain>
"""


def needs(text: str) -> hook.Needs:
    return hook.needs(DomainView.parse(text))


# Decisions.


def test_nic_that_the_metadata_lists_needs_its_port() -> None:
    found = needs(xml())
    assert [str(nic.port) for nic in found.nics] == ["vale1:a"]
    assert [hook.rundir_of(nic) for nic in found.nics] == [Path("/run/vale")]
    assert found.missing == ()


@pytest.mark.parametrize("socket", ["", "/run/vale/other.sock", "/run/vale/vale1-a:b:c"])
def test_listed_port_without_a_nic_is_missing(socket: str) -> None:
    found = needs(xml(socket=socket))
    assert found.nics == ()
    assert [str(mapped.port) for mapped in found.missing] == ["vale1:a"]


def test_nic_on_another_port_than_listed_is_refused() -> None:
    with pytest.raises(UsageError, match=r"on port vale1:b, but .* vale1:a: .*libvirt sync d'"):
        needs(xml(socket="/run/vale/vale1:b"))


def test_nic_whose_port_nobody_makes_is_refused(tmp_path: Path) -> None:
    """QEMU would wait for its socket for ever."""
    socket = tmp_path / "vale1:b"
    view = DomainView.parse(xml(socket=str(socket)).replace(MAC, "52:54:00:00:00:02", 1))
    with pytest.raises(UsageError, match=f"no {socket}: add it to <vale:ports>"):
        hook.require_sockets(view)
    socket.touch()
    hook.require_sockets(view)
    hook.require_sockets(DomainView.parse(xml()))


@pytest.mark.parametrize("socket", ["vale1:a", "vale/vale1:a", "../vale1:a"])
def test_path_that_is_not_absolute_is_refused(socket: str) -> None:
    with pytest.raises(UsageError, match="not absolute"):
        needs(xml(socket=socket))


@pytest.mark.parametrize(
    ("device", "rundir"),
    [
        (",devname=/run/vale/netmap.sock", Path("/run/vale")),
        (",devname=/dev/netmap", None),
        (",devname=netmap.sock", None),
        ("", None),
    ],
)
def test_netmap_nic_needs_a_valed_where_its_socket_is(device: str, rundir: Path | None) -> None:
    line = f"-netdev netmap,id=n,ifname=vale1:a{device} -device e1000,netdev=n,mac={MAC}"
    (nic,) = needs(xml(socket="", arguments=line)).nics
    assert hook.rundir_of(nic) == rundir


def test_metadata_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(UsageError, match="<vale:port> 1"):
        needs(xml(listed="br0:a"))


# Whether QEMU may connect.


def test_first_refusal_names_what_keeps_a_user_out(tmp_path: Path) -> None:
    """By the modes of a path's last two parts; directories above are for all."""
    base = Path("/tmp") / f"vale-{os.getpid()}-{tmp_path.name}"
    socket = base / "vale1:a"
    base.mkdir()
    try:
        socket.touch()
        me, gid = os.getuid(), base.stat().st_gid
        for dir_mode, mode, uid, groups, stop in (
            (0o700, 0o600, me, set(), None),
            (0o700, 0o666, NOBODY, set(), base),
            (0o750, 0o660, NOBODY, {gid}, None),
            (0o750, 0o660, NOBODY, {gid + 1}, base),
            (0o755, 0o600, NOBODY, {gid}, socket),
            (0o755, 0o640, NOBODY, {gid}, socket),
            (0o755, 0o662, NOBODY, {gid + 1}, None),
            (0o000, 0o000, 0, set(), None),
        ):
            base.chmod(dir_mode)
            socket.chmod(mode)
            if not os.access(socket, os.F_OK):
                continue  # the last row, where root is another
            assert ports.first_refusal(socket, uid, groups) == stop, (oct(dir_mode), oct(mode))
    finally:
        base.chmod(0o700)
        socket.unlink()
        base.rmdir()


# The shell part.


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hook runs for domains of ours: notes its arguments and input, and fails."""
    path = tmp_path / "python of ours"
    path.write_text(f'#!/bin/sh\n{{ echo "$@"; cat; }} >> "{tmp_path}/called"\nexit 1\n')
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return path


def call(path: Path, operation: str, text: str) -> "subprocess.CompletedProcess[str]":
    argv = ["/bin/sh", str(path), "d", operation, "begin", "-"]
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    return subprocess.run(
        argv, input=text, env=env, cwd="/", capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_domains_of_others_do_not_reach_python(
    tmp_path: Path, python: Path, operation: str
) -> None:
    path = hookfile.install(tmp_path / "qemu.d", "")
    foreign = xml().replace(NAMESPACE, "urn:somebody:else")
    for text in (foreign, foreign * 500, ""):
        done = call(path, operation, text)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_python_gets_the_xml_and_fails_a_start_only(
    tmp_path: Path, python: Path, operation: str
) -> None:
    """At `reconnect` libvirt would end the guest."""
    path = hookfile.install(tmp_path / "qemu.d", "")
    text = xml() + "<!-- $HOME `id` \\ ' \" -->\n" * 3000
    done = call(path, operation, text)
    assert (done.returncode, done.stdout) == (operation in FATAL, "")
    called = tmp_path / "called"
    if operation in OURS:
        words = f"-P -m valemgr.virt.hook  d {operation} begin -"
        assert called.read_text().rstrip() == f"{words}\n{text.rstrip()}"
    else:
        assert not called.exists()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_valemgr_that_is_gone_is_said_and_fails_a_start_only(
    tmp_path: Path, python: Path, operation: str
) -> None:
    path = hookfile.install(tmp_path / "qemu.d", "")
    python.unlink()
    assert call(path, operation, xml().replace(NAMESPACE, "x")).returncode == 0
    done = call(path, operation, xml())
    assert (done.returncode, done.stdout) == (operation in FATAL, "")
    assert done.stderr.count("\n") == (operation in OURS)
    if operation in OURS:
        assert f"{python} or " in done.stderr
        assert "valemgr libvirt remove-hook" in done.stderr


def test_start_is_ours_only_where_no_group_says_who_qemu_is(
    tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hookfile, "_checked", lambda group: group)
    path = hookfile.install(tmp_path / "qemu.d", "qemus")
    assert call(path, "start", xml()).returncode == 0
    assert not (tmp_path / "called").exists()
    assert call(path, "prepare", xml()).returncode == 1
    assert (tmp_path / "called").read_text().startswith("-P -m valemgr.virt.hook qemus d prepare")


def test_real_python_refuses_in_one_line(tmp_path: Path) -> None:
    path = hookfile.install(tmp_path / "qemu.d", "")
    done = call(path, "start", xml(socket="/run/vale/vale1:b"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vale: domain d: NIC 52:54:00:00:00:01 is on port vale1:b")
    assert done.stderr.count("\n") == 1
    done = call(path, "reconnect", xml(socket="/run/vale/vale1:b"))
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)


# The file.


def test_install_replaces_and_remove_removes_what_is_ours(tmp_path: Path) -> None:
    folder = tmp_path / "qemu.d"
    assert hookfile.remove(folder) is None
    path = hookfile.install(folder, None)
    assert path == folder / "50-vale"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert "group=''" in path.read_text()
    assert hookfile.install(folder, "nogroup") == path
    assert "group=nogroup" in path.read_text()
    assert list(folder.iterdir()) == [path]
    assert hookfile.remove(folder) == path
    assert list(folder.iterdir()) == []


def test_a_file_of_somebody_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "50-vale"
    path.write_text("#!/bin/sh\nexit 0\n")
    for change in (lambda: hookfile.install(tmp_path, ""), lambda: hookfile.remove(tmp_path)):
        with pytest.raises(StoreError, match="50-vale is not ours"):
            change()
    assert path.read_text() == "#!/bin/sh\nexit 0\n"


def test_group_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--group no-such-group: no such group"):
        hookfile.install(tmp_path, "no-such-group")
    assert list(tmp_path.iterdir()) == []


def test_first_group_that_exists() -> None:
    assert hookfile.first_group(["root", "qemu", "libvirt-qemu"]) == "libvirt-qemu"
    assert hookfile.first_group(["root", "qemu"]) == "qemu"
    assert hookfile.first_group(["root"]) == ""


def test_advice_says_what_libvirt_needs(tmp_path: Path) -> None:
    assert "reload" in hookfile.advice(hookfile.SYSTEM_DIR / hookfile.NAME)[0]
    assert "/etc/libvirt/hooks/qemu.d" in hookfile.advice(tmp_path / hookfile.NAME)[0]


@pytest.mark.another_user
def test_who_may_not_write_there_is_told_to_use_sudo(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            hookfile.install(Path("/etc/vale-test"), "")
        except EnvironmentUnfitError as exc:
            os._exit(0 if "run 'sudo " in str(exc) and "install-hook'" in str(exc) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
