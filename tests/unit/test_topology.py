# SPDX-License-Identifier: BSD-2-Clause
"""The models of a lab: what is refused, in which words, and the names that are made up."""

from typing import Any

import pytest
from pydantic import ValidationError

from valemgr.errors import UsageError
from valemgr.topology import (
    Cable,
    Condition,
    Guest,
    Impair,
    Impairment,
    Lab,
    Nic,
    Switch,
    link_switch,
    pair_lab,
    start_order,
)
from valemgr.words import Backend, NicModel

pytestmark = pytest.mark.unit


def guest(name: str, *nics: dict[str, Any], **more: Any) -> dict[str, Any]:
    numbered = [{"name": f"eth{i}"} | nic for i, nic in enumerate(nics, start=1)]
    return {"name": name, "nics": numbered} | more


def lab(*guests: dict[str, Any], **more: Any) -> Lab:
    return Lab.model_validate({"name": "l", "guests": guests} | more)


def refused(match: str, *guests: dict[str, Any], **more: Any) -> None:
    with pytest.raises((ValidationError, UsageError), match=match):
        lab(*guests, **more)


A, B = {"port": "vale1:a"}, {"port": "vale1:b"}
MAC = "52:54:00:00:00:01"


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (A, A, "port 'vale1:a' is used twice"),
        ({"port": "vale-1:a"}, {"port": "vale_1:a"}, "port 'vale_1:a' is used twice"),
        (A | {"mac": MAC}, B | {"mac": MAC}, f"MAC '{MAC}' is used twice"),
        (A | {"mac": "52:54:00:00:00:0A"}, B | {"mac": "52:54:00:00:00:0a"}, "0a' is used twice"),
        (
            A | {"addresses": ["10.0.0.1/24"]}, B | {"addresses": ["10.0.0.1/8"]},
            "address 10.0.0.1 of b:eth1 is that of a:eth1 on switch vale1",
        ),
        (
            A | {"addresses": ["fd00::1/64"]}, B | {"addresses": ["fd00:0::1/64"]},
            "address fd00::1 of b:eth1 is that of a:eth1",
        ),
        (
            {"cable": {"name": "c", "listens": True}}, {"cable": {"name": "c", "listens": True}},
            "cable 'c' needs one end that listens and one that connects",
        ),
    ],
)
def test_what_may_be_there_once(
    first: dict[str, Any], second: dict[str, Any], reason: str
) -> None:
    refused(reason, guest("a", first), guest("b", second))


def test_an_address_once_in_a_guest_but_on_any_number_of_segments() -> None:
    one = {"addresses": ["10.0.0.1/24"]}
    elsewhere = {"port": "vale2:x"} | one
    refused("is that of a:eth1 on guest a", guest("a", A | one, elsewhere))
    assert len(list(lab(guest("a", A | one), guest("b", elsewhere)).nics())) == 2


def test_names_are_unique() -> None:
    refused("guest 'a' is used twice", guest("a"), guest("a"))
    refused("guest a: NIC 'x' is used twice", guest("a", A | {"name": "x"}, B | {"name": "x"}))
    refused("switch 'vale1' is used twice", switches=[{"name": "vale1"}, {"name": "vale1"}])


@pytest.mark.parametrize("name", ["mgmt", "lo"])
def test_interfaces_that_every_guest_has(name: str) -> None:
    refused(f"'{name}' is the name of an interface that every", guest("a", A | {"name": name}))


@pytest.mark.parametrize("name", ["", "0eth", "eth.1", "eth 1", "e" * 16, "eth/1", "é1", "eth1\n"])
def test_names_that_no_interface_has(name: str) -> None:
    refused("should match pattern", guest("a", A | {"name": name}))


def test_the_longest_name_of_an_interface() -> None:
    assert Nic(name="e" * 15, port="vale1:a").name == "e" * 15


@pytest.mark.parametrize(
    ("mac", "reason"),
    [
        ("52-54-00-00-00-01", "is not a MAC address: six bytes in hex"),
        ("52:54:00:00:00", "not a MAC"),
        ("52:54:00:00:00:0g", "not a MAC"),
        ("53:54:00:00:00:01", "is a group address: its first byte must be even"),
        ("ff:ff:ff:ff:ff:ff", "is a group address"),
    ],
)
def test_macs(mac: str, reason: str) -> None:
    refused(reason, guest("a", A | {"mac": mac}))


