# SPDX-License-Identifier: BSD-2-Clause
"""A lab as an SVG picture: no script, no outside font, its own background.

    graph ──sizes──▶ shapes, wires ──layout.py──▶ boxes, routes ──▶ labels ──▶ SVG

A guest's box lists its NICs. What is on a line: at a guest's end the NIC's name, where the guest
has several; in the middle impairments. Labels slide along their line until they are free; if one
finds no place, lines are made longer. A NIC's name that finds none even then is left out.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from valemgr.drawing.graph import (
    Edge,
    EdgeKind,
    Graph,
    graph,
    guest_lines,
    impairments,
    nic_line,
    switch_lines,
    tags,
)
from valemgr.drawing.layout import lay_out
from valemgr.drawing.plane import Box, Layout, Point, Shape, Wire
from valemgr.text import harmless
from valemgr.topology import Lab

MARGIN = 28.0
PAD = 12.0  # within a box
STEP = 16.0  # of boxes' widths, so that many are equal
NARROWEST = 380.0  # so that a small lab's description has some room
DESCRIPTION_LINES = 6
STRETCHES = (1.0, 1.25, 1.6, 2.1, 2.8)
SLIDES = (0.0, 8.0, 16.0, 26.0, 38.0, 52.0, 70.0, 90.0, 120.0, 160.0)  # px along a line

NAME, SMALL, ROW, NOTE, TITLE = 15, 11, 12, 11, 19  # font sizes
LEADING = 1.35

_NOT_XML = re.compile("[\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Paint:
    """Colours of a box: fill, border, text."""

    fill: str
    line: str
    text: str


PLAIN = Paint("#eef4fb", "#2b5c94", "#16324f")
SWITCH = Paint("#fdf3e3", "#a8641a", "#5a3309")
GROUPS = (
    Paint("#eaf6ec", "#2d7a3e", "#17401f"),
    Paint("#f4f0fa", "#5b3d94", "#2f1c55"),
    Paint("#e6f6f6", "#1d7680", "#0d3d43"),
    Paint("#fceef3", "#a63a68", "#571b35"),
    Paint("#f5f5e3", "#77741b", "#3d3b0c"),
    Paint("#f0f1f3", "#5a6472", "#2b3139"),
)
LINE, WARNING, PAPER, INK = "#555555", "#a32a1f", "#ffffff", "#222222"


@dataclass(frozen=True, slots=True)
class Label:
    """Lines of text around a point."""

    box: Box
    lines: tuple[str, ...]
    colour: str


def svg(lab: Lab) -> str:
    """The picture of a lab."""
    shown = graph(lab)
    layout, labels = _drawing(shown)
    left, top, right, bottom = _extent(layout, labels)
    width = max(right - left, NARROWEST, _width(lab.name, TITLE))
    heading = _heading(lab, width)
    legend = _legend(shown, width)
    shift = MARGIN - left + (width - (right - left)) / 2, MARGIN + heading.height - top
    total = width + 2 * MARGIN, MARGIN * 2 + heading.height + bottom - top + legend.height
    parts = [
        *_head(lab, shown, total),
        *heading.parts,
        f'<g transform="translate({_n(shift[0])} {_n(shift[1])})">',
        *_lines(shown, layout),
        *(part for index, node in enumerate(shown.nodes)
          for part in _node(shown, node, layout.boxes[index])),
        *(part for label in labels for part in _label(label)),
        "</g>",
        f'<g transform="translate({_n(MARGIN)} {_n(total[1] - MARGIN - legend.height)})">',
        *legend.parts,
        "</g>",
        "</svg>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def drawing_boxes(lab: Lab) -> tuple[list[Box], list[Box]]:
    """The boxes of a graph's nodes, and those of labels."""
    layout, labels = _drawing(graph(lab))
    return [layout.boxes[node] for node in sorted(layout.boxes)], [label.box for label in labels]


# Sizes.


