# SPDX-License-Identifier: BSD-2-Clause
"""How a NIC reaches its port: the whole table of choices, and what QEMU and valed are told."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from valemgr.emulator import Emulator, parse_version
from valemgr.errors import EnvironmentUnfitError, UsageError, ValeError
from valemgr.topology import Cable, Impair, Impairment, Nic
from valemgr.wiring import Place, Wire, choose, option, wire
from valemgr.words import Backend, NicModel, Provider

pytestmark = pytest.mark.unit

PLACE = Place(rundir=Path("/run/vale"), lab_dir=Path("/run/valemgr/l"))
EMULATORS = {
    "ours 7.2": Emulator(Path("/q/vale"), (7, 2), has_netmap=True),
    "stock 7.2": Emulator(Path("/q/7.2"), (7, 2), has_netmap=False),
    "stock 9.2": Emulator(Path("/q/9.2"), (9, 2), has_netmap=False),
    "stock 6.2": Emulator(Path("/q/6.2"), (6, 2), has_netmap=False),
}
OURS, STOCK72, STOCK92, STOCK62 = EMULATORS.values()
ANY, USER, KERNEL = "virtio e1000", Provider.USER, Provider.KERNEL

KERNEL_ONLY = (2, "the kernel's switch takes backend netmap only, not {}")
NO_NETMAP = (4, "lacks the netmap backend")
NO_STREAM = (4, "has no stream netdev: it comes with QEMU 7.2")
NO_VHOST = "serves virtio-net-pci only"  # a topology cannot even say so

# (provider, backend asked for): what each emulator makes of it for virtio-net-pci and for e1000.
CHOICES: dict[tuple[Provider, Backend], dict[str, tuple[Any, Any]]] = {
    (USER, Backend.AUTO): {
        "ours 7.2": (Backend.NETMAP, Backend.NETMAP),
        "stock 7.2": (Backend.VHOST_USER, Backend.STREAM),
        "stock 9.2": (Backend.VHOST_USER, Backend.STREAM),
        "stock 6.2": (Backend.VHOST_USER, NO_STREAM),
    },
    (USER, Backend.NETMAP): {
        "ours 7.2": (Backend.NETMAP, Backend.NETMAP),
        "stock 7.2": (NO_NETMAP, NO_NETMAP),
        "stock 9.2": (NO_NETMAP, NO_NETMAP),
        "stock 6.2": (NO_NETMAP, NO_NETMAP),
    },
    (USER, Backend.VHOST_USER): dict.fromkeys(EMULATORS, (Backend.VHOST_USER, NO_VHOST)),
    (USER, Backend.STREAM): {
        "ours 7.2": (Backend.STREAM, Backend.STREAM),
        "stock 7.2": (Backend.STREAM, Backend.STREAM),
        "stock 9.2": (Backend.STREAM, Backend.STREAM),
        "stock 6.2": (NO_STREAM, NO_STREAM),
    },
    (KERNEL, Backend.AUTO): {
        "ours 7.2": (Backend.NETMAP, Backend.NETMAP),
        "stock 7.2": (NO_NETMAP, NO_NETMAP),
        "stock 9.2": (NO_NETMAP, NO_NETMAP),
        "stock 6.2": (NO_NETMAP, NO_NETMAP),
    },
    (KERNEL, Backend.NETMAP): {
        "ours 7.2": (Backend.NETMAP, Backend.NETMAP),
        "stock 7.2": (NO_NETMAP, NO_NETMAP),
        "stock 9.2": (NO_NETMAP, NO_NETMAP),
        "stock 6.2": (NO_NETMAP, NO_NETMAP),
    },
    (KERNEL, Backend.VHOST_USER): dict.fromkeys(EMULATORS, (KERNEL_ONLY, NO_VHOST)),
    (KERNEL, Backend.STREAM): dict.fromkeys(EMULATORS, (KERNEL_ONLY, KERNEL_ONLY)),
}  # fmt: skip
TABLE = [
    (provider, backend, emulator, model, expected[model is not NicModel.VIRTIO])
    for (provider, backend), by_emulator in CHOICES.items()
    for emulator, expected in by_emulator.items()
    for model in NicModel
]


def nic(**more: Any) -> Nic:
    return Nic(**{"name": "eth1", "port": "vale1:a", "mac": "52:54:00:00:00:01"} | more)


def test_the_table_is_whole() -> None:
    everything = itertools.product(Provider, Backend, EMULATORS, NicModel)
    assert {row[:4] for row in TABLE} == set(everything)


@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
@pytest.mark.parametrize(("provider", "backend", "emulator", "model", "expected"), TABLE)
def test_choice(
    provider: Provider, backend: Backend, emulator: str, model: NicModel, expected: Any,
    accelerator: str,
) -> None:
    if expected is NO_VHOST:
        with pytest.raises(ValueError, match=NO_VHOST):
            nic(model=model, backend=backend)
        return
    one = nic(model=model, backend=backend)
    if isinstance(expected, Backend):
        assert choose(one, provider, EMULATORS[emulator], accelerator) is expected
        return
    code, reason = expected
    with pytest.raises(ValeError, match=reason.format(backend)) as caught:
        choose(one, provider, EMULATORS[emulator], accelerator)
    assert caught.value.exit_code == code
    assert str(caught.value).startswith("NIC eth1: ")


@pytest.mark.parametrize(
    ("emulator", "accelerator", "backend", "queues", "expected"),
    [
        (OURS, "tcg", Backend.AUTO, 8, Backend.NETMAP),
        (OURS, "tcg", Backend.VHOST_USER, 1, Backend.VHOST_USER),
        (OURS, "tcg", Backend.VHOST_USER, 2, "one queue pair only"),
        (OURS, "kvm", Backend.VHOST_USER, 2, Backend.VHOST_USER),
        (STOCK72, "tcg", Backend.AUTO, 2, "QEMU before 8.0 under TCG"),
        (STOCK72, "kvm", Backend.AUTO, 2, Backend.VHOST_USER),
        (STOCK92, "tcg", Backend.AUTO, 8, Backend.VHOST_USER),
        (STOCK62, "tcg", Backend.AUTO, 2, "one queue pair only"),
    ],
)
def test_many_queues(
    emulator: Emulator, accelerator: str, backend: Backend, queues: int, expected: Backend | str
) -> None:
    one = nic(backend=backend, queues=queues)
    if isinstance(expected, Backend):
        assert choose(one, USER, emulator, accelerator) is expected
    else:
        with pytest.raises(UsageError, match=expected):
            choose(one, USER, emulator, accelerator)


def test_the_kernel_cannot_impair() -> None:
    for impair in (Impair(into=Impairment(loss=1)), Impair(out=Impairment(delay=1))):
        with pytest.raises(UsageError, match="the kernel's switch cannot impair"):
            choose(nic(impair=impair), KERNEL, OURS, "tcg")
        assert choose(nic(impair=impair), USER, OURS, "tcg") is Backend.NETMAP


def test_a_remedy_is_one_that_helps() -> None:
    with pytest.raises(EnvironmentUnfitError, match="use backend: auto"):
        choose(nic(backend=Backend.NETMAP), USER, STOCK72, "tcg")
    for backend in (Backend.NETMAP, Backend.AUTO):
        with pytest.raises(EnvironmentUnfitError) as caught:
            choose(nic(backend=backend), KERNEL, STOCK72, "tcg")
        assert "auto" not in str(caught.value)


def wired(
    one: Nic, backend: Backend, emulator: Emulator = OURS, accelerator: str = "tcg",
    slot: int | None = 2, provider: Provider = USER,
) -> Wire:
    return wire("g", one, backend, slot, provider, emulator, accelerator, PLACE)


MAC = "mac=52:54:00:00:00:01,romfile="
GOLDEN = {
    "netmap": (
        wired(nic(), Backend.NETMAP),
        ["-netdev", "netmap,id=eth1,ifname=vale1:a,devname=/run/vale/netmap.sock",
         "-device", f"virtio-net-pci,id=eth1-nic,bus=slot2,netdev=eth1,{MAC},tx=timer"],
    ),
    "netmap, queues, kvm, no slot": (
        wired(nic(queues=4), Backend.NETMAP, accelerator="kvm", slot=None),
        ["-netdev", "netmap,id=eth1,ifname=vale1:a,devname=/run/vale/netmap.sock,queues=4",
         "-device", f"virtio-net-pci,id=eth1-nic,netdev=eth1,{MAC},mq=on,vectors=10"],
    ),
    "kernel": (
        wired(nic(model=NicModel.E1000), Backend.NETMAP, provider=KERNEL),
        ["-netdev", "netmap,id=eth1,ifname=vale1:a,devname=/dev/netmap",
         "-device", f"e1000,id=eth1-nic,bus=slot2,netdev=eth1,{MAC}"],
    ),
    "vhost-user, MSI-X crashes": (
        wired(nic(), Backend.VHOST_USER, STOCK72),
        ["-chardev", "socket,id=eth1-chr,path=/run/vale/vale1:a,reconnect=1",
         "-netdev", "vhost-user,id=eth1,chardev=eth1-chr",
         "-device", f"virtio-net-pci,id=eth1-nic,bus=slot2,netdev=eth1,{MAC},vectors=0"],
    ),
    "vhost-user, KVM": (
        wired(nic(queues=2), Backend.VHOST_USER, STOCK72, "kvm"),
        ["-chardev", "socket,id=eth1-chr,path=/run/vale/vale1:a,reconnect=1",
         "-netdev", "vhost-user,id=eth1,chardev=eth1-chr,queues=2",
         "-device", f"virtio-net-pci,id=eth1-nic,bus=slot2,netdev=eth1,{MAC},mq=on,vectors=6"],
    ),
    "vhost-user, new QEMU": (
        wired(nic(), Backend.VHOST_USER, STOCK92),
        ["-chardev", "socket,id=eth1-chr,path=/run/vale/vale1:a,reconnect-ms=200",
         "-netdev", "vhost-user,id=eth1,chardev=eth1-chr",
         "-device", f"virtio-net-pci,id=eth1-nic,bus=slot2,netdev=eth1,{MAC}"],
    ),
    "stream": (
        wired(nic(model=NicModel.RTL8139), Backend.STREAM, STOCK72),
        ["-netdev", "stream,id=eth1,server=on,addr.type=unix,addr.path=/run/valemgr/l/g.eth1",
         "-device", f"rtl8139,id=eth1-nic,bus=slot2,netdev=eth1,{MAC}"],
    ),
    "cable": (
        wired(nic(port=None, cable=Cable(name="c", listens=False)), Backend.STREAM),
        ["-netdev", "stream,id=eth1,server=off,addr.type=unix,addr.path=/run/valemgr/l/cable-c",
         "-device", f"virtio-net-pci,id=eth1-nic,bus=slot2,netdev=eth1,{MAC},tx=timer"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_argv(name: str) -> None:
    made, words = GOLDEN[name]
    assert list(made.argv()) == words


@pytest.mark.parametrize("name", GOLDEN)
def test_what_qmp_is_told_is_what_argv_says(name: str) -> None:
    """Parse the words back: the objects that netdev_add, device_add and chardev-add are given."""
    made, words = GOLDEN[name]
    said = {}
    for flag, word in zip(words[::2], words[1::2], strict=True):
        kind, *settings = word.split(",")
        said[flag] = {"": kind} | dict(setting.split("=", 1) for setting in settings)
    assert _flat(made.netdev, "type") == said["-netdev"]
    assert _flat(made.device, "driver") == said["-device"]
    if made.chardev is None:
        assert "-chardev" not in said
        return
    backend = made.chardev_backend()
    assert backend["type"] == said["-chardev"].pop("") == "socket"
    data = backend["data"]
    assert data.pop("addr") == {"type": "unix", "data": {"path": said["-chardev"].pop("path")}}
    assert data.pop("server") is False
    assert made.chardev["id"] == said["-chardev"].pop("id") == made.netdev["chardev"]
    assert {key: str(value) for key, value in data.items()} == said["-chardev"]


def _flat(words: dict[str, Any], kind: str, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in words.items():
        if isinstance(value, dict):
            found |= _flat(value, "", f"{key}.")
        else:
            text = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
            found["" if key == kind else prefix + key] = text
    return found


def test_what_valed_has_to_prepare_and_what_is_probed() -> None:
    netmap, kernel = GOLDEN["netmap"][0], GOLDEN["kernel"][0]
    assert (netmap.port_add, netmap.probe) == (None, Path("/run/vale/netmap.sock"))
    assert (kernel.port_add, kernel.probe) == (None, None)
    vhost, stream = GOLDEN["vhost-user, new QEMU"][0], GOLDEN["stream"][0]
    assert vhost.port_add == {"name": "vale1:a", "kind": "vhost-user"}
    assert vhost.probe == Path("/run/vale/vale1:a")
    path = "/run/valemgr/l/g.eth1"
    expected = {"name": "vale1:a", "kind": "stream", "path": path, "connect": True}
    assert (stream.port_add, stream.probe) == (expected, None)
    assert (GOLDEN["cable"][0].port_add, GOLDEN["cable"][0].probe) == (None, None)


def test_only_old_qemus_under_tcg_go_without_msix() -> None:
    for emulator, accelerator in itertools.product(EMULATORS.values(), ("tcg", "kvm")):
        device = wired(nic(), Backend.VHOST_USER, emulator, accelerator).device
        old = accelerator == "tcg" and emulator.version < (8, 0)
        assert (device.get("vectors") == 0) is old
        assert "tx" not in device


def test_a_socket_path_that_is_too_long_is_refused() -> None:
    deep = Place(rundir=Path("/" + "r" * 99), lab_dir=Path("/" + "l" * 102))
    for backend in (Backend.VHOST_USER, Backend.STREAM):
        with pytest.raises(UsageError, match=r"too long for a socket \(107 bytes\)"):
            wire("g", nic(), backend, 0, USER, STOCK92, "tcg", deep)


def test_commas_are_doubled_and_objects_are_dotted() -> None:
    words = {"type": "stream", "id": "a,b", "server": False, "addr": {"type": "unix", "path": ","}}
    assert option(words) == "stream,id=a,,b,server=off,addr.type=unix,addr.path=,,"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright", (7, 2)),
        ("QEMU emulator version 10.0.2", (10, 0)),
        ("busybox", None),
    ],
)
def test_versions(text: str, version: tuple[int, int] | None) -> None:
    assert parse_version(text) == version
