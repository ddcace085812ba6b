# SPDX-License-Identifier: BSD-2-Clause
"""What looks into a running guest: console, logs, cp, ssh; by a person at a terminal, by a script.

         vale1:a ── guest a        guest b ── vale1:b        two micro guests of one `pair --keep`

The guests' system is busybox: its tar, its shell on the serial console. Tests share the guests, so
each names its own files in them; the last ones end a guest, then the lab.
"""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.place import VALEMGR, Place, finish, missing, pids_with
from lib.terminal import Terminal

pytestmark = pytest.mark.guest

if missing():
    pytest.skip(missing(), allow_module_level=True)

PROMPT = "a:[^#\n]*# "


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("p"))
    try:
        done = made.run("pair", "vale1", "--keep", "--frame", "64", "--seconds", "0.2")
        assert done.returncode == 0
        yield made
    finally:
        made.close()


def at_terminal(place: Place, *words: str) -> Terminal:
    return Terminal([VALEMGR, *words], place.env)


def test_a_person_at_the_console(place: Place) -> None:
    with at_terminal(place, "console", "a") as term:
        term.until("Ctrl-] leaves, press Enter for a prompt")
        term.until("vale: ready")  # the last lines of the log: the screen is not empty
        term.type("\r")
        term.until(PROMPT)
        assert term.raw
        term.type("stty -isig; echo $((6 * 7)); cat -v\r")
        term.until("\n42\r\n")
        term.type("\x03\r\x04")  # goes to the guest, is no signal of ours
        term.until("\\^C\r\n")
        term.until(PROMPT)
        second = place.run("console", "vale1/a")
        assert second.returncode == 1
        assert second.stderr.splitlines() == [
            "valemgr: console of guest a is in use by another 'valemgr console': "
            "it serves one at a time"
        ]
        term.type("\x1d")
        code, _ = term.end()
        assert code == 0
        assert term.modes_are_back
    assert "running" in place.ok("status")


def test_a_person_whose_terminal_goes_away(place: Place) -> None:
    with at_terminal(place, "console", "a") as term:
        term.until("press Enter for a prompt")
        place.wait_for("a raw terminal", lambda: term.raw)
        os.kill(pids_with(str(VALEMGR), "console")[-1], signal.SIGTERM)
        code, _ = term.end()
        assert code == 130
        assert term.modes_are_back


