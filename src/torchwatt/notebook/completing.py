"""Completion of the options of `%energy`."""

from __future__ import annotations

import re
from typing import Any

from IPython.core.error import TryNext

from torchwatt.notebook.flags import FLAGS
from torchwatt.notebook.shell import Shell

_HOOK = "complete_command"
_LINE = re.compile(r"%%?energy\b")


def add(shell: Shell) -> None:
    """Register completion of lines that begin with the magic."""
    shell.set_hook(_HOOK, complete, re_key=_LINE.pattern)


def remove(shell: Shell) -> None:
    """Remove the completion; IPython has no function for it."""
    dispatch = shell.strdispatchers.get(_HOOK)
    if dispatch is not None:
        dispatch.regexs.pop(_LINE, None)


def complete(_shell: Shell, event: Any) -> list[str]:
    """Return the options, or the choices of the option before the cursor.

    Raises:
        TryNext: There is neither; IPython completes by other means.
    """
    before = event.text_until_cursor[: len(event.text_until_cursor) - len(event.symbol)].split()
    flag = FLAGS.get(before[-1]) if before else None
    if flag is not None and flag.choices:
        return list(flag.choices)
    if event.symbol.startswith("-"):
        return list(FLAGS)
    raise TryNext
