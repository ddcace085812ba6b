# SPDX-License-Identifier: BSD-2-Clause
"""The words a user types: one clear line and the right exit code for each mistake."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from valemgr import errors
from valemgr.cli import parse_frames, parse_rate

pytestmark = pytest.mark.unit

COMMAND = [sys.executable, "-c", "from valemgr.cli import main; main()"]


def valemgr(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, **env}, stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["pair"], 2, "missing argument"),
        (["pair", "eth0"], 2, "'eth0' is not a switch name"),
        (["pair", "vale1:a"], 2, "try 'vale1'"),
        (["pair", "vale1", "--frame", "63"], 2, "64 to 1518"),
        (["pair", "vale1", "--frame", "x"], 2, "separated by commas"),
        (["pair", "vale1", "--rate", "fast"], 2, "--rate fast"),
        (["pair", "vale1", "--model", "ne2k"], 2, "one of virtio-net-pci, e1000, e1000e"),
        (["pair", "vale1", "--backend", "tap"], 2, "one of auto, netmap, vhost-user"),
        (["pair", "vale1", "--baseline", "bridge"], 2, "only stream"),
        (["pair", "vale1", "--seconds", "0"], 2, "--seconds"),
        (["pair", "vale1", "--format", "xml"], 2, "'table', 'json', 'jsonl', 'csv'"),
        (["pair", "vale1", "--bogus"], 2, "no such option: --bogus"),
        (["pair", "vale1", "--image", "nope"], 4, "make "),
        (["nonsense"], 2, "no such command"),
        (["exec", "a", "true"], 125, "no guest a"),
        (["ssh", "a"], 125, "no guest a"),
        (["status", "vale1"], 1, "no lab vale1"),
        (["status"], 0, "no lab runs"),
        (["down", "vale1"], 0, ""),
        (["down"], 0, ""),
        (["switch"], 0, "no valed"),
        (["results", "list"], 0, "no results yet"),
        (["results", "show", "5"], 2, "no result 5"),
    ],
)
@pytest.mark.usefixtures("home")
def test_mistakes(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    done = valemgr(*words, VALE_RUNDIR=str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") <= 1


def test_machine_formats_are_machine_readable_even_when_empty(home: Path) -> None:
    done = valemgr("status", "--format", "json")
    assert (done.returncode, done.stdout) == (0, '{\n  "schema_version": 1,\n  "guests": []\n}\n')


def test_an_unusable_state_directory_is_one_line(home: Path) -> None:
    (home / "file").write_text("")
    done = valemgr("results", "list", XDG_STATE_HOME=str(home / "file"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "set XDG_STATE_HOME" in done.stderr


def test_kvm_demanded_in_vain() -> None:
    from valemgr.accel import kvm_obstacle

    if not kvm_obstacle():
        pytest.skip("KVM is usable here")
    done = valemgr("pair", "vale1", "--accel", "kvm")
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1


def test_help_names_every_command_and_is_quick() -> None:
    times = []
    for _ in range(5):
        began = time.monotonic()
        done = valemgr("--help")
        times.append(time.monotonic() - began)
        assert done.returncode == 0
    for word in ("pair", "ssh", "exec", "down", "status", "switch", "results", "doctor"):
        assert f"  {word} " in done.stdout
    assert min(times) < 0.3


def test_help_imports_nothing_that_costs() -> None:
    code = (
        "import sys, valemgr.cli;"
        "print([m for m in ('paramiko', 'pydantic', 'qemu', 'rich', 'cryptography', 'sqlite3',"
        " 'yaml')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_numbers() -> None:
    assert parse_frames("64,1518") == (64, 1518)
    assert [parse_rate(t) for t in ("max", "50000", "50k", "1.5M")] == [None, 50000, 50000, 1500000]
    for bad in ("64,64", "", "64,,65", "1519"):
        with pytest.raises(errors.UsageError):
            parse_frames(bad)
    for bad in ("0", "-5", "nan", "inf", "k", "1e99", ""):
        with pytest.raises(errors.UsageError):
            parse_rate(bad)


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        parts = line.strip(" │├└─").split()
        if len(parts) >= 2 and parts[0].endswith("Error") and parts[1].isdigit():
            drawn[parts[0]] = int(parts[1])
    real = {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.ValeError)
    }
    assert drawn == real
