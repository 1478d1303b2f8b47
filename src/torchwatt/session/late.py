"""Defers Ctrl-C until the session is closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Late:
    """Runs the steps that close a session; a step interrupted by Ctrl-C runs once more, and the interrupt is kept.

    A second Ctrl-C in one step is raised at once.
    """

    def __init__(self) -> None:
        self._interrupt: KeyboardInterrupt | None = None

    def run(self, step: Callable[[], T]) -> T:
        """Return the result of a step, which must be safe to run again."""
        try:
            return step()
        except KeyboardInterrupt as interrupt:
            self._interrupt = interrupt
            return step()

    def raise_it(self) -> None:
        """Raise the interrupt that was kept, if any."""
        if self._interrupt is not None:
            raise self._interrupt
