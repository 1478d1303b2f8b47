"""How often something that costs more and more may be done."""

from __future__ import annotations

SHARE = 0.002  # of one CPU
CREDIT_S = 0.03  # so that a short run sees its layers, too
SHORTEST_S = 1.0
LONGEST_S = 0.5  # the interpreter is held for about as long: more would be felt


class Pace:
    """Spaces out work whose cost grows with the run, so that all of it stays below a share of one CPU.

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
        if t_s - self._last_s < SHORTEST_S or self._last_cost_s > LONGEST_S:
            return False
        return self._spent_s + self._last_cost_s <= self._credit_s + self._share * t_s

    def paid(self, t_s: float, cost_s: float) -> None:
        """Say that the work was done, and what CPU time it took."""
        self._last_s, self._last_cost_s = t_s, cost_s
        self._spent_s += cost_s
