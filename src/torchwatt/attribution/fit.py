"""Fit the watts of each slot of the host to a counter whose intervals contain many slots at once.

The same estimator as a device's, in joules: for interval k with E_k joules and T_kj seconds of slot j,

    E_k = sum_j p_j T_kj + e_k,   e_k ~ N(0, sigma^2),   p ~ N(m, K)

so the design matrix is T, the window is the interval, and there is no low-pass. K and sigma come from the marginal
likelihood (see `prior`). No spread between slots is the hypothesis that all busy ones draw the same power: unless the
data favour another by a clear margin, the result's `reason` states this and time share is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from torchwatt.attribution.estimate import first_guess
from torchwatt.attribution.exposure import Exposure
from torchwatt.attribution.moments import Moments, moments, nothing
from torchwatt.attribution.posterior import Posterior, posterior
from torchwatt.attribution.prior import Structure, covariance, evidence, learn, structure
from torchwatt.core.meter import FloatArray, IntArray

# Log marginal likelihood that the fit must gain over "all busy slots equal" (natural units; 6 is odds of 400).
MIN_GAIN_NATS = 6.0
MIN_ROWS = 20
MAX_SLOTS = 1000
MOST_SHARING = 2500  # slots of which time share has intervals: computing them takes time with the cube of the slots
# Relative spread between layers that time share ignores; its typical error (ATTRIBUTION, section 6.1).
ASSUMED_SPREAD_REL = 0.30
# A slot gets at least this part of the mean power: a meter does not go below idle.
FLOOR_REL = 0.05
CLUSTERS = 16  # parts of the run with errors assumed independent, for the sandwich
NO_SPREAD = 1e-4
ALONE = Structure(())


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Watts per slot with covariance; `method` is "fit" if the data distinguish the slots.

    `covariance` is the error against the true watts, `sampling` the spread between repeats.
    """

    power_w: FloatArray
    covariance: FloatArray | None  # None: too many slots
    method: Literal["fit", "time_share"]
    gain_nats: float
    reason: str
    noise_j: float = 0.0  # sigma: standard deviation of one interval's joules around the model
    sampling: FloatArray | None = None  # None: time is shared, with the same result in every repeat


def fit_power(exposure: Exposure, idle: np.ndarray, group: IntArray | None = None) -> Fit:
    """Estimate the power of every slot.

    Args:
        exposure: The readings of one domain.
        idle: One flag per slot: nothing runs there, so its power has a separate mean.
        group: One number per slot, the same for alike modules, whose powers are similar a priori; -1: none is alike.
    """
    flat_w = np.full(exposure.columns, exposure.energy_j.sum() / max(exposure.length_s.sum(), 1e-12))
    if exposure.columns > MAX_SLOTS:
        return Fit(flat_w, None, "time_share", 0.0, f"more than {MAX_SLOTS} slots")
    place = _columns(idle)
    total = _total(exposure, place)
    mean_w, idle_sd_w = _means(total)
    if exposure.rows < MIN_ROWS:
        return _time_share(mean_w[place], idle, 0.0, f"only {exposure.rows} readings")
    prior = learn(total, ALONE if group is None else _alike(group[~idle]), mean_w, idle_sd_w)
    equal = _spread(NO_SPREAD * float(mean_w.mean()), mean_w, idle_sd_w)
    gain = prior.evidence_nats - evidence(total, equal, mean_w)
    if gain < MIN_GAIN_NATS:
        return _time_share(mean_w[place], idle, gain, "the readings cannot distinguish the layers")
    fitted = posterior(total, prior)
    fitted = posterior(total, prior, _scores(exposure, place, fitted.power_w))
    floor_w = FLOOR_REL * float(np.average(mean_w[place], weights=exposure.time_s() + 1e-12))
    power_w = np.maximum(fitted.power_w[place], floor_w)
    more = _shared_readings(exposure, power_w)
    spread, sampling = _wider(fitted) * more, fitted.sampling * more
    at = np.ix_(place, place)
    return Fit(power_w, spread[at], "fit", gain, "", prior.noise_w, sampling[at])


def spread_w(exposure: Exposure, idle: np.ndarray) -> float:
    """Return the estimated spread of the slots' powers, in W."""
    total = _total(exposure, _columns(idle))
    return float(learn(total, ALONE, *_means(total)).size_w[0])


def plausibility(exposure: Exposure, idle: np.ndarray, size_w: float) -> float:
    """Return the log marginal likelihood of the readings for powers with this spread, in W."""
    total = _total(exposure, _columns(idle))
    mean_w, idle_sd_w = _means(total)
    return evidence(total, _spread(size_w, mean_w, idle_sd_w), mean_w)


