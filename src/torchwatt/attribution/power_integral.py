"""Integrate power readings to energy."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.energy_curve import interpolate
from torchwatt.core.meter import FloatArray, IntArray, Series
from torchwatt.core.units import NS_PER_S

# A longer interval without readings is unknown energy, not a straight line between two. A log that is read less often
# than that has a gap where some of its readings are missing.
GAP_NS = 2 * NS_PER_S
GAP_READINGS = 3
LONGEST_GAP_NS = 180 * NS_PER_S
# With fewer readings in a run, the uncertainty of its mean power is the spread of the readings.
FEW_READINGS = 3
# Sensors whose readings are the mean since the previous reading; all others give the power at the reading.
INTERVAL_MEAN = frozenset({"tdp_model"})
# No board draws more; a driver writes -1 as 2**32-1 mW.
PLAUSIBLE_BOARD_W = 4000.0
# Part of a run, and longest time, in which unusable readings are bridged rather than unknown.
BRIDGED_REL, BRIDGED_NS = 0.05, NS_PER_S // 4
# An integral is valid from its first to its last reading, extended by this many reading intervals.
EDGE_READINGS = 3
EDGE_NS = NS_PER_S // 4


BoolArray = NDArray[np.bool_]
# Times, cumulative joules, and the silent intervals (start_ns, end_ns) of unknown energy.
TimeSpans = tuple[tuple[int, int], ...]
PowerIntegral = tuple[IntArray, FloatArray, TimeSpans]


def drop_unusable(series: Series) -> Series:
    """Drop readings outside the physical range, and zeros of an NVML power sensor.

    A GPU that reports 0 W has a sleeping sensor: the reading is missing, not zero.
    """
    keep = _find_usable(series)
    return Series(series.channel, series.t_ns[keep], series.raw[keep], series.late_ns[keep])


def _find_usable(series: Series) -> BoolArray:
    keep = ~find_implausible(series)
    return np.asarray(keep & (series.raw > 0) if series.channel.sensor.startswith("nvml") else keep, dtype=np.bool_)


def find_discarded(series: Series) -> TimeSpans:
    """Return the intervals with unusable readings only, bounded midway to the usable ones."""
    bad = ~_find_usable(series)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], bad, [False])).astype(np.int8))).reshape(-1, 2)
    t_ns, last_index = series.t_ns, len(series) - 1
    return tuple(
        (
            int(t_ns[start] - (t_ns[start] - t_ns[start - 1]) // 2) if start else int(t_ns[0]),
            int(t_ns[stop - 1] + (t_ns[stop] - t_ns[stop - 1]) // 2) if stop <= last_index else int(t_ns[last_index]),
        )
        for start, stop in edges.tolist()
    )


def find_power_holes(series: Series, start_ns: int, end_ns: int) -> tuple[TimeSpans, TimeSpans]:
    """Return the discarded intervals inside a window: those of unknown power, and those that may be bridged.

    Short, rare failures are bridged, since power was as in the readings around; long or frequent ones are unknown.
    """
    clipped = [(max(a, start_ns), min(b, end_ns)) for a, b in find_discarded(series) if a < end_ns and b > start_ns]
    long_ns = [b - a for a, b in clipped]
    few = sum(long_ns) <= BRIDGED_REL * (end_ns - start_ns) and max(long_ns, default=0) <= BRIDGED_NS
    return ((), tuple(clipped)) if few else (tuple(clipped), ())


def cut_at_holes(series: Series, gone: TimeSpans) -> Series:
    """Insert readings at the ends of each interval, with the values of the usable readings before and after it."""
    if not gone:
        return series
    at = [(t_ns, side) for span in gone for t_ns, side in zip(span, (-1, 0), strict=True)]
    place = np.searchsorted(series.t_ns, [t_ns for t_ns, _ in at])
    raw = series.raw[np.clip(place + np.array([side for _, side in at]), 0, len(series) - 1)]
    t_ns = np.insert(series.t_ns, place, [t_ns for t_ns, _ in at])
    keep = find_increasing(t_ns)
    values = np.insert(series.raw, place, raw)
    return Series(series.channel, t_ns[keep], values[keep], np.insert(series.late_ns, place, 0)[keep])


def find_implausible(series: Series) -> BoolArray:
    """Return which readings are not finite, negative, or more than any board draws."""
    power_w = series.raw * series.channel.scale
    most_w = PLAUSIBLE_BOARD_W if series.channel.sensor.startswith("nvml") else np.inf
    return np.asarray(~np.isfinite(power_w) | (power_w < 0) | (power_w > most_w), dtype=np.bool_)


def find_increasing(t_ns: IntArray) -> BoolArray:
    """Return which timestamps are later than all before them: repeated and earlier timestamps are invalid."""
    always = np.ones(min(len(t_ns), 1), dtype=np.bool_)
    return np.concatenate((always, t_ns[1:] > np.maximum.accumulate(t_ns)[:-1]))


def gap_limit_ns(series: Series) -> int:
    """Return the longest distance between two readings over which power counts as known."""
    return max(GAP_NS, min(GAP_READINGS * series.channel.period_ns, LONGEST_GAP_NS))


def add_window_ends(series: Series, start_ns: int, end_ns: int) -> Series:
    """Add the power at a run's ends, interpolated where readings lie on both sides without a gap between them."""
    if series.channel.sensor in INTERVAL_MEAN:
        return series
    ends_ns = np.setdiff1d(np.array([start_ns, end_ns], dtype=np.int64), series.t_ns)
    at = np.searchsorted(series.t_ns, ends_ns)
    between = (at > 0) & (at < len(series))
    ends_ns, at = ends_ns[between], at[between]
    near = series.t_ns[at] - series.t_ns[at - 1] <= gap_limit_ns(series)
    ends_ns, at = ends_ns[near], at[near]
    raw = interpolate(ends_ns, series.t_ns, series.raw)
    return replace(
        series,
        t_ns=np.insert(series.t_ns, at, ends_ns),
        raw=np.insert(series.raw, at, raw),
        late_ns=np.insert(series.late_ns, at, 0),
    )


