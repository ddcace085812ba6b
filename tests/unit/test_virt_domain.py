# SPDX-License-Identifier: BSD-2-Clause
"""Guests as libvirt's domains: golden XML, all of it valid by libvirt's own schema."""

import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from valemgr.emulator import Emulator
from valemgr.errors import EnvironmentUnfitError, UsageError
from valemgr.image import Disk, DiskFormat, Identity, Image
from valemgr.plan import GuestPlan, Host, LibvirtHost, pin, plan_guest
from valemgr.topology import Guest, Lab, Nic, pair_lab
from valemgr.virt import domain
from valemgr.virt.domxml import DomainView
from valemgr.wiring import Place
from valemgr.words import Backend, NicModel

pytestmark = pytest.mark.unit

MICRO = Image(
    "micro", Path("/i/micro/vmlinuz"), Path("/i/micro/initrd.img"), "console=ttyS0", "ready", {}
)
CLOUD = Image(
    "cloud.img", None, None, "", "", {}, Disk(Path("/i/cloud, 12.img"), DiskFormat.QCOW2),
    Identity.NOCLOUD,
)  # fmt: skip
OURS = Emulator(Path("/b/qemu-system-x86_64-vale"), (7, 2), has_netmap=True)
LATER = Emulator(Path("/usr/bin/qemu-system-x86_64"), (9, 2), has_netmap=False)

Golden = Callable[[str, str], None]


def host(accelerator: str = "tcg", emulator: Emulator = OURS) -> Host:
    return Host(
        emulators={"": emulator},
        accelerator=accelerator,
        place=Place(rundir=Path("/run/vale"), lab_dir=Path("/run/valemgr/l")),
        images={"micro": MICRO, "cloud": CLOUD},
    )


def lab(*nics: Nic, spare: int = 4, image: str = "micro") -> Lab:
    guest = Guest(name="a", cpus=2, memory_mib=192, spare=spare, image=image, nics=nics)
    return pin(Lab(name="l", guests=(guest,)))


ETH1 = Nic(name="eth1", port="vale1:a", mtu=9000)
ETH2 = Nic(name="eth2", port="vale2:a", queues=4)
E1000 = Nic(name="eth3", port="vale2:b", model=NicModel.E1000)
VHOST = Nic(name="eth0", port="vale1:a", backend=Backend.VHOST_USER)


def on(accelerator: str = "tcg", emulator: Emulator = OURS) -> Host:
    return replace(
        host(accelerator, emulator), libvirt=LibvirtHost("qemu:///system", (64055, 64055))
    )


HOST = on()


def replace_port(nic: Nic, port: str) -> Nic:
    return nic.model_copy(update={"port": port})


