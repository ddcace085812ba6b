# SPDX-License-Identifier: BSD-2-Clause
"""Layout of a graph of no special form: far in the graph is far on the plane.

    distances   a first guess by classical scaling, then stress majorisation
    turn        so that as many edges as can be lie level or upright
    grid        the nearest free cells, then swaps as long as edges become shorter

The better of both, with and without the grid, is taken: no line across a box, few crossings.
"""

import math
from collections.abc import Sequence
from itertools import combinations, product

from valemgr.drawing.plane import GAP, Box, Layout, Part, Point, on_grid, straight

ROUNDS = 60
REACH = 8  # cells around a point in which a free one is looked for
Cell = tuple[int, int]


def mesh(part: Part) -> Layout:
    """Lay out a part."""
    points = _turned(part, _stress(part))
    drawings = [straight(part, on_grid(part, _cells(part, points)))]
    drawings.append(straight(part, _apart(part, points)))
    return min(drawings, key=lambda drawing: _flaws(part, drawing))


def _stress(part: Part) -> dict[int, Point]:
    """Points whose distances are near those in the graph."""
    distances = {node: part.distances(node) for node in part.nodes}
    points = _scaled(part.nodes, distances)
    for _ in range(ROUNDS):
        for one in part.nodes:
            x = y = total = 0.0
            for other, wanted in distances[one].items():
                if other == one:
                    continue
                dx, dy = (a - b for a, b in zip(points[one], points[other], strict=True))
                pull = wanted / (math.hypot(dx, dy) or 1.0)
                weight = 1 / wanted**2
                x += weight * (points[other][0] + dx * pull)
                y += weight * (points[other][1] + dy * pull)
                total += weight
            points[one] = (x / total, y / total)
    return points


def _scaled(nodes: Sequence[int], distances: dict[int, dict[int, int]]) -> dict[int, Point]:
    """The two main axes of the doubly centred squares of distances (by power iteration)."""
    count = len(nodes)
    squares = [[distances[a][b] ** 2 for b in nodes] for a in nodes]
    means = [sum(row) / count for row in squares]
    mean = sum(means) / count
    gram = [
        [(means[i] + means[j] - mean - squares[i][j]) / 2 for j in range(count)]
        for i in range(count)
    ]
    axes: list[list[float]] = []
    for turn in (math.cos, math.sin):
        axis = [turn(2 * math.pi * i / count) + 1e-3 * i for i in range(count)]
        for _ in range(ROUNDS):
            axis = [_inner(row, axis) for row in gram]
            for done in axes:
                share = _inner(axis, done) / (_inner(done, done) or 1.0)
                axis = [a - share * d for a, d in zip(axis, done, strict=True)]
            length = math.sqrt(_inner(axis, axis)) or 1.0
            axis = [a / length for a in axis]
        axes.append(axis)
    spread = math.sqrt(count)
    return {
        node: (axes[0][i] * spread + 1e-4 * i, axes[1][i] * spread - 1e-4 * i * i / count)
        for i, node in enumerate(nodes)
    }


