"""Book every reading interval's joules to the slots that ran in it; the total is kept.

Interval k's E_k joules go to slot j in proportion to p_j T_kj. So each interval balances by itself, drift of the whole
chip cancels, and an interval with a single slot is booked to it whatever its estimated power.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.exposure import Exposure
from torchwatt.attribution.fit import Fit
from torchwatt.core.meter import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Booked:
    """Joules per slot, and their standard deviations where they are known.

    `sd_j` is the error against the true values, `sampling_j` the spread between repeats of the readings.
    """

    energy_j: FloatArray
    sd_j: FloatArray | None
    sampling_j: FloatArray


def apportion(exposure: Exposure, fit: Fit) -> Booked:
    """Split each interval's energy by time x fitted power; propagate the fit's covariance and the reading noise."""
    power_w = fit.power_w
    if not np.any(power_w > 0):
        power_w = np.ones_like(power_w)  # the meter reads 0 J throughout: any split books 0
    drawn = exposure.mix(power_w)
    drawn = np.where(drawn > 0, drawn, 1.0)
    share = exposure.energy_j / drawn
    booked = exposure.seconds * power_w[exposure.column] * share[exposure.row]
    energy_j = np.asarray(np.bincount(exposure.column, booked, exposure.columns), dtype=np.float64)
    if fit.covariance is None:
        return Booked(energy_j, None, np.zeros(len(energy_j)))
    reading = fit.noise_j**2 / 2 * _reading_weight(exposure, power_w, drawn)
    sd_j = _root(_split_variance(exposure, fit.covariance, power_w, share, drawn) + reading)
    if fit.sampling is None:
        return Booked(energy_j, sd_j, np.zeros(len(energy_j)))
    return Booked(energy_j, sd_j, _root(_split_variance(exposure, fit.sampling, power_w, share, drawn) + reading))


def _root(variance: FloatArray) -> FloatArray:
    return np.asarray(np.sqrt(np.maximum(variance, 0.0)), dtype=np.float64)


def _split_variance(
    exposure: Exposure, covariance: FloatArray, power_w: FloatArray, share: FloatArray, drawn: FloatArray
) -> FloatArray:
    """Return the variance of booked joules due to uncertain powers: J V J', J = dE/dp of the split above."""
    own = np.bincount(exposure.column, exposure.seconds * share[exposure.row], exposure.columns)
    cross = np.zeros_like(covariance)
    weight = share / drawn
    for rows, dense in exposure.blocks():
        cross += dense.T @ (dense * weight[rows, None])
    jacobian = np.diag(own) - power_w[:, None] * cross
    variance = np.einsum("ij,jk,ik->i", jacobian, covariance, jacobian, optimize=True)
    return np.asarray(variance, dtype=np.float64)


def _reading_weight(exposure: Exposure, power_w: FloatArray, drawn: FloatArray) -> FloatArray:
    """Return the squared effect of one reading's error on each slot, summed over the readings.

    A reading ends one interval and begins the next: its error moves joules only where the two are split differently. An
    interval's noise sigma is that of two readings, hence the half above.
    """
    total = np.zeros(exposure.columns)
    before = np.zeros((1, exposure.columns))
    for rows, dense in exposure.blocks():
        fraction = dense * power_w / drawn[rows, None]
        total += (np.diff(fraction, axis=0, prepend=before) ** 2).sum(axis=0)
        before = fraction[-1:]
    return np.asarray(total + before[0] ** 2, dtype=np.float64)
