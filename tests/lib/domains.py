# SPDX-License-Identifier: BSD-2-Clause
"""Domains of a private libvirtd that run micro, for commands in the guest over SSH.

They are like those that somebody else made: what a NIC on a port needs is given by `more` or not.
"""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import paramiko

from lib.guest import BUILD, DEADLINE, VALE_QEMU, Guest, begin
from lib.libvirtd import Libvirtd, domain
from lib.valed import eventually

VALEMGR = BUILD / "bin/valemgr"
SHARED = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
ROOT = "<controller type='pci' index='0' model='pcie-root'/>"
ROOT_PORT = "<controller type='pci' model='pcie-root-port'/>"
QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
# sshd of the guest is in the network namespace of its libvirtd: bytes go through a process there.
RELAY = """
import os, socket, sys, threading
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def send():
    while data := os.read(0, 65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while data := sock.recv(65536):
    os.write(1, data)
"""


class Place:
    """A libvirtd, and valemgr beside it."""

    def __init__(self, libvirtd: Libvirtd) -> None:
        self.libvirtd = libvirtd

    def libvirt(self, *words: str, code: int = 0) -> str:
        """A command that ends so; what it said on stderr, or on stdout where there is that."""
        done = self.libvirtd.run(VALEMGR, "libvirt", *words)
        assert done.returncode == code, done.stderr
        return done.stdout or done.stderr

    def nics(self) -> list[dict[str, Any]]:
        rows = json.loads(self.libvirt("status", "--format", "json"))["nics"]
        assert isinstance(rows, list)
        return rows

    def ports(self) -> list[dict[str, Any]]:
        """Ports of the switch vale1, as valed has them."""
        done = self.libvirtd.run(BUILD / "bin/valectl", "--json", "list", "vale1")
        ports = json.loads(done.stdout or "[]")
        assert isinstance(ports, list)
        return ports

    @contextmanager
    def valed(self) -> Iterator[None]:
        """One that outlives valemgr's commands."""
        process = self.libvirtd.popen(BUILD / "bin/valed", "--rundir", "/run/vale")
        eventually("valed", self.libvirtd.outside("/run/vale/qmp.sock").exists)
        yield
        process.terminate()
        process.communicate()

    def xml(self, name: str, *words: str) -> str:
        return self.libvirtd.virsh("dumpxml", name, *words)


class DomainGuest:
    """A domain, defined and started; `number` makes its addresses and its SSH port."""

    def __init__(
        self,
        libvirtd: Libvirtd,
        name: str,
        number: int,
        *,
        devices: str = "",
        more: str = SHARED,
        arguments: tuple[str, ...] = ("-global", "virtio-net-pci.vectors=0"),
        spare: int = 4,
        emulator: Path = VALE_QEMU,
    ) -> None:
        self.libvirtd, self.name, self.number = libvirtd, name, number
        self.port = 2200 + number
        self.private = Guest._make_key()
        self.key = paramiko.Ed25519Key.from_private_key(StringIO(self.private))
        self.ssh: paramiko.SSHClient | None = None
        identity = libvirtd.outside(f"/run/{name}.json")
        identity.write_text(json.dumps(self._identity()))
        identity.chmod(0o644)
        sysinfo = "<sysinfo type='fwcfg'><entry name='opt/org.vale/guest' "
        sysinfo += f"file='/run/{name}.json'/></sysinfo>"
        forward = f"user,id=m,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22"
        nic = f"virtio-net-pci,netdev=m,romfile=,mac={self.mac(9)},bus=pcie.0,addr=0x10"
        words = (*arguments, "-netdev", forward, "-device", nic)
        line = "".join(f"<qemu:arg value='{word}'/>" for word in words)
        text = domain(
            name, ROOT + ROOT_PORT * spare + devices, emulator=emulator,
            more=f"{sysinfo}<features><acpi/><apic/></features>{more}<qemu:commandline>{line}</qemu:commandline>",
        )  # fmt: skip
        self.file = libvirtd.outside(f"/run/{name}.xml")
        self.file.write_text(text.replace("<domain ", f"<domain {QEMU} ", 1))

    def mac(self, nic: int) -> str:
        return f"52:54:00:00:0{nic}:0{self.number}"

    def address(self) -> str:
        return f"198.18.0.{self.number}"

    def _identity(self) -> dict[str, object]:
        data = {"mac": self.mac(0), "name": "vale0", "mtu": 1500}
        mgmt = {"mac": self.mac(9), "name": "mgmt", "dhcp4": False, "addresses": ["10.0.2.15/24"]}
        return {
            "hostname": self.name,
            "authorized_keys": [f"ssh-ed25519 {self.key.get_base64()} test"],
            "host_key": self.private,
            "nics": [{**data, "addresses": [f"{self.address()}/24"]}, mgmt],
        }

    def define(self) -> None:
        self.libvirtd.virsh("define", f"/run/{self.name}.xml")

    def start(self) -> None:
        self.libvirtd.virsh("start", self.name)
        self.connect()

    def connect(self) -> None:
        """Wait until it has booted, and open SSH."""
        console = self.libvirtd.outside(f"/run/{self.name}.console")
        eventually(
            f"{self.name} to boot", lambda: "vale: ready" in console.read_text("latin-1"), DEADLINE
        )
        relay = self.libvirtd.argv("python3", "-c", RELAY, str(self.port), cwd=Path("/"))
        self.ssh = paramiko.SSHClient()
        self.ssh.get_host_keys().add(self.name, "ssh-ed25519", self.key)
        self.ssh.connect(
            self.name, username="root", pkey=self.key, look_for_keys=False, allow_agent=False,
            sock=paramiko.ProxyCommand(shlex.join(relay)), timeout=DEADLINE,
            banner_timeout=DEADLINE,
        )  # fmt: skip

    def begin(self, command: str) -> Callable[[], str]:
        """Run a command; the function returned waits for its output."""
        assert self.ssh
        return begin(self.ssh, self.name, command)

    def run(self, command: str) -> str:
        return self.begin(command)()

    def set_up(self, mac: str, address: str) -> None:
        """Give the NIC with this MAC an address, once it is there and has a link."""
        self.run(f"""
            until file=$(grep -l {mac} /sys/class/net/*/address); do sleep 0.05; done
            nic=$(basename $(dirname $file))
            ip addr replace {address}/24 dev $nic && ip link set $nic up
            until [ "$(cat /sys/class/net/$nic/carrier)" = 1 ]; do sleep 0.05; done
        """)

    def nics(self) -> int:
        """How many the guest has, beside lo and mgmt."""
        return len(self.run("ls /sys/class/net").split()) - 2

    def close(self) -> None:
        if self.ssh:
            self.ssh.close()
