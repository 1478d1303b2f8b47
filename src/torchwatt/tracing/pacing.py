"""When to trace a backward call node by node, given what it costs. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable

EARLY_WINDOWS = 3  # two give a spread, three a usable one
EARLY_BUDGETS = 3.0  # kinds that turn up later may overdraw the budget this many times
RECENT_CALLS = 16


class Pacer:
    """Decide which backward calls get a window.

    The very first call never does (it pays torch's lazy initialisation), the next three do. A kind that turns
    up later gets its three while the cost stays below `EARLY_BUDGETS` budgets. After that only while the
    cumulated cost stays below `budget` times the elapsed time, kinds taking turns.
    """

    def __init__(self, budget: float, start_ns: int) -> None:
        self.budget = budget
        self.start_ns = start_ns
        self.cost_ns = 0
        self._calls: Counter[Hashable] = Counter()
        self._windows: Counter[Hashable] = Counter()
        self._recent: deque[Hashable] = deque(maxlen=RECENT_CALLS)
        self._seen = 0

    def wants(self, kind: Hashable, now_ns: int) -> bool:
        """Say whether this call, of that kind, should be traced; to be asked once for each call."""
        self._seen += 1
        self._calls[kind] += 1
        self._recent.append(kind)
        if self.budget <= 0 or self._seen < 2:
            return False
        spent = self.cost_ns / max(now_ns - self.start_ns, 1) / self.budget
        if self._windows.total() < EARLY_WINDOWS:
            return True
        if self._calls[kind] > 1 and self._windows[kind] < EARLY_WINDOWS and spent < EARLY_BUDGETS:
            return True
        return spent < 1 and self._is_due(kind)

    def _is_due(self, kind: Hashable) -> bool:
        regulars = [k for k in set(self._recent) if self._calls[k] > 2]
        return self._windows[kind] <= min((self._windows[k] for k in regulars), default=0) + 1

    def paid(self, kind: Hashable, cost_ns: int) -> None:
        """Book a window that was taken."""
        self._windows[kind] += 1
        self.cost_ns += cost_ns
        if len(self._calls) > 10_000:  # an endless variety of kinds must not grow without end
            self._calls.clear()
