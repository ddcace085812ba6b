# SPDX-License-Identifier: BSD-2-Clause
"""What cloud-init in a guest is told: the three files of a NoCloud volume. JSON, as it is YAML.

    meta-data        who it is; the instance is a new one with every start
    user-data        root's key, the host key
    network-config   names, addresses and MTUs of its NICs, by their MACs

What cannot be said there (static neighbours, no IPv6) `segments.complete_nic` does over SSH.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

from valemgr.topology import MGMT

LABEL = "CIDATA"


def files(lab: str, identity: Mapping[str, Any]) -> dict[str, str]:
    """The files by name, from what micro would be told by fw_cfg."""
    meta = {"instance-id": _instance(lab, identity), "local-hostname": identity["hostname"]}
    return {
        "meta-data": _text(meta),
        "user-data": "#cloud-config\n" + _text(_user_data(identity)),
        "network-config": _text(_network_config(identity)),
    }


def volume(contents: Mapping[str, str]) -> bytes:
    """An ISO 9660 file system with these files."""
    from pycdlib import PyCdlib

    iso = PyCdlib()
    iso.new(vol_ident=LABEL, rock_ridge="1.09")
    for number, (name, text) in enumerate(contents.items()):
        data = text.encode()
        iso.add_fp(io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name)
    written = io.BytesIO()
    iso.write_fp(written)
    iso.close()
    return written.getvalue()


def _instance(lab: str, identity: Mapping[str, Any]) -> str:
    """Different with every host key, so that an image that was booted before takes what is new."""
    name = f"{lab}-{identity['hostname']}"
    return f"{name}-{hashlib.sha256(identity['host_key'].encode()).hexdigest()[:12]}"


def _user_data(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "disable_root": False,
        "ssh_authorized_keys": identity["authorized_keys"],
        "ssh_keys": {"ed25519_private": identity["host_key"]},
        "ssh_pwauth": False,
    }


def _network_config(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {"version": 2, "ethernets": {nic["name"]: _ethernet(nic) for nic in identity["nics"]}}


def _ethernet(nic: Mapping[str, Any]) -> dict[str, Any]:
    said = {
        "match": {"macaddress": nic["mac"]},
        "set-name": nic["name"],
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
        "optional": nic["name"] != MGMT,  # no boot waits for a data NIC's link: valemgr does
        "mtu": nic.get("mtu"),
        "addresses": nic["addresses"],
    }
    return {key: value for key, value in said.items() if value is not None and value != []}


def _text(data: Any) -> str:
    return json.dumps(data, indent=1) + "\n"
