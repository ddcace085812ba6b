# SPDX-License-Identifier: BSD-2-Clause
"""Our netdev backend in a real QEMU, without a guest.

A hub joins the backend to a ``dgram`` netdev, whose other end is a socket of the test::

    test --dgram-- hub --netmap-- vale1:a  valed  vale1:b --netmap-- hub --dgram-- test

A NIC model behind the backend must not see frames of less than 60 bytes; a hub may hide a NIC
model, so the backend pads toward it, and that is what arrives here for shorter ones.

``VALE_QEMU`` and ``VALED`` name other binaries. A QEMU with sanitizers must have nothing to report:
:func:`qemu` and :func:`refused` fail where it has.
"""

import asyncio
import contextlib
import os
import re
import shlex
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from lib.native import SECONDS as NATIVE_SECONDS
from lib.valed import BINARY

ROOT = Path(__file__).parents[2]
QEMU = Path(os.environ.get("VALE_QEMU", ROOT / "build/bin/qemu-system-x86_64-vale")).absolute()
VALED = BINARY

NO_GUEST = ("-machine", "none", "-nodefaults", "-display", "none")
ETH_ZLEN = 60
SECONDS = 3 * NATIVE_SECONDS  # a QEMU with sanitizers on a machine that compiles

MARKS = [
    pytest.mark.blackbox,
    pytest.mark.skipif(not QEMU.exists(), reason=f"no {QEMU}: run 'make qemu'"),
    pytest.mark.skipif(not VALED.exists(), reason=f"no {VALED}: run 'make'"),
]
# What sanitizers report, and what they merely remark.
REPORT = re.compile(r"ERROR: \w+Sanitizer|runtime error:|SUMMARY: \w+Sanitizer")
REMARK = re.compile(r"==\d+==WARNING|False positive error reports|For details see https?://")


@dataclass(frozen=True)
class Switch:
    """A valed of this test, and the environment in which programs find it."""

    rundir: Path
    process: asyncio.subprocess.Process

    @property
    def env(self) -> dict[str, str]:
        """The environment for its clients."""
        return clean_env(self.rundir)


def clean_env(rundir: Path) -> dict[str, str]:
    """The environment without a switch that happens to run on this machine.

    QEMU leaves memory behind when it exits, so leaks are looked for where they count: in /proc.
    """
    kept = {name: value for name, value in os.environ.items() if name != "VALE_DEV"}
    return kept | {
        "VALE_RUNDIR": str(rundir),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def said(text: str) -> str:
    """What QEMU itself has to say, without a sanitizer's remarks. Its reports fail."""
    assert not REPORT.search(text), text
    return "".join(line for line in text.splitlines(keepends=True) if not REMARK.search(line))


async def ended(process: asyncio.subprocess.Process) -> None:
    """End a process of ours that may be stopped, and reap it."""
    if process.returncode is None:
        process.kill()
    await process.wait()


@contextlib.asynccontextmanager
async def running(rundir: Path) -> AsyncIterator[Switch]:
    """A valed there."""
    ready, ready_w = os.pipe()
    process = await asyncio.create_subprocess_exec(
        VALED, "--rundir", rundir, "--ready-fd", str(ready_w), pass_fds=[ready_w]
    )
    os.close(ready_w)
    try:
        async with asyncio.timeout(SECONDS):
            assert await asyncio.to_thread(os.read, ready, 1), "valed did not become ready"
        yield Switch(rundir, process)
    finally:
        os.close(ready)
        await ended(process)


@dataclass(frozen=True)
class Qemu:
    """A QEMU without a guest that answers on QMP."""

    process: asyncio.subprocess.Process
    qmp: QMPClient
    log: Path

    def said(self) -> str:
        """Its stderr so far."""
        return said(self.log.read_text())

    async def info(self) -> dict[str, str]:
        """What ``info network`` says of the backend; it may be 100 ms old, so ask after that."""
        await asyncio.sleep(0.15)
        arguments = {"command-line": "info network"}
        text = str(await self.qmp.execute("human-monitor-command", arguments))
        line = next(line for line in text.splitlines() if "type=netmap" in line)
        return dict(re.findall(r"(\w+)=([^,]*)", line))

    async def netdev(self, name: str = "n") -> dict[str, Any]:
        """The properties of a netdev's object, as they are now."""
        path = f"/netmap/{name}"
        listed = await self.qmp.execute("qom-list", {"path": path})
        assert isinstance(listed, list)
        names = [entry["name"] for entry in listed if isinstance(entry, dict)]
        return {
            key: await self.qmp.execute("qom-get", {"path": path, "property": key}) for key in names
        }


@contextlib.asynccontextmanager
async def qemu(directory: Path, name: str, env: dict[str, str], *argv: str) -> AsyncIterator[Qemu]:
    """A QEMU that answers on QMP, for the length of a block, in which no sanitizer may speak."""
    qmp = QMPClient(name)
    path, log = directory / f"{name}.qmp", directory / f"{name}.log"
    await qmp.start_server(str(path))
    command = [str(QEMU), *argv, "-qmp", f"unix:{path}"]
    print("+", shlex.join(command), flush=True)
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command, env=env, stdin=asyncio.subprocess.DEVNULL, stderr=stderr
        )
    try:
        async with asyncio.timeout(SECONDS):
            await qmp.accept()
        yield Qemu(process, qmp, log)
    finally:
        await ended(process)
        with contextlib.suppress(Exception):
            await qmp.disconnect()
        said(log.read_text())


