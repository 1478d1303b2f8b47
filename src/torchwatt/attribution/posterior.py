"""The columns' powers given the readings, constrained to the metered total and above idle, with covariance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from torchwatt.core.meter import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """G = A'WA, h = A'Wy, y'Wy and the number of readings."""

    gram: FloatArray
    pull: FloatArray
    square: float
    rows: float

    def __add__(self, more: Moments) -> Moments:
        return Moments(self.gram + more.gram, self.pull + more.pull, self.square + more.square, self.rows + more.rows)

    def __sub__(self, fewer: Moments) -> Moments:
        return Moments(
            self.gram - fewer.gram, self.pull - fewer.pull, self.square - fewer.square, self.rows - fewer.rows
        )

    def about(self, power_w: FloatArray) -> Moments:
        """Return the moments of the readings minus the model's predictions with these powers."""
        pull = self.pull - self.gram @ power_w
        square = self.square - float(power_w @ (self.pull + pull))
        return Moments(self.gram, pull, max(square, 0.0), self.rows)


def compute_moments(design: FloatArray, power_w: FloatArray, weight: FloatArray) -> Moments:
    """Return the moments of rows with weights (mean 1 to keep the noise's scale)."""
    weighted = design * weight[:, None]
    return Moments(weighted.T @ design, weighted.T @ power_w, float(power_w @ (weight * power_w)), float(len(power_w)))


def empty_moments(columns: int) -> Moments:
    """Return the moments of no readings."""
    return Moments(np.zeros((columns, columns)), np.zeros(columns), 0.0, 0.0)


def minimise_nelder_mead(
    function: Callable[[FloatArray], float],
    start: FloatArray,
    size: FloatArray,
    *,
    max_evaluations: int,
    close: float = 1e-3,
) -> tuple[FloatArray, float]:
    """Minimise a function of a few variables (Nelder and Mead, The Computer Journal 7, 1965).

    Args:
        function: May return infinity for invalid arguments.
        start: The first corner.
        size: Distance of the other corners from it, per variable.
        max_evaluations: Approximate limit of evaluations.
        close: Stop when the values at all corners differ by less.

    Returns:
        The best point and its value.
    """
    points = [start, *(start + np.eye(len(start))[i] * size[i] for i in range(len(start)))]
    values = [function(point) for point in points]
    spent = len(points)
    while spent < max_evaluations:
        order = np.argsort(values)
        points, values = [points[i] for i in order], [values[i] for i in order]
        if values[-1] - values[0] < close:
            break
        centre = np.mean(points[:-1], axis=0)
        spent += _replace_worst_corner(function, points, values, centre)
    best = int(np.argmin(values))
    return points[best], values[best]


def _replace_worst_corner(
    function: Callable[[FloatArray], float], points: list[FloatArray], values: list[float], centre: FloatArray
) -> int:
    """Replace the worst corner: reflected, expanded, contracted, or everything shrunk; return evaluations spent."""
    mirrored = 2 * centre - points[-1]
    value = function(mirrored)
    spent = 1
    if value < values[0]:
        further = 3 * centre - 2 * points[-1]
        beyond = function(further)
        points[-1], values[-1] = (further, beyond) if beyond < value else (mirrored, value)
        return spent + 1
    if value < values[-2]:
        points[-1], values[-1] = mirrored, value
        return spent
    inner = (centre + (mirrored if value < values[-1] else points[-1])) / 2
    inner_value = function(inner)
    if inner_value < min(value, values[-1]):
        points[-1], values[-1] = inner, inner_value
        return spent + 1
    for i in range(1, len(points)):
        points[i] = (points[i] + points[0]) / 2
        values[i] = function(points[i])
    return spent + len(points)


START_REL = 0.2  # effects begin at a fifth of the mean busy power
MEAN_REL = 0.3  # relative SD of the mean busy power
IDLE_QUIET_REL = 0.03  # relative SD of idle power from a baseline
IDLE_FREE_REL = 0.5  # relative SD of idle power without a baseline
# Weak prior on the logarithm of an effect's size, so that an effect without data keeps its initial size.
LOG_SD = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class ColumnGroups:
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


def build_column_groups(groups: tuple[IntArray, ...], features: FloatArray | None = None) -> ColumnGroups:
    """Return the structure with informative groups only: no singletons throughout, no duplicate grouping."""
    informative: list[IntArray] = []
    for group in groups:
        _, number = np.unique(group, return_inverse=True)
        if number.max(initial=-1) + 1 < len(number) and not any(
            np.array_equal(number, previous) for previous in informative
        ):
            informative.append(np.asarray(number, dtype=np.int64))
    return ColumnGroups(tuple(informative), features)


def build_covariance(
    shape: ColumnGroups, size_w: FloatArray, busy_w: float, idle_sd_w: float, count: int
) -> FloatArray:
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


def learn_prior(
    moments: Moments, shape: ColumnGroups, mean_w: FloatArray, idle_sd_w: float, start_w: FloatArray | None = None
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
        likelihood = _profile_evidence(
            about, build_covariance(shape, np.exp(log_rel) * busy_w, busy_w, idle_sd_w, count)
        )
        return -likelihood[0] + 0.5 * float((((log_rel - np.log(START_REL)) / LOG_SD) ** 2).sum())

    max_evaluations = 25 * shape.effects if count <= 150 else 12 * shape.effects
    best, _ = minimise_nelder_mead(
        cost, np.clip(start, -6, 2), np.full(shape.effects, 0.7), max_evaluations=max_evaluations, close=0.05
    )
    size_w = np.exp(best) * busy_w
    matrix = build_covariance(shape, size_w, busy_w, idle_sd_w, count)
    nats, noise_w = _profile_evidence(about, matrix)
    return Prior(mean_w, matrix, noise_w, nats, size_w)


def log_evidence(moments: Moments, prior_covariance: FloatArray, mean_w: FloatArray) -> float:
    """Return the log marginal likelihood under a covariance, with the noise profiled out."""
    return _profile_evidence(moments.about(mean_w), prior_covariance)[0]


def _profile_evidence(about: Moments, matrix: FloatArray) -> tuple[float, float]:
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


def solve_posterior(
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


def count_effective_columns(total: Moments, prior: Prior) -> float:
    """Return how many powers the readings determine: sum of l / (s2 + l)."""
    root = np.linalg.cholesky(prior.covariance + 1e-9 * np.diag(np.diag(prior.covariance)))
    values = np.maximum(np.linalg.eigvalsh(root.T @ total.gram @ root), 0.0)
    return float((values / (prior.noise_w**2 + values)).sum())


def constrain_to_total(free: Posterior, time_s: FloatArray, energy_j: float, energy_sd_j: float) -> Posterior:
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


def constrain_to_idle(free: Posterior) -> Posterior:
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
