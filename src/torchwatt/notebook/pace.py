"""How often something may be done that takes the interpreter from the program for a while."""

from __future__ import annotations

SHARE = 0.002  # of one CPU
CREDIT_S = 0.03  # so that a short run sees its layers, too
SHORTEST_S = 1.0
LATEST_S = 3.5  # what people look at is not to be older than five seconds
MOST_SHARE = 0.02  # of one CPU, for that


class Pace:
    """Spaces out work whose cost may grow, so that it stays below a share of one CPU.

    Work that would be late is done all the same, as long as it stays below `MOST_SHARE`; then ever later, never never.
    Times are seconds since the run began; the next cost is taken to be the last one.
    """

    def __init__(self, share: float = SHARE, credit_s: float = CREDIT_S) -> None:
        self._share = share
        self._credit_s = credit_s
        self._spent_s = 0.0
        self._last_cost_s = 0.0
        self._last_s = 0.0

    def due(self, t_s: float) -> bool:
        """Return whether the work may be done now."""
        waited_s = t_s - self._last_s
        if waited_s < SHORTEST_S:
            return False
        if self._spent_s + self._last_cost_s <= self._credit_s + self._share * t_s:
            return True
        return waited_s >= max(LATEST_S, self._last_cost_s / MOST_SHARE)

    def paid(self, t_s: float, cost_s: float) -> None:
        """Say that the work was done, and what CPU time it took."""
        self._last_s, self._last_cost_s = t_s, cost_s
        self._spent_s += cost_s
