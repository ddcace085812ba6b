# SPDX-License-Identifier: BSD-2-Clause
"""What a topology file may say: one model for each mapping in it, key for key.

    LabFile ── defaults, groups ── guest settings, and `nic`: settings of their NICs
            ── switches
            ── guests ── nics
            ── links ── endpoints
            ── tests

All is optional here that has a default or comes from elsewhere in the file; resolve.py says what it
comes to. The JSON Schema is made of these models; the text below a field is what an editor shows.
Short forms (a text where a mapping is meant) become the long form before a model sees them.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from valemgr import units
from valemgr.errors import UsageError
from valemgr.names import check_label, checked_mac, parse_port
from valemgr.topology import NIC_NAME, canonical_switch
from valemgr.words import Backend, Engine, NicModel, Provider
from valemgr.yamlfile import Float, Int

MEMORY_MIN, MEMORY_MAX = 32, 1 << 20  # MiB
DELAY_MAX = 60  # s
DAY = 86400  # s
WAIT_MAX = 10_000  # ms
RATE_MAX = 10**12  # bit/s
LIMIT_MIN, LIMIT_MAX = 64, 1 << 30  # bytes
MTU_MIN, MTU_MAX = 68, 9000


def kebab(name: str) -> str:
    return name.strip("_").replace("_", "-")


class Entry(BaseModel):
    """A mapping of the file. Keys are kebab-case."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=kebab,
    )


def _as_text(value: Any) -> Any:
    """A number as it was written; quotes are needed for true and null only."""
    if isinstance(value, (Int, Float)):
        return value.text
    if isinstance(value, (bool, int, float)):
        raise ValueError(f"'{str(value).lower()}' is not a text: put it in quotes")
    return value


