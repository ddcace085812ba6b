# SPDX-License-Identifier: BSD-2-Clause
"""Commands on topology files: what goes where, and with which exit code."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from valemgr.cli import app
from valemgr.errors import TopologyError
from valemgr.labschema import schema

pytestmark = pytest.mark.unit

GOOD = "guests: {a: {nics: [{switch: vale1}]}, b: }\nlinks: [{endpoints: [a, b]}]\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and an image."""
    image = tmp_path / "images/micro"
    image.mkdir(parents=True)
    for part in ("vmlinuz", "initrd.img"):
        (image / part).write_text("")
    (image / "manifest.json").write_text('{"append": ""}')
    monkeypatch.setenv("VALE_IMAGES", str(tmp_path / "images"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(*words: str, stdin: str = "") -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(words), input=stdin)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_the_only_file_here(here: Path) -> None:
    (here / "x.lab.yml").write_text(GOOD)
    assert run("validate") == (0, "x.lab.yml: ok: 2 guests, 1 switch, 1 link\n", "")


def test_a_topology_on_stdin_is_drawn(here: Path) -> None:
    code, out, _ = run("graph", "-", "--format", "dot", stdin=GOOD)
    assert code == 0
    assert out.startswith("graph ")


def test_several_files_and_all_their_mistakes(here: Path) -> None:
    (here / "x.lab.yml").write_text(GOOD)
    (here / "y.lab.yml").write_text("guests: {a: {memroy: 1, after: [b]}}\n")
    code, out, err = run("validate", "y.lab.yml", "none.lab.yml", "x.lab.yml")
    assert code == 2
    assert out == "x.lab.yml: ok: 2 guests, 1 switch, 1 link\n"
    assert err == (
        "y.lab.yml:1:14: unknown key 'memroy': did you mean 'memory'?\n"
        "y.lab.yml:1:22: memory of 1 is not between 32M and 1T\n"
        "y.lab.yml:1:33: no guest 'b' to start after: there is a\n"
        "none.lab.yml: there is no such file or directory: name a *.lab.yml\n"
    )


def test_findings_for_programs(here: Path) -> None:
    code, out, err = run("validate", "-", "--format", "json", stdin="gests: {}\n")
    assert (code, err) == (2, "")
    assert json.loads(out) == {
        "schema_version": 1,
        "findings": [
            {
                "file": "stdin",
                "line": 1,
                "column": 1,
                "message": "unknown key 'gests'",
                "suggestion": "did you mean 'guests'?",
            }
        ],
    }
    assert json.loads(run("validate", "-", "--format", "json", stdin=GOOD)[1])["findings"] == []


def test_an_image_that_is_not_here_is_a_note(here: Path) -> None:
    (here / "x.lab.yml").write_text("guests: {a: {image: mirco}}\n")
    code, out, err = run("validate", "x.lab.yml")
    assert (code, out) == (0, "x.lab.yml: ok: 1 guest, 0 switches, 0 links\n")
    assert "x.lab.yml: no image 'mirco' in " in err
    assert err.endswith("or did you mean 'micro'?\n")


def test_schema() -> None:
    code, out, err = run("schema")
    assert (code, err) == (0, "")
    assert json.loads(out) == schema()


def test_import_writes_a_file_that_is_valid(here: Path) -> None:
    (here / "x.clab.yml").write_text("name: x\nmgmt: {}\ntopology: {nodes: {a: , b: }}\n")
    code, out, err = run("import", "containerlab", "x.clab.yml", "-o", "x.lab.yml")
    assert (code, out, err) == (0, "", "x.clab.yml:2:1: mgmt is left out\n")
    assert run("validate", "x.lab.yml")[0] == 0
    assert run("import", "containerlab", "x.clab.yml")[1] == (here / "x.lab.yml").read_text()


def test_import_refuses_what_is_wrong(here: Path) -> None:
    with pytest.raises(TopologyError, match=r"^stdin:1:1: 'topology' is missing: add it$"):
        run("import", "containerlab", "-", stdin="name: x\n")
