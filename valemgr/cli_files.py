# SPDX-License-Identifier: BSD-2-Clause
"""Commands on topology files alone: validate, schema, import. Nothing runs for them."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valemgr.cli_common import FormatOption, note
from valemgr.errors import EnvironmentUnfitError, TopologyError, ValeError
from valemgr.output import Column, Format, emit, render

if TYPE_CHECKING:
    from valemgr.findings import Finding
    from valemgr.topology import Lab

FilesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE|DIR|-", help="Topology files; the only one here.", show_default=False
    ),
]
OutputOption = Annotated[
    str, typer.Option("--output", "-o", help="Write to this file; -: to stdout.")
]

FINDING_COLUMNS = (
    Column("file", "file"),
    Column("line", "line", right=True),
    Column("column", "column", right=True),
    Column("message", "message"),
    Column("suggestion", "suggestion"),
)


def register(app: typer.Typer) -> None:
    """Add the commands to valemgr's."""
    imports = typer.Typer(help="Convert other tools' files.", no_args_is_help=True)
    imports.command("containerlab")(import_containerlab)
    app.command()(validate)
    app.command()(schema)
    app.add_typer(imports, name="import", rich_help_panel=None)


def validate(files: FilesArgument = None, form: FormatOption = Format.TABLE) -> None:
    """Check topology files: every mistake with its place. Exit code 2 if there is one."""
    rows: list[dict[str, Any]] = []
    code = 0
    wheres: list[str | None] = [*files] if files else [None]
    for where in wheres:
        try:
            file, lab = load_file(where)
        except ValeError as exc:
            code = code or exc.exit_code
            findings = _findings(exc, where)
            rows += [asdict(finding) for finding in findings]
            if form is Format.TABLE:
                sys.stderr.write("".join(f"{finding}\n" for finding in findings))
        else:
            if form is Format.TABLE:
                emit(f"{file}: ok: {_summary(lab)}\n")
            _note_images(file, lab)
    if form is not Format.TABLE:
        emit(render(form, FINDING_COLUMNS, rows, key="findings"))
    if code:
        raise typer.Exit(code)


def schema() -> None:
    """Print the JSON Schema (2020-12) of topology files, for editors."""
    from valemgr.labschema import schema_text

    emit(schema_text())


def import_containerlab(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A *.clab.yml; -: stdin.")],
    output: OutputOption = "-",
) -> None:
    """Convert a containerlab topology; what has no counterpart is named on stderr."""
    from valemgr import clab
    from valemgr.labfile import parse_lab

    text, name, folder = _read(file, "containerlab topology")
    target = Path(output).absolute()
    where = Path.cwd() if output == "-" else target.parent
    converted, remarks = clab.convert(text, name, folder, where)
    parse_lab(converted, f"{name}, converted", where)
    if output == "-":
        emit(converted)
    else:
        _write(target, converted)
    sys.stderr.write("".join(f"{remark}\n" for remark in remarks))


def load_file(where: str | None) -> tuple[str, "Lab"]:
    """A topology file's name, and what it says; `-` is stdin."""
    from valemgr.labfile import find_lab_file, load_lab, parse_lab

    if where == "-":
        text, name, folder = _read(where, "topology file")
        return name, parse_lab(text, name, folder)
    path = find_lab_file(where)
    return str(path), load_lab(path)


def _read(where: str, what: str) -> tuple[str, str, Path]:
    """Text, name for messages, and the folder that relative paths start in."""
    from valemgr import yamlfile

    if where == "-":
        raw = sys.stdin.buffer.read(yamlfile.SIZE_MAX + 1)
        return yamlfile.decode(raw, "stdin"), "stdin", Path.cwd()
    return yamlfile.read(Path(where), what), where, Path(where).absolute().parent


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as exc:
        raise EnvironmentUnfitError(f"{path}: cannot be written: {exc.strerror}") from exc


def _findings(exc: ValeError, where: str | None) -> "Sequence[Finding]":
    """What is wrong in a file, or with it."""
    from valemgr.findings import Finding

    if isinstance(exc, TopologyError):
        return exc.findings
    file = where or "."
    return [Finding(file, 0, 0, str(exc).removeprefix(f"{file}: "))]


def _summary(lab: "Lab") -> str:
    named = len(lab.all_switches()) - len(lab.links)
    counts = ((len(lab.guests), "guest"), (named, "switch"), (len(lab.links), "link"))
    return ", ".join(_counted(number, word) for number, word in counts)


def _counted(number: int, word: str) -> str:
    plural = "es" if word.endswith("ch") else "s"
    return f"{number} {word}{'' if number == 1 else plural}"


def _note_images(file: str, lab: "Lab") -> None:
    """A file is not wrong because an image is not here yet; `up` would be, so say it."""
    from valemgr.image import load

    for name in sorted({guest.image for guest in lab.guests}):
        try:
            load(name)
        except EnvironmentUnfitError as exc:
            note(f"{file}: {exc}")
