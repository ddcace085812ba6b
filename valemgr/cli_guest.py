# SPDX-License-Identifier: BSD-2-Clause
"""Commands that look into a guest: ssh, exec.

These two return the remote exit code, and 125 when valemgr itself failed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from valemgr.cli_common import EXIT_OURS, GuestArgument, LabOption, note, run
from valemgr.errors import InterruptedRunError, ValeError

if TYPE_CHECKING:
    from valemgr.ssh import SshSession

CONNECT_SECONDS = 15.0


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(ssh)
    app.command("exec", context_settings={"allow_interspersed_args": False})(exec_)


def ssh(guest: GuestArgument, lab: LabOption = None) -> None:
    """Open a shell in a guest. Returns the shell's exit code, 125 if it cannot be reached."""
    from valemgr import terminal

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
