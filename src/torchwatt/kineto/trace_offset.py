"""Align a trace with the clock of a power curve: the offset at which device activity best explains the power."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.core.errors import TraceError
from torchwatt.core.intervals import union_intervals
from torchwatt.core.meter import FloatArray, IntArray

GRID = 1 << 16  # points of the coarse search: 70 minutes at 64 ms, or a minute at 1 ms
STEP_NS = 1_000_000  # the finest grid: no power sensor resolves a millisecond
OVERLAP = 0.5  # part of the trace that must overlap the curve
LEAST_EXPLAINED, MOST_RUNNER_UP = (
    0.25,
    0.9,
)  # below `LEAST_EXPLAINED`, or with a runner-up above `MOST_RUNNER_UP` times the best, a fit is ambiguous


@dataclass(frozen=True, slots=True)
class TraceOffset:
    """The offset to add to the trace's times; `explained` is the explained part (0 to 1) of the power's variance.

    `step_ns` is the resolution of the search. The sensor's own lag, 60 to 110 ms on many cards, is part of the offset:
    one curve cannot separate the two.
    """

    offset_ns: int
    explained: float
    step_ns: int
    runner_up: float  # the same at the best offset that is not a neighbour

    @property
    def ambiguous(self) -> bool:
        """Whether little is explained, or another offset explains nearly as much, as with regular steps."""
        return self.explained < LEAST_EXPLAINED or self.runner_up > MOST_RUNNER_UP * self.explained


def fit_offset(start_ns: IntArray, end_ns: IntArray, t_ns: IntArray, power_w: FloatArray) -> TraceOffset:
    """Find the offset at which a device's busy time best explains a power curve.

    At each offset the power is fitted by `a + b * busy` (least squares over the overlap, b > 0), and the offset with
    the largest explained part of the variance is returned. All offsets are evaluated at once: the sums for the fit are
    correlations, computed by FFT (Padfield 2012, masked normalised cross-correlation).

    Args:
        start_ns: Start of each device record, on the trace's clock, in any order; records may overlap.
        end_ns: End of each.
        t_ns: Increasing times of the power readings, on their own clock.
        power_w: The readings.

    Raises:
        TraceError: No records, fewer than four readings, constant power, or a device that is always busy.
    """
    lo, hi = union_intervals(start_ns, end_ns)
    if not len(lo) or len(t_ns) < 4 or not np.ptp(power_w) > 0:
        raise TraceError("an offset cannot be fitted without device records and a power curve that varies: give one")
    origin, power_origin = int(lo[0]), int(t_ns[0])
    span = max(int(hi[-1]) - origin, int(t_ns[-1]) - power_origin)
    step = max(STEP_NS, -(-span // GRID))
    busy = _busy_share(lo - origin, hi - origin, step)
    power = _resample_power(t_ns - power_origin, power_w, step)
    if len(busy) < 4 or not np.ptp(busy) > 0:
        raise TraceError("an offset cannot be fitted to a device that is always busy: give one")
    score = _explained_share(busy, power)
    best = int(np.argmax(score))
    lag = best - (len(busy) - 1)
    near = np.abs(np.arange(len(score)) - best) <= max(_width(score, best), 1)
    runner_up = float(score[~near].max(initial=0.0))
    return TraceOffset(
        power_origin - origin + round((lag + _peak(score, best)) * step), float(score[best]), step, runner_up
    )


def _busy_share(lo: IntArray, hi: IntArray, step: int) -> FloatArray:
    """Return the busy part of each grid cell."""
    edges = np.arange(0, int(hi[-1]) + step, step)
    grown = np.concatenate(([0], np.cumsum(hi - lo)))
    # Busy time until an instant: ended intervals, and the begun part of the current one.
    which = np.searchsorted(lo, edges, side="right") - 1
    at = np.maximum(which, 0)
    until = grown[at] + np.clip(edges - lo[at], 0, hi[at] - lo[at])
    return np.asarray(np.diff(np.where(which >= 0, until, 0)) / step, dtype=np.float64)


def _resample_power(t_ns: IntArray, power_w: FloatArray, step: int) -> FloatArray:
    """Return the power in the middle of each grid cell."""
    middle = np.arange(step // 2, int(t_ns[-1]) + 1, step)
    return np.asarray(np.interp(middle, t_ns, power_w), dtype=np.float64)


def _explained_share(busy: FloatArray, power: FloatArray) -> FloatArray:
    """Return for each shift of `busy` along `power` the squared correlation over their overlap; 0 if negative."""
    power = power - power.mean()
    busy = busy - busy.mean()
    size = 1 << int(np.ceil(np.log2(len(busy) + len(power))))

    def slid(a: FloatArray, b: FloatArray) -> FloatArray:
        """Correlate: the sum over the overlap of a(t) b(t + shift), for shifts from -(len(a) - 1)."""
        product = np.fft.irfft(np.fft.rfft(a[::-1], size) * np.fft.rfft(b, size), size)
        return np.asarray(product[: len(a) + len(b) - 1], dtype=np.float64)

    ones_a, ones_b = np.ones_like(busy), np.ones_like(power)
    n = np.rint(slid(ones_a, ones_b)).clip(1)
    sum_a, sum_b = slid(busy, ones_b), slid(ones_a, power)
    cross = slid(busy, power) - sum_a * sum_b / n
    var_a = slid(busy**2, ones_b) - sum_a**2 / n
    var_b = slid(ones_a, power**2) - sum_b**2 / n
    # Too little overlap, or power so constant that rounding decides: no evidence.
    usable = (n >= OVERLAP * min(len(busy), len(power))) & (cross > 0)
    usable &= (var_a > 1e-9 * float(busy @ busy)) & (var_b > 1e-9 * float(power @ power))
    score = np.divide(cross**2, var_a * var_b, out=np.zeros_like(n), where=usable)
    # Work outside the overlap is not explained: a perfect fit of a third of the trace counts as a third.
    return np.asarray(score.clip(0.0, 1.0) * np.minimum(n / len(busy), 1.0), dtype=np.float64)


def _peak(score: FloatArray, best: int) -> float:
    """Return the peak's position relative to `best`, in cells, by the parabola through three points."""
    if not 0 < best < len(score) - 1:
        return 0.0
    before, peak, after = (float(x) for x in score[best - 1 : best + 2])
    bend = before - 2 * peak + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0


def _width(score: FloatArray, best: int) -> int:
    """Return the distance from the peak at which the score has fallen to half, in cells."""
    low = np.flatnonzero(score < score[best] / 2)
    return int(np.abs(low - best).min(initial=len(score)))
