# SPDX-License-Identifier: BSD-2-Clause
"""Where the boxes of a graph go: deterministic, boxes never overlap, no dependency.

Each connected part is laid out by the first that suits it:

    path       a chain, in rows that turn at their ends
    layers     trees, stars, spine and leaf                 layers.py
    mesh       the rest                                     mesh.py
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from valemgr.drawing.layers import layered
from valemgr.drawing.mesh import mesh
from valemgr.drawing.plane import GAP, Layout, Part, Shape, Wire, on_grid, straight

PATH_ROW = 5  # nodes of a chain in one row, at least
LOOP = 30.0  # from a box to the far side of an edge to itself, besides what is written on it
WIDE = 1.7  # width to height of a good picture


def lay_out(shapes: Sequence[Shape], wires: Sequence[Wire]) -> Layout:
    """Place everything; the top left corner is (0, 0)."""
    return _shelves([_with_loops(_lay_out_part(part), wires) for part in _parts(shapes, wires)])


def _parts(shapes: Sequence[Shape], wires: Sequence[Wire]) -> list[Part]:
    near: dict[int, set[int]] = {node: set() for node in range(len(shapes))}
    for wire in wires:
        if wire.a != wire.b:
            near[wire.a].add(wire.b)
            near[wire.b].add(wire.a)
    whole = Part(shapes, tuple(near), {}, {node: sorted(more) for node, more in near.items()})
    parts: list[Part] = []
    left = dict.fromkeys(near)
    while left:
        nodes = sorted(whole.distances(next(iter(left))))
        left = {node: None for node in left if node not in nodes}
        within = {i: w for i, w in enumerate(wires) if w.a in nodes and w.a != w.b}
        parts.append(Part(shapes, tuple(nodes), within, {node: whole.near[node] for node in nodes}))
    return parts


def _lay_out_part(part: Part) -> Layout:
    if chain := _path(part):
        return chain
    tidy = layered(part)
    if tidy and not any(a.overlaps(b) for a, b in combinations(tidy.boxes.values(), 2)):
        return tidy
    return mesh(part)


def _path(part: Part) -> Layout | None:
    """A chain; None if it is none."""
    ends = [node for node in part.nodes if len(part.near[node]) < 2]
    if not ends or any(len(more) > 2 for more in part.near.values()):
        return None
    rows = math.ceil(len(part.nodes) / max(PATH_ROW, math.sqrt(len(part.nodes))))
    length = math.ceil(len(part.nodes) / rows)
    cells = {}
    for node, place in part.distances(ends[0]).items():
        row, column = divmod(place, length)
        cells[node] = (length - 1 - column if row % 2 else column, row)
    return straight(part, on_grid(part, cells))


def _shelves(parts: list[Layout]) -> Layout:
    """Parts side by side, in rows of a width that makes the picture well-shaped."""
    sizes = [part.size for part in parts]
    area = sum((right - left + GAP) * (bottom - top + GAP) for left, top, right, bottom in sizes)
    most = max([math.sqrt(area * WIDE), *(right - left for left, _, right, _ in sizes)])
    x = y = height = 0.0
    whole = Layout({}, {})
    for part, (left, top, right, bottom) in zip(parts, sizes, strict=True):
        if x and x + right - left > most:
            x, y, height = 0.0, y + height + 2 * GAP, 0.0
        whole = whole.joined(part.moved(x - left, y - top))
        x, height = x + right - left + 2 * GAP, max(height, bottom - top)
    return whole


def _with_loops(done: Layout, wires: Sequence[Wire]) -> Layout:
    """With edges from a box to itself: at its right side, below each other."""
    routes = dict(done.routes)
    for node, box in done.boxes.items():
        loops = [i for i, wire in enumerate(wires) if wire.a == wire.b == node]
        for order, i in enumerate(loops):
            high, low = (
                box.top + box.height * (order + share) / len(loops) for share in (0.25, 0.75)
            )
            far = box.right + LOOP + wires[i].level
            routes[i] = ((box.right, high), (far, high), (far, low), (box.right, low))
    return replace(done, routes=routes)
