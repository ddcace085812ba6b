# SPDX-License-Identifier: BSD-2-Clause
"""Micro guests under TCG, for tests that need real drivers on an unmodified QEMU.

    guest = Guest(folder, "a", 1, [vhost_user(rundir / "vale1:a")])
    guest.connect()
    guest.run("ip link")

NIC i of a guest is `valei`; another NIC carries SSH over QEMU's `user` netdev.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lib.native import Deadline
from lib.qmp import Qmp
from lib.valed import BINARY

ROOT = Path(__file__).parents[2]
BUILD = Path(os.environ.get("VALE_BUILD", ROOT / "build"))
QEMU = Path(os.environ.get("QEMU", "/usr/bin/qemu-system-x86_64"))
VALE_QEMU = Path(os.environ.get("VALE_QEMU", BUILD / "bin/qemu-system-x86_64-vale"))
MICRO = BUILD / "images/micro"
MICRO_FRR = BUILD / "images/micro-frr"
DEADLINE = 90
# QEMU before 9.0 forgets TCG's TLBs where it reads the dirty bitmap by whole words: after that,
# guest writes are lost for migration. Memory that is no multiple of 64 pages is read page by page.
MEMORY = f"{192 * 1024 + 8}K"

MARKS = [
    pytest.mark.guest,
    pytest.mark.skipif(not QEMU.exists(), reason=f"no {QEMU}: apt-get install qemu-system-x86"),
    pytest.mark.skipif(not BINARY.exists(), reason=f"no {BINARY}: run 'make tools'"),
    pytest.mark.skipif(
        not (MICRO / "manifest.json").exists(), reason=f"no {MICRO}: run 'make image'"
    ),
]


def free_port() -> int:
    """Find a TCP port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def version(qemu: Path) -> tuple[int, ...]:
    """(7, 2, 22) of a QEMU."""
    text = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version ([\d.]+)", text)
    assert found, text
    return tuple(int(n) for n in found[1].split("."))


def vhost_user(path: Path) -> list[str]:
    """A netdev on a vhost-user port that listens at this path; {n} becomes the NIC's number."""
    chardev = f"socket,id=c{{n}},path={path}"
    return ["-chardev", chardev, "-netdev", "vhost-user,id=n{n},chardev=c{n}"]


def stream(path: Path, *, server: bool = False) -> list[str]:
    """A netdev on a stream socket."""
    role = "on" if server else "off"
    return ["-netdev", f"stream,id=n{{n}},server={role},addr.type=unix,addr.path={path}"]


def netmap(rundir: Path, port: str, options: str = "") -> list[str]:
    """Our netdev on a port of the switch that runs there; only VALE_QEMU has it."""
    where = f"ifname={port},devname={rundir}/netmap.sock"
    return ["-netdev", f"netmap,id=n{{n}},{where}{options}"]


def begin(ssh: paramiko.SSHClient, name: str, command: str) -> Callable[[], str]:
    """Run a command in a guest; the function returned waits for its output."""
    _, stdout, stderr = ssh.exec_command(command, timeout=DEADLINE)

    def output() -> str:
        text: str = stdout.read().decode()
        errors = stderr.read().decode()
        assert stdout.channel.recv_exit_status() == 0, f"{name}: {command}: {errors}"
        return text

    return output


