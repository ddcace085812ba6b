# SPDX-License-Identifier: BSD-2-Clause
"""A Lab as a topology file says it: the inverse of reading one.

Everything that was chosen (addresses, port names) is written out, defaults are not. What is read
again is equal, but for switches that a Lab made by hand uses without listing them.
"""

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from valemgr import units
from valemgr.topology import Condition, Guest, Impair, Impairment, Lab, Nic, Switch, Test, UdpTest
from valemgr.words import Provider

Said = dict[str, Any]

SHORT = 60  # characters


def dump_lab(lab: Lab) -> str:
    """YAML text."""
    said: Said = {"name": lab.name, **_kept(description=lab.description)}
    said |= _changed(lab, "engine") | _switches(lab)
    if groups := sorted({guest.group for guest in lab.guests if guest.group}):
        said["groups"] = dict.fromkeys(groups)
    linked = {end for link in lab.links for end in link.ends}
    said |= _kept(
        guests={guest.name: _guest(guest, linked) or None for guest in lab.guests},
        links=[{"endpoints": list(link.ends)} for link in lab.links],
        tests=[_test(test) for test in lab.tests],
    )
    return dump(said)


def dump(said: Said) -> str:
    """Plain data as YAML text."""
    return yaml.dump(said, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Short lists on one line; nothing for null."""

    def represent_short(self, items: list[Any]) -> yaml.Node:
        node = self.represent_list(items)
        short = all(isinstance(item, str) for item in items) and sum(map(len, items)) <= SHORT
        return yaml.SequenceNode(node.tag, node.value, flow_style=short)

    def represent_nothing(self, _: None) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:null", "")


_Dumper.add_representer(list, _Dumper.represent_short)
_Dumper.add_representer(type(None), _Dumper.represent_nothing)


def _kept(**said: Any) -> Said:
    """What is not empty."""
    return {key.strip("_").replace("_", "-"): value for key, value in said.items() if value}


def _changed(model: BaseModel, *fields: str) -> Said:
    """Fields that are not their default."""
    defaults = type(model).model_fields
    values = {name: getattr(model, name) for name in fields}
    return {
        name.replace("_", "-"): value if isinstance(value, (bool, int, float)) else str(value)
        for name, value in values.items()
        if value != defaults[name].default
    }


def _switches(lab: Lab) -> Said:
    """The provider of links' switches, and every other switch."""
    private = {link.switch for link in lab.links}
    every = {switch.name: switch for switch in lab.switches} | lab.all_switches()
    kernel = any(every[name].provider is Provider.KERNEL for name in private)
    provider = Provider.KERNEL if kernel else Provider.USER
    named = {
        name: _switch(switch, provider) or None
        for name, switch in every.items()
        if name not in private
    }
    return _kept(provider="kernel" if kernel else "", switches=named)


def _switch(switch: Switch, default: Provider) -> Said:
    said = _changed(switch, "shared", "p2p", "cap", "overflow", "neighbours")
    if switch.provider is not default:
        said["provider"] = str(switch.provider)
    if switch.age is not None:
        said["age"] = f"{switch.age}s"
    if switch.wait_limit is not None:
        said["wait-limit"] = f"{switch.wait_limit}ms"
    return said


def _guest(guest: Guest, linked: set[str]) -> Said:
    said = _changed(guest, "group", "image", "qemu", "cpus", "spare")
    if guest.memory_mib != Guest.model_fields["memory_mib"].default:
        said["memory"] = units.write_size(guest.memory_mib << 20)
    return said | _kept(
        after=list(guest.after),
        nics=[_nic(nic, f"{guest.name}:{nic.name}" in linked) for nic in guest.nics],
        files=[
            {"from": file.source, "to": file.target, **_changed(file, "mode")}
            for file in guest.files
        ],
        startup=list(guest.startup),
        ready=[_condition(condition) for condition in guest.ready],
    )


def _nic(nic: Nic, linked: bool) -> Said:
    said: Said = {"name": nic.name}
    if nic.cable:
        said["cable"] = nic.cable.name
    elif not linked:
        said["port"] = nic.port
    said |= _changed(nic, "model", "backend", "queues", "mac", "mtu")
    said["addresses"] = list(nic.addresses)
    return said | _kept(impair=_impair(nic.impair))


def _impair(impair: Impair) -> Said:
    if impair.into == impair.out and impair.into:
        return _impairment(impair.into)
    sides = {"in": impair.into, "out": impair.out}
    return {side: _impairment(keys) for side, keys in sides.items() if keys is not None}


def _impairment(keys: Impairment) -> Said:
    times = {name: units.write_duration(getattr(keys, name)) for name in ("delay", "jitter")}
    shares = {
        name: units.write_percent(getattr(keys, name))
        for name in ("loss", "duplicate", "corrupt", "reorder")
    }
    said = times | shares
    said |= {"rate": units.write_rate(keys.rate), "limit": units.write_size(keys.limit)}
    changed = _changed(keys, *said)
    return {key: said[key] for key in changed} | _changed(keys, "seed")


def _condition(condition: Condition) -> Said | str:
    said = _command(condition)
    return condition.exec if len(said) == 1 else said


def _command(condition: Condition) -> Said:
    said: Said = {"exec": condition.exec, **_kept(expect=condition.expect, status=condition.status)}
    if condition.timeout != Condition.model_fields["timeout"].default:
        said["timeout"] = units.write_seconds(condition.timeout)
    return said


def _test(test: Test) -> Said:
    if test.condition:
        return {"name": test.name, "from": test.guest, **_command(test.condition)}
    assert test.udp
    return {"name": test.name, "udp": _udp(test.udp), **_limits(test.udp)}


def _udp(udp: UdpTest) -> Said:
    said: Said = {"from": udp.sender, "to": udp.receiver, **_changed(udp, "frame")}
    said["seconds"] = units.write_seconds(udp.seconds)
    return said | ({"rate": udp.rate} if udp.rate else {})


def _limits(udp: UdpTest) -> Mapping[str, Any]:
    said: Said = {"min-kpps": udp.min_pps / 1000} if udp.min_pps else {}
    return said | ({"max-loss": units.write_percent(udp.max_loss)} if udp.max_loss < 100 else {})
