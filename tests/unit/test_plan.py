# SPDX-License-Identifier: BSD-2-Clause
"""Topology to plan: golden argv and identities, and what is refused."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from valemgr.errors import UsageError
from valemgr.image import Image
from valemgr.plan import Host, guest_files, identity, plan
from valemgr.topology import Cable, Guest, Lab, Nic, NicModel, pair_lab

pytestmark = pytest.mark.unit

MICRO = Image(
    "micro", Path("/i/micro/vmlinuz"), Path("/i/micro/initrd.img"), "console=ttyS0", "ready", {}
)


def host(accelerator: str = "tcg", lab_dir: str = "/run/valemgr/vale1") -> Host:
    return Host(
        qemu=Path("/b/qemu-system-x86_64-vale"),
        accelerator=accelerator,
        netmap_device="/run/vale/netmap.sock",
        lab_dir=Path(lab_dir),
        images={"micro": MICRO},
    )


def as_text(lab: Lab, where: Host) -> str:
    """Every guest's argv, an option a line, and its identity."""
    parts = []
    for guest in plan(lab, where).guests:
        parts.append(" ".join(guest.argv).replace(" -", "\n-"))
        parts.append(json.dumps(identity(guest, "ssh-ed25519 KEY", "HOST KEY"), indent=1))
    return "\n\n".join(parts) + "\n"


@pytest.mark.parametrize(
    ("name", "lab", "accelerator"),
    [
        ("pair", pair_lab("vale1"), "tcg"),
        ("pair-baseline", pair_lab("vale1", baseline=True), "tcg"),
        ("pair-e1000-kvm", pair_lab("vale1", NicModel.E1000), "kvm"),
    ],
)
def test_golden(golden, name: str, lab: Lab, accelerator: str) -> None:
    golden(f"plan-{name}.txt", as_text(lab, host(accelerator)))


def test_same_lab_same_plan_other_lab_other_macs() -> None:
    assert plan(pair_lab("vale1"), host()) == plan(pair_lab("vale1"), host())
    macs = [
        nic.mac
        for name in ("vale1", "vale2")
        for guest in plan(pair_lab(name, baseline=True), host()).guests
        for nic in guest.nics
    ]
    assert len(set(macs)) == 8


def test_listening_end_is_launched_first() -> None:
    ends = [Cable(name="c", listens=listens) for listens in (False, True)]
    guests = tuple(Guest(name=n, nics=(Nic(cable=e),)) for n, e in zip("ab", ends, strict=True))
    waves = plan(Lab(name="l", guests=guests), host()).waves
    assert [[guest.name for guest in wave] for wave in waves] == [["b"], ["a"]]


def test_neighbours_are_those_of_the_segment() -> None:
    guests = tuple(
        Guest(name=f"g{i}", nics=(Nic(port=f"vale{i % 2}x:p{i}", addresses=(f"10.0.0.{i}/24",)),))
        for i in range(4)
    )
    first = plan(Lab(name="l", guests=guests), host()).guests[0]
    assert [n["address"] for n in first.identity["nics"][0]["neighbours"]] == ["10.0.0.2"]


def test_commas_in_paths_are_doubled() -> None:
    argv = plan(pair_lab("vale1"), host(lab_dir="/run/a,b")).guests[0].argv
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
        ([{"port": "vale1:a", "mac": "52-54-00-00-00-01"}], "pattern"),
        ([{"port": "vale1:a", "color": "red"}], "not permitted"),
        ([{"cable": {"name": "c", "listens": True}}], "one end that listens"),
        ([{"port": "vale1:a", "model": "rtl9999"}], "virtio-net-pci"),
    ],
)
def test_bad_topologies(nics: list[dict[str, object]], reason: str) -> None:
    with pytest.raises((ValidationError, UsageError), match=reason):
        Lab.model_validate({"name": "l", "guests": [{"name": "g", "nics": nics}]})


def test_guest_and_lab_names_become_paths_so_they_are_checked() -> None:
    with pytest.raises(UsageError):
        Guest(name="../a")
    with pytest.raises(UsageError):
        Lab(name="a/b", guests=())
