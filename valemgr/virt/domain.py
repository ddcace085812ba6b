# SPDX-License-Identifier: BSD-2-Clause
"""A guest of a topology as a domain. Pure.

    transient    a lab's: with the files of the lab, gone with its process
    persistent   for people who define it themselves: nothing of a lab in it

Every device that we know of has a fixed place on the root bus, so that libvirt, which places the
others, leaves the root ports to NICs:

    00:01.0 …    root ports, eight in a slot: port N is controller N+1, and its bus in libvirt
    00:0d, 0e    the image's disk, the seed of cloud-init
    00:0f        random numbers
    00:10        management
    00:11 …      data NICs of a guest that has no root ports
"""

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from valemgr.errors import UsageError
from valemgr.image import Image
from valemgr.names import mac_for, parse_port
from valemgr.plan import (
    DISK_DEVICE,
    FW_CFG_NAME,
    MGMT_ADDRESS,
    MGMT_NETDEV,
    SEED_DEVICE,
    TCG_CPU,
    GuestPlan,
    Host,
    PlannedNic,
    disk_drive,
    mgmt_device,
    plan_nic,
    seed_drive,
    wire_nic,
)
from valemgr.topology import MGMT, Guest, Lab, Nic
from valemgr.virt.domxml import NO_VECTORS
from valemgr.virt.portxml import (
    QEMU_NAMESPACE,
    MappedPort,
    PciAddress,
    interface,
    ports_element,
    text_of,
)
from valemgr.wiring import Wire, lacks_msix, option
from valemgr.words import Backend, NicModel

LAB_PREFIX, LAB_NAMESPACE = "vale-lab", "urn:vale:lab:1"
FREE_PORTS = 4  # for NICs that are attached later
ROOT_PORTS_MAX, IN_A_SLOT, FIRST_ROOT_PORT = 32, 8, 0x01
DISK, SEED = PciAddress(0, 0x0D), PciAddress(0, 0x0E)
RNG, MANAGEMENT = PciAddress(0, 0x0F), PciAddress(0, 0x10)
FIRST_NIC, LAST_NIC = 0x11, 0x1E  # behind it is the chipset

ET.register_namespace(LAB_PREFIX, LAB_NAMESPACE)


def transient(plan: GuestPlan, forwarded: int = 0) -> str:
    """A guest that a lab starts. forwarded: the port on 127.0.0.1 that passt listens on."""
    host, guest = _host(plan), plan.spec
    name = domain_name(plan.lab, plan.name)
    root = _base(name, guest, host, plan.slots, shares_memory=plan.shares_memory)
    ET.SubElement(root, "uuid").text = guest_uuid(plan.files.identity.parent, plan.name)
    metadata = ET.SubElement(root, "metadata")
    ET.SubElement(metadata, f"{{{LAB_NAMESPACE}}}lab", name=plan.lab, guest=plan.name)
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        ET.SubElement(root, event).text = "destroy"
    if host.libvirt and host.libvirt.user:
        _add_label(root, host.libvirt.user)
    devices = _devices(root)
    devices.append(_serial(str(plan.files.console_log)))
    words = _add_identity(root, plan, host.images[guest.image])
    words += _add_management(devices, plan, forwarded)
    words += _add_nics(devices, zip(plan.nics, plan.wires, strict=True))
    if plan.shares_memory:
        words = (*_no_vectors(guest, host), *words)
    _add_arguments(root, words)
    return text_of(root)


def persistent(lab: Lab, guest: Guest, host: Host, backend: Backend) -> str:
    """A guest of a pinned lab as a domain that somebody defines; all its NICs by one backend.

    `<vale:ports>` lists their ports: valed has to run, even where a NIC opens its port itself.
    """
    _check_definable(guest, host.images[guest.image], backend)
    lab = lab.model_copy(update={"guests": tuple(_by(backend, each) for each in lab.guests)})
    guest = _by(backend, guest)
    slots = len(guest.nics) + max(guest.spare, FREE_PORTS)
    planned = [plan_nic(lab, guest, nic, slot, host) for slot, nic in enumerate(guest.nics)]
    root = _base(domain_name(lab.name, guest.name), guest, host, slots, shares_memory=True)
    mapped = [MappedPort(parse_port(str(nic.port)), str(nic.mac)) for nic in guest.nics]
    if mapped:
        ET.SubElement(root, "metadata").append(ports_element(mapped))
    devices = _devices(root)
    devices.append(_serial())
    management = ET.SubElement(devices, "interface", type="user")
    ET.SubElement(management, "mac", address=mac_for(lab.name, guest.name, MGMT))
    ET.SubElement(management, "model", type="virtio")
    management.append(MANAGEMENT.element())
    words = _add_nics(devices, [(nic, wire_nic(guest, nic, host)) for nic in planned])
    _add_arguments(root, (*_no_vectors(guest, host), *words))
    return text_of(root)


