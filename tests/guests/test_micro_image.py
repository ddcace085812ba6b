# SPDX-License-Identifier: BSD-2-Clause
"""The micro image in real guests under TCG: boot, identity, SSH, drivers, overlay, power.

A launcher gives a guest its identity by fw_cfg and talks to it over a management NIC; its data
NICs end at hubs here, where nothing answers::

    test --SSH-- 127.0.0.1:port --user netdev-- mgmt (virtio-net)
                                                vale0 (e1000)       --hub 1
                                                vale1 (virtio-net)  --hub 2
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

ROOT = Path(__file__).parents[2]
BUILD = Path(os.environ.get("VALE_BUILD", ROOT / "build"))
QEMU = Path(os.environ.get("VALE_QEMU", BUILD / "bin/qemu-system-x86_64-vale"))
MICRO = BUILD / "images/micro"
DEADLINE = 60

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(not QEMU.exists(), reason=f"no {QEMU}: run 'make qemu'"),
    pytest.mark.skipif(not (MICRO / "manifest.json").exists(),
                       reason=f"no {MICRO}/manifest.json: run 'make image'"),
]


def make_key() -> tuple[str, paramiko.Ed25519Key]:
    """Make a key: as OpenSSH writes it, and as paramiko wants it."""
    text = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption()).decode()
    return text, paramiko.Ed25519Key.from_private_key(io.StringIO(text))


USER_KEY = make_key()[1]
HOST_KEY_TEXT, HOST_KEY = make_key()
IDENTITY: dict[str, Any] = {
    "hostname": "guest-a",
    "authorized_keys": [f"ssh-ed25519 {USER_KEY.get_base64()} test"],
    "host_key": HOST_KEY_TEXT,
    "nics": [
        {"mac": "52:54:00:00:00:01", "name": "mgmt", "addresses": ["10.0.2.15/24"]},
        {"mac": "52:54:00:00:00:02", "name": "vale0", "mtu": 1400, "addresses": ["198.18.0.1/24"],
         "neighbours": [{"address": "198.18.0.2", "mac": "52:54:00:00:00:99"}]},
        {"mac": "52:54:00:00:00:03", "name": "vale1", "addresses": ["198.18.1.1/24", "fd00::1/64"],
         "neighbours": [{"address": "fd00::2", "mac": "52:54:00:00:00:99"}]},
    ],
}


def free_port() -> int:
    """Find a TCP port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Guest:
    """A QEMU that runs micro."""

    def __init__(self, folder: Path, *, identity: dict[str, Any] | None = None,
                 initrd: Path = MICRO / "initrd.img", append: str = "") -> None:
        manifest = json.loads((MICRO / "manifest.json").read_text())
        self.console = folder / "console"
        self.qmp = folder / "qmp.sock"
        self.port = free_port()
        self.started = time.monotonic()
        command: list[str | Path] = [
            QEMU, "-nodefaults", "-display", "none", "-no-reboot", "-accel", "tcg", "-cpu", "max",
            "-m", "128", "-kernel", MICRO / "vmlinuz", "-initrd", initrd,
            "-append", f"{manifest['append']} {append}", "-serial", f"file:{self.console}",
            "-qmp", f"unix:{self.qmp},server=on,wait=off",
            "-netdev", f"user,id=m,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22",
            "-device", "virtio-net-pci,netdev=m,romfile=,mac=52:54:00:00:00:01",
            "-netdev", "hubport,id=h1,hubid=1",
            "-device", "e1000,netdev=h1,romfile=,mac=52:54:00:00:00:02",
            "-netdev", "hubport,id=h2,hubid=2",
            "-device", "virtio-net-pci,netdev=h2,romfile=,mac=52:54:00:00:00:03",
        ]
        if identity:
            (folder / "identity.json").write_text(json.dumps(identity))
            command += ["-fw_cfg", f"name=opt/org.vale/guest,file={folder / 'identity.json'}"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                        stderr=(folder / "stderr").open("wb"))

    def text(self) -> str:
        """Give what the guest printed on its console."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def wait_for(self, what: str) -> None:
        """Wait until the console says something."""
        while what not in self.text():
            assert time.monotonic() < self.started + DEADLINE, self.text()[-2000:]
            assert self.process.poll() is None, self.text()[-2000:]
            time.sleep(0.02)

    def ssh(self) -> paramiko.SSHClient:
        """Open an SSH connection that knows the host key and refuses any other."""
        self.wait_for("vale: ready")
        client = paramiko.SSHClient()
        client.get_host_keys().add(f"[127.0.0.1]:{self.port}", "ssh-ed25519", HOST_KEY)
        client.connect("127.0.0.1", self.port, "root", pkey=USER_KEY, look_for_keys=False,
                       allow_agent=False, timeout=DEADLINE, banner_timeout=DEADLINE)
        return client

    def power_button(self) -> None:
        """Press it by QMP."""
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self.qmp))
            for command in ("qmp_capabilities", "system_powerdown"):
                control.sendall(json.dumps({"execute": command}).encode())
            control.settimeout(DEADLINE)
            while b'"POWERDOWN"' not in control.recv(4096):
                pass

    def close(self) -> None:
        """End QEMU if it has not ended by itself."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    running = Guest(tmp_path_factory.mktemp("guest"), identity=IDENTITY)
    yield running
    running.close()


