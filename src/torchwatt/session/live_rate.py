"""Joules per step or unit over the last seconds of a running session, and how often a live display may be updated."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Mapping
from math import fsum
from typing import TYPE_CHECKING

from torchwatt.core.units import NS_PER_S

if TYPE_CHECKING:
    from torchwatt.session.live_meter import LiveMeter

RECENT_NS = 10 * NS_PER_S


class RecentRate:
    """Mean joules per unit of work over about the last ten seconds."""

    def __init__(self, start_ns: int) -> None:
        self._points: deque[tuple[int, float, float]] = deque([(start_ns, 0.0, 0.0)])  # instant, count, joules

    def add(self, now_ns: int, count: float, energy_j: float) -> None:
        """Record the count and the joules since the start of the run."""
        if count > self._points[-1][1]:
            self._points.append((now_ns, count, energy_j))
        while len(self._points) > 2 and now_ns - self._points[1][0] > RECENT_NS:
            self._points.popleft()

    def mean_j(self) -> float | None:
        """Return joules per unit; None before the first unit."""
        (_, first_count, first_j), (_, last_count, last_j) = self._points[0], self._points[-1]
        return (last_j - first_j) / (last_count - first_count) if last_count > first_count else None


class UnitRates:
    """The rate that a live view shows: of the unit that the user counted first, otherwise of a step."""

    def __init__(self, pulse: LiveMeter) -> None:
        self._pulse = pulse
        self._rates: dict[str, RecentRate] = {}

    def update(self, units: Mapping[str, float], step_j: float | None) -> tuple[str, float | None]:
        """Return the unit and its joules; None if they are unknown."""
        now_ns, energy_j = time.monotonic_ns(), fsum(self._pulse.energy_j.values())
        for unit, count in units.items():
            self._rates.setdefault(unit, RecentRate(self._pulse.start_ns)).add(now_ns, count, energy_j)
        first_unit = next(iter(units), None)
        return ("step", step_j) if first_unit is None else (first_unit, self._rates[first_unit].mean_j())


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
