# SPDX-License-Identifier: BSD-2-Clause
"""Names of switches and ports: one grammar, shared with C through tests/vectors/names.json.

    vale1:a      port `a` on switch `vale1`          valeSSS:PPP, SSS and PPP [0-9a-zA-Z_]+
    vale0        port `vale0` on switch `vale`       the forms of the first releases, canonicalised
    vale-foo:x   port `x` on switch `vale_foo`       (`-` becomes `_`)

Each half is at most 15 characters; `vale` counts as part of the switch's half.
"""

import hashlib
import re
from dataclasses import dataclass

from valemgr.errors import UsageError

HALF_MAX = 15
PORTS_MAX = 254  # of one switch, on either provider

_SWITCH = re.compile(r"vale[0-9a-zA-Z_]*")
_PORT = re.compile(r"[0-9a-zA-Z_]+")
_OLD_PORT = re.compile(r"vale[0-9a-zA-Z_-]*")
_LAB_OR_GUEST = re.compile(r"[0-9a-zA-Z]([0-9a-zA-Z_-]{0,30}[0-9a-zA-Z])?")


@dataclass(frozen=True, slots=True)
class PortName:
    """A canonical port name."""

    switch: str
    port: str

    def __str__(self) -> str:
        return f"{self.switch}:{self.port}"


def parse_port(text: str) -> PortName:
    """The canonical form of a port name, or UsageError with the reason."""
    switch, colon, port = text.partition(":")
    if not colon:
        return _first_release_form(text)
    switch = switch.replace("-", "_")
    if not _SWITCH.fullmatch(switch) or not _PORT.fullmatch(port):
        raise _bad_port(text, "a port is named valeSSS:PPP, letters, digits and _ only")
    return _checked(text, PortName(switch, port))


def parse_switch(text: str) -> str:
    """The canonical form of a switch name, or UsageError with the reason."""
    if ":" in text:
        raise UsageError(
            f"'{text}' is a port, a switch is meant: try '{text.partition(':')[0] or 'vale1'}'"
        )
    switch = text.replace("-", "_")
    if not _SWITCH.fullmatch(switch) or switch == "vale":
        raise UsageError(f"'{text}' is not a switch name: vale and letters, digits or _, as vale1")
    if len(switch) > HALF_MAX:
        raise UsageError(f"'{text}' is too long: a switch name has at most {HALF_MAX} characters")
    return switch


def check_label(kind: str, text: str) -> str:
    """A lab's or guest's name: it becomes part of paths and a hostname."""
    if not _LAB_OR_GUEST.fullmatch(text):
        raise UsageError(
            f"'{text}' is not a {kind} name: letters, digits, - and _ (inside), at most 32"
        )
    return text


def checked_mac(mac: str, said: str) -> str:
    """A MAC of a NIC in the form that a Lab has; `said`: what was written, for the message."""
    if not re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", mac):
        raise ValueError(f"'{said}' is not a MAC address: six bytes in hex, as 52:54:00:00:00:01")
    if int(mac[:2], 16) & 1:
        raise ValueError(f"MAC {mac} is a group address: its first byte must be even")
    return mac


def mac_for(lab: str, guest: str, nic: str, attempt: int = 0) -> str:
    """A stable MAC in QEMU's range."""
    digest = hashlib.sha256(f"{lab}/{guest}/{nic}/{attempt}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def _first_release_form(text: str) -> PortName:
    if not _OLD_PORT.fullmatch(text):
        raise _bad_port(text, "a port is named valeSSS:PPP")
    return _checked(text, PortName("vale", text.replace("-", "_")))


def _checked(text: str, name: PortName) -> PortName:
    for half in (name.switch, name.port):
        if len(half) > HALF_MAX:
            raise _bad_port(text, f"'{half}' has more than {HALF_MAX} characters")
    return name


def _bad_port(text: str, reason: str) -> UsageError:
    return UsageError(f"'{text}' is not a port name: {reason} (example: vale1:a)")