def _drawing(shown: Graph) -> tuple[Layout, list[Label]]:
    """The layout with the shortest lines on which all labels have a place, or the longest."""
    shapes = [_shape(shown, node) for node in shown.nodes]
    layout, labels, homeless = Layout({}, {}), list[Label](), list[Label]()
    for stretch in STRETCHES if shapes else ():
        layout = lay_out(shapes, [_wire(shown, edge, stretch) for edge in shown.edges])
        labels, homeless = _place_labels(shown, layout)
        if not homeless:
            break
    return layout, labels + [label for label in homeless if label.colour == WARNING]


def _shape(shown: Graph, node: str) -> Shape:
    if node in shown.switches:
        name, *special = switch_lines(shown, node)
        width = max(_width(name, NAME), *(_width(text, SMALL) for text in ["", *special]))
        height = (NAME + SMALL * len(special)) * LEADING + PAD
        return Shape(width + 2 * PAD + 12, height, bar=True, kind="switch")
    guest = shown.guests[node]
    name, facts = guest_lines(shown, node)
    rows = [_width(nic_line(nic), ROW) for nic in guest.nics]
    width = max(_width(name, NAME), _width(facts, SMALL), *rows, 84.0)
    height = (NAME + SMALL + ROW * len(rows)) * LEADING + PAD + (PAD / 2 if rows else 0)
    width = math.ceil((width + 2 * PAD) / STEP) * STEP
    return Shape(width, height, kind=f"guest {guest.group}")


def _wire(shown: Graph, edge: Edge, stretch: float) -> Wire:
    """What is written on an edge: its tags and notes side by side, or below each other."""
    sizes = [_text_size(lines) for lines in _written(shown, edge) if lines]
    nodes = list(shown.nodes)
    a, b = (nodes.index(end.node) for end in edge.ends)
    level = sum(width + 10 for width, _ in sizes)
    upright = sum(height + 8 for _, height in sizes)
    return Wire(a, b, level * stretch + 60 * (stretch - 1), upright * stretch + 40 * (stretch - 1))


def _written(shown: Graph, edge: Edge) -> tuple[list[str], list[str], list[str]]:
    """What is written along an edge: at its start, in the middle, at its end."""
    start, end = ([tag] if tag else [] for tag in tags(shown, edge))
    return start, impairments(shown, edge), end


def _text_size(lines: Sequence[str]) -> tuple[float, float]:
    return max(_width(text, NOTE) for text in lines) + 6, len(lines) * NOTE * LEADING


def _width(text: str, size: int) -> float:
    """About as wide as DejaVu Sans sets it; other fonts are narrower."""
    return sum(map(_advance, text)) * size * (1.1 if size in (NAME, TITLE) else 1.0)


def _advance(char: str) -> float:
    if unicodedata.east_asian_width(char) in "WF":
        return 1.05
    if char in "ijl.,:;'|! ·":
        return 0.34
    if char in "frtI-/()[]":
        return 0.42
    if char in "mwMW@%&…±":
        return 0.96
    return 0.7 if char.isupper() or ord(char) > 0x2000 else 0.63


# Labels.


def _place_labels(shown: Graph, layout: Layout) -> tuple[list[Label], list[Label]]:
    """Labels on their lines, and those that would cover something wherever they are."""
    taken = list(layout.boxes.values())
    labels: list[Label] = []
    homeless: list[Label] = []
    written = [_written(shown, edge) for edge in shown.edges]
    for where, colour in ((0.5, WARNING), (0.0, INK), (1.0, INK)):
        for index, lines in enumerate(texts[round(where * 2)] for texts in written):
            if not lines:
                continue
            spots = list(_spots(layout.routes[index], where, _text_size(lines)))
            free = (s for s in spots if not any(s.overlaps(other, 1.0) for other in taken))
            if box := next(free, None):
                labels.append(Label(box, tuple(lines), colour))
                taken.append(box)
            else:
                homeless.append(Label(spots[0], tuple(lines), colour))
    return labels, homeless


