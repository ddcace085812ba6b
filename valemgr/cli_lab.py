# SPDX-License-Identifier: BSD-2-Clause
"""Commands over a lab's life: up, apply, down, status, wait, save, inspect."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valemgr.accel import AccelChoice
from valemgr.cli_common import (
    EXIT_THRESHOLD,
    FormatOption,
    LabArgument,
    is_path,
    note,
    run,
    write_out,
)
from valemgr.output import Column, Format, emit, render

if TYPE_CHECKING:
    from valemgr.labtests import Verdict
    from valemgr.topology import Lab

FileArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="FILE|DIR|-", help="A *.lab.yml, or its folder.", show_default="the one here"
    ),
]
AccelOption = Annotated[AccelChoice, typer.Option(help="What guests run on.")]
TestOption = Annotated[bool, typer.Option("--test", help="Then run the topology's tests.")]
TimeoutOption = Annotated[
    float | None,
    typer.Option(min=0.1, help="Seconds for each guest's start; else 120, with a disk 600."),
]

STATUS_COLUMNS = (
    Column("lab", "lab"),
    Column("guest", "guest"),
    Column("state", "state"),
    Column("pid", "pid", right=True),
    Column("ssh_port", "ssh\nport", right=True),
    Column("ports", "ports"),
    Column("backends", "backends"),
    Column("addresses", "addresses"),
    Column("accelerator", "accel"),
    Column("provider", "provider"),
    Column("since", "since"),
)
INSPECT_COLUMNS = (
    Column("guest", "guest"),
    Column("nic", "NIC"),
    Column("mac", "MAC"),
    Column("addresses", "addresses"),
    Column("mtu", "MTU", right=True),
    Column("port", "port"),
    Column("peer", "peer"),
    Column("model", "model"),
    Column("backend", "backend"),
    Column("impair", "impairments"),
)
CHANGE_COLUMNS = (Column("change", "change"),)
TEST_COLUMNS = (
    Column("test", "test"),
    Column("passed", "passed"),
    Column("seconds", "s", right=True, digits=1),
    Column("detail", "detail"),
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (up, apply, down, status, wait, save, inspect):
        app.command()(command)


def up(
    context: typer.Context,
    file: FileArgument = None,
    accel: AccelOption = AccelChoice.AUTO,
    timeout: TimeoutOption = None,
    test: TestOption = False,
    keep_on_error: Annotated[
        bool, typer.Option("--keep-on-error", help="Leave what came up if something fails.")
    ] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Start a lab from its topology file, or go on where an earlier up was broken off."""
    from valemgr import lifecycle
    from valemgr.lablog import lab_log
    from valemgr.runner import RunOptions

    lab, source = load(file)
    options = RunOptions(keep=True, timeout=timeout, keep_on_error=keep_on_error, source=source)
    with lab_log(lab.name):
        outcome = run(lifecycle.up(lab, accel, options, context.obj))
    if not outcome.changes:
        note(f"lab {lab.name} runs as its topology says")
    _after(lab.name, test, context, form)


def apply(
    context: typer.Context,
    file: FileArgument = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only show the difference.")
    ] = False,
    accel: AccelOption = AccelChoice.AUTO,
    timeout: TimeoutOption = None,
    test: TestOption = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Make a running lab what its topology file says now; what is the same is not disturbed."""
    from valemgr import lifecycle
    from valemgr.lablog import lab_log
    from valemgr.runner import RunOptions

    lab, source = load(file)
    options = RunOptions(keep=True, timeout=timeout, source=source)
    with lab_log(lab.name):
        outcome = run(lifecycle.apply(lab, accel, options, context.obj, dry_run))
    if form is Format.TABLE:
        emit("".join(f"{line}\n" for line in outcome.changes))
        if not outcome.changes:
            note(f"lab {lab.name} runs as its topology says")
    rows = [{"change": line} for line in outcome.changes]
    _finish(lab.name, test and not dry_run, context, form, ("changes", CHANGE_COLUMNS, rows))


def down(
    context: typer.Context,
    lab: LabArgument = None,
    everything: Annotated[bool, typer.Option("--all", help="Every lab.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="End a command that works on it, too.")
    ] = False,
) -> None:
    """End a lab's guests and forget it. Safe to repeat."""
    from valemgr import labs, lifecycle
    from valemgr.lablog import lab_log

    async def end() -> None:
        name = lab_name(lab) if everything else lab_meant(lab)
        for lab_dir in labs.labs_to_end(name, everything):
            with lab_log(lab_dir.lab):
                ended = await lifecycle.end(lab_dir, force)
            context.obj(f"lab {lab_dir.lab}: {ended} guests ended")

    run(end())


