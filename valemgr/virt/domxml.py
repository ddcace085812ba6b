# SPDX-License-Identifier: BSD-2-Clause
"""What a domain's XML says that matters to a NIC on a VALE port. Pure; nothing is changed here.

A NIC of ours is an interface of type vhostuser whose socket is named as a port is, or a netmap
netdev that the qemu name space hands to our QEMU.
"""

import json
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valemgr.errors import UsageError
from valemgr.names import PortName, parse_port
from valemgr.virt.portxml import QEMU_NAMESPACE, MappedPort, parse, read_ports
from valemgr.words import Backend

NO_VECTORS = "virtio-net-pci.vectors=0"


@dataclass(frozen=True, slots=True)
class PluggedPort:
    """A NIC on a port, as a domain has it; `where`: valed's runtime directory, or its device."""

    port: PortName
    mac: str
    backend: Backend
    where: Path
    alias: str = ""
    element: ET.Element | None = None  # the interface


@dataclass(frozen=True, slots=True)
class DomainView:
    """A domain, live or as it will start."""

    root: ET.Element

    @classmethod
    def parse(cls, text: str, what: str = "the domain's description") -> "DomainView":
        """From libvirt's XML; UsageError if this is no domain."""
        root = parse(text, what)
        if root.tag != "domain" or not root.findtext("name"):
            raise UsageError(f"{what} is no <domain> with a <name>")
        return cls(root)

    @property
    def name(self) -> str:
        return self.root.findtext("name") or ""

    @property
    def uuid(self) -> str:
        return self.root.findtext("uuid") or ""

    @property
    def kind(self) -> str:
        """kvm, or qemu for TCG."""
        return self.root.get("type", "")

    @property
    def emulator(self) -> str:
        return self.root.findtext("devices/emulator") or ""

    @property
    def is_pcie(self) -> bool:
        """Whether devices come and go in root ports."""
        return self.root.find("devices/controller[@model='pcie-root']") is not None

    @property
    def shares_memory(self) -> bool:
        """Whether another process may map the guest's memory."""
        backing = self.root.find("memoryBacking")
        if backing is None:
            return False
        access, source = backing.find("access"), backing.find("source")
        usual = access.get("mode", "") if access is not None else ""
        cells = self.root.findall("cpu/numa/cell")
        modes = [cell.get("memAccess", usual) for cell in cells] or [usual]
        kind = source.get("type") if source is not None else ""
        mappable = kind in ("memfd", "file") or backing.find("hugepages") is not None
        return mappable and all(mode == "shared" for mode in modes)

    @property
    def free_root_ports(self) -> int:
        """Root ports with nothing in them."""
        ports = self.root.findall("devices/controller[@model='pcie-root-port']")
        addresses = self.root.findall("devices/*/address[@type='pci']")
        used = {int(address.get("bus", "0"), 0) for address in addresses}
        return sum(int(port.get("index", "-1"), 0) not in used for port in ports)

    @property
    def arguments(self) -> list[str]:
        """What the qemu name space adds to QEMU's command line."""
        tag = f"{{{QEMU_NAMESPACE}}}"
        return [arg.get("value", "") for arg in self.root.findall(f"{tag}commandline/{tag}arg")]

    @property
    def has_no_vectors(self) -> bool:
        """Whether its virtio NICs do without MSI-X."""
        return NO_VECTORS in self.arguments

    @property
    def macs(self) -> set[str]:
        """All MACs of its NICs."""
        found = self.root.findall("devices/interface/mac")
        return {mac.get("address", "").lower() for mac in found} | {
            word["mac"] for word in map(_words, self.arguments) if "mac" in word
        }

    @property
    def forwarded(self) -> int:
        """The port of the host that passt forwards to SSH of a guest; 0: none."""
        passed = self.root.find("devices/interface[@type='user']/portForward/range")
        return int(passed.get("start", "0")) if passed is not None else 0

    @property
    def mapped(self) -> tuple[MappedPort, ...]:
        """The ports that its metadata lists."""
        return read_ports(self.root)

    @property
    def plugged(self) -> tuple[PluggedPort, ...]:
        """Its NICs on ports."""
        interfaces = self.root.findall("devices/interface[@type='vhostuser']")
        natives = _netmap_nics(self.arguments)
        return (*(nic for nic in map(_vhost_user, interfaces) if nic), *natives)

    def on(self, port: PortName) -> PluggedPort | None:
        """The NIC on a port."""
        return next((nic for nic in self.plugged if nic.port == port), None)

    def with_mac(self, mac: str) -> PluggedPort | None:
        """The NIC with a MAC, if it is on a port."""
        return next((nic for nic in self.plugged if nic.mac == mac), None)

    @property
    def qemu_user(self) -> tuple[int, int] | None:
        """Who QEMU runs as, when libvirt says so: uid, gid."""
        label = self.root.findtext("seclabel[@model='dac']/label")
        return parse_dac(label) if label else None


