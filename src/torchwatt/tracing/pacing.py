"""Decide which backward calls are recorded, of those that the budget allows. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable

RECENT_CALLS = 16
DENSE_WINDOWS = 128  # windows as dense as the budget allows; later ones are rarer, so that memory is bounded
SPARSE_GROWTH = 1.02  # each later one waits until the run is 2 % longer
MAX_KINDS = 10_000


class Pacer:
    """Decide which backward calls get a window; kinds take turns.

    The first call gets none (it includes torch's lazy initialisation), the second always gets one, if there is a
    budget: without any window backward time cannot be attributed to layers.
    """

    def __init__(self, start_ns: int) -> None:
        self._start_ns = start_ns
        self._calls: Counter[Hashable] = Counter()
        self._windows: Counter[Hashable] = Counter()
        self._cost_ns: dict[Hashable, int] = {}
        self._recent: deque[Hashable] = deque(maxlen=RECENT_CALLS)
        self._seen = 0
        self._last_ns = start_ns

    def wants(self, kind: Hashable, now_ns: int, room_ns: float) -> bool:
        """Return whether this call should be recorded; call once for each backward call."""
        self._seen += 1
        self._calls[kind] += 1
        self._recent.append(kind)
        if len(self._calls) > MAX_KINDS:  # bounds memory
            self._calls.clear()
        if self._seen < 2:
            return False
        taken = self._windows.total()
        if taken == 0:
            return True
        elapsed, latest = now_ns - self._start_ns, self._last_ns - self._start_ns
        if taken >= DENSE_WINDOWS and elapsed < latest * SPARSE_GROWTH:
            return False
        return self._predicted_ns(kind) <= room_ns and self._is_due(kind)

    def _predicted_ns(self, kind: Hashable) -> int:
        return self._cost_ns.get(kind) or max(self._cost_ns.values(), default=0)

    def _is_due(self, kind: Hashable) -> bool:
        regulars = [k for k in set(self._recent) if self._calls[k] > 2]
        return self._windows[kind] <= min((self._windows[k] for k in regulars), default=0) + 1

    def paid(self, kind: Hashable, cost_ns: int, now_ns: int) -> None:
        """Record a window that was taken."""
        if len(self._windows) > MAX_KINDS:
            self._windows.clear()
            self._cost_ns.clear()
        self._windows[kind] += 1
        self._cost_ns[kind] = cost_ns
        self._last_ns = now_ns
