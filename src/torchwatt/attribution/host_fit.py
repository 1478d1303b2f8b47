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

from torchwatt.attribution.estimator import guess_mean_powers
from torchwatt.attribution.owned_intervals import Exposure, OwnedIntervals, compute_exposure
from torchwatt.attribution.posterior import (
    ColumnGroups,
    Moments,
    Posterior,
    build_column_groups,
    build_covariance,
    compute_moments,
    empty_moments,
    learn_prior,
    log_evidence,
    solve_posterior,
)
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.meter import FloatArray, IntArray

# Log marginal likelihood that the fit must gain over "all busy slots equal" (natural units; 6 is odds of 400).
MIN_GAIN_NATS = 6.0
MIN_ROWS = 20
MAX_SLOTS = 1000
MAX_INTERVAL_SLOTS = (
    2500  # slots of which time share has intervals: computing them takes time with the cube of the slots
)
# Relative spread between layers that time share ignores; its typical error (docs/attribution.md).
ASSUMED_SPREAD_REL = 0.30
# A slot gets at least this part of the mean power: a meter does not go below idle.
FLOOR_REL = 0.05
CLUSTERS = 16  # parts of the run with errors assumed independent, for the sandwich
EQUAL_SPREAD_REL = 1e-4
NO_GROUPS = ColumnGroups(())


@dataclass(frozen=True, slots=True, eq=False)
class HostFit:
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


def fit_host_power(exposure: Exposure, idle: np.ndarray, group: IntArray | None = None) -> HostFit:
    """Estimate the power of every slot.

    Args:
        exposure: The readings of one domain.
        idle: One flag per slot: nothing runs there, so its power has a separate mean.
        group: One number per slot, the same for alike modules, whose powers are similar a priori; -1: in no group.
    """
    flat_w = np.full(exposure.columns, exposure.energy_j.sum() / max(exposure.length_s.sum(), 1e-12))
    if exposure.columns > MAX_SLOTS:
        return HostFit(flat_w, None, "time_share", 0.0, f"more than {MAX_SLOTS} slots")
    place = _slot_columns(idle)
    total = _sum_exposure(exposure, place)
    mean_w, idle_sd_w = _mean_powers(total)
    if exposure.rows < MIN_ROWS:
        return _time_share_fit(mean_w[place], idle, 0.0, f"only {exposure.rows} readings")
    prior = learn_prior(total, NO_GROUPS if group is None else _group_alike_columns(group[~idle]), mean_w, idle_sd_w)
    equal = _spread_covariance(EQUAL_SPREAD_REL * float(mean_w.mean()), mean_w, idle_sd_w)
    gain = prior.evidence_nats - log_evidence(total, equal, mean_w)
    if gain < MIN_GAIN_NATS:
        return _time_share_fit(mean_w[place], idle, gain, "the readings cannot distinguish the layers")
    fitted = solve_posterior(total, prior)
    fitted = solve_posterior(total, prior, _part_scores(exposure, place, fitted.power_w))
    floor_w = FLOOR_REL * float(np.average(mean_w[place], weights=exposure.time_s() + 1e-12))
    power_w = np.maximum(fitted.power_w[place], floor_w)
    more = _shared_reading_factor(exposure, power_w)
    spread, sampling = _widened_covariance(fitted) * more, fitted.sampling * more
    at = np.ix_(place, place)
    return HostFit(power_w, spread[at], "fit", gain, "", prior.noise_w, sampling[at])


def estimate_spread_w(exposure: Exposure, idle: np.ndarray) -> float:
    """Return the estimated spread of the slots' powers, in W."""
    total = _sum_exposure(exposure, _slot_columns(idle))
    return float(learn_prior(total, NO_GROUPS, *_mean_powers(total)).size_w[0])


def spread_likelihood(exposure: Exposure, idle: np.ndarray, size_w: float) -> float:
    """Return the log marginal likelihood of the readings for powers with this spread, in W."""
    total = _sum_exposure(exposure, _slot_columns(idle))
    mean_w, idle_sd_w = _mean_powers(total)
    return log_evidence(total, _spread_covariance(size_w, mean_w, idle_sd_w), mean_w)


