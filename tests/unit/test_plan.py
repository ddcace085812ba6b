# SPDX-License-Identifier: BSD-2-Clause
"""Topology to plan: golden argv and identities, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from valemgr.emulator import Emulator
from valemgr.errors import EnvironmentUnfitError, UsageError
from valemgr.image import Disk, DiskFormat, Identity, Image
from valemgr.names import mac_for
from valemgr.plan import GuestPlan, Host, guest_files, identity, pin, plan_guest, plan_nic
from valemgr.topology import Guest, Lab, Nic, pair_lab
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
STOCK = Emulator(Path("/usr/bin/qemu-system-x86_64"), (7, 2), has_netmap=False)


def host(
    accelerator: str = "tcg", lab_dir: str = "/run/valemgr/vale1", emulator: Emulator = OURS
) -> Host:
    return Host(
        emulators={"": emulator},
        accelerator=accelerator,
        place=Place(rundir=Path("/run/vale"), lab_dir=Path(lab_dir)),
        images={"micro": MICRO, "cloud": CLOUD},
    )


def plans(lab: Lab, where: Host) -> list[GuestPlan]:
    pinned = pin(lab)
    return [plan_guest(pinned, guest, where) for guest in pinned.guests]


def as_text(lab: Lab, where: Host) -> str:
    """Every guest's argv, an option a line, and its identity."""
    parts = []
    for guest in plans(lab, where):
        parts.append(" ".join(guest.argv).replace(" -", "\n-"))
        parts.append(json.dumps(identity(guest, "ssh-ed25519 KEY", "HOST KEY"), indent=1))
    return "\n\n".join(parts) + "\n"


def spare_lab() -> Lab:
    """A guest with slots and two NICs, one of them of many queues."""
    nics = (Nic(name="eth1", port="vale1:a"), Nic(name="eth2", port="vale2:a", queues=4, mtu=9000))
    return Lab(name="vale1", guests=(Guest(name="a", cpus=2, spare=2, nics=nics),))


def disk_lab() -> Lab:
    nic = Nic(name="vale0", port="vale1:a", addresses=("198.18.0.1/24",))
    return Lab(name="vale1", guests=(Guest(name="a", image="cloud", spare=0, nics=(nic,)),))


@pytest.mark.parametrize(
    ("name", "lab", "where"),
    [
        ("pair", pair_lab("vale1"), host()),
        ("pair-baseline", pair_lab("vale1", baseline=True), host()),
        ("pair-e1000-kvm", pair_lab("vale1", NicModel.E1000), host("kvm")),
        ("pair-stock", pair_lab("vale1"), host(emulator=STOCK)),
        ("spare", spare_lab(), host()),
        ("disk", disk_lab(), host()),
    ],
)
def test_golden(golden: Callable[[str, str], None], name: str, lab: Lab, where: Host) -> None:
    golden(f"plan-{name}.txt", as_text(lab, where))


def test_same_lab_same_plan_other_lab_other_macs() -> None:
    assert plans(pair_lab("vale1"), host()) == plans(pair_lab("vale1"), host())
    macs = [
        planned.nic.mac
        for name in ("vale1", "vale2")
        for guest in plans(pair_lab(name, baseline=True), host())
        for planned in guest.nics
    ]
    assert None not in macs
    assert len(set(macs)) == 8


def test_a_pinned_mac_is_the_users_else_the_known_one_else_a_stable_one() -> None:
    def nic(number: int, mac: str | None = None) -> Nic:
        return Nic(name=f"eth{number}", port=f"vale1:p{number}", mac=mac)

    said = "52:54:00:00:00:01"
    lab = Lab(name="l", guests=(Guest(name="g", nics=(nic(1, said), nic(2), nic(3), nic(4))),))
    known = {("g", "eth1"): "52:54:00:00:00:09", ("g", "eth2"): "52:54:00:00:00:02",
             ("g", "eth3"): said}
    macs = [planned.mac for _, planned in pin(lab, known).nics()]
    assert macs == [said, "52:54:00:00:00:02", mac_for("l", "g", "eth3"), mac_for("l", "g", "eth4")]
    assert pin(pin(lab, known)) == pin(lab, known)


def test_a_stable_mac_that_is_taken_gives_way_to_the_next() -> None:
    stable = mac_for("l", "g", "eth1")
    nics = (Nic(name="eth1", port="vale1:a"), Nic(name="eth2", port="vale1:b", mac=stable))
    macs = [nic.mac for _, nic in pin(Lab(name="l", guests=(Guest(name="g", nics=nics),))).nics()]
    assert macs == [mac_for("l", "g", "eth1", 1), stable]


def test_neighbours_are_those_of_the_segment() -> None:
    guests = tuple(
        Guest(
            name=f"g{i}",
            nics=(Nic(name="eth1", port=f"vale{i % 2}x:p{i}", addresses=(f"10.0.0.{i}/24",)),),
        )
        for i in range(4)
    )
    first = plans(Lab(name="l", guests=guests), host())[0]
    assert first.identity["nics"][0]["neighbours"] == [
        {"address": "10.0.0.2", "mac": mac_for("l", "g2", "eth1")}
    ]