def _spots(route: Sequence[Point], where: float, size: tuple[float, float]) -> Iterator[Box]:
    """Places for a label on a line: from an end inwards, or from the middle to both sides."""
    middle = len(route) // 2
    start, end = {0.0: route[:2], 0.5: route[middle - 1 : middle + 1], 1.0: route[:-3:-1]}[where]
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = max((dx * dx + dy * dy) ** 0.5, 1.0)
    ways = [slide * side for slide in SLIDES for side in ((1, -1) if where == 0.5 else (1,))]
    first = length / 2 if where == 0.5 else _clear(dx / length, dy / length, size) + 5
    for way in ways:
        at = first + way
        if 0 <= at <= length or way == 0:
            x, y = start[0] + dx * at / length, start[1] + dy * at / length
            yield Box(x, y, *size)


def _clear(dx: float, dy: float, size: tuple[float, float]) -> float:
    """How far along a direction a label's centre is clear of what is behind the start."""
    across = size[0] / 2 / abs(dx) if dx else float("inf")
    along = size[1] / 2 / abs(dy) if dy else float("inf")
    return min(across, along)


def _extent(layout: Layout, labels: list[Label]) -> tuple[float, float, float, float]:
    boxes = [*layout.boxes.values(), *(label.box for label in labels)]
    points = [point for route in layout.routes.values() for point in route]
    xs = [x for box in boxes for x in (box.left, box.right)] + [x for x, _ in points] or [0.0]
    ys = [y for box in boxes for y in (box.top, box.bottom)] + [y for _, y in points] or [0.0]
    return min(xs), min(ys), max(xs), max(ys)


# SVG.


@dataclass(frozen=True, slots=True)
class Block:
    """Parts of a picture that take a height."""

    height: float
    parts: tuple[str, ...]


def _head(lab: Lab, shown: Graph, size: tuple[float, float]) -> Iterator[str]:
    width, height = map(_n, size)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-labelledby="title desc" '
        'font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif">'
    )
    yield f'<title id="title">{_x(f"Lab {lab.name}")}</title>'
    yield f'<desc id="desc">{_x(" ".join([*_summary(shown), lab.description]).strip())}</desc>'
    yield f'<rect width="{width}" height="{height}" rx="10" fill="{PAPER}"/>'


def _summary(shown: Graph) -> Iterator[str]:
    yield f"Guests: {len(shown.guests)}. Switches: {len(shown.switches)}."
    for edge in shown.edges:
        nics = (f":{end.nic.name}" if end.nic else "" for end in edge.ends)
        names = (shown.name(end.node) for end in edge.ends)
        yield f"{' – '.join(map(str.__add__, names, nics))}."


def _heading(lab: Lab, width: float) -> Block:
    """The lab's name and description."""
    lines = _wrapped(harmless(lab.description), width)
    y = MARGIN + TITLE * 0.8
    parts = [_text(MARGIN, y, TITLE, INK, lab.name, anchor="start", bold=True)]
    for line in lines:
        y += ROW * 1.5
        parts.append(_text(MARGIN, y, ROW, LINE, line, anchor="start"))
    return Block(TITLE + len(lines) * ROW * 1.5 + 20, tuple(parts))


def _wrapped(text: str, width: float) -> list[str]:
    """Lines that fit; a few at most."""
    lines: list[str] = []
    for word in text.split():
        if lines and _width(f"{lines[-1]} {word}", ROW) <= width:
            lines[-1] += f" {word}"
        else:
            while len(word) > 1 and _width(word, ROW) > width:
                word = word[:-2] + "…"
            lines.append(word)
    return lines if len(lines) <= DESCRIPTION_LINES else [*lines[: DESCRIPTION_LINES - 1], "…"]