def valid(xml: str, folder: Path) -> None:
    """What libvirt's own schema says."""
    if not shutil.which("virt-xml-validate"):
        pytest.skip("no virt-xml-validate: apt-get install libvirt-clients")
    file = folder / "domain.xml"
    file.write_text(xml)
    done = subprocess.run(
        ["virt-xml-validate", str(file), "domain"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def plan(made: Lab, where: Host) -> GuestPlan:
    return plan_guest(made, made.guests[0], where)


class TestTransient:
    @pytest.mark.parametrize(
        ("name", "made", "where", "forwarded"),
        [
            ("vhost-user", lab(VHOST, spare=2), HOST, 0),
            ("vhost-user-kvm", lab(VHOST, ETH2), on("kvm", LATER), 0),
            ("netmap", lab(ETH1, ETH2, E1000, spare=1), HOST, 0),
            ("no-slots", pin(pair_lab("vale1", baseline=True)), HOST, 0),
            ("disk", lab(ETH1, image="cloud", spare=0), HOST, 0),
            ("passt", lab(VHOST, spare=0), on(emulator=replace(LATER, has_user=False)), 2222),
        ],
    )
    def test_golden(
        self, golden: Golden, tmp_path: Path, name: str, made: Lab, where: Host, forwarded: int
    ) -> None:
        xml = domain.transient(plan(made, where), forwarded)
        golden(f"domain-lab-{name}.xml", xml)
        valid(xml, tmp_path)

    def test_it_is_read_as_it_is_meant(self) -> None:
        made = lab(VHOST, replace_port(ETH1, "vale2:a"), spare=3)
        view = DomainView.parse(domain.transient(plan(made, HOST)))
        assert view.name == "l.a"
        assert view.uuid == domain.guest_uuid(Path("/run/valemgr/l"), "a")
        assert (view.shares_memory, view.has_no_vectors, view.free_root_ports) == (True, True, 4)
        by_port = {str(nic.port): (nic.backend, nic.mac) for nic in view.plugged}
        macs = [nic.mac for nic in made.guests[0].nics]
        assert by_port == {
            "vale1:a": (Backend.VHOST_USER, macs[0]), "vale2:a": (Backend.NETMAP, macs[1]),
        }  # fmt: skip
        assert set(macs) < view.macs  # the management NIC has one, too

    def test_the_port_that_passt_forwards_is_read_again(self) -> None:
        made = plan(lab(VHOST), HOST)
        ports = [DomainView.parse(domain.transient(made, port)).forwarded for port in (0, 2222)]
        assert ports == [0, 2222]

    def test_libvirt_is_left_no_root_port_to_fill(self) -> None:
        xml = domain.transient(plan(lab(VHOST, ETH2, spare=16), HOST))
        root = ET.fromstring(xml)
        places = [tuple(at.attrib.values()) for at in root.iter("address")]
        assert len(places) == len(set(places)) == 18 + 1 + 1  # root ports, a NIC, random numbers
        kinds = [
            device.tag for device in root.findall("devices/*") if device.find("address") is None
        ]
        assert kinds == ["emulator", "controller", "controller", "memballoon", "serial"]

    def test_the_switch_sees_the_memory_of_those_who_need_it_and_only_then(self) -> None:
        for nic, shared in ((ETH1, False), (VHOST, True)):
            view = DomainView.parse(domain.transient(plan(lab(nic), HOST)))
            assert view.shares_memory is shared
            assert view.has_no_vectors is shared

    def test_names_and_uuids_are_a_labs_own(self) -> None:
        assert domain.domain_name("a-b", "c") != domain.domain_name("a", "b-c")
        one, two = Path("/run/valemgr/l"), Path("/tmp/valemgr-1000/l")
        uuids = {domain.guest_uuid(folder, name) for folder in (one, two) for name in "ab"}
        assert len(uuids) == 4

    def test_too_many_for_the_root_bus_is_refused(self) -> None:
        nics = [Nic(name=f"e{n}", port=f"vale1:p{n}") for n in range(15)]
        domain.transient(plan(lab(*nics[:14], spare=0), HOST))
        with pytest.raises(UsageError, match="libvirt has room for 14 NICs without root ports"):
            domain.transient(plan(lab(*nics, spare=0), HOST))


class TestPersistent:
    @pytest.mark.parametrize(
        ("name", "nics", "where", "backend"),
        [
            ("vhost-user", (ETH1,), host(), Backend.VHOST_USER),
            ("vhost-user-kvm", (ETH1, ETH2), host("kvm", LATER), Backend.VHOST_USER),
            ("netmap", (ETH1, ETH2, E1000), host(), Backend.NETMAP),
        ],
    )
    def test_golden(
        self, golden: Golden, tmp_path: Path, name: str, nics: tuple[Nic, ...], where: Host,
        backend: Backend,
    ) -> None:  # fmt: skip
        made = lab(*nics)
        xml = domain.persistent(made, made.guests[0], where, backend)
        golden(f"domain-persistent-{name}.xml", xml)
        valid(xml, tmp_path)

    def test_it_is_read_as_it_is_meant(self) -> None:
        made = lab(ETH1, spare=0)
        (guest,) = made.guests
        view = DomainView.parse(domain.persistent(made, guest, host(), Backend.VHOST_USER))
        assert (view.name, view.kind, view.emulator) == ("l.a", "qemu", str(OURS.path))
        assert view.shares_memory
        assert view.has_no_vectors
        assert view.free_root_ports == 4
        assert [(str(m.port), m.mac) for m in view.mapped] == [("vale1:a", guest.nics[0].mac)]
        (nic,) = view.plugged
        assert (nic.backend, nic.where) == (Backend.VHOST_USER, Path("/run/vale"))

    def test_a_netmap_nic_opens_its_port_itself(self) -> None:
        made = lab(ETH1, spare=6)
        (guest,) = made.guests
        xml = domain.persistent(made, guest, host(), Backend.NETMAP)
        view = DomainView.parse(xml)
        assert [str(mapped.port) for mapped in view.mapped] == ["vale1:a"]
        (nic,) = view.plugged
        assert (nic.backend, nic.where) == (Backend.NETMAP, Path("/run/vale/netmap.sock"))
        assert nic.mac == guest.nics[0].mac
        assert xml.count("pcie-root-port") == 7

    def test_nothing_of_a_lab_is_in_it(self) -> None:
        made = pin(pair_lab("vale1"))
        for guest in made.guests:
            xml = domain.persistent(made, guest, host(), Backend.VHOST_USER)
            assert "/run/valemgr" not in xml

    @pytest.mark.parametrize(
        ("made", "backend", "reason"),
        [
            (lab(E1000), Backend.VHOST_USER, "guest a: NIC eth3: vhost-user serves virtio"),
            (lab(ETH1, image="cloud"), Backend.NETMAP, "guest a: image cloud.img is a disk"),
            (lab(ETH2), Backend.VHOST_USER, "guest a: NIC eth2: .* one queue pair only"),
            (
                pin(pair_lab("vale1", baseline=True)), Backend.NETMAP,
                "guest a: NIC vale1 is on a cable",
            ),
            (
                lab(*(Nic(name=f"e{n}", port=f"vale1:p{n}") for n in range(29))), Backend.NETMAP,
                "guest a: libvirt has room for 32 NICs",
            ),
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_refused(self, made: Lab, backend: Backend, reason: str) -> None:
        with pytest.raises(UsageError, match=f"^{reason}"):
            domain.persistent(made, made.guests[0], host(), backend)

    def test_netmap_needs_our_qemu(self) -> None:
        made = lab(ETH1)
        other = host(emulator=replace(LATER, version=(7, 2)))
        with pytest.raises(
            EnvironmentUnfitError, match=r"^guest a: NIC eth1: .* lacks the netmap backend"
        ):
            domain.persistent(made, made.guests[0], other, Backend.NETMAP)
