# SPDX-License-Identifier: BSD-2-Clause
"""A libvirtd of a test's own: in mount, PID and network namespaces, with directories of its own.

    with Libvirtd.make(folder) as libvirtd:
        libvirtd.virsh("create", str(xml))
        libvirtd.run(VALEMGR, "status")            # a command inside
        (libvirtd.hooks / "qemu").write_text(HOOK)

It sees the machine's files, except that /run, /etc/libvirt, /var/lib, /var/cache and /var/log are
its own: a libvirtd of the machine is never reached, and nothing is left. /etc/passwd and
/etc/group are its own as well, and build/images is read-only: libvirtd gives what a domain uses to
the user of its QEMU. `session` makes it that of an ordinary user, in a user namespace.
An ordinary user can have a session; as root he needs subordinate ids (/etc/subuid).
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lib import guest
from lib.guest import MEMORY, MICRO, VALE_QEMU
from lib.native import Deadline
from lib.valed import eventually

SECONDS = 60.0  # for libvirtd to start, and for a command
OWN = {
    "run": "/run",
    "etc": "/etc/libvirt",
    "lib": "/var/lib",
    "cache": "/var/cache",
    "log": "/var/log",
}
LIBVIRT = "libvirt-daemon libvirt-clients"
USER = 1000  # whose session it is

PASSWD = f"""\
root:x:0:0:root:/run/home:/bin/sh
somebody:x:{USER}:{USER}::/run/home:/bin/sh
libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
GROUP = f"""\
root:x:0:
somebody:x:{USER}:
libvirt-qemu:x:64055:
nogroup:x:65534:
"""
# No cgroups and no security module: they belong to the machine. No owners in extended attributes:
# that is for real root, and those of a file outlive us.
QEMU_CONF = """\
security_driver = "none"
remember_owner = 0
cgroup_controllers = []
namespaces = []
"""
LIBVIRTD_CONF = """\
auth_unix_rw = "none"
unix_sock_rw_perms = "0777"
"""
# The first process inside. It says its pid as seen outside, and that of a process in the user
# namespace of the session; it reaps what is left to it, and ends when its input does.
INIT = f"""
set -e
read -r pid rest < /proc/self/stat
cd "$1"
mount -t proc proc /proc
for own in {" ".join(f"{name}:{target}" for name, target in OWN.items())}; do
    mount --bind "${{own%%:*}}" "${{own#*:}}"
done
mount --bind passwd /etc/passwd
mount --bind group /etc/group
if [ -d "$2" ]; then
    mount --bind "$2" "$2"
    mount -o remount,bind,ro "$2"
fi
ip link set lo up
cd /
if [ "$3" ]; then
    {{ unshare --user --map-user={USER} --map-group={USER} \
        sh -c 'echo "$1 $$"; exec sleep infinity > /dev/null' sh "$pid" < /dev/null ||
        echo refused; }} &
else
    echo "$pid $$"
fi
exec > /dev/null
cat
exit
"""


@cache
def why_not(*, session: bool = False) -> str:
    """Why this machine cannot run such tests, "" when it can."""
    for program, package in {
        "libvirtd": LIBVIRT, "virtlogd": LIBVIRT, "virsh": LIBVIRT, "unshare": "util-linux",
        "nsenter": "util-linux", "setpriv": "util-linux", "ip": "iproute2",
    }.items():  # fmt: skip
        if not find(program):
            return f"no {program}: apt-get install {package}"
    if os.geteuid() != 0 and not session and not find("newuidmap"):
        return "no newuidmap: apt-get install uidmap"  # libvirtd sets groups for its QEMUs
    with tempfile.TemporaryDirectory(prefix="vale-") as name:
        try:
            inside = Inside(Path(name), session=session)
            seen = inside.run("cat", "/etc/group", cwd=Path("/")).stdout
            inside.close()
            if not seen.startswith(GROUP):
                return "commands in a namespace see other files: is this a chroot?"
        except AssertionError as exc:
            return f"no namespaces of our own: {exc}"
    return ""


