# SPDX-License-Identifier: BSD-2-Clause
"""Commands that look into a guest: ssh, exec, cp, console, logs.

The first two return the remote exit code, and 125 when valemgr itself failed.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from valemgr import completion
from valemgr.cli_common import EXIT_OURS, GuestArgument, LabOption, note, one_of, run
from valemgr.errors import InterruptedRunError, UsageError, ValeError
from valemgr.output import emit

if TYPE_CHECKING:
    from valemgr.ssh import SshSession
    from valemgr.tally import Tally

CONNECT_SECONDS = 15.0

_PLACE = re.compile(r"((?:[0-9a-zA-Z_-]+/)?[0-9a-zA-Z_-]+):(.*)", re.DOTALL)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(ssh)
    for command in (cp, console, logs):
        app.command()(command)
    app.command("exec", context_settings={"allow_interspersed_args": False})(exec_)


def ssh(
    guest: GuestArgument,
    lab: LabOption = None,
    only_print: Annotated[
        bool, typer.Option("--print", help="Only print the line for OpenSSH that does it.")
    ] = False,
) -> None:
    """Open a shell in a guest. Returns the shell's exit code, 125 if it cannot be reached."""
    from valemgr import guests, terminal

    if only_print:
        with _failing_by_125():
            emit(guests.find_alive(guest, lab).openssh() + "\n")
        return
    raise typer.Exit(_remotely(guest, lab, lambda session: terminal.interactive(session.client)))


def exec_(
    guest: GuestArgument,
    command: Annotated[list[str], typer.Argument(help="The command, after --.")],
    lab: LabOption = None,
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Pass stdin on.")] = False,
) -> None:
    """Run a command in a guest. Returns its exit code, 125 if it could not be run."""
    import shlex

    from valemgr import terminal

    words = command[1:] if command[0] == "--" else command
    line = words[0] if len(words) == 1 else shlex.join(words)
    code = _remotely(guest, lab, lambda session: terminal.command(session.client, line, stdin))
    raise typer.Exit(code)


def cp(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A path; in a guest, GUEST:PATH.", autocompletion=completion.places
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="DST", help="The same, of the copy.", autocompletion=completion.places
        ),
    ],
    lab: LabOption = None,
    limit: Annotated[str, typer.Option(help="At most so much out of a guest.")] = "4G",
) -> None:
    """Copy a file or folder into a guest or out of it; an existing folder takes it in."""
    from valemgr import copy

    there, here = parse_place(source), parse_place(target)
    if bool(there) == bool(here):
        wrong = "both are in guests" if here else "neither is in a guest"
        raise UsageError(f"{source} and {target}: {wrong}; one is a path here, one is GUEST:PATH")
    most = _size("--limit", limit)

    async def work() -> "Tally":
        session = await _connect((there or here or ("", ""))[0], lab)
        try:
            if there:
                return await copy.copy_from(session, there[1], Path(target), most, context.obj)
            path = here[1] if here else ""
            return await copy.copy_to(session, Path(source), path, parents=False, say=context.obj)
        finally:
            session.close()

    tally = run(work())
    context.obj(str(tally))
    if tally.omitted:
        note("not copied:", *tally.omissions)
        raise typer.Exit(1)


def console(
    guest: GuestArgument,
    lab: LabOption = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--for",
            min=0,
            help="Leave after so many seconds; without a terminal, counted from the input's end "
            "(then 2 if not given).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Attach to a guest's serial console; Ctrl-] leaves. Without a terminal, sends stdin."""
    from valemgr import console as consoles
    from valemgr import guests

    if not run(consoles.attach(guests.find_alive(guest, lab), seconds)):
        note(f"guest {guest} ended: its console hung up")


def logs(
    guest: Annotated[
        str | None,
        typer.Argument(
            help="The guest's name.", show_default=False, autocompletion=completion.guests
        ),
    ] = None,
    lab: Annotated[
        str | None,
        typer.Option(
            "--lab",
            "-l",
            help="The lab, also one that ran.",
            autocompletion=completion.labs_with_logs,
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="console, qemu, lab or switch; if not given, a guest's console, else the lab's.",
            show_default=False,
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on while it grows.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="The last so many; 0: all.")
    ] = 100,
) -> None:
    """Show what a guest's console, its QEMU, a lab's valemgr or the switch daemon said."""
    from valemgr import logfiles
    from valemgr.screen import Screen

    log = logfiles.find(one_of("--kind", logfiles.Kind, kind) if kind else None, guest, lab)
    if not follow and log.path.is_file() and not log.path.stat().st_size:
        note(f"{log.what} said nothing so far")
    try:
        run(logfiles.show(log, lines, Screen(sys.stdout), follow))
    except InterruptedRunError as exc:
        raise typer.Exit(exc.exit_code) from exc


def parse_place(text: str) -> tuple[str, str] | None:
    """Guest and path of `GUEST:PATH` or `LAB/GUEST:PATH`; None is a path here, as `./a:b` is."""
    match = _PLACE.fullmatch(text)
    if match is None:
        return None
    path = match[2] if match[2] != "~" else ""
    return match[1], path.removeprefix("~/")


def _size(option: str, text: str) -> int:
    from valemgr import units

    try:
        return int(units.size(text))
    except ValueError as exc:
        raise UsageError(f"{option} {exc}") from None


def _remotely(guest: str, lab: str | None, work: Callable[["SshSession"], int]) -> int:
    with _failing_by_125():
        session = run(_connect(guest, lab))
        try:
            return work(session)
        finally:
            session.close()


async def _connect(guest: str, lab: str | None) -> "SshSession":
    from valemgr import guests
    from valemgr.deadline import Deadline
    from valemgr.ssh import SshSession

    return await SshSession.connect(guests.find_alive(guest, lab).ssh, Deadline(CONNECT_SECONDS))


@contextmanager
def _failing_by_125() -> Iterator[None]:
    """What valemgr itself fails of must not be taken for the remote command's exit code."""
    try:
        yield
    except InterruptedRunError:
        raise
    except ValeError as exc:
        note(str(exc), *exc.detail)
        raise typer.Exit(EXIT_OURS) from exc
