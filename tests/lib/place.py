# SPDX-License-Identifier: BSD-2-Clause
"""valemgr as a user runs it, in a world of its own: XDG directories, and a valed for it alone.

    place.write("star", YAML)               a topology file, and its path
    done = place.run("up", path)            a command to its end: exit code, stdout, stderr
    rows = place.json("status")             the data of one that prints JSON
    place.ports()                           what valed says of its ports
    place.assert_nothing_left()             no QEMU, no directory, no port

Everything that is run is printed, with what it said.
"""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from lib.qmp import Qmp
from valemgr import image, locate
from valemgr.errors import ValeError

VALEMGR = Path(__file__).parents[2] / "build" / "venv" / "bin" / "valemgr"
KILLED = Path(__file__).with_name("killed.py")
RUN_SECONDS = 240.0  # of one command, on a host that other things use
WAIT_SECONDS = 60.0


def missing() -> str:
    """What this machine lacks, in words."""
    try:
        for program in (locate.QEMU, locate.VALED):
            locate.require(program)
        image.load("micro")
    except ValeError as exc:
        return str(exc)
    return ""


class Place:
    """A world of its own for valemgr."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rundir = root / "sw"
        self.env = {**os.environ, "VALE_RUNDIR": str(self.rundir), "COLUMNS": "200"}
        for name in ("RUNTIME_DIR", "STATE_HOME", "DATA_HOME"):
            folder = root / name[0].lower()
            folder.mkdir(mode=0o700)
            self.env[f"XDG_{name}"] = str(folder)
        self.labs = root / "r" / "valemgr"

    def write(self, lab: str, text: str) -> str:
        """A topology file; its path."""
        path = self.root / f"{lab}.lab.yml"
        path.write_text(text)
        return str(path)

    def start(self, *words: str, killed: Path | None = None) -> "subprocess.Popen[str]":
        """A command that runs; `killed`: see lib/killed.py."""
        print("+ valemgr", *words, flush=True)
        program = [VALEMGR.with_name("python"), KILLED, killed] if killed else [VALEMGR]
        return subprocess.Popen(
            [*program, *words], env=self.env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        began = time.monotonic()
        done = finish(self.start(*words), stdin)
        print(f"  after {time.monotonic() - began:.1f} s", flush=True)
        return done

    def ok(self, *words: str, stdin: str = "") -> str:
        """What a command that must succeed prints."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fails(self, code: int, *words: str) -> str:
        """What a command that must fail in this way says on stderr; it prints no data."""
        done = self.run(*words)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "--format", "json"))

    def status(self, lab: str = "") -> dict[str, Any]:
        """Guests by name."""
        rows = self.json("status", *([lab] if lab else []))["guests"]
        return {row["guest"]: row for row in rows}

    def state_file(self, lab: str) -> Path:
        return self.labs / lab / "state.json"

    def state(self, lab: str) -> Any:
        """What the lab's state file holds; None where there is none."""
        try:
            return json.loads(self.state_file(lab).read_text())
        except (OSError, ValueError):
            return None

    def ping(self, guest: str, address: str, *options: str) -> None:
        """Three pings that all come back."""
        said = self.ok("exec", guest, "--", "ping", "-c3", "-i0.2", "-W10", *options, address)
        assert "3 packets received, 0% packet loss" in said

    def guests(self) -> list[int]:
        """Pids of QEMUs of this place's labs."""
        return pids_with(str(self.labs), "qemu")

    def valed(self) -> int:
        """The pid of this place's valed."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.rundir / "qmp.sock"))
            return int.from_bytes(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little"
            )

    def valed_runs(self) -> bool:
        try:
            return self.valed() > 0
        except OSError:
            return False

    def ports(self) -> dict[str, Any]:
        """valed's ports by name."""
        with Qmp(self.rundir / "qmp.sock") as qmp:
            return qmp.ports()

    def switches(self) -> dict[str, Any]:
        """valed's switches by name."""
        with Qmp(self.rundir / "qmp.sock") as qmp:
            return {switch["name"]: switch for switch in qmp.execute("query-switches")}

    def wait_for(
        self, what: str, test: Callable[[], object], seconds: float = WAIT_SECONDS
    ) -> None:
        end = time.monotonic() + seconds
        while not test():
            assert time.monotonic() < end, f"{what}: not within {seconds} s"
            time.sleep(0.02)

    def assert_nothing_left(self) -> None:
        """No QEMU, no directory of a lab, no lock; and valed, where it runs, has no port."""
        assert self.guests() == []
        assert not self.labs.exists() or list(self.labs.iterdir()) == []
        if self.valed_runs():
            self.wait_for("end of all ports", lambda: not self.ports(), 10)
            assert self.switches() == {}

    def close(self) -> None:
        """End what a failed test left, and the switch."""
        for pid in self.guests():
            os.kill(pid, signal.SIGKILL)
        try:
            os.kill(self.valed(), signal.SIGTERM)
        except OSError:
            print("no valed left")


class Flow:
    """Numbered datagrams from one guest to another, for as long as a block runs.

    Behind it, `sent` and `got` hold what both programs report.
    """

    def __init__(self, place: Place, sender: str, receiver: str, address: str, rate: int) -> None:
        self.place, self.sender, self.receiver = place, sender, receiver
        self.command = f"vale-udp-send --to {address} --rate {rate} --seconds 3600 --json"
        self.sent: dict[str, Any] = {}
        self.got: dict[str, Any] = {}

    def __enter__(self) -> Self:
        receive = "vale-udp-recv --json --idle-ms 60000"
        self.receiving = self.place.start("exec", self.receiver, receive)
        assert self.receiving.stdout
        assert self.receiving.stdout.readline() == "ready\n"
        self.sending = self.place.start("exec", self.sender, self.command)
        return self

    def __exit__(self, *_: object) -> None:
        self.place.ok("exec", self.sender, "killall -INT vale-udp-send")
        self.sent = json.loads(finish(self.sending).stdout)
        self.got = json.loads(finish(self.receiving).stdout)


def finish(process: "subprocess.Popen[str]", stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Wait for a command that was started."""
    out, err = process.communicate(stdin, timeout=RUN_SECONDS)
    print(out, err, f"exit {process.returncode}", flush=True)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def until_said(process: "subprocess.Popen[str]", pattern: str) -> str:
    """Read a command's progress until a line of it matches; that line."""
    assert process.stderr
    said = []
    for line in process.stderr:
        print(line, end="", flush=True)
        said.append(line)
        if re.search(pattern, line):
            return line
    raise AssertionError(f"'{pattern}' was not said: " + "".join(said))


def pids_with(*words: str) -> list[int]:
    """Processes whose command line holds all of these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words):
            found.append(int(path.parent.name))
    return found
