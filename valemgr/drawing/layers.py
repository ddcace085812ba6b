# SPDX-License-Identifier: BSD-2-Clause
"""Layout in rows, for graphs whose nodes have ranks: trees, stars, spine and leaf.

A row for each rank, in an order with few crossings; coordinates: rows.py.

    rank    the distance from the roots, which are nodes with the same view of the graph. Ranks make
            sense if siblings have the same parents or none in common, and no edge joins equals
            (but for two roots, or the two children of a root)
    bar     a switch lies above its children like a bar, lines drop upright from it. The leaves of
            the only bar of a part are on both sides of it
    comb    leaves that are too many for a row hang on trunks, which are part of their bar
"""

import math
from itertools import combinations, pairwise

from valemgr.drawing.comb import comb
from valemgr.drawing.plane import Layout, Part
from valemgr.drawing.rows import Rows, Unit, place_rows

ROW_MAX = 6  # leaves of a bar in one row; half as many if the row is full
RANK_MAX = 10  # nodes of a row that is not full
ONE_SIDE = 4  # leaves of the only bar that stay on one side of it
ROUNDS = 24
COMB_SHAPE = 3.0  # width to height of all combs in a row

Distances = dict[int, dict[int, int]]


def layered(part: Part) -> Layout | None:
    """Lay out a part; None if it has no ranks."""
    ranks = _ranks(part)
    if ranks is None:
        return None
    rows = _ordered(part, [_units(part, rank) for rank in _both_sides(part, ranks)])
    return place_rows(Rows(part, rows))


# Ranks.


def _ranks(part: Part) -> list[list[int]] | None:
    """Nodes by rank, for the best of all roots that make sense."""
    distances = {node: part.distances(node) for node in part.nodes}
    reach = {node: max(far.values()) for node, far in distances.items()}
    best: tuple[tuple[int, ...], list[list[int]]] | None = None
    for roots in _possible_roots(part, distances):
        ranks = _by_rank(part, roots)
        if ranks is None:
            continue
        mixed = sum(len({part.shapes[node].kind for node in rank}) - 1 for rank in ranks)
        price = (reach[roots[0]], mixed, len(ranks), len(roots))
        if best is None or price < best[0]:
            best = (price, ranks)
    return best[1] if best else None


def _possible_roots(part: Part, distances: Distances) -> list[tuple[int, ...]]:
    """Nodes that see the same: neighbours, or how many nodes are how far; nodes of one kind."""
    alike: dict[object, list[int]] = {}
    for node in part.nodes:
        kind = part.shapes[node].kind
        view = tuple(sorted(distances[node].values()))
        for key in ((kind, *part.near[node]), (kind, view), view, kind):
            alike.setdefault(key, []).append(node)
    return list(dict.fromkeys(map(tuple, alike.values())))


def _by_rank(part: Part, roots: tuple[int, ...]) -> list[list[int]] | None:
    """Nodes by distance from the roots; None if that makes no ranks."""
    rank = part.distances(*roots)
    ranks: list[list[int]] = [[] for _ in range(max(rank.values()) + 1)]
    for node in part.nodes:
        ranks[rank[node]].append(node)
    for wire in part.wires.values():
        equals = ranks[rank[wire.a]]
        if wire.b in equals and (len(equals) > 2 or (len(ranks) > 2 and equals != ranks[0])):
            return None
    for siblings in ranks:
        parents = {frozenset(n for n in part.near[s] if rank[n] < rank[s]) for s in siblings}
        if any(one & other for one, other in combinations(parents, 2)):
            return None
    return ranks


def _both_sides(part: Part, ranks: list[list[int]]) -> list[list[int]]:
    """A star's leaves above and below its bar; two bars above and below what both are for."""
    roots, leaves = ranks[0], ranks[-1]
    if len(ranks) != 2 or not all(part.shapes[node].bar for node in roots):
        return ranks
    if len(roots) == 2:
        return [[roots[0]], leaves, [roots[1]]]
    if len(roots) > 2 or len(leaves) <= ONE_SIDE:
        return ranks
    half = math.ceil(len(leaves) / 2)
    return [leaves[:half], roots, leaves[half:]]


# Rows of units.


def _units(part: Part, nodes: list[int]) -> list[Unit]:
    """Nodes of a rank, with the many leaves of a bar as a comb."""
    most = ROW_MAX if len(nodes) <= RANK_MAX else ROW_MAX // 2
    leaves: dict[int, list[int]] = {}
    for node in nodes:
        if len(part.near[node]) == 1 and part.shapes[part.near[node][0]].bar:
            leaves.setdefault(part.near[node][0], []).append(node)
    combs = [
        comb(part, many, COMB_SHAPE / len(leaves)) for many in leaves.values() if len(many) > most
    ]
    combed = {node for one in combs for node in one.nodes}
    lone = [_lone(part, node) for node in nodes if node not in combed]
    return lone + [Unit(one.nodes, *one.size, one) for one in combs]


def _lone(part: Part, node: int) -> Unit:
    written = max((w.level for w in part.wires.values() if node in (w.a, w.b)), default=0.0)
    shape = part.shapes[node]
    return Unit((node,), max(shape.width, written), shape.height)


def _ordered(part: Part, rows: list[list[Unit]]) -> list[list[Unit]]:
    """Rows in the order, of some that neighbours suggest, with the fewest crossings."""
    best, fewest = rows, _crossings(part, rows)
    for turn in range(ROUNDS):
        if not fewest:
            break
        place = {n: i / len(row) for row in rows for i, unit in enumerate(row) for n in unit.nodes}
        step = 1 if turn % 2 else -1
        new = list(rows)
        for index in range(len(rows))[::step]:
            if not 0 <= index - step < len(rows):
                continue
            new[index] = _by_middle(part, new[index], new[index - step], place)
            place |= {n: i / len(new[index]) for i, u in enumerate(new[index]) for n in u.nodes}
        rows = new
        if (crossings := _crossings(part, rows)) < fewest:
            best, fewest = rows, crossings
    return best


def _by_middle(
    part: Part, row: list[Unit], other: list[Unit], place: dict[int, float]
) -> list[Unit]:
    beside = {node for unit in other for node in unit.nodes}
    return sorted(row, key=lambda unit: _middle(part, unit, place, beside))


def _middle(part: Part, unit: Unit, place: dict[int, float], beside: set[int]) -> float:
    """The mean place of a unit's neighbours in the row beside it; its own if it has none."""
    places = [place[n] for node in unit.nodes for n in part.near[node] if n in beside]
    return sum(places) / len(places) if places else place[unit.nodes[0]]


def _crossings(part: Part, rows: list[list[Unit]]) -> int:
    place = {n: i for row in rows for i, unit in enumerate(row) for n in unit.nodes}
    total = 0
    for upper, lower in pairwise(rows):
        above = {node for unit in upper for node in unit.nodes}
        ends = [(place[up], place[n]) for u in lower for n in u.nodes
                for up in part.near[n] if up in above]  # fmt: skip
        total += sum((a - c) * (b - d) < 0 for (a, b), (c, d) in combinations(ends, 2))
    return total
