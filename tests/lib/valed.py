# SPDX-License-Identifier: BSD-2-Clause
"""A real valed in a directory of its own, for one test.

    with Valed.run("--workers", "2") as valed:
        port = valed.open("vale1:a")

It prints what it runs. At the end every port is closed, valed gets SIGTERM and must exit 0 with
nothing on stderr: that is also where a sanitizer's report fails the test.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lib.native import SECONDS, Deadline, Port
from lib.qmp import Qmp

ROOT = Path(__file__).parents[2]
BINARY = Path(os.environ.get("VALED", ROOT / "build/bin/valed")).absolute()
SUPPRESSIONS = ROOT / "tests/tsan.supp"
NOBODY = 65534


@cache
def sanitizer() -> str:
    """Which sanitizer is in the binary under test, "" if none."""
    program = BINARY.read_bytes()
    return "asan" if b"__asan_init" in program else "tsan" if b"__tsan_init" in program else ""


def environment() -> dict[str, str]:
    """Without a switch that happens to run on this machine; reports of sanitizers are fatal."""
    kept = {k: v for k, v in os.environ.items() if k not in ("VALE_DEV", "VALE_RUNDIR")}
    return kept | {
        "ASAN_OPTIONS": "detect_leaks=1:exitcode=66",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "TSAN_OPTIONS": f"suppressions={SUPPRESSIONS}:exitcode=66",
    }


class Valed:
    """A running valed."""

    def __init__(self, rundir: Path, *options: str, under: tuple[str, ...] = ()) -> None:
        self.rundir = rundir
        self.argv = [*under, str(BINARY), "--rundir", str(rundir), *options]
        self.argv += ["--socket-dir", str(rundir.parent)]  # tests have sockets of ports there
        self.log = rundir.parent / "valed.log"
        self.clients: list[contextlib.AbstractContextManager[Any]] = []
        self.start()

    def start(self) -> None:
        """Start the program; returns when its sockets listen."""
        ready, theirs = os.pipe()
        print("+", shlex.join(self.argv), flush=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.argv, "--ready-fd", str(theirs)],
                pass_fds=[theirs],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=environment(),
            )
        os.close(theirs)
        with open(ready, "rb") as stream:
            assert stream.read() == b"ready\n", f"valed did not start: {self.errors()}"

    @classmethod
    @contextlib.contextmanager
    def run(cls, *options: str, under: tuple[str, ...] = ()) -> Iterator["Valed"]:
        """One for the length of a block; its end must be clean unless the block failed."""
        with tempfile.TemporaryDirectory(prefix="vale-") as name:
            rundir = Path(name) / "run"
            rundir.mkdir(mode=0o700)
            valed = cls(rundir, *options, under=under)
            try:
                yield valed
                valed.close_clients()
                valed.stop()
            finally:
                valed.kill()
                print(valed.errors(), end="")

    @property
    def pid(self) -> int:
        return self.process.pid

    def open(self, name: str, **body: int) -> Port:
        """A native port, closed at the end of the test."""
        port = Port.open(self.rundir, name, **body)
        self.clients.append(port)
        return port

    def qmp(self) -> Qmp:
        """A QMP client, closed at the end of the test."""
        client = Qmp(self.rundir / "qmp.sock")
        self.clients.append(client)
        return client

    def close_clients(self) -> None:
        while self.clients:
            with contextlib.suppress(ValueError):  # the test has closed it already
                self.clients.pop().__exit__(None, None, None)

    def errors(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def restart(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """End the program in this way, and start it again in the same directory. Clients stay."""
        self.process.send_signal(sig)
        assert self.wait() == (-signal.SIGKILL if sig == signal.SIGKILL else 0), self.errors()
        self.start()

    def wait(self) -> int:
        """The exit code of a valed that ends by itself."""
        return self.process.wait(SECONDS)

    def stop(self) -> None:
        """SIGTERM, unless it has ended; exit code 0 and silence."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.wait() == 0, self.errors()
        assert self.errors() == ""

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP; returns when all its threads stand still."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def as_nobody(
        self, run: Callable[[], int], gid: int = NOBODY, groups: tuple[int, ...] = ()
    ) -> int:
        """What run() returns as uid 65534, with access to the attach socket; 255 if it raises."""
        self.rundir.parent.chmod(0o755)
        self.rundir.chmod(0o755)
        (self.rundir / "netmap.sock").chmod(0o666)
        child = os.fork()
        if child == 0:
            result = 255  # above every errno
            with contextlib.suppress(Exception):
                os.setgroups(groups)
                os.setresgid(gid, gid, gid)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                result = run()
            os._exit(result)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.rundir.chmod(0o700)
        return code

    # What /proc says of it.

    def fds(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def status(self, field: str) -> int:
        """A number of /proc/PID/status."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
        raise KeyError(field)

    def cpu_ticks(self) -> int:
        """utime + stime of all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def wakeups(self) -> dict[str, int]:
        """Context switches of each thread: (non)voluntary together."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            lines = (task / "status").read_text().splitlines()
            found[task.name] = sum(int(li.split()[1]) for li in lines if "ctxt_switches" in li)
        return found


# What a port that is not impaired says of its lines, in rx and in tx.
UNIMPAIRED = {"held": 0, "duplicated": 0, "corrupted": 0}


def check_books(ports: dict[str, dict[str, Any]]) -> None:
    """The equations of accounting, for ports that nobody sends to any more."""
    for name, port in ports.items():
        rx, tx = port["rx"], port["tx"]
        dropped = sum(rx["dropped"].values())
        entered = rx["frames"] + rx["duplicated"]
        assert entered == dropped + rx["held"] + rx["unicast"] + rx["flooded"], (name, rx)
        grown = tx["duplicated"] + tx["segmented"]["segments"] - tx["segmented"]["frames"]
        dropped = sum(tx["dropped"].values())
        assert tx["offered"] + grown == tx["frames"] + tx["held"] + dropped, (name, tx)


def eventually(what: str, check: Any, seconds: float = SECONDS) -> None:
    """Until check() is true: for what gives no event, such as /proc."""
    deadline = Deadline(seconds)
    while not check():
        signal.sigtimedwait([], min(0.01, deadline.left(what)))
