# SPDX-License-Identifier: BSD-2-Clause
"""containerlab's files: what they come to, what is said of the rest, what is wrong with some."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from valemgr import clab
from valemgr.errors import TopologyError
from valemgr.labfile import parse_lab
from valemgr.topology import Lab

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parent / "golden/clab"
HEAD = "name: x\ntopology:\n"


def convert(text: str, folder: Path = Path("/nowhere")) -> tuple[str, list[str]]:
    converted, remarks = clab.convert(text, "x.clab.yml", folder, folder)
    return converted, [str(remark).removeprefix("x.clab.yml:") for remark in remarks]


def lab(text: str) -> Lab:
    return parse_lab(convert(text)[0], "converted", Path("/nowhere"))


def mistakes(text: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        convert(text)
    return [str(finding).removeprefix("x.clab.yml:") for finding in caught.value.findings]


def test_a_whole_file(golden: Callable[[str, str], None]) -> None:
    text = (GOLDEN / "lab.clab.yml").read_text()
    converted, remarks = clab.convert(text, "lab.clab.yml", GOLDEN, GOLDEN)
    golden("clab/lab.lab.yml", converted)
    golden("clab/lab.remarks.txt", "".join(f"{remark}\n" for remark in remarks))
    made = parse_lab(converted, "lab.lab.yml", GOLDEN)
    assert [guest.name for guest in made.guests] == ["srl", "spine1", "leaf-1"]


def test_inheritance() -> None:
    made = lab(
        HEAD + "  defaults: {kind: linux, cpu: 0.5, exec: [one]}\n"
        "  kinds: {linux: {memory: 1gb, exec: [two]}}\n"
        "  groups: {g: {memory: 512Mib, cpu: 3, exec: [three], image: quay.io/frrouting/frr:9}}\n"
        "  nodes: {a: {group: g, exec: [four], cpu: 2.5}, b: }\n"
    )
    a, b = made.guests
    assert (a.memory_mib, a.cpus, a.image) == (512, 3, "micro-frr")
    assert (b.memory_mib, b.cpus, b.image) == (1024, 1, "micro")
    assert a.startup == ("one", "two", "three", "four")
    assert b.startup == ("one", "two")


def test_links_have_no_addresses_but_those_given() -> None:
    made = lab(
        HEAD + "  nodes: {a: , b: }\n  links:\n"
        "    - endpoints: ['a:eth1', 'b:eth1']\n"
        "    - endpoints: ['a:eth2', 'b:eth2']\n"
        "      ipv4: [10.0.0.1/30, 10.0.0.2/30]\n"
        "      ipv6: ['fd00::1/64', '']\n"
        "    - type: veth\n"
        "      mtu: 1400\n"
        "      endpoints:\n"
        "        - {node: a, interface: eth3, mac: aa:c1:ab:00:00:01, ipv4: 10.1.0.1/31}\n"
        "        - 'b:eth3'\n"
    )
    a, b = made.guests
    assert [nic.addresses for nic in a.nics] == [
        (),
        ("10.0.0.1/30", "fd00::1/64"),
        ("10.1.0.1/31",),
    ]
    assert [nic.addresses for nic in b.nics] == [(), ("10.0.0.2/30",), ()]
    assert [nic.mtu for nic in a.nics] == [1500, 1500, 1400]
    assert a.nics[2].mac == "aa:c1:ab:00:00:01"


def test_bridges_are_switches() -> None:
    made = lab(
        HEAD + "  nodes: {a: , b: , br-1: {kind: bridge}, br_1: {kind: ovs-bridge}}\n  links:\n"
        "    - endpoints: ['a:eth1', 'br-1:x']\n    - endpoints: ['br-1:y', 'b:eth1']\n"
        "    - endpoints: ['a:eth2', 'br_1:x']\n"
    )
    assert [nic.port for _, nic in made.nics()] == ["valebr_1:a", "valebr_12:a", "valebr_1:b"]
    assert not made.links


def test_long_names_on_bridges_get_ports_that_fit() -> None:
    made = lab(
        HEAD + "  nodes: {a-rather-long-name: , br: {kind: bridge}}\n  links:\n"
        "    - endpoints: ['a-rather-long-name:eth1', 'br:x']\n"
        "    - endpoints: ['a-rather-long-name:eth2', 'br:y']\n"
    )
    assert made.ports == ("valebr:a_rather_long_n", "valebr:a_rather_long_2")


def test_files_that_are_here_come_along(tmp_path: Path) -> None:
    (tmp_path / "frr.conf").write_text("")
    (tmp_path / "folder").mkdir()
    text = HEAD + (
        "  nodes:\n    a:\n      binds:\n"
        "        ['frr.conf:/etc/frr/frr.conf:ro', 'folder:/x', 'none:/y', 'frr.conf']\n"
    )
    converted, remarks = convert(text, tmp_path)
    made = parse_lab(converted, "converted", tmp_path)
    assert [file.source for file in made.guests[0].files] == [str(tmp_path / "frr.conf")]
    assert remarks == [
        "6:43: bind folder:/x is left out: a directory",
        "6:56: bind none:/y is left out: no file here",
        "6:67: bind frr.conf is left out: no file here",
    ]


def test_frr_is_started_with_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "frr.conf").write_text("")
    text = HEAD + (
        "  nodes:\n    a:\n      image: frrouting/frr\n      exec: [ip route]\n"
        "      binds: ['frr.conf:/etc/frr/frr.conf']\n    b: {image: frrouting/frr}\n"
    )
    a, b = parse_lab(convert(text, tmp_path)[0], "converted", tmp_path).guests
    assert a.startup == ("frr start", "ip route")
    assert (b.startup, b.memory_mib) == ((), 192)


def test_health_and_stages() -> None:
    made = lab(
        HEAD + "  nodes:\n"
        "    a: {healthcheck: {test: [CMD, cat, /a b], interval: 1}}\n"
        "    b: {healthcheck: {test: [CMD-SHELL, 'true | false']}}\n"
        "    c: {stages: {create: {wait-for: [{node: a, stage: healthy}, {node: b}]}}}\n"
    )
    assert [guest.ready[0].exec for guest in made.guests[:2]] == ["cat '/a b'", "true | false"]
    assert made.guests[2].after == ("a", "b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prefix: ''\n" + HEAD + "  nodes: {a: }\n", "1:1: prefix is left out"),
        (HEAD + "  nodes: {a: {env: {X: y}, ports: []}}\n", "3:11: node a: left out: env, ports"),
        (
            HEAD + "  nodes: {a: {kind: cisco_xrv9k}}\n",
            "3:11: node a: kind cisco_xrv9k: micro stands in for it",
        ),
        (HEAD + "  nodes: {a: {memory: 8mb}}\n", "3:15: memory 8mb is 128M: it holds a kernel too"),
        (HEAD + "  nodes: {a: {memory: lots}}\n", "3:15: memory lots is left out"),
        (
            HEAD + "  nodes: {a: }\n  links: [{endpoints: ['a:eth1', 'host:x']}]\n",
            "4:11: a link (to the host) is left out: it leads out of the lab",
        ),
        (
            HEAD
            + "  nodes: {a: }\n  links: [{type: dummy, endpoint: {node: a, interface: eth1}}]\n",
            "4:11: a link (dummy) is left out: it leads out of the lab",
        ),
        (
            HEAD + "  nodes: {a: {kind: bridge}, b: {kind: bridge}}\n"
            "  links: [{endpoints: ['a:x', 'b:x']}]\n",
            "4:11: a link between bridges is left out: VALE switches are not linked",
        ),
        (
            HEAD + "  nodes: {a: , b: }\n  links: [{endpoints: ['a:1/1', 'b:eth1'], mtu: 9500}]\n",
            "4:44: mtu 9500 is 9000",
        ),
        (
            HEAD + "  nodes: {a: , b: }\n  links: [{endpoints: ['a:1/1', 'b:eth1']}]\n",
            "3:11: node a: interface 1/1 is eth1-1",
        ),
        (HEAD + "  nodes: {a.b: }\n", "3:11: node a.b is guest a-b"),
    ],
)
def test_what_has_no_counterpart_is_named(text: str, said: str) -> None:
    converted, remarks = convert(text)
    assert said in remarks
    line, _, rest = said.partition(":")
    assert f"# line {line}: {rest.partition(': ')[2]}\n" in converted
    parse_lab(converted, "converted", Path("/nowhere"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", ["1:1: this is not a containerlab topology: a mapping is meant"]),
        (
            "nodes: {a: }\n",
            ["1:1: 'name' is missing: add it", "1:1: 'topology' is missing: add it"],
        ),
        (HEAD + "  nodes: [a]\n", ["3:10: a list stands here: a mapping is meant"]),
        (HEAD + "  nodes: {a: linux}\n", ["3:14: 'linux' stands here: a mapping is meant"]),
        (HEAD + "  nodes: {a: , a: }\n", ["3:16: key 'a' is here twice: the first is in line 3"]),
        (
            HEAD + "  nodes: {alpha: }\n  links: [{endpoints: ['alpa:eth1', 'alpha:eth2']}]\n",
            ["4:24: no node 'alpa': did you mean 'alpha'?"],
        ),
        (
            HEAD + "  nodes: {a: , b: }\n  links: [{endpoints: ['a', 'b:eth1']}]\n",
            ["4:24: 'a' is not an endpoint: write it as node:interface"],
        ),
        (
            HEAD + "  nodes: {a: , b: }\n  links: [{endpoints: ['a:eth1']}]\n",
            ["4:23: 1 endpoints: a link has two"],
        ),
        (
            HEAD + "  nodes: {a: , b: }\n"
            "  links: [{endpoints: ['a:x', {node: b, interface: y, mac: 1}]}]\n",
            ["4:60: '1' is not a MAC address: six bytes in hex, as 52:54:00:00:00:01"],
        ),
        (
            HEAD + "  nodes:\n{{ range $n }}\n    a{{ $n }}: {}\n{{ end }}\n",
            ["4:1: this is a template: convert what containerlab makes of it"],
        ),
        (HEAD + "  nodes: {a: {cpu: many}}\n", ["3:20: 'many' stands here: a number is meant"]),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, said: list[str]) -> None:
    assert mistakes(text) == said


def test_files_changed_at_random_are_converted_or_refused() -> None:
    text, rng = (GOLDEN / "lab.clab.yml").read_text(), random.Random(3)
    others = ("[]", "{}", "null", "1", "x", "a:b", "-1", "&a", "*s", "<<", "\n", "1e400", "[x]")
    converted = 0
    for _ in range(400):
        words = text.split(" ")
        words[rng.randrange(len(words))] = rng.choice(others)
        try:
            ours, _ = clab.convert(" ".join(words), "x", GOLDEN, GOLDEN)
            parse_lab(ours, "converted", GOLDEN)
        except TopologyError:
            continue
        converted += 1
    assert converted > 40
