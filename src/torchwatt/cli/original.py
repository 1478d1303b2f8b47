"""The stderr with which `torchwatt run` was started, independent of what the script does to `sys.stderr`."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

from torchwatt.core.plain_text import encodable, printable_lines


class OriginalStderr:
    """A duplicate of the initial stderr, because a script may replace, redirect or close `sys.stderr`.

    A forked child closes it, so that a daemon does not keep the terminal or a pipe open.

    Args:
        quiet: Write nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._stream: TextIO | None = None
        self._fd = -1
        if quiet or sys.stderr is None:
            return
        self._stream = sys.stderr
        with contextlib.suppress(OSError, ValueError):
            self._fd = os.dup(sys.stderr.fileno())
            self._file = os.fstat(self._fd)
            os.register_at_fork(after_in_child=self._close)

    def say(self, text: str) -> None:
        """Write text and a newline; does nothing if the stream is closed."""
        if self._stream is None:
            return
        text = encodable(printable_lines(text), self._stream.encoding)
        with contextlib.suppress(OSError, ValueError):
            if self._fd < 0:
                print(text, file=self._stream, flush=True)
                return
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.flush()  # the script's output comes first
            if os.path.samestat(os.fstat(self._fd), self._file):  # the script may have closed our descriptor
                self._write((text + "\n").encode(self._stream.encoding or "utf-8", "backslashreplace"))

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def _close(self) -> None:
        fd, self._fd, self._stream = self._fd, -1, None
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
