# SPDX-License-Identifier: BSD-2-Clause
"""A lab as a graph, and as text for other programs: JSON, mermaid, dot. (SVG: picture.py.)

    node    a guest, or a switch that more is on than one link
    edge    port    a NIC on a switch
            link    two NICs alone on a private switch, which is not drawn
            cable   two NICs back-to-back without a switch

Pure, and the same text for the same lab. Names and descriptions are data: each format has one
function that quotes them.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from valemgr.output import SCHEMA_VERSION
from valemgr.text import harmless
from valemgr.topology import Guest, Impair, Impairment, Lab, Nic, Switch
from valemgr.units import write_duration, write_rate, write_size
from valemgr.words import Backend, NicModel, Provider


class EdgeKind(StrEnum):
    """What joins two nodes."""

    PORT = "port"
    LINK = "link"
    CABLE = "cable"


@dataclass(frozen=True, slots=True)
class End:
    """One end of an edge: a guest's NIC, or a switch."""

    node: str
    nic: Nic | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """What joins two nodes; the first end is a guest's."""

    kind: EdgeKind
    ends: tuple[End, End]


@dataclass(frozen=True, slots=True)
class Graph:
    """A lab as nodes, by id, and edges."""

    lab: Lab
    guests: dict[str, Guest]
    switches: dict[str, Switch]
    edges: tuple[Edge, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node's id."""
        return (*self.guests, *self.switches)

    def name(self, node: str) -> str:
        """How people call a node."""
        found = self.guests.get(node) or self.switches[node]
        return found.name

    def groups(self) -> dict[str, list[str]]:
        """Groups in the lab's order, with the ids of their guests."""
        found: dict[str, list[str]] = defaultdict(list)
        for node, guest in self.guests.items():
            if guest.group:
                found[guest.group].append(node)
        return dict(found)


def graph(lab: Lab) -> Graph:
    """The graph of a lab."""
    hidden = set(_link_switches(lab))
    switches = {name: switch for name, switch in lab.all_switches().items() if name not in hidden}
    ports = (
        Edge(EdgeKind.PORT, (End(_guest_id(guest.name), nic), End(f"switch:{nic.switch}")))
        for guest, nic in lab.nics()
        if nic.switch in switches
    )
    return Graph(
        lab,
        {_guest_id(guest.name): guest for guest in lab.guests},
        {f"switch:{name}": switch for name, switch in switches.items()},
        (*ports, *_pairs(lab, hidden)),
    )


def document(lab: Lab) -> dict[str, Any]:
    """Nodes and edges for programs."""
    shown = graph(lab)
    guest_keys = {"name", "group", "image", "cpus", "memory_mib"}
    guests = (
        {"id": node, "kind": "guest", **guest.model_dump(mode="json", include=guest_keys)}
        for node, guest in shown.guests.items()
    )
    switches = (
        {"id": node, "kind": "switch", **switch.model_dump(mode="json")}
        for node, switch in shown.switches.items()
    )
    edges = [
        {"kind": str(edge.kind), **dict(zip(("source", "target"), _sides(edge), strict=True))}
        for edge in shown.edges
    ]
    return {
        "name": lab.name,
        "description": lab.description,
        "nodes": [*guests, *switches],
        "edges": edges,
    }


def as_json(lab: Lab) -> str:
    """Nodes and edges as JSON."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **document(lab)}, indent=2) + "\n"


def mermaid(lab: Lab) -> str:
    """A mermaid flowchart; groups are subgraphs."""
    shown = graph(lab)
    ids = {node: f"n{index}" for index, node in enumerate(shown.nodes)}
    lines = ["flowchart LR", f"    accTitle: {_mermaid(lab.name)}"]
    if lab.description:
        lines.append(f"    accDescr: {_mermaid(' '.join(lab.description.split()))}")
    for index, (group, nodes) in enumerate(_clusters(shown).items()):
        boxes = [f'{ids[node]}["{_mermaid_label(guest_lines(shown, node))}"]' for node in nodes]
        if group:
            boxes = [f'subgraph c{index}["{_mermaid(group)}"]', *(f"    {b}" for b in boxes), "end"]
        lines += [f"    {box}" for box in boxes]
    for node in shown.switches:
        lines.append(f'    {ids[node]}(["{_mermaid_label(switch_lines(shown, node))}"])')
    for edge in shown.edges:
        one, other = (ids[end.node] for end in edge.ends)
        line = "-.-" if edge.kind is EdgeKind.CABLE else "---"
        label = _mermaid_label([*_end_lines(shown, edge), *impairments(shown, edge)])
        lines.append(f'    {one} {line}|"{label}"| {other}')
    return "\n".join(lines) + "\n"


def dot(lab: Lab) -> str:
    """Graphviz' language; groups are clusters."""
    shown = graph(lab)
    lines = [
        f"graph {_dot(lab.name)} {{",
        f"    label={_dot(lab.name, lab.description)} labelloc=t",
        "    rankdir=LR ranksep=2 nodesep=0.4",
        "    node [shape=box style=rounded]",
        "    edge [labelfontsize=10 fontsize=10 fontcolor=firebrick labelfontcolor=black]",
    ]
    for index, (group, nodes) in enumerate(_clusters(shown).items()):
        boxes = [f"{_dot(node)} [label={_dot(*box_lines(shown, node))}]" for node in nodes]
        if group:
            name = f"subgraph cluster_{index} {{"
            boxes = [name, f"    label={_dot(group)}", *(f"    {box}" for box in boxes), "}"]
        lines += [f"    {box}" for box in boxes]
    for node in shown.switches:
        label = _dot(*switch_lines(shown, node))
        lines.append(f"    {_dot(node)} [label={label} shape=ellipse style=solid]")
    lines += (f"    {_dot_edge(shown, edge)}" for edge in shown.edges)
    return "\n".join(lines) + "\n}\n"


def guest_lines(shown: Graph, node: str) -> tuple[str, str]:
    """A guest's name, and what it is."""
    guest = shown.guests[node]
    image = guest.image.rstrip("/").rpartition("/")[2]
    cpus = f"{guest.cpus} CPU{'s' if guest.cpus > 1 else ''}"
    return guest.name, f"{shorten(image)} · {cpus} · {write_size(guest.memory_mib << 20)}"


def box_lines(shown: Graph, node: str) -> list[str]:
    """All of a guest's box."""
    return [*guest_lines(shown, node), *map(nic_line, shown.guests[node].nics)]


def switch_lines(shown: Graph, node: str) -> tuple[str, ...]:
    """A switch's name, and what is special about it."""
    switch = shown.switches[node]
    special = [
        "kernel" if switch.provider is Provider.KERNEL else "",
        "p2p" if switch.p2p else "",
        "shared" if switch.shared else "",
        "waits for room" if switch.overflow == "wait" else "",
    ]
    text = " · ".join(filter(None, special))
    return (switch.name, text) if text else (switch.name,)


def nic_line(nic: Nic) -> str:
    """A NIC's name and addresses, and what is special about it."""
    special = [
        str(nic.model) if nic.model is not NicModel.VIRTIO else "",
        str(nic.backend) if nic.backend is not Backend.AUTO else "",
        f"{nic.queues} queues" if nic.queues > 1 else "",
        f"MTU {nic.mtu}" if nic.mtu != 1500 else "",
    ]
    return " ".join([nic.name, *nic.addresses, *filter(None, special)])


def impairments(shown: Graph, edge: Edge) -> list[str]:
    """What befalls frames on an edge: a line, or one for each direction if they differ."""
    one, other = edge.ends
    there = _befalls(_impair(one).into, _impair(other).out)
    back = _befalls(_impair(other).into, _impair(one).out)
    if there == back:
        return [there] if there else []
    names = [shown.name(end.node) for end in edge.ends]
    lines = ((there, f"{names[0]} → {names[1]}"), (back, f"{names[1]} → {names[0]}"))
    return [f"{way}: {text}" for text, way in lines if text]


def tags(shown: Graph, edge: Edge) -> tuple[str, str]:
    """What an edge's ends are called: a NIC's name, where its guest has several."""
    one, other = (
        end.nic.name if end.nic and len(shown.guests[end.node].nics) > 1 else ""
        for end in edge.ends
    )
    return one, other


def shorten(text: str, most: int = 32) -> str:
    """At most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _guest_id(name: str) -> str:
    return f"guest:{name}"


def _link_switches(lab: Lab) -> Iterator[str]:
    """Switches that hold one link and nothing else."""
    on_it: dict[str, set[str]] = defaultdict(set)
    for guest, nic in lab.nics():
        on_it[nic.switch].add(f"{guest.name}:{nic.name}")
    return (link.switch for link in lab.links if on_it[link.switch] == set(link.ends))


def _pairs(lab: Lab, hidden: set[str]) -> Iterator[Edge]:
    """Links and cables: every two NICs that share one."""
    pairs: dict[str, list[End]] = defaultdict(list)
    for guest, nic in lab.nics():
        if nic.cable or nic.switch in hidden:
            pairs[nic.segment].append(End(_guest_id(guest.name), nic))
    for one, other in pairs.values():
        is_cable = one.nic is not None and one.nic.cable is not None
        yield Edge(EdgeKind.CABLE if is_cable else EdgeKind.LINK, (one, other))


def _end_lines(shown: Graph, edge: Edge) -> Iterator[str]:
    """An edge's NICs; both with their guests' names if there are two."""
    both = all(end.nic for end in edge.ends)
    for end in edge.ends:
        if end.nic:
            yield f"{shown.name(end.node)}:{nic_line(end.nic)}" if both else nic_line(end.nic)


def _sides(edge: Edge) -> Iterator[dict[str, Any]]:
    for end in edge.ends:
        yield {"node": end.node, "nic": end.nic.model_dump(mode="json") if end.nic else None}


def _clusters(shown: Graph) -> dict[str, list[str]]:
    """Guests by group; those without one are the first."""
    alone = [node for node, guest in shown.guests.items() if not guest.group]
    return {"": alone} | shown.groups()


def _impair(end: End) -> Impair:
    return end.nic.impair if end.nic else Impair()


def _befalls(*parts: Impairment | None) -> str:
    return ", ".join(text for part in parts if part for text in _impairment(part))


def _impairment(one: Impairment) -> Iterator[str]:
    jitter = f" ± {write_duration(one.jitter)}" if one.jitter else ""
    if one.delay or jitter:
        yield f"{write_duration(one.delay)}{jitter}"
    for key in ("loss", "duplicate", "corrupt", "reorder"):
        if value := getattr(one, key):
            yield f"{key} {value:g}%"
    if one.rate:
        yield f"{write_rate(one.rate)}bit/s"
    if one.limit:
        yield f"queue {write_size(one.limit)}"


def _mermaid_label(lines: Iterable[str]) -> str:
    return "<br/>".join(map(_mermaid, lines))


def _mermaid(text: str) -> str:
    """Everything that could mean something to mermaid or HTML as a numeric entity."""
    return "".join(
        char if char.isalnum() or char in " .,:/_-·→±" else f"#{ord(char)};"
        for char in harmless(text)
    )


def _dot(*lines: str) -> str:
    text = "\n".join(harmless(line) for line in lines if line)
    for char, quoted in (("\\", "\\\\"), ('"', '\\"'), ("&", "&amp;"), ("\n", "\\n")):
        text = text.replace(char, quoted)
    return f'"{text}"'


def _dot_edge(shown: Graph, edge: Edge) -> str:
    one, other = edge.ends
    sides = zip(("taillabel", "headlabel"), tags(shown, edge), strict=True)
    attributes = [f"{key}={_dot(tag)}" for key, tag in sides if tag]
    if notes := impairments(shown, edge):
        attributes.append(f"label={_dot(*notes)}")
    if edge.kind is EdgeKind.CABLE:
        attributes.append("style=dashed")
    return f"{_dot(one.node)} -- {_dot(other.node)} [{' '.join(attributes)}]"
