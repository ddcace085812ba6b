# SPDX-License-Identifier: BSD-2-Clause
"""The elements that we write into a domain: a NIC on a port, and the list of its ports.

    <interface type='vhostuser'>                     QEMU connects to the port's socket in valed's
      <source type='unix' path='DIR/vale1:a' …/>     runtime directory, and again when valed is back

    <metadata>
      <vale:ports xmlns:vale='urn:vale:ports:1'>     one element, a port for each NIC: what the hook
        <vale:port switch='vale1' name='a' mac='…'/> makes before QEMU starts, and what `sync` makes
      </vale:ports>                                  the interfaces from
    </metadata>

Elements and attributes: libvirt's docs/formatdomain, "vhost-user interface". Pure.
"""

import io
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from valemgr.errors import UsageError
from valemgr.names import PortName, checked_mac, mac_for, parse_port
from valemgr.xdg import socket_path

PREFIX, NAMESPACE = "vale", "urn:vale:ports:1"
QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
DIRS = "VALE_RUNDIR"  # what makes a socket's path too long
RECONNECT_SECONDS = 1  # libvirt counts whole seconds

ET.register_namespace(PREFIX, NAMESPACE)
ET.register_namespace("qemu", QEMU_NAMESPACE)


@dataclass(frozen=True, slots=True)
class MappedPort:
    """A `<vale:port>`: the NIC with this MAC belongs on this port."""

    port: PortName
    mac: str


@dataclass(frozen=True, slots=True)
class PciAddress:
    """Where a device sits; bus 0 is the root complex, bus N the root port with that index."""

    bus: int
    slot: int = 0
    function: int = 0

    def element(self, **more: str) -> ET.Element:
        """`<address>`."""
        words = {"bus": self.bus, "slot": self.slot}
        said = {key: f"0x{value:02x}" for key, value in words.items()}
        said |= {"function": f"0x{self.function:x}", **more}
        return ET.Element("address", {"type": "pci", "domain": "0x0000", **said})

    def words(self) -> dict[str, str]:
        """The same for QEMU's -device: libvirt names the bus of controller N `pci.N`."""
        bus = f"pci.{self.bus}" if self.bus else "pcie.0"
        return {"bus": bus, "addr": f"0x{self.slot:x}"}


def socket_of(rundir: Path, port: PortName) -> Path:
    """Where valed listens for the NIC on a port; UsageError if that is too long for a socket."""
    return socket_path(rundir / str(port), DIRS)


def alias_of(port: PortName) -> str:
    """The name of the NIC in libvirt and QEMU."""
    return f"ua-{port.switch}-{port.port}"


def interface(
    port: PortName, mac: str, rundir: Path, queues: int = 1, address: PciAddress | None = None
) -> ET.Element:
    """A virtio NIC on a port of the valed that runs there; without an address libvirt picks one."""
    element = ET.Element("interface", type="vhostuser")
    ET.SubElement(element, "mac", address=mac)
    path = str(socket_of(rundir, port))
    source = ET.SubElement(element, "source", type="unix", path=path, mode="client")
    ET.SubElement(source, "reconnect", enabled="yes", timeout=str(RECONNECT_SECONDS))
    ET.SubElement(element, "model", type="virtio")
    if queues > 1:
        ET.SubElement(element, "driver", queues=str(queues))
    ET.SubElement(element, "alias", name=alias_of(port))
    if address:
        element.append(address.element())
    return element


def ports_element(mapped: Iterable[MappedPort], *, bare: bool = False) -> ET.Element:
    """`<vale:ports>`; bare: without its name space, which virDomainSetMetadata adds itself."""
    names = ("ports", "port") if bare else (_tag("ports"), _tag("port"))
    element = ET.Element(names[0])
    for each in mapped:
        words = {"switch": each.port.switch, "name": each.port.port, "mac": each.mac}
        ET.SubElement(element, names[1], words)
    return element


def read_ports(domain: ET.Element) -> tuple[MappedPort, ...]:
    """The ports in a domain's metadata; UsageError if what is there cannot be meant."""
    name = domain.findtext("name") or "?"
    found = domain.findall(f"metadata/{_tag('ports')}/{_tag('port')}")
    mapped = tuple(_read_port(name, number, port) for number, port in enumerate(found, 1))
    ports, macs = [str(each.port) for each in mapped], [each.mac for each in mapped]
    for what, values in (("port", ports), ("MAC", macs)):
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            raise UsageError(f"domain {name}: <vale:ports> has {what} {min(twice)} twice")
    return mapped


def _read_port(domain: str, number: int, element: ET.Element) -> MappedPort:
    where = f"domain {domain}: <vale:port> {number}"
    missing = [key for key in ("switch", "name", "mac") if not element.get(key)]
    if missing:
        raise UsageError(f"{where} has no {missing[0]}: <vale:port switch='…' name='…' mac='…'/>")
    words = {key: str(element.get(key)) for key in ("switch", "name", "mac")}
    try:
        port = parse_port(f"{words['switch']}:{words['name']}")
        return MappedPort(port, checked_mac(words["mac"].lower(), words["mac"]))
    except (UsageError, ValueError) as exc:
        raise UsageError(f"{where}: {exc}") from exc


def stable_mac(domain: str, port: PortName, taken: Iterable[str]) -> str:
    """A MAC for a NIC that nobody gave one: the same for the same names."""
    used = set(taken)
    attempts = (mac_for("libvirt", domain, str(port), attempt) for attempt in count())
    return next(mac for mac in attempts if mac not in used)


def text_of(element: ET.Element) -> str:
    """An element as indented text."""
    ET.indent(element)
    return ET.tostring(element, encoding="unicode") + "\n"


def parse(text: str, what: str) -> ET.Element:
    """XML that somebody gave us; UsageError with the place of a mistake."""
    try:
        for _, (prefix, uri) in ET.iterparse(io.StringIO(text), ["start-ns"]):
            # Others' metadata keeps its prefixes; a default would become that of the whole domain.
            with suppress(ValueError):  # a prefix that the library keeps for itself
                if prefix:
                    ET.register_namespace(prefix, uri)
        return ET.fromstring(text)
    except ET.ParseError as exc:
        raise UsageError(f"{what} is not XML: {exc}") from exc


def _tag(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"
