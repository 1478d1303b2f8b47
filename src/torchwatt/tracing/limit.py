"""Keeping memory bounded: after so many spans steps are traced module by module ever more rarely. Pure."""

from __future__ import annotations

RARER = 4


class Limit:
    """Decide whether a step that the budget grants may be traced, given how many spans are kept so far.

    Beyond `max_spans` traced steps lie four times as far apart in time as they did on average until then; each further
    eighth of `max_spans` quadruples that, so that spans grow with the logarithm of the time. It is the time that
    counts: a step that is refused costs nothing, so the budget would grant the next one instead.
    """

    def __init__(self, max_spans: int, start_ns: int) -> None:
        self.max_spans = max_spans
        self.rarer = 1  # than until the limit
        self._limit = max_spans
        self._start_ns = self._last_ns = start_ns
        self._free = 0  # traced before the limit
        self._usual_ns = 0.0  # between two of them

    @property
    def message(self) -> str:
        """What to tell the user."""
        return f"more than {self.max_spans} spans: steps are traced more rarely, the others are filled in"

    def allows(self, spans: int, now_ns: int) -> bool:
        """Say whether the next step may be traced."""
        if spans <= self.max_spans and self.rarer == 1:
            self._free += 1
            self._last_ns = now_ns
            return True
        if spans > self._limit:
            if self.rarer == 1:
                self._usual_ns = (now_ns - self._start_ns) / max(self._free, 1)
            self.rarer *= RARER
            self._limit = spans + max(self.max_spans // 8, 1)
        if now_ns - self._last_ns < self.rarer * self._usual_ns:
            return False
        self._last_ns = now_ns
        return True
