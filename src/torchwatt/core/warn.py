"""Warnings that never raise an exception in the user's program."""

from __future__ import annotations

import contextlib
import warnings

from torchwatt.core.plain_text import printable_lines


def warn(message: str, *, stacklevel: int = 2) -> None:
    """Issue a RuntimeWarning; if it cannot be shown or filters turn it into an error, do nothing.

    A script may have closed its `sys.stderr`, or run with `-W error`.
    """
    with contextlib.suppress(Exception):
        warnings.warn(printable_lines(message), RuntimeWarning, stacklevel=stacklevel + 1)