def _spread_covariance(size_w: float, mean_w: FloatArray, idle_sd_w: float) -> FloatArray:
    return build_covariance(NO_GROUPS, np.array([size_w]), float(mean_w[0]), idle_sd_w, len(mean_w) - 1)


def fit_time_share(exposure: Exposure, idle: np.ndarray, reason: str) -> HostFit:
    """Give all busy slots the same power, where readings cannot distinguish layers."""
    if exposure.columns > MAX_INTERVAL_SLOTS:
        kind = idle.astype(np.int64)
        two = replace(exposure, column=kind[exposure.column], columns=2)
        mean_w, _ = _mean_powers(_sum_exposure(two, np.arange(2)))
        return HostFit(mean_w[kind], None, "time_share", 0.0, f"{reason}; more than {MAX_INTERVAL_SLOTS} slots")
    place = _slot_columns(idle)
    return _time_share_fit(_mean_powers(_sum_exposure(exposure, place))[0][place], idle, 0.0, reason)


def _group_alike_columns(group: IntArray) -> ColumnGroups:
    """Return the structure of busy columns: alike modules are a group, any other column is a separate group."""
    own = int(group.max(initial=-1)) + 1 + np.arange(len(group))
    return build_column_groups((np.where(group >= 0, group, own),))


def _slot_columns(idle: np.ndarray) -> IntArray:
    """Return each slot's column: busy ones their own, idle ones together in the last."""
    place = np.cumsum(~idle) - 1
    place[idle] = int((~idle).sum())
    return np.asarray(place, dtype=np.int64)


def _mean_powers(total: Moments) -> tuple[FloatArray, float]:
    """Return one power for busy columns and one for idle; a common one where the fit is not positive."""
    mean_w, idle_sd_w = guess_mean_powers(total, None)
    if mean_w[0] > 0 and mean_w[-1] >= 0:
        return mean_w, idle_sd_w
    flat_w = float(total.pull.sum()) / max(float(total.gram.sum()), 1e-12)
    return np.full(len(mean_w), max(flat_w, 0.0)), idle_sd_w


def _sum_exposure(exposure: Exposure, place: IntArray) -> Moments:
    total = empty_moments(int(place.max(initial=0)) + 1)
    for rows, dense in exposure.blocks():
        columns_s = _gather_columns(dense, place)
        total += compute_moments(columns_s, exposure.energy_j[rows], np.ones(len(columns_s)))
    return total


def _gather_columns(dense: FloatArray, place: IntArray) -> FloatArray:
    columns_s = np.zeros((len(dense), int(place.max(initial=0)) + 1))
    np.add.at(columns_s.T, place, dense.T)
    return columns_s


def _part_scores(exposure: Exposure, place: IntArray, power_w: FloatArray) -> FloatArray:
    """Return the sum over parts of the run of s s', s = T'(E - Tp), which includes errors common to neighbours."""
    count = len(power_w)
    stretch = np.arange(exposure.rows) * CLUSTERS // exposure.rows
    each = np.zeros((CLUSTERS, count))
    for rows, dense in exposure.blocks():
        columns_s = _gather_columns(dense, place)
        residual_j = exposure.energy_j[rows] - columns_s @ power_w
        np.add.at(each, stretch[rows], columns_s * residual_j[:, None])
    return np.asarray(each.T @ each * (CLUSTERS / (CLUSTERS - 1)), dtype=np.float64)


def _widened_covariance(fitted: Posterior) -> FloatArray:
    """Widen the modelled covariance, column by column, to the variation between parts of the run."""
    ratio = np.diag(fitted.robust) / np.maximum(np.diag(fitted.model), 1e-30)
    widen = np.sqrt(np.maximum(ratio, 1.0))
    return np.asarray(fitted.model * np.outer(widen, widen), dtype=np.float64)


def _shared_reading_factor(exposure: Exposure, power_w: FloatArray) -> float:
    """Return the largest factor by which correlated errors of neighbouring intervals widen the covariance.

    Two intervals share a reading, so its error appears in both with opposite signs: a moving average whose spectral
    density is at most 1 + 2 |rho_1| times that of white noise, reached by layers that alternate with the readings.
    """
    residual_j = exposure.energy_j - exposure.mix(power_w)
    residual_j = residual_j - residual_j.mean()
    power = float(residual_j @ residual_j)
    return 1.0 + 2.0 * abs(float(residual_j[1:] @ residual_j[:-1])) / power if power > 0 else 1.0


