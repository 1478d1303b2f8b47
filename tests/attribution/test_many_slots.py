"""Models of ten thousand modules: time share without matrices of the slots' squares."""

import numpy as np
import pytest

from torchwatt.attribution.host_fit import MAX_INTERVAL_SLOTS, apportion_intervals, fit_time_share
from torchwatt.attribution.owned_intervals import Exposure


def exposure(slots, rows=40):
    """Every interval of a second sees a stretch of the slots; the last slot is idle for a tenth of it."""
    random = np.random.default_rng(0)
    row, column, seconds = [], [], []
    for k in range(rows):
        seen = random.choice(slots - 1, size=200, replace=False)
        row += [k] * 201
        column += [*seen.tolist(), slots - 1]
        seconds += [*(0.9 * random.dirichlet(np.ones(200))).tolist(), 0.1]
    energy_j = random.uniform(50, 60, rows)
    made = (np.array(part) for part in (row, column, seconds))
    return Exposure(*made, np.zeros(len(row)), energy_j, np.ones(rows), slots)


@pytest.mark.parametrize("slots", [300, 20_000])
def test_time_share_books_every_joule_however_many_slots_there_are(slots):
    seen = exposure(slots)
    idle = np.arange(slots) == slots - 1
    fit = fit_time_share(seen, idle, "the load model has no per-layer information")
    booked = apportion_intervals(seen, fit)
    assert booked.energy_j.sum() == pytest.approx(seen.energy_j.sum(), rel=1e-9)
    few = slots <= MAX_INTERVAL_SLOTS
    assert (fit.covariance is not None) == few == (booked.sd_j is not None)  # unknown is unknown, not 0
    assert ("slots" in fit.reason) == (not few)
