"""The columns' powers given the readings, constrained to the metered total and above idle, with covariance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.moments import Moments
from torchwatt.attribution.prior import Prior
from torchwatt.core.meter import FloatArray

FLOOR_ROUNDS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """Mean powers (idle last) and covariances: `model` from the noise model, `robust` from the clusters.

    Both are errors against the true powers; `sampling` is the spread between repeats, whose readings differ and whose
    prior, with its errors, is the same.
    """

    power_w: FloatArray
    model: FloatArray
    robust: FloatArray
    sampling: FloatArray


def posterior(
    total: Moments, prior: Prior, scores: FloatArray | None = None, timing: FloatArray | None = None
) -> Posterior:
    """Solve for the powers.

    p = m + B h with B = L Q (s2 + l)^-1 Q'L'. The covariance is s2 B if the noise is as modelled; robustly it is B S B
    + s2^2 L Q (s2 + l)^-2 Q'L': the first part from the scores of 5 s clusters (a sandwich; Liang and Zeger, Biometrika
    73, 1986), the second the remaining spread of the prior.

    Args:
        total: Moments of all readings.
        prior: Mean, covariance and noise.
        scores: Sum over clusters of s s', s = A'W(y - Ap) of one cluster.
        timing: A'WJ, the effect of one second of common lag on the pull, times the uncertainty of the lag in seconds.
    """
    about = total.about(prior.mean_w)
    matrix = prior.covariance
    root = np.linalg.cholesky(matrix + 1e-9 * np.diag(np.diag(matrix)) + 1e-12 * np.eye(len(matrix)))
    values, vectors = np.linalg.eigh(root.T @ about.gram @ root)
    values = np.maximum(values, 0.0)
    s2 = prior.noise_w**2
    turned = root @ vectors
    spread = turned / (s2 + values)
    bread = spread @ turned.T
    power_w = prior.mean_w + bread @ about.pull
    model = s2 * bread
    robust, sampling = model, s2 * bread @ about.gram @ bread
    if scores is not None:
        sampling = bread @ scores @ bread
        robust = sampling + s2**2 * (spread @ spread.T)
    if timing is not None:
        moved = bread @ timing
        robust = robust + np.outer(moved, moved)
        model = model + np.outer(moved, moved)
    return Posterior(power_w, model, robust, sampling)


def effective_columns(total: Moments, prior: Prior) -> float:
    """Return how many powers the readings determine: sum of l / (s2 + l)."""
    root = np.linalg.cholesky(prior.covariance + 1e-9 * np.diag(np.diag(prior.covariance)))
    values = np.maximum(np.linalg.eigvalsh(root.T @ total.gram @ root), 0.0)
    return float((values / (prior.noise_w**2 + values)).sum())


def hold_to_total(free: Posterior, time_s: FloatArray, energy_j: float, energy_sd_j: float) -> Posterior:
    """Condition the powers on the metered energy, so that time_s @ power_w equals it.

    Uncertain powers move first, p + VT (E - T'p) / (T'VT + u^2). The remaining gap is the sensor's own gain, by which
    the total is uncertain by u, and scales all powers alike.
    """
    pull = free.robust @ time_s
    variance = float(time_s @ pull) + energy_sd_j**2
    if variance > 0:
        gap_j = energy_j - float(time_s @ free.power_w)
        power_w = free.power_w + pull * (gap_j / variance)
        robust = free.robust - np.outer(pull, pull) / variance
        model_pull = free.model @ time_s
        model = free.model - np.outer(model_pull, model_pull) / (float(time_s @ model_pull) + energy_sd_j**2)
    else:
        power_w, robust, model = free.power_w, free.robust, free.model
    moved = np.eye(len(time_s)) - np.outer(pull, time_s) / variance if variance > 0 else np.eye(len(time_s))
    booked_j = float(time_s @ power_w)
    scale = energy_j / booked_j if booked_j > 0 else 1.0
    sampling = moved @ free.sampling @ moved.T
    return Posterior(power_w * scale, model * scale**2, robust * scale**2, sampling * scale**2)


def lift_to_idle(free: Posterior) -> Posterior:
    """Constrain columns to at least idle power: condition those below on being equal to it, in at most 8 rounds."""
    power_w, matrix = free.power_w, free.robust
    held = np.zeros(len(power_w) - 1, dtype=np.bool_)
    for _ in range(FLOOR_ROUNDS):
        low = power_w[:-1] < power_w[-1] - 1e-9
        if not np.any(low & ~held):
            break
        held |= low
        which = np.flatnonzero(held)
        tie = np.zeros((len(which), len(power_w)))
        tie[np.arange(len(which)), which] = 1.0
        tie[:, -1] = -1.0
        inner = tie @ matrix @ tie.T
        inner += 1e-9 * np.diag(np.diag(inner)) + 1e-12 * np.eye(len(which))
        gap = tie @ free.power_w
        power_w = free.power_w - matrix @ tie.T @ np.linalg.solve(inner, gap)
    power_w = np.maximum(power_w, 0.0)
    return Posterior(power_w, free.model, free.robust, free.sampling)
