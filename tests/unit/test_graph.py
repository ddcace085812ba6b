# SPDX-License-Identifier: BSD-2-Clause
"""A lab as mermaid, dot, JSON, SVG: golden files, quoting, pictures in which nothing overlaps."""

import json
import time
from itertools import combinations
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from valemgr.cli import app
from valemgr.drawing.graph import as_json, document, dot, graph, mermaid
from valemgr.drawing.layout import lay_out
from valemgr.drawing.mesh import mesh
from valemgr.drawing.picture import drawing_boxes, svg
from valemgr.drawing.plane import Box, Part, Shape, Wire
from valemgr.state import GuestState, LabDir, LabState
from valemgr.topology import (
    Guest,
    Impair,
    Impairment,
    Lab,
    Link,
    Nic,
    Switch,
    link_switch,
    pair_lab,
)

pytestmark = pytest.mark.unit

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = 'q"u\\N <b>&amp; `md` %%{init: {}}%% #35; \x1b[31mred\x07\nend \ufffe'
WAN = Impairment(delay=20_000, jitter=2000, loss=0.5, rate=100_000_000)


def on(switch: str, guest: str, host: int, name: str = "vale0") -> Nic:
    subnet = switch.removeprefix("vale")
    return Nic(name=name, port=f"{switch}:{guest}", addresses=(f"10.{subnet}.0.{host}/24",))


def star(leaves: int) -> Lab:
    guests = (Guest(name=f"h{i}", nics=(on("vale1", f"h{i}", i),)) for i in range(1, leaves + 1))
    return Lab(name=f"star{leaves}", guests=tuple(guests))


def linked(
    name: str,
    pairs: list[tuple[str, str]],
    impair: Impairment | None = None,
    grouped: bool = False,
    nics: dict[str, list[Nic]] | None = None,
) -> Lab:
    """Guests on links; a group is a name without its digits."""
    found = {guest: list(more) for guest, more in (nics or {}).items()}
    links = []
    for index, pair in enumerate(pairs):
        names = [f"eth{len(found.setdefault(guest, [])) + 1}" for guest in pair]
        names[1] += "b" if pair[0] == pair[1] else ""
        ends = (f"{pair[0]}:{names[0]}", f"{pair[1]}:{names[1]}")
        switch = link_switch(name, ends)
        links.append(Link(ends=ends, switch=switch))
        for side, guest in enumerate(pair):
            address = (f"10.{index}.255.{side + 1}/30",)
            port = f"{switch}:{side}"
            nic = Nic(name=names[side], port=port, addresses=address, impair=Impair(into=impair))
            found[guest].append(nic)
    guests = (
        Guest(name=guest, group=guest.rstrip("0123456789") if grouped else "", nics=tuple(more))
        for guest, more in found.items()
    )
    return Lab(name=name, guests=tuple(guests), links=tuple(links))


def spine_leaf() -> Lab:
    pairs = [(f"spine{s}", f"leaf{i}") for i in range(1, 5) for s in (1, 2)]
    pairs += [(f"leaf{i}", f"host{i}{h}") for i in range(1, 5) for h in (1, 2)]
    return linked("spine-leaf", pairs, grouped=True)


def grid(width: int, height: int) -> Lab:
    cells = [(x, y) for y in range(height) for x in range(width)]
    pairs = [
        (f"r{y}{x}", f"r{y + dy}{x + dx}")
        for x, y in cells
        for dx, dy in ((1, 0), (0, 1))
        if (x + dx, y + dy) in cells
    ]
    return linked(f"grid{width}x{height}", pairs)


def chain(length: int) -> Lab:
    return linked(f"chain{length}", [(f"r{i}", f"r{i + 1}") for i in range(1, length)])


def full_mesh(size: int) -> Lab:
    return linked(f"mesh{size}", [(f"r{a}", f"r{b}") for a, b in combinations(range(size), 2)])


def two_stars(leaves: int, routers: int) -> Lab:
    hosts = [
        Guest(name=f"h{net}x{i}", nics=(on(f"vale{net}", f"h{i}", i),))
        for net in (1, 2)
        for i in range(1, leaves + 1)
    ]
    middle = [
        Guest(
            name=f"r{r}",
            nics=tuple(on(f"vale{net}", f"r{r}", 200 + r, f"lan{net}") for net in (1, 2)),
        )
        for r in range(1, routers + 1)
    ]
    return Lab(name=f"stars-{leaves}-{routers}", guests=(*hosts, *middle))


def wan() -> Lab:
    nics = {
        "a": [Nic(name="vale0", port="vale1:a", model="e1000", backend="netmap", mtu=9000)],
        "b": [Nic(name="vale0", port="vale1:b", queues=4, addresses=("2001:db8::2/64",),
                  impair=Impair(out=Impairment(loss=1, corrupt=0.1, limit=65536)))],
        "west": [on("vale1", "west", 1)],
    }  # fmt: skip
    lab = linked("wan", [("west", "east")], WAN, nics=nics)
    return lab.model_copy(update={"description": "Two offices, and a line that loses frames."})


