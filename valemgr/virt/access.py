# SPDX-License-Identifier: BSD-2-Clause
"""A QEMU that is another user's, as the system's libvirt has it, and the files of a lab.

It may enter the lab's directory, and has one file there: the guest's identity. Images stay whose
they are (libvirt is told to change no owners), so it must be able to read them, and to connect to
valed. What keeps it out is said before anything is started.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from valemgr.errors import EnvironmentUnfitError
from valemgr.plan import GuestPlan, PlannedNic
from valemgr.virt import ports
from valemgr.wiring import Wire

ENTER, READ = 1, 4  # bits of a mode

User = tuple[int, int]  # uid and gid


def check(plan: GuestPlan) -> None:
    """Refuse a guest whose QEMU could not get to what is there already."""
    user = _user(plan)
    if user is None or plan.host is None:
        return
    for planned, wire in zip(plan.nics, plan.wires, strict=True):
        if wire.netdev["type"] == "stream":
            raise EnvironmentUnfitError(
                f"guest {plan.name}: NIC {planned.nic.name}: libvirt's QEMU is user {user[0]}, who "
                "may not make sockets in the lab's directory: use vhost-user or netmap"
            )
    image, emulator = plan.host.images[plan.spec.image], plan.host.emulators[plan.spec.qemu]
    for path in (plan.files.identity.parent.parent, emulator.path, *image.files):
        _check_way(plan, path, user)
    for path in image.files:
        if not _may(path, user, READ):
            raise EnvironmentUnfitError(
                f"guest {plan.name}: libvirt's QEMU is user {user[0]}, who may not read {path}: "
                f"'chmod o+r {path}'"
            )


def check_ports(plan: GuestPlan, nics: Iterable[tuple[PlannedNic, Wire]]) -> None:
    """Refuse NICs whose sockets at valed QEMU may not connect to; valed listens there."""
    user = _user(plan)
    if user is None:
        return
    for planned, wire in nics:
        groups = ports.groups_of(*user)
        stop = wire.probe and ports.first_refusal(wire.probe, user[0], groups)
        if stop and wire.probe:
            rundir, group = wire.probe.parent, ports.group_for(user)
            raise EnvironmentUnfitError(
                f"guest {plan.name}: NIC {planned.nic.name}: libvirt's QEMU is user {user[0]}, who "
                f"is kept out of {wire.probe} by {stop}: start valed by 'valed --rundir {rundir} "
                f"--group {group}', in a directory that this user may enter"
            )


def hand_over(plan: GuestPlan) -> None:
    """Let QEMU's user have the guest's identity, and nothing else of the lab."""
    user = _user(plan)
    if user is None:
        return
    identity = plan.files.seed if plan.has_seed else plan.files.identity
    for folder in (identity.parent.parent, identity.parent):
        folder.chmod(0o711)
    identity.chmod(0o400)
    os.chown(identity, *user)


def uid(plan: GuestPlan) -> int:
    """Whose QEMU is."""
    user = _user(plan)
    return user[0] if user else os.geteuid()


def _user(plan: GuestPlan) -> User | None:
    """Who QEMU is, if another."""
    user = plan.host.libvirt.user if plan.host and plan.host.libvirt else None
    return user if user and user[0] != os.geteuid() else None


def _check_way(plan: GuestPlan, path: Path, user: User) -> None:
    for folder in reversed(path.resolve().parents):
        if not _may(folder, user, ENTER):
            raise EnvironmentUnfitError(
                f"guest {plan.name}: libvirt's QEMU is user {user[0]}, who may not enter {folder}, "
                f"so it cannot open {path}: 'chmod o+x {folder}', or have it elsewhere"
            )


def _may(path: Path, user: User, bit: int) -> bool:
    return ports.may(path, user[0], ports.groups_of(*user), bit)
