"""Keep Kineto's two `USDT:` lines per window out of the user's stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NOISE = b"USDT:"


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Catch what is written to file descriptor 2 for a moment, and pass on everything but Kineto's own lines.

    Kineto reads its log level when torch is imported, which is before us. Another thread's words written meanwhile
    are passed on when the moment is over.
    """
    try:
        sys.stderr.flush()
        real = os.dup(2)
    except (OSError, ValueError, AttributeError):  # no stderr: nothing to keep clean
        yield
        return
    held = os.memfd_create("torchwatt-stderr") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(held, 2)
        try:
            yield
        finally:
            os.dup2(real, 2)
        _pass_on(held)
    finally:
        os.close(real)
        os.close(held)


def _pass_on(held: int) -> None:
    size = os.fstat(held).st_size
    if size == 0:
        return
    words = os.pread(held, size, 0)
    kept = b"".join(line for line in words.splitlines(keepends=True) if not line.startswith(_NOISE))
    if kept:
        os.write(2, kept)