LABS = {
    "pair": pair_lab("vale1"),
    "pair-baseline": pair_lab("vale1", baseline=True),
    "star": star(8),
    "wan": wan(),
    "spine-leaf": spine_leaf(),
}
LARGE = [star(n) for n in (1, 3, 16, 17, 64)]
LARGE += [grid(3, 3), grid(4, 4), grid(8, 8), chain(3), chain(64), full_mesh(4), full_mesh(7)]
LARGE += [two_stars(3, 1), two_stars(9, 2), two_stars(30, 3), two_stars(0, 6)]
LARGE += [
    linked("parallel", [("a", "b")] * 3),
    linked("self", [("a", "a"), ("a", "b")]),
    linked("loop", [("a", "b"), ("b", "c"), ("c", "a")]),
]
EVERY = [*LABS.values(), *LARGE, full_mesh(12)]


@pytest.mark.parametrize("name", LABS)
@pytest.mark.parametrize(
    ("suffix", "write"), [("svg", svg), ("mmd", mermaid), ("dot", dot), ("json", as_json)]
)
def test_golden(golden, name: str, suffix: str, write) -> None:
    golden(f"graph-{name}.{suffix}", write(LABS[name]))


@pytest.mark.parametrize("lab", EVERY, ids=lambda lab: lab.name)
def test_no_box_and_no_label_covers_another(lab: Lab) -> None:
    boxes, labels = drawing_boxes(lab)
    assert len(boxes) == len(graph(lab).nodes)
    for one, other in combinations(boxes + labels, 2):
        assert not one.overlaps(other)


@pytest.mark.parametrize("lab", EVERY, ids=lambda lab: lab.name)
def test_everything_is_within_the_picture(lab: Lab) -> None:
    root = ElementTree.fromstring(svg(lab))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    for group in root.iter(f"{SVG}g"):
        moved = [float(part) for part in group.get("transform", "(0 0)").split("(")[1][:-1].split()]
        for rect in group.iter(f"{SVG}rect"):
            x, y, w, h = (float(rect.get(key, 0)) for key in ("x", "y", "width", "height"))
            assert 0 <= moved[0] + x <= width - w
            assert 0 <= moved[1] + y <= height - h


@pytest.mark.parametrize("lab", LARGE, ids=lambda lab: lab.name)
def test_no_line_crosses_a_box_of_tidy_labs(lab: Lab) -> None:
    """In a large mesh some do; the names and addresses in the boxes stay readable."""
    shown = graph(lab)
    nodes = list(shown.nodes)
    wires = [Wire(*(nodes.index(end.node) for end in edge.ends)) for edge in shown.edges]
    done = lay_out([Shape(120, 60, bar=node in shown.switches) for node in nodes], wires)
    for index, route in done.routes.items():
        others = set(done.boxes) - {wires[index].a, wires[index].b}
        assert not any(done.boxes[node].is_hit(route[0], route[-1]) for node in others)


def test_a_grid_is_drawn_as_a_grid() -> None:
    boxes, _ = drawing_boxes(grid(4, 4))
    assert len({round(box.x) for box in boxes}) == 4
    assert len({round(box.y) for box in boxes}) == 4


def test_spines_are_above_leaves_above_hosts() -> None:
    boxes = dict(zip(graph(spine_leaf()).nodes, drawing_boxes(spine_leaf())[0], strict=True))
    rows = {
        group: {round(boxes[node].y) for node in nodes}
        for group, nodes in graph(spine_leaf()).groups().items()
    }
    assert [len(rows[group]) for group in ("spine", "leaf", "host")] == [1, 1, 1]
    assert min(rows["spine"]) < min(rows["leaf"]) < min(rows["host"])


def test_points_that_coincide_are_drawn_apart() -> None:
    """Twins have the same distances to all others."""
    wires = {i: Wire(a, b) for i, (a, b) in enumerate(combinations(range(9), 2))}
    near = {node: [other for other in range(9) if other != node] for node in range(9)}
    done = mesh(Part([Shape(50, 20)] * 9, tuple(range(9)), wires, near))
    assert not any(a.overlaps(b) for a, b in combinations(done.boxes.values(), 2))


def test_a_line_hits_a_box_or_not() -> None:
    box = Box(0, 0, 20, 10)
    assert box.is_hit((-50, 0), (50, 0))
    assert box.is_hit((-50, -20), (50, 20))
    assert not box.is_hit((-50, 6), (50, 6))
    assert not box.is_hit((-50, 0), (-20, 0))
    assert not box.is_hit((0, 20), (20, 0))


