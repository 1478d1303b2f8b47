"""Energy from power readings."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.instants import interpolate
from torchwatt.core.meter import FloatArray, IntArray, Series
from torchwatt.core.units import NS_PER_S

# A longer silence of a power sensor is unknown energy, not a straight line between two readings. A log that is read
# less often than that has a gap where some of its readings are missing.
GAP_NS = 2 * NS_PER_S
GAP_READINGS = 3
LONGEST_GAP_NS = 180 * NS_PER_S
# Of a run with fewer readings, the mean power is known as well as the readings are alike.
FEW_READINGS = 3
# These say the mean since the previous reading; all others say the power at the reading.
INTERVAL_MEAN = frozenset({"tdp_model"})
# No board draws more; 2**32-1 mW is how a driver says -1.
PLAUSIBLE_BOARD_W = 4000.0
# So much of a run, and so long at a time, a sensor may answer with what is no reading before its power is unknown.
BRIDGED_REL, BRIDGED_NS = 0.05, NS_PER_S // 4
# An integral reaches as far as its readings, and by so many of their distances beyond.
EDGE_READINGS = 3
EDGE_NS = NS_PER_S // 4


BoolArray = NDArray[np.bool_]
# Times, cumulative joules, and the silent stretches (start_ns, end_ns) whose energy is unknown.
Spans = tuple[tuple[int, int], ...]
Integral = tuple[IntArray, FloatArray, Spans]


def usable(series: Series) -> Series:
    """Leave out readings that cannot be, and zeros of a sensor of power that is never zero.

    A GPU that answers 0 W is a GPU whose sensor sleeps: missing, not free.
    """
    keep = _is_usable(series)
    return Series(series.channel, series.t_ns[keep], series.raw[keep], series.late_ns[keep])


def _is_usable(series: Series) -> BoolArray:
    keep = ~absurd(series)
    return np.asarray(keep & (series.raw > 0) if series.channel.sensor.startswith("nvml") else keep, dtype=np.bool_)


def discarded(series: Series) -> Spans:
    """Return the stretches in which a sensor answered, and only what is no reading: between the readings that are."""
    bad = ~_is_usable(series)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], bad, [False])).astype(np.int8))).reshape(-1, 2)
    t_ns, last = series.t_ns, len(series) - 1
    return tuple(
        (
            int(t_ns[first] - (t_ns[first] - t_ns[first - 1]) // 2) if first else int(t_ns[0]),
            int(t_ns[after - 1] + (t_ns[after] - t_ns[after - 1]) // 2) if after <= last else int(t_ns[last]),
        )
        for first, after in edges.tolist()
    )


def holes(series: Series, start_ns: int, end_ns: int) -> tuple[Spans, Spans]:
    """Divide what was discarded inside a window into stretches of unknown power and into those that may be bridged.

    A moment here and there is a hiccup of the sensor, and power was as before and after it; much or long is none.
    """
    inside = [(max(a, start_ns), min(b, end_ns)) for a, b in discarded(series) if a < end_ns and b > start_ns]
    long_ns = [b - a for a, b in inside]
    few = sum(long_ns) <= BRIDGED_REL * (end_ns - start_ns) and max(long_ns, default=0) <= BRIDGED_NS
    return ((), tuple(inside)) if few else (tuple(inside), ())


def cut(series: Series, gone: Spans) -> Series:
    """Hold the power of the usable readings around each stretch until it begins and from its end on."""
    if not gone:
        return series
    at = [(t_ns, side) for span in gone for t_ns, side in zip(span, (-1, 0), strict=True)]
    place = np.searchsorted(series.t_ns, [t_ns for t_ns, _ in at])
    raw = series.raw[np.clip(place + np.array([side for _, side in at]), 0, len(series) - 1)]
    t_ns = np.insert(series.t_ns, place, [t_ns for t_ns, _ in at])
    keep = later(t_ns)
    values = np.insert(series.raw, place, raw)
    return Series(series.channel, t_ns[keep], values[keep], np.insert(series.late_ns, place, 0)[keep])


def absurd(series: Series) -> BoolArray:
    """Tell which readings are no power: not finite, negative, or more than any board draws."""
    power_w = series.raw * series.channel.scale
    most_w = PLAUSIBLE_BOARD_W if series.channel.sensor.startswith("nvml") else np.inf
    return np.asarray(~np.isfinite(power_w) | (power_w < 0) | (power_w > most_w), dtype=np.bool_)


def later(t_ns: IntArray) -> BoolArray:
    """Tell which stamps are later than all before them: a clock that stands still or goes back dates nothing."""
    first = np.ones(min(len(t_ns), 1), dtype=np.bool_)
    return np.concatenate((first, t_ns[1:] > np.maximum.accumulate(t_ns)[:-1]))


def gap_ns(series: Series) -> int:
    """Return the longest distance of two readings between which power is taken to be known."""
    return max(GAP_NS, min(GAP_READINGS * series.channel.period_ns, LONGEST_GAP_NS))


def with_ends(series: Series, start_ns: int, end_ns: int) -> Series:
    """Add the power at a run's ends, interpolated where readings lie on both sides and no gap is between them."""
    if series.channel.sensor in INTERVAL_MEAN:
        return series
    ends_ns = np.setdiff1d(np.array([start_ns, end_ns], dtype=np.int64), series.t_ns)
    at = np.searchsorted(series.t_ns, ends_ns)
    between = (at > 0) & (at < len(series))
    ends_ns, at = ends_ns[between], at[between]
    near = series.t_ns[at] - series.t_ns[at - 1] <= gap_ns(series)
    ends_ns, at = ends_ns[near], at[near]
    raw = interpolate(ends_ns, series.t_ns, series.raw)
    return replace(
        series,
        t_ns=np.insert(series.t_ns, at, ends_ns),
        raw=np.insert(series.raw, at, raw),
        late_ns=np.insert(series.late_ns, at, 0),
    )


def reading_u_j(series: Series, integral: Integral, start_ns: int, end_ns: int) -> float:
    """Return the standard uncertainty of a run's joules that comes from reading power only now and then.

    Two ends, each off by at most half a reading interval at the mean power. A run with fewer than three readings may
    have had any power that the readings around it show.
    """
    inside = len(series.between(start_ns, end_ns))
    if inside < FEW_READINGS:
        spread_w = float(np.std(series.raw)) * series.channel.scale
        return spread_w * (end_ns - start_ns) / NS_PER_S / sqrt(inside + 1.0)
    return float(np.median(np.diff(integral[1]))) / sqrt(6.0)


def integrate(series: Series, gone: Spans = ()) -> Integral:
    """Integrate power readings to cumulative joules; `gone` are stretches of unknown power, at which `cut` has cut.

    Trapezoid between readings, repeated values kept: dropping them turns a flat stretch before a burst into a
    ramp. Nothing is booked over a silence longer than `gap_ns`.

    Returns:
        Times, joules since the first reading, and the silent stretches.
    """
    power_w = series.raw * series.channel.scale
    dt_ns = np.diff(series.t_ns)
    mean_w = power_w[1:] if series.channel.sensor in INTERVAL_MEAN else (power_w[1:] + power_w[:-1]) / 2
    known = dt_ns <= gap_ns(series)
    for lo, hi in gone:
        known &= (series.t_ns[1:] <= lo) | (series.t_ns[:-1] >= hi)
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
