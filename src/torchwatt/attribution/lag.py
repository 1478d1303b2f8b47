"""How old a meter's answer is: found from the readings, because no table knows it."""

from __future__ import annotations

import numpy as np

from torchwatt.attribution.exposure import expose
from torchwatt.attribution.fit import MIN_GAIN_NATS, fit_power
from torchwatt.attribution.timeline import Pieces
from torchwatt.core.curve import EnergyCurve

# RAPL answers within 1 ms; a tree or a driver that caches answers later. GPU sensors are another matter (60-110 ms).
LAGS_NS = tuple(range(0, 16_000_001, 2_000_000))
# Enough to tell 2 ms apart, and bounded for long runs.
MAX_READINGS = 3000


def best_lag_ns(curve: EnergyCurve, pieces: Pieces, idle: np.ndarray) -> int:
    """Return the lag under which the layers explain the readings best; 0 unless the evidence is clear.

    Args:
        curve: The domain's joules as answered.
        pieces: Must reach back from the curve's start by the largest lag.
        idle: One flag per slot.
    """
    t_ns, energy_j = curve.t_ns[: MAX_READINGS + 1], curve.energy_j[: MAX_READINGS + 1]
    fits = [fit_power(expose(pieces, t_ns - lag_ns, energy_j, len(idle)), idle) for lag_ns in LAGS_NS]
    evidence = [fit.evidence_nats for fit in fits]
    best = int(np.argmax(evidence))
    return LAGS_NS[best] if evidence[best] - evidence[0] > MIN_GAIN_NATS else 0
