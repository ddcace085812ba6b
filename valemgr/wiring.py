# SPDX-License-Identifier: BSD-2-Clause
"""How a NIC reaches its port: the backend is chosen, and QEMU and valed are told the same thing.

    backend      QEMU has                                     valed has
    netmap       -netdev netmap, opens the port itself        nothing to prepare
    vhost-user   -netdev vhost-user, its chardev connects     a socket at the port's name
    stream       -netdev stream, listens in the lab's folder  a port that connects to it

One description serves QEMU's command line (`option`) and QMP (as it is): a NIC that is there at
the start and one that is plugged later are the same. Pure: nothing is started or opened here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valemgr.emulator import STREAM_SINCE, Emulator
from valemgr.errors import EnvironmentUnfitError, UsageError
from valemgr.locate import remedy
from valemgr.topology import Nic
from valemgr.words import Backend, NicModel, Provider
from valemgr.xdg import socket_path

KERNEL_DEVICE = "/dev/netmap"
MSIX_SINCE = (8, 0)  # before, a QEMU under TCG crashes with vhost-user and MSI-X
DIRS = "XDG_RUNTIME_DIR (and VALE_RUNDIR, if it is set)"  # what makes a path too long
RECONNECT_MS_SINCE = (9, 2)  # before, a chardev's timer counts whole seconds


@dataclass(frozen=True, slots=True)
class Place:
    """Where sockets are: valed's directory, and the lab's."""

    rundir: Path
    lab_dir: Path


@dataclass(frozen=True, slots=True)
class Wire:
    """One NIC, as QEMU's objects and as a port of valed."""

    netdev: dict[str, Any]
    device: dict[str, Any]
    chardev: dict[str, Any] | None = None  # of vhost-user: id, path, reconnect or reconnect-ms
    port_add: dict[str, Any] | None = None  # arguments of valed's port-add
    probe: Path | None = None  # a socket that must accept before QEMU is told to connect

    def argv(self) -> tuple[str, ...]:
        """The words of QEMU's command line."""
        netdev = ("-netdev", option(self.netdev), "-device", option(self.device))
        if self.chardev is None:
            return netdev
        return ("-chardev", option({"type": "socket", **self.chardev}), *netdev)

    def chardev_backend(self) -> dict[str, Any]:
        """What QMP's chardev-add takes as `backend`."""
        settings = {k: v for k, v in (self.chardev or {}).items() if k not in ("id", "path")}
        path = (self.chardev or {})["path"]
        data = {"addr": {"type": "unix", "data": {"path": path}}, "server": False, **settings}
        return {"type": "socket", "data": data}


def choose(nic: Nic, provider: Provider, emulator: Emulator, accelerator: str) -> Backend:
    """The backend of a NIC on a port; what cannot work is refused with the reason."""
    backend = nic.backend
    if backend is Backend.AUTO:
        backend = _best(nic, provider, emulator)
    if provider is Provider.KERNEL:
        _check_kernel(nic, backend)
    if backend is Backend.NETMAP and not emulator.has_netmap:
        instead = "backend: auto" if provider is Provider.USER else "provider: user"
        raise EnvironmentUnfitError(
            f"NIC {nic.name}: {emulator.path} lacks the netmap backend: {remedy('vale-qemu')}, "
            f"or use {instead}"
        )
    if backend is Backend.STREAM and emulator.version < STREAM_SINCE:
        raise EnvironmentUnfitError(
            f"NIC {nic.name}: {emulator.path} has no stream netdev: it comes with QEMU 7.2"
        )
    if backend is Backend.STREAM and nic.queues > 1:
        raise UsageError(f"NIC {nic.name}: a stream socket has one queue: use queues: 1")
    if backend is Backend.VHOST_USER and nic.queues > 1 and lacks_msix(emulator, accelerator):
        raise UsageError(
            f"NIC {nic.name}: QEMU before 8.0 under TCG has vhost-user with one queue pair only: "
            "use queues: 1, or backend: netmap"
        )
    return backend


