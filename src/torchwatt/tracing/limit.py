"""Bound memory: beyond a number of spans, steps are traced more and more rarely. Pure."""

from __future__ import annotations

RARER = 4


class Limit:
    """Decide whether a step that the budget grants may be traced, given the number of spans in memory.

    Beyond `max_spans` the mean time between traced steps is four times what it was before; each further eighth of
    `max_spans` quadruples it, so that spans grow with the logarithm of time. The interval is in time, not steps: a
    refused step costs nothing, so the budget would grant the next one instead.
    """

    def __init__(self, max_spans: int, start_ns: int) -> None:
        self.max_spans = max_spans
        self.rarer = 1  # factor on the interval before the limit
        self._limit = max_spans
        self._start_ns = self._last_ns = start_ns
        self._free = 0  # steps traced before the limit
        self._usual_ns = 0.0  # mean interval between them

    @property
    def message(self) -> str:
        """The message of the event."""
        return f"more than {self.max_spans} spans: steps are traced more rarely, the others are filled in"

    def allows(self, spans: int, now_ns: int) -> bool:
        """Return whether the next step may be traced."""
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