class Guest:
    """A QEMU that runs micro or another image, with these data NICs."""

    def __init__(
        self,
        folder: Path,
        name: str,
        number: int,
        netdevs: list[list[str]],
        *,
        qemu: Path = QEMU,
        options: tuple[str, ...] = (),
        model: str = "virtio-net-pci",
        nic_options: str = "",
        append: str = "",
        like: Guest | None = None,
        image: Path = MICRO,
    ) -> None:
        """like: the guest that this one is to become by migration."""
        self.name, self.number = name, number
        self.console = folder / f"{name}.console"
        self.qmp_path = folder / f"{name}.qmp"
        self.port = free_port()
        self.ssh = paramiko.SSHClient()
        self.private = like.private if like else self._make_key()
        self.paramiko_key = paramiko.Ed25519Key.from_private_key(io.StringIO(self.private))
        identity = folder / f"{name}.json"
        identity.write_text(json.dumps(self._identity(len(netdevs))))
        manifest = json.loads((image / "manifest.json").read_text())
        argv = [
            *(str(qemu), "-name", f"{name},debug-threads=on"),  # for those who count by thread
            *("-nodefaults", "-display", "none", "-no-reboot", "-m", MEMORY),
            *("-machine", "q35,memory-backend=mem", "-accel", "tcg", "-cpu", "Nehalem"),
            *("-object", f"memory-backend-memfd,id=mem,size={MEMORY},share=on"),
            *("-kernel", str(image / manifest["kernel"])),
            *("-initrd", str(image / manifest["initrd"])),
            *("-append", f"{manifest['append']} {append}", "-serial", f"file:{self.console}"),
            *("-qmp", f"unix:{self.qmp_path},server=on,wait=off"),
            *("-fw_cfg", f"name=opt/org.vale/guest,file={identity}"),
            *("-netdev", f"user,id=m,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22"),
            *("-device", f"virtio-net-pci,netdev=m,romfile=,mac={self.mac(9)}"),
        ]
        # QEMU before 8.0 crashes under TCG with vhost-user and MSI-X.
        for nic, netdev in enumerate(netdevs):
            device = f"{model},netdev=n{nic},romfile=,mac={self.mac(nic)}"
            if version(qemu) < (8,) and "vhost-user" in "".join(netdev):
                device += ",vectors=0"
            argv += [word.format(n=nic) for word in netdev] + ["-device", device + nic_options]
        argv += [*options, *(("-incoming", "defer") if like else ())]
        print("+", *argv, flush=True)
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def mac(self, nic: int) -> str:
        return f"52:54:00:00:0{nic}:0{self.number}"

    def address(self, nic: int = 0, *, ipv6: bool = False) -> str:
        return f"fd00::{nic}:{self.number}" if ipv6 else f"198.18.{nic}.{self.number}"

    @staticmethod
    def _make_key() -> str:
        return Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ).decode()

    def _identity(self, nics: int) -> dict[str, Any]:
        data = [
            {
                "mac": self.mac(nic),
                "name": f"vale{nic}",
                "mtu": 1500,
                "addresses": [f"{self.address(nic)}/24", f"{self.address(nic, ipv6=True)}/112"],
            }
            for nic in range(nics)
        ]
        mgmt = {"mac": self.mac(9), "name": "mgmt", "dhcp4": False, "addresses": ["10.0.2.15/24"]}
        public = f"ssh-ed25519 {self.paramiko_key.get_base64()} test"
        return {
            "hostname": self.name,
            "authorized_keys": [public],
            "host_key": self.private,
            "nics": [*data, mgmt],
        }

    def wait_ready(self) -> None:
        """Wait for the system."""
        end = time.monotonic() + DEADLINE
        while not self.console.exists() or "vale: ready" not in self.console.read_text("latin-1"):
            assert time.monotonic() < end, self.console.read_text("latin-1")[-2000:]
            assert self.process.poll() is None, f"QEMU ended with {self.process.returncode}"
            time.sleep(0.05)

    def connect(self, *, migrated: bool = False) -> None:
        """Wait for the system, and open SSH."""
        if not migrated:
            self.wait_ready()
        self.ssh.get_host_keys().add(f"[127.0.0.1]:{self.port}", "ssh-ed25519", self.paramiko_key)
        end = Deadline(DEADLINE)
        while True:
            try:
                self.ssh.connect(
                    "127.0.0.1", self.port, "root", pkey=self.paramiko_key, look_for_keys=False,
                    allow_agent=False, timeout=DEADLINE, banner_timeout=DEADLINE,
                )
                return
            except (paramiko.SSHException, OSError):
                # QEMU's user netdev has just lost its connections, and may refuse the first one.
                if not migrated:
                    raise
                assert self.process.poll() is None, f"QEMU ended with {self.process.returncode}"
                end.left(f"{self.name}: no SSH after migration")

    def start(self, command: str) -> Callable[[], str]:
        """Run a command; the function returned waits for its output."""
        return begin(self.ssh, self.name, command)

    def run(self, command: str) -> str:
        return self.start(command)()

    def read_file(self, path: str) -> bytes:
        """The bytes of a file in the guest."""
        _, stdout, _ = self.ssh.exec_command(f"cat {path}", timeout=DEADLINE)
        data: bytes = stdout.read()
        return data

    def write_file(self, path: str, data: bytes) -> None:
        """Make a file in the guest."""
        stdin, stdout, _ = self.ssh.exec_command(f"cat > {path}", timeout=DEADLINE)
        stdin.write(data)
        stdin.channel.shutdown_write()
        assert stdout.channel.recv_exit_status() == 0

    def serve(self, command: str, port: int) -> Callable[[], str]:
        """Start a server; return when it listens."""
        output = self.start(command)
        self.run(f"until cat /proc/net/tcp* | grep -q ':{port:04X} .* 0A '; do sleep 0.1; done")
        return output

    def snmp(self, protocol: str, counter: str) -> int:
        """A counter of /proc/net/snmp."""
        names, values = (
            line.split()
            for line in self.run("cat /proc/net/snmp").splitlines()
            if line.startswith(protocol + ":")
        )
        return int(values[names.index(counter)])

    def send_file(self, receiver: Guest, size: int, *, ipv6: bool = False) -> None:
        """A file of random bytes arrives as it was, and no segment of it is found bad."""
        self.run(f"[ -f /tmp/f ] || head -c {size} /dev/urandom > /tmp/f")
        digest = self.run("sha256sum < /tmp/f")
        # Its input never ends: nc would pass that on, and the other side take it for the end.
        receive = "[ -p /tmp/p ] || mkfifo /tmp/p; nc -l -p 9000 0<>/tmp/p | sha256sum"
        wanted = receiver.serve(receive, 9000)
        self.run(f"nc {receiver.address(ipv6=ipv6)} 9000 < /tmp/f")
        assert wanted() == digest
        for guest in (self, receiver):
            assert guest.snmp("Tcp", "InErrs") == guest.snmp("Tcp", "InCsumErrors") == 0

    def qmp(self) -> Qmp:
        """A QMP client of this QEMU; the caller closes it."""
        end = Deadline(DEADLINE)
        while True:
            try:
                return Qmp(self.qmp_path)
            except (FileNotFoundError, ConnectionRefusedError):  # bound, then listening
                signal.sigtimedwait([], min(0.02, end.left(f"{self.name}: no QMP")))

    def close(self) -> None:
        self.ssh.close()
        self.process.kill()
        self.process.wait()
