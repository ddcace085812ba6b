# SPDX-License-Identifier: BSD-2-Clause
"""containerlab's topologies as ours: containers become guests, veth links links, bridges switches.

    nodes        guests; kinds, groups and defaults are worked into each
    exec         startup            binds of files    files       cpu, memory    the same
    healthcheck  ready              wait-for          after
    links        links without addresses but those given; to a bridge: a NIC on a switch

What has no counterpart is left out and remarked upon, with its place. What is wrong in the file is
a TopologyError, as for our own files.
"""

import math
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from valemgr import authoring, yamlfile
from valemgr.authoring import MEMORY_MAX, WHOLE, Address, Mac, Text
from valemgr.errors import TopologyError
from valemgr.findings import Finding, explain, suggest
from valemgr.labdump import dump
from valemgr.names import HALF_MAX
from valemgr.topology import MGMT
from valemgr.units import NUMBER
from valemgr.yamlfile import Document, KeyPath

BRIDGES = ("bridge", "ovs-bridge")
ELSEWHERE = ("host", "mgmt-net", "macvlan", "dummy", "vxlan", "vxlan-stitch")
FRR, FRR_CONF = "micro-frr", "/etc/frr/frr.conf"
MEMORY_LEAST = {"micro": 128, FRR: 192}  # MiB: a guest has a kernel of its own
NAME_MAX, NIC_MAX, SWITCH_MAX = 32, 15, 11


def _number(value: Any) -> Any:
    return getattr(value, "text", value)


def _end(value: Any) -> Any:
    value = _number(value)
    if not isinstance(value, str):
        return value
    node, colon, interface = value.partition(":")
    if not (node and colon and interface):
        raise ValueError(f"'{value}' is not an endpoint: write it as node:interface")
    return {"node": node, "interface": interface}


# An empty text is an end without an address.
Given = Annotated[Address | None, BeforeValidator(lambda value: None if value == "" else value)]


class Foreign(BaseModel):
    """A mapping of theirs: keys that we do not know are kept, to be remarked upon."""

    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=authoring.kebab)


class Wait(Foreign):
    """Another node's stage that a stage waits for."""

    node: Text


class Stage(Foreign):
    """A stage of a node's life."""

    wait_for: tuple[Wait, ...] = ()


class Health(Foreign):
    """How a node is found healthy: CMD and words, or CMD-SHELL and a line."""

    test: tuple[Text, ...] = ()

    def lines(self) -> list[str]:
        """The command, as a shell takes it."""
        kind, *words = self.test or ("NONE",)
        if kind == "CMD-SHELL":
            return [" ".join(words)] if words else []
        return [shlex.join(words)] if kind == "CMD" and words else []


class Node(Foreign):
    """A node, or what a kind, a group or the defaults say of nodes."""

    kind: Text | None = None
    group: Text | None = None
    image: Text | None = None
    exec: tuple[Text, ...] = ()
    binds: tuple[Text, ...] = ()
    cpu: Annotated[float, Field(gt=0, le=1024, allow_inf_nan=False)] | None = None
    memory: Text | None = None
    stages: dict[Text, Stage] = {}
    healthcheck: Health = Health()


class End(Foreign):
    """One end of a link."""

    node: Text
    interface: Text
    mac: Mac | None = None
    ipv4: Given = None
    ipv6: Given = None


AnEnd = Annotated[End, BeforeValidator(_end)]
ANode = Annotated[Node, BeforeValidator(lambda value: {} if value is None else value)]


class Link(Foreign):
    """A link."""

    type: Text = "veth"
    endpoints: tuple[AnEnd, ...] = ()
    mtu: Annotated[int, WHOLE] | None = None
    ipv4: tuple[Given, ...] = ()
    ipv6: tuple[Given, ...] = ()


class Topology(Foreign):
    """All nodes and links."""

    defaults: Node = Node()
    kinds: dict[Text, ANode] = {}
    groups: dict[Text, ANode] = {}
    nodes: dict[Text, ANode] = {}
    links: tuple[Link, ...] = ()


class File(Foreign):
    """A containerlab topology file."""

    name: Text
    topology: Topology