def wire(
    guest: str,
    nic: Nic,
    backend: Backend,
    slot: int | None,
    provider: Provider,
    emulator: Emulator,
    accelerator: str,
    place: Place,
) -> Wire:
    """Describe a NIC; `slot` is its root port, None: directly on the root bus."""
    made = _cable(nic, place)
    if made is None and backend is Backend.NETMAP:
        made = _netmap(nic, provider, place)
    if made is None and backend is Backend.VHOST_USER:
        made = _vhost_user(nic, emulator, place)
    netdev, chardev, port_add, probe = made or _stream(guest, nic, place)
    device: dict[str, Any] = {"driver": str(nic.model), "id": f"{nic.name}-nic"}
    if slot is not None:
        device["bus"] = f"slot{slot}"
    device |= {"netdev": nic.name, "mac": nic.mac, "romfile": ""}
    if nic.model is NicModel.VIRTIO:
        device |= _virtio(nic, backend, emulator, accelerator)
    return Wire(netdev, device, chardev, port_add, probe)


def option(words: Mapping[str, Any], prefix: str = "") -> str:
    """`{"type": "netmap", "id": "n", …}` as `netmap,id=n,…`; commas in values are doubled."""
    parts = []
    for key, value in words.items():
        if isinstance(value, Mapping):
            parts.append(option(value, f"{prefix}{key}."))
        elif key in ("type", "driver") and not prefix:
            parts.append(str(value))
        else:
            text = ("off", "on")[value] if isinstance(value, bool) else str(value)
            parts.append(f"{prefix}{key}={text.replace(',', ',,')}")
    return ",".join(parts)


def _best(nic: Nic, provider: Provider, emulator: Emulator) -> Backend:
    if provider is Provider.KERNEL or emulator.has_netmap:
        return Backend.NETMAP
    return Backend.VHOST_USER if nic.model is NicModel.VIRTIO else Backend.STREAM


def _check_kernel(nic: Nic, backend: Backend) -> None:
    if backend is not Backend.NETMAP:
        raise UsageError(
            f"NIC {nic.name}: the kernel's switch takes backend netmap only, not {backend}"
        )
    if nic.impair.into or nic.impair.out:
        raise UsageError(f"NIC {nic.name}: the kernel's switch cannot impair: use provider: user")


def lacks_msix(emulator: Emulator, accelerator: str) -> bool:
    """Whether vhost-user must do without MSI-X."""
    return accelerator == "tcg" and emulator.version < MSIX_SINCE


_Parts = tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None, Path | None]


def _cable(nic: Nic, place: Place) -> _Parts | None:
    if nic.cable is None:
        return None
    path = str(place.lab_dir / f"cable-{nic.cable.name}")
    netdev = {"type": "stream", "id": nic.name, "server": nic.cable.listens}
    return {**netdev, "addr": {"type": "unix", "path": path}}, None, None, None


def _netmap(nic: Nic, provider: Provider, place: Place) -> _Parts:
    kernel = provider is Provider.KERNEL
    device = Path(KERNEL_DEVICE) if kernel else place.rundir / "netmap.sock"
    netdev: dict[str, Any] = {"type": "netmap", "id": nic.name}
    netdev |= {"ifname": nic.port, "devname": str(device)}
    if nic.queues > 1:
        netdev["queues"] = nic.queues
    return netdev, None, None, None if kernel else device


def _vhost_user(nic: Nic, emulator: Emulator, place: Place) -> _Parts:
    path = socket_path(place.rundir / str(nic.port), DIRS)
    again = {"reconnect-ms": 200} if emulator.version >= RECONNECT_MS_SINCE else {"reconnect": 1}
    chardev = {"id": f"{nic.name}-chr", "path": str(path), **again}
    netdev: dict[str, Any] = {"type": "vhost-user", "id": nic.name, "chardev": chardev["id"]}
    if nic.queues > 1:
        netdev["queues"] = nic.queues
    return netdev, chardev, {"name": nic.port, "kind": "vhost-user"}, path


def _stream(guest: str, nic: Nic, place: Place) -> _Parts:
    """QEMU listens: so it needs no timer of its own when valed comes back (7.2 has none)."""
    path = str(socket_path(place.lab_dir / f"{guest}.{nic.name}", DIRS))
    address = {"type": "unix", "path": path}
    netdev = {"type": "stream", "id": nic.name, "server": True, "addr": address}
    port_add = {"name": nic.port, "kind": "stream", "path": path, "connect": True}
    return netdev, None, port_add, None


def _virtio(nic: Nic, backend: Backend, emulator: Emulator, accelerator: str) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if nic.queues > 1:
        more |= {"mq": True, "vectors": 2 * nic.queues + 2}
    if backend is Backend.VHOST_USER:
        return more | ({"vectors": 0} if lacks_msix(emulator, accelerator) else {})
    if accelerator == "tcg":
        # Each transmit interrupt and doorbell is dear under emulation: let frames gather.
        more["tx"] = "timer"
    return more
