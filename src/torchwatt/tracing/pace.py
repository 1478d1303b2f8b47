"""When to look into a backward pass, and what that has cost so far."""

from __future__ import annotations

# The first backward pass is warm-up: allocations, autotuning, lazy modules.
FIRST_CALL = 2
# The first look is on credit, and so are two more soon after, at most this much of the budget ahead.
CREDIT_WINDOWS = 3
CREDIT_NS = 30_000_000


class Pace:
    """Keeps the cumulative cost of windows under a part of the elapsed time."""

    def __init__(self, budget: float, start_ns: int) -> None:
        self.budget = budget
        self.start_ns = start_ns
        self.spent_ns = 0
        self.calls = 0
        self.windows = 0
        self._last_cost_ns = 0

    def due(self, now_ns: int) -> bool:
        """Count a backward call and say whether it should be looked into."""
        self.calls += 1
        if self.calls < FIRST_CALL or self.budget <= 0:
            return False
        allowed_ns = self.budget * (now_ns - self.start_ns)
        if self.windows < CREDIT_WINDOWS and self.spent_ns + self._last_cost_ns <= CREDIT_NS:
            return True
        return self.spent_ns + self._last_cost_ns <= allowed_ns

    def paid(self, cost_ns: int) -> None:
        """Book the cost of a window."""
        self.spent_ns += cost_ns
        # A first window loads Kineto; later ones are cheaper, so the plan follows what the last one cost.
        self._last_cost_ns = cost_ns
        self.windows += 1
