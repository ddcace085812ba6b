# SPDX-License-Identifier: BSD-2-Clause
"""From what a topology file says to the Lab that it means; looks at the files that it names.

    layers       defaults, then groups from the outermost in, then the guest: a later one overrides,
                 but startup, files and ready are joined
    NICs         draft.py        addresses    addressing.py

Mistakes are collected, each with its place; a Lab is only made of a file without any.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from valemgr import addressing, authoring, topology
from valemgr.draft import Draft, Sheet, Wires, draft
from valemgr.errors import TopologyError, UsageError
from valemgr.findings import suggest
from valemgr.image import DISK_SUFFIXES
from valemgr.names import PORTS_MAX, check_label
from valemgr.words import Backend, Provider
from valemgr.yamlfile import Document, KeyPath

GUEST_KEYS = {"image": "image", "qemu": "qemu", "cpus": "cpus", "memory": "memory_mib",
              "spare": "spare", "after": "after"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings of one place in the file, with what they name looked up once."""

    keys: authoring.GuestKeys
    files: tuple[topology.File, ...]
    ready: tuple[topology.Condition, ...]


def resolve(entry: authoring.LabFile, document: Document, folder: Path, name: str) -> topology.Lab:
    """The Lab, or TopologyError. `folder`: where relative paths start; `name`: if it says none."""
    sheet = Sheet(entry, document, folder, entry.name or name, [])
    lab = _resolve(sheet)
    if lab is None or sheet.findings:
        raise TopologyError(sorted(set(sheet.findings)))
    return lab


def _resolve(sheet: Sheet) -> topology.Lab | None:
    _check_name(sheet)
    _check_groups(sheet)
    _check_after(sheet)
    layers = _layers(sheet)
    wires = draft(sheet, {name: [layer.keys for layer in some] for name, some in layers.items()})
    switches = _switches(sheet, wires)
    _check_ports(sheet, wires)
    _check_cables(sheet, wires)
    _check_providers(sheet, wires, switches)
    addressing.assign(sheet, wires)
    guests = [_guest(sheet, name, layers[name], wires.nics[name]) for name in sheet.entry.guests]
    tests = list(_tests(sheet, wires))
    if sheet.findings:
        return None
    parts = {
        "name": sheet.name,
        "description": sheet.entry.description,
        "engine": sheet.entry.engine,
        "switches": tuple(switches.values()),
        "guests": tuple(guests),
        "links": tuple(_link(link) for link in wires.links if link),
        "tests": tuple(tests),
    }
    return sheet.made(topology.Lab, (), parts)


def _check_name(sheet: Sheet) -> None:
    try:
        check_label("lab", sheet.name)
    except UsageError as exc:
        sheet.note(("name",), str(exc), "give it a name:")


def _check_groups(sheet: Sheet) -> None:
    groups = sheet.entry.groups
    places: list[tuple[KeyPath, str | None]] = [
        *((("groups", name), entry.group) for name, entry in groups.items()),
        *((("guests", name), entry.group) for name, entry in sheet.entry.guests.items()),
    ]
    for path, group in places:
        if group and group not in groups:
            known = suggest(group, groups) or "declare it under groups:"
            sheet.note((*path, "group"), f"no group '{group}'", known)
    parents = {name: [entry.group] for name, entry in groups.items() if entry.group in groups}
    if circle := _circle(parents):
        path = ("groups", circle[0], "group")
        sheet.note(path, f"groups are in each other: {' → '.join(circle)}", "take one out")


def _check_after(sheet: Sheet) -> None:
    guests = sheet.entry.guests
    waits = {name: _latest(sheet, name, "after") for name in guests}
    for path, keys in _all_keys(sheet):
        for index, other in enumerate(keys.after or ()):
            if other not in guests:
                known = suggest(other, guests)
                sheet.note((*path, "after", index), f"no guest '{other}' to start after", known)
    edges = {name: [one for one in after if one in guests] for name, after in waits.items()}
    if circle := _circle(edges):
        path = ("guests", circle[0], "after")
        sheet.note(path, f"guests wait for each other: {' → '.join(circle)}", "let one go first")