def _inner(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _turned(part: Part, points: dict[int, Point]) -> dict[int, Point]:
    """Turned by the mean of what edges miss to a right angle, wide rather than high."""
    real = imaginary = 0.0
    for wire in part.wires.values():
        (ax, ay), (bx, by) = points[wire.a], points[wire.b]
        angle = 4 * math.atan2(by - ay, bx - ax)
        real, imaginary = real + math.cos(angle), imaginary + math.sin(angle)
    turn = -math.atan2(imaginary, real) / 4
    turned = {node: _turn(point, turn) for node, point in points.items()}
    xs, ys = ([point[axis] for point in turned.values()] for axis in (0, 1))
    if max(ys) - min(ys) > max(xs) - min(xs):
        turned = {node: _turn(point, math.pi / 2) for node, point in turned.items()}
    first, last = turned[part.nodes[0]], turned[part.nodes[-1]]
    flip_x, flip_y = (-1 if first[axis] > last[axis] + 0.1 else 1 for axis in (0, 1))
    return {node: (flip_x * x, flip_y * y) for node, (x, y) in turned.items()}


def _turn(point: Point, angle: float) -> Point:
    cos, sin = math.cos(angle), math.sin(angle)
    return point[0] * cos - point[1] * sin, point[0] * sin + point[1] * cos


def _cells(part: Part, points: dict[int, Point]) -> dict[int, Cell]:
    """Each node in the nearest free cell, then swapped with neighbours while that helps."""
    left, top = (min(point[axis] for point in points.values()) for axis in (0, 1))
    around = list(product(range(-REACH, REACH + 1), repeat=2))
    taken: dict[Cell, int] = {}
    for node, (x, y) in points.items():
        x, y = x - left, y - top
        near = ((round(x) + dx, round(y) + dy) for dx, dy in around)
        free = ((math.dist(cell, (x, y)), cell) for cell in near if cell not in taken)
        taken[min(free)[1]] = node
    cells = {node: cell for cell, node in taken.items()}
    for _ in range(ROUNDS):
        better = [_improve(part, cells, taken, node) for node in part.nodes]
        if not any(better):
            break
    return cells


def _improve(part: Part, cells: dict[int, Cell], taken: dict[Cell, int], node: int) -> bool:
    """Move a node to the best of the cells around it; whoever is there takes its place."""
    home = cells[node]
    best, gain = home, 1e-9
    for dx, dy in product((-1, 0, 1), repeat=2):
        cell = (home[0] + dx, home[1] + dy)
        moved = {node: cell} | ({taken[cell]: home} if cell in taken else {})
        if cell != home and (better := _gain(part, cells, moved)) > gain:
            best, gain = cell, better
    if best == home:
        return False
    other = taken.pop(best, None)
    cells[node], taken[best] = best, node
    del taken[home]
    if other is not None:
        cells[other], taken[home] = home, other
    return True


def _gain(part: Part, cells: dict[int, Cell], moved: dict[int, Cell]) -> float:
    """By how much edges become shorter; slanted ones count as the way around the corner."""
    gain = 0.0
    for node in moved:
        for other in part.near[node]:
            share = 0.5 if other in moved else 1.0
            before, after = (
                sum(abs(a - b) for a, b in zip(where(node), where(other), strict=True)) ** 2
                for where in (cells.__getitem__, lambda n: moved.get(n, cells[n]))
            )
            gain += share * (before - after)
    return gain


def _apart(part: Part, points: dict[int, Point]) -> dict[int, Box]:
    """Blown up until no two boxes come near, and edges have room for what is on them."""
    wide = max(part.shapes[node].width for node in part.nodes) + part.level
    high = max(part.shapes[node].height for node in part.nodes) + part.upright
    scale = 0.1
    for one, other in combinations(part.nodes, 2):
        a, b = part.shapes[one], part.shapes[other]
        level, upright = (part.level, part.upright) if other in part.near[one] else (GAP, GAP)
        dx, dy = (abs(p - q) for p, q in zip(points[one], points[other], strict=True))
        across = ((a.width + b.width) / 2 + level) / max(dx * wide, 1e-9)
        along = ((a.height + b.height) / 2 + upright) / max(dy * high, 1e-9)
        scale = max(scale, min(across, along))
    return {n: part.box(n, x * wide * scale, y * high * scale) for n, (x, y) in points.items()}


def _flaws(part: Part, drawing: Layout) -> tuple[int, int]:
    """Lines across boxes, and crossings."""
    lines = [(part.wires[i], route[0], route[-1]) for i, route in drawing.routes.items()]
    hits = sum(
        box.is_hit(start, end)
        for wire, start, end in lines
        for node, box in drawing.boxes.items()
        if node not in (wire.a, wire.b)
    )
    crossings = sum(
        not {one[0].a, one[0].b} & {other[0].a, other[0].b} and _cross(*one[1:], *other[1:])
        for one, other in combinations(lines, 2)
    )
    return hits, crossings


def _cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    return _side(a, b, c) != _side(a, b, d) and _side(c, d, a) != _side(c, d, b)


def _side(a: Point, b: Point, c: Point) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) > (b[1] - a[1]) * (c[0] - a[0])
