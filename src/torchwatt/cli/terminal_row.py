"""The last row of a terminal, kept for one line of text; runs in a helper process.

The row is outside of the terminal's scrolling region, so the program's output scrolls above it and is never mixed with
it. The helper restores the terminal when its input ends, however the program ended, also by SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from io import StringIO
from unicodedata import east_asian_width

TERMINAL = 2  # stderr
HIDDEN_AFTER_S = 3.0  # without a new line: the program is stopped, and the terminal belongs to the shell
MIN_ROWS = 4


class TerminalRow:
    """Writes to the last row of the terminal behind a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size: os.terminal_size | None = None  # with which the row was reserved; None: it is not

    def show(self, text: str) -> None:
        """Replace the row's text, after reserving the row if it is not, or if the terminal's size has changed.

        Raises:
            OSError: The terminal is gone.
        """
        size = os.get_terminal_size(self._fd)
        if size != self._size:
            self.hide()
            if size.lines < MIN_ROWS:
                return
            # One line down and up again, so that the cursor is never in the reserved row.
            self._write(f"\x1bD\x1b7\x1b[1;{size.lines - 1}r\x1b8\x1b[A")
            self._size = size
        self._write(f"\x1b7\x1b[{size.lines};1H\x1b[2K{render_row(text, size.columns - 1)}\x1b8")

    def hide(self) -> None:
        """Clear the row and let the whole terminal scroll again.

        Raises:
            OSError: The terminal is gone.
        """
        size, self._size = self._size, None
        if size is not None:
            self._write(f"\x1b7\x1b[r\x1b[{size.lines};1H\x1b[2K\x1b8")

    def _write(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self._fd, data) :]


def render_row(text: str, columns: int) -> str:
    """Truncate a text to a number of columns; its numbers are bold if rich is installed."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        return _cut(text, columns)
    styled = Text(text, end="")
    styled.highlight_regex(r"\d[\d.]* ?\S*?[WJhg%](?= |$)", "bold")
    styled.truncate(columns, overflow="ellipsis")
    console = Console(file=StringIO(), force_terminal=True, width=columns + 1, legacy_windows=False)
    with console.capture() as capture:
        console.print(styled, end="", highlight=False)
    return capture.get()


def _cut(text: str, columns: int) -> str:
    """Return the start of a text that fits; East Asian wide characters take two columns."""
    width = 0
    for index, char in enumerate(text):
        width += 2 if east_asian_width(char) in {"W", "F"} else 1
        if width > columns:
            return text[:index]
    return text


def main(arguments: Sequence[str]) -> None:
    """Show each line of stdin until it ends; then restore the terminal.

    Args:
        arguments: A descriptor that stays open until the terminal is restored.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTTOU, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    row, pending = TerminalRow(TERMINAL), b""
    with contextlib.suppress(OSError):
        while True:
            if not select.select([0], [], [], HIDDEN_AFTER_S)[0]:
                row.hide()
                continue
            data = os.read(0, 1 << 16)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            if lines:
                row.show(lines[-1].decode(errors="replace"))
        row.hide()
    os.close(int(arguments[0]))
    sys.exit(0)
