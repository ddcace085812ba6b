# SPDX-License-Identifier: BSD-2-Clause
"""The words a user types. Thin: parses, calls, prints; what costs is imported where it is used.

Data goes to stdout, the rest to stderr. Exit codes: see errors.py.
"""

import logging
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valemgr import __version__, cli_files, cli_graph, cli_guest, cli_lab, cli_libvirt
from valemgr.accel import AccelChoice
from valemgr.cli_common import (
    EXIT_THRESHOLD,
    FormatOption,
    note,
    one_of,
    open_closed_streams,
    progress,
    run,
)
from valemgr.errors import UsageError, ValeError
from valemgr.output import Column, Format, emit, render

if TYPE_CHECKING:
    from valemgr.pair import PairReport

app = typer.Typer(
    name="valemgr",
    help="Launch virtual machines on VALE switches, wire them, measure what passes between them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
results_app = typer.Typer(help="Stored results.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(results_app, name="results")
cli_lab.register(app)
cli_guest.register(app)
cli_files.register(app)
cli_graph.register(app)
cli_libvirt.register(app)

PAIR_COLUMNS = (
    Column("frame", "frame", right=True),
    Column("sent_kpps", "sent\nkpps", right=True, digits=1),
    Column("received_kpps", "received\nkpps", right=True, digits=1),
    Column("mbit_s", "Mbit/s", right=True, digits=1),
    Column("loss_percent", "loss\n%", right=True, digits=2),
    Column("backend", "backend"),
    Column("provider", "provider"),
    Column("accelerator", "accel"),
    Column("ready_s", "ready\ns", right=True, digits=1),
    Column("conserved", "conserved"),
)
RATIO_COLUMN = Column("ratio", "×\nstream", right=True, digits=2)
RESULT_COLUMNS = (
    Column("id", "id", right=True),
    Column("kind", "kind"),
    Column("lab", "lab"),
    Column("started", "started"),
    Column("status", "status"),
    Column("valid", "valid"),
    Column("trials", "trials", right=True),
    Column("best_kpps", "best\nkpps", right=True, digits=1),
    Column("message", "message"),
)
TRIAL_COLUMNS = (
    Column("frame", "frame", right=True),
    Column("path", "path"),
    Column("seconds", "s", right=True),
    Column("sent_kpps", "sent\nkpps", right=True, digits=1),
    Column("received_kpps", "received\nkpps", right=True, digits=1),
    Column("mbit_s", "Mbit/s", right=True, digits=1),
    Column("loss_percent", "loss\n%", right=True, digits=2),
    Column("losses", "lost at"),
    Column("conserved", "conserved"),
)
SWITCH_COLUMNS = (Column("name", "switch"), Column("ports", "ports", right=True))
PORT_COLUMNS = (
    Column("name", "port"),
    Column("kind", "kind"),
    Column("peer_pid", "pid", right=True),
    Column("rx_frames", "rx\nframes", right=True),
    Column("rx_bytes", "rx\nbytes", right=True),
    Column("rx_dropped", "rx\ndropped"),
    Column("tx_offered", "tx\noffered", right=True),
    Column("tx_frames", "tx\nframes", right=True),
    Column("tx_bytes", "tx\nbytes", right=True),
    Column("tx_dropped", "tx\ndropped"),
)
DOCTOR_COLUMNS = (
    Column("check", "check"),
    Column("health", "health"),
    Column("detail", "detail"),
    Column("remedy", "remedy"),
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log to stderr too.")] = False,
) -> None:
    if version:
        emit(f"valemgr {__version__}\n")
        raise typer.Exit
    context.obj = progress(quiet)
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)


@app.command()
def pair(
    context: typer.Context,
    switch: Annotated[str, typer.Argument(help="The switch, as vale1.", show_default=False)],
    model: Annotated[str, typer.Option(help="virtio-net-pci, e1000 or e1000e.")] = "virtio-net-pci",
    frame: Annotated[str, typer.Option(help="Frame sizes, FCS included.")] = "64,512,1518",
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="Length of a trial.")] = 5.0,
    rate: Annotated[str, typer.Option(help="Frames a second offered, as 50k, or max.")] = "max",
    backend: Annotated[str, typer.Option(help="How NICs reach the switch.")] = "auto",
    baseline: Annotated[
        str | None, typer.Option(help="Measure this beside it: stream.", show_default=False)
    ] = None,
    trials: Annotated[int, typer.Option(min=1, max=1000, help="Rounds; the median counts.")] = 1,
    image: Annotated[str, typer.Option(help="The guests' image, or a path to one.")] = "micro",
    accel: Annotated[AccelChoice, typer.Option(help="What guests run on.")] = AccelChoice.AUTO,
    engine: Annotated[str, typer.Option(help="Who runs them: qemu, or libvirt.")] = "qemu",
    timeout: Annotated[
        float | None,
        typer.Option(min=0.1, help="Seconds for each guest's start; else 120, with a disk 600."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the guests running.")] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Launch two guests on one switch, measure UDP between them, clean up."""
    from valemgr import pair as pairs
    from valemgr.lablog import lab_log
    from valemgr.names import parse_switch
    from valemgr.words import Backend, Engine, NicModel

    request = pairs.PairRequest(
        switch=parse_switch(switch),
        frames=parse_frames(frame),
        model=one_of("--model", NicModel, model),
        backend=one_of("--backend", Backend, backend),
        seconds=seconds,
        rate=parse_rate(rate),
        baseline=_is_baseline(baseline),
        trials=trials,
        image=image,
        accel=accel,
        engine=one_of("--engine", Engine, engine),
        keep=keep,
        timeout=timeout,
    )
    with lab_log(request.switch):
        report = run(pairs.run(request, context.obj))
    _print_pair(report, form, keep, request.switch)


@app.command()
def switch(
    name: Annotated[str | None, typer.Argument(help="Show this switch's ports.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List switches; with a name, the ports and counters of one."""
    from valemgr import switchd
    from valemgr.errors import SwitchError
    from valemgr.names import parse_switch

    wanted = parse_switch(name) if name else None

    async def ask() -> list[dict[str, Any]] | None:
        async with switchd.connected() as daemon:
            if daemon is None:
                return None
            switches = await daemon.switches()
            if wanted is None:
                return switches
            if wanted not in {entry["name"] for entry in switches}:
                raise SwitchError(f"no switch {wanted}: it exists while a port on it is open")
            return [asdict(port) for port in await daemon.ports(wanted)]

    rows = run(ask())
    if rows is None:
        note("no valed runs here: there are no switches")
    elif not rows:
        note("no switch exists: one appears when a port on it is opened")
    columns, key = (PORT_COLUMNS, "ports") if wanted else (SWITCH_COLUMNS, "switches")
    if rows or form is not Format.TABLE:
        emit(render(form, columns, rows or [], key=key))


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Clean leftovers first.")] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Check this machine; exit code 4 if something is missing."""
    from valemgr import doctor as doctors

    findings = run(doctors.examine(fix))
    emit(render(form, DOCTOR_COLUMNS, [asdict(f) for f in findings], key="findings"))
    if any(finding.health is doctors.Health.BAD for finding in findings):
        raise typer.Exit(4)


@results_app.command("list")
def results_list(
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    form: FormatOption = Format.TABLE,
) -> None:
    """The newest results, newest first."""
    from valemgr.results import ResultStore, brief

    store = ResultStore()
    rows = [brief(result) for result in store.list(limit)]
    store.close()
    if not rows and form is Format.TABLE:
        note("no results yet; try 'valemgr pair vale1'")
    else:
        emit(render(form, RESULT_COLUMNS, rows, key="results"))


@results_app.command("show")
def results_show(
    result: Annotated[int, typer.Argument(help="The id; 0 is the newest.")] = 0,
    form: FormatOption = Format.TABLE,
) -> None:
    """One result: its trials, and where it came from (all of it in JSON)."""
    from valemgr.results import ResultStore, brief, headline, trial_row

    store = ResultStore()
    stored = store.get(result)
    store.close()
    document = asdict(stored) | {"valid": stored.valid}
    rows = [trial_row(trial) for trial in stored.trials]
    if form is Format.TABLE:
        emit(render(form, RESULT_COLUMNS, [brief(stored)]) + "\n")
        emit("".join(f"{line}\n" for line in headline(stored)) + "\n")
    emit(render(form, TRIAL_COLUMNS, rows, document))


def parse_frames(text: str) -> tuple[int, ...]:
    """`64,512,1518` as numbers; every size between 64 and 1518."""
    try:
        frames = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--frame {text}: sizes in bytes, separated by commas") from None
    for frame in frames:
        if not 64 <= frame <= 1518:
            raise UsageError(f"--frame {frame}: a frame has 64 to 1518 bytes, FCS included")
    if len(set(frames)) != len(frames):
        raise UsageError(f"--frame {text}: a size is named twice")
    return frames


def parse_rate(text: str) -> int | None:
    """`max` as None; `50000`, `50k`, `1.5M` as frames a second."""
    if text == "max":
        return None
    factor = {"k": 1e3, "M": 1e6}.get(text[-1:], 1)
    try:
        rate = round(float(text.rstrip("kM")) * factor)
    except (ValueError, OverflowError):
        rate = 0
    if not 1 <= rate <= 1_000_000_000:
        raise UsageError(f"--rate {text}: frames a second, as 50000, 50k or 1.5M, or max")
    return rate


def main() -> None:
    """Entry point: every error that is expected becomes one line and an exit code."""
    logging.raiseExceptions = False
    open_closed_streams()
    try:
        code = app(prog_name="valemgr", standalone_mode=False)
    except typer.TyperException as exc:
        code = _usage(exc)
    except ValeError as exc:
        note(str(exc), *exc.detail)
        code = exc.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code or 0)


def _usage(exc: typer.TyperException) -> int:
    text = exc.format_message().replace("Value error, ", "")
    if not text.startswith("Usage:"):
        text = f"{text[:1].lower()}{text[1:].rstrip('.')}: see --help"
        note(" ".join(text.split()))
    else:
        sys.stderr.write(text + "\n")
    return exc.exit_code


def _print_pair(report: "PairReport", form: Format, keep: bool, switch: str) -> None:
    rows = [asdict(row) for row in report.rows]
    with_ratio = any(row["ratio"] is not None for row in rows)
    columns = (*PAIR_COLUMNS, RATIO_COLUMN) if with_ratio else PAIR_COLUMNS
    emit(render(form, columns, rows, asdict(report)))
    if form is Format.TABLE:
        note(
            "received is the throughput; Mbit/s counts received frames with FCS, without preamble "
            "and gap",
            f"{report.provenance['placement']}; {report.provenance['accelerator']['name']}: "
            f"{report.provenance['accelerator']['reason']}",
        )
    note(f"stored as result {report.result} in {report.store}")
    if keep:
        note(f"next: valemgr ssh a | valemgr switch {switch} | valemgr down {switch}")
    else:
        note(f"next: valemgr results show {report.result} | valemgr pair {switch} --keep")
    if report.problems:
        note("the result is invalid, its frames do not add up:", *report.problems)
        raise typer.Exit(EXIT_THRESHOLD)


def _is_baseline(text: str | None) -> bool:
    if text not in (None, "stream"):
        raise UsageError(f"--baseline {text}: only stream is known")
    return text is not None