async def refused(env: dict[str, str], *argv: str) -> str:
    """Run a QEMU that must not start; the one line that it says."""
    command = [str(QEMU), *NO_GUEST, *argv]
    print("+", shlex.join(command), flush=True)
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(SECONDS):
            stderr = said((await process.communicate())[1].decode())
    finally:
        await ended(process)
    assert process.returncode == 1, stderr
    assert stderr.count("\n") == 1, stderr
    return stderr


@dataclass(frozen=True)
class Hub:
    """A QEMU whose backend is joined to our end of a dgram netdev."""

    qemu: Qemu
    end: socket.socket

    async def send(self, frame: bytes) -> None:
        """Hand one frame in; waits while QEMU does not read."""
        async with asyncio.timeout(SECONDS):
            await asyncio.get_running_loop().sock_sendall(self.end, frame)

    async def receive(self) -> bytes:
        """The next frame that comes out."""
        async with asyncio.timeout(SECONDS):
            return await asyncio.get_running_loop().sock_recv(self.end, 1 << 17)

    async def receive_many(self, count: int) -> list[bytes]:
        """The next frames that come out."""
        return [await self.receive() for _ in range(count)]


@contextlib.asynccontextmanager
async def hub(
    directory: Path, env: dict[str, str], ifname: str, options: str = ""
) -> AsyncIterator[Hub]:
    """A hub that joins the port to a dgram netdev. options: more of the backend, comma first."""
    name = ifname.replace(":", "-")
    ours, theirs = directory / f"{name}.test", directory / f"{name}.qemu"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.setblocking(False)
        end.bind(str(ours))
        dgram = f"local.type=unix,local.path={theirs},remote.type=unix,remote.path={ours}"
        argv = [*NO_GUEST, "-netdev", f"netmap,id=n,ifname={ifname}{options}"]
        argv += ["-netdev", f"dgram,id=d,{dgram}"]
        argv += ["-netdev", "hubport,id=h0,hubid=0,netdev=n"]
        argv += ["-netdev", "hubport,id=h1,hubid=0,netdev=d"]
        async with qemu(directory, name, env, *argv) as process:
            end.connect(str(theirs))
            yield Hub(process, end)


def frame(size: int, number: int = 0, source: int = 1) -> bytes:
    """A broadcast frame of a size, different for every number."""
    header = b"\xff" * 6 + bytes([2, 0, 0, 0, 0, source]) + b"\x88\xb5"
    body = number.to_bytes(4, "big") + bytes((number + i) & 0xFF for i in range(size))
    return (header + body)[:size]


def cpu_ticks(pid: int) -> int:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def resources(pid: int) -> tuple[int, int]:
    """Open descriptors of a process, and its mappings of port memory."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), maps.count("memfd:")
