# SPDX-License-Identifier: BSD-2-Clause
"""What is read from a domain's XML, and what is added to it for a NIC on a port."""

import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lib.libvirtd import find
from valemgr.emulator import Emulator
from valemgr.errors import UsageError
from valemgr.names import PortName, parse_port
from valemgr.virt import mending
from valemgr.virt.domxml import DomainView, base_label, has_passt, parse_dac
from valemgr.virt.portxml import MappedPort, interface, ports_element, stable_mac, text_of
from valemgr.words import Backend

pytestmark = pytest.mark.unit

A, B = PortName("vale1", "a"), PortName("vale1", "b")
MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"
RUNDIR = Path("/run/vale")
OLD, NEW = (Emulator(Path("/usr/bin/qemu"), version, False) for version in ((7, 2), (8, 0)))
ROOT = "<controller type='pci' index='0' model='pcie-root'/>"
PORTS = """
<controller type='pci' index='1' model='pcie-root-port'>
  <address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x0'/></controller>
<controller type='pci' index='2' model='pcie-root-port'/>
<rng model='virtio'><backend model='random'>/dev/urandom</backend>
  <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></rng>
"""
NETWORK = f"""
<interface type='network'><mac address='{OTHER.upper()}'/><source network='default'/>
<model type='virtio'/><address type='pci' domain='0' bus='2' slot='0' function='0'/></interface>
"""


def domain(beside: str = "", devices: str = "", kind: str = "qemu") -> DomainView:
    return DomainView.parse(
        f"<domain type='{kind}'><name>d</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>"
        f"<memory unit='MiB'>64</memory>{beside}<os><type>hvm</type></os>"
        f"<devices><emulator>/usr/bin/qemu</emulator>{devices}</devices></domain>"
    )