def status(lab: LabArgument = None, form: FormatOption = Format.TABLE) -> None:
    """Show labs and guests that run."""
    from valemgr import labs

    rows = [asdict(guest) for guest in run(labs.status(lab_name(lab)))]
    if not rows and form is Format.TABLE:
        note("no lab runs; start one by 'valemgr up' or 'valemgr pair vale1 --keep'")
    else:
        emit(render(form, STATUS_COLUMNS, rows, key="guests"))
    for name in labs.unreadable():
        note(f"lab {name}: its state file is of no use: 'valemgr down {name}' cleans up")


def wait(
    context: typer.Context,
    lab: LabArgument = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for the whole lab.")] = 300.0,
    test: TestOption = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Wait until every guest of a lab is ready; exit code 5 if that takes too long."""
    from valemgr import labs
    from valemgr.deadline import Deadline

    lab_dir = labs.only_lab(lab_meant(lab))
    run(labs.wait(lab_dir, Deadline(timeout)))
    context.obj(f"lab {lab_dir.lab}: every guest is ready")
    if test:
        _finish(lab_dir.lab, test, context, form)


def save(
    lab: LabArgument = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file instead of stdout.")
    ] = None,
) -> None:
    """Print a lab's topology as it runs now, every address and MAC said."""
    from valemgr import labs
    from valemgr.labfile import dump_lab

    write_out(dump_lab(labs.present(labs.only_lab(lab_meant(lab)))), output)


def inspect(lab: LabArgument = None, form: FormatOption = Format.TABLE) -> None:
    """Show every NIC of a lab with its addresses, port and peer."""
    from valemgr import labs

    emit(render(form, INSPECT_COLUMNS, labs.inspect(labs.only_lab(lab_meant(lab))), key="nics"))


def load(where: str | None) -> tuple["Lab", str]:
    """A topology file and where it is; `-` is stdin."""
    from valemgr.cli_files import load_file

    name, lab = load_file(where)
    return lab, "stdin" if where == "-" else str(Path(name).resolve())


def lab_name(where: str | None) -> str | None:
    """A lab's name; of a topology file, the name that it gives."""
    if where and (is_path(where) or where == "."):
        return load(where)[0].name
    return where


def lab_meant(where: str | None) -> str | None:
    """The same; without a word, where several labs run, that of the only topology file here."""
    from valemgr.errors import UsageError
    from valemgr.state import LabDir, all_labs

    if where is None and len(all_labs()) > 1:
        with suppress(UsageError):
            here = load(None)[0].name
            return here if LabDir(here).exists else None
    return lab_name(where)


Report = tuple[str, tuple[Column, ...], list[dict[str, Any]]]


def _after(name: str, test: bool, context: typer.Context, form: Format) -> None:
    from valemgr import labs

    rows: list[dict[str, Any]] = []
    if form is not Format.TABLE:
        rows = [asdict(guest) for guest in run(labs.status(name))]
    try:
        _finish(name, test, context, form, ("guests", STATUS_COLUMNS, rows))
    finally:
        if form is Format.TABLE:
            note(f"next: valemgr status | valemgr ssh GUEST --lab {name} | valemgr down {name}")


def _finish(
    name: str, test: bool, context: typer.Context, form: Format, report: Report | None = None
) -> None:
    """Say what was done, for programs, and run the tests: one document. Exit 3 if a test fails.

    Formats that hold one table only have that of the tests, where tests were asked for.
    """
    verdicts = run(_test(name, context)) if test else []
    tests = [asdict(verdict) for verdict in verdicts]
    if form is Format.JSON:
        key, columns, rows = report or ("tests", TEST_COLUMNS, tests)
        document = {key: rows, **({"tests": tests} if test else {})}
        emit(render(form, columns, rows, document))
    elif test and (tests or form is not Format.TABLE):
        emit(render(form, TEST_COLUMNS, tests))
    elif report and form is not Format.TABLE:
        emit(render(form, report[1], report[2]))
    if test and not tests:
        note(f"lab {name} has no tests")
    if not all(verdict.passed for verdict in verdicts):
        raise typer.Exit(EXIT_THRESHOLD)


async def _test(name: str, context: typer.Context) -> "list[Verdict]":
    from valemgr import labs, labtests
    from valemgr.state import LabDir

    async with labs.attached(LabDir(name)) as lab:
        return await labtests.run(lab, context.obj)