def _all_keys(sheet: Sheet) -> Iterator[tuple[KeyPath, authoring.GuestKeys]]:
    yield ("defaults",), sheet.entry.defaults
    for name, group in sheet.entry.groups.items():
        yield ("groups", name), group
    for name, guest in sheet.entry.guests.items():
        yield ("guests", name), guest


def _latest(sheet: Sheet, guest: str, key: str) -> Sequence[str]:
    values = [getattr(keys, key) for keys in _chain(sheet, guest)]
    return next((value for value in reversed(values) if value is not None), ())


def _chain(sheet: Sheet, guest: str) -> list[authoring.GuestKeys]:
    """Settings that hold for a guest, the most general first."""
    entry: authoring.GroupEntry | None = sheet.entry.guests[guest]
    chain: list[authoring.GuestKeys] = []
    while entry is not None and entry not in chain:
        chain.append(entry)
        entry = sheet.entry.groups.get(entry.group or "")
    return [sheet.entry.defaults, *reversed(chain)]


def _layers(sheet: Sheet) -> dict[str, list[Layer]]:
    made = {id(keys): _layer(sheet, path, keys) for path, keys in _all_keys(sheet)}
    return {name: [made[id(keys)] for keys in _chain(sheet, name)] for name in sheet.entry.guests}


def _layer(sheet: Sheet, path: KeyPath, keys: authoring.GuestKeys) -> Layer:
    files = [_file(sheet, (*path, "files", index), file) for index, file in enumerate(keys.files)]
    ready = [
        _condition(sheet, (*path, "ready", index), one) for index, one in enumerate(keys.ready)
    ]
    return Layer(keys, tuple(f for f in files if f), tuple(c for c in ready if c))


def _file(sheet: Sheet, path: KeyPath, file: authoring.FileEntry) -> topology.File | None:
    source = (sheet.folder / Path(file.from_).expanduser()).resolve()
    if not source.is_file():
        what = "is a directory, a file is meant" if source.is_dir() else "there is no such file"
        message = f"'{file.from_}': {what}"
        sheet.note((*path, "from"), message, "a path is relative to the topology file")
    parts = {"source": str(source), "target": file.to} | ({"mode": file.mode} if file.mode else {})
    return sheet.made(topology.File, path, parts)


def _condition(
    sheet: Sheet, path: KeyPath, entry: authoring.ConditionEntry | authoring.TestEntry
) -> topology.Condition | None:
    said = {key: getattr(entry, key) for key in ("expect", "status", "timeout")}
    parts: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    return sheet.made(topology.Condition, path, {"exec": entry.exec or "", **parts})


def _guest(
    sheet: Sheet, name: str, layers: list[Layer], drafts: list[Draft]
) -> topology.Guest | None:
    parts: dict[str, Any] = {"name": name, "group": sheet.entry.guests[name].group or ""}
    for layer in layers:
        values = {field: getattr(layer.keys, key) for key, field in GUEST_KEYS.items()}
        parts |= {field: value for field, value in values.items() if value is not None}
    for key in ("image", "qemu"):
        if "/" in (said := parts.get(key, "")) or said.endswith(DISK_SUFFIXES):
            parts[key] = str((sheet.folder / Path(parts[key]).expanduser()).resolve())
    nics = {one.name: _nic(sheet, one) for one in drafts if one.segment}
    parts |= {
        "nics": tuple(nic for nic in nics.values() if nic),
        "files": tuple(file for layer in layers for file in layer.files),
        "startup": tuple(line for layer in layers for line in layer.keys.startup),
        "ready": tuple(one for layer in layers for one in layer.ready),
    }
    return sheet.made(topology.Guest, ("guests", name), parts)