def _legend(shown: Graph, width: float) -> Block:
    """The colours of groups, if there are any."""
    parts: list[str] = []
    x, y = 0.0, 24.0
    for group, paint in _paints(shown).items():
        need = _width(group, ROW) + 44
        if x and x + need > width:
            x, y = 0.0, y + 22
        parts.append(_rect(Box(x + 8, y + 6, 16, 12), paint, 3))
        parts.append(_text(x + 23, y + 10, ROW, paint.text, group, anchor="start"))
        x += need
    return Block(y + 16 if parts else 0, tuple(parts))


def _paints(shown: Graph) -> dict[str, Paint]:
    return {group: GROUPS[i % len(GROUPS)] for i, group in enumerate(shown.groups())}


def _lines(shown: Graph, layout: Layout) -> Iterator[str]:
    for _, start, end in layout.trunks:
        yield _path((start, end), SWITCH.line, 5)
    for index, edge in enumerate(shown.edges):
        dashes = "6 4" if edge.kind is EdgeKind.CABLE else ""
        colour = WARNING if impairments(shown, edge) else LINE
        yield _path(layout.routes[index], colour, 1.8, dashes)


def _node(shown: Graph, node: str, box: Box) -> Iterator[str]:
    if node in shown.switches:
        name, *special = switch_lines(shown, node)
        yield _rect(box, SWITCH, min(box.height / 2, 18))
        y = box.y + NAME * 0.36 - len(special) * SMALL * LEADING / 2
        yield _text(box.x, y, NAME, SWITCH.text, name, bold=True)
        for text in special:
            yield _text(box.x, y + SMALL * LEADING + 2, SMALL, SWITCH.text, text)
        return
    guest = shown.guests[node]
    paint = _paints(shown).get(guest.group, PLAIN)
    name, facts = guest_lines(shown, node)
    yield _rect(box, paint, 7)
    y = box.top + PAD / 2 + NAME
    yield _text(box.x, y, NAME, paint.text, name, bold=True)
    yield _text(box.x, y + SMALL * LEADING, SMALL, paint.text, facts)
    y += SMALL * LEADING + PAD / 2
    if guest.nics:
        yield _path(((box.left, y), (box.right, y)), paint.line, 0.7)
    for index, nic in enumerate(guest.nics, start=1):
        row = y + ROW * LEADING * index - 1
        yield _text(box.left + PAD, row, ROW, paint.text, nic_line(nic), anchor="start")


def _label(label: Label) -> Iterator[str]:
    box = label.box
    yield (
        f'<rect x="{_n(box.left)}" y="{_n(box.top)}" width="{_n(box.width)}" '
        f'height="{_n(box.height)}" rx="3" fill="{PAPER}"/>'
    )
    for index, text in enumerate(label.lines):
        y = box.top + NOTE * (LEADING * index + 1.05)
        yield _text(box.x, y, NOTE, label.colour, text)


def _rect(box: Box, paint: Paint, radius: float) -> str:
    return (
        f'<rect x="{_n(box.left)}" y="{_n(box.top)}" width="{_n(box.width)}" '
        f'height="{_n(box.height)}" rx="{_n(radius)}" fill="{paint.fill}" stroke="{paint.line}" '
        'stroke-width="1.5"/>'
    )


def _path(points: Sequence[Point], colour: str, width: float, dashes: str = "") -> str:
    course = "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="M{course}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>'


def _text(
    x: float,
    y: float,
    size: int,
    colour: str,
    text: str,
    anchor: str = "middle",
    bold: bool = False,
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{_n(x)}" y="{_n(y)}" font-size="{size}" fill="{colour}" '
        f'text-anchor="{anchor}"{weight}>{_x(text)}</text>'
    )


def _x(text: str) -> str:
    """Quoted for XML, without what XML has no way to say."""
    return escape(_NOT_XML.sub("", " ".join(harmless(text).split())))


def _n(value: float) -> str:
    """A number as short as a picture needs it, the same on every machine."""
    return f"{round(value, 1) + 0.0:g}" if abs(value) < 1e5 else f"{value:.0f}"
