# SPDX-License-Identifier: BSD-2-Clause
"""What a user asks for, fully said: frozen models of a lab, checked on construction.

    Lab ── switches     named, with their settings
        ── guests ── nics ── each on a port of a switch, or on one end of a cable
        ── links        two NICs alone on a private switch of kind p2p
        ── tests        what must hold when it runs

A topology file says less (labfile.py fills in defaults, groups, links and addresses); a state file
holds just this. A cable joins two NICs back-to-back by QEMU's own `stream` netdev, without a
switch: the baseline that a switch is measured against.

Units: µs for times that the switch keeps, seconds elsewhere; percent; bit/s; bytes; MiB.
"""

import hashlib
import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from valemgr.names import check_label, checked_mac, parse_port, parse_switch
from valemgr.words import Backend, Engine, NicModel, Provider

NIC_NAME = r"^[a-zA-Z][a-zA-Z0-9_-]{0,14}$"  # of a Linux interface, and of a QEMU object
MGMT = "mgmt"
LINK_PREFIX = "valeL"
IPV6_MTU = 1280
# Of valed, for settings that are not said any more (valed/fdb.h, docs/qmp.md).
SWITCH_DEFAULTS: dict[str, bool | int | str] = {
    "p2p": False, "age": 300, "cap": 1024, "overflow": "drop", "wait-limit": 20,
}  # fmt: skip
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"


def _canonical_port(text: str) -> str:
    return str(parse_port(text))


def canonical_switch(text: str) -> str:
    """A switch's canonical name; `vale` alone is where ports without a colon are."""
    return text if text == "vale" else parse_switch(text)


def _interface(text: str) -> str:
    return str(ipaddress.ip_interface(text))


def _lower_mac(text: str) -> str:
    return checked_mac(text.lower(), text)


PortField = Annotated[str, AfterValidator(_canonical_port)]
SwitchField = Annotated[str, AfterValidator(canonical_switch)]
AddressField = Annotated[str, AfterValidator(_interface)]
MacField = Annotated[str, AfterValidator(_lower_mac)]
Percent = Annotated[float, Field(ge=0, le=100)]


class Model(BaseModel):
    """Frozen, and strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Impairment(Model):
    """What befalls the frames of one direction; as port-set takes it (docs/qmp.md)."""

    delay: Annotated[int, Field(ge=0, le=60_000_000)] = 0  # µs
    jitter: Annotated[int, Field(ge=0, le=60_000_000)] = 0  # µs
    loss: Percent = 0
    duplicate: Percent = 0
    corrupt: Percent = 0
    reorder: Percent = 0
    rate: Annotated[int, Field(ge=0)] = 0  # bit/s; 0: as fast as it goes
    limit: Annotated[int, Field(ge=0)] = 0  # bytes; 0: the switch's default
    seed: int | None = None

    def settings(self) -> dict[str, int | float] | None:
        """What port-set takes; zeros are said, since it keeps what is not named."""
        if self == Impairment(seed=self.seed):
            return None
        said = self.model_dump(exclude={"limit", "seed"})
        more = {"limit": self.limit or None, "seed": self.seed}
        return said | {key: value for key, value in more.items() if value is not None}


class Impair(Model):
    """A port's impairments: `into` the switch from the guest, and `out` of it to the guest."""

    into: Impairment | None = None
    out: Impairment | None = None


class Cable(Model):
    """One end of a back-to-back connection; exactly two NICs of a lab name the same cable."""

    name: str
    listens: bool