def test_cloud_init_is_told_by_a_volume_and_others_by_fw_cfg() -> None:
    (cloud,) = plans(disk_lab(), host())
    assert cloud.has_seed
    assert "-fw_cfg" not in cloud.argv
    assert not any(guest.has_seed for guest in plans(pair_lab("vale1"), host()))


def test_a_guest_with_spare_slots_has_a_root_port_for_each_and_for_its_nics() -> None:
    (guest,) = plans(spare_lab(), host())
    assert guest.slots == 4
    assert [planned.slot for planned in guest.nics] == [0, 1]
    ports = [word for word in guest.argv if word.startswith("pcie-root-port")]
    assert ports == [f"pcie-root-port,id=slot{i},chassis={i + 1}" for i in range(4)]
    (without,) = plans(Lab(name="l", guests=(Guest(name="a", spare=0),)), host())
    assert (without.slots, [w for w in without.argv if "root-port" in w]) == (0, [])


@pytest.mark.parametrize(
    ("emulator", "spare", "backend", "shared"),
    [
        (OURS, 0, Backend.AUTO, False),
        (OURS, 4, Backend.AUTO, False),
        (OURS, 0, Backend.VHOST_USER, True),
        (STOCK, 0, Backend.AUTO, True),
        (STOCK, 0, Backend.STREAM, False),
        (STOCK, 4, Backend.STREAM, True),  # a vhost-user NIC may come later
    ],
)
def test_memory_is_shared_where_valed_must_see_it(
    emulator: Emulator, spare: int, backend: Backend, shared: bool
) -> None:
    nic = Nic(name="eth1", port="vale1:a", backend=backend)
    lab = Lab(name="l", guests=(Guest(name="g", memory_mib=192, spare=spare, nics=(nic,)),))
    (guest,) = plans(lab, host(emulator=emulator))
    memory = "memory-backend-memfd,id=mem,size=192M,share=on"
    assert (memory in guest.argv) is shared
    assert ("q35,memory-backend=mem" in guest.argv) is shared
    assert guest.shares_memory is shared


def test_a_guest_of_a_later_plug_is_planned_as_one_of_the_start() -> None:
    lab = pin(spare_lab())
    (guest,) = plans(lab, host())
    later = plan_nic(lab, lab.guests[0], lab.guests[0].nics[1], 1, host())
    assert later == guest.nics[1]


def test_what_cannot_be_wired_names_the_guest() -> None:
    with pytest.raises(EnvironmentUnfitError, match=r"^guest a: NIC vale0: .* lacks the netmap"):
        plans(pair_lab("vale1", backend=Backend.NETMAP), host(emulator=STOCK))
    old = replace(STOCK, version=(6, 2))
    with pytest.raises(EnvironmentUnfitError, match=r"^guest a: NIC vale0: .* comes with QEMU 7.2"):
        plans(pair_lab("vale1", NicModel.E1000), host(emulator=old))


def test_commas_in_paths_are_doubled() -> None:
    argv = plans(pair_lab("vale1"), host(lab_dir="/run/a,b"))[0].argv
    assert any("path=/run/a,,b/a.ctl,server=on" in arg for arg in argv)


def test_path_too_long_for_a_socket_is_refused() -> None:
    with pytest.raises(UsageError, match="too long for a socket"):
        guest_files(Path("/" + "x" * 100), "guest")


@pytest.mark.parametrize(
    ("nics", "reason"),
    [
        ([{"port": "vale1:a"}, {"port": "vale-1:b"}, {"port": "vale1:a"}], "used twice"),
        ([{"port": "vale1:a", "mac": "52:54:00:00:00:01"},
          {"port": "vale1:b", "mac": "52:54:00:00:00:01"}], "used twice"),
        ([{}], "exactly one"),
        ([{"port": "eth0"}], "not a port name"),
        ([{"port": "vale1:a", "addresses": ["300.0.0.1/24"]}], "300.0.0.1"),
        ([{"port": "vale1:a", "mac": "52-54-00-00-00-01"}], "not a MAC address"),
        ([{"port": "vale1:a", "color": "red"}], "not permitted"),
        ([{"cable": {"name": "c", "listens": True}}], "one end that listens"),
        ([{"port": "vale1:a", "model": "rtl9999"}], "virtio-net-pci"),
    ],
)
def test_bad_topologies(nics: list[dict[str, object]], reason: str) -> None:
    named = [{"name": f"eth{number}"} | nic for number, nic in enumerate(nics)]
    with pytest.raises((ValidationError, UsageError), match=reason):
        Lab.model_validate({"name": "l", "guests": [{"name": "g", "nics": named}]})


def test_guest_and_lab_names_become_paths_so_they_are_checked() -> None:
    with pytest.raises(UsageError):
        Guest(name="../a")
    with pytest.raises(UsageError):
        Lab(name="a/b", guests=())
