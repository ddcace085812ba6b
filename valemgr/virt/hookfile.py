# SPDX-License-Identifier: BSD-2-Clause
"""The file through which libvirt calls us: made, removed, and what a person must do then.

Facts of libvirt 9.0: its daemon runs what is in /etc/libvirt/hooks/qemu.d, that of a session too,
as the session's user; whether there is any hook it looks when it starts and when it reloads. The
environment is HOME, LC_ALL, PATH and USER alone, so the file says where we are.
"""

import grp
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from valemgr.errors import EnvironmentUnfitError, StoreError, UsageError
from valemgr.virt.portxml import NAMESPACE

SYSTEM_DIR = Path("/etc/libvirt/hooks/qemu.d")
NAME = "50-vale"
GROUPS = ("libvirt-qemu", "qemu")  # of QEMU: Debian's, Fedora's
MARK = "# Ports of valed come up with a domain: 'valemgr libvirt install-hook' wrote this file."

# Domains of others cost a shell and a cat. An error of ours must not end a guest at `reconnect`.
_TEXT = """\
#!/bin/sh
{mark}
# libvirt calls it as DOMAIN OPERATION ..., with the domain's XML on stdin; valemgr.virt.hook works.
python={python}
module={module}
group={group}
is_fatal() {{ [ "$1" = prepare ] || [ "$1" = start ]; }}
xml=$(cat)
case $2 in
prepare | reconnect | release) ;;
start) [ -z "$group" ] || exit 0 ;; # who QEMU will run as is only now in the XML
*) exit 0 ;;
esac
case $xml in *{namespace}*) ;; *) exit 0 ;; esac
if [ ! -x "$python" ] || [ ! -r "$module" ]; then
    echo "vale: domain $1 is to have VALE ports, but $python or $module is gone: install valemgr" \\
        "and run 'valemgr libvirt install-hook', or 'valemgr libvirt remove-hook' (rm $0)" >&2
    is_fatal "$2" && exit 1
    exit 0
fi
{exports}"$python" -P -m valemgr.virt.hook "$group" "$@" << END || ! is_fatal "$2"
$xml
END
"""


def text(group: str) -> str:
    """The file for the valemgr that runs now."""
    exports = []
    for name in ("PYTHONPATH", "VALE_BINDIR"):
        folders = [
            str(Path(each).absolute()) for each in os.environ.get(name, "").split(":") if each
        ]
        if folders:
            exports.append(f"export {name}={shlex.quote(':'.join(folders))}\n")
    return _TEXT.format(
        mark=MARK,
        python=shlex.quote(sys.executable),
        module=shlex.quote(str(Path(__file__).resolve().with_name("hook.py"))),
        group=shlex.quote(group),
        namespace=NAMESPACE,
        exports="".join(exports),
    )


def install(directory: Path | None, group: str | None) -> Path:
    """Write the hook; group: whose members connect to ports of a valed that it starts."""
    path = (directory or SYSTEM_DIR) / NAME
    chosen = _checked(group) if group is not None else _default_group(directory)
    _require_ours(path)
    fresh = path.with_name(f".{NAME}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600, exist_ok=False)  # libvirt runs only what is executable
        fresh.write_text(text(chosen), encoding="utf-8")
        fresh.chmod(0o755)
        fresh.replace(path)
    except OSError as exc:
        raise _unwritable(path, "install-hook", exc) from exc
    return path


def remove(directory: Path | None) -> Path | None:
    """Remove the hook; None: there was none."""
    path = (directory or SYSTEM_DIR) / NAME
    try:
        if not path.exists():
            return None
        _require_ours(path)
        path.unlink()
    except OSError as exc:
        raise _unwritable(path, "remove-hook", exc) from exc
    return path


def is_installed() -> bool:
    """Whether libvirt's daemon of this machine will call us."""
    return os.access(SYSTEM_DIR / NAME, os.X_OK)


def advice(path: Path) -> list[str]:
    """What a person should know who has just installed it."""
    lines = [
        "libvirt sees it when its daemon starts or reloads: 'systemctl reload libvirtd' (or "
        "virtqemud); domains go on. It serves domains of sessions, too"
    ]
    if path.parent.resolve() != SYSTEM_DIR:
        lines = [f"libvirt runs what is in {SYSTEM_DIR}, unless it was built otherwise"]
    code = Path(__file__).resolve()
    loose = [str(each) for each in (Path(sys.executable), code) if each.lstat().st_uid != 0]
    if loose and os.geteuid() == 0:
        lines.append(f"it runs as root, yet {loose[0]} is not root's: mind who may change that")
    return lines


def first_group(known: Iterable[str]) -> str:
    """QEMU's group on this machine; "": none."""
    names = set(known)
    return next((name for name in GROUPS if name in names), "")


def _default_group(directory: Path | None) -> str:
    if directory not in (None, SYSTEM_DIR) or os.geteuid() != 0:
        return ""
    return first_group(entry.gr_name for entry in grp.getgrall())


def _checked(group: str) -> str:
    try:
        return grp.getgrnam(group).gr_name if group else ""
    except KeyError:
        raise UsageError(f"--group {group}: no such group: that of QEMU's user is meant") from None


def _require_ours(path: Path) -> None:
    """Refuse a file that somebody else wrote."""
    try:
        said = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as exc:
        raise StoreError(f"{path}: {exc.strerror}") from exc
    if MARK not in said:
        raise StoreError(f"{path} is not ours: it stays as it is; move it, or use another --dir")


def _unwritable(path: Path, command: str, exc: OSError) -> EnvironmentUnfitError:
    if isinstance(exc, PermissionError):
        program = Path(sys.argv[0]).resolve()
        return EnvironmentUnfitError(
            f"only root may write {path}: run 'sudo {program} libvirt {command}'"
        )
    return EnvironmentUnfitError(f"{path}: {exc.strerror}")