def valid(view: DomainView, tmp_path: Path) -> None:
    """libvirt's own schema takes it."""
    program = find("virt-xml-validate")
    if program is None:
        pytest.skip("no virt-xml-validate: apt-get install libvirt-clients")
    file = tmp_path / "domain.xml"
    file.write_text(text_of(view.root))
    done = subprocess.run([program, str(file), "domain"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + file.read_text()


@pytest.mark.parametrize(
    ("backing", "shared"),
    [
        ("", False),
        ("<memoryBacking/>", False),
        ("<memoryBacking><access mode='shared'/></memoryBacking>", False),
        ("<memoryBacking><source type='memfd'/></memoryBacking>", False),
        (
            "<memoryBacking><source type='anonymous'/><access mode='shared'/></memoryBacking>",
            False,
        ),
        ("<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>", True),
        ("<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>", True),
        ("<memoryBacking><hugepages/><access mode='shared'/></memoryBacking>", True),
        ("<memoryBacking><hugepages/></memoryBacking>", False),
        (
            "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
            "<cpu><numa><cell id='0' cpus='0' memory='64' memAccess='private'/></numa></cpu>",
            False,
        ),
        (
            "<memoryBacking><hugepages/></memoryBacking>"
            "<cpu><numa><cell id='0' cpus='0' memory='64' memAccess='shared'/></numa></cpu>",
            True,
        ),
    ],
)
def test_shared_memory_is_seen_and_made(backing: str, shared: bool, tmp_path: Path) -> None:
    view = domain(backing)
    assert view.shares_memory is shared
    made, added = mending.mended(view, NEW, 0)
    assert made.shares_memory
    assert added == ([] if shared else ["shared memory"])
    assert view.shares_memory is shared  # the one that we were given is as it was
    valid(made, tmp_path)


def test_root_ports_are_counted_and_added(tmp_path: Path) -> None:
    assert domain(devices=PORTS).free_root_ports == 1
    assert domain(devices=PORTS + NETWORK).free_root_ports == 0
    full = domain(devices=ROOT + PORTS + NETWORK)
    assert mending.lacks(full, NEW) == ["shared memory", "a free root port"]
    made, added = mending.mended(full, NEW, 1)
    assert added == ["shared memory", f"{1 + mending.SPARE} root ports"]
    assert made.free_root_ports == 1 + mending.SPARE
    valid(made, tmp_path)
    assert "a free root port" not in mending.lacks(domain(devices=NETWORK), NEW)  # not q35


@pytest.mark.parametrize(("kind", "emulator", "needed"), [
    ("qemu", OLD, True), ("qemu", NEW, False), ("kvm", OLD, False),
])  # fmt: skip
def test_vectors(kind: str, emulator: Emulator, needed: bool, tmp_path: Path) -> None:
    view = domain(kind=kind)
    assert any("vectors=0" in gap for gap in mending.lacks(view, emulator)) is needed
    made, _ = mending.mended(view, emulator, 1)
    assert made.has_no_vectors is needed
    again, added = mending.mended(made, emulator, 0)
    assert added == []
    assert text_of(again.root) == text_of(made.root)
    valid(made, tmp_path)


def test_interface_and_metadata_come_and_go(tmp_path: Path) -> None:
    view = mending.with_nic(domain(devices=NETWORK), interface(A, MAC, RUNDIR, 2))
    view = mending.with_ports(view, (MappedPort(A, MAC),))
    valid(view, tmp_path)
    nic = view.on(A)
    assert nic
    assert (nic.mac, nic.backend, nic.where) == (MAC, Backend.VHOST_USER, RUNDIR)
    assert nic.alias == "ua-vale1-a"
    assert view.macs == {MAC, OTHER}
    assert view.mapped == (MappedPort(A, MAC),)
    assert view.on(B) is None
    gone = mending.with_ports(mending.without_nic(view, A), ())
    assert gone.plugged == gone.mapped == ()
    assert gone.root.find("metadata") is None


def test_others_metadata_stays_with_its_prefix() -> None:
    text = "<metadata><app:x xmlns:app='urn:app'><app:y/></app:x></metadata>"
    view = mending.with_ports(domain(text), (MappedPort(A, MAC),))
    written = text_of(view.root)
    assert "<app:x" in written
    assert 'xmlns:app="urn:app"' in written
    assert len(view.root.findall("metadata/*")) == 2
    assert len(mending.with_ports(view, ()).root.findall("metadata/*")) == 1


def test_others_metadata_without_a_prefix_stays_theirs() -> None:
    """A default name space that becomes the domain's would make it no domain any more."""
    view = mending.with_ports(
        domain("<metadata><lab xmlns='urn:x:1'><a/></lab></metadata>"), (MappedPort(A, MAC),)
    )
    again = DomainView.parse(text_of(view.root))
    assert again.root.tag == "domain"
    assert again.root.find("metadata/{urn:x:1}lab/{urn:x:1}a") is not None
    assert again.mapped == (MappedPort(A, MAC),)


def test_sync_keeps_what_was_said_of_a_nic(tmp_path: Path) -> None:
    view = mending.with_nic(domain(), interface(A, MAC, RUNDIR, 4))
    nic = view.on(A)
    assert nic
    assert nic.element is not None
    ET.SubElement(nic.element, "boot", order="2")
    made, words = mending.synced(view, {MAC: interface(B, MAC, RUNDIR)})
    assert len(words) == 1
    moved = made.on(B)
    assert moved
    assert moved.element is not None
    assert moved.alias == "ua-vale1-b"
    assert moved.element.find("driver[@queues='4']") is not None
    assert moved.element.find("boot[@order='2']") is not None
    valid(made, tmp_path)


def test_sync_adds_replaces_and_removes(tmp_path: Path) -> None:
    old = interface(B, MAC, RUNDIR)
    view = mending.with_nic(domain(devices=NETWORK), old)
    wanted = {OTHER: interface(A, OTHER, RUNDIR), "52:54:00:00:00:03": interface(
        PortName("vale2", "x"), "52:54:00:00:00:03", RUNDIR)}  # fmt: skip
    made, words = mending.synced(view, wanted)
    assert words == [
        f"vale1:b: removed ({MAC})",
        f"vale1:a: replaces an interface of type network ({OTHER})",
        "vale2:x: added (52:54:00:00:00:03)",
    ]
    assert {str(nic.port): nic.mac for nic in made.plugged} == {
        "vale1:a": OTHER,
        "vale2:x": "52:54:00:00:00:03",
    }
    replaced = made.on(A)
    assert replaced
    assert replaced.element is not None
    assert replaced.element.find("address[@bus='2']") is not None  # in its place
    assert mending.synced(made, wanted)[1] == []
    valid(made, tmp_path)


@pytest.mark.parametrize(
    ("ports", "reason"),
    [
        ("<vale:port name='a' mac='52:54:00:00:00:01'/>", "<vale:port> 1 has no switch"),
        ("<vale:port switch='vale1' mac='52:54:00:00:00:01'/>", "has no name"),
        ("<vale:port switch='vale1' name='a'/>", "has no mac"),
        ("<vale:port switch='br0' name='a' mac='52:54:00:00:00:01'/>", "not a port name"),
        ("<vale:port switch='vale1' name='a' mac='52:54'/>", "not a MAC address"),
        ("<vale:port switch='vale1' name='a' mac='01:00:5e:00:00:01'/>", "group address"),
        ("<vale:port switch='vale1' name='a' mac='52:54:00:00:00:01'/>" * 2, "vale1:a twice"),
    ],
)
def test_wrong_metadata_is_named(ports: str, reason: str) -> None:
    view = domain(
        f"<metadata><vale:ports xmlns:vale='urn:vale:ports:1'>{ports}</vale:ports></metadata>"
    )
    with pytest.raises(UsageError, match="domain d: ") as caught:
        _ = view.mapped
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_domain() -> None:
    for text, reason in (("<domain", "is not XML"), ("<network/>", "is no <domain>")):
        with pytest.raises(UsageError, match=reason):
            DomainView.parse(text, "it")


def test_sockets_that_are_not_ports_are_others() -> None:
    for path in ("/run/vale/x", "/run/ovs/vhost0", "/run/vale/vale1:a.sock", "vale1-a"):
        element = interface(A, MAC, RUNDIR)
        source = element.find("source")
        assert source is not None
        source.set("path", path)
        assert mending.with_nic(domain(), element).plugged == ()


def test_users_and_capabilities() -> None:
    assert parse_dac("+64055:+108") == (64055, 108)
    assert parse_dac("libvirt-qemu:kvm") is None
    host = (
        "<capabilities><host><secmodel><model>none</model></secmodel><secmodel><model>dac</model>"
        "<baselabel type='kvm'>+1:+2</baselabel><baselabel type='qemu'>+3:+4</baselabel>"
        "</secmodel></host></capabilities>"
    )
    assert base_label(host, "qemu") == (3, 4)
    assert base_label("<capabilities><host/></capabilities>", "qemu") is None
    passt = "<value>passt</value>"
    caps = "<domainCapabilities><devices><interface><enum name='backendType'>{}</enum></interface>"
    caps += "</devices></domainCapabilities>"
    assert has_passt(caps.format(passt))
    assert not has_passt(caps.format(""))


def test_macs_are_stable_and_differ() -> None:
    first = stable_mac("d", A, [])
    assert first == stable_mac("d", A, [])
    assert first.startswith("52:54:00:")
    assert (
        len({first, stable_mac("d", A, [first]), stable_mac("e", A, []), stable_mac("d", B, [])})
        == 4
    )


def test_bare_element_is_for_libvirt_to_name() -> None:
    text = text_of(ports_element([MappedPort(parse_port("vale1:a"), MAC)], bare=True))
    assert ET.fromstring(text).tag == "ports"
    assert "vale:" not in text
