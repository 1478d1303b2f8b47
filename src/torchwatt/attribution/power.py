"""Energy from power readings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.meter import FloatArray, IntArray, Series
from torchwatt.core.units import NS_PER_S

# A longer silence of a power sensor is unknown energy, not a straight line between two readings.
GAP_NS = 2 * NS_PER_S
# These say the mean since the previous reading; all others say the power at the reading.
INTERVAL_MEAN = frozenset({"tdp_model"})
# No board draws more; 2**32-1 mW is how a driver says -1.
PLAUSIBLE_BOARD_W = 4000.0
# An integral reaches as far as its readings, and by so many of their distances beyond.
EDGE_READINGS = 3
EDGE_NS = NS_PER_S // 4


BoolArray = NDArray[np.bool_]
# Times, cumulative joules, and the silent stretches (start_ns, end_ns) whose energy is unknown.
Integral = tuple[IntArray, FloatArray, tuple[tuple[int, int], ...]]


def usable(series: Series) -> Series:
    """Leave out readings that cannot be, and zeros of a sensor of power that is never zero.

    A GPU that answers 0 W is a GPU whose sensor sleeps: missing, not free.
    """
    keep = ~absurd(series)
    if series.channel.sensor.startswith("nvml"):
        keep &= series.raw > 0
    return Series(series.channel, series.t_ns[keep], series.raw[keep], series.late_ns[keep])


def absurd(series: Series) -> BoolArray:
    """Tell which readings are no power: not finite, negative, or more than any board draws."""
    power_w = series.raw * series.channel.scale
    most_w = PLAUSIBLE_BOARD_W if series.channel.sensor.startswith("nvml") else np.inf
    return np.asarray(~np.isfinite(power_w) | (power_w < 0) | (power_w > most_w), dtype=np.bool_)


def later(t_ns: IntArray) -> BoolArray:
    """Tell which stamps are later than all before them: a clock that stands still or goes back dates nothing."""
    first = np.ones(min(len(t_ns), 1), dtype=np.bool_)
    return np.concatenate((first, t_ns[1:] > np.maximum.accumulate(t_ns)[:-1]))


def integrate(series: Series) -> Integral:
    """Integrate power readings to cumulative joules.

    Trapezoid between readings, repeated values kept: dropping them turns a flat stretch before a burst into a
    ramp. Nothing is booked over a silence longer than two seconds.

    Returns:
        Times, joules since the first reading, and the silent stretches.
    """
    power_w = series.raw * series.channel.scale
    dt_ns = np.diff(series.t_ns)
    mean_w = power_w[1:] if series.channel.sensor in INTERVAL_MEAN else (power_w[1:] + power_w[:-1]) / 2
    known = dt_ns <= GAP_NS
    step_j = np.where(known, mean_w * dt_ns / NS_PER_S, 0.0)
    silent = tuple((int(series.t_ns[i]), int(series.t_ns[i + 1])) for i in np.flatnonzero(~known))
    return series.t_ns, np.concatenate(([0.0], np.cumsum(step_j))), silent


def knows(integral: Integral, start_ns: IntArray | int, end_ns: IntArray | int) -> BoolArray:
    """Tell for each window whether power was read throughout: outside of its readings an integral is flat."""
    t_ns, _, silent = integral
    edge_ns = max(EDGE_READINGS * int(np.median(np.diff(t_ns))), EDGE_NS) if len(t_ns) > 1 else 0
    lo, hi = np.asarray(start_ns), np.asarray(end_ns)
    inside = (t_ns[0] - edge_ns <= lo) & (hi <= t_ns[-1] + edge_ns)
    for a, b in silent:
        inside &= (hi <= a) | (lo >= b)
    return np.asarray(inside, dtype=np.bool_)
