# SPDX-License-Identifier: BSD-2-Clause
"""make install and make uninstall: what comes goes, and works where it is."""

import json
import subprocess
from pathlib import Path

import pytest

from lib.valed import BINARY

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "packaging" / "install.sh"
IMAGES = [ROOT / "build/images" / name / "manifest.json" for name in ("micro", "micro-frr")]

pytestmark = [
    pytest.mark.blackbox,
    pytest.mark.skipif(not BINARY.exists(), reason=f"no {BINARY}: run 'make tools'"),
]


def install(command: str, folder: Path, *components: str) -> None:
    env = {"PATH": "/usr/bin:/bin", "DESTDIR": str(folder), "PREFIX": "/opt/vale"}
    print("+", INSTALL, command, *components, env)
    subprocess.run([INSTALL, command, *components], env=env, check=True)


def test_what_is_installed_works_and_goes_again(tmp_path: Path) -> None:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "opt/vale/bin").mkdir(parents=True)
    (folder / "opt/vale/bin/other").touch()
    install("install", folder, "switch", "dev")
    prefix = folder / "opt/vale"
    shown = subprocess.run([prefix / "bin/valed", "--version"], capture_output=True, check=True)
    assert shown.stdout.startswith(b"valed ")
    unit = (prefix / "lib/systemd/system/valed.service").read_text()
    assert "ExecStart=/opt/vale/bin/valed " in unit
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", prefix / "lib/pkgconfig/vale.pc"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert flags.split() == ["-I/opt/vale/include/vale", "-L/opt/vale/lib", "-lvale"]
    install("uninstall", folder)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert left == {"opt", "opt/vale", "opt/vale/bin", "opt/vale/bin/other"}


def test_no_folder_is_left_of_a_staged_installation(tmp_path: Path) -> None:
    folder = tmp_path / "root"
    folder.mkdir()
    install("install", folder, "switch", "dev")
    install("uninstall", folder, "switch", "dev")
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not all(map(Path.exists, IMAGES)), reason="no images: run 'make image'")
def test_images_find_their_files_where_they_are_installed(tmp_path: Path) -> None:
    install("install", tmp_path, "images")
    installed = tmp_path / "opt/vale/lib/vale/images"
    assert {path.name for path in installed.iterdir()} == {"micro", "micro-frr"}
    for folder in installed.iterdir():
        manifest = json.loads((folder / "manifest.json").read_text())
        for part in ("kernel", "initrd"):
            file = folder / manifest[part]
            assert file.stat().st_size == manifest["bytes"][file.name]
    install("uninstall", tmp_path, "images")
    assert list(tmp_path.iterdir()) == []


def refused(component: str, **env: str) -> str:
    run = subprocess.run(
        [INSTALL, "install", component],
        env={"PATH": "/usr/bin:/bin", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    return run.stderr


def test_an_unknown_component_is_one_line(tmp_path: Path) -> None:
    said = refused("kitchen", DESTDIR=str(tmp_path))
    assert said.startswith("install: kitchen is no component")
    assert said.count("\n") == 1


def test_a_prefix_that_is_not_absolute_is_one_line(tmp_path: Path) -> None:
    assert refused("dev", DESTDIR=str(tmp_path), PREFIX="out") == (
        "install: PREFIX=out: begin it with a /\n"
    )