class Nic(Model):
    """A data NIC; `name` is that of the guest's interface."""

    name: Annotated[str, Field(pattern=NIC_NAME)]
    port: PortField | None = None
    cable: Cable | None = None
    backend: Backend = Backend.AUTO
    model: NicModel = NicModel.VIRTIO
    queues: Annotated[int, Field(ge=1, le=8)] = 1
    mac: MacField | None = None
    mtu: Annotated[int, Field(ge=68, le=9000)] = 1500
    addresses: tuple[AddressField, ...] = ()
    impair: Impair = Impair()

    @model_validator(mode="after")
    def _meaningful(self) -> Self:
        if (self.port is None) == (self.cable is None):
            raise ValueError("a NIC is on a port or on a cable, exactly one of them")
        if self.name in (MGMT, "lo"):
            raise ValueError(f"'{self.name}' is the name of an interface that every guest has")
        if self.model is not NicModel.VIRTIO and self.queues > 1:
            raise ValueError(f"{self.model} has one queue: use virtio-net-pci, or queues: 1")
        if self.model is not NicModel.VIRTIO and self.backend is Backend.VHOST_USER:
            raise ValueError(
                f"vhost-user serves virtio-net-pci only, not {self.model}: use netmap or stream"
            )
        if self.backend is Backend.STREAM and self.queues > 1:
            raise ValueError("a stream socket has one queue: use netmap or vhost-user")
        if self.mtu < IPV6_MTU and any(":" in address for address in self.addresses):
            raise ValueError(f"NIC {self.name}: IPv6 needs an MTU of at least {IPV6_MTU}")
        return self

    @property
    def switch(self) -> str:
        """The name of its switch; empty for a cable."""
        return self.port.partition(":")[0] if self.port else ""

    @property
    def segment(self) -> str:
        """Who shares it hears each other."""
        return f"cable {self.cable.name}" if self.cable else f"switch {self.switch}"


class File(Model):
    """A file of the host (absolute path) that is copied into a guest before its startup."""

    source: str
    target: Annotated[str, Field(pattern=r"^/.*[^/]$")]
    mode: Annotated[str, Field(pattern=r"^[0-7]{3,4}$")] = "0644"


class Condition(Model):
    """A command that must end so in a guest, and perhaps say something (a regular expression)."""

    exec: Annotated[str, Field(min_length=1)]
    expect: str = ""
    status: Annotated[int, Field(ge=0, le=255)] = 0  # exit code
    timeout: Annotated[float, Field(gt=0, le=86400)] = 60.0

    @model_validator(mode="after")
    def _expectation_compiles(self) -> Self:
        try:
            re.compile(self.expect)
        except re.error as exc:
            raise ValueError(f"expect: '{self.expect}' is no regular expression: {exc}") from exc
        return self


class Guest(Model):
    """A virtual machine."""

    name: str
    group: str = ""
    image: str = "micro"
    qemu: str = ""  # its emulator; empty: ours, else the distribution's
    cpus: Annotated[int, Field(ge=1, le=64)] = 1
    memory_mib: Annotated[int, Field(ge=32)] = 128
    spare: Annotated[int, Field(ge=0, le=16)] = 4  # free slots for NICs that come later
    nics: tuple[Nic, ...] = ()
    files: tuple[File, ...] = ()
    startup: tuple[str, ...] = ()
    ready: tuple[Condition, ...] = ()
    after: tuple[str, ...] = ()  # guests that must be ready before this one starts

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_label("guest", self.name)
        _no_twins(f"guest {self.name}: NIC", [nic.name for nic in self.nics])
        return self

    def nic(self, name: str) -> Nic | None:
        """The NIC of that name."""
        return next((nic for nic in self.nics if nic.name == name), None)


class Switch(Model):
    """A switch's settings; as switch-set takes them (docs/qmp.md)."""

    name: SwitchField
    provider: Provider = Provider.USER
    shared: bool = False  # with other labs that say so too
    p2p: bool = False
    age: Annotated[int, Field(ge=1)] | None = None  # s
    cap: Annotated[int, Field(ge=1)] | None = None  # stations of one port
    overflow: Literal["drop", "wait"] | None = None
    wait_limit: Annotated[int, Field(ge=1, le=10_000)] | None = None  # ms
    neighbours: Literal["static", "arp"] = "static"

    @model_validator(mode="after")
    def _kernel_has_no_settings(self) -> Self:
        settings = (self.p2p, self.age, self.cap, self.overflow, self.wait_limit)
        if self.provider is Provider.KERNEL and any(settings):
            raise ValueError(f"switch {self.name}: the kernel's switch has no settings")
        return self

    def settings(self) -> dict[str, bool | int | str]:
        """What switch-set is given; nothing for a switch as it comes."""
        said: dict[str, bool | int | str] = {"p2p": True} if self.p2p else {}
        values = {key: getattr(self, key) for key in ("age", "cap", "overflow", "wait_limit")}
        return said | {k.replace("_", "-"): v for k, v in values.items() if v is not None}

    def settings_after(self, before: Iterable["Switch"]) -> dict[str, bool | int | str]:
        """What switch-set is given where other settings may be in force."""
        settings = self.settings()
        reset = {k: SWITCH_DEFAULTS[k] for old in before for k in old.settings()}
        if reset and not settings and not self.shared:
            reset["keep"] = False
        return reset | settings