def _time_share_fit(mean_w: FloatArray, idle: np.ndarray, gain: float, reason: str) -> HostFit:
    spread_w = np.where(idle, 0.0, ASSUMED_SPREAD_REL * mean_w)
    return HostFit(mean_w, np.diag(spread_w**2), "time_share", gain, reason)


# RAPL has a latency within 1 ms; a tree or a driver that caches values has more. GPU sensors differ (60-110 ms).
LATENCIES_NS = tuple(range(0, 16_000_001, 2_000_000))
LATENCY_STEP_NS = 500_000
# Enough to distinguish lags, and bounded for long runs.
MAX_LATENCY_READINGS = 3000
# Errors common to neighbouring readings make the likelihood too narrow, and no lag is known better than this.
LATENCY_WIDENING, MIN_LATENCY_SD_NS = 2.0, 250_000


@dataclass(frozen=True, slots=True)
class MeterLatency:
    """Latency of the readings and its standard deviation."""

    ns: int
    sd_ns: float


def estimate_latency(curve: EnergyCurve, pieces: OwnedIntervals, idle: np.ndarray) -> MeterLatency:
    """Return the lag with which the slots' powers explain the readings best.

    The coarse lag is 0 unless the evidence is clear; around it, the mean over lags half a millisecond apart is taken,
    weighted by their likelihood.

    Args:
        curve: The domain's joules as read.
        pieces: Must reach back from the curve's start by the largest lag and two milliseconds.
        idle: One flag per slot.
    """
    t_ns, energy_j = curve.t_ns[: MAX_LATENCY_READINGS + 1], curve.energy_j[: MAX_LATENCY_READINGS + 1]
    if len(t_ns) <= MIN_ROWS or len(idle) > MAX_SLOTS:
        return MeterLatency(0, 0.0)
    unheard = curve.unheard()[:MAX_LATENCY_READINGS]
    size_w = estimate_spread_w(compute_exposure(pieces, t_ns, energy_j, len(idle), unheard), idle)

    def nats(lags_ns: IntArray) -> np.ndarray:
        return np.array(
            [
                spread_likelihood(compute_exposure(pieces, t_ns - lag, energy_j, len(idle), unheard), idle, size_w)
                for lag in lags_ns.tolist()
            ]
        )

    coarse = nats(np.array(LATENCIES_NS))
    best = int(np.argmax(coarse))
    middle = LATENCIES_NS[best] if coarse[best] - coarse[0] > MIN_GAIN_NATS else 0
    fine_ns = middle + np.arange(-3, 4) * LATENCY_STEP_NS
    fine_ns = fine_ns[fine_ns >= 0]
    score = nats(fine_ns)
    weight = np.exp((score - score.max()) / LATENCY_WIDENING**2)
    weight /= weight.sum()
    lag_ns = float(weight @ fine_ns)
    sd_ns = float(np.sqrt(weight @ (fine_ns - lag_ns) ** 2))
    return MeterLatency(round(lag_ns), max(sd_ns, MIN_LATENCY_SD_NS))


@dataclass(frozen=True, slots=True, eq=False)
class SlotEnergy:
    """Joules per slot, and their standard deviations where they are known.

    `sd_j` is the error against the true values, `sampling_j` the spread between repeats of the readings.
    """

    energy_j: FloatArray
    sd_j: FloatArray | None
    sampling_j: FloatArray


def apportion_intervals(exposure: Exposure, fit: HostFit) -> SlotEnergy:
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
        return SlotEnergy(energy_j, None, np.zeros(len(energy_j)))
    reading = fit.noise_j**2 / 2 * _reading_weight(exposure, power_w, drawn)
    sd_j = _standard_deviation(_split_variance(exposure, fit.covariance, power_w, share, drawn) + reading)
    if fit.sampling is None:
        return SlotEnergy(energy_j, sd_j, np.zeros(len(energy_j)))
    return SlotEnergy(
        energy_j, sd_j, _standard_deviation(_split_variance(exposure, fit.sampling, power_w, share, drawn) + reading)
    )


def _standard_deviation(variance: FloatArray) -> FloatArray:
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
