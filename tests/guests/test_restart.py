# SPDX-License-Identifier: BSD-2-Clause
"""valed is killed under running guests and started again: they go on without help.

    guest a  our QEMU    -netdev netmap ────────────────────┐
    guest b  stock QEMU  vhost-user, QEMU's socket listens ─┼── valed
    guest c  stock QEMU  vhost-user, valed's socket listens ┘

Guest a pings b and c all the time; that its pings are answered again is seen at the switch.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lib.guest import BUILD, MICRO, QEMU, Guest
from lib.valed import BINARY, Valed, check_books, eventually

OURS = Path(os.environ.get("VALE_QEMU", BUILD / "bin/qemu-system-x86_64-vale"))
MINUTE = 60  # a loaded machine; the times themselves are printed

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(not OURS.exists(), reason=f"no {OURS}: run 'make qemu'"),
    pytest.mark.skipif(not QEMU.exists(), reason=f"no {QEMU}: apt-get install qemu-system-x86"),
    pytest.mark.skipif(not BINARY.exists(), reason=f"no {BINARY}: run 'make tools'"),
    pytest.mark.skipif(
        not (MICRO / "manifest.json").exists(), reason=f"no {MICRO}: run 'make image'"
    ),
]


def vhost(path: Path, role: str) -> list[str]:
    return [
        *("-chardev", f"socket,id=c0,path={path},{role}"),
        *("-netdev", "vhost-user,id=n0,chardev=c0"),
    ]


@pytest.fixture
def valed() -> Iterator[Valed]:
    with Valed.run() as running:
        yield running


@pytest.fixture
def guests(valed: Valed, tmp_path: Path) -> Iterator[dict[str, Guest]]:
    b, c = (valed.rundir.parent / f"{name}.sock" for name in "bc")
    with valed.qmp() as qmp:
        for name, path, connect in (("b", b, True), ("c", c, False)):
            qmp.execute(
                "port-add", name=f"vale1:{name}", kind="vhost-user", path=str(path), connect=connect
            )
    device = valed.rundir / "netmap.sock"
    made = {
        "a": Guest(tmp_path, "a", 1, [["-netdev", f"netmap,id=n0,ifname=vale1:a,devname={device}"]],
                   qemu=OURS),
        "b": Guest(tmp_path, "b", 2, [vhost(b, "server=on,wait=off")]),
        "c": Guest(tmp_path, "c", 3, [vhost(c, "reconnect=1")]),
    }  # fmt: skip
    try:
        for guest in made.values():
            guest.connect()
        yield made
    finally:
        for guest in made.values():
            guest.close()


def answers(valed: Valed) -> dict[str, int]:
    """Unicast frames of b and c: their answers."""
    with valed.qmp() as qmp:
        ports = qmp.ports()
    return {name: ports[f"vale1:{name}"]["rx"]["unicast"] for name in "bc"}


def test_guests_go_on_when_valed_was_killed(
    valed: Valed, guests: dict[str, Guest], record_property: Callable[[str, object], None]
) -> None:
    pings = {
        name: guests["a"].start(f"ping -i 0.1 {guests[name].address()}; true") for name in "bc"
    }
    eventually("pings", lambda: min(answers(valed).values()) > 5, MINUTE)
    for lap in range(3):
        valed.restart(signal.SIGTERM if lap == 2 else signal.SIGKILL)
        began = time.monotonic()
        times: dict[str, float] = {}

        def is_answered(began: float = began, times: dict[str, float] = times) -> bool:
            for name, count in answers(valed).items():
                if count:
                    times.setdefault(name, time.monotonic() - began)
            return len(times) == 2

        eventually("pings after a restart", is_answered, MINUTE)
        text = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in sorted(times.items()))
        print(f"answered again, after valed was ready: {text}")
        record_property(f"restart_{lap}", text)
        eventually("more pings", lambda: min(answers(valed).values()) > 5, MINUTE)
    guests["a"].run("killall -INT ping")
    for name, output in pings.items():
        sent, received = map(int, re.findall(r"(\d+) packets", output()))
        print(f"{name}: {received} of {sent} pings")
        assert received > 20
    assert guests["a"].run(f"ping -c 5 {guests['b'].address()} | grep -c ' seq='") == "5\n"
    with valed.qmp() as qmp:
        check_books(qmp.ports())