def _kvm_group() -> str:
    """As Debian has it: libvirt asks every emulator anew, always, if its user may not use KVM."""
    try:
        gid = Path("/dev/kvm").stat().st_gid
    except OSError:
        return ""
    return f"kvm:x:{gid}:libvirt-qemu\n" if gid else ""


def find(program: str) -> str | None:
    """Where it is; an ordinary user's PATH may have no sbin."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


class Inside:
    """Namespaces with directories of their own, and what runs in them."""

    def __init__(self, folder: Path, *, session: bool = False) -> None:
        self.folder = folder.absolute()
        self.session = session
        for name in OWN:
            (self.folder / name).mkdir()
            (self.folder / name).chmod(0o755)
        (self.folder / "passwd").write_text(PASSWD)
        (self.folder / "group").write_text(GROUP + _kvm_group())
        self.env = self._environment()
        isolate = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"]
        isolate += ["--propagation", "private"]
        if os.geteuid() != 0:
            isolate += ["--user", "--map-root-user", *([] if session else ["--map-auto"])]
        self.log = self.folder / "inside.log"
        with self.log.open("w") as log:
            words = [str(self.folder), str(MICRO.parent), "session" if session else ""]
            self.process = subprocess.Popen(
                [*isolate, "sh", "-c", INIT, "sh", *words],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, "PATH": self.env["PATH"]},
            )  # fmt: skip
        assert self.process.stdout
        words = self.process.stdout.readline().split()
        if len(words) != 2:
            self.close()
            raise AssertionError(self.log.read_text().strip())
        self.pid, self.user = words  # of the first process outside, and of the user's inside

    def _environment(self) -> dict[str, str]:
        env = {
            k: v for k, v in os.environ.items() if not k.startswith(("LIBVIRT", "VIRSH", "VALE"))
        }
        home = self.folder / "run" / "home"
        home.mkdir()
        env |= {"HOME": "/run/home", "USER": "somebody" if self.session else "root"}
        env["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
        for name in ("RUNTIME_DIR", "CONFIG_HOME", "CACHE_HOME", "STATE_HOME", "DATA_HOME"):
            folder = name.partition("_")[0].lower()
            (home / folder).mkdir(mode=0o700)
            env[f"XDG_{name}"] = f"/run/home/{folder}"
        env["LIBVIRT_AUTOSTART"] = "0"  # where it was ended, a client shall not start another
        return env

    def outside(self, path: str) -> Path:
        """Where a file of its own directories is for us."""
        for name, target in OWN.items():
            if Path(path).is_relative_to(target):
                return self.folder / name / Path(path).relative_to(target)
        raise ValueError(f"{path} is the machine's")

    def argv(self, *argv: str | Path, cwd: Path | None = None) -> list[str]:
        """The command line that runs a program inside; it is killed when that of ours is."""
        enter = ["nsenter", "--target", self.pid, "--mount", "--pid", "--net"]
        if os.geteuid() != 0:
            enter += ["--user", "--preserve-credentials"]
        if self.session:
            enter += ["nsenter", "--target", self.user, "--user", "--preserve-credentials"]
        enter += ["setpriv", "--pdeathsig", "KILL", "env", f"--chdir={cwd or Path.cwd()}"]
        return [*enter, *(str(word) for word in argv)]

    def popen(
        self,
        *argv: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        **options: Any,
    ) -> "subprocess.Popen[str]":
        """A command that runs inside; the process we see is the one that waits for it."""
        print("+", shlex.join(str(word) for word in argv), flush=True)
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            self.argv(*argv, cwd=cwd), text=True, env={**self.env, **(env or {})},
            **(streams | options),
        )  # fmt: skip

    def run(
        self,
        *argv: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        input: str = "",  # noqa: A002
        ok: bool = False,
        timeout: float = SECONDS,
    ) -> "subprocess.CompletedProcess[str]":
        """A command inside to its end, and what it said; `ok`: it must succeed."""
        process = self.popen(*argv, env=env, cwd=cwd)
        try:
            out, err = process.communicate(input, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            print(out, err, f"not within {timeout} s", flush=True)
            raise
        print(out, err, f"exit {process.returncode}", flush=True)
        assert not ok or process.returncode == 0, err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def close(self) -> None:
        """End everything inside: that goes with the first process."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