@dataclass(slots=True)
class Conversion:
    """A file on its way."""

    document: Document
    topology: Topology
    folder: Path  # where their relative paths start
    target: Path  # where ours do
    remarks: list[Finding] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # guests and switches, by node
    nics: dict[str, dict[str, str]] = field(default_factory=dict)  # by node and interface
    guests: dict[str, dict[str, Any]] = field(default_factory=dict)
    links: list[dict[str, Any]] = field(default_factory=list)
    ports: list[str] = field(default_factory=list)  # that were named because names were too long

    def remark(self, path: KeyPath, message: str, suggestion: str = "") -> None:
        """Something has no counterpart."""
        self.remarks.append(self.document.finding(path, message, suggestion, key=True))


def convert(text: str, file: str, folder: Path, target: Path) -> tuple[str, list[Finding]]:
    """Our file's text, and what could not be converted. `target`: the folder that it will be in."""
    document = _parsed(text, file)
    source = _read(document)
    work = Conversion(document, source.topology, folder, target)
    for key in sorted(source.model_extra or {}):
        work.remark((key,), f"{key} is left out")
    for name in source.topology.nodes:
        _name(work, name)
    _check_links(work)
    for name in source.topology.nodes:
        if not _is_bridge(work, name):
            work.guests[work.names[name]] = _guest(work, name)
    for index, link in enumerate(source.topology.links):
        _link(work, index, link)
    return _written(work, source.name, file), sorted(work.remarks)


def _parsed(text: str, file: str) -> Document:
    try:
        return yamlfile.parse(text, file, merge=True)
    except TopologyError:
        if "{{" not in text:
            raise
        line = text[: text.index("{{")].count("\n") + 1
        advice = "convert what containerlab makes of it"
        raise TopologyError([Finding(file, line, 1, "this is a template", advice)]) from None


def _read(document: Document) -> File:
    data = yamlfile.without_nulls(document.data(), ("nodes", "kinds", "groups"))
    try:
        return File.model_validate(data)
    except ValidationError as exc:
        errors = [e for e in exc.errors() if e["type"] != "model_type" or e["loc"]]
        findings = [
            document.finding(
                [step for step in error["loc"] if step != "[key]"],
                *explain(error),
                key="missing" in error["type"],
            )
            for error in errors
        ] or [document.finding((), "this is not a containerlab topology", "a mapping is meant")]
        raise TopologyError(sorted(findings)) from None


def _written(work: Conversion, name: str, file: str) -> str:
    lines = [f"Converted from {Path(file).name} by valemgr import containerlab."]
    lines += [
        f"line {remark.line}: {remark.message}{remark.suggestion and ': '}{remark.suggestion}"
        for remark in sorted(work.remarks)
    ]
    switches = [work.names[node] for node in work.topology.nodes if _is_bridge(work, node)]
    said: dict[str, Any] = {"name": _fitting(name, NAME_MAX, "-_") or "lab"}
    if switches:
        said["switches"] = dict.fromkeys(switches)
    said["guests"] = {guest: entry or None for guest, entry in work.guests.items()}
    if work.links:
        said["links"] = work.links
    return "".join(f"# {' '.join(line.split())}\n" for line in lines) + dump(said)


def _is_bridge(work: Conversion, node: str) -> bool:
    return node in work.topology.nodes and _latest(work, node, "kind") in BRIDGES


def _layers(work: Conversion, name: str) -> list[tuple[KeyPath, Node]]:
    """What holds for a node, the most general first."""
    topology, node = work.topology, work.topology.nodes[name]
    group = topology.groups.get(node.group or "", Node())
    kind = node.kind or group.kind or topology.defaults.kind or ""
    return [
        (("topology", "defaults"), topology.defaults),
        (("topology", "kinds", kind), topology.kinds.get(kind, Node())),
        (("topology", "groups", node.group or ""), group),
        (("topology", "nodes", name), node),
    ]


def _latest(work: Conversion, name: str, key: str) -> Any:
    values = [getattr(node, key) for _, node in _layers(work, name)]
    return next((value for value in reversed(values) if value is not None), None)


def _fitting(text: str, longest: int, strip: str = "") -> str:
    """A name within our grammar."""
    return re.sub(r"[^0-9a-zA-Z_-]", "-", text).strip(strip)[:longest].rstrip(strip)


def _unique(name: str, taken: list[str], longest: int) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name[: longest - len(str(number))]}{number}"
    return found


