"""Fit the sensor's response and lag to the run itself; the nominal ones are kept without clear evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from torchwatt.attribution.design_matrix import DesignRows, WorkRecords, build_design_rows, stack_rows
from torchwatt.attribution.estimator import guess_mean_powers
from torchwatt.attribution.posterior import (
    ColumnGroups,
    build_covariance,
    compute_moments,
    learn_prior,
    log_evidence,
    minimise_nelder_mead,
)
from torchwatt.attribution.sensor_response import MIN_WINDOW_S, SensorResponse, candidate_responses
from torchwatt.attribution.sensor_updates import SensorUpdates
from torchwatt.core.meter import FloatArray

DECISIVE_NATS = 6.0  # odds of 400 to 1
# A publication is late by the sensor's own delay; an error between two clocks shifts it either way.
LAGS_S = (-0.030, 0.110)
MARGIN_S = 0.15
LAG_PRIOR_SD_S = 0.04
# Enough to distinguish responses, and bounded for long runs.
SCREEN_READINGS, FIT_READINGS, FIT_RECORDS = 300, 1200, 150_000
SAMPLE_PARTS = 4


@dataclass(frozen=True, slots=True)
class ResponseFit:
    """The response to use, its gain in evidence over the nominal one, and its source."""

    kernel: SensorResponse
    gained_nats: float
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class _RunSample:
    """A few parts of a run: instants and readings of each, with the records around them."""

    stretches: tuple[tuple[FloatArray, FloatArray, WorkRecords], ...]

    def rows(self, kernel: SensorResponse) -> DesignRows:
        return stack_rows(
            [build_design_rows(records, at_s, power_w, kernel) for at_s, power_w, records in self.stretches]
        )


def fit_sensor_response(
    records: WorkRecords,
    updates: SensorUpdates,
    shape: ColumnGroups,
    start: SensorResponse,
    why: str,
    idle_w: float | None,
) -> ResponseFit:
    """Choose window, low-pass and lag by the marginal likelihood of the columns' powers.

    Args:
        records: The device's work on the clock of the publications.
        updates: Publications whose windows lie where the work is known.
        shape: Groups of similar columns.
        start: The nominal response; it is kept unless another gains more than 6 nats.
        why: Source of the nominal response.
        idle_w: The idle baseline.
    """
    few = _select_sample(records, updates, SCREEN_READINGS)
    best, sizes_w = start, None
    # Twice: effect sizes are learnt at the best response so far, and used to compare responses in the second round.
    for _ in range(2):
        judge, sizes_w = _build_cost(few, shape, best, idle_w, sizes_w)
        scored = [_scan_lags(judge, kernel) for kernel in candidate_responses(start, updates.period_s)]
        best = min(scored, key=lambda pair: pair[1])[0]
    many = _select_sample(records, updates, FIT_READINGS)
    judge, _ = _build_cost(many, shape, best, idle_w, sizes_w)
    nominal_response, kept_cost = _refine_lag(judge, scored[0][0])
    fitted, cost = _refine_response(judge, best)
    gained = kept_cost - cost
    if gained > DECISIVE_NATS:
        return ResponseFit(fitted, gained, f"fitted to the readings ({gained:.0f} nats over {why})")
    return ResponseFit(_choose_lag(judge, nominal_response, kept_cost), 0.0, why)


def fit_response_lag(
    records: WorkRecords, updates: SensorUpdates, shape: ColumnGroups, kernel: SensorResponse, idle_w: float | None
) -> SensorResponse:
    """Return a calibrated response with its lag fitted: clocks differ from run to run."""
    judge, _ = _build_cost(_select_sample(records, updates, SCREEN_READINGS), shape, kernel, idle_w, None)
    start, _ = _scan_lags(judge, kernel)
    judge, _ = _build_cost(_select_sample(records, updates, FIT_READINGS), shape, start, idle_w, None)
    return _choose_lag(judge, *_refine_lag(judge, start), known_s=kernel.lag_s)


ResponseCost = Callable[[SensorResponse], float]


def _build_cost(
    sample: _RunSample, shape: ColumnGroups, kernel: SensorResponse, idle_w: float | None, sizes_w: FloatArray | None
) -> tuple[ResponseCost, FloatArray]:
    """Return the cost function of a response in nats, with effect sizes fixed at those of this one."""
    rows = sample.rows(kernel)
    equal_weight = np.ones(len(rows))
    total = compute_moments(rows.design, rows.power_w, equal_weight)
    mean_w, idle_sd_w = guess_mean_powers(total, idle_w)
    prior = learn_prior(total, shape, mean_w, idle_sd_w, sizes_w)
    count = len(mean_w) - 1
    busy_w = max(float(mean_w[:count].mean()), 1e-6)
    matrix = build_covariance(shape, prior.size_w, busy_w, idle_sd_w, count)

    def cost(trial: SensorResponse) -> float:
        trial_rows = sample.rows(trial)
        belief = 0.5 * (trial.lag_s / LAG_PRIOR_SD_S) ** 2
        return belief - log_evidence(
            compute_moments(trial_rows.design, trial_rows.power_w, equal_weight), matrix, mean_w
        )

    return cost, prior.size_w


def _scan_lags(judge: ResponseCost, kernel: SensorResponse) -> tuple[SensorResponse, float]:
    """Try lags a sixth of the response's width apart; return the best, with its cost."""
    width_s = min(max(kernel.window_s, 2 * kernel.tau_s), 0.12)
    lags_s = np.arange(LAGS_S[0], LAGS_S[1], max(width_s / 6, 0.002))
    trials = [replace(kernel, lag_s=float(lag)) for lag in (0.0, *lags_s)]
    costs = [judge(trial) for trial in trials]
    best = int(np.argmin(costs))
    return trials[best], costs[best]


