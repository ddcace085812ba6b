# SPDX-License-Identifier: BSD-2-Clause
"""What cloud-init is told: golden files, and a volume that a kernel can mount."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from valemgr.nocloud import LABEL, files, volume

pytestmark = pytest.mark.unit

WHO: dict[str, Any] = {
    "hostname": "a",
    "nics": [
        {"mac": "52:54:00:00:00:01", "name": "eth1", "mtu": 1400,
         "addresses": ["10.0.0.1/24", "fd00::1/64"],
         "neighbours": [{"address": "10.0.0.2", "mac": "52:54:00:00:00:02"}]},
        {"mac": "52:54:00:00:00:03", "name": "eth2", "mtu": 1500, "addresses": [],
         "neighbours": []},
        {"mac": "52:54:00:00:00:04", "name": "mgmt", "dhcp4": False,
         "addresses": ["10.0.2.15/24"]},
    ],
    "authorized_keys": ["ssh-ed25519 KEY"],
    "host_key": "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
}  # fmt: skip


def test_golden(golden: Callable[[str, str], None]) -> None:
    told = files("l", WHO)
    golden("nocloud.txt", "".join(f"--- {name}\n{text}" for name, text in told.items()))


def test_all_of_it_is_yaml() -> None:
    told = {name: yaml.safe_load(text) for name, text in files("l", WHO).items()}
    assert told["meta-data"]["local-hostname"] == "a"
    assert told["user-data"]["ssh_keys"] == {"ed25519_private": WHO["host_key"]}
    assert told["user-data"]["disable_root"] is False
    ethernets = told["network-config"]["ethernets"]
    assert ethernets["eth1"]["match"] == {"macaddress": "52:54:00:00:00:01"}  # and no number
    assert not any(nic.get("gateway4") or nic.get("routes") for nic in ethernets.values())


def test_another_host_key_makes_another_instance() -> None:
    def instance(lab: str, **more: str) -> Any:
        return yaml.safe_load(files(lab, WHO | more)["meta-data"])["instance-id"]

    ids = {instance("l"), instance("m"), instance("l", hostname="b"), instance("l", host_key="x")}
    assert len(ids) == 4
    assert instance("l") in ids


def test_the_volume_has_the_label_and_the_files() -> None:
    from pycdlib import PyCdlib

    told = files("l", WHO)
    data = volume(told)
    assert data[0x8000:0x8006] == b"\x01CD001"
    assert data[0x8028:0x8048].decode().strip() == LABEL
    iso = PyCdlib()
    iso.open_fp(io.BytesIO(data))
    for name, text in told.items():
        found = io.BytesIO()
        iso.get_file_from_iso_fp(found, rr_path=f"/{name}")
        assert found.getvalue().decode() == text
    iso.close()