def domain_type(plan: GuestPlan) -> str:
    """libvirt's word for the accelerator."""
    return "kvm" if _host(plan).accelerator == "kvm" else "qemu"


def guest_uuid(lab_dir: Path, guest: str) -> str:
    """Of a lab's guest: so a domain is found by whoever knows the lab."""
    return str(uuid5(NAMESPACE_URL, f"{LAB_NAMESPACE}{lab_dir}/{guest}"))


def domain_name(lab: str, guest: str) -> str:
    """Neither a lab's nor a guest's name has a dot."""
    return f"{lab}.{guest}"


def nic_place(slot: int | None, index: int) -> PciAddress:
    """Where a data NIC sits: in its root port, else on the root bus as its guest's index-th."""
    if slot is not None:
        return PciAddress(bus=slot + 1)
    if FIRST_NIC + index > LAST_NIC:
        most = LAST_NIC - FIRST_NIC + 1
        raise UsageError(f"libvirt has room for {most} NICs without root ports: use spare: 1")
    return PciAddress(0, FIRST_NIC + index)


def nic_element(nic: Nic, wire: Wire, place: PciAddress) -> ET.Element | None:
    """A NIC as libvirt knows it; None for one that only QEMU knows."""
    if wire.chardev is None:
        return None
    socket = wire.probe
    assert socket
    element = interface(
        parse_port(str(nic.port)), str(nic.mac), socket.parent, nic.queues, address=place
    )
    ET.SubElement(element, "rom", enabled="no")
    return element


def placed(wire: Wire, place: PciAddress) -> Wire:
    """A wire whose NIC sits there, in libvirt's names of buses."""
    return replace(wire, device={**wire.device, **place.words()})


def _check_definable(guest: Guest, image: Image, backend: Backend) -> None:
    if image.disk:
        raise UsageError(
            f"guest {guest.name}: image {image.name} is a disk that labs only read: define a "
            "domain with a copy of it, and 'valemgr libvirt attach' its NICs"
        )
    for nic in guest.nics:
        if nic.cable:
            raise UsageError(
                f"guest {guest.name}: NIC {nic.name} is on a cable, which is a lab's: use a link"
            )
        if backend is Backend.VHOST_USER and nic.model is not NicModel.VIRTIO:
            raise UsageError(
                f"guest {guest.name}: NIC {nic.name}: vhost-user serves virtio-net-pci only, not "
                f"{nic.model}: use backend netmap"
            )


def _by(backend: Backend, guest: Guest) -> Guest:
    nics = tuple(nic.model_copy(update={"backend": backend}) for nic in guest.nics)
    return guest.model_copy(update={"nics": nics})


def _base(name: str, guest: Guest, host: Host, slots: int, *, shares_memory: bool) -> ET.Element:
    """A machine with root ports and no NICs yet."""
    root = ET.Element("domain", type="kvm" if host.accelerator == "kvm" else "qemu")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "memory", unit="MiB").text = str(guest.memory_mib)
    if shares_memory:
        backing = ET.SubElement(root, "memoryBacking")
        ET.SubElement(backing, "source", type="memfd")
        ET.SubElement(backing, "access", mode="shared")
    ET.SubElement(root, "vcpu").text = str(guest.cpus)
    _add_system(root, host.images[guest.image])
    _add_cpu(root, host.accelerator)
    devices = ET.SubElement(root, "devices")
    ET.SubElement(devices, "emulator").text = str(host.emulators[guest.qemu].path)
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
    for slot in range(slots):
        devices.append(_root_port(guest, slot))
    rng = ET.SubElement(devices, "rng", model="virtio")
    ET.SubElement(rng, "backend", model="random").text = "/dev/urandom"
    rng.append(RNG.element())
    ET.SubElement(devices, "memballoon", model="none")
    return root


def _add_label(root: ET.Element, user: tuple[int, int]) -> None:
    """QEMU is whoever libvirt makes it, but gets no files for its own: images are for all."""
    label = ET.SubElement(root, "seclabel", type="static", model="dac", relabel="no")
    ET.SubElement(label, "label").text = f"+{user[0]}:+{user[1]}"


def _add_system(root: ET.Element, image: Image) -> None:
    system = ET.SubElement(root, "os")
    ET.SubElement(system, "type", arch="x86_64", machine="q35").text = "hvm"
    if image.kernel:
        parts = {"kernel": image.kernel, "initrd": image.initrd, "cmdline": image.append}
        for tag, value in parts.items():
            ET.SubElement(system, tag).text = str(value)
    ET.SubElement(ET.SubElement(root, "features"), "acpi")