@pytest.mark.parametrize(
    ("nic", "reason"),
    [
        (A | {"model": "e1000", "queues": 2}, "e1000 has one queue: use virtio-net-pci"),
        (A | {"model": "e1000", "backend": "vhost-user"}, "vhost-user serves virtio-net-pci only"),
        (A | {"backend": "stream", "queues": 2}, "a stream socket has one queue"),
        (A | {"queues": 0}, "greater than or equal to 1"),
        (A | {"queues": 9}, "less than or equal to 8"),
        (A | {"mtu": 67}, "greater than or equal to 68"),
        (A | {"mtu": 9001}, "less than or equal to 9000"),
        (A | {"mtu": 1279, "addresses": ["fd00::1/64"]}, "IPv6 needs an MTU of at least 1280"),
        (A | {"cable": {"name": "c", "listens": True}}, "exactly one of them"),
        (A | {"impair": {"into": {"loss": 101}}}, "less than or equal to 100"),
        (A | {"impair": {"into": {"delay": -1}}}, "greater than or equal to 0"),
        (A | {"impair": {"into": {"delay": 60_000_001}}}, "less than or equal to 60000000"),
        (A | {"colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_nics_that_cannot_be(nic: dict[str, Any], reason: str) -> None:
    refused(reason, guest("a", nic))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"cpus": 0}, "greater than or equal to 1"),
        ({"cpus": 65}, "less than or equal to 64"),
        ({"memory_mib": 31}, "greater than or equal to 32"),
        ({"spare": 17}, "less than or equal to 16"),
        ({"files": [{"source": "/x", "target": "relative"}]}, "should match pattern"),
        ({"files": [{"source": "/x", "target": "/x", "mode": "888"}]}, "should match pattern"),
        ({"ready": [{"exec": ""}]}, "at least 1 character"),
        ({"ready": [{"exec": "x", "expect": "("}]}, r"expect: '\(' is no regular expression"),
        ({"ready": [{"exec": "x", "timeout": 0}]}, "greater than 0"),
        ({"name": "../a"}, "is not a guest name"),
        ({"name": "a" * 33}, "is not a guest name"),
    ],
)
def test_guests_that_cannot_be(keys: dict[str, Any], reason: str) -> None:
    refused(reason, guest("a") | keys)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"name": "eth0"}, "is not a switch name"),
        ({"name": "vale1:a"}, "is a port, a switch is meant"),
        ({"age": 0}, "greater than or equal to 1"),
        ({"cap": 0}, "greater than or equal to 1"),
        ({"wait_limit": 0}, "greater than or equal to 1"),
        ({"wait_limit": 10_001}, "less than or equal to 10000"),
        ({"overflow": "block"}, "'drop' or 'wait'"),
    ],
)
def test_switches_that_valed_would_refuse(keys: dict[str, Any], reason: str) -> None:
    refused(reason, switches=[{"name": "vale1"} | keys])


@pytest.mark.parametrize(
    "setting",
    [{"p2p": True}, {"age": 300}, {"cap": 9}, {"overflow": "drop"}, {"wait_limit": 5}],
)
def test_the_kernels_switch_has_no_settings(setting: dict[str, Any]) -> None:
    refused("vale1: the kernel's switch has no settings",
            switches=[{"name": "vale1", "provider": "kernel"} | setting])
    assert lab(switches=[{"name": "vale1", "provider": "kernel", "shared": True}]).switches


def test_the_switch_of_the_first_releases() -> None:
    """`vale0` is port `vale0` on switch `vale`, which cannot be declared but is there."""
    old = lab(guest("a", {"port": "vale0"}))
    assert old.ports == ("vale:vale0",)
    assert list(old.all_switches()) == ["vale"]
    assert Lab.model_validate(old.model_dump(mode="json")) == old


@pytest.mark.parametrize(
    ("after", "circle"),
    [
        ({"a": ["a"]}, "a → a"),
        ({"a": ["b"], "b": ["a"]}, "a → b → a"),
        ({"a": ["b"], "b": ["c"], "c": ["b"]}, "b → c → b"),
        ({"a": [], "b": ["a", "d"], "c": ["b"], "d": ["c"]}, "b → d → c → b"),
    ],
)
def test_guests_that_wait_for_each_other(after: dict[str, list[str]], circle: str) -> None:
    guests = [guest(name, after=others) for name, others in after.items()]
    refused(f"guests wait for each other: {circle}(?! →)", *guests)


def test_start_order() -> None:
    after = {"a": ["c"], "b": [], "c": ["d", "b"], "d": []}
    guests = [Guest(name=name, after=tuple(others)) for name, others in after.items()]
    assert start_order(guests) == ["b", "d", "c", "a"]