def _spread(size_w: float, mean_w: FloatArray, idle_sd_w: float) -> FloatArray:
    return covariance(ALONE, np.array([size_w]), float(mean_w[0]), idle_sd_w, len(mean_w) - 1)


def share_by_time(exposure: Exposure, idle: np.ndarray, reason: str) -> Fit:
    """Give all busy slots the same power, where readings cannot distinguish layers."""
    if exposure.columns > MOST_SHARING:
        kind = idle.astype(np.int64)
        two = replace(exposure, column=kind[exposure.column], columns=2)
        mean_w, _ = _means(_total(two, np.arange(2)))
        return Fit(mean_w[kind], None, "time_share", 0.0, f"{reason}; more than {MOST_SHARING} slots")
    place = _columns(idle)
    return _time_share(_means(_total(exposure, place))[0][place], idle, 0.0, reason)


def _alike(group: IntArray) -> Structure:
    """Return the structure of busy columns: alike modules are a group, any other column is a separate group."""
    own = int(group.max(initial=-1)) + 1 + np.arange(len(group))
    return structure((np.where(group >= 0, group, own),))


def _columns(idle: np.ndarray) -> IntArray:
    """Return each slot's column: busy ones their own, idle ones together in the last."""
    place = np.cumsum(~idle) - 1
    place[idle] = int((~idle).sum())
    return np.asarray(place, dtype=np.int64)


def _means(total: Moments) -> tuple[FloatArray, float]:
    """Return one power for busy columns and one for idle; a common one where the fit is not positive."""
    mean_w, idle_sd_w = first_guess(total, None)
    if mean_w[0] > 0 and mean_w[-1] >= 0:
        return mean_w, idle_sd_w
    flat_w = float(total.pull.sum()) / max(float(total.gram.sum()), 1e-12)
    return np.full(len(mean_w), max(flat_w, 0.0)), idle_sd_w


def _total(exposure: Exposure, place: IntArray) -> Moments:
    total = nothing(int(place.max(initial=0)) + 1)
    for rows, dense in exposure.blocks():
        columns_s = _gathered(dense, place)
        total += moments(columns_s, exposure.energy_j[rows], np.ones(len(columns_s)))
    return total


def _gathered(dense: FloatArray, place: IntArray) -> FloatArray:
    columns_s = np.zeros((len(dense), int(place.max(initial=0)) + 1))
    np.add.at(columns_s.T, place, dense.T)
    return columns_s


def _scores(exposure: Exposure, place: IntArray, power_w: FloatArray) -> FloatArray:
    """Return the sum over parts of the run of s s', s = T'(E - Tp), which includes errors common to neighbours."""
    count = len(power_w)
    stretch = np.arange(exposure.rows) * CLUSTERS // exposure.rows
    each = np.zeros((CLUSTERS, count))
    for rows, dense in exposure.blocks():
        columns_s = _gathered(dense, place)
        residual_j = exposure.energy_j[rows] - columns_s @ power_w
        np.add.at(each, stretch[rows], columns_s * residual_j[:, None])
    return np.asarray(each.T @ each * (CLUSTERS / (CLUSTERS - 1)), dtype=np.float64)


def _wider(fitted: Posterior) -> FloatArray:
    """Widen the modelled covariance, column by column, to the variation between parts of the run."""
    ratio = np.diag(fitted.robust) / np.maximum(np.diag(fitted.model), 1e-30)
    widen = np.sqrt(np.maximum(ratio, 1.0))
    return np.asarray(fitted.model * np.outer(widen, widen), dtype=np.float64)


def _shared_readings(exposure: Exposure, power_w: FloatArray) -> float:
    """Return the largest factor by which correlated errors of neighbouring intervals widen the covariance.

    Two intervals share a reading, so its error appears in both with opposite signs: a moving average whose spectral
    density is at most 1 + 2 |rho_1| times that of white noise, reached by layers that alternate with the readings.
    """
    residual_j = exposure.energy_j - exposure.mix(power_w)
    residual_j = residual_j - residual_j.mean()
    power = float(residual_j @ residual_j)
    return 1.0 + 2.0 * abs(float(residual_j[1:] @ residual_j[:-1])) / power if power > 0 else 1.0


def _time_share(mean_w: FloatArray, idle: np.ndarray, gain: float, reason: str) -> Fit:
    spread_w = np.where(idle, 0.0, ASSUMED_SPREAD_REL * mean_w)
    return Fit(mean_w, np.diag(spread_w**2), "time_share", gain, reason)
