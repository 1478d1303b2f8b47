"""Warnings that never end in an exception of the user's program."""

from __future__ import annotations

import contextlib
import warnings

from torchwatt.core.plain_text import printable_lines


def warn(message: str, *, stacklevel: int = 2) -> None:
    """Issue a RuntimeWarning; where it cannot be shown, or is made an error, the program goes on without it.

    A script may have closed its `sys.stderr`, or run with `-W error`: a training must not end in our warning.
    """
    with contextlib.suppress(Exception):
        warnings.warn(printable_lines(message), RuntimeWarning, stacklevel=stacklevel + 1)
