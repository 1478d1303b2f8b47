"""Keeping memory bounded: after so many spans only one step in n is traced module by module. Pure."""

from __future__ import annotations

FIRST_PERIOD = 16  # steps


class Limit:
    """Decide before each step whether it may be traced, given how many spans are kept so far.

    Beyond `max_spans` one step in 16; each further eighth of `max_spans` doubles the period, so that the
    number of spans grows with the logarithm of the number of steps.
    """

    def __init__(self, max_spans: int) -> None:
        self.max_spans = max_spans
        self.period = FIRST_PERIOD
        self._limit = max_spans
        self._steps = 0

    @property
    def message(self) -> str:
        """What to tell the user."""
        return f"more than {self.max_spans} spans: one step in {self.period} is traced, the others are filled in"

    def allows(self, spans: int) -> bool:
        """Say whether the next step may be traced."""
        if spans <= self.max_spans:
            return True
        if spans > self._limit:
            self._limit = spans + max(self.max_spans // 8, 1)
            self.period *= 2 if self._steps else 1
        self._steps += 1
        return self._steps % self.period == 0
