"""A measured block of a cell: starts a run, stores it under its name, and shows it once."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from torchwatt.core.errors import ConfigError, FactorError
from torchwatt.notebook.frontend import Shell, cell_number
from torchwatt.notebook.magic_options import MagicArguments, translate_options
from torchwatt.notebook.notebook_view import NotebookView

if TYPE_CHECKING:
    from torchwatt.session import Run


class MeasuredBlock:
    """Measures the code in the block; an exception passes through, and the report up to it is shown.

    Args:
        arguments: The options.
        name: Names the run if the options do not.
        keep: Called with the run when it begins and when it ends, also after an exception.
    """

    def __init__(self, arguments: MagicArguments, name: str, keep: Callable[[Run], None]) -> None:
        self._asked = arguments
        self._keep = keep
        self._arguments: dict[str, Any] = {"name": name, "live": "off", **arguments.profile}

    def __enter__(self) -> None:
        # Replaces the view that `profile()` would make, because this one uses the options of the magic.
        self._view = NotebookView(live=self._asked.live, quiet=self._asked.quiet)
        from torchwatt.session import profile  # imports torch; not before a measurement

        try:
            self._profile = profile(**self._arguments)
            self._run = self._profile.__enter__()
        except (ConfigError, FactorError) as error:
            raise UsageError(translate_options(str(error))) from error
        # Stored from the start, so that the cell itself can call `run.step()` and `run.count()`.
        self._keep(self._run)
        self._view.begin(self._run)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.pause()
        try:
            self._profile.__exit__(kind, error, trace)
        finally:
            # Again, because the cell may have assigned another value to the name.
            self._keep(self._run)
        self._view.end()


# A cell with its own `%energy` is not measured a second time.
_ENERGY_CELL = re.compile(r"\s*%%?energy\b")


class AutomaticMeasurement:
    """Starts a measured block before each cell and ends it after the cell, also after an exception."""

    def __init__(self, shell: Shell, block: Callable[[MagicArguments, str], MeasuredBlock]) -> None:
        self._shell = shell
        self._block = block
        self._asked: MagicArguments | None = None
        self._open: MeasuredBlock | None = None
        self._ahead = 0

    def on(self, arguments: MagicArguments) -> None:
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
        if (
            self._asked is None
            or self._open is not None
            or not info.raw_cell.strip()
            or _ENERGY_CELL.match(info.raw_cell)
        ):
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
