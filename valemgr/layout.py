# SPDX-License-Identifier: BSD-2-Clause
"""Where the boxes of a graph go: deterministic, boxes never overlap, no dependency.

Each connected part is laid out by the first that suits it:

    path       a chain, in rows that turn at their ends
    layers     trees, stars, spine and leaf                 layout_layers.py
    mesh       the rest                                     layout_mesh.py
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from valemgr.layout_layers import layered
from valemgr.layout_mesh import mesh
from valemgr.layout_plane import GAP, Box, Layout, Part, Point, Shape, Wire, on_grid, straight

PATH_ROW = 5  # nodes of a chain in one row, at least
LOOP = 60.0  # of an edge from a box to itself
WIDE = 1.7  # width to height of a good picture


def lay_out(shapes: Sequence[Shape], wires: Sequence[Wire]) -> Layout:
    """Place everything; the top left corner is (0, 0)."""
    done = _shelves([_lay_out_part(part) for part in _parts(shapes, wires)])
    loops = {i: _loop(done.boxes[w.a]) for i, w in enumerate(wires) if w.a == w.b}
    return replace(done, routes=done.routes | loops)


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


def _loop(box: Box) -> tuple[Point, ...]:
    """From a box to itself."""
    x, y, h = box.right, box.y, box.height / 4
    return ((x, y - h), (x + LOOP, y - h), (x + LOOP, y + h), (x, y + h))
