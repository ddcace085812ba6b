# SPDX-License-Identifier: BSD-2-Clause
"""Commands for people whose machines are libvirt's: libvirt xml, attach, detach, move, list, …"""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from valemgr.accel import AccelChoice
from valemgr.cli_common import FormatOption, made_dir, note, one_of, run, write_out
from valemgr.errors import UsageError
from valemgr.output import Column, Format, emit, render

if TYPE_CHECKING:
    from valemgr.names import PortName
    from valemgr.topology import Lab
    from valemgr.virt.attach import Scope
    from valemgr.virt.connection import Libvirt
    from valemgr.virt.inventory import PluggedNic
    from valemgr.words import Backend

T = TypeVar("T")

libvirt_app = typer.Typer(
    help="VALE ports on libvirt's domains.", no_args_is_help=True, rich_markup_mode=None
)

ConnectOption = Annotated[
    str | None,
    typer.Option(
        "--connect",
        "-c",
        metavar="URI",
        help="The libvirt to talk to.",
        show_default="$LIBVIRT_DEFAULT_URI, root: qemu:///system, else qemu:///session",
    ),
]
DomainArgument = Annotated[
    str, typer.Argument(metavar="DOMAIN", help="Its name or UUID.", show_default=False)
]
PortArgument = Annotated[
    str, typer.Argument(metavar="PORT", help="The port, as vale1:a.", show_default=False)
]
LiveOption = Annotated[bool, typer.Option("--live", help="The running domain.")]
ConfigOption = Annotated[bool, typer.Option("--config", help="What it starts with next.")]
DirOption = Annotated[
    Path | None,
    typer.Option("--dir", help="libvirt's hooks/qemu.d.", show_default="/etc/libvirt/hooks/qemu.d"),
]

LIST_COLUMNS = (
    Column("domain", "domain"),
    Column("state", "state"),
    Column("port", "port"),
    Column("mac", "MAC"),
    Column("backend", "backend"),
    Column("when", "when"),
    Column("link", "link"),
)
STATUS_COLUMNS = (
    *LIST_COLUMNS,
    Column("rx_frames", "rx\nframes", right=True),
    Column("rx_bytes", "rx\nbytes", right=True),
    Column("rx_dropped", "rx\ndropped"),
    Column("tx_frames", "tx\nframes", right=True),
    Column("tx_bytes", "tx\nbytes", right=True),
    Column("tx_dropped", "tx\ndropped"),
)
CHANGE_COLUMNS = (Column("change", "change"),)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(libvirt_app, name="libvirt")


@libvirt_app.command()
def xml(
    topology: Annotated[
        str | None,
        typer.Argument(metavar="[TOPOLOGY]", help="A *.lab.yml, or its folder, or -."),
    ] = None,
    port: Annotated[
        list[str] | None,
        typer.Option(help="An <interface> on this port instead; may be repeated."),
    ] = None,
    guest: Annotated[str, typer.Option(help="This guest of it alone.", show_default="all")] = "",
    backend: Annotated[str, typer.Option(help="vhost-user, or netmap on our QEMU.")] = "vhost-user",
    emulator: Annotated[
        str, typer.Option(metavar="PATH", help="Their QEMU.", show_default="the stock one")
    ] = "",
    accel: Annotated[AccelChoice, typer.Option(help="What guests run on.")] = AccelChoice.AUTO,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="A file there for each.")
    ] = None,
    connect: ConnectOption = None,
) -> None:
    """Print the guests of a topology as domains, or interfaces on ports."""
    from valemgr.virt import attach as attaching
    from valemgr.virt import export

    rundir = attaching.rundir_at(connect)
    if port:
        if topology:
            raise UsageError("a topology, or --port: one of them")
        emit(export.interfaces([_port(each) for each in port], rundir))
        return
    how = _backend(backend)
    lab = _lab(topology, guest)
    made = run(export.domains(lab, guest, how, emulator, accel, rundir))
    if output is None and len(made) > 1:
        names = ", ".join(each.name for each in lab.guests)
        raise UsageError(f"{len(made)} domains: choose one by --guest ({names}), or use -o DIR")
    if output:
        made_dir(output)
    for each in made:
        write_out(each.xml, output / f"{each.name}.xml" if output else None)
        for line in each.notes:
            note(f"{each.name}: {line}")


@libvirt_app.command()
def attach(
    context: typer.Context,
    domain: DomainArgument,
    port: PortArgument,
    live: LiveOption = False,
    config: ConfigOption = False,
    mac: Annotated[
        str | None, typer.Option(help="Of the NIC.", show_default="a stable one")
    ] = None,
    queues: Annotated[int, typer.Option(min=1, max=8, help="Queue pairs.")] = 1,
    connect: ConnectOption = None,
) -> None:
    """Give a domain a NIC on a port; without --live or --config: both, where there are both."""
    from valemgr.virt import attach as attaching

    where, scope, address = _port(port), _scope(live, config), _mac(mac)
    _on(
        connect,
        lambda it: attaching.attach(it, domain, where, scope, context.obj, address, queues),
    )
    if config or not live:
        _mention_hook()


