# SPDX-License-Identifier: BSD-2-Clause
"""The QEMU build reads apt sources in both formats, and takes only Debian's archive."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "qemu-backend" / "deb_src.py"

pytestmark = pytest.mark.unit


def derive(tmp_path: Path, suite: str, **files: str) -> tuple[int, str]:
    """Write the files (``list`` is the main one) and derive the entries for a suite."""
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    main = tmp_path / "list"
    argv = [sys.executable, str(SCRIPT), str(main), str(tmp_path), "bookworm", suite]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_one_line_format_keeps_mirror_and_key(tmp_path: Path) -> None:
    text = (
        "# deb http://commented/ bookworm main\n"
        "deb [arch=amd64 signed-by=/k/a.gpg] http://mirror/debian bookworm main contrib # mine\n"
        "deb http://sec/debian-security bookworm-security main\n"
    )
    code, out = derive(tmp_path, "bookworm", list=text)
    assert code == 0
    assert out == (
        "Types: deb-src\nSigned-By: /k/a.gpg\nUris: http://mirror/debian\n"
        "Suites: bookworm\nComponents: main\n\n"
        "Types: deb-src\nUris: http://sec/debian-security\n"
        "Suites: bookworm-security\nComponents: main\n\n"
    )


def test_deb822_format_keeps_an_inline_key(tmp_path: Path) -> None:
    text = (
        "Types: deb\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main non-free\nArchitectures: amd64\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ==\n\n"
        "Enabled: no\nTypes: deb\nURIs: http://off/\nSuites: bookworm\nComponents: main\n"
    )
    code, out = derive(tmp_path, "bookworm", debian_sources=text)
    assert code == 0
    assert "Suites: bookworm bookworm-updates\n" in out
    assert "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ==\n" in out
    assert "Architectures" not in out
    assert "http://off/" not in out


def test_another_suite_comes_from_the_same_mirror(tmp_path: Path) -> None:
    text = "deb http://mirror/debian bookworm main\ndeb http://sec/ bookworm-security main\n"
    assert derive(tmp_path, "trixie", list=text)[1].count("Suites: trixie") == 2
    code, out = derive(tmp_path, "sid", list=text)
    assert code == 0
    assert "Suites: sid\n" in out
    assert "http://sec/" not in out


def test_third_parties_are_left_out(tmp_path: Path) -> None:
    text = (
        "deb https://packages.example/ubuntu nodistro main\n"
        "deb https://download.example/debian bookworm stable\n"
        "deb cdrom:[Debian GNU/Linux 12]/ bookworm main\n"
    )
    assert derive(tmp_path, "bookworm", list=text) == (1, "")
