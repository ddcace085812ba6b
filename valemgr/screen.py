# SPDX-License-Identifier: BSD-2-Clause
"""What comes from a guest, on our stdout or stderr.

As it is into a file or a pipe; on a terminal without control characters, and no line longer than
COLUMNS_MAX.
"""

import codecs
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from valemgr.text import harmless

COLUMNS_MAX = 4000


class Screen:
    """Bytes in, text out. Lines are kept until they end, since escape sequences come in pieces."""

    def __init__(self, stream: TextIO, strip: bool = True) -> None:
        self._stream = stream
        self._strip = strip and stream.isatty()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begun = ""
        self._column = 0

    def write(self, data: bytes) -> None:
        """Show whole lines; what has no end yet waits for it or for `pause`."""
        if not self._strip:
            self._stream.buffer.write(data)
            return
        *lines, self._begun = (self._begun + self._decoder.decode(data)).split("\n")
        for line in lines:
            self._show(line)
            self._stream.write("\n")
            self._column = 0
        if len(self._begun) > COLUMNS_MAX:
            self._show(self._begun)
            self._begun = ""

    def pause(self) -> None:
        """Nothing follows for now: show a line that has not ended, as a prompt."""
        self._show(self._begun)
        self._begun = ""
        self._stream.flush()

    def _show(self, text: str) -> None:
        text = harmless(text)
        room = COLUMNS_MAX - self._column
        if 0 < room < len(text):
            text = text[: room - 1] + "…"
        self._column += len(text)
        self._stream.write(text[: max(0, room)])


@contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Keys come as they are pressed, also those that would interrupt us; undone at the end."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)  # what is typed already is not lost
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
