# SPDX-License-Identifier: BSD-2-Clause
"""Coordinates of a graph whose nodes stand in rows already.

Each row is laid out by itself, and again when those above and below it have moved.

    left to right    a parent above the middle of its children, children below that of their parents
    bars             as wide as what is their own, so that lines drop upright from them
    top to bottom    rows so far apart that labels have room and no line is too flat
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from valemgr.drawing.comb import Comb, comb_boxes, stubs, trunks
from valemgr.drawing.plane import EDGE, GAP, Box, Layout, Part, Point, Routes

ROUNDS = 24
RIM = 16.0  # of a bar, beyond its outermost line
SLOPE = 0.35  # of a line between rows, at least; but
FAR = 130.0  # rows are not farther apart for that
ROW = 1e5  # between rows as long as it is not known


@dataclass(frozen=True, slots=True)
class Unit:
    """What has one place in a row: a node, or a comb."""

    nodes: tuple[int, ...]
    width: float
    height: float
    comb: Comb | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """A part in rows."""

    part: Part
    rows: list[list[Unit]]

    @property
    def rank(self) -> dict[int, int]:
        """Every node's row."""
        return {n: i for i, row in enumerate(self.rows) for unit in row for n in unit.nodes}

    @property
    def combs(self) -> list[Comb]:
        return [unit.comb for row in self.rows for unit in row if unit.comb]

    def hub(self, comb: Comb) -> int:
        """The bar that a comb hangs on."""
        return self.part.near[comb.nodes[0]][0]


def place_rows(table: Rows) -> Layout:
    """Boxes, routes and trunks."""
    xs = _columns(table)
    spans = _spans(table, xs)
    ys = _middles(table, _drops(table, spans))
    boxes = {node: replace(box, y=ys[table.rank[node]]) for node, box in spans.items()}
    routes = _drops(table, boxes)
    lines: list[tuple[int, Point, Point]] = []
    for comb in table.combs:
        x, hub = xs[comb.nodes[0]], table.hub(comb)
        boxes |= comb_boxes(table.part, comb, x, _beside(table, comb, ys))
        routes |= stubs(table.part, comb, x, boxes)
        lines += [(hub, *line) for line in trunks(comb, x, boxes, boxes[hub])]
    return Layout(boxes, routes, tuple(lines))


def _beside(table: Rows, comb: Comb, ys: list[float]) -> float:
    """A comb's middle: in a row that is higher than it, it stays near its bar."""
    here, bar = table.rank[comb.nodes[0]], table.rank[table.hub(comb)]
    free = max(unit.height for unit in table.rows[here]) - comb.size[1]
    return ys[here] + free / 2 * (1 if here < bar else -1)


def _columns(table: Rows) -> dict[int, float]:
    """Where nodes are from left to right."""
    rank = table.rank
    xs = dict.fromkeys(rank, 0.0)
    for turn in range(ROUNDS):
        for row in table.rows[:: 1 if turn % 2 else -1]:
            wanted = [_wanted(table.part, unit, xs, rank) for unit in row]
            for unit, x in zip(row, _spread(table.part, row, wanted), strict=True):
                xs |= dict.fromkeys(unit.nodes, x)
    return xs


def _wanted(part: Part, unit: Unit, xs: dict[int, float], rank: dict[int, int]) -> float:
    """The middle of a unit's children; without children, of its parents; else where it is."""
    here = rank[unit.nodes[0]]
    near = {other for node in unit.nodes for other in part.near[node]}
    for some in ([n for n in near if rank[n] > here], [n for n in near if rank[n] < here]):
        if some:
            return (min(xs[n] for n in some) + max(xs[n] for n in some)) / 2
    return xs[unit.nodes[0]]