@pytest.fixture(scope="module")
def ssh(guest: Guest) -> Iterator[paramiko.SSHClient]:
    client = guest.ssh()
    yield client
    client.close()


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Callable[..., Guest]]:
    """Boot a guest that a test has for itself."""
    guests: list[Guest] = []

    def start(**options: Any) -> Guest:
        guests.append(Guest(tmp_path, **options))
        return guests[-1]

    yield start
    for running in guests:
        running.close()


def run(client: paramiko.SSHClient, command: str) -> str:
    """Run a command that must succeed, and give its output."""
    _, stdout, stderr = client.exec_command(command, timeout=DEADLINE)
    output, errors = stdout.read().decode(), stderr.read().decode()
    assert stdout.channel.recv_exit_status() == 0, f"{command}: {errors}"
    return output


def test_a_command_has_run_over_ssh(guest: Guest, ssh: paramiko.SSHClient,
                                    record_property: Callable[[str, object], None]) -> None:
    assert run(ssh, "echo hello") == "hello\n"
    seconds = time.monotonic() - guest.started
    record_property("seconds_to_ssh_command", round(seconds, 2))
    print(f"command over SSH {seconds:.2f} s after launch")
    assert seconds < DEADLINE


def test_identity_is_applied(ssh: paramiko.SSHClient) -> None:
    assert run(ssh, "hostname") == "guest-a\n"
    links = {link["ifname"]: link for link in json.loads(run(ssh, "ip -j addr"))}
    assert links.keys() == {"lo", "mgmt", "vale0", "vale1"}
    addresses = {name: [f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"]]
                 for name, link in links.items()}
    assert addresses["mgmt"] == ["10.0.2.15/24"]
    assert addresses["vale0"] == ["198.18.0.1/24"]
    assert addresses["vale1"] == ["198.18.1.1/24", "fd00::1/64"]
    assert (links["vale0"]["mtu"], links["vale1"]["mtu"]) == (1400, 1500)
    neighbours = {(n["dst"], n["dev"]): (n["lladdr"], n["state"])
                  for n in json.loads(run(ssh, "ip -j neigh")) if n["dev"] != "mgmt"}
    assert neighbours == {
        ("198.18.0.2", "vale0"): ("52:54:00:00:00:99", ["PERMANENT"]),
        ("fd00::2", "vale1"): ("52:54:00:00:00:99", ["PERMANENT"]),
    }


def test_a_nic_without_ipv6_address_sends_nothing_by_itself(ssh: paramiko.SSHClient) -> None:
    assert run(ssh, "cat /proc/sys/net/ipv6/conf/vale0/disable_ipv6") == "1\n"
    assert run(ssh, "cat /sys/class/net/vale0/statistics/tx_packets") == "0\n"


@pytest.mark.parametrize(("nic", "driver"),
                         [("vale0", "e1000"), ("vale1", "virtio_net"), ("mgmt", "virtio_net")])
def test_driver_of_nic(ssh: paramiko.SSHClient, nic: str, driver: str) -> None:
    assert f"driver: {driver}\n" in run(ssh, f"ethtool -i {nic}")


@pytest.mark.parametrize("module", ["e1000e", "8139too", "vmxnet3", "pcnet32", "pktgen", "tun",
                                    "bridge"])
def test_module_loads(ssh: paramiko.SSHClient, module: str) -> None:
    run(ssh, f"modprobe {module}")
    assert f"\n{module} " in "\n" + run(ssh, "lsmod")


@pytest.mark.parametrize("command", ["iperf3 --version", "tcpdump --version", "tc -V", "bridge -V",
                                     "ethtool --version"])
def test_program_runs(ssh: paramiko.SSHClient, command: str) -> None:
    assert run(ssh, command)


def test_memory_is_128_mib_and_some_is_left(ssh: paramiko.SSHClient) -> None:
    memory = dict(line.split(":") for line in run(ssh, "cat /proc/meminfo").splitlines())
    assert int(memory["MemTotal"].split()[0]) < 128 * 1024
    assert int(memory["MemAvailable"].split()[0]) > 16 * 1024


def test_udp_programs_in_the_guest(ssh: paramiko.SSHClient) -> None:
    _, receiver, _ = ssh.exec_command("vale-udp-recv --json --max-seconds 30", timeout=DEADLINE)
    assert receiver.readline() == "ready\n"
    tx = json.loads(run(ssh, "vale-udp-send --to 127.0.0.1 --rate 1000 --seconds 1 --json"))
    rx = json.loads(receiver.read())
    assert tx["sent"] == rx["received"] == rx["sent_by_peer"] > 0
    assert rx["lost"] == 0


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_passwords_are_refused(guest: Guest, ssh: paramiko.SSHClient, user: str) -> None:
    assert ssh.get_transport()
    with paramiko.Transport(("127.0.0.1", guest.port)) as transport:
        transport.connect()
        with pytest.raises(paramiko.BadAuthenticationType) as refusal:
            transport.auth_password(user, "")
    assert refusal.value.allowed_types == ["publickey"]


def test_a_key_that_is_not_authorized_is_refused(guest: Guest, ssh: paramiko.SSHClient) -> None:
    assert ssh.get_transport()
    with paramiko.Transport(("127.0.0.1", guest.port)) as transport:
        transport.connect(hostkey=HOST_KEY)
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_publickey("root", make_key()[1])


def test_without_identity_it_boots_and_the_power_button_works(boot: Callable[..., Guest]) -> None:
    guest = boot()
    guest.wait_for("vale: ready")
    guest.wait_for("micro:")  # the prompt of the shell on the console
    guest.power_button()
    assert guest.process.wait(DEADLINE) == 0
    assert "Power down" in guest.text()


def test_dhcp_on_a_nic_that_asks_for_it(boot: Callable[..., Guest]) -> None:
    nic = {"mac": "52:54:00:00:00:01", "name": "mgmt", "dhcp4": True}
    with boot(identity={**IDENTITY, "nics": [nic]}).ssh() as client:
        assert "inet 10.0.2.15/24" in run(client, "ip addr show mgmt")


def test_broken_identity_is_said_on_the_console(boot: Callable[..., Guest]) -> None:
    identity = {"hostname": "b", "nics": [{"mac": "52:54:00:ff:ff:ff", "name": "x"}]}
    guest = boot(identity=identity, append="vale.run=/usr/bin/hostname")
    assert guest.process.wait(DEADLINE) == 0
    assert "identity: no NIC has MAC 52:54:00:ff:ff:ff" in guest.text()
    assert "\nb\r\n" in guest.text() or "\nb\n" in guest.text()


def test_nics_take_each_others_names(boot: Callable[..., Guest]) -> None:
    nics = [{**nic, "name": f"eth{n}"} for n, nic in enumerate(IDENTITY["nics"])]
    with boot(identity={**IDENTITY, "nics": nics}).ssh() as client:
        links = {link["ifname"]: link for link in json.loads(run(client, "ip -j addr"))}
        for nic in nics:
            link = links[nic["name"]]
            assert link["address"] == nic["mac"]
            assert f"{link['addr_info'][0]['local']}/24" == nic["addresses"][0]
        assert "renamed from aside" in run(client, "dmesg"), "no name was taken: nothing tested"


def test_a_nic_is_set_up_later(boot: Callable[..., Guest]) -> None:
    early, late = IDENTITY["nics"][0], IDENTITY["nics"][2]
    setup = "micro-identity - > /run/later.ip && ip -force -batch /run/later.ip"

    def give(nic: Any) -> int:
        stdin, stdout, _ = client.exec_command(setup, timeout=DEADLINE)
        stdin.write(json.dumps({"nics": [nic]}))
        stdin.channel.shutdown_write()
        return stdout.channel.recv_exit_status()

    with boot(identity={**IDENTITY, "nics": [early]}).ssh() as client:
        before = run(client, "hostname; cat /root/.ssh/authorized_keys /etc/dropbear/host_key.*")
        assert give(late) == 0
        links = {link["ifname"]: link for link in json.loads(run(client, "ip -j addr"))}
        assert links["mgmt"]["operstate"] == "UP"
        assert [a["local"] for a in links["vale1"]["addr_info"]] == ["198.18.1.1", "fd00::1"]
        assert before == run(client,
                             "hostname; cat /root/.ssh/authorized_keys /etc/dropbear/host_key.*")
        assert give({"mac": "52:54:00:ff:ff:ff"}) == 1


def test_overlay_brings_a_dynamic_program_and_vale_run_runs_it(
        boot: Callable[..., Guest], tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh\n/opt/ls /opt || exit 9\nexit 3\n")
    script.chmod(0o755)
    subprocess.run([ROOT / "images/overlay.sh", tmp_path / "overlay.img",
                    f"{script}=/opt/run.sh", "/bin/ls=/opt/ls"], check=True)
    initrd = tmp_path / "both.img"
    initrd.write_bytes((MICRO / "initrd.img").read_bytes()
                       + (tmp_path / "overlay.img").read_bytes())
    guest = boot(initrd=initrd, append="vale.run=/opt/run.sh")
    assert guest.process.wait(DEADLINE) == 0
    assert guest.text().split()[-20:].count("run.sh") == 1
    assert "vale: exit 3" in guest.text()


def test_a_kernel_panic_ends_the_machine_visibly(boot: Callable[..., Guest],
                                                 tmp_path: Path) -> None:
    script = tmp_path / "crash.sh"
    script.write_text("#!/bin/sh\necho c > /proc/sysrq-trigger\n")
    script.chmod(0o755)
    subprocess.run([ROOT / "images/overlay.sh", tmp_path / "overlay.img",
                    f"{script}=/opt/crash.sh"], check=True)
    initrd = tmp_path / "both.img"
    initrd.write_bytes((MICRO / "initrd.img").read_bytes()
                       + (tmp_path / "overlay.img").read_bytes())
    guest = boot(initrd=initrd, append="vale.run=/opt/crash.sh")
    guest.process.wait(DEADLINE)
    assert "Kernel panic" in guest.text()
