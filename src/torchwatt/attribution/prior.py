"""The prior of the columns' powers: similar columns draw similar power.

p ~ N(m, K). K adds up variances of effects: one of each column's own, and one shared by the columns of each group (same
signature, same layer type, same module), plus slopes on features such as operations and bytes per second. The sizes of
the effects and the noise come from the marginal likelihood, which needs only the sufficient statistics G = A'WA and
h = A'Wr (empirical Bayes; Bishop, Pattern Recognition and Machine Learning, 2006, section 3.5):

    -2 log L = (M - C) ln s2 + sum ln(s2 + l_i) + (r'Wr - sum z_i^2 / (s2 + l_i)) / s2

with K = LL', l_i and Q the eigenvalues and vectors of L'GL, z = Q'L'h.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.minimise import simplex
from torchwatt.attribution.moments import Moments
from torchwatt.core.meter import FloatArray, IntArray

START_REL = 0.2  # effects begin at a fifth of the mean busy power
MEAN_REL = 0.3  # relative SD of the mean busy power
IDLE_QUIET_REL = 0.03  # relative SD of idle power from a baseline
IDLE_FREE_REL = 0.5  # relative SD of idle power without a baseline
# Weak prior on the logarithm of an effect's size, so that an effect without data keeps its initial size.
LOG_SD = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """Groups of similar columns, without idle. Groups are arrays of C numbers, features are (C, n)."""

    groups: tuple[IntArray, ...]
    features: FloatArray | None = None

    @property
    def effects(self) -> int:
        """Return the number of effect sizes: own, one per group, one per feature."""
        return 1 + len(self.groups) + (self.features.shape[1] if self.features is not None else 0)


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """Mean and covariance of all columns' powers (idle last), the noise, and the log evidence."""

    mean_w: FloatArray
    covariance: FloatArray
    noise_w: float
    evidence_nats: float
    size_w: FloatArray  # standard deviations of the effects


def structure(groups: tuple[IntArray, ...], features: FloatArray | None = None) -> Structure:
    """Return the structure with informative groups only: no singletons throughout, no duplicate grouping."""
    informative: list[IntArray] = []
    for group in groups:
        _, number = np.unique(group, return_inverse=True)
        if number.max(initial=-1) + 1 < len(number) and not any(
            np.array_equal(number, previous) for previous in informative
        ):
            informative.append(np.asarray(number, dtype=np.int64))
    return Structure(tuple(informative), features)


def covariance(shape: Structure, size_w: FloatArray, busy_w: float, idle_sd_w: float, count: int) -> FloatArray:
    """Return the covariance of all effects; the idle column is independent."""
    total = np.full((count, count), (MEAN_REL * busy_w) ** 2)
    total[np.diag_indices(count)] += size_w[0] ** 2
    for group, size in zip(shape.groups, size_w[1:], strict=False):
        total += size**2 * (group[:, None] == group[None, :])
    if shape.features is not None:
        for i, size in enumerate(size_w[1 + len(shape.groups) :]):
            total += size**2 * np.outer(shape.features[:, i], shape.features[:, i])
    with_idle = np.zeros((count + 1, count + 1))
    with_idle[:count, :count] = total
    with_idle[count, count] = idle_sd_w**2
    return with_idle


def learn(
    moments: Moments, shape: Structure, mean_w: FloatArray, idle_sd_w: float, start_w: FloatArray | None = None
) -> Prior:
    """Find the effects' sizes and the noise that make the readings most likely.

    Args:
        moments: Sufficient statistics of the readings, about any mean.
        shape: Groups of similar columns.
        mean_w: One power for busy columns, one for idle (the last).
        idle_sd_w: Standard deviation of the idle power.
        start_w: Initial sizes.
    """
    count = len(mean_w) - 1
    busy_w = max(float(mean_w[:count].mean()) if count else 0.0, 1e-6)
    about = moments.about(mean_w)
    start = np.log(start_w / busy_w if start_w is not None else np.full(shape.effects, START_REL))

    def cost(log_rel: FloatArray) -> float:
        likelihood = _evidence(about, covariance(shape, np.exp(log_rel) * busy_w, busy_w, idle_sd_w, count))
        return -likelihood[0] + 0.5 * float((((log_rel - np.log(START_REL)) / LOG_SD) ** 2).sum())

    max_evaluations = 25 * shape.effects if count <= 150 else 12 * shape.effects
    best, _ = simplex(
        cost, np.clip(start, -6, 2), np.full(shape.effects, 0.7), max_evaluations=max_evaluations, close=0.05
    )
    size_w = np.exp(best) * busy_w
    matrix = covariance(shape, size_w, busy_w, idle_sd_w, count)
    nats, noise_w = _evidence(about, matrix)
    return Prior(mean_w, matrix, noise_w, nats, size_w)


def evidence(moments: Moments, prior_covariance: FloatArray, mean_w: FloatArray) -> float:
    """Return the log marginal likelihood under a covariance, with the noise profiled out."""
    return _evidence(moments.about(mean_w), prior_covariance)[0]


def _evidence(about: Moments, matrix: FloatArray) -> tuple[float, float]:
    """Return the log marginal likelihood at the best noise, and that noise."""
    root = np.linalg.cholesky(matrix + 1e-9 * np.diag(np.diag(matrix)) + 1e-12 * np.eye(len(matrix)))
    values, vectors = np.linalg.eigh(root.T @ about.gram @ root)
    values = np.maximum(values, 0.0)
    z2 = (vectors.T @ (root.T @ about.pull)) ** 2
    residual = max(about.square, 1e-12)

    def nats(log_s2: FloatArray) -> FloatArray:
        s2 = np.exp(log_s2)[:, None]
        spread = np.log(s2 + values).sum(axis=1)
        quadratic = (residual - (z2 / (s2 + values)).sum(axis=1)) / s2[:, 0]
        loose = (about.rows - len(values)) * log_s2
        return np.asarray(-0.5 * (loose + spread + quadratic), dtype=np.float64)

    top = np.log(residual / max(about.rows, 1.0))
    grid = np.linspace(top - 16.0, top + 1.0, 52)
    for _ in range(3):
        score = nats(grid)
        best = float(grid[int(np.argmax(score))])
        reach = float(grid[1] - grid[0])
        grid = np.linspace(best - reach, best + reach, 15)
    return float(score.max()), float(np.exp(best / 2))
