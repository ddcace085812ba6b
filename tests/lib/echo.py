# SPDX-License-Identifier: BSD-2-Clause
"""A machine behind a native port that has an IPv4 address and answers pings.

with Echo(valed.open("vale1:p"), "198.18.0.100") as echo:
    ... a guest pings that address ...
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from lib.native import Deadline, Port, Timeout, station

ETH_ARP, ETH_IPV4 = 0x0806, 0x0800
ARP_REQUEST = bytes.fromhex("0001080006040001")
ARP_REPLY = bytes.fromhex("0001080006040002")


def arp_reply(request: bytes, mac: bytes, address: bytes) -> bytes | None:
    """The answer to who asks for this address."""
    if request[14:22] != ARP_REQUEST or request[38:42] != address:
        return None
    body = ARP_REPLY + mac + address + request[22:32]
    return (request[6:12] + mac + request[12:14] + body).ljust(60, b"\0")


def echo_reply(request: bytes, mac: bytes, address: bytes) -> bytes | None:
    """The answer to a ping of this address."""
    if request[14] != 0x45 or request[23] != 1 or request[30:34] != address or request[34] != 8:
        return None
    (checksum,) = struct.unpack_from(">H", request, 36)
    checksum += 0x0800  # the type goes from 8 to 0, and the sum stays what it was
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    addresses = address + request[26:30]
    icmp = bytes(2) + struct.pack(">H", checksum) + request[38:]
    return request[6:12] + mac + request[12:26] + addresses + icmp


class Echo:
    """The machine, alive for the length of a block; `answered` counts pings."""

    def __init__(self, port: Port, address: str, mac: bytes = station(0xEC)) -> None:
        self.port, self.mac, self.address = port, mac, socket.inet_aton(address)
        self.answered = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(Timeout):
                (data,) = self.port.receive(1, deadline=Deadline(0.2))
                self._answer(data)

    def _answer(self, data: bytes) -> None:
        kind = int.from_bytes(data[12:14], "big")
        reply = None
        if kind == ETH_ARP:
            reply = arp_reply(data, self.mac, self.address)
        elif kind == ETH_IPV4:
            reply = echo_reply(data, self.mac, self.address)
            self.answered += reply is not None
        if reply:
            self.port.send([reply])

    def __enter__(self) -> Echo:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
