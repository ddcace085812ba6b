# SPDX-License-Identifier: BSD-2-Clause
"""What a domain lacks for a NIC on a port, and how its description is made to have it. Pure.

    shared memory   valed moves frames from guest to guest: it maps the guests' memory
    a root port     on q35 a device is plugged into a root port of its own
    no MSI-X        QEMU before 8.0 under TCG crashes with vhost-user and MSI-X: vectors=0

A running domain cannot be given any of these.
"""

import xml.etree.ElementTree as ET
from copy import deepcopy

from valemgr.emulator import Emulator
from valemgr.names import PortName
from valemgr.virt.domxml import NO_VECTORS, DomainView
from valemgr.virt.portxml import NAMESPACE, QEMU_NAMESPACE, MappedPort, ports_element
from valemgr.wiring import lacks_msix
from valemgr.words import Backend

KEPT = ("address", "boot", "link", "mtu", "rom")  # of an interface that ours takes the place of
SPARE = 2  # root ports that stay free for NICs to come


def lacks(live: DomainView, emulator: Emulator) -> list[str]:
    """What a running domain has not, and would need to be given a NIC now."""
    gaps = []
    if not live.shares_memory:
        gaps.append("shared memory")
    if live.is_pcie and live.free_root_ports == 0:
        gaps.append("a free root port")
    if needs_no_vectors(live, emulator) and not live.has_no_vectors:
        version = ".".join(map(str, emulator.version))
        gaps.append(f"vectors=0 (QEMU {version} crashes under TCG otherwise)")
    return gaps


def needs_no_vectors(view: DomainView, emulator: Emulator) -> bool:
    """Whether its QEMU must do without MSI-X."""
    return lacks_msix(emulator, "tcg" if view.kind == "qemu" else view.kind)


def mended(config: DomainView, emulator: Emulator, coming: int) -> tuple[DomainView, list[str]]:
    """A description that so many more NICs work with, and what was added to it."""
    view = DomainView(deepcopy(config.root))
    added = []
    if not view.shares_memory:
        _share_memory(view.root)
        added.append("shared memory")
    more = coming + SPARE - view.free_root_ports if coming and view.is_pcie else 0
    if more > 0:
        devices = _devices(view.root)
        for _ in range(more):
            ET.SubElement(devices, "controller", type="pci", model="pcie-root-port")
        added.append("a root port" if more == 1 else f"{more} root ports")
    if needs_no_vectors(view, emulator) and not view.has_no_vectors:
        _add_arguments(view.root, "-global", NO_VECTORS)
        added.append("vectors=0 for its virtio NICs")
    return view, added


def with_nic(config: DomainView, interface: ET.Element) -> DomainView:
    """A description with one more interface."""
    root = deepcopy(config.root)
    _devices(root).append(interface)
    return DomainView(root)


def without_nic(config: DomainView, port: PortName) -> DomainView:
    """A description without its interface on a port."""
    root = deepcopy(config.root)
    devices = _devices(root)
    for nic in DomainView(root).plugged:
        if nic.port == port and nic.element is not None:
            devices.remove(nic.element)
    return DomainView(root)


def with_ports(config: DomainView, mapped: tuple[MappedPort, ...]) -> DomainView:
    """A description whose metadata lists these ports."""
    root = deepcopy(config.root)
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.Element("metadata")
        root.insert(_index_behind(root, "name", "uuid", "title", "description"), metadata)
    for old in metadata.findall(f"{{{NAMESPACE}}}ports"):
        metadata.remove(old)
    if mapped:
        metadata.append(ports_element(mapped))
    elif len(metadata) == 0:
        root.remove(metadata)
    return DomainView(root)


def synced(config: DomainView, interfaces: dict[str, ET.Element]) -> tuple[DomainView, list[str]]:
    """A description whose NICs are these, by MAC, and what was changed.

    An interface of another kind that has a MAC of the mapping gives way, and its place on the bus
    to ours; a NIC of ours that the mapping does not have goes.
    """
    root = deepcopy(config.root)
    devices, words = _devices(root), []
    ours = {nic.mac: nic for nic in DomainView(root).plugged if nic.backend is Backend.VHOST_USER}
    for mac in sorted(set(ours) - set(interfaces)):
        element = ours[mac].element
        if element is not None:
            devices.remove(element)
            words.append(f"{ours[mac].port}: removed ({mac})")
    for mac, new in interfaces.items():
        old = next((each for each in devices.findall("interface") if _mac_of(each) == mac), None)
        if old is None:
            devices.append(new)
            words.append(f"{_port_of(new)}: added ({mac})")
        elif _differs(old, new):
            _take_place(devices, old, new)
            words.append(
                f"{_port_of(new)}: replaces an interface of type {old.get('type')} ({mac})"
            )
    return DomainView(root), words


def _differs(old: ET.Element, new: ET.Element) -> bool:
    paths = [each.find("source[@path]") for each in (old, new)]
    said = [each.get("path") if each is not None else None for each in paths]
    return old.get("type") != new.get("type") or said[0] != said[1]


def _take_place(devices: ET.Element, old: ET.Element, new: ET.Element) -> None:
    """What a person has said of the NIC stays, as far as it concerns one of ours."""
    if old.get("type") == new.get("type"):
        repoint(old, new)
        return
    for tag in KEPT:
        found = old.find(tag)
        if found is not None:
            new.append(found)
    devices[list(devices).index(old)] = new


def repoint(nic: ET.Element, like: ET.Element) -> None:
    """Let an interface on a port be on the port of another one."""
    for tag in ("source", "alias"):
        mine, wanted = nic.find(tag), like.find(tag)
        if mine is None:
            mine = ET.SubElement(nic, tag)
        for key in ("path", "name"):
            if wanted is not None and wanted.get(key):
                mine.set(key, wanted.get(key, ""))


def _share_memory(root: ET.Element) -> None:
    """memfd, unless huge pages or a file are there already; and shared."""
    backing = root.find("memoryBacking")
    if backing is None:
        backing = ET.Element("memoryBacking")
        root.insert(_index_behind(root, "memory", "currentMemory", "maxMemory"), backing)
    source = backing.find("source")
    if source is None:
        source = ET.SubElement(backing, "source", type="memfd")
    elif source.get("type") == "anonymous":
        source.set("type", "memfd")
    access = backing.find("access")
    if access is None:
        access = ET.SubElement(backing, "access")
    access.set("mode", "shared")
    for cell in root.findall("cpu/numa/cell[@memAccess]"):
        cell.set("memAccess", "shared")


def _add_arguments(root: ET.Element, *words: str) -> None:
    tag = f"{{{QEMU_NAMESPACE}}}"
    commandline = root.find(f"{tag}commandline")
    if commandline is None:
        commandline = ET.SubElement(root, f"{tag}commandline")
    for word in words:
        ET.SubElement(commandline, f"{tag}arg", value=word)


def _devices(root: ET.Element) -> ET.Element:
    devices = root.find("devices")
    return devices if devices is not None else ET.SubElement(root, "devices")


def _index_behind(root: ET.Element, *tags: str) -> int:
    """Where an element goes that follows these."""
    return max((i + 1 for i, each in enumerate(root) if each.tag in tags), default=0)


def _mac_of(interface: ET.Element) -> str:
    mac = interface.find("mac")
    return mac.get("address", "").lower() if mac is not None else ""


def _port_of(interface: ET.Element) -> str:
    source = interface.find("source")
    return (source.get("path", "") if source is not None else "").rpartition("/")[2]
