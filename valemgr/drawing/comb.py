# SPDX-License-Identifier: BSD-2-Clause
"""Many leaves of one bar, in pairs of columns; each pair hangs on a trunk, a part of the bar.

So they need few columns, no line is long, and none crosses another.

    ━━━━┳━━━━━━━━━━┳━━━━    bar
    a ──┃── b  c ──┃── d
    e ──┃── f  g ──┃── h    a stub from each leaf to its trunk
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from valemgr.drawing.plane import GAP, Box, Part, Point, Routes

STUB = 24.0
ROOM = 16.0  # of a stub, beside what is written on it


@dataclass(frozen=True, slots=True)
class Comb:
    """Leaves, and how they are arranged."""

    nodes: tuple[int, ...]
    trunks: int
    cell: tuple[float, float]
    stub: float

    @property
    def pair(self) -> float:
        """The width of two columns with their trunk."""
        return 2 * (self.cell[0] + self.stub)

    @property
    def size(self) -> tuple[float, float]:
        rows = math.ceil(len(self.nodes) / (2 * self.trunks))
        return self.trunks * (self.pair + GAP) - GAP, rows * (self.cell[1] + GAP) - GAP

    @property
    def lines(self) -> list[float]:
        """Where trunks are, from the middle."""
        return [(i - (self.trunks - 1) / 2) * (self.pair + GAP) for i in range(self.trunks)]

    def place(self, index: int) -> tuple[int, int, int]:
        """A leaf's row, trunk, and side of it."""
        row, column = divmod(index, 2 * self.trunks)
        return row, column // 2, column % 2 * 2 - 1


def comb(part: Part, nodes: Iterable[int], wanted: float) -> Comb:
    """The comb whose width to height is nearest to what is wanted."""
    leaves = tuple(nodes)
    cell = (
        max(part.shapes[node].width for node in leaves),
        max(part.shapes[node].height for node in leaves),
    )
    written = max(w.level for w in part.wires.values() if w.a in leaves or w.b in leaves)
    combs = (
        Comb(leaves, trunks, cell, max(written + ROOM, STUB))
        for trunks in range(1, math.ceil(len(leaves) / 2) + 1)
    )
    return min(combs, key=lambda one: abs(math.log(one.size[0] / one.size[1] / wanted)))


def comb_boxes(part: Part, one: Comb, x: float, y: float) -> dict[int, Box]:
    """The leaves' boxes, with the comb's middle at a point."""
    boxes = {}
    top = y - one.size[1] / 2 + one.cell[1] / 2
    for index, node in enumerate(one.nodes):
        row, trunk, side = one.place(index)
        away = one.stub + part.shapes[node].width / 2
        at = x + one.lines[trunk] + side * away, top + row * (one.cell[1] + GAP)
        boxes[node] = part.box(node, *at)
    return boxes


def trunks(one: Comb, x: float, boxes: dict[int, Box], bar: Box) -> list[tuple[Point, Point]]:
    """From the bar to the farthest leaf of each."""
    found = []
    for index, line in enumerate(one.lines):
        ys = [boxes[n].y for i, n in enumerate(one.nodes) if one.place(i)[1] == index]
        far = max(ys, key=lambda y: abs(y - bar.y))
        found.append(((x + line, bar.y), (x + line, far)))
    return found


def stubs(part: Part, one: Comb, x: float, boxes: dict[int, Box]) -> Routes:
    """From each leaf to its trunk, by wire; several of one leaf below each other."""
    routes: Routes = {}
    for index, node in enumerate(one.nodes):
        _, trunk, side = one.place(index)
        box, at = boxes[node], x + one.lines[trunk]
        wires = [i for i, wire in part.wires.items() if node in (wire.a, wire.b)]
        for rank, i in enumerate(wires):
            y = box.y + (rank - (len(wires) - 1) / 2) * box.height * 0.7 / len(wires)
            route = ((box.left if side > 0 else box.right, y), (at, y))
            routes[i] = route if part.wires[i].a == node else route[::-1]
    return routes
