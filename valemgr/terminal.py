# SPDX-License-Identifier: BSD-2-Clause
"""A guest's shell or command on our own terminal: what `ssh` and `exec` do.

Blocking by nature: one thread per direction. What `exec` writes to a terminal is stripped of
control characters, since it comes from a guest; an interactive `ssh` passes everything, since
that is its purpose.
"""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import paramiko

from valemgr.errors import SshError
from valemgr.screen import Screen, raw_terminal

CHUNK = 32768


def interactive(client: paramiko.SSHClient) -> int:
    """A login shell, on a pty if both our ends are a terminal. Its exit status."""
    channel = _open(client)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        channel.invoke_shell()
        return _relay(channel, stdin=True, strip=False)
    size = shutil.get_terminal_size()
    channel.get_pty(os.environ.get("TERM", "vt100"), size.columns, size.lines)
    channel.invoke_shell()
    with _raw_terminal(channel):
        return _relay(channel, stdin=True, strip=False)


def command(client: paramiko.SSHClient, line: str, stdin: bool) -> int:
    """One command. Its exit status."""
    channel = _open(client)
    channel.exec_command(line)
    if not stdin:
        channel.shutdown_write()
    return _relay(channel, stdin, strip=True)


def _open(client: paramiko.SSHClient) -> paramiko.Channel:
    transport = client.get_transport()
    if transport is None:
        raise SshError("SSH broke off: connection lost")
    return transport.open_session(timeout=10)


def _relay(channel: paramiko.Channel, stdin: bool, strip: bool) -> int:
    """Copy until the remote side ends. The thread that reads stdin may outlive it: a daemon."""
    if stdin:
        threading.Thread(target=_feed, args=(channel,), daemon=True).start()
    errors = threading.Thread(
        target=_copy, args=(channel.recv_stderr, sys.stderr, strip), daemon=True
    )
    errors.start()
    _copy(channel.recv, sys.stdout, strip)
    errors.join()
    return channel.recv_exit_status()


def _feed(channel: paramiko.Channel) -> None:
    while data := os.read(sys.stdin.fileno(), CHUNK):
        try:
            channel.sendall(data)
        except OSError:
            return
    channel.shutdown_write()


def _copy(receive: Callable[[int], bytes], stream: TextIO, strip: bool) -> None:
    screen = Screen(stream, strip)
    while data := receive(CHUNK):
        screen.write(data)
        screen.pause()


@contextmanager
def _raw_terminal(channel: paramiko.Channel) -> Iterator[None]:
    """Keys go to the guest as they are pressed, and a resized window is told."""

    def ended(*_: object) -> None:
        raise KeyboardInterrupt  # so that the terminal is as it was before

    def resized(*_: object) -> None:
        size = shutil.get_terminal_size()
        channel.resize_pty(size.columns, size.lines)

    handlers = {signal.SIGWINCH: resized, signal.SIGTERM: ended, signal.SIGHUP: ended}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with raw_terminal(sys.stdin.fileno()):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
