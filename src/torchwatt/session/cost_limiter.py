"""Schedules repeated work of live views within a share of one CPU."""

from __future__ import annotations

import gc
import time

CPU_SHARE = 0.002  # of one CPU
CREDIT_S = 0.01  # initial allowance, so that short runs show layers
MIN_INTERVAL_S = 1.0
MAX_INTERVAL_S = 3.5  # displayed values should not be older than 5 s
MAX_CPU_SHARE = 0.0025  # of one CPU, to keep to MAX_INTERVAL_S


class CostLimiter:
    """Schedules repeated work so that its CPU time stays below a share of one CPU.

    Work that is `MAX_INTERVAL_S` old may use up to `MAX_CPU_SHARE`; beyond, its interval grows with its cost. Times are
    seconds since the run began; the next cost is assumed to equal the last typical one.
    """

    def __init__(self, share: float = CPU_SHARE, credit_s: float = CREDIT_S) -> None:
        self._share = share
        self._credit_s = credit_s
        self._spent_s = 0.0
        self._last_cost_s = 0.0
        self._last_s = 0.0

    def due(self, t_s: float) -> bool:
        """Return whether the work may be done now."""
        waited_s = t_s - self._last_s
        if waited_s < MIN_INTERVAL_S:
            return False
        if self._spent_s + self._last_cost_s <= self._credit_s + self._share * t_s:
            return True
        return waited_s >= max(MAX_INTERVAL_S, self._last_cost_s / MAX_CPU_SHARE)

    def paid(self, t_s: float, cost_s: float, *, typical: bool = True) -> None:
        """Record that the work was done at `t_s`, and its CPU time; `typical`: the next time it costs about as much."""
        self._last_s = t_s
        self._spent_s += cost_s
        if typical:
            self._last_cost_s = cost_s


class LookTimer:
    """Measures one look of a live view on the thread that makes it, which also makes this object at its begin."""

    def __init__(self) -> None:
        self._began_ns, self._collections = time.thread_time_ns(), _full_collections()

    @property
    def cost_ns(self) -> int:
        """CPU time of the thread so far, in ns."""
        return time.thread_time_ns() - self._began_ns

    @property
    def is_typical(self) -> bool:
        """Whether the next look will cost about as much: no full garbage collection fell into this one.

        Whichever thread makes the next object does that work, 0.15 s where torch is loaded.
        """
        return _full_collections() == self._collections


def _full_collections() -> int:
    """Return how often Python's garbage collector has examined all objects."""
    return int(gc.get_stats()[2]["collections"])
