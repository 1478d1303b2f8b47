"""The watts of each slot from readings that see many slots at once.

Model, for reading interval k of length h_k with E_k joules and T_kj seconds of slot j:

    E_k = sum_j p_j T_kj + e_k,   e_k ~ N(0, sigma^2),   p_j ~ N(m_j, tau^2)

m_j is the mean power of busy slots, or of idle ones. tau and sigma come from the marginal likelihood, which needs
only the sufficient statistics G = T'T, h = T'r, r'r (empirical Bayes; Bishop, Pattern Recognition and Machine
Learning, 2006, section 3.5). tau = 0 is the hypothesis that all busy slots draw the same power: unless the data
favour another value by a clear margin, the result says so and time share is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from torchwatt.attribution.exposure import Exposure
from torchwatt.core.meter import FloatArray

# Log marginal likelihood that the fit must gain over "all busy slots equal" (natural units; 6 is odds of 400).
MIN_GAIN_NATS = 6.0
MIN_ROWS = 20
MAX_SLOTS = 1500
# Relative spread between layers that time share ignores; its typical error (ATTRIBUTION, section 6.1).
ASSUMED_SPREAD_REL = 0.30
# A slot never gets less than this part of the mean power: a meter does not go below idle.
FLOOR_REL = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Watts per slot with covariance; `method` says whether the data could tell the slots apart."""

    power_w: FloatArray
    covariance: FloatArray | None  # None: too many slots; intervals are then unknown
    method: Literal["fit", "time_share"]
    gain_nats: float
    reason: str
    noise_j: float = 0.0  # sigma: standard deviation of one interval's joules around the model
    evidence_nats: float = 0.0  # log marginal likelihood, up to a constant that only the readings set


def fit_power(exposure: Exposure, idle: np.ndarray) -> Fit:
    """Estimate the power of every slot.

    Args:
        exposure: The readings of one domain.
        idle: One flag per slot: nothing runs there, so its power has a mean of its own.
    """
    mean_w = _two_means(exposure, idle)
    if exposure.columns > MAX_SLOTS:
        return Fit(mean_w, None, "time_share", 0.0, f"more than {MAX_SLOTS} slots")
    if exposure.rows < MIN_ROWS:
        return _time_share(mean_w, idle, 0.0, f"only {exposure.rows} readings")
    gram, pull, residual = _statistics(exposure, mean_w)
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 0.0)
    z2 = (vectors.T @ pull) ** 2
    rho, evidence, gain = _best_ratio(values, z2, residual, exposure.rows)
    if gain < MIN_GAIN_NATS:
        plain = _time_share(mean_w, idle, gain, "the readings cannot tell the layers apart")
        return replace(plain, evidence_nats=evidence - gain)
    shrink = rho / (1.0 + rho * values)
    sigma2 = _quadratic(values, z2, residual, rho) / exposure.rows
    power_w = mean_w + (vectors * shrink) @ (vectors.T @ pull)
    covariance = sigma2 * (vectors * shrink) @ vectors.T * _shared_readings(exposure, power_w)
    floor_w = FLOOR_REL * float(np.average(mean_w, weights=exposure.time_s() + 1e-12))
    return Fit(np.maximum(power_w, floor_w), covariance, "fit", gain, "", float(np.sqrt(sigma2)), evidence)


def share_by_time(exposure: Exposure, idle: np.ndarray, reason: str) -> Fit:
    """Give all busy slots the same power: what is left where readings say nothing about layers."""
    return _time_share(_two_means(exposure, idle), idle, 0.0, reason)


def _two_means(exposure: Exposure, idle: np.ndarray) -> FloatArray:
    """Fit one power for busy slots and one for idle ones by least squares."""
    overall_w = exposure.energy_j.sum() / max(exposure.length_s.sum(), 1e-12)
    both = np.full(exposure.columns, overall_w)
    time_s = exposure.time_s()
    if time_s[idle].sum() <= 0 or time_s[~idle].sum() <= 0:
        return both
    design = np.stack([exposure.mix((~idle).astype(float)), exposure.mix(idle.astype(float))], axis=1)
    (busy_w, idle_w), _, rank, _ = np.linalg.lstsq(design, exposure.energy_j, rcond=None)
    if rank < 2 or busy_w <= 0 or idle_w < 0:
        return both
    return np.asarray(np.where(idle, idle_w, busy_w), dtype=np.float64)


def _statistics(exposure: Exposure, mean_w: FloatArray) -> tuple[FloatArray, FloatArray, float]:
    gram = np.zeros((exposure.columns, exposure.columns))
    pull = np.zeros(exposure.columns)
    rest = exposure.energy_j - exposure.mix(mean_w)
    for rows, dense in exposure.blocks():
        gram += dense.T @ dense
        pull += dense.T @ rest[rows]
    return gram, pull, float(rest @ rest)


def _quadratic(values: FloatArray, z2: FloatArray, residual: float, rho: float) -> float:
    """Return r' (I + rho T T')^-1 r, from the eigenvalues of T'T."""
    return max(residual - float((rho * z2 / (1.0 + rho * values)).sum()), 1e-30)


def _best_ratio(values: FloatArray, z2: FloatArray, residual: float, rows: int) -> tuple[float, float, float]:
    """Maximise the marginal likelihood over rho = tau^2 / sigma^2, sigma profiled out.

    Returns:
        rho, its evidence, and what that gains over rho = 0.
    """

    def evidence(rho: float) -> float:
        spread = float(np.log1p(rho * values).sum())
        return -0.5 * (rows * float(np.log(_quadratic(values, z2, residual, rho) / rows)) + spread)

    top = max(float(values.max(initial=0.0)), 1e-12)
    grid = np.logspace(-4, 10, 57) / top
    scores = [evidence(rho) for rho in grid]
    best = int(np.argmax(scores))
    return float(grid[best]), scores[best], scores[best] - evidence(0.0)


def _shared_readings(exposure: Exposure, power_w: FloatArray) -> float:
    """Return how much neighbouring intervals' correlated errors can widen the covariance.

    Two intervals share a reading, so its error appears in both with opposite signs: a moving average whose spectral
    density is at most 1 + 2 |rho_1| times that of white noise, reached by layers that alternate with the readings.
    """
    rest = exposure.energy_j - exposure.mix(power_w)
    rest = rest - rest.mean()
    power = float(rest @ rest)
    return 1.0 + 2.0 * abs(float(rest[1:] @ rest[:-1])) / power if power > 0 else 1.0


def _time_share(mean_w: FloatArray, idle: np.ndarray, gain: float, reason: str) -> Fit:
    spread_w = np.where(idle, 0.0, ASSUMED_SPREAD_REL * mean_w)
    return Fit(mean_w, np.diag(spread_w**2), "time_share", gain, reason)