@libvirt_app.command()
def detach(
    context: typer.Context,
    domain: DomainArgument,
    port: PortArgument,
    live: LiveOption = False,
    config: ConfigOption = False,
    connect: ConnectOption = None,
) -> None:
    """Take a domain's NIC on a port away; the port goes with it."""
    from valemgr.virt import attach as attaching

    where, scope = _port(port), _scope(live, config)
    _on(connect, lambda it: attaching.detach(it, domain, where, scope, context.obj))


@libvirt_app.command()
def move(
    context: typer.Context,
    domain: DomainArgument,
    port: PortArgument,
    to: Annotated[str, typer.Argument(metavar="NEW", help="The new port.", show_default=False)],
    live: LiveOption = False,
    config: ConfigOption = False,
    connect: ConnectOption = None,
) -> None:
    """Put a domain's NIC on another port; its MAC stays, the guest sees it go and come."""
    from valemgr.virt import attach as attaching

    old, new, scope = _port(port), _port(to), _scope(live, config)
    _on(connect, lambda it: attaching.move(it, domain, old, new, scope, context.obj))


@libvirt_app.command()
def sync(
    context: typer.Context,
    domain: DomainArgument,
    connect: ConnectOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Make a domain's interfaces what the <vale:ports> of its metadata say, for its next start."""
    from valemgr.virt import attach as attaching

    changes = _on(connect, lambda it: attaching.sync(it, domain, context.obj))
    if form is Format.TABLE:
        emit("".join(f"{change}\n" for change in changes))
        if not changes:
            note(f"domain {domain}: its interfaces are what its metadata says")
    else:
        rows = [{"change": change} for change in changes]
        emit(render(form, CHANGE_COLUMNS, rows, key="changes"))
    _mention_hook()


@libvirt_app.command("list")
def list_nics(
    domain: Annotated[
        str | None, typer.Argument(metavar="[DOMAIN]", help="Of this one alone.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again whenever it changes, until Ctrl-C.")
    ] = False,
    connect: ConnectOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Which domains sit on which ports, now and when they start next."""
    from valemgr.virt import inventory

    async def follow() -> None:
        async for rows in inventory.watch(connect, domain):
            _print(rows, LIST_COLUMNS, form)

    if watch:
        run(follow())
    else:
        _print(_on(connect, lambda it: inventory.rows(it, domain)), LIST_COLUMNS, form)


@libvirt_app.command()
def status(
    domain: Annotated[
        str | None, typer.Argument(metavar="[DOMAIN]", help="Of this one alone.")
    ] = None,
    connect: ConnectOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """The same with the ports' counters. rx: from the guest, tx: to it."""
    from valemgr.virt import inventory

    _print(_on(connect, lambda it: inventory.rows(it, domain)), STATUS_COLUMNS, form)


@libvirt_app.command("install-hook")
def install_hook(
    group: Annotated[
        str | None,
        typer.Option(help="Whose members may use the ports.", show_default="QEMU's, as root"),
    ] = None,
    directory: DirOption = None,
) -> None:
    """Let libvirt bring up ports with the domains that list them in their metadata."""
    from valemgr.virt import hookfile

    path = hookfile.install(directory, group)
    note(f"installed {path}", *hookfile.advice(path))


@libvirt_app.command("remove-hook")
def remove_hook(directory: DirOption = None) -> None:
    """Take that back."""
    from valemgr.virt import hookfile

    path = hookfile.remove(directory)
    note(f"removed {path}" if path else "no hook of ours is there")


def _on(uri: str | None, work: "Callable[[Libvirt], Awaitable[T]]") -> T:
    """Work with a connection."""
    from valemgr.virt import connection

    async def connected() -> T:
        async with connection.connect(uri) as libvirt:
            return await work(libvirt)

    return run(connected())


def _backend(text: str) -> "Backend":
    from valemgr.words import Backend

    how = one_of("--backend", Backend, text)
    if how not in (Backend.VHOST_USER, Backend.NETMAP):
        raise UsageError(f"--backend {text}: vhost-user or netmap")
    return how


def _lab(where: str | None, guest: str) -> "Lab":
    from valemgr.cli_files import load_file

    lab = load_file(where)[1]
    if guest and lab.guest(guest) is None:
        known = ", ".join(each.name for each in lab.guests)
        raise UsageError(f"--guest {guest}: {lab.name} has {known}")
    return lab


def _port(text: str) -> "PortName":
    from valemgr.names import parse_port

    return parse_port(text)


def _mac(text: str | None) -> str | None:
    from valemgr.names import checked_mac

    try:
        return checked_mac(text.lower(), text) if text else None
    except ValueError as exc:
        raise UsageError(f"--mac: {exc}") from exc


def _scope(live: bool, config: bool) -> "Scope":
    """Neither flag: whatever there is."""
    from valemgr.virt.attach import Scope

    return Scope(live, config) if live or config else Scope()


def _print(rows: "list[PluggedNic]", columns: tuple[Column, ...], form: Format) -> None:
    if not rows and form is Format.TABLE:
        note("no domain has a NIC on a port: 'valemgr libvirt attach DOMAIN vale1:a' gives one")
    else:
        emit(render(form, columns, [asdict(row) for row in rows], key="nics"))


def _mention_hook() -> None:
    """Ports come up with a domain only if libvirt calls us."""
    from valemgr.virt import hookfile

    if not hookfile.is_installed():
        note("its ports come up with it once 'sudo valemgr libvirt install-hook' was run")
