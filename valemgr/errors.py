# SPDX-License-Identifier: BSD-2-Clause
"""Every error that a person can meet, in one tree, named by meaning.

    ValeError                    1  base; never raised itself
    ├── UsageError               2  an option, a name or a topology that cannot be meant
    │   └── TopologyError        2  a topology file that is wrong: every mistake with its place
    ├── EnvironmentUnfitError    4  this machine lacks something; says the remedy
    ├── WaitTimeoutError         5  something did not become ready in time
    ├── LabError                 1  a lab is busy, exists already, or does not exist
    ├── SwitchError              1  the switch refuses, is full, or went away
    ├── GuestError               1  a guest failed
    │   ├── LaunchError          1  its process did not start or died: argv, exit code, console
    │   └── SshError             1  it cannot be reached, or refuses us
    ├── TrialError               1  a test program in a guest failed
    ├── LibvirtError             1  libvirt refuses, or went away
    │   └── NoDomainError        1  it has no such domain
    ├── StoreError               1  the result store cannot be written or read
    └── InterruptedRunError    130  Ctrl-C or SIGTERM

`str(error)` is one line: what is wrong, where, what to do. `detail` holds further lines (the end
of a console), printed below it. Exit code 3 (a threshold failed) is an outcome, not an error.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from valemgr.findings import Finding


class ValeError(Exception):
    """Base of the tree: carries an exit code and, optionally, lines of detail."""

    exit_code = 1

    def __init__(self, message: str, detail: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.detail = tuple(detail)


class UsageError(ValeError):
    """What was asked for cannot be meant."""

    exit_code = 2


class TopologyError(UsageError):
    """A topology file is wrong: all that was found, in the file's order; at least one."""

    def __init__(self, findings: "Sequence[Finding]") -> None:
        first, *rest = map(str, findings)
        super().__init__(first, rest)
        self.findings = tuple(findings)


class EnvironmentUnfitError(ValeError):
    """This machine lacks something; the message names the remedy."""

    exit_code = 4


class WaitTimeoutError(ValeError):
    """Something did not become ready in time."""

    exit_code = 5


class LabError(ValeError):
    """A lab is busy, exists already, or does not exist."""


class SwitchError(ValeError):
    """The switch refuses, is full, or went away."""


class GuestError(ValeError):
    """A guest failed."""


class LaunchError(GuestError):
    """A guest's process did not start, or died: a complete report in one exception."""

    def __init__(
        self,
        message: str,
        argv: Sequence[str] = (),
        exit_status: int | None = None,
        console: Sequence[str] = (),
    ) -> None:
        super().__init__(message, console)
        self.argv = tuple(argv)
        self.exit_status = exit_status


class SshError(GuestError):
    """A guest cannot be reached by SSH, or refuses us."""


class TrialError(ValeError):
    """A test program in a guest failed."""


class LibvirtError(ValeError):
    """libvirt refuses, or went away."""


class NoDomainError(LibvirtError):
    """libvirt has no such domain (any more)."""


class StoreError(ValeError):
    """The result store cannot be written or read."""


class InterruptedRunError(ValeError):
    """Ctrl-C or SIGTERM; everything was cleaned up."""

    exit_code = 130
