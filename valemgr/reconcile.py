# SPDX-License-Identifier: BSD-2-Clause
"""From what runs to what is wanted: the difference, and nothing but it. Pure.

A guest is replaced only if what cannot change while it runs does; a NIC is unplugged and plugged
only if its wire does; addresses, MTU, neighbours and impairments change in place. What is not
named in a Diff is not touched.

Where an earlier change was broken off, nobody knows how far it came: whatever it was to change is
plugged, set and told again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from valemgr import units
from valemgr.segments import neighbours
from valemgr.topology import Guest, Impair, Impairment, Lab, Nic, Switch
from valemgr.words import Backend

_OF_MACHINE = ("image", "qemu", "cpus", "memory_mib", "spare")
_OF_WIRE = ("port", "cable", "backend", "model", "queues", "mac")
_AT_START = ("files", "startup")


@dataclass(frozen=True, slots=True)
class NicChange:
    """A NIC that stays and gets other settings."""

    old: Nic
    new: Nic
    anew: bool = False  # `old` is what may be there, nothing of `new` is certain


@dataclass(frozen=True, slots=True)
class GuestDiff:
    """What happens to one guest that keeps running."""

    name: str
    unplug: tuple[Nic, ...] = ()
    plug: tuple[Nic, ...] = ()
    change: tuple[NicChange, ...] = ()
    impair: tuple[Nic, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.unplug or self.plug or self.change or self.impair or self.notes)


@dataclass(frozen=True, slots=True)
class Diff:
    """Everything between what runs and what is wanted."""

    remove: tuple[str, ...]
    add: dict[str, str]  # guest: why
    guests: dict[str, GuestDiff]
    switches: tuple[Switch, ...]  # to be set up, or set anew
    unused: tuple[str, ...]  # switches that nobody is on any more

    @property
    def empty(self) -> bool:
        return not (self.remove or self.add or self.guests or self.switches or self.unused)


@dataclass(frozen=True, slots=True)
class Running:
    """What runs, as far as it matters: guests that are alive, and how many slots they have."""

    guests: Mapping[str, Guest]
    slots: Mapping[str, int]
    switches: Mapping[str, Switch]
    dead: frozenset[str] = frozenset()  # guests that were started, and are gone
    unready: frozenset[str] = frozenset()  # guests that were launched, and no more
    private: frozenset[str] = frozenset()  # guests whose memory valed cannot map
    settled: Lab | None = None  # what was carried out last, if a change was broken off since
    tried: tuple[Lab, ...] = ()  # what such changes wanted


def compare(running: Running, wanted: Lab) -> Diff:
    """The difference; `wanted` is pinned."""
    new = {guest.name: guest for guest in wanted.guests}
    switches = wanted.all_switches()
    had = running.switches
    moved = frozenset(n for n in switches if n in had and had[n].provider != switches[n].provider)
    maybe = [lab.all_switches() for lab in running.tried]
    add = {}
    guests = {}
    for name, guest in new.items():
        diff = _compare_guest(running, guest, moved) if name in running.guests else None
        if why := _why_start(running, guest, diff):
            add[name] = why
        elif diff and not diff.empty:
            guests[name] = diff
    gone = [name for name in running.guests if name not in new or name in add]
    gone += running.dead  # their ports are still there
    return Diff(
        remove=tuple(sorted(gone)),
        add=add,
        guests=guests,
        switches=tuple(
            s
            for n, s in switches.items()
            if had.get(n) != s or any(others.get(n, s) != s for others in maybe)
        ),
        unused=tuple(sorted({n for each in (had, *maybe) for n in each} - switches.keys())),
    )


def compare_guest(
    old: Guest, new: Guest, moved: Set[str] = frozenset(), tried: Sequence[Guest] = ()
) -> GuestDiff:
    """What changes in a guest that keeps running.

    `moved`: switches of another provider now; `tried`: what changes wanted that were broken off.
    """
    had = {nic.name: nic for nic in old.nics}
    have = {nic.name: nic for nic in new.nics}
    torn = [nic for other in tried for nic in _torn(old, other)]
    both = had.keys() & have.keys()
    rewired = {n for n in both if _differ(had[n], have[n]) or have[n].switch in moved}
    rewired |= {nic.name for nic in torn}
    stay = [_change(had[n], have[n], tried) for n in have if n in had and n not in rewired]
    gone = [nic for nic in old.nics if nic.name not in have or nic.name in rewired]
    return GuestDiff(
        name=new.name,
        unplug=(*gone, *(nic for nic in torn if nic not in gone)),
        plug=tuple(nic for nic in new.nics if nic.name not in had or nic.name in rewired),
        change=tuple(c for c in stay if c.anew or _settings(c.old) != _settings(c.new)),
        impair=tuple(
            have[c.new.name]
            for c in stay
            if any(nic.impair != c.new.impair for nic in (had[c.new.name], *_tried(c.new, tried)))
        ),
        notes=tuple(
            f"{what} changed: it takes effect when the guest is started anew"
            for what in _AT_START
            if getattr(old, what) != getattr(new, what)
        ),
    )


def neighbour_changes(
    before: Lab, after: Lab, stay: Mapping[str, Guest], torn: Sequence[Lab] = ()
) -> Iterator[tuple[str, Nic, dict[str, str], dict[str, str]]]:
    """(guest, NIC, neighbours it knows, those it should know) where they differ.

    `stay`: guests that ran before and after, with the NICs that they kept. `torn`: topologies
    between which a change was broken off; whom a NIC knows then is not certain, and its MAC is "".
    """
    for name, guest in stay.items():
        for nic in guest.nics:
            known, should = _known(before, name, nic), neighbours(after, name, nic)
            for lab in torn:
                known = dict.fromkeys([*known, *_known(lab, name, nic)], "")
            if known != should:
                yield name, nic, known, should


def _known(lab: Lab, name: str, nic: Nic) -> dict[str, str]:
    """Neighbours that a NIC was told when a lab was like that."""
    guest = lab.guest(name)
    was = guest.nic(nic.name) if guest else None
    return neighbours(lab, name, was) if was else {}


def describe(diff: Diff, wanted: Lab) -> list[str]:
    """The difference in words, a line each: + comes, - goes, ~ changes."""
    lines = [f"- guest {name}" for name in diff.remove if name not in diff.add]
    for name, why in diff.add.items():
        sign = "~" if name in diff.remove else "+"
        lines.append(f"{sign} guest {name}" + (f": started anew ({why})" if why != "new" else ""))
    for switch in diff.switches:
        if switch in wanted.switches:
            lines.append(f"~ switch {switch.name}: set up")
    for each in diff.guests.values():
        lines += _describe_guest(each)
    return lines


def _describe_guest(diff: GuestDiff) -> Iterator[str]:
    moved = {nic.name for nic in diff.plug} & {nic.name for nic in diff.unplug}
    for nic in {nic.name: nic for nic in diff.unplug}.values():
        if nic.name not in moved:
            yield f"- nic {diff.name}:{nic.name} on {nic.port or nic.segment}"
    for nic in diff.plug:
        sign, how = ("~", ", plugged anew") if nic.name in moved else ("+", "")
        yield f"{sign} nic {diff.name}:{nic.name} on {nic.port or nic.segment}{how}"
    for change in diff.change:
        yield f"~ nic {diff.name}:{change.new.name}: {', '.join(_changes(change))}"
    for nic in diff.impair:
        yield f"~ impairments of {nic.port} ({diff.name}:{nic.name}): {describe_impair(nic.impair)}"
    for note in diff.notes:
        yield f"  guest {diff.name}: {note}"


def describe_impair(impair: Impair) -> str:
    """In words: `in delay 10ms, loss 1%`."""
    sides = {"in": impair.into, "out": impair.out}
    said = [f"{side} {words}" for side, one in sides.items() if (words := _describe_direction(one))]
    return "; ".join(said) or "none"


def _describe_direction(one: Impairment | None) -> str:
    write: dict[str, Callable[[Any], str]] = {
        "delay": units.write_duration, "jitter": units.write_duration, "rate": units.write_rate,
        "limit": units.write_size, "seed": str,
    }  # fmt: skip
    said = one.model_dump(exclude_defaults=True) if one else {}
    return ", ".join(
        f"{key} {write.get(key, units.write_percent)(value)}" for key, value in said.items()
    )


def _changes(change: NicChange) -> Iterator[str]:
    old, new = change.old, change.new
    if change.anew:
        yield "set anew"
        return
    yield from (f"address {a} goes" for a in old.addresses if a not in new.addresses)
    yield from (f"address {a} comes" for a in new.addresses if a not in old.addresses)
    if old.mtu != new.mtu:
        yield f"MTU {old.mtu} becomes {new.mtu}"


def _why_start(running: Running, new: Guest, diff: GuestDiff | None) -> str:
    """Why a guest must be started; empty: it need not. `diff`: of one that runs."""
    if new.name in running.dead:
        return "it was dead"
    if diff is None:
        return "new"
    old = running.guests[new.name]
    for what in _OF_MACHINE:
        if getattr(old, what) != getattr(new, what):
            return f"{what} {getattr(old, what)} becomes {getattr(new, what)}"
    if new.name in running.unready and not diff.empty:
        return "it was not ready, and changes"
    if new.name in running.private and any(n.backend is Backend.VHOST_USER for n in diff.plug):
        return "vhost-user needs shared memory"
    slots = running.slots[new.name]
    if (diff.plug or diff.unplug) and not slots:
        return "its NICs change, and it has no slots"
    if diff.plug and len(new.nics) > slots:
        return f"{len(new.nics)} NICs, and it has {slots} slots"
    return ""


def _compare_guest(running: Running, new: Guest, moved: Set[str]) -> GuestDiff:
    tried = [guest for lab in running.tried if (guest := lab.guest(new.name))]
    return compare_guest(running.guests[new.name], new, moved, tried)


def _torn(old: Guest, tried: Guest) -> Iterator[Nic]:
    """NICs that may have been unplugged, or plugged otherwise, on the way to what was tried."""
    for nic in tried.nics:
        had = old.nic(nic.name)
        if had is None or _differ(had, nic):
            yield nic
    yield from (nic for nic in old.nics if tried.nic(nic.name) is None)


def _tried(nic: Nic, tried: Sequence[Guest]) -> list[Nic]:
    return [found for guest in tried if (found := guest.nic(nic.name))]


def _change(old: Nic, new: Nic, tried: Sequence[Guest]) -> NicChange:
    """From all that may be there, if something else than the old was tried."""
    others = [nic for nic in _tried(new, tried) if _settings(nic) != _settings(old)]
    if not others:
        return NicChange(old, new)
    maybe = {address for nic in (old, *others) for address in nic.addresses}
    left = tuple(sorted(maybe - set(new.addresses)))
    return NicChange(old.model_copy(update={"addresses": left, "mtu": 0}), new, anew=True)


def _differ(old: Nic, new: Nic) -> bool:
    return any(getattr(old, what) != getattr(new, what) for what in _OF_WIRE)


def _settings(nic: Nic) -> tuple[object, ...]:
    return nic.mtu, nic.addresses