class Libvirtd(Inside):
    """A running libvirtd; `user` is whose its QEMUs are. Skips the test where it cannot be."""

    def __init__(self, folder: Path, *, user: str = "root", session: bool = False) -> None:
        if reason := why_not(session=session):
            pytest.skip(reason)
        super().__init__(folder, session=session)
        self.uri = "qemu:///session" if session else "qemu:///system"
        self.config = self.outside("/run/home/config/libvirt" if session else "/etc/libvirt")
        self.hooks = self.config / "hooks"
        self.hooks.mkdir(parents=True)
        more = "" if session else f'user = "{user}"\ngroup = "{user}"\n'
        (self.config / "qemu.conf").write_text(QEMU_CONF + more)
        (self.config / "libvirtd.conf").write_text(LIBVIRTD_CONF)
        (self.config / "virtlogd.conf").touch()
        try:
            if not session:  # a session starts its own
                self.virtlogd = self._daemon("virtlogd")
            self.start()
        except BaseException:
            self.close()
            raise

    @classmethod
    @contextlib.contextmanager
    def make(
        cls, folder: Path, *, user: str = "root", session: bool = False
    ) -> Iterator["Libvirtd"]:
        """One for the length of a block."""
        libvirtd = cls(folder, user=user, session=session)
        try:
            yield libvirtd
        finally:
            libvirtd.close()

    def _daemon(self, name: str) -> "subprocess.Popen[str]":
        with (self.folder / f"{name}.log").open("a") as log:
            return self.popen(
                name, "--pid-file", f"/run/{name}.own-pid",
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=Path("/"),
            )  # fmt: skip

    def errors(self) -> str:
        """What libvirtd and virtlogd said."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def start(self) -> None:
        """Start libvirtd; returns when it answers."""
        self.libvirtd = self._daemon("libvirtd")
        deadline = Deadline(SECONDS)

        def answers() -> bool:
            assert self.libvirtd.poll() is None, f"libvirtd did not start: {self.errors()}"
            return self.run("virsh", "-c", self.uri, "uri").returncode == 0

        eventually(f"libvirtd: {self.errors()}", answers, deadline.left("libvirtd"))

    def stop(self, sig: str = "TERM") -> None:
        """End libvirtd in this way; domains go on."""
        pid = self.outside("/run/libvirtd.own-pid").read_text().strip()
        self.run("kill", f"-{sig}", pid, ok=True)
        self.libvirtd.wait(SECONDS)

    def restart(self, sig: str = "TERM") -> None:
        """End libvirtd in this way, and start it again; domains go on."""
        self.stop(sig)
        self.start()

    def virsh(self, *argv: str | Path) -> str:
        """What a command of virsh that must succeed prints."""
        return self.run("virsh", "-c", self.uri, *argv, ok=True).stdout


def domain(name: str, devices: str = "", *, emulator: Path = VALE_QEMU, more: str = "") -> str:
    """The XML of a domain that runs micro under TCG; `more` comes beside <devices>."""
    manifest = json.loads((MICRO / "manifest.json").read_text())
    return f"""\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='KiB'>{MEMORY.removesuffix("K")}</memory>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{MICRO / manifest["kernel"]}</kernel>
    <initrd>{MICRO / manifest["initrd"]}</initrd>
    <cmdline>{manifest["append"]}</cmdline>
  </os>
  <cpu mode='custom'><model>Nehalem</model></cpu>
  {more}
  <devices>
    <emulator>{emulator}</emulator>
    <serial type='pty'><log file='/run/{name}.console'/></serial>
    <memballoon model='none'/>
    {devices}
  </devices>
</domain>
"""


NOT = why_not(session=os.geteuid() != 0)  # an ordinary user can have a session at least
MARKS = [*guest.MARKS, pytest.mark.skipif(bool(NOT), reason=NOT)]
