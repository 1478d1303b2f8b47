"""Estimate the latency of a meter from its readings, since no specification has it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.exposure import expose
from torchwatt.attribution.fit import MAX_SLOTS, MIN_GAIN_NATS, MIN_ROWS, plausibility, spread_w
from torchwatt.attribution.timeline import Pieces
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.meter import IntArray

# RAPL has a latency within 1 ms; a tree or a driver that caches values has more. GPU sensors differ (60-110 ms).
LAGS_NS = tuple(range(0, 16_000_001, 2_000_000))
FINE_NS = 500_000
# Enough to distinguish lags, and bounded for long runs.
MAX_READINGS = 3000
# Errors common to neighbouring readings make the likelihood too narrow, and no lag is known better than this.
WIDEN, LEAST_SD_NS = 2.0, 250_000


@dataclass(frozen=True, slots=True)
class Lag:
    """Latency of the readings and its standard deviation."""

    ns: int
    sd_ns: float


def best_lag(curve: EnergyCurve, pieces: Pieces, idle: np.ndarray) -> Lag:
    """Return the lag with which the slots' powers explain the readings best.

    The coarse lag is 0 unless the evidence is clear; around it, the mean over lags half a millisecond apart is taken,
    weighted by their likelihood.

    Args:
        curve: The domain's joules as read.
        pieces: Must reach back from the curve's start by the largest lag and two milliseconds.
        idle: One flag per slot.
    """
    t_ns, energy_j = curve.t_ns[: MAX_READINGS + 1], curve.energy_j[: MAX_READINGS + 1]
    if len(t_ns) <= MIN_ROWS or len(idle) > MAX_SLOTS:
        return Lag(0, 0.0)
    unheard = curve.unheard()[:MAX_READINGS]
    size_w = spread_w(expose(pieces, t_ns, energy_j, len(idle), unheard), idle)

    def nats(lags_ns: IntArray) -> np.ndarray:
        return np.array(
            [
                plausibility(expose(pieces, t_ns - lag, energy_j, len(idle), unheard), idle, size_w)
                for lag in lags_ns.tolist()
            ]
        )

    coarse = nats(np.array(LAGS_NS))
    best = int(np.argmax(coarse))
    middle = LAGS_NS[best] if coarse[best] - coarse[0] > MIN_GAIN_NATS else 0
    fine_ns = middle + np.arange(-3, 4) * FINE_NS
    fine_ns = fine_ns[fine_ns >= 0]
    score = nats(fine_ns)
    weight = np.exp((score - score.max()) / WIDEN**2)
    weight /= weight.sum()
    lag_ns = float(weight @ fine_ns)
    sd_ns = float(np.sqrt(weight @ (fine_ns - lag_ns) ** 2))
    return Lag(round(lag_ns), max(sd_ns, LEAST_SD_NS))
