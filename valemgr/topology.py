# SPDX-License-Identifier: BSD-2-Clause
"""What a user asks for: frozen models of a lab, checked on construction.

    Lab ── guests ── nics ── each on a port of a switch, or on one end of a cable

A cable joins two NICs back-to-back by QEMU's own `stream` netdev, without a switch: the baseline
that a switch is measured against.
"""

import ipaddress
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from valemgr.names import check_label, parse_port


class NicModel(StrEnum):
    """NIC models that the micro image has drivers for."""

    VIRTIO = "virtio-net-pci"
    E1000 = "e1000"
    E1000E = "e1000e"


class Backend(StrEnum):
    """How a guest's NIC reaches its port."""

    NETMAP = "netmap"


def _canonical_port(text: str) -> str:
    return str(parse_port(text))


def _interface(text: str) -> str:
    return str(ipaddress.ip_interface(text))


PortField = Annotated[str, AfterValidator(_canonical_port)]
AddressField = Annotated[str, AfterValidator(_interface)]
MacField = Annotated[str, Field(pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$")]


class Model(BaseModel):
    """Frozen, and strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Cable(Model):
    """One end of a back-to-back connection; exactly two NICs of a lab name the same cable."""

    name: str
    listens: bool


class Nic(Model):
    """A data NIC."""

    port: PortField | None = None
    cable: Cable | None = None
    backend: Backend = Backend.NETMAP
    model: NicModel = NicModel.VIRTIO
    mac: MacField | None = None
    mtu: Annotated[int, Field(ge=68, le=65521)] = 1500
    addresses: tuple[AddressField, ...] = ()

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if (self.port is None) == (self.cable is None):
            raise ValueError("a NIC is on a port or on a cable, exactly one of them")
        return self


class Guest(Model):
    """A virtual machine."""

    name: str
    image: str = "micro"
    cpus: Annotated[int, Field(ge=1, le=64)] = 1
    memory_mib: Annotated[int, Field(ge=32)] = 128
    nics: tuple[Nic, ...] = ()

    @model_validator(mode="after")
    def _name_is_a_label(self) -> Self:
        check_label("guest", self.name)
        return self


class Lab(Model):
    """A topology that can run."""

    name: str
    guests: tuple[Guest, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_label("lab", self.name)
        _no_twins("guest", [guest.name for guest in self.guests])
        nics = [nic for guest in self.guests for nic in guest.nics]
        _no_twins("port", [nic.port for nic in nics if nic.port])
        _no_twins("MAC", [nic.mac for nic in nics if nic.mac])
        ends = [nic.cable for nic in nics if nic.cable]
        for name in {end.name for end in ends}:
            if sorted(end.listens for end in ends if end.name == name) != [False, True]:
                raise ValueError(f"cable '{name}' needs one end that listens and one that connects")
        return self

    @property
    def ports(self) -> tuple[str, ...]:
        """Every switch port of the lab."""
        return tuple(nic.port for guest in self.guests for nic in guest.nics if nic.port)

    @property
    def switches(self) -> tuple[str, ...]:
        """The names of the switches that the ports are on."""
        return tuple(sorted({port.partition(":")[0] for port in self.ports}))


def pair_lab(
    switch: str,
    model: NicModel = NicModel.VIRTIO,
    image: str = "micro",
    backend: Backend = Backend.NETMAP,
    baseline: bool = False,
) -> Lab:
    """Two guests, `a` and `b`, on one switch; with a baseline also cabled back-to-back."""
    return Lab(
        name=switch,
        guests=tuple(
            Guest(name=name, image=image, nics=_pair_nics(switch, host, model, backend, baseline))
            for host, name in enumerate(("a", "b"), start=1)
        ),
    )


def _pair_nics(
    switch: str, host: int, model: NicModel, backend: Backend, baseline: bool
) -> tuple[Nic, ...]:
    port = f"{switch}:{'ab'[host - 1]}"
    nic = Nic(port=port, model=model, backend=backend, addresses=(f"198.18.0.{host}/24",))
    if not baseline:
        return (nic,)
    cable = Cable(name="baseline", listens=host == 1)
    return (nic, Nic(cable=cable, model=model, addresses=(f"198.19.0.{host}/24",)))


def _no_twins(kind: str, values: list[str]) -> None:
    for value in sorted(set(values)):
        if values.count(value) > 1:
            raise ValueError(f"{kind} '{value}' is used twice")