def _as_whole(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        quoted = isinstance(value, str) and value.isdigit()
        hint = ": leave out the quotes" if quoted else ""
        raise ValueError(f"'{_shown(value)}' is not a whole number{hint}")
    return int(value)


def _as_truth(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError(f"'{_shown(value)}' is neither true nor false: write true or false")
    return value


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return str(value).lower()
    return getattr(value, "text", None) or str(value)


def _quantity(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A reader of units.py on what YAML made of a value."""

    def convert(value: Any) -> Any:
        text = value.text if isinstance(value, (Int, Float)) else value
        if not isinstance(text, (str, int, float)):
            raise ValueError(f"{_shown(value)} is not a quantity")
        return read(text)

    return convert


def _checked(check: Callable[[str], Any]) -> Callable[[Any], Any]:
    """A check of names.py, whose error is pydantic's here."""

    def convert(value: Any) -> Any:
        value = _as_text(value)
        if not isinstance(value, str):
            raise ValueError("a text is meant")
        try:
            return str(check(value))
        except UsageError as exc:
            raise ValueError(str(exc)) from exc

    return convert


def _memory(value: units.Quantity) -> int:
    mib = units.size(value) / (1 << 20)
    if not MEMORY_MIN <= mib <= MEMORY_MAX:
        number = str(value).isdigit()
        hint = f": did you mean {value}M?" if number and int(value) >= MEMORY_MIN else ""
        raise ValueError(f"memory of {value} is not between {MEMORY_MIN}M and 1T{hint}")
    return units.whole(mib, value, "MiB")


def _microseconds(value: units.Quantity) -> int:
    if units.duration(value) > DELAY_MAX:
        raise ValueError(f"{value} is too long: at most {DELAY_MAX}s")
    return units.whole(units.duration(value) * 10**6, value, "µs")


def _wait_limit(value: units.Quantity) -> int:
    milliseconds = units.duration(value) * 1000
    if not 1 <= milliseconds <= WAIT_MAX:
        raise ValueError(f"{value} is not a time to wait for room: between 1ms and 10s")
    return units.whole(milliseconds, value, "ms")


def _whole_seconds(value: units.Quantity) -> int:
    if not 1 <= units.duration(value) < 1 << 31:
        raise ValueError(f"{value} is no age: at least 1s")
    return units.whole(units.duration(value), value, "seconds")


def _seconds(value: units.Quantity) -> float:
    if not 0 < units.duration(value) <= DAY:
        raise ValueError(f"{value} is no time to wait: more than 0, at most 24h")
    return float(units.duration(value))


def _percent(value: units.Quantity) -> float:
    share = float(units.percent(value))
    if share > 100:
        raise ValueError(f"{value} is more than all: at most 100%")
    return share


def _bits(value: units.Quantity) -> int:
    if units.rate(value) > RATE_MAX:
        raise ValueError(f"{value} is more than a port can: at most 1T")
    return units.whole(units.rate(value), value, "bit/s")


def _bytes(value: units.Quantity) -> int:
    if not LIMIT_MIN <= units.size(value) <= LIMIT_MAX:
        raise ValueError(f"{value} is no room for frames: between {LIMIT_MIN} and 1G")
    return units.whole(units.size(value), value, "bytes")


def _frames(value: units.Quantity) -> int | None:
    return None if value == "max" else units.whole(units.rate(value), value, "frames a second")


def _thousands(value: units.Quantity) -> float:
    """Frames a second of thousands of them."""
    return float(units.number(value) * 1000)


def _mac(text: str) -> str:
    return checked_mac(text.lower().replace("-", ":"), text)


def _interface(text: str) -> str:
    """An address with its network's prefix length, one that a host can have."""
    if "/" not in text:
        raise ValueError(f"'{text}' has no prefix length: write it as 198.18.0.1/24")
    try:
        face = ipaddress.ip_interface(text)
    except ValueError:
        raise ValueError(f"'{text}' is not an address: write it as 198.18.0.1/24") from None
    if face.version == 4 and face.network.prefixlen < 31:
        if face.ip == face.network.network_address:
            raise ValueError(f"{text} is the network's own address: use one inside it")
        if face.ip == face.network.broadcast_address:
            raise ValueError(f"{text} is the network's broadcast address: use one inside it")
    if face.is_multicast or face.is_unspecified or face.is_loopback:
        raise ValueError(f"{text} cannot be a NIC's address: it is multicast, loopback or none")
    return str(face)


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as exc:
        raise ValueError(f"'{text}' is no regular expression: {exc}") from exc
    return text


def _address_list(value: Any) -> Any:
    if value == "none":
        return []
    return [value] if isinstance(value, (str, Int, Float)) else value


def _nothing_is_empty(value: Any) -> Any:
    return {} if value is None else value


def _command(value: Any) -> Any:
    value = _as_text(value)
    return {"exec": value} if isinstance(value, str) else value


def _endpoint(value: Any) -> Any:
    """`guest:nic`, or `guest` alone for a NIC that is named by its place."""
    value = _as_text(value)
    if not isinstance(value, str):
        return value
    guest, colon, nic = value.partition(":")
    if not guest or (colon and not nic):
        raise ValueError(f"'{value}' is not an endpoint: write it as guest:nic")
    return {"guest": guest, "nic": nic} if nic else {"guest": guest}


def _schema(*kinds: str, **more: Any) -> WithJsonSchema:
    return WithJsonSchema({"type": list(kinds) if len(kinds) > 1 else kinds[0], **more})


_TEXT_OR_NUMBER = ("string", "number")
# Bounds come before these readers in an annotation, so that pydantic puts them into the schema.
TEXT = BeforeValidator(_as_text)
WHOLE = BeforeValidator(_as_whole)
Text = Annotated[str, TEXT, _schema(*_TEXT_OR_NUMBER)]
Regex = Annotated[str, AfterValidator(_regex), TEXT, _schema(*_TEXT_OR_NUMBER, format="regex")]
Line = Annotated[str, Field(min_length=1), TEXT, _schema(*_TEXT_OR_NUMBER, minLength=1)]
Truth = Annotated[bool, BeforeValidator(_as_truth)]
Duration = _schema(*_TEXT_OR_NUMBER, pattern=units.DURATION, examples=["10ms", "5us", "2s"])
Size = _schema(*_TEXT_OR_NUMBER, pattern=units.SIZE, examples=["128M", "4MiB"])
Rate = _schema(*_TEXT_OR_NUMBER, pattern=units.RATE, examples=["100M"])
Share = _schema(*_TEXT_OR_NUMBER, pattern=units.PERCENT, examples=["1%", 0.1], maximum=100)
Memory = Annotated[int, BeforeValidator(_quantity(_memory)), Size]
Microseconds = Annotated[int, BeforeValidator(_quantity(_microseconds)), Duration]
WaitLimit = Annotated[int, BeforeValidator(_quantity(_wait_limit)), Duration]
WholeSeconds = Annotated[int, BeforeValidator(_quantity(_whole_seconds)), Duration]
Seconds = Annotated[float, BeforeValidator(_quantity(_seconds)), Duration]
Percent = Annotated[float, BeforeValidator(_quantity(_percent)), Share]
BitRate = Annotated[int, BeforeValidator(_quantity(_bits)), Rate]
Bytes = Annotated[int, BeforeValidator(_quantity(_bytes)), Size]
FrameRate = Annotated[
    int | None,
    BeforeValidator(_quantity(_frames)),
    _schema(*_TEXT_OR_NUMBER, pattern=f"{units.RATE}|^max$", examples=["10k", "max"]),
]
Thousands = Annotated[float, BeforeValidator(_quantity(_thousands)), _schema("number", minimum=0)]
Mac = Annotated[
    str,
    BeforeValidator(_checked(_mac)),
    _schema("string", pattern="^([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}$"),
]
Port = Annotated[
    str, BeforeValidator(_checked(parse_port)), _schema("string", pattern="^vale[0-9a-zA-Z_:-]*$")
]
SwitchName = Annotated[
    str,
    BeforeValidator(_checked(canonical_switch)),
    _schema("string", pattern="^vale[0-9a-zA-Z_-]*$", maxLength=15),
]
Address = Annotated[
    str, BeforeValidator(_checked(_interface)), _schema("string", pattern="^[0-9a-fA-F.:]+/[0-9]+$")
]
_OneAddress = Annotated[str, _schema("string", pattern="^none$|^[0-9a-fA-F.:]+/[0-9]+$")]
Addresses = Annotated[
    tuple[Address, ...],
    BeforeValidator(_address_list, json_schema_input_type=_OneAddress | tuple[Address, ...]),
]


def _label(kind: str) -> BeforeValidator:
    return BeforeValidator(_checked(lambda text: check_label(kind, text)))


_LABEL = _schema(*_TEXT_OR_NUMBER, pattern="^[0-9a-zA-Z]([0-9a-zA-Z_-]{0,30}[0-9a-zA-Z])?$")
LabName = Annotated[str, _label("lab"), _LABEL]
GuestName = Annotated[str, _label("guest"), _LABEL]
GroupName = Annotated[str, _label("group"), _LABEL]
_MODE = r"^[0-7]{3,4}$"
Mode = Annotated[
    str, Field(pattern=_MODE), TEXT, _schema(*_TEXT_OR_NUMBER, pattern=_MODE, examples=["0644"])
]
NicName = Annotated[str, Field(pattern=NIC_NAME), TEXT]


class ImpairmentKeys(Entry):
    """What befalls frames: a bad link."""

    delay: Microseconds | None = None
    """Each frame leaves so much later."""
    jitter: Microseconds | None = None
    """The delay varies by up to so much, both ways, evenly."""
    loss: Percent | None = None
    """Share of frames that is dropped."""
    duplicate: Percent | None = None
    """Share of frames that comes twice."""
    corrupt: Percent | None = None
    """Share of frames in which one bit is flipped."""
    reorder: Percent | None = None
    """Share of frames that is not delayed while others are."""
    rate: BitRate | None = None
    """bit/s: frames leave one behind the other, each taking its time."""
    limit: Bytes | None = None
    """Memory for frames that wait (4MiB); others are dropped."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63), WHOLE] | None = None
    """The same seed and the same frames: the same fate."""

    @model_validator(mode="after")
    def _reorders_what_waits(self) -> Self:
        if self.reorder and not self.delay and not self.jitter:
            raise ValueError("reorder lets some overtake what waits: give a delay or a jitter too")
        return self


class NicImpair(ImpairmentKeys):
    """Impairments of a NIC: of each direction, or with the keys directly, of both."""

    in_: ImpairmentKeys | None = None
    """From the guest into the switch."""
    out: ImpairmentKeys | None = None
    """From the switch to the guest."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        sides = {"in_", "out"}
        if self.model_fields_set & sides and self.model_fields_set - sides:
            raise ValueError("impair has in or out beside other keys: put those into in and out")
        return self


class NicKeys(Entry):
    """Settings of a NIC that `defaults`, groups, guests and links may give too."""

    model: NicModel | None = None
    """The device that the guest sees (virtio-net-pci)."""
    backend: Backend | None = None
    """How it reaches its port (auto: what fits the model and QEMU)."""
    queues: Annotated[int, Field(ge=1, le=8), WHOLE] | None = None
    """Queue pairs of virtio-net-pci (1)."""
    mtu: Annotated[int, Field(ge=MTU_MIN, le=MTU_MAX), WHOLE] | None = None
    """Of the guest's interface, bytes (1500)."""
    impair: NicImpair | None = None
    """What befalls its frames."""


class NicEntry(NicKeys):
    """A data NIC of a guest: on a port, on a switch, or on an end of a link that names it."""

    name: NicName | None = None
    """The interface's name in the guest (vale0, vale1 … by place)."""
    port: Port | None = None
    """Its port, as vale1:a."""
    switch: SwitchName | None = None
    """Its switch: the port is named after the guest."""
    cable: GroupName | None = None
    """Back-to-back with the other NIC that names the same cable: no switch, a baseline."""
    mac: Mac | None = None
    """Its MAC address (chosen from the names of lab, guest and NIC)."""
    addresses: Addresses | None = None
    """With prefix length; none: none (chosen from 198.18.0.0/15)."""


class FileEntry(Entry):
    """A file of the host that is copied into guests."""

    from_: Text
    """Path on the host, relative to the topology file."""
    to: Annotated[str, Field(pattern=r"^/.*[^/]$"), TEXT]
    """Absolute path in the guest."""
    mode: Mode | None = None
    """Permissions, octal (0644)."""


class ConditionEntry(Entry):
    """A command that must succeed."""

    exec: Line
    """The command, run by the guest's shell."""
    expect: Regex | None = None
    """A regular expression that its output must contain."""
    status: Annotated[int, Field(ge=0, le=255), WHOLE] | None = None
    """The exit code that it must have (0)."""
    timeout: Seconds | None = None
    """Until it has ended so (60s)."""


Ready = Annotated[
    ConditionEntry, BeforeValidator(_command, json_schema_input_type=Text | ConditionEntry)
]


class GuestKeys(Entry):
    """Settings of a guest that `defaults` and groups may give too."""

    image: Text | None = None
    """Name of an image, or a path to one (micro)."""
    qemu: Text | None = None
    """Path of its emulator (ours, else the distribution's)."""
    cpus: Annotated[int, Field(ge=1, le=64), WHOLE] | None = None
    """Virtual CPUs (1)."""
    memory: Memory | None = None
    """Its memory (128M)."""
    spare: Annotated[int, Field(ge=0, le=16), WHOLE] | None = None
    """Free slots for NICs that come while it runs (4)."""
    after: tuple[Text, ...] | None = None
    """Guests that must be ready before it starts."""
    files: tuple[FileEntry, ...] = ()
    """Files copied in before its startup; added to those of its groups and of defaults."""
    startup: tuple[Line, ...] = ()
    """Commands run once when it is up; behind those of defaults and of its groups."""
    ready: tuple[Ready, ...] = ()
    """Commands that must succeed before it counts as ready; added likewise."""
    nic: NicKeys | None = None
    """Settings of its NICs that do not say otherwise."""


class GroupEntry(GuestKeys):
    """Settings that guests share; a group may be in a group."""

    group: Text | None = None
    """The group that it is in itself, whose settings it takes over."""


class GuestEntry(GroupEntry):
    """A virtual machine."""

    group: Text | None = None
    """Its group."""
    nics: tuple[NicEntry, ...] = ()
    """Its data NICs; those that only links name come behind them."""


class SwitchEntry(Entry):
    """A switch's settings; what is not said is the provider's default."""

    provider: Provider | None = None
    """user: valed; kernel: the netmap module."""
    shared: Truth = False
    """Other labs that say so too may use it."""
    p2p: Truth = False
    """Two ports; all that enters leaves at the other, without learning."""
    age: WholeSeconds | None = None
    """Stations that say nothing for so long are forgotten."""
    cap: Annotated[int, Field(ge=1, lt=1 << 31), WHOLE] | None = None
    """Stations learned on one port, at most."""
    overflow: Literal["drop", "wait"] | None = None
    """When a receiver has no room: drop the frame, or let known unicast wait."""
    wait_limit: WaitLimit | None = None
    """Drop after so long without progress (20ms)."""
    neighbours: Literal["static", "arp"] = "static"
    """static: guests know each other's addresses from the start; arp: they ask."""


class Endpoint(NicKeys):
    """One end of a link: a NIC that is made, or one that the guest declares without a port."""

    guest: Text
    """The guest."""
    nic: NicName | None = None
    """The NIC's name (vale0, vale1 … by place)."""
    mac: Mac | None = None
    """Its MAC address."""
    addresses: Addresses | None = None
    """Its addresses with prefix length; none: none."""


End = Annotated[Endpoint, BeforeValidator(_endpoint, json_schema_input_type=Text | Endpoint)]


class LinkEntry(NicKeys):
    """Two NICs alone with each other on a private switch; NIC settings hold for both."""

    endpoints: Annotated[tuple[End, ...], Field(min_length=2, max_length=2)]
    """Its two ends, as a:eth1."""
    addresses: Annotated[tuple[Addresses, ...], Field(min_length=2, max_length=2)] | None = None
    """One (or a list) for each end, with prefix length."""
    impair: ImpairmentKeys | None = None  # type: ignore[assignment]
    """What befalls frames, in each direction once."""


class UdpEntry(Entry):
    """A UDP trial."""

    from_: Text
    """Who sends: a guest (its first NIC) or guest:nic."""
    to: Text
    """Who receives: a guest (its first NIC) or guest:nic."""
    frame: Annotated[int, Field(ge=64, le=1518), WHOLE] | None = None
    """Frame size, FCS included, bytes (64)."""
    seconds: Seconds | None = None
    """Length (1s)."""
    rate: FrameRate = None
    """Frames a second offered (max)."""


class TestEntry(Entry):
    """What must hold when the lab is ready: a command (from, exec), or a trial (udp)."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["from", "exec"]}, {"required": ["udp"]}]}
    )

    name: Line
    """Its name in reports."""
    from_: Text | None = None
    """The guest that runs the command."""
    exec: Line | None = None
    """A command that must succeed."""
    expect: Regex | None = None
    """A regular expression that its output must contain."""
    status: Annotated[int, Field(ge=0, le=255), WHOLE] | None = None
    """The exit code that it must have (0)."""
    timeout: Seconds | None = None
    """Until it has ended so (60s)."""
    udp: UdpEntry | None = None
    """A UDP trial between two NICs."""
    min_kpps: Thousands | None = None
    """Received thousands of frames a second, at least."""
    max_loss: Percent | None = None
    """Lost share of frames, at most."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.exec is None) == (self.udp is None):
            raise ValueError(f"test '{self.name}' has neither or both of exec and udp: give it one")
        others = ("from_", "expect", "status", "timeout") if self.udp else ("min_kpps", "max_loss")
        for key in others:
            if key in self.model_fields_set:
                pair = f"{kebab(key)} beside {'udp' if self.udp else 'exec'}"
                raise ValueError(f"test '{self.name}' has {pair}: leave it out")
        if self.exec and not self.from_:
            raise ValueError(f"test '{self.name}' says not where: add from: and a guest")
        return self


class LabFile(Entry):
    """A topology: guests on VALE switches."""

    name: LabName | None = None
    """The lab's name (the file's, without .lab.yml)."""
    description: Text = ""
    """What it shows."""
    engine: Engine = Engine.QEMU
    """Who runs the guests: qemu, started by valemgr itself, or libvirt, as its domains."""
    provider: Provider | None = None
    """Who implements switches that do not say (user)."""
    defaults: GuestKeys = GuestKeys()
    """Settings of all guests."""
    groups: dict[GroupName, Annotated[GroupEntry, BeforeValidator(_nothing_is_empty)]] = {}
    """Settings that some guests share, by the group's name."""
    switches: dict[SwitchName, Annotated[SwitchEntry, BeforeValidator(_nothing_is_empty)]] = {}
    """Switches by name; with none declared, one exists for each that a port names."""
    guests: dict[GuestName, Annotated[GuestEntry, BeforeValidator(_nothing_is_empty)]] = {}
    """Virtual machines by name."""
    links: tuple[LinkEntry, ...] = ()
    """Pairs of NICs, each alone on a private switch."""
    tests: tuple[TestEntry, ...] = ()
    """What must hold when it runs."""