def parse_dac(label: str) -> tuple[int, int] | None:
    """`+64055:+64055` as numbers; names are not looked up."""
    uid, _, gid = label.replace("+", "").partition(":")
    return (int(uid), int(gid)) if uid.isdecimal() and gid.isdecimal() else None


def base_label(capabilities: str, kind: str) -> tuple[int, int] | None:
    """Who QEMU runs as unless a domain says otherwise, of the host's capabilities."""
    root = parse(capabilities, "the host's capabilities")
    for model in root.findall("host/secmodel"):
        if model.findtext("model") == "dac":
            return parse_dac(model.findtext(f"baselabel[@type='{kind}']") or "")
    return None


def has_passt(domain_capabilities: str) -> bool:
    """Whether libvirt starts passt for an interface of type user, as it says itself."""
    root = parse(domain_capabilities, "the emulator's capabilities")
    values = root.findall("devices/interface/enum[@name='backendType']/value")
    return any(value.text == "passt" for value in values)


def _vhost_user(interface: ET.Element) -> PluggedPort | None:
    source, mac = interface.find("source"), interface.find("mac")
    alias = interface.find("alias")
    path = Path(source.get("path", "")) if source is not None else Path()
    try:
        port = parse_port(path.name)
    except UsageError:
        return None
    if mac is None or str(port) != path.name:
        return None
    address = mac.get("address", "").lower()
    name = alias.get("name", "") if alias is not None else ""
    return PluggedPort(port, address, Backend.VHOST_USER, path.parent, name, interface)


def _netmap_nics(arguments: list[str]) -> list[PluggedPort]:
    """-netdev netmap,id=N,ifname=vale1:a,devname=… and the -device with netdev=N."""
    words = [_words(argument) for argument in arguments]
    macs = {each["netdev"]: each.get("mac", "") for each in words if "netdev" in each}
    found = []
    for argument, each in zip(arguments, words, strict=True):
        if argument.startswith("netmap,") and "ifname" in each:
            try:
                port = parse_port(each["ifname"])
            except UsageError:
                continue
            device = Path(each.get("devname", ""))
            mac = macs.get(each.get("id", ""), "")
            found.append(PluggedPort(port, mac, Backend.NETMAP, device))
    return found


def _object(text: str) -> dict[str, Any]:
    try:
        made = json.loads(text)
    except ValueError:
        return {}
    return made if isinstance(made, dict) else {}


def _words(argument: str) -> dict[str, str]:
    """`netmap,id=n,…` as a dict of its keys and values; doubled commas are one in a value.

    QEMU takes JSON, too.
    """
    if argument.startswith("{"):
        return {key: str(value) for key, value in _object(argument).items()}
    parts = argument.replace(",,", "\0").split(",")
    pairs = (part.replace("\0", ",").partition("=") for part in parts)
    return {key: value for key, equals, value in pairs if equals}
