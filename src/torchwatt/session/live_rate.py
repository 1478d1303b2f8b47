"""Joules per step or counted unit over the last seconds of a running session."""

from __future__ import annotations

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
