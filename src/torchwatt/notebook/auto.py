"""`%energy on`: every cell is measured until `%energy off`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from IPython.core.error import UsageError

from torchwatt.notebook.block import Block
from torchwatt.notebook.flags import Asked
from torchwatt.notebook.shell import Shell, cell_number

# A cell that says itself what is measured is left alone.
_OWN = re.compile(r"\s*%%?energy\b")


class Auto:
    """Opens a block before each cell and closes it after, whatever the cell does."""

    def __init__(self, shell: Shell, block: Callable[[Asked, str], Block]) -> None:
        self._shell = shell
        self._block = block
        self._asked: Asked | None = None
        self._open: Block | None = None
        self._ahead = 0

    def on(self, asked: Asked) -> None:
        """Begin with the next cell; again: with other options."""
        for argument in ("csv", "html"):
            if argument in asked.profile:
                raise UsageError(f"--{argument} names one file, and %energy on measures many cells")
        if self._asked is None:
            self._shell.events.register("pre_run_cell", self._before)
            self._shell.events.register("post_run_cell", self._after)
        self._asked = asked
        # Depending on IPython's version, the count that a cell sees is its own or the next one.
        self._ahead = int(self._shell.execution_count) - cell_number(self._shell)

    def off(self) -> None:
        """Stop; the cell that says so is not measured to its end."""
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
