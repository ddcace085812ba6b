# SPDX-License-Identifier: BSD-2-Clause
"""ssh, exec, cp, console and logs where no guest runs, and where no stream is open."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

COMMAND = [sys.executable, "-c", "from valemgr.cli import main; main()"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["ssh", "a"], 125, "no guest a in any lab"),
        (["ssh", "--print", "a"], 125, "no guest a"),
        (["-q", "ssh", "vale1/a"], 125, "no guest a in lab vale1"),
        (["-q", "exec", "a", "true"], 125, "no guest a"),
        (["exec", "-l", "vale2", "vale1/a", "true"], 125, "name the lab once"),
        (["exec", "../a", "true"], 125, "not a lab name"),
        (["console", "a"], 1, "no guest a"),
        (["console"], 2, "missing argument"),
        (["logs", "a"], 1, "no guest a"),
        (["logs"], 1, "no lab has a log yet"),
        (["logs", "--kind", "qemu"], 2, "of which guest"),
        (["logs", "--kind", "kernel", "a"], 2, "one of console, qemu, lab, switch"),
        (["logs", "--kind", "switch"], 1, "no log of valed"),
        (["logs", "-n", "-1", "a"], 2, "--lines"),
        (["cp", "a"], 2, "missing argument"),
        (["cp", "a", "b"], 2, "neither is in a guest"),
        (["cp", "a:x", "b:y"], 2, "both are in guests"),
        (["cp", "a:x", "y"], 1, "no guest a"),
        (["cp", "--limit", "lots", "a:x", "y"], 2, "'lots' is not a size"),
    ],
)
def test_mistakes(
    words: list[str], code: int, said: str, home: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALE_RUNDIR", f"{home}/none")
    done = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, check=False, timeout=60,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_streams_that_are_closed(home: object) -> None:
    """As in `valemgr … <&- >&- 2>&-`: no error of Python's, and the exit code is the same."""
    for closed, words, code in (
        ("<&-", ["console", "a"], 1), (">&-", ["status"], 0), ("<&- >&- 2>&-", ["logs", "a"], 1),
        ("2>&-", ["logs", "a"], 1),
    ):  # fmt: skip
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, *words],
            capture_output=True, text=True, check=False, timeout=60, env=dict(os.environ),
        )  # fmt: skip
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