class Link(Model):
    """Two NICs, each as `guest:nic`, alone on a private switch."""

    ends: tuple[str, str]
    switch: SwitchField


class UdpTest(Model):
    """One UDP trial, from a guest to the NIC of another, both as `guest:nic`."""

    sender: str
    receiver: str
    frame: Annotated[int, Field(ge=64, le=1518)] = 64
    seconds: Annotated[float, Field(gt=0, le=3600)] = 1.0
    rate: Annotated[int, Field(ge=1)] | None = None  # frames a second offered
    min_pps: float = 0
    max_loss: Percent = 100


class Test(Model):
    """What must hold when the lab is ready: a command in a guest, or a UDP trial."""

    name: str
    guest: str = ""
    condition: Condition | None = None
    udp: UdpTest | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.condition is None) == (self.udp is None):
            raise ValueError(f"test '{self.name}': a command (exec) or a trial (udp), one of them")
        return self


class Lab(Model):
    """A topology that can run."""

    name: str
    description: str = ""
    engine: Engine = Engine.QEMU
    switches: tuple[Switch, ...] = ()
    guests: tuple[Guest, ...] = ()
    links: tuple[Link, ...] = ()
    tests: tuple[Test, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_label("lab", self.name)
        _no_twins("guest", [guest.name for guest in self.guests])
        _no_twins("switch", [switch.name for switch in self.switches])
        nics = [nic for _, nic in self.nics()]
        _no_twins("port", [nic.port for nic in nics if nic.port])
        _no_twins("MAC", [nic.mac for nic in nics if nic.mac])
        _check_cables([nic.cable for nic in nics if nic.cable])
        _check_addresses(self)
        _check_references(self)
        start_order(self.guests)
        return self

    def nics(self) -> Iterator[tuple[Guest, Nic]]:
        """Every data NIC with its guest."""
        return ((guest, nic) for guest in self.guests for nic in guest.nics)

    def guest(self, name: str) -> Guest | None:
        """The guest of that name."""
        return next((guest for guest in self.guests if guest.name == name), None)

    @property
    def ports(self) -> tuple[str, ...]:
        """Every switch port of the lab."""
        return tuple(nic.port for _, nic in self.nics() if nic.port)

    def switch(self, name: str) -> Switch:
        """The switch of that name, as declared; else as it comes."""
        declared = (switch for switch in self.switches if switch.name == name)
        return next(declared, None) or Switch(name=name)

    def all_switches(self) -> dict[str, Switch]:
        """Every switch by name: those declared, and those that ports are on."""
        found = {switch.name: switch for switch in self.switches}
        for _, nic in self.nics():
            if nic.switch and nic.switch not in found:
                found[nic.switch] = Switch(name=nic.switch)
        return dict(sorted(found.items()))


def link_switch(lab: str, ends: Iterable[str]) -> str:
    """The generated name of a link's private switch: `valeL` and base 36 of its ends."""
    digest = hashlib.sha256(f"{lab}/{'/'.join(ends)}".encode()).digest()
    number, text = int.from_bytes(digest[:6], "big"), ""
    while len(text) < 7:
        number, digit = divmod(number, 36)
        text += _BASE36[digit]
    return LINK_PREFIX + text


def start_order(guests: Iterable[Guest]) -> list[str]:
    """Guests' names, each behind those it is to start after; ValueError for a circle.

    Who connects to a cable starts after who listens.
    """
    known = list(guests)
    waiting = {guest.name: set(guest.after) | listeners(known, guest) for guest in known}
    order: list[str] = []
    while waiting:
        free = [name for name, after in waiting.items() if not after & waiting.keys()]
        if not free:
            raise ValueError(f"guests wait for each other: {' → '.join(_circle(waiting))}")
        order += free
        waiting = {name: after for name, after in waiting.items() if name not in free}
    return order


def listeners(guests: Iterable[Guest], guest: Guest) -> set[str]:
    """Guests that must listen on a cable before this one connects to it."""
    cables = {nic.cable.name for nic in guest.nics if nic.cable and not nic.cable.listens}
    return {
        other.name
        for other in guests
        for nic in other.nics
        if nic.cable and nic.cable.listens and nic.cable.name in cables
    }


def pair_lab(
    switch: str,
    model: NicModel = NicModel.VIRTIO,
    image: str = "micro",
    backend: Backend = Backend.AUTO,
    baseline: bool = False,
    engine: Engine = Engine.QEMU,
) -> Lab:
    """Two guests, `a` and `b`, on one switch; with a baseline also cabled back-to-back."""
    return Lab(
        name=switch,
        engine=engine,
        guests=tuple(
            Guest(
                name=name,
                image=image,
                spare=0,
                nics=_pair_nics(switch, host, model, backend, baseline),
            )
            for host, name in enumerate(("a", "b"), start=1)
        ),
    )


def _pair_nics(
    switch: str, host: int, model: NicModel, backend: Backend, baseline: bool
) -> tuple[Nic, ...]:
    port = f"{switch}:{'ab'[host - 1]}"
    address = f"198.18.0.{host}/24"
    nic = Nic(name="vale0", port=port, model=model, backend=backend, addresses=(address,))
    if not baseline:
        return (nic,)
    cable = Cable(name="baseline", listens=host == 1)
    return (nic, Nic(name="vale1", cable=cable, model=model, addresses=(f"198.19.0.{host}/24",)))


def _no_twins(kind: str, values: list[str]) -> None:
    for value, times in Counter(values).items():
        if times > 1:
            raise ValueError(f"{kind} '{value}' is used twice")


def _check_cables(ends: list[Cable]) -> None:
    for name in {end.name for end in ends}:
        if sorted(end.listens for end in ends if end.name == name) != [False, True]:
            raise ValueError(f"cable '{name}' needs one end that listens and one that connects")


def _check_addresses(lab: Lab) -> None:
    """An address once on a segment, and once in a guest."""
    seen: dict[tuple[str, str], str] = {}
    for guest, nic in lab.nics():
        who = f"{guest.name}:{nic.name}"
        for address in nic.addresses:
            host = str(ipaddress.ip_interface(address).ip)
            for place in (nic.segment, f"guest {guest.name}"):
                if other := seen.get((place, host)):
                    raise ValueError(f"address {host} of {who} is that of {other} on {place}")
                seen[place, host] = who


def _check_references(lab: Lab) -> None:
    names = {guest.name for guest in lab.guests}
    nics = {f"{guest.name}:{nic.name}" for guest, nic in lab.nics()}
    for guest in lab.guests:
        for other in guest.after:
            if other not in names:
                raise ValueError(f"guest {guest.name} starts after '{other}', which is no guest")
    for link in lab.links:
        for end in link.ends:
            if end not in nics:
                raise ValueError(f"link end '{end}' is no NIC of a guest")
    for test in lab.tests:
        if test.condition and test.guest not in names:
            raise ValueError(f"test '{test.name}': '{test.guest}' is no guest")
        for end in (test.udp.sender, test.udp.receiver) if test.udp else ():
            if end not in nics:
                raise ValueError(f"test '{test.name}': '{end}' is no NIC of a guest")


def _circle(waiting: dict[str, set[str]]) -> list[str]:
    """Names along a circle, the first repeated at the end."""
    path = [next(iter(waiting))]
    while path[-1] not in path[:-1]:
        path.append(min(waiting[path[-1]] & waiting.keys()))
    return path[path.index(path[-1]) :]