def _name(work: Conversion, node: str) -> None:
    taken = list(work.names.values())
    if _is_bridge(work, node):
        name = "vale" + re.sub(r"[^0-9a-zA-Z_]", "_", node)[:SWITCH_MAX]
        name = _unique(name, taken, SWITCH_MAX + 4)
    else:
        name = _unique(_fitting(node, NAME_MAX, "-_") or "guest", taken, NAME_MAX)
    work.names[node] = name
    if name != node:
        what = "switch" if _is_bridge(work, node) else "guest"
        work.remark(("topology", "nodes", node), f"node {node} is {what} {name}")


def _check_links(work: Conversion) -> None:
    """Ends that are no nodes are mistakes, as they are to containerlab."""
    found: list[Finding] = []
    for index, link in enumerate(work.topology.links):
        path: KeyPath = ("topology", "links", index, "endpoints")
        if _is_elsewhere(work, link):
            continue
        if len(link.endpoints) != 2:
            message = f"{len(link.endpoints)} endpoints"
            found.append(work.document.finding(path, message, "a link has two"))
        for side, end in enumerate(link.endpoints):
            if end.node not in work.topology.nodes:
                known = suggest(end.node, work.topology.nodes)
                found.append(work.document.finding((*path, side), f"no node '{end.node}'", known))
    if found:
        raise TopologyError(sorted(found))


def _is_elsewhere(work: Conversion, link: Link) -> bool:
    """Whether a link leads out of the topology."""
    strange = {end.node for end in link.endpoints} - set(work.topology.nodes)
    return link.type != "veth" or bool(strange & set(ELSEWHERE))


def _guest(work: Conversion, name: str) -> dict[str, Any]:
    path: KeyPath = ("topology", "nodes", name)
    said: dict[str, Any] = {"image": _image(work, name)}
    if (cpu := _latest(work, name, "cpu")) is not None:
        said["cpus"] = min(max(math.ceil(cpu), 1), 64)
    said["memory"] = _memory(work, path, _latest(work, name, "memory"), said["image"])
    layers = _layers(work, name)
    said["after"] = list(dict.fromkeys(_waits(work, layers)))
    said["files"] = [file for place, node in layers for file in _files(work, place, node)]
    # What the container's own entry point does.
    starts = said["image"] == FRR and any(file["to"] == FRR_CONF for file in said["files"])
    said["startup"] = ["frr start"] * starts + [line for _, node in layers for line in node.exec]
    said["ready"] = [line for _, node in layers for line in node.healthcheck.lines()]
    left = sorted({key for _, node in layers for key in node.model_extra or {}})
    if left:
        work.remark(path, f"node {name}: left out: {', '.join(left)}")
    return {key: value for key, value in said.items() if value}


def _image(work: Conversion, name: str) -> str:
    kind, image = _latest(work, name, "kind") or "linux", _latest(work, name, "image") or ""
    if "frr" in image.lower():
        return FRR
    what = f"image {image}" if kind == "linux" and image else f"kind {kind}"
    if kind != "linux" or image:
        work.remark(("topology", "nodes", name), f"node {name}: {what}", "micro stands in for it")
    return "micro"


def _memory(work: Conversion, path: KeyPath, text: str | None, image: str) -> str:
    """Theirs in powers of 1024, whatever the unit is called; never less than the image needs."""
    least = MEMORY_LEAST[image]
    if text is None:
        return f"{least}M" if image == FRR else ""
    match = re.fullmatch(rf"({NUMBER})\s*([kmgt]?)i?b?", text.strip().lower())
    mib = float(match[1]) * 1024 ** ("bkmgt".index(match[3] or "b") - 2) if match else math.inf
    if mib > MEMORY_MAX:
        work.remark((*path, "memory"), f"memory {text} is left out")
        return f"{least}M"
    if mib < least:
        work.remark((*path, "memory"), f"memory {text} is {least}M", "it holds a kernel too")
    return f"{max(math.ceil(mib), least)}M"


def _waits(work: Conversion, layers: list[tuple[KeyPath, Node]]) -> Iterator[str]:
    for _, node in layers:
        for stage in node.stages.values():
            for wait in stage.wait_for:
                if wait.node in work.topology.nodes and not _is_bridge(work, wait.node):
                    yield work.names[wait.node]


