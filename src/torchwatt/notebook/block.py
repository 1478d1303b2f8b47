"""The measured part of a cell: begun, kept under its name, and shown exactly once."""

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
    """Measure what runs inside; exceptions pass through, and the report of what ran until then is shown.

    Args:
        asked: The options.
        name: Names the run if the options do not.
        keep: Is told the run when it begins and when it ends, whatever ends it.
    """

    def __init__(self, asked: Asked, name: str, keep: Callable[[Run], None]) -> None:
        self._asked = asked
        self._keep = keep
        self._arguments: dict[str, Any] = {"name": name, "live": "off", **asked.profile}

    def __enter__(self) -> None:
        # Ours, and not `profile()`'s own, which every `with` block has: this one knows the options of the magic.
        self._view = View(live=self._asked.live, quiet=self._asked.quiet)
        from torchwatt.session import profile  # imports torch: not before something is measured

        try:
            self._profile = profile(**self._arguments)
            self._run = self._profile.__enter__()
        except (ConfigError, FactorError) as error:
            raise UsageError(in_flags(str(error))) from error
        # Kept from the start, so that the cell itself can call `run.step()` and `run.count()`.
        self._keep(self._run)
        self._view.begin(self._run)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.pause()
        try:
            self._profile.__exit__(kind, error, trace)
        finally:
            # Again: the cell may have used the name for something else.
            self._keep(self._run)
        self._view.end()