def _spread(part: Part, row: Sequence[Unit], wanted: Sequence[float]) -> list[float]:
    """The places nearest to those wanted (least squares) where units keep their distances."""
    offsets = [0.0]
    for one, other in pairwise(row):
        gap = part.level if other.nodes[0] in part.near[one.nodes[0]] else GAP
        offsets.append(offsets[-1] + (one.width + other.width) / 2 + gap)
    blocks: list[list[float]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        blocks.append([want - offset])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    bases = [_mean(block) for block in blocks for _ in block]
    return [base + offset for base, offset in zip(bases, offsets, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spans(table: Rows, xs: dict[int, float]) -> dict[int, Box]:
    """All nodes but those of combs, with bars as wide as need be."""
    spans = {}
    for index, row in enumerate(table.rows):
        nodes = [unit.nodes[0] for unit in row if not unit.comb]
        bars = {node for node in nodes if table.part.shapes[node].bar}
        for node in nodes:
            box = table.part.box(node, xs[node], index * ROW)
            if node in bars:
                lines = _own_lines(table, xs, node, bars) or [xs[node]]
                width = max(box.width, max(lines) - min(lines) + 2 * RIM)
                box = replace(box, x=(min(lines) + max(lines)) / 2, width=width)
            spans[node] = box
    return spans


def _own_lines(table: Rows, xs: dict[int, float], bar: int, bars: set[int]) -> list[float]:
    """Where lines go up or down from a bar to what is on no other bar of its row."""
    combs = [comb for comb in table.combs if table.hub(comb) == bar]
    near = set(table.part.near[bar]) - {node for comb in combs for node in comb.nodes}
    own = sorted(node for node in near if bars & set(table.part.near[node]) == {bar})
    return [xs[n] for n in own] + [xs[comb.nodes[0]] + x for comb in combs for x in comb.lines]


def _middles(table: Rows, drops: Routes) -> list[float]:
    """Where rows are from top to bottom."""
    rank = table.rank
    gaps = [EDGE] * len(table.rows)
    for index, route in drops.items():
        wire = table.part.wires[index]
        flat = abs(route[0][0] - route[1][0])
        need = max(wire.upright + EDGE, min(flat * SLOPE, FAR))
        upper = min(rank[wire.a], rank[wire.b])
        if rank[wire.a] != rank[wire.b]:
            gaps[upper] = max(gaps[upper], need)
    heights = [max(unit.height for unit in row) for row in table.rows]
    middles = [0.0]
    for index, (one, other) in enumerate(pairwise(heights)):
        middles.append(middles[-1] + (one + other) / 2 + gaps[index])
    return middles


def _drops(table: Rows, boxes: dict[int, Box]) -> Routes:
    """Lines between rows: along a side of a box in the order of their other ends."""
    wires = {i: w for i, w in table.part.wires.items() if w.a in boxes and w.b in boxes}
    sides: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for i, wire in wires.items():
        for one, other in ((wire.a, wire.b), (wire.b, wire.a)):
            sides.setdefault((one, _side(boxes[one], boxes[other])), []).append((boxes[other].x, i))
    anchors: dict[tuple[int, int], Point] = {}
    for (node, side), lines in sides.items():
        for order, (_, i) in enumerate(sorted(lines), start=1):
            anchors[node, i] = _anchor(boxes[node], side, order / (len(lines) + 1))
    routes: Routes = {}
    for i, wire in wires.items():
        ends = [anchors[wire.a, i], anchors[wire.b, i]]
        for end, node in enumerate((wire.a, wire.b)):
            if table.part.shapes[node].bar:
                box = boxes[node]
                x = min(max(ends[1 - end][0], box.left + RIM), box.right - RIM)
                ends[end] = (x, ends[end][1])
        routes[i] = tuple(ends)
    return routes


def _side(box: Box, other: Box) -> int:
    """0 below, 1 above; 2 and 3 to the right and left in one row."""
    if abs(box.y - other.y) < 1:
        return 2 if other.x > box.x else 3
    return 0 if other.y > box.y else 1


def _anchor(box: Box, side: int, share: float) -> Point:
    if side < 2:
        return box.left + share * box.width, (box.bottom, box.top)[side]
    return (box.right, box.left)[side - 2], box.top + share * box.height
