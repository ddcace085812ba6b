# SPDX-License-Identifier: BSD-2-Clause
"""valemgr(1) names every command and option that the program has, and no other."""

import re
from pathlib import Path

import pytest
import typer

from valemgr.cli import app

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).parents[2] / "docs" / "man" / "valemgr.1").read_text()


def of_program() -> tuple[set[str], set[str]]:
    """Commands (`results list`) and long options, of all commands together."""
    commands: set[str] = set()
    options: set[str] = set()
    todo = [("", typer.main.get_command(app))]
    while todo:
        prefix, command = todo.pop()
        for parameter in command.params:
            options |= {name for name in parameter.opts if name.startswith("--")}
        for name, child in getattr(command, "commands", {}).items():
            todo.append((f"{prefix}{name} ", child))
        if prefix and not hasattr(command, "commands"):
            commands.add(prefix.strip())
    return commands, options | {"--help"}


def test_commands_and_options_are_those_of_the_program() -> None:
    commands, options = of_program()
    synopsis = PAGE[PAGE.index(".Sh SYNOPSIS") : PAGE.index(".Sh DESCRIPTION")]
    named = {
        " ".join(word for word in line.removeprefix(".Cm ").split() if word.islower())
        for line in synopsis.splitlines()
        if line.startswith(".Cm ")
    }
    named = {re.sub(r" ?Ar .*| switch$", "", name) if name != "switch" else name for name in named}
    assert named == commands
    described = {f"--{name}" for name in re.findall(r"(?:Fl|,) -([a-z][a-z-]+)", PAGE)}
    assert described == options
