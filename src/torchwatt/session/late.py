"""Interrupts that come while a session ends: first the run is brought home, then they go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Late:
    """Runs the steps of an end; a step that an interrupt breaks off is done once more, and the interrupt kept.

    A second interrupt of one step passes through: who presses three times wants out.
    """

    def __init__(self) -> None:
        self._interrupt: KeyboardInterrupt | None = None

    def run(self, step: Callable[[], T]) -> T:
        """Return what a step returns; it must be fit to be begun again."""
        try:
            return step()
        except KeyboardInterrupt as interrupt:
            self._interrupt = interrupt
            return step()

    def raise_it(self) -> None:
        """Raise the interrupt that was kept, if any."""
        if self._interrupt is not None:
            raise self._interrupt
