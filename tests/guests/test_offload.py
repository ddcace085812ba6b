# SPDX-License-Identifier: BSD-2-Clause
"""Offloads between real guests: unmodified QEMU, real Linux drivers, a real valed.

    guest a  vale0 ── vhost-user ──┐                  a and b leave checksums and segmentation
    guest b  vale0 ── vhost-user ──┼── valed          undone for each other; c knows neither, so
    guest c  vale0 ── stream ──────┘                  valed does the work between them
    guest a  vale1 ══ QEMU's stream netdev ══ vale1  guest b     (the baseline)

A guest's kernel checks every checksum it is not told to trust, and counts the wrong ones.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lib.valed import BINARY, Valed, check_books

ROOT = Path(__file__).parents[2]
BUILD = Path(os.environ.get("VALE_BUILD", ROOT / "build"))
QEMU = Path(os.environ.get("QEMU", "/usr/bin/qemu-system-x86_64"))
MICRO = BUILD / "images/micro"
DEADLINE = 90
FILE_BYTES = 24 << 20

pytestmark = [
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


class Guest:
    """A stock QEMU that runs micro, with these data NICs."""

    def __init__(self, folder: Path, name: str, number: int, netdevs: list[list[str]]) -> None:
        self.name, self.number = name, number
        self.console = folder / f"{name}.console"
        self.port = free_port()
        self.key = Ed25519PrivateKey.generate()
        self.ssh = paramiko.SSHClient()
        private = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ).decode()
        self.paramiko_key = paramiko.Ed25519Key.from_private_key(io.StringIO(private))
        identity = folder / f"{name}.json"
        identity.write_text(json.dumps(self._identity(private, len(netdevs))))
        manifest = json.loads((MICRO / "manifest.json").read_text())
        argv = [
            str(QEMU), *("-nodefaults", "-display", "none", "-no-reboot", "-m", "192M"),
            *("-machine", "q35,memory-backend=mem", "-accel", "tcg", "-cpu", "Nehalem"),
            *("-object", "memory-backend-memfd,id=mem,size=192M,share=on"),
            *("-kernel", str(MICRO / "vmlinuz"), "-initrd", str(MICRO / "initrd.img")),
            *("-append", manifest["append"], "-serial", f"file:{self.console}"),
            *("-fw_cfg", f"name=opt/org.vale/guest,file={identity}"),
            *("-netdev", f"user,id=m,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22"),
            *("-device", f"virtio-net-pci,netdev=m,romfile=,mac={self.mac(9)}"),
        ]
        for nic, netdev in enumerate(netdevs):
            # QEMU before 8.0 crashes under TCG with vhost-user and MSI-X: vectors=0.
            device = f"virtio-net-pci,netdev=n{nic},romfile=,vectors=0,mac={self.mac(nic)}"
            argv += [*netdev, "-device", device]
        print("+", *argv, flush=True)
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def mac(self, nic: int) -> str:
        return f"52:54:00:00:0{nic}:0{self.number}"

    def address(self, nic: int = 0, *, ipv6: bool = False) -> str:
        return f"fd00::{nic}:{self.number}" if ipv6 else f"198.18.{nic}.{self.number}"

    def _identity(self, private: str, nics: int) -> dict[str, Any]:
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
            "host_key": private,
            "nics": [*data, mgmt],
        }

    def connect(self) -> None:
        """Wait for the system, and open SSH."""
        end = time.monotonic() + DEADLINE
        while not self.console.exists() or "vale: ready" not in self.console.read_text("latin-1"):
            assert time.monotonic() < end, self.console.read_text("latin-1")[-2000:]
            assert self.process.poll() is None, "QEMU ended"
            time.sleep(0.05)
        self.ssh.get_host_keys().add(f"[127.0.0.1]:{self.port}", "ssh-ed25519", self.paramiko_key)
        self.ssh.connect(
            "127.0.0.1", self.port, "root", pkey=self.paramiko_key, look_for_keys=False,
            allow_agent=False, timeout=DEADLINE, banner_timeout=DEADLINE,
        )

    def start(self, command: str) -> Callable[[], str]:
        """Run a command; the function returned waits for its output."""
        _, stdout, stderr = self.ssh.exec_command(command, timeout=DEADLINE)

        def output() -> str:
            text: str = stdout.read().decode()
            errors = stderr.read().decode()
            assert stdout.channel.recv_exit_status() == 0, f"{self.name}: {command}: {errors}"
            return text

        return output

    def run(self, command: str) -> str:
        return self.start(command)()

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

    def close(self) -> None:
        self.ssh.close()
        self.process.kill()
        self.process.wait()


class Lab:
    """The three guests and their switch."""

    def __init__(self, valed: Valed, folder: Path) -> None:
        self.valed = valed
        qmp = valed.qmp()
        for name, kind in (("a", "vhost-user"), ("b", "vhost-user"), ("c", "stream")):
            qmp.execute("port-add", name=f"vale1:{name}", kind=kind)
        self.guests: dict[str, Guest] = {}
        for number, name in enumerate("abc", 1):
            at = valed.rundir / f"vale1:{name}"
            nic = ["-netdev", f"stream,id=n0,server=off,addr.type=unix,addr.path={at}"]
            if name != "c":
                nic = ["-chardev", f"socket,id=c0,path={at}"]
                nic += ["-netdev", "vhost-user,id=n0,chardev=c0"]
            cable = f"addr.type=unix,addr.path={folder / 'cable'}"
            listens = {"a": "on", "b": "off"}.get(name)
            second = ["-netdev", f"stream,id=n1,server={listens},{cable}"]
            netdevs = [nic, second] if listens else [nic]
            self.guests[name] = Guest(folder, name, number, netdevs)
            while listens == "on" and not (folder / "cable").exists():
                time.sleep(0.02)
        for guest in self.guests.values():
            guest.connect()

    def port(self, name: str) -> dict[str, Any]:
        return self.valed.qmp().port(f"vale1:{name}")

    def close(self) -> None:
        for guest in self.guests.values():
            guest.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Valed.run() as valed:
        made = Lab(valed, tmp_path_factory.mktemp("g"))
        try:
            yield made
        finally:
            made.close()


@pytest.mark.parametrize(("name", "state"), [("a", "on"), ("b", "on"), ("c", "off [fixed]")])
def test_guest_sees_what_its_port_can(lab: Lab, name: str, state: str) -> None:
    lines = lab.guests[name].run("ethtool -k vale0").splitlines()
    ours = {"tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-tcp6-segmentation"}
    assert {f"{feature}: {state}" for feature in ours} <= {line.strip() for line in lines}


def send_file(lab: Lab, sender: Guest, receiver: Guest, *, ipv6: bool) -> None:
    """A file of random bytes arrives as it was, and no segment of it is found bad."""
    sender.run(f"[ -f /tmp/f ] || head -c {FILE_BYTES} /dev/urandom > /tmp/f")
    digest = sender.run("sha256sum < /tmp/f")
    # Its input never ends: nc would pass that on, and the other side take it for the end.
    receive = "[ -p /tmp/p ] || mkfifo /tmp/p; nc -l -p 9000 0<>/tmp/p | sha256sum"
    wanted = receiver.serve(receive, 9000)
    sender.run(f"nc {receiver.address(ipv6=ipv6)} 9000 < /tmp/f")
    assert wanted() == digest
    for guest in (sender, receiver):
        assert guest.snmp("Tcp", "InErrs") == guest.snmp("Tcp", "InCsumErrors") == 0
    check_books(lab.valed.qmp().ports())


@pytest.mark.parametrize("ipv6", [False, True])
def test_offloads_pass_between_those_who_know(lab: Lab, *, ipv6: bool) -> None:
    before = lab.port("b")["tx"]
    send_file(lab, lab.guests["a"], lab.guests["b"], ipv6=ipv6)
    after = lab.port("b")["tx"]
    frames = after["frames"] - before["frames"]
    assert after["segmented"] == before["segmented"]
    assert (after["bytes"] - before["bytes"]) / frames > 3000  # far more than an MTU


@pytest.mark.parametrize("ipv6", [False, True])
def test_frames_are_completed_for_who_does_not_know(lab: Lab, *, ipv6: bool) -> None:
    before = lab.port("c")["tx"]["segmented"]
    send_file(lab, lab.guests["a"], lab.guests["c"], ipv6=ipv6)
    after = lab.port("c")["tx"]["segmented"]
    frames, segments, length = (after[key] - before[key] for key in ("frames", "segments", "bytes"))
    assert segments > 2 * frames > 0
    assert length / segments <= 1514
    assert length > 0.9 * FILE_BYTES  # the rest came in frames of one segment


@pytest.mark.parametrize("ipv6", [False, True])
def test_complete_frames_come_to_who_knows(lab: Lab, *, ipv6: bool) -> None:
    send_file(lab, lab.guests["c"], lab.guests["b"], ipv6=ipv6)


def tcp_rate(client: Guest, server: Guest, nic: int, seconds: int = 5) -> float:
    """bit/s that iperf3 receives."""
    done = server.serve("iperf3 -s -1 > /dev/null", 5201)
    report = json.loads(client.run(f"iperf3 -c {server.address(nic)} -t {seconds} -J"))
    done()
    return float(report["end"]["sum_received"]["bits_per_second"])


def test_tcp_is_twice_as_fast_as_the_stock_stream_pair(
    lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    rates: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(2):  # in turns: the machine has other things to do
        for nic, found in rates.items():
            found.append(tcp_rate(lab.guests["a"], lab.guests["b"], nic))
    ratio = sum(rates[0]) / sum(rates[1])
    text = ", ".join(f"{sum(r) / len(r) / 1e6:.0f} Mbit/s" for r in rates.values())
    print(f"vhost-user, stock stream: {text}: ratio {ratio:.2f}")
    record_property("tcp_ratio_to_stock_stream", round(ratio, 2))
    assert ratio > 2