def hostile() -> Lab:
    guests = (
        Guest(name="a", group=HOSTILE, image=f"/images/{HOSTILE}", nics=(on("vale1", "a", 1),)),
        Guest(name="b", nics=(on("vale1", "b", 2),)),
    )
    return Lab(name="hostile", description=HOSTILE, guests=guests)


def test_svg_is_quoted() -> None:
    root = ElementTree.fromstring(svg(hostile()))
    assert root.get("role") == "img"
    described = root.find(f"{SVG}desc")
    assert described is not None
    assert described.text is not None
    assert 'q"u\\N <b>&amp; `md`' in described.text
    assert not {"\x1b", "\x07", "\ufffe"} & set(svg(hostile()))
    known = {"svg", "title", "desc", "rect", "g", "path", "text"}
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == known


def test_mermaid_is_quoted() -> None:
    text = mermaid(hostile())
    assert 'subgraph c1["q#34;u#92;N #60;b#62;#38;amp#59; #96;md#96; #37;#37;#123;init: ' in text
    assert "`" not in text
    assert "%" not in text
    for line in text.splitlines():
        assert line.count('"') in (0, 2)


def test_dot_is_quoted() -> None:
    text = dot(hostile())
    assert r'label="q\"u\\N <b>&amp;amp; `md` %%{init: {}}%% #35; red\nend' in text


def test_a_link_is_a_line_and_a_switch_with_more_on_it_is_a_switch() -> None:
    lab = wan()
    assert [str(edge.kind) for edge in graph(lab).edges] == ["port", "port", "port", "link"]
    assert list(graph(lab).switches) == ["switch:vale1"]
    switch = lab.links[0].switch
    third = Guest(name="tap", nics=(Nic(name="vale0", port=f"{switch}:2"),))
    more = lab.model_copy(update={"guests": (*lab.guests, third)})
    assert f"switch:{switch}" in graph(more).switches


def test_a_switch_without_ports_and_a_guest_without_nics_are_shown() -> None:
    lab = Lab(name="bare", guests=(Guest(name="a"),), switches=(Switch(name="vale7", p2p=True),))
    assert graph(lab).nodes == ("guest:a", "switch:vale7")
    assert ">vale7</text>" in svg(lab)
    assert ElementTree.fromstring(svg(Lab(name="empty"))) is not None


def test_json_refers_to_nodes() -> None:
    found = document(spine_leaf())
    ids = [node["id"] for node in found["nodes"]]
    assert len(set(ids)) == len(ids) == 14
    assert all(
        edge[side]["node"] in ids for edge in found["edges"] for side in ("source", "target")
    )
    assert json.loads(as_json(spine_leaf()))["schema_version"] == 1


def test_the_same_lab_is_the_same_text() -> None:
    for write in (svg, mermaid, dot, as_json):
        again = [write(Lab.model_validate(grid(3, 3).model_dump())) for _ in range(2)]
        assert again == [write(grid(3, 3))] * 2


def test_64_guests_are_drawn_soon() -> None:
    began = time.monotonic()
    svg(star(64))
    assert time.monotonic() - began < 2


def test_command(tmp_path, monkeypatch) -> None:
    (tmp_path / "p.lab.yml").write_text(
        "guests:\n  a: {nics: [{switch: vale1}]}\n  b: {nics: [{switch: vale1}]}\n"
    )
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    assert runner.invoke(app, ["graph"]).stdout.startswith("<svg ")
    assert runner.invoke(app, ["graph", "p.lab.yml", "--format", "json"]).stdout.startswith("{")
    for name, start in (("p.mmd", "flowchart"), ("p.dot", "graph"), ("p.svg", "<svg")):
        assert runner.invoke(app, ["graph", ".", "-o", name]).exit_code == 0
        assert (tmp_path / name).read_text().startswith(start)
    assert str(runner.invoke(app, ["graph", "-o", "no/p.svg"]).exception).startswith("no/p.svg:")


@pytest.mark.usefixtures("home")
def test_command_on_a_lab_that_runs() -> None:
    lab = pair_lab("vale1")
    guests = {
        guest.name: GuestState(
            pid=1, start_time=1, stage="set up", ssh_port=1, host_key="", argv=[], slots=0,
            nics=[], spec=guest.model_dump(mode="json"), ready_seconds={},
        )
        for guest in lab.guests
    }  # fmt: skip
    LabDir("vale1").create()
    LabDir("vale1").write(
        LabState(
            "vale1", "now", boot_id="", keep=True, accelerator="tcg", provider="user", rundir="",
            source="", topology=lab.model_dump(mode="json"), guests=guests,
        )
    )  # fmt: skip
    runner = CliRunner()
    assert runner.invoke(app, ["graph", "vale1"]).stdout == svg(lab)
    assert "no lab vale2" in str(runner.invoke(app, ["graph", "vale2"]).exception)
