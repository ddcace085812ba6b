# SPDX-License-Identifier: BSD-2-Clause
"""Network namespaces of a test's own, with taps in them.

    with Namespace.make("a") as a:
        fd = a.open_tap("tap0")            # to be handed to a valed
        a.up("tap0", "198.18.0.1/24")
        a.run("ping", "-c", "1", "198.18.0.2")

Everything goes with the namespace. IPv6 is off in it, so that nothing is sent that the test does
not send.
"""

import contextlib
import ctypes
import fcntl
import os
import shlex
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lib.native import SECONDS

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x0002, 0x1000, 0x4000
ETH_P_ALL = 0x0003


def why_not() -> str:
    """Why this machine cannot run such tests, "" when it can."""
    missing = [program for program in ("ip", "ping") if not shutil.which(program)]
    if missing:
        return f"no {' and no '.join(missing)}: apt-get install iproute2 iputils-ping"
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        return "needs root and /dev/net/tun: test_rootless.py runs it without"
    try:
        with Namespace.make("probe"):
            return ""
    except subprocess.CalledProcessError as e:
        return f"no network namespaces: {e.stderr.strip()}"


class Namespace:
    """A network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    @contextlib.contextmanager
    def make(cls, name: str) -> Iterator["Namespace"]:
        """One for the length of a block; its name gets our pid."""
        ns = cls(f"vale-{name}-{os.getpid()}")
        ip("netns", "add", ns.name)
        try:
            ns._enter(lambda: Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1"))
            ns._enter(lambda: Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1"))
            ns.ip("link", "set", "lo", "up")
            yield ns
        finally:
            ip("netns", "del", ns.name)

    def _enter(self, function: Callable[[], Any]) -> Any:
        """Call a function inside: in a thread, since a namespace is a thread's."""
        results: list[Any] = []

        def inside() -> None:
            with open(f"/run/netns/{self.name}") as ns:
                if ctypes.CDLL(None, use_errno=True).setns(ns.fileno(), CLONE_NEWNET) < 0:
                    raise OSError(ctypes.get_errno(), "setns")
            try:
                results.append(function())
            except OSError as e:
                results.append(e)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join(SECONDS)
        if isinstance(results[0], OSError):
            raise results[0]
        return results[0]

    def argv(self, *argv: str) -> list[str]:
        """The command line that runs a program inside."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str) -> str:
        return run(*self.argv(*argv))

    def ip(self, *argv: str) -> str:
        return ip("-n", self.name, *argv)

    def open_tap(self, name: str, flags: int = IFF_TAP | IFF_NO_PI) -> int:
        """A descriptor of a new tap inside."""

        def create() -> int:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            return fd

        fd: int = self._enter(create)
        return fd

    def up(self, name: str, address: str | None = None, mtu: int = 1500) -> bytes:
        """Bring an interface up; its MAC address."""
        if address:
            self.ip("addr", "add", address, "dev", name)
        self.ip("link", "set", name, "mtu", str(mtu), "up")
        return bytes.fromhex(self.mac(name).replace(":", ""))

    def mac(self, name: str) -> str:
        words = self.ip("-o", "link", "show", name).split()
        return words[words.index("link/ether") + 1]

    def packet_socket(self, name: str) -> socket.socket:
        """Sends and receives whole frames on an interface inside."""

        def create() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            sock.bind((name, ETH_P_ALL))
            sock.settimeout(SECONDS)
            return sock

        sock: socket.socket = self._enter(create)
        return sock


def run(*argv: str) -> str:
    """Run a program and show its command line; what it prints."""
    print("+", shlex.join(argv), flush=True)
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=SECONDS)
    return done.stdout


def ip(*argv: str) -> str:
    return run("ip", *argv)