def test_another_program_at_the_console_is_named(place: Place) -> None:
    path = place.labs / "vale1" / "b.console"
    holder = subprocess.Popen(
        ["python3", "-c",
         "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
         "s.sendall(b'\\n'); s.recv(1); print('in', flush=True); sys.stdin.read()", path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout
    assert holder.stdin
    assert holder.stdout.readline() == b"in\n"
    assert "in use by another program" in place.fails(1, "console", "b")
    holder.stdin.close()
    holder.wait()


def test_a_script_at_the_console(place: Place) -> None:
    said = place.ok("console", "b", "--for", "4", stdin="echo $((6 * 7))\n")
    assert "\n42\n" in said
    assert "\n42\n" in place.ok("logs", "b", "--lines", "5")
    assert place.run("console", "b", "--for", "0").returncode == 0


def test_the_console_of_a_guest_that_boots(place: Place) -> None:
    """valemgr itself reads it then: its log is shown, and the console is ours afterwards."""
    (place.root / "two").mkdir()
    other = Place(place.root / "two")
    pair = other.start("pair", "vale1", "--keep", "--frame", "64", "--seconds", "0.2")
    try:
        other.wait_for("a guest", lambda: (other.state("vale1") or {}).get("guests"))
        with at_terminal(other, "console", "a") as term:
            term.until("boots, its console is still read|press Enter")
            term.until("press Enter for a prompt")
            place.wait_for("a raw terminal", lambda: term.raw)
            term.type("\r")
            term.until(PROMPT)
            term.type("\x1d")
            assert term.end()[0] == 0
        assert finish(pair).returncode == 0
        other.ok("down", "vale1")
        other.assert_nothing_left()
    finally:
        pair.kill()
        other.close()


def test_logs_of_every_kind(place: Place) -> None:
    assert "vale: ready" in place.ok("logs", "a", "-n", "0")
    assert len(place.ok("logs", "a", "-n", "2").splitlines()) == 2
    assert "qmp guest a: human-monitor-command" in place.ok("logs", "--lab", "vale1", "-n", "0")
    qemu = place.run("logs", "a", "--kind", "qemu")
    assert (qemu.returncode, qemu.stdout) == (0, "")
    assert "QEMU of guest a said nothing so far" in qemu.stderr
    assert place.run("logs", "--kind", "switch", "--lab", "vale1").returncode == 0
    assert "no guest c in any lab" in place.fails(1, "logs", "c")
    assert "of which guest" in place.fails(2, "logs", "--kind", "console")
    assert "one of console, qemu" in place.fails(2, "logs", "--kind", "x")


def test_a_log_is_followed_and_harmless_on_a_terminal(place: Place) -> None:
    with at_terminal(place, "logs", "-f", "-n", "1", "b") as term:
        evil = "printf '\\033]0;owned\\007\\033[2Jev%s\\r\\n' il > /dev/console"
        place.ok("exec", "b", "--", evil)
        shown = term.until("evil")
        assert "\x1b" not in shown
        assert "owned" not in shown
        term.type("\x03")
        code, rest = term.end()
        assert (code, "Traceback" in rest) == (130, False)


def test_cp_there_and_back(place: Place, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "e").mkdir(parents=True)
    (tree / "e/f").write_bytes(os.urandom(100_000))
    (tree / "e/f").chmod(0o751)
    (tree / "é ü").write_text("x")
    (tree / ("n" * 200)).write_text("long")
    (tree / "up").symlink_to("e/f")
    (tree / "again").hardlink_to(tree / "e/f")
    done = place.run("cp", str(tree), "a:/t1")
    assert done.returncode == 0
    assert "4 files" not in done.stderr  # a hard link is none
    assert "3 files, 97.7 KiB" in done.stderr
    assert place.ok("exec", "a", "stat -c %a,%U /t1/e/f; readlink /t1/up").split() == [
        "751,root", "e/f",
    ]  # fmt: skip
    place.ok("cp", "vale1/a:/t1", str(tmp_path / "back"))
    difference = ["diff", "--recursive", "--no-dereference", str(tree), str(tmp_path / "back")]
    assert subprocess.run(difference, check=False).returncode == 0
    assert (tmp_path / "back/e/f").stat().st_mode & 0o777 == 0o751
    place.ok("cp", f"{tmp_path}/tree/e/f", "a:")
    place.ok("cp", "a:f", str(tmp_path))
    assert (tmp_path / "f").read_bytes() == (tree / "e/f").read_bytes()


def test_cp_that_cannot_be(place: Place, tmp_path: Path) -> None:
    here = str(tmp_path / "big")
    Path(here).write_bytes(bytes(3_000_000))
    place.ok("exec", "a", "mkdir -p /small; mount -t tmpfs -o size=1m none /small")
    assert "/small/x: write error: No space left" in place.fails(1, "cp", here, "a:/small/x")
    assert place.ok("exec", "a", "ls /small") == ""
    assert "big: no such" not in place.fails(1, "cp", here, "a:/no/x")
    assert "/no/x: no such folder" in place.fails(1, "cp", here, "a:/no/x")
    assert "a: /none: no such file or folder" in place.fails(1, "cp", "a:/none", str(tmp_path))
    assert "no such file or folder" in place.fails(1, "cp", f"{here}x", "a:")
    assert "no such folder" in place.fails(1, "cp", "a:/etc/passwd", f"{tmp_path}/no/x")
    assert "neither is in a guest" in place.fails(2, "cp", here, "./a:x")
    assert "both are in guests" in place.fails(2, "cp", "a:x", "b:y")
    assert "no guest c" in place.fails(1, "cp", "c:x", str(tmp_path))


def test_a_guest_that_lies_about_its_files(place: Place, tmp_path: Path) -> None:
    """Its tar is its own program: what it sends is whatever it likes."""
    (tmp_path / "here").mkdir()
    script = "#!/bin/sh\ncd /evil && exec /usr/bin/busybox tar -c -f - d /etc/passwd ../etc/group\n"
    fake = tmp_path / "fake"
    fake.write_text(script)
    fake.chmod(0o755)
    place.ok("exec", "b", "mkdir -p /evil/d; ln -s /etc /evil/d/l; echo x > /evil/d/f")
    place.ok("cp", str(fake), "b:/usr/sbin/tar")  # before /usr/bin in its PATH
    said = place.fails(1, "cp", "b:/evil", str(tmp_path / "here"))
    assert "not what was asked for" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fake", "here"]
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["evil"]
    assert [path.name for path in (tmp_path / "here/evil").iterdir()] == ["f"]
    place.ok("exec", "b", "rm /usr/sbin/tar")


def test_a_person_in_a_shell(place: Place) -> None:
    with at_terminal(place, "ssh", "a") as term:
        term.until(PROMPT)
        assert term.raw
        term.type("echo $((6 * 7))\r")
        term.until("\n42\r\n")
        term.type("exit 7\r")
        assert term.end()[0] == 7
        assert term.modes_are_back


def test_a_shell_whose_valemgr_is_ended(place: Place) -> None:
    with at_terminal(place, "ssh", "a") as term:
        term.until(PROMPT)
        os.kill(pids_with(str(VALEMGR), "ssh")[-1], signal.SIGTERM)
        assert term.end()[0] == 130
        assert term.modes_are_back


def test_openssh_takes_the_printed_line(place: Place) -> None:
    line = place.ok("ssh", "--print", "a")
    try:
        done = subprocess.run(
            [*shlex.split(line), "hostname"], capture_output=True, text=True, check=False,
            timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("OpenSSH is not here: apt install openssh-client")
    assert (done.returncode, done.stdout) == (0, "a\n"), done.stderr


def test_a_guest_that_ends_meanwhile(place: Place) -> None:
    """It is dead, its lab is still there: whoever watched is told, logs are readable."""
    watching = at_terminal(place, "logs", "-f", "b")
    with at_terminal(place, "console", "b") as console, watching as logs:
        console.until("press Enter for a prompt")
        logs.until("vale: ready")
        place.wait_for("a raw terminal", lambda: console.raw)
        os.kill(pids_with(f"{place.labs}/vale1/b.ctl")[0], signal.SIGKILL)
        code, shown = console.end()
        assert (code, console.modes_are_back) == (0, True)
        assert "guest b ended" in shown
        assert logs.end()[0] == 0
    assert "vale: ready" in place.ok("logs", "b", "-n", "0")
    assert "guest b of lab vale1 is dead" in place.fails(1, "console", "b")
    assert "guest b of lab vale1 is dead" in place.fails(1, "cp", "b:/etc/passwd", "x")
    assert "guest b of lab vale1 is dead" in place.fails(125, "ssh", "b")


def test_the_log_of_a_lab_that_is_down(place: Place) -> None:
    place.ok("down", "vale1")
    place.assert_nothing_left()
    assert "qmp guest a" in place.ok("logs", "--lab", "vale1", "-n", "0")
    assert "qmp" in place.ok("logs", "-f", "-n", "0")  # nobody writes any more: ends by itself
    assert "no guest a in any lab" in place.fails(1, "logs", "a")
