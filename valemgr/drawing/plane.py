# SPDX-License-Identifier: BSD-2-Clause
"""Boxes and lines on a plane, and the part of a graph that is laid out: words of layout*.py.

Nodes are indices into `shapes`, wires are known by their index. Coordinates grow right and down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

Point = tuple[float, float]
Routes = dict[int, tuple[Point, ...]]  # by wire, from `a` to `b`

GAP = 26.0  # between boxes that no edge joins
EDGE = 44.0  # an edge's length besides what is written on it


@dataclass(frozen=True, slots=True)
class Shape:
    """What is to be placed. A bar may grow wider."""

    width: float
    height: float
    bar: bool = False
    kind: str = ""  # nodes of one kind like to be in one layer


@dataclass(frozen=True, slots=True)
class Wire:
    """An edge, and the room that what is written along it takes if it runs level or upright."""

    a: int
    b: int
    level: float = 0.0
    upright: float = 0.0


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle around its centre."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        return self.x + self.width / 2

    @property
    def top(self) -> float:
        return self.y - self.height / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height / 2

    def overlaps(self, other: "Box", gap: float = 0.0) -> bool:
        """Whether it comes nearer than a gap."""
        across = (self.width + other.width) / 2 + gap - abs(self.x - other.x)
        along = (self.height + other.height) / 2 + gap - abs(self.y - other.y)
        return across > 1e-6 and along > 1e-6

    def moved(self, dx: float, dy: float) -> "Box":
        """Elsewhere."""
        return replace(self, x=self.x + dx, y=self.y + dy)

    def leave(self, x: float, y: float, dx: float, dy: float) -> Point:
        """Where a line from a point in it, in a direction, crosses its border."""
        across = ((self.right if dx > 0 else self.left) - x) / dx if dx else float("inf")
        along = ((self.bottom if dy > 0 else self.top) - y) / dy if dy else float("inf")
        way = min(across, along) if dx or dy else 0.0
        return x + way * dx, y + way * dy

    def is_hit(self, start: Point, end: Point) -> bool:
        """Whether a line crosses it: of its course, some is in both the columns and the rows."""
        low, high = 0.0, 1.0
        columns, rows = (self.left, self.right), (self.top, self.bottom)
        for a, b, (least, most) in ((start[0], end[0], columns), (start[1], end[1], rows)):
            if abs(a - b) < 1e-9:
                if not least < a < most:
                    return False
                continue
            first, last = sorted(((least - a) / (b - a), (most - a) / (b - a)))
            low, high = max(low, first), min(high, last)
        return high - low > 1e-6


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes by node, routes, and the trunks of bars."""

    boxes: dict[int, Box]
    routes: Routes
    trunks: tuple[tuple[int, Point, Point], ...] = ()

    def moved(self, dx: float, dy: float) -> "Layout":
        """Elsewhere."""
        return Layout(
            {node: box.moved(dx, dy) for node, box in self.boxes.items()},
            {w: tuple((x + dx, y + dy) for x, y in route) for w, route in self.routes.items()},
            tuple((n, (a + dx, b + dy), (c + dx, d + dy)) for n, (a, b), (c, d) in self.trunks),
        )

    def joined(self, other: "Layout") -> "Layout":
        """With another beside it."""
        return Layout(
            self.boxes | other.boxes, self.routes | other.routes, self.trunks + other.trunks
        )

    @property
    def size(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        points = [point for route in self.routes.values() for point in route]
        points += [(box.left, box.top) for box in self.boxes.values()]
        points += [(box.right, box.bottom) for box in self.boxes.values()]
        xs, ys = zip(*points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True, slots=True)
class Part:
    """A connected part of a graph."""

    shapes: Sequence[Shape]
    nodes: tuple[int, ...]
    wires: dict[int, Wire]  # none from a node to itself
    near: dict[int, list[int]]  # a node's neighbours, each once, in order

    def distances(self, *roots: int) -> dict[int, int]:
        """Every node's distance from the nearest root."""
        found = dict.fromkeys(roots, 0)
        queue = list(roots)
        for node in queue:
            for other in self.near[node]:
                if other not in found:
                    found[other] = found[node] + 1
                    queue.append(other)
        return found

    def box(self, node: int, x: float, y: float) -> Box:
        """A node's box around a point."""
        return Box(x, y, self.shapes[node].width, self.shapes[node].height)

    @property
    def level(self) -> float:
        """The room that edges take from left to right."""
        return max((wire.level for wire in self.wires.values()), default=0.0) + EDGE

    @property
    def upright(self) -> float:
        """The room that edges take from top to bottom."""
        return max((wire.upright for wire in self.wires.values()), default=0.0) + EDGE


def straight(part: Part, boxes: dict[int, Box]) -> Layout:
    """Routes from centre to centre; those of one pair run side by side."""
    pairs: dict[tuple[int, int], list[int]] = {}
    for index, wire in part.wires.items():
        pairs.setdefault((min(wire.a, wire.b), max(wire.a, wire.b)), []).append(index)
    routes: Routes = {}
    for (one, other), indices in pairs.items():
        a, b = boxes[one], boxes[other]
        dx, dy = b.x - a.x, b.y - a.y
        length = (dx * dx + dy * dy) ** 0.5
        narrowest = min(a.width, a.height, b.width, b.height)
        step = min(24.0, narrowest / len(indices)) / length
        for rank, index in enumerate(indices):
            shift = (rank - (len(indices) - 1) / 2) * step
            x, y = -dy * shift, dx * shift
            route = a.leave(a.x + x, a.y + y, dx, dy), b.leave(b.x + x, b.y + y, -dx, -dy)
            routes[index] = route if part.wires[index].a == one else route[::-1]
    return Layout(boxes, routes)


def on_grid(part: Part, cells: dict[int, tuple[int, int]]) -> dict[int, Box]:
    """Boxes in the cells of a grid whose columns, rows and gaps are as wide as need be."""
    columns = {node: cell[0] for node, cell in cells.items()}
    rows = {node: cell[1] for node, cell in cells.items()}
    level = [(wire, wire.level) for wire in part.wires.values()]
    upright = [(wire, wire.upright) for wire in part.wires.values()]
    xs = _tracks(columns, {node: part.shapes[node].width for node in cells}, level)
    ys = _tracks(rows, {node: part.shapes[node].height for node in cells}, upright)
    return {node: part.box(node, xs[x], ys[y]) for node, (x, y) in cells.items()}


def _tracks(
    tracks: dict[int, int], sizes: dict[int, float], written: list[tuple[Wire, float]]
) -> dict[int, float]:
    """The middle of every track that is in use."""
    gaps: dict[int, float] = {}
    for wire, room in written:
        low, high = sorted((tracks[wire.a], tracks[wire.b]))
        if high > low:
            gaps[low] = max(gaps.get(low, 0.0), room)
    middles: dict[int, float] = {}
    at = 0.0
    for track in sorted(set(tracks.values())):
        size = max(sizes[node] for node, other in tracks.items() if other == track)
        middles[track] = at + size / 2
        at += size + EDGE + gaps.get(track, 0.0)
    return middles