def reading_uncertainty_j(series: Series, integral: PowerIntegral, start_ns: int, end_ns: int) -> float:
    """Return the standard uncertainty of a run's joules due to the interval between power readings.

    Two ends, each off by at most half a reading interval at the mean power. With fewer than three readings in the run,
    the spread of all readings is used.
    """
    count = len(series.between(start_ns, end_ns))
    if count < FEW_READINGS:
        spread_w = float(np.std(series.raw)) * series.channel.scale
        return spread_w * (end_ns - start_ns) / NS_PER_S / sqrt(count + 1.0)
    return float(np.median(np.diff(integral[1]))) / sqrt(6.0)


def integrate_power(series: Series, gone: TimeSpans = ()) -> PowerIntegral:
    """Integrate power readings to cumulative joules; `gone` are intervals of unknown power, at which `cut` has cut.

    Trapezoid between readings, repeated values kept: dropping them would turn a flat interval before a burst into a
    ramp. An interval longer than `gap_ns` gets no joules.

    Returns:
        Times, joules since the first reading, and the silent intervals.
    """
    power_w = series.raw * series.channel.scale
    dt_ns = np.diff(series.t_ns)
    mean_w = power_w[1:] if series.channel.sensor in INTERVAL_MEAN else (power_w[1:] + power_w[:-1]) / 2
    is_known = dt_ns <= gap_limit_ns(series)
    for lo, hi in gone:
        is_known &= (series.t_ns[1:] <= lo) | (series.t_ns[:-1] >= hi)
    step_j = np.where(is_known, mean_w * dt_ns / NS_PER_S, 0.0)
    silent = tuple((int(series.t_ns[i]), int(series.t_ns[i + 1])) for i in np.flatnonzero(~is_known))
    return series.t_ns, np.concatenate(([0.0], np.cumsum(step_j))), silent


def covers_windows(integral: PowerIntegral, start_ns: IntArray | int, end_ns: IntArray | int) -> BoolArray:
    """Return for each window whether power was read throughout: outside its readings the integral is constant."""
    t_ns, _, silent = integral
    edge_ns = max(EDGE_READINGS * int(np.median(np.diff(t_ns))), EDGE_NS) if len(t_ns) > 1 else 0
    lo, hi = np.asarray(start_ns), np.asarray(end_ns)
    is_known = (t_ns[0] - edge_ns <= lo) & (hi <= t_ns[-1] + edge_ns)
    for a, b in silent:
        is_known &= (hi <= a) | (lo >= b)
    return np.asarray(is_known, dtype=np.bool_)
