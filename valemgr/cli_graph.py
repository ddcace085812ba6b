# SPDX-License-Identifier: BSD-2-Clause
"""The command that draws a lab: graph."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from valemgr import completion
from valemgr.cli_common import is_path, write_out

if TYPE_CHECKING:
    from valemgr.topology import Lab


class GraphFormat(StrEnum):
    """The value of --format."""

    SVG = "svg"
    MERMAID = "mermaid"
    DOT = "dot"
    JSON = "json"


_SUFFIXES = {".mmd": GraphFormat.MERMAID, ".dot": GraphFormat.DOT, ".gv": GraphFormat.DOT,
             ".json": GraphFormat.JSON}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(graph)


def graph(
    lab: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|DIR|-|LAB]",
            help="A *.lab.yml, or its folder, or the name of a lab that runs; the only file here.",
            show_default=False,
            autocompletion=completion.labs,
        ),
    ] = None,
    form: Annotated[
        GraphFormat | None,
        typer.Option("--format", help="By default as the output's suffix says, else svg."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file instead of stdout.")
    ] = None,
) -> None:
    """Draw a lab: guests, switches, links, addresses and impairments."""
    shown = _lab(lab)
    text = _render(shown, form or _SUFFIXES.get(output.suffix if output else "", GraphFormat.SVG))
    write_out(text, output)


def _lab(where: str | None) -> "Lab":
    """The topology of a file, if there is such a file; else that of a lab that runs."""
    from valemgr.cli_files import load_file

    if where is None or where == "-" or is_path(where) or Path(where).exists():
        return load_file(where)[1]
    from valemgr import labs

    return labs.present(labs.only_lab(where))


def _render(lab: "Lab", form: GraphFormat) -> str:
    from valemgr.drawing import graph as graphs
    from valemgr.drawing import picture

    writers = {
        GraphFormat.SVG: picture.svg,
        GraphFormat.MERMAID: graphs.mermaid,
        GraphFormat.DOT: graphs.dot,
        GraphFormat.JSON: graphs.as_json,
    }
    return writers[form](lab)
