# SPDX-License-Identifier: BSD-2-Clause
"""NICs of a topology file on their way to a Lab: which there are, how named, on which ports.

    declared     nics of a guest, in order          on a port, a switch, a cable, or for a link
    linked       an endpoint that names no declared NIC makes one, behind the declared
    layers       NIC settings of defaults, groups, guest, link, NIC, endpoint: a later one overrides

A port on a named switch is called as the guest is; a second one of that guest as guest_nic. So a
NIC that is added later renames nothing. A link's own switch has the ports 0 and 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from valemgr import authoring
from valemgr.errors import UsageError
from valemgr.findings import Finding, explain, suggest
from valemgr.names import parse_port
from valemgr.topology import Impair, Impairment, link_switch
from valemgr.yamlfile import Document, KeyPath

M = TypeVar("M", bound=BaseModel)
NIC_KEYS = ("model", "backend", "queues", "mtu")


@dataclass(slots=True)
class Sheet:
    """A file that is being resolved, and what was found in it."""

    entry: authoring.LabFile
    document: Document
    folder: Path  # where relative paths start
    name: str  # of the lab
    findings: list[Finding]

    def note(self, path: KeyPath, message: str, suggestion: str = "", key: bool = False) -> None:
        """A mistake at a path of the file."""
        self.findings.append(self.document.finding(path, message, suggestion, key))

    def line(self, path: KeyPath) -> int:
        """The line of a path."""
        return self.document.place(path)[0]

    def made(self, model: type[M], path: KeyPath, parts: dict[str, Any]) -> M | None:
        """A model of parts that are from one place; None, and findings, where they do not fit."""
        try:
            return model(**parts)
        except UsageError as exc:
            self.note(path, str(exc))
        except ValidationError as exc:
            for error in exc.errors():
                keys = (str(part).replace("_", "-") for part in error["loc"][:1])
                self.note((*path, *keys), *explain(error))
        return None


@dataclass(slots=True)
class Draft:
    """A NIC; `layers` hold its settings."""

    guest: str
    name: str
    path: KeyPath
    layers: list[authoring.NicKeys]
    port: str = ""
    switch: str = ""  # the one that its port is on
    cable: str = ""
    listens: bool = False
    mac: str | None = None
    addresses: tuple[str, ...] | None = None  # None: to be chosen
    link: int | None = None

    @property
    def end(self) -> str:
        """Its name as people write it."""
        return f"{self.guest}:{self.name}"

    @property
    def segment(self) -> str:
        """Who shares it hears each other; empty while it is on none."""
        return self.switch or (f"cable {self.cable}" if self.cable else "")

    def settings(self) -> dict[str, Any]:
        """What its layers say, as topology.Nic takes it."""
        said: dict[str, Any] = {"impair": _impair(self.layers)}
        for layer in self.layers:
            values = {key: getattr(layer, key) for key in NIC_KEYS}
            said |= {key: value for key, value in values.items() if value is not None}
        return said


@dataclass(slots=True)
class Wires:
    """All NICs of a file, by guest, and each link's two."""

    nics: dict[str, list[Draft]]
    links: list[tuple[Draft, Draft] | None]

    def __iter__(self) -> Iterator[Draft]:
        return (draft for drafts in self.nics.values() for draft in drafts)


def draft(sheet: Sheet, layers: dict[str, list[authoring.GuestKeys]]) -> Wires:
    """NICs with names and ports; `layers` are each guest's."""
    wires = Wires({}, [])
    for guest, entry in sheet.entry.guests.items():
        inherited = [layer.nic for layer in layers[guest] if layer.nic]
        wires.nics[guest] = [
            _declared(guest, index, nic, inherited) for index, nic in enumerate(entry.nics)
        ]
        _check_names(sheet, wires.nics[guest])
    for index, link in enumerate(sheet.entry.links):
        ends = [_end(sheet, wires, layers, index, link, side) for side in (0, 1)]
        wires.links.append(_joined(sheet, index, ends))
    for drafts in wires.nics.values():
        for one in drafts:
            _place(sheet, one, drafts)
    return wires


def _declared(
    guest: str, index: int, nic: authoring.NicEntry, inherited: list[authoring.NicKeys]
) -> Draft:
    return Draft(
        guest=guest,
        name=nic.name or f"vale{index}",
        path=("guests", guest, "nics", index),
        layers=[*inherited, nic],
        mac=nic.mac,
        addresses=nic.addresses,
    )


