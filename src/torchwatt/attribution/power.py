"""Energy from power readings."""

from __future__ import annotations

import numpy as np

from torchwatt.core.meter import FloatArray, IntArray, Series
from torchwatt.core.units import NS_PER_S

# A longer silence of a power sensor is unknown energy, not a straight line between two readings.
GAP_NS = 2 * NS_PER_S
# These say the mean since the previous reading; all others say the power at the reading.
INTERVAL_MEAN = frozenset({"tdp_model"})


# Times, cumulative joules, and the silent stretches (start_ns, end_ns) whose energy is unknown.
Integral = tuple[IntArray, FloatArray, tuple[tuple[int, int], ...]]


def usable(series: Series) -> Series:
    """Leave out readings that are not finite, and zeros of a sensor of power that is never zero.

    A GPU that answers 0 W is a GPU whose sensor sleeps: missing, not free.
    """
    keep = np.isfinite(series.raw)
    if series.channel.sensor.startswith("nvml"):
        keep &= series.raw > 0
    return Series(series.channel, series.t_ns[keep], series.raw[keep], series.late_ns[keep])


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
