"""A measured block of a cell: starts a run, stores it under its name, and shows it once."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from torchwatt.core.errors import ConfigError, FactorError
from torchwatt.notebook.flags import Asked, in_flags
from torchwatt.notebook.live import View

if TYPE_CHECKING:
    from torchwatt.session import Run


class Block:
    """Measures the code in the block; an exception passes through, and the report up to it is shown.

    Args:
        arguments: The options.
        name: Names the run if the options do not.
        keep: Called with the run when it begins and when it ends, also after an exception.
    """

    def __init__(self, arguments: Asked, name: str, keep: Callable[[Run], None]) -> None:
        self._asked = arguments
        self._keep = keep
        self._arguments: dict[str, Any] = {"name": name, "live": "off", **arguments.profile}

    def __enter__(self) -> None:
        # Replaces the view that `profile()` would make, because this one uses the options of the magic.
        self._view = View(live=self._asked.live, quiet=self._asked.quiet)
        from torchwatt.session import profile  # imports torch; not before a measurement

        try:
            self._profile = profile(**self._arguments)
            self._run = self._profile.__enter__()
        except (ConfigError, FactorError) as error:
            raise UsageError(in_flags(str(error))) from error
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