def _files(work: Conversion, path: KeyPath, node: Node) -> Iterator[dict[str, str]]:
    for index, bind in enumerate(node.binds):
        source, _, rest = bind.partition(":")
        target = rest.partition(":")[0]
        file = _below(work.folder, source)
        if file.is_file() and re.fullmatch(r"/.*[^/]", target):
            yield {"from": os.path.relpath(file, work.target), "to": target}
        else:
            why = "a directory" if file.is_dir() else "no file here"
            work.remark((*path, "binds", index), f"bind {bind} is left out", why)


def _below(folder: Path, path: str) -> Path:
    """A path as a file in a folder means it."""
    return folder / Path(path).expanduser()


def _link(work: Conversion, index: int, link: Link) -> None:
    path: KeyPath = ("topology", "links", index)
    bridges = [end for end in link.endpoints if _is_bridge(work, end.node)]
    left = sorted(link.model_extra or {})
    if _is_elsewhere(work, link):
        kind = link.type if link.type != "veth" else "to the host"
        work.remark(path, f"a link ({kind}) is left out", "it leads out of the lab")
    elif len(bridges) == 2:
        work.remark(path, "a link between bridges is left out", "VALE switches are not linked")
    elif bridges:
        _attach(work, index, link, bridges[0])
    else:
        work.links.append(_joined(work, index, link))
    if left and not _is_elsewhere(work, link):
        work.remark(path, f"link: left out: {', '.join(left)}")


def _attach(work: Conversion, index: int, link: Link, bridge: End) -> None:
    """A NIC on a switch."""
    side = 1 - link.endpoints.index(bridge)
    end = link.endpoints[side]
    name = _nic_name(work, end)
    nic: dict[str, Any] = {"name": name, **_port(work, work.names[end.node], name, bridge)}
    nic |= {"mac": end.mac} if end.mac else {}
    nic |= _mtu(work, index, link.mtu)
    nic["addresses"] = _addresses(link, side) or "none"
    work.guests[work.names[end.node]].setdefault("nics", []).append(nic)


def _port(work: Conversion, guest: str, nic: str, bridge: End) -> dict[str, str]:
    """The switch; where a port named after the guest and the NIC would be too long, a port."""
    switch, ports = work.names[bridge.node], work.ports
    if len(guest) + 1 + len(nic) <= HALF_MAX:
        return {"switch": switch}
    ports.append(_unique(guest.replace("-", "_")[:HALF_MAX], ports, HALF_MAX))
    return {"port": f"{switch}:{ports[-1]}"}


def _joined(work: Conversion, index: int, link: Link) -> dict[str, Any]:
    said: dict[str, Any] = {
        "endpoints": [_endpoint(work, end) for end in link.endpoints],
        "addresses": [_addresses(link, side) or "none" for side in (0, 1)],
    }
    return said | _mtu(work, index, link.mtu)


def _endpoint(work: Conversion, end: End) -> Any:
    guest, nic = work.names[end.node], _nic_name(work, end)
    return {"guest": guest, "nic": nic, "mac": end.mac} if end.mac else f"{guest}:{nic}"


def _addresses(link: Link, side: int) -> list[str]:
    end = link.endpoints[side]
    shared = [pair[side] for pair in (link.ipv4, link.ipv6) if side < len(pair)]
    return [address for address in (end.ipv4, end.ipv6, *shared) if address]


def _mtu(work: Conversion, index: int, mtu: int | None) -> dict[str, int]:
    if mtu is None:
        return {}
    ours = min(max(mtu, authoring.MTU_MIN), authoring.MTU_MAX)
    if ours != mtu:
        work.remark(("topology", "links", index, "mtu"), f"mtu {mtu} is {ours}")
    return {"mtu": ours}


def _nic_name(work: Conversion, end: End) -> str:
    """The interface's name, fitted to Linux."""
    names = work.nics.setdefault(end.node, {})
    if end.interface not in names:
        fitting = _fitting(end.interface, NIC_MAX)
        if not fitting[:1].isalpha() or fitting in (MGMT, "lo"):
            fitting = f"eth{fitting}"[:NIC_MAX]
        names[end.interface] = _unique(fitting, list(names.values()), NIC_MAX)
        if names[end.interface] != end.interface:
            path: KeyPath = ("topology", "nodes", end.node)
            change = f"{end.interface} is {names[end.interface]}"
            work.remark(path, f"node {end.node}: interface {change}")
    return names[end.interface]