def _check_names(sheet: Sheet, drafts: list[Draft]) -> None:
    seen: dict[str, Draft] = {}
    for one in drafts:
        if other := seen.get(one.name):
            sheet.note(
                (*one.path, "name"),
                f"guest {one.guest} has two NICs '{one.name}'",
                f"the first is in line {sheet.line(other.path)}: name them apart",
            )
        seen.setdefault(one.name, one)


def _end(
    sheet: Sheet,
    wires: Wires,
    layers: dict[str, list[authoring.GuestKeys]],
    index: int,
    link: authoring.LinkEntry,
    side: int,
) -> Draft | None:
    """The NIC at one end of a link, found or made."""
    end, path = link.endpoints[side], ("links", index, "endpoints", side)
    if end.guest not in wires.nics:
        known = suggest(end.guest, wires.nics)
        sheet.note((*path, "guest"), f"link end: no guest '{end.guest}'", known)
        return None
    drafts = wires.nics[end.guest]
    found = next((one for one in drafts if one.name == end.nic), None)
    if found is None:
        inherited = [layer.nic for layer in layers[end.guest] if layer.nic]
        found = Draft(end.guest, end.nic or f"vale{len(drafts)}", path, inherited)
        drafts.append(found)
        _check_names(sheet, drafts)
    elif found.link is not None:
        first = sheet.line(("links", found.link, "endpoints"))
        message = f"{found.end} is an end of the link in line {first} already"
        sheet.note(path, message, "a NIC is on one link")
        return None
    found.link = index
    own = [layer for layer in found.layers if isinstance(layer, authoring.NicEntry)]
    inherited = [layer for layer in found.layers if not isinstance(layer, authoring.NicEntry)]
    found.layers = [*inherited, link, *own, end]
    given = link.addresses[side] if link.addresses else None
    found.addresses = next(
        (some for some in (end.addresses, given, found.addresses) if some is not None), None
    )
    found.mac = end.mac or found.mac
    return found


def _joined(sheet: Sheet, index: int, ends: list[Draft | None]) -> tuple[Draft, Draft] | None:
    one, other = ends
    if one is None or other is None:
        return None
    switch = link_switch(sheet.name, (one.end, other.end))
    for side, end in enumerate((one, other)):
        end.switch, end.port = switch, f"{switch}:{side}"
    return one, other


def _place(sheet: Sheet, one: Draft, siblings: list[Draft]) -> None:
    """Put a NIC on its port."""
    entry = next((x for x in one.layers if isinstance(x, authoring.NicEntry)), None)
    if entry is None:
        return
    said = [key for key in ("port", "switch", "cable") if getattr(entry, key)]
    if one.link is not None:
        if said:
            both = f"a {said[0]}, and a link in line {sheet.line(('links', one.link))}"
            sheet.note((*one.path, said[0]), f"{one.end} has {both}", "leave one of them out")
    elif len(said) != 1:
        what = " and ".join(said) or "neither port, switch nor link"
        sheet.note(one.path, f"{one.end} has {what}", "give it one of port, switch, cable, link")
    elif entry.port:
        one.port, one.switch = entry.port, parse_port(entry.port).switch
    elif entry.cable:
        one.cable = entry.cable
    elif entry.switch:
        one.switch = entry.switch
        _name_port(sheet, one, siblings)


def _name_port(sheet: Sheet, one: Draft, siblings: list[Draft]) -> None:
    before = siblings[: siblings.index(one)]
    taken = any(other.switch == one.switch for other in before)
    name = f"{one.guest}_{one.name}" if taken else one.guest
    try:
        one.port = str(parse_port(f"{one.switch}:{name.replace('-', '_')}"))
    except UsageError as exc:
        reason = str(exc).removesuffix(" (example: vale1:a)")
        sheet.note((*one.path, "switch"), reason, f"give {one.end} a port instead of a switch")


def _impair(layers: list[authoring.NicKeys]) -> Impair:
    """Each direction by itself; a link impairs each direction once, where frames enter."""
    into: Impairment | None = None
    out: Impairment | None = None
    for layer in layers:
        keys = layer.impair
        if keys is None:
            continue
        if not isinstance(keys, authoring.NicImpair):
            into, out = _impairment(keys), None
        elif keys.in_ or keys.out:
            into = _impairment(keys.in_) if keys.in_ else into
            out = _impairment(keys.out) if keys.out else out
        else:
            into = out = _impairment(keys)
    nothing = (None, Impairment())  # said to take away what a more general layer says
    return Impair(into=None if into in nothing else into, out=None if out in nothing else out)


def _impairment(keys: authoring.ImpairmentKeys) -> Impairment:
    return Impairment(**keys.model_dump(exclude_none=True, exclude={"in_", "out"}))
