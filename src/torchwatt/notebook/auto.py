"""`%energy on`: measures every cell until `%energy off`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from IPython.core.error import UsageError

from torchwatt.notebook.block import Block
from torchwatt.notebook.flags import Asked
from torchwatt.notebook.shell import Shell, cell_number

# A cell with its own `%energy` is not measured a second time.
_OWN = re.compile(r"\s*%%?energy\b")


class Auto:
    """Starts a measured block before each cell and ends it after the cell, also after an exception."""

    def __init__(self, shell: Shell, block: Callable[[Asked, str], Block]) -> None:
        self._shell = shell
        self._block = block
        self._asked: Asked | None = None
        self._open: Block | None = None
        self._ahead = 0

    def on(self, arguments: Asked) -> None:
        """Measure from the next cell on; a second call replaces the options.

        Raises:
            UsageError: An option names one output file for many cells.
        """
        for argument in ("csv", "html"):
            if argument in arguments.profile:
                raise UsageError(f"--{argument} names one output, and %energy on measures many cells")
        if self._asked is None:
            self._shell.events.register("pre_run_cell", self._before)
            self._shell.events.register("post_run_cell", self._after)
        self._asked = arguments
        # Depending on IPython's version, `execution_count` in a cell is the cell's own number or the next one.
        self._ahead = int(self._shell.execution_count) - cell_number(self._shell)

    def off(self) -> None:
        """Stop measuring; the block of the running cell ends now."""
        if self._asked is None:
            return
        self._asked = None
        self._shell.events.unregister("pre_run_cell", self._before)
        self._shell.events.unregister("post_run_cell", self._after)
        self._close(None)

    def _before(self, info: Any) -> None:
        if self._asked is None or self._open is not None or not info.raw_cell.strip() or _OWN.match(info.raw_cell):
            return
        block = self._block(self._asked, f"In [{self._shell.execution_count - self._ahead}]")
        block.__enter__()
        self._open = block

    def _after(self, result: Any) -> None:
        self._close(result.error_before_exec or result.error_in_exec)

    def _close(self, error: BaseException | None) -> None:
        block, self._open = self._open, None
        if block is not None:
            block.__exit__(None if error is None else type(error), error, None)