def _add_cpu(root: ET.Element, accelerator: str) -> None:
    if accelerator == "kvm":
        ET.SubElement(root, "cpu", mode="host-passthrough", check="none")
        return
    # TCG lacks features that libvirt thinks every such CPU has.
    cpu = ET.SubElement(root, "cpu", mode="custom", match="exact", check="none")
    ET.SubElement(cpu, "model", fallback="forbid").text = TCG_CPU


def _root_port(guest: Guest, slot: int) -> ET.Element:
    if slot >= ROOT_PORTS_MAX:
        raise UsageError(
            f"guest {guest.name}: libvirt has room for {ROOT_PORTS_MAX} NICs, with those to come"
        )
    port = ET.Element("controller", type="pci", index=str(slot + 1), model="pcie-root-port")
    place = PciAddress(0, FIRST_ROOT_PORT + slot // IN_A_SLOT, slot % IN_A_SLOT)
    port.append(place.element(**({} if place.function else {"multifunction": "on"})))
    return port


def _serial(log: str = "") -> ET.Element:
    serial = ET.Element("serial", type="pty")
    if log:
        ET.SubElement(serial, "log", file=log, append="off")
    ET.SubElement(serial, "target", type="isa-serial", port="0")
    return serial


def _add_identity(root: ET.Element, plan: GuestPlan, image: Image) -> tuple[str, ...]:
    """Who the guest is, and its disk: libvirt has no word for a disk that is only read."""
    words: tuple[str, ...] = ()
    if image.disk:
        words += ("-drive", disk_drive(image.disk), "-device", _at(DISK_DEVICE, DISK))
    if plan.has_seed:
        return (*words, "-drive", seed_drive(plan.files), "-device", _at(SEED_DEVICE, SEED))
    firmware = ET.SubElement(root, "sysinfo", type="fwcfg")
    ET.SubElement(firmware, "entry", name=FW_CFG_NAME, file=str(plan.files.identity))
    return words


def _add_management(devices: ET.Element, plan: GuestPlan, forwarded: int) -> tuple[str, ...]:
    """Where SSH comes in. QEMU's own network is preferred: it lets nothing out, passt does."""
    mac = mac_for(plan.lab, plan.name, MGMT)
    if not forwarded:
        return ("-netdev", MGMT_NETDEV, "-device", _at(mgmt_device(mac), MANAGEMENT))
    address, _, prefix = MGMT_ADDRESS.partition("/")
    nic = ET.SubElement(devices, "interface", type="user")
    ET.SubElement(nic, "mac", address=mac)
    ET.SubElement(nic, "ip", family="ipv4", address=address, prefix=prefix)
    forward = ET.SubElement(nic, "portForward", proto="tcp", address="127.0.0.1")
    ET.SubElement(forward, "range", start=str(forwarded), to="22")
    ET.SubElement(nic, "model", type="virtio")
    ET.SubElement(nic, "backend", type="passt")
    nic.append(MANAGEMENT.element())
    return ()


def _at(device: str, place: PciAddress) -> str:
    return f"{device},{option(place.words())}"


def _host(plan: GuestPlan) -> Host:
    """Of a guest that is to be started."""
    assert plan.host
    return plan.host


def _add_nics(devices: ET.Element, nics: Iterable[tuple[PlannedNic, Wire]]) -> tuple[str, ...]:
    """Add NICs that libvirt knows; the others' words for QEMU's command line."""
    words: tuple[str, ...] = ()
    for index, (planned, wire) in enumerate(nics):
        place = nic_place(planned.slot, index)
        element = nic_element(planned.nic, wire, place)
        if element is not None:
            devices.append(element)
        else:
            words += _words(placed(wire, place))
    return words


def _words(wire: Wire) -> tuple[str, ...]:
    """For QEMU's command line. It makes devices in JSON last, and libvirt's root ports are such."""
    return ("-netdev", option(wire.netdev), "-device", json.dumps(wire.device))


def _no_vectors(guest: Guest, host: Host) -> tuple[str, ...]:
    """For a vhost-user NIC, there or to come: libvirt has no word for its vectors."""
    needed = lacks_msix(host.emulators[guest.qemu], host.accelerator)
    return ("-global", NO_VECTORS) if needed else ()


def _devices(root: ET.Element) -> ET.Element:
    found = root.find("devices")
    assert found is not None
    return found


def _add_arguments(root: ET.Element, words: Iterable[str]) -> None:
    """What libvirt passes to QEMU as it is."""
    tag = f"{{{QEMU_NAMESPACE}}}"
    arguments = [ET.Element(f"{tag}arg", value=word) for word in words]
    if arguments:
        ET.SubElement(root, f"{tag}commandline").extend(arguments)
