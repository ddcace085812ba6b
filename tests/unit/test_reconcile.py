# SPDX-License-Identifier: BSD-2-Clause
"""The difference between what runs and what is wanted: all of it, and nothing but it."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from valemgr.plan import pin
from valemgr.reconcile import (
    Diff,
    GuestDiff,
    NicChange,
    Running,
    compare,
    compare_guest,
    describe,
    neighbour_changes,
)
from valemgr.topology import Cable, Condition, File, Guest, Impair, Impairment, Lab, Nic, Switch
from valemgr.words import Backend, NicModel, Provider

pytestmark = pytest.mark.unit

SPARE = 2


def nic(name: str = "eth1", port: str | None = "vale1:a", **more: Any) -> Nic:
    return Nic(**{"name": name, "port": port} | more)


def guest(name: str, *nics: Nic, **more: Any) -> Guest:
    return Guest(**{"name": name, "nics": nics, "spare": SPARE} | more)


def lab(*guests: Guest, **more: Any) -> Lab:
    return pin(Lab(**{"name": "l", "guests": guests} | more))


def running(old: Lab, **more: Any) -> Running:
    """A lab that runs as its topology says."""
    slots = {one.name: len(one.nics) + one.spare if one.spare else 0 for one in old.guests}
    guests = {one.name: one for one in old.guests}
    return replace(Running(guests=guests, slots=slots, switches=old.all_switches()), **more)


def difference(old: Lab, new: Lab, **more: Any) -> Diff:
    return compare(running(old, **more), new)


A = guest("a", nic(addresses=("10.0.0.1/24",)))
B = guest("b", nic(port="vale1:b", addresses=("10.0.0.2/24",)))
BOTH = lab(A, B)
PINNED_A, PINNED_B = BOTH.guests
NIC_A = PINNED_A.nics[0]


def changed_a(**changes: Any) -> Lab:
    """BOTH with another guest a."""
    return pin(BOTH.model_copy(update={"guests": (PINNED_A.model_copy(update=changes), PINNED_B)}))


def changed_nic(**changes: Any) -> Lab:
    """BOTH with another NIC of guest a."""
    return changed_a(nics=(NIC_A.model_copy(update=changes),))


def test_nothing_changed_is_an_empty_diff() -> None:
    diff = difference(BOTH, BOTH)
    assert diff == Diff(remove=(), add={}, guests={}, switches=(), unused=())
    assert diff.empty
    assert describe(diff, BOTH) == []


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("image", "debian", "image micro becomes debian"),
        ("qemu", "/q", "qemu  becomes /q"),
        ("cpus", 2, "cpus 1 becomes 2"),
        ("memory_mib", 256, "memory_mib 128 becomes 256"),
        ("spare", 3, "spare 2 becomes 3"),
    ],
)
def test_what_cannot_change_while_it_runs_replaces_the_guest(
    field: str, value: object, why: str
) -> None:
    diff = difference(BOTH, changed_a(**{field: value}))
    assert diff == Diff(remove=("a",), add={"a": why}, guests={}, switches=(), unused=())
    assert describe(diff, BOTH) == [f"~ guest a: started anew ({why})"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", "vale1:z"),
        ("backend", Backend.NETMAP),
        ("model", NicModel.E1000),
        ("queues", 2),
        ("mac", "52:54:00:00:00:77"),
    ],
)
def test_what_is_of_the_wire_is_plugged_anew(field: str, value: object) -> None:
    new = changed_nic(**{field: value})
    diff = difference(BOTH, new)
    (now,) = new.guests[0].nics
    assert diff.guests == {"a": GuestDiff("a", unplug=(NIC_A,), plug=(now,))}
    assert (diff.add, diff.remove, diff.switches, diff.unused) == ({}, (), (), ())
    assert describe(diff, new) == [f"~ nic a:eth1 on {now.port}, plugged anew"]


def test_addresses_and_mtu_change_in_place() -> None:
    for changes in ({"mtu": 9000}, {"addresses": ("10.0.0.9/24",)}, {"addresses": ()}):
        new = changed_nic(**changes)
        change = NicChange(NIC_A, new.guests[0].nics[0])
        assert difference(BOTH, new).guests == {"a": GuestDiff("a", change=(change,))}


def test_impairments_alone_touch_no_guest() -> None:
    impair = Impair(into=Impairment(loss=1))
    new = changed_nic(impair=impair)
    diff = difference(BOTH, new)
    assert diff.guests == {"a": GuestDiff("a", impair=(new.guests[0].nics[0],))}
    back = difference(new, BOTH)
    assert back.guests["a"].impair == (NIC_A,)


@pytest.mark.parametrize(
    ("field", "value"),
    [("files", (File(source="/x", target="/x"),)), ("startup", ("true",))],
)
def test_what_happens_at_the_start_is_only_noted(field: str, value: object) -> None:
    diff = difference(BOTH, changed_a(**{field: value}))
    note = f"{field} changed: it takes effect when the guest is started anew"
    assert diff.guests == {"a": GuestDiff("a", notes=(note,))}
    assert describe(diff, BOTH) == [f"  guest a: {note}"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("ready", (Condition(exec="true"),)), ("after", ("b",)), ("group", "g")],
)
def test_what_needs_nothing_done_is_no_difference(field: str, value: object) -> None:
    assert difference(BOTH, changed_a(**{field: value})).empty


def test_every_field_of_a_guest_and_a_nic_has_a_test_here() -> None:
    """A field that is added to a model must be given its meaning for a lab that runs."""
    assert set(Guest.model_fields) == {
        "name", "nics", "image", "qemu", "cpus", "memory_mib", "spare", "files", "startup",
        "ready", "after", "group",
    }
    assert set(Nic.model_fields) == {
        "name", "port", "cable", "backend", "model", "queues", "mac", "mtu", "addresses", "impair",
    }


def test_guests_come_and_go() -> None:
    c = guest("c", nic(port="vale2:c"))
    new = lab(A, c)
    diff = difference(BOTH, new)
    assert diff == Diff(
        remove=("b",), add={"c": "new"}, guests={}, switches=(Switch(name="vale2"),), unused=()
    )
    assert describe(diff, new) == ["- guest b", "+ guest c"]


def test_dead_guests_are_cleared_away_and_started_or_not() -> None:
    alive = lab(A)
    diff = difference(alive, BOTH, dead=frozenset({"b"}))
    assert (diff.remove, diff.add) == (("b",), {"b": "it was dead"})
    assert describe(diff, BOTH) == ["~ guest b: started anew (it was dead)"]
    unwanted = difference(alive, alive, dead=frozenset({"b"}))
    assert (unwanted.remove, unwanted.add, unwanted.empty) == (("b",), {}, False)


def test_a_lab_whose_guests_are_all_dead() -> None:
    diff = compare(Running({}, {}, BOTH.all_switches(), frozenset({"a", "b"})), BOTH)
    assert diff.remove == ("a", "b")
    assert diff.add == {"a": "it was dead", "b": "it was dead"}
    assert diff.guests == {}


def test_a_guest_that_was_broken_off_goes_on_unless_it_changes() -> None:
    unready = frozenset({"a"})
    assert difference(BOTH, BOTH, unready=unready).empty
    diff = difference(BOTH, changed_nic(mtu=9000), unready=unready)
    assert diff.add == {"a": "it was not ready, and changes"}
    assert (diff.remove, diff.guests) == (("a",), {})


def test_vhost_user_needs_memory_that_is_shared() -> None:
    new = changed_nic(backend=Backend.VHOST_USER)
    assert difference(BOTH, new, private=frozenset({"a"})).add == {
        "a": "vhost-user needs shared memory"
    }
    assert difference(BOTH, new).add == {}
    moved = changed_nic(port="vale1:z")
    assert difference(BOTH, moved, private=frozenset({"a"})).add == {}


def test_nics_beyond_the_slots_replace_the_guest() -> None:
    def with_nics(number: int, **more: Any) -> Lab:
        return lab(guest("a", *(nic(f"eth{i}", f"vale1:p{i}") for i in range(number)), **more))

    one = with_nics(1)  # three slots
    assert len(difference(one, with_nics(3)).guests["a"].plug) == 2
    assert difference(one, with_nics(4)).add == {"a": "4 NICs, and it has 3 slots"}
    fixed = with_nics(2, spare=0)
    for number in (1, 3):
        diff = difference(fixed, with_nics(number, spare=0))
        assert diff.add == {"a": "its NICs change, and it has no slots"}


def test_a_full_guest_may_exchange_a_nic() -> None:
    full = lab(guest("a", *(nic(f"eth{i}", f"vale1:p{i}") for i in range(3)), spare=1))
    other = (*full.guests[0].nics[:2], nic("eth9", "vale1:p9"))
    diff = difference(full, lab(full.guests[0].model_copy(update={"nics": other})))
    assert [n.name for n in diff.guests["a"].unplug] == ["eth2"]
    assert [n.name for n in diff.guests["a"].plug] == ["eth9"]


def test_nics_in_another_order_are_the_same() -> None:
    two = guest("a", nic("eth1", "vale1:a"), nic("eth2", "vale1:b"))
    turned = two.model_copy(update={"nics": two.nics[::-1]})
    assert difference(lab(two), lab(turned)).empty


def test_a_port_that_changes_hands() -> None:
    swapped = lab(
        PINNED_A.model_copy(update={"nics": (NIC_A.model_copy(update={"port": "vale1:b"}),)}),
        PINNED_B.model_copy(
            update={"nics": (PINNED_B.nics[0].model_copy(update={"port": "vale1:a"}),)}
        ),
    )
    diff = difference(BOTH, swapped)
    assert {name: (d.unplug[0].port, d.plug[0].port) for name, d in diff.guests.items()} == {
        "a": ("vale1:a", "vale1:b"), "b": ("vale1:b", "vale1:a"),
    }


@pytest.mark.parametrize(
    "change",
    [{"age": 5}, {"cap": 5}, {"overflow": "wait"}, {"wait_limit": 5}, {"p2p": True},
     {"shared": True}, {"neighbours": "arp"}],
)
def test_a_switch_whose_settings_change_is_set_up(change: dict[str, Any]) -> None:
    switch = Switch.model_validate({"name": "vale1"} | change)
    new = lab(PINNED_A, PINNED_B, switches=(switch,))
    diff = difference(BOTH, new)
    assert (diff.switches, diff.guests, diff.unused) == ((switch,), {}, ())
    assert describe(diff, new) == ["~ switch vale1: set up"]
    assert difference(new, BOTH).switches == (Switch(name="vale1"),)


def test_switches_that_nobody_is_on_any_more() -> None:
    new = lab(PINNED_A.model_copy(update={"nics": ()}), PINNED_B)
    assert difference(BOTH, new).unused == ()
    assert difference(BOTH, lab()).unused == ("vale1",)
    declared = lab(switches=(Switch(name="vale1"),))
    assert difference(BOTH, declared).unused == ()


def _neighbours(before: Lab, after: Lab, *stay: Guest) -> dict[str, tuple[set[str], set[str]]]:
    changes = neighbour_changes(before, after, {one.name: one for one in stay})
    return {f"{name}:{n.name}": (set(known), set(should)) for name, n, known, should in changes}


def test_only_those_who_stay_learn_of_others() -> None:
    c = guest("c", nic(port="vale1:c", addresses=("10.0.0.3/24",)))
    three = lab(PINNED_A, PINNED_B, c)
    assert _neighbours(BOTH, three, PINNED_A, PINNED_B) == {
        "a:eth1": ({"10.0.0.2"}, {"10.0.0.2", "10.0.0.3"}),
        "b:eth1": ({"10.0.0.1"}, {"10.0.0.1", "10.0.0.3"}),
    }
    assert _neighbours(three, BOTH, PINNED_A) == {
        "a:eth1": ({"10.0.0.2", "10.0.0.3"}, {"10.0.0.2"})
    }
    elsewhere = lab(PINNED_A, PINNED_B, c.model_copy(update={"nics": (nic(port="vale2:c"),)}))
    assert _neighbours(BOTH, elsewhere, PINNED_A, PINNED_B) == {}
    assert _neighbours(BOTH, changed_nic(mtu=9000), PINNED_A, PINNED_B) == {}


def test_a_mac_that_changes_is_told() -> None:
    new = changed_nic(mac="52:54:00:00:00:77")
    ((name, _, known, should),) = neighbour_changes(BOTH, new, {"b": PINNED_B})
    assert (name, known, should) == (
        "b", {"10.0.0.1": NIC_A.mac}, {"10.0.0.1": "52:54:00:00:00:77"}
    )


def test_golden_description(golden: Callable[[str, str], None]) -> None:
    old = lab(
        guest("stays", nic("eth1", "vale1:s", addresses=("10.0.0.1/24", "10.0.1.1/24")),
              nic("eth2", "vale2:s"), nic("eth3", "vale3:s"), nic("eth4", "vale4:s")),
        guest("grows", nic(port="vale1:g"), cpus=1),
        guest("goes", nic(port="vale1:x")),
    )
    loss = Impair(into=Impairment(delay=20_000, loss=0.5, rate=10_000_000, seed=7),
                  out=Impairment(limit=65536))
    new = lab(
        guest("stays", nic("eth1", "vale1:s", addresses=("10.0.1.1/24", "10.0.2.1/24"), mtu=9000),
              nic("eth2", "vale2:t"), nic("eth4", "vale4:s", impair=loss), nic("eth5", "vale5:s"),
              startup=("true",)),
        guest("grows", nic(port="vale1:g"), cpus=2),
        guest("comes"),
        guest("lived"),
        switches=(Switch(name="vale1", age=60), Switch(name="vale5")),
    )  # fmt: skip
    diff = difference(old, new, dead=frozenset({"lived"}))
    golden("reconcile.txt", "\n".join([*describe(diff, new), ""]))


# Random labs, seeded: the properties that no list of examples covers.

SEEDS = range(60)


def random_nics(rng: random.Random, ports: Iterator[int]) -> Iterator[Nic]:
    for name in rng.sample(["eth1", "eth2", "eth3", "eth4"], rng.randint(0, 4)):
        number = next(ports)
        virtio = rng.random() < 0.7
        yield Nic(
            name=name,
            port=f"vale{rng.randint(1, 3)}:p{number}",
            model=NicModel.VIRTIO if virtio else NicModel.E1000,
            queues=rng.choice([1, 2]) if virtio else 1,
            backend=rng.choice([Backend.AUTO, Backend.NETMAP]),
            mtu=rng.choice([1500, 9000]),
            addresses=(f"10.0.0.{number}/24",) if rng.random() < 0.6 else (),
            impair=Impair(out=Impairment(loss=1)) if rng.random() < 0.2 else Impair(),
        )


def random_lab(rng: random.Random) -> Lab:
    ports = iter(rng.sample(range(1, 60), 40))
    guests = tuple(
        Guest(
            name=name,
            cpus=rng.choice([1, 1, 1, 2]),
            spare=rng.choice([0, 4, 4]),
            startup=("true",) * rng.randint(0, 1),
            nics=tuple(random_nics(rng, ports)),
        )
        for name in rng.sample("abcde", rng.randint(0, 5))
    )
    age = rng.choice([None, 5])
    switches = (Switch(name="vale1", age=age),) if rng.random() < 0.5 else ()
    return Lab(name="l", guests=guests, switches=switches)


def mutated(rng: random.Random, old: Lab) -> Lab:
    """Another lab, about half of whose guests and NICs are those of the old one."""
    other = random_lab(rng)
    mixed: list[Guest] = []
    taken: set[str] = set()
    for one in other.guests:
        before = old.guest(one.name)
        chosen = before if before and rng.random() < 0.5 else one
        free = tuple(n for n in chosen.nics if n.port not in taken and not _clashes(n, mixed))
        taken |= {n.port for n in free if n.port}
        mixed.append(chosen.model_copy(update={"nics": free}))
    macs = {(g.name, n.name): str(n.mac) for g, n in old.nics()}
    return pin(Lab(name="l", guests=tuple(mixed), switches=other.switches), macs)


def _clashes(one: Nic, guests: list[Guest]) -> bool:
    theirs = [n for g in guests for n in g.nics]
    mine = {(one.segment, address) for address in one.addresses}
    return bool(mine & {(n.segment, a) for n in theirs for a in n.addresses})


def carried_out(old: Running, diff: Diff, wanted: Lab) -> Running:
    """What runs when every step of a diff was done, and nothing else."""
    new = {one.name: one for one in wanted.guests}
    guests = {name: one for name, one in old.guests.items() if name not in diff.remove}
    slots = {name: old.slots[name] for name in guests}
    for name, each in diff.guests.items():
        nics = {n.name: n for n in guests[name].nics}
        for gone in each.unplug:
            del nics[gone.name]
        assert not nics.keys() & {n.name for n in each.plug}
        nics |= {n.name: n for n in each.plug}
        for change in each.change:
            assert nics[change.old.name] == change.old
            kept = {"impair": change.old.impair}
            nics[change.new.name] = change.new.model_copy(update=kept)
        for one in each.impair:
            nics[one.name] = nics[one.name].model_copy(update={"impair": one.impair})
        ordered = tuple(nics[n.name] for n in new[name].nics)
        assert len(ordered) == len(nics) <= slots[name] or not (each.plug or each.unplug)
        fields = {"nics": ordered, "startup": new[name].startup if each.notes else None}
        guests[name] = guests[name].model_copy(
            update={key: value for key, value in fields.items() if value is not None}
        )
    for name in diff.add:
        guests[name] = new[name]
        slots[name] = len(new[name].nics) + new[name].spare if new[name].spare else 0
    switches = {n: s for n, s in old.switches.items() if n not in diff.unused}
    return Running(guests, slots, switches | {s.name: s for s in diff.switches})


def _unordered(guests: dict[str, Guest]) -> dict[str, Guest]:
    return {
        name: one.model_copy(update={"nics": tuple(sorted(one.nics, key=lambda n: n.name))})
        for name, one in sorted(guests.items())
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_a_diff_carried_out_is_what_was_wanted(seed: int) -> None:
    rng = random.Random(seed)
    state = running(pin(random_lab(rng)))
    for _ in range(5):
        old = Lab.model_construct(name="l", guests=tuple(state.guests.values()))
        wanted = mutated(rng, old)
        diff = compare(state, wanted)
        state = carried_out(state, diff, wanted)
        assert _unordered(dict(state.guests)) == _unordered({g.name: g for g in wanted.guests})
        assert state.switches == wanted.all_switches()
        assert compare(state, wanted).empty
        assert bool(describe(diff, wanted)) or not (diff.add or diff.remove or diff.guests)


@pytest.mark.parametrize("seed", SEEDS)
def test_guests_that_are_the_same_are_not_named(seed: int) -> None:
    rng = random.Random(1000 + seed)
    old = pin(random_lab(rng))
    wanted = mutated(rng, old)
    diff = difference(old, wanted)
    same = {one.name for one in old.guests if wanted.guest(one.name) == one}
    assert not same & {*diff.add, *diff.remove, *diff.guests}
    for name, each in diff.guests.items():
        before, after = old.guest(name), wanted.guest(name)
        assert before
        assert after
        touched = {n.name for n in (*each.unplug, *each.plug, *each.impair)}
        touched |= {change.new.name for change in each.change}
        assert not touched & {n.name for n in before.nics if n in after.nics}


def test_cables_are_wires() -> None:
    def cabled(name: str) -> Lab:
        ends = {"a": Cable(name=name, listens=True), "b": Cable(name=name, listens=False)}
        return lab(*(guest(g, nic(port=None, cable=end)) for g, end in ends.items()))

    assert difference(cabled("x"), cabled("x")).empty
    diff = difference(cabled("x"), cabled("y"))
    assert [len(each.plug) for each in diff.guests.values()] == [1, 1]
    assert describe(diff, cabled("y")) == [
        "~ nic a:eth1 on cable y, plugged anew", "~ nic b:eth1 on cable y, plugged anew",
    ]


def test_a_switch_of_another_provider_is_another_switch() -> None:
    kernel = (Switch(name="vale1", provider=Provider.KERNEL),)
    new = lab(PINNED_A, PINNED_B, switches=kernel)
    diff = difference(BOTH, new)
    assert diff.switches == kernel
    assert diff.guests["a"] == GuestDiff("a", unplug=(NIC_A,), plug=(NIC_A,))
    assert list(diff.guests) == ["a", "b"]


def test_compare_guest_alone() -> None:
    assert compare_guest(PINNED_A, PINNED_A).empty