def test_who_connects_to_a_cable_starts_after_who_listens() -> None:
    def end(name: str, listens: bool) -> dict[str, Any]:
        return {"cable": {"name": name, "listens": listens}}

    a = guest("a", end("c", listens=False))
    b = guest("b", end("c", listens=True))
    assert start_order(lab(a, b).guests) == ["b", "a"]
    refused("guests wait for each other: a → b → a", a, b | {"after": ["a"]})
    crossed = guest("a", end("c", listens=False), end("d", listens=True))
    refused("guests wait for each other: a → b → a", crossed,
            guest("b", end("c", listens=True), end("d", listens=False)))
    alone = guest("a", end("c", listens=False), end("c", listens=True))
    refused("guests wait for each other: a → a", alone)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"links": [{"ends": ["a:eth1", "b:eth9"], "switch": "valeLx"}]},
         "link end 'b:eth9' is no NIC of a guest"),
        ({"tests": [{"name": "t", "guest": "z", "condition": {"exec": "true"}}]},
         "test 't': 'z' is no guest"),
        ({"tests": [{"name": "t", "udp": {"sender": "a:eth1", "receiver": "b"}}]},
         "test 't': 'b' is no NIC of a guest"),
        ({"tests": [{"name": "t"}]}, r"a command \(exec\) or a trial \(udp\), one of them"),
        ({"tests": [{"name": "t", "udp": {"sender": "a:eth1", "receiver": "b:eth1"},
                     "guest": "a", "condition": {"exec": "true"}}]}, "one of them"),
        ({"tests": [{"name": "t", "udp": {"sender": "a:eth1", "receiver": "b:eth1",
                                          "frame": 63}}]}, "greater than or equal to 64"),
    ],
)
def test_references_that_lead_nowhere(more: dict[str, Any], reason: str) -> None:
    refused(reason, guest("a", A), guest("b", B), **more)
    refused("guest a starts after 'z', which is no guest", guest("a", after=["z"]))


def test_impairments_as_port_set_takes_them() -> None:
    assert Impairment().settings() is None
    assert Impairment(seed=5).settings() is None
    assert Impairment(loss=1.5, seed=0).settings() == {
        "delay": 0, "jitter": 0, "loss": 1.5, "duplicate": 0, "corrupt": 0, "reorder": 0,
        "rate": 0, "seed": 0,
    }
    said = Impairment(limit=9).settings()
    assert said is not None
    assert said["limit"] == 9


def test_names_of_links_are_stable_short_and_their_own() -> None:
    ends = [(f"a:eth{i}", f"b:eth{j}") for i in range(20) for j in range(20)]
    names = [link_switch(name, pair) for name in ("l1", "l2") for pair in ends]
    assert len(set(names)) == 800
    assert {len(name) for name in names} == {12}
    assert link_switch("l1", ends[0]) == names[0]
    for name in names:
        assert Switch(name=name).name == name


def test_pairs() -> None:
    one = pair_lab("vale1", NicModel.E1000, backend=Backend.STREAM, baseline=True)
    assert one.ports == ("vale1:a", "vale1:b")
    assert [(g.name, n.name, str(n.model)) for g, n in one.nics()] == [
        ("a", "vale0", "e1000"), ("a", "vale1", "e1000"),
        ("b", "vale0", "e1000"), ("b", "vale1", "e1000"),
    ]
    assert [n.cable for _, n in one.nics() if n.cable] == [
        Cable(name="baseline", listens=True), Cable(name="baseline", listens=False),
    ]


def test_models_are_frozen_and_survive_json() -> None:
    full = lab(
        guest("a", A | {"impair": {"into": {"loss": 0.1, "seed": 3}}, "addresses": ["::1:1/64"]},
              files=[{"source": "/x", "target": "/y"}], ready=[{"exec": "true"}], after=["b"]),
        guest("b", B, {"cable": {"name": "c", "listens": True}}, startup=["echo hi"]),
        guest("c", {"cable": {"name": "c", "listens": False}}),
        switches=[{"name": "vale1", "age": 5, "neighbours": "arp"}],
        links=[{"ends": ["a:eth1", "b:eth1"], "switch": "vale1"}],
        tests=[{"name": "t", "guest": "a", "condition": {"exec": "true", "expect": "x"}}],
    )
    assert Lab.model_validate_json(full.model_dump_json()) == full
    with pytest.raises(ValidationError, match="frozen"):
        full.name = "other"  # type: ignore[misc]
    assert full.guests[0].nics[0].impair == Impair(into=Impairment(loss=0.1, seed=3))
    assert full.guests[0].ready == (Condition(exec="true"),)