def _nic(sheet: Sheet, one: Draft) -> topology.Nic | None:
    parts = {"name": one.name, "mac": one.mac, "addresses": one.addresses or (), **one.settings()}
    if one.cable:
        parts["cable"] = topology.Cable(name=one.cable, listens=one.listens)
    else:
        parts["port"] = one.port or f"{one.switch}:x"  # a port without a name is noted already
    return sheet.made(topology.Nic, one.path, parts)


def _link(ends: tuple[Draft, Draft]) -> topology.Link:
    one, other = ends
    return topology.Link(ends=(one.end, other.end), switch=one.switch)


def _switches(sheet: Sheet, wires: Wires) -> dict[str, topology.Switch]:
    """Those declared, those that ports are on where none is declared, those of links."""
    default = sheet.entry.provider or Provider.USER
    found: dict[str, topology.Switch] = {}
    for name, entry in sheet.entry.switches.items():
        parts = entry.model_dump(exclude_none=True)
        made = sheet.made(
            topology.Switch, _switch_path(sheet, name), {"provider": default, **parts, "name": name}
        )
        found[name] = made or topology.Switch(name=name)
    for one in wires:
        if not one.switch or one.switch in found or one.link is not None:
            continue
        if sheet.entry.switches:
            message = f"{one.end} is on switch {one.switch}, which is not declared"
            sheet.note(one.path, message, suggest(one.switch, sheet.entry.switches))
        found[one.switch] = topology.Switch(name=one.switch, provider=default)
    p2p = default is Provider.USER  # the kernel's has no such setting; two ports do as well
    for link in wires.links:
        if link:
            name = link[0].switch
            found[name] = topology.Switch(name=name, provider=default, p2p=p2p)
    return found


def _switch_path(sheet: Sheet, name: str) -> KeyPath:
    """The path of a switch by its canonical name."""
    node = sheet.document.root.value["switches"]
    return ("switches", next(key for key in node.value if topology.canonical_switch(key) == name))


def _check_ports(sheet: Sheet, wires: Wires) -> None:
    """A port, and a MAC, belongs to one NIC; a switch has 254 ports, two if it is p2p."""
    _check_once(sheet, wires, "port", lambda one: one.port)
    _check_once(sheet, wires, "mac", lambda one: one.mac or "")
    count: dict[str, int] = {}
    for one in wires:
        if one.switch and one.link is None:
            count[one.switch] = count.get(one.switch, 0) + 1
            entry = sheet.entry.switches.get(one.switch)
            most = 2 if entry and entry.p2p else PORTS_MAX
            if count[one.switch] == most + 1:
                message = f"{one.end} is one port too many on {one.switch}"
                sheet.note(one.path, message, f"it has {most}" + (" (p2p)" if most == 2 else ""))


def _check_once(sheet: Sheet, wires: Wires, key: str, value: Callable[[Draft], str]) -> None:
    seen: dict[str, Draft] = {}
    for one in wires:
        this = value(one)
        if not this:
            continue
        if other := seen.get(this):
            kind = "MAC" if key == "mac" else key
            first = f"of {other.end} already, in line {sheet.line((*other.path, key))}"
            sheet.note(
                (*one.path, key), f"{kind} {this} of {one.end} is that {first}", "use another"
            )
        seen.setdefault(this, one)


def _check_cables(sheet: Sheet, wires: Wires) -> None:
    ends: dict[str, list[Draft]] = {}
    for one in wires:
        if one.cable:
            ends.setdefault(one.cable, []).append(one)
    for name, drafts in ends.items():
        drafts[0].listens = True
        if len(drafts) != 2:
            message = f"cable '{name}' has {len(drafts)} end{'s' if len(drafts) > 1 else ''}"
            sheet.note((*drafts[-1].path, "cable"), message, "exactly two NICs name a cable")


