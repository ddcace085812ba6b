# SPDX-License-Identifier: BSD-2-Clause
"""Which guest is meant: GUEST where that is clear, LAB/GUEST always. Dead ones are found, too."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from valemgr import proc
from valemgr.errors import LabError, UsageError
from valemgr.ssh import SshTarget
from valemgr.state import LAUNCHED, GuestState, LabDir, LabState, all_labs


@dataclass(frozen=True, slots=True)
class FoundGuest:
    """A guest of a lab that was started and not yet ended."""

    name: str
    lab_dir: LabDir
    state: LabState
    entry: GuestState

    @property
    def alive(self) -> bool:
        return self.state.of_this_boot and proc.is_alive(self.entry.ident)

    @property
    def booting(self) -> bool:
        """Whether a valemgr waits for it just now."""
        return self.entry.stage == LAUNCHED and self.lab_dir.locked

    @property
    def ssh(self) -> SshTarget:
        """Where its sshd is; QEMU chooses the port when it starts."""
        if not self.entry.ssh_port:
            lab = self.lab_dir.lab
            raise LabError(f"guest {self.name} is just being started: 'valemgr wait {lab}'")
        key_file, listens = self.lab_dir.key_file, self.entry.stage != LAUNCHED
        return SshTarget(self.name, self.entry.ssh_port, self.entry.host_key, key_file, listens)

    def openssh(self) -> str:
        """The line by which OpenSSH reaches it."""
        to, known = self.ssh, self.file("known_hosts")
        self.lab_dir.write_file(known, f"[127.0.0.1]:{to.port} {to.host_key}\n")
        options = {
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": known,
            "HostKeyAlgorithms": to.host_key.split()[0],
        }
        words = ["ssh", "-F", "none", "-i", to.key_file, "-p", to.port]
        words += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return shlex.join(map(str, [*words, "root@127.0.0.1"]))

    def file(self, kind: str) -> Path:
        """One of its files: ctl, console, console.log, qemu.log."""
        return self.lab_dir.guest_file(self.name, kind)

    def require_alive(self) -> None:
        """Refuse a dead one, with the remedy."""
        if not self.alive:
            lab = self.lab_dir.lab
            raise LabError(f"guest {self.name} of lab {lab} is dead: 'valemgr down {lab}'")


def find(guest: str, lab: str | None = None) -> FoundGuest:
    """The guest of that name; its lab is needed only if several have one."""
    prefix, slash, name = guest.rpartition("/")
    if slash and lab not in (None, prefix):
        raise UsageError(f"guest {guest} is not in lab {lab}: name the lab once")
    lab = prefix if slash else lab
    found = []
    for lab_dir in [LabDir(lab)] if lab else all_labs():
        state = lab_dir.read()
        if state and name in state.guests:
            found.append(FoundGuest(name, lab_dir, state, state.guests[name]))
    if not found:
        where = f"in lab {lab}" if lab else "in any lab"
        raise LabError(f"no guest {name} {where}: 'valemgr status' shows what runs")
    if len(found) > 1:
        labs = ", ".join(one.lab_dir.lab for one in found)
        raise UsageError(f"guest {name} is in several labs ({labs}): add --lab")
    return found[0]


def find_alive(guest: str, lab: str | None = None) -> FoundGuest:
    """The same, of those that run."""
    found = find(guest, lab)
    found.require_alive()
    return found