def _refine_lag(judge: ResponseCost, kernel: SensorResponse) -> tuple[SensorResponse, float]:
    best, cost = minimise_nelder_mead(
        lambda x: judge(replace(kernel, lag_s=_clip_lag(x[0]))),
        np.array([kernel.lag_s]),
        np.array([0.002]),
        max_evaluations=24,
    )
    return replace(kernel, lag_s=_clip_lag(best[0])), cost


def _choose_lag(judge: ResponseCost, kernel: SensorResponse, cost: float, known_s: float = 0.0) -> SensorResponse:
    """Return the response with its known lag unless the fitted one is decisively better."""
    plain = replace(kernel, lag_s=known_s)
    return kernel if judge(plain) - cost > DECISIVE_NATS / 2 else plain


def _refine_response(judge: ResponseCost, kernel: SensorResponse) -> tuple[SensorResponse, float]:
    """Optimise window, low-pass and lag together: logarithm of the window, root of the time constant."""

    def at(x: FloatArray) -> SensorResponse:
        return SensorResponse(
            float(np.clip(np.exp(x[0]), MIN_WINDOW_S, 2.0)), float(min(x[1] ** 2, 0.5)), _clip_lag(x[2])
        )

    start = np.array([np.log(kernel.window_s), np.sqrt(max(kernel.tau_s, 2.5e-4)), kernel.lag_s])
    best, cost = minimise_nelder_mead(
        lambda x: judge(at(x)), start, np.array([0.1, 0.015, 0.002]), max_evaluations=90, close=0.02
    )
    fitted = at(best)
    plain, plain_cost = _refine_boxcar(judge, fitted)
    return (plain, plain_cost) if plain_cost - cost < 1.0 else (fitted, cost)


def _refine_boxcar(judge: ResponseCost, kernel: SensorResponse) -> tuple[SensorResponse, float]:
    """Fit a window without low-pass, to test whether the low-pass is needed."""
    start = np.array([np.log(kernel.window_s + 2 * kernel.tau_s), kernel.lag_s])

    def at(x: FloatArray) -> SensorResponse:
        return SensorResponse(float(np.clip(np.exp(x[0]), MIN_WINDOW_S, 2.0)), 0.0, _clip_lag(x[1]))

    best, cost = minimise_nelder_mead(
        lambda x: judge(at(x)), start, np.array([0.1, 0.002]), max_evaluations=40, close=0.02
    )
    return at(best), cost


def _clip_lag(lag_s: float) -> float:
    return float(np.clip(lag_s, *LAGS_S))


def _select_sample(records: WorkRecords, updates: SensorUpdates, max_readings: int) -> _RunSample:
    """Select parts spread over the run, with few enough readings and records to try many responses."""
    density = len(records.start_s) / max(len(updates), 1)
    max_readings = max(min(max_readings, int(FIT_RECORDS / max(density, 1e-9))), 60)
    if len(updates) <= max_readings:
        parts = [slice(0, len(updates))]
    else:
        starts = np.linspace(0, len(updates) - max_readings // SAMPLE_PARTS, SAMPLE_PARTS).astype(int)
        parts = [slice(int(a), int(a) + max_readings // SAMPLE_PARTS) for a in starts]
    stretches = []
    for part in parts:
        at_s = updates.at_s[part]
        around = records.between(float(at_s[0]) - 2.5, float(at_s[-1]) + MARGIN_S)
        stretches.append((at_s, updates.power_w[part], around))
    return _RunSample(tuple(stretches))