def _check_providers(sheet: Sheet, wires: Wires, switches: Mapping[str, topology.Switch]) -> None:
    """What the kernel's switch cannot do."""
    for one in wires:
        switch = switches.get(one.switch)
        if switch is None or switch.provider is not Provider.KERNEL:
            continue
        said = one.settings()
        if said["impair"] != topology.Impair():
            message = f"{one.end}: the kernel's switch cannot impair"
            sheet.note((*one.path, "impair"), message, "use provider: user")
        backend = said.get("backend", Backend.AUTO)
        if backend not in (Backend.AUTO, Backend.NETMAP):
            message = f"{one.end}: {backend} does not reach the kernel's switch"
            sheet.note((*one.path, "backend"), message, "use netmap, or provider: user")


def _tests(sheet: Sheet, wires: Wires) -> Iterator[topology.Test | None]:
    seen: dict[str, int] = {}
    for index, entry in enumerate(sheet.entry.tests):
        path: KeyPath = ("tests", index)
        if entry.name in seen:
            first = sheet.line(("tests", seen[entry.name]))
            message = f"test '{entry.name}' is in line {first} already"
            sheet.note((*path, "name"), message, "rename it")
        seen.setdefault(entry.name, index)
        if entry.udp:
            yield _trial(sheet, wires, path, entry, entry.udp)
        else:
            yield _command(sheet, path, entry)


def _command(sheet: Sheet, path: KeyPath, entry: authoring.TestEntry) -> topology.Test | None:
    guest = entry.from_ or ""
    if guest not in sheet.entry.guests:
        known = suggest(guest, sheet.entry.guests)
        sheet.note((*path, "from"), f"test '{entry.name}': no guest '{guest}'", known)
    made = _condition(sheet, path, entry)
    return topology.Test(name=entry.name, guest=guest, condition=made) if made else None


def _trial(
    sheet: Sheet, wires: Wires, path: KeyPath, entry: authoring.TestEntry, udp: authoring.UdpEntry
) -> topology.Test | None:
    path = (*path, "udp")
    sender = _test_end(sheet, wires, (*path, "from"), udp.from_)
    receiver = _test_end(sheet, wires, (*path, "to"), udp.to)
    if sender is None or receiver is None:
        return None
    if sender.guest == receiver.guest:
        message = f"a guest does not send to itself: {sender.end} to {receiver.end}"
        sheet.note(path, message, "name two guests")
    if receiver.segment and not receiver.addresses:
        sheet.note((*path, "to"), f"{receiver.end} has no address to send to", "give it one")
    parts = udp.model_dump(exclude_none=True, include={"frame", "seconds", "rate"})
    parts |= {"sender": sender.end, "receiver": receiver.end}
    parts |= {"min_pps": entry.min_kpps} if entry.min_kpps is not None else {}
    parts |= {"max_loss": entry.max_loss} if entry.max_loss is not None else {}
    trial = sheet.made(topology.UdpTest, path, parts)
    return topology.Test(name=entry.name, udp=trial) if trial else None


def _test_end(sheet: Sheet, wires: Wires, path: KeyPath, text: str) -> Draft | None:
    """A NIC of `guest:nic`, or the first of `guest`."""
    guest, _, nic = text.partition(":")
    if guest not in wires.nics:
        sheet.note(path, f"no guest '{guest}'", suggest(guest, wires.nics))
        return None
    found = [one for one in wires.nics[guest] if nic in ("", one.name)]
    if not found:
        known = suggest(nic, [one.name for one in wires.nics[guest]]) or "give it one"
        sheet.note(path, f"guest {guest} has no NIC {nic}".rstrip(), known)
    return found[0] if found else None


def _circle(edges: Mapping[str, Sequence[str | None]]) -> list[str]:
    """Names along a circle, the first repeated at the end; empty if there is none."""
    try:
        TopologicalSorter({name: [x for x in more if x] for name, more in edges.items()}).prepare()
    except CycleError as exc:
        return list(reversed(exc.args[1]))
    return []
