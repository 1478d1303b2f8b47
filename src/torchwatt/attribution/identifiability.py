"""Test whether the readings identify the powers: locked phases, gain over time share, measured share."""

from __future__ import annotations

import numpy as np

from torchwatt.attribution.posterior import Moments, Prior, solve_posterior
from torchwatt.core.meter import FloatArray, IntArray

LOCKED_GAP = 0.5  # share of a step's phases without a reading
PHASE_BINS = 50
MIN_GAIN = 0.3  # cross-validated share of the variance that time share leaves and the fit explains
MIN_SELF_SHARE = 0.5  # below this measured share a slot is an estimate
MIN_GROUP_SHARE = 0.8  # and the smallest enclosing module with this share is named


def measure_phase_gap(at_s: FloatArray, marks_s: FloatArray) -> float | None:
    """Return the share of a step's phases without a reading; None with too few steps or readings."""
    in_marks = (at_s >= marks_s[0]) & (at_s < marks_s[-1]) if len(marks_s) > 3 else np.zeros(0, dtype=np.bool_)
    bins = min(PHASE_BINS, int(in_marks.sum()) // 8)
    if bins < 5:
        return None
    before = np.searchsorted(marks_s, at_s[in_marks], side="right") - 1
    phase = (at_s[in_marks] - marks_s[before]) / (marks_s[before + 1] - marks_s[before])
    hit = np.bincount(np.minimum((phase * bins).astype(np.int64), bins - 1), minlength=bins)
    return float((hit == 0).mean())


def find_repeat_marks(start_s: FloatArray, column: IntArray, steps_s: FloatArray) -> FloatArray:
    """Return instants that repeat with the work: the steps if known, else the starts of the most typical column."""
    if len(steps_s) > 3:
        return np.sort(steps_s)
    counts = np.bincount(column)
    if len(counts) == 0:
        return np.zeros(0)
    values, often = np.unique(counts[counts > 3], return_counts=True)
    if len(values) == 0:
        return np.zeros(0)
    typical = int(values[int(np.argmax(often))])
    return np.unique(start_s[column == int(np.flatnonzero(counts == typical)[0])])


def cross_validate_gain(folds: list[Moments], prior: Prior) -> float:
    """Return 1 - (squared errors of the fit) / (those of one busy and one idle power), on held-out folds."""
    total = sum(folds[1:], folds[0])
    fit = equal = 0.0
    for fold in folds:
        training = total - fold
        if fold.rows == 0 or training.rows == 0:
            continue
        fit += fold.about(solve_posterior(training, prior).power_w).square
        equal += fold.about(fit_two_powers(training, prior.mean_w, prior.covariance[-1, -1])).square
    return 1.0 - fit / equal if equal > 0 else 0.0


def fit_two_powers(total: Moments, mean_w: FloatArray, idle_variance: float) -> FloatArray:
    """Return one power for all busy columns and one for idle by least squares; idle has a prior at its `mean_w`."""
    shape = np.zeros((len(mean_w), 2))
    shape[:-1, 0], shape[-1, 1] = 1.0, 1.0
    about = total.about(mean_w)
    gram = shape.T @ about.gram @ shape
    noise = max(about.square / max(total.rows, 1.0), 1e-12)
    gram += np.diag([1e-9 * max(gram[0, 0], 1e-12), noise / max(idle_variance, 1e-12)])
    return np.asarray(mean_w + shape @ np.linalg.solve(gram, shape.T @ about.pull), dtype=np.float64)


def compute_measured_share(weights: FloatArray, prior_cov: FloatArray, post_cov: FloatArray) -> FloatArray:
    """Return 1 - Var(after) / Var(before) of sums of columns' energies: how much of them the readings determined.

    Args:
        weights: (N, C + 1) seconds of each column in each sum.
        prior_cov: Covariance before the readings.
        post_cov: Covariance after them.
    """
    before = np.einsum("ij,jk,ik->i", weights, prior_cov, weights, optimize=True)
    after = np.einsum("ij,jk,ik->i", weights, post_cov, weights, optimize=True)
    share = 1.0 - np.divide(after, before, out=np.ones_like(after), where=before > 0)
    return np.asarray(np.clip(share, 0.0, 1.0), dtype=np.float64)
