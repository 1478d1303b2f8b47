"""Estimate powers of all columns from rows of readings, for any sensor.

Readings arrive in chunks. The latest are kept as rows, so that gain and weights can be refined; older ones are folded
into sufficient statistics with the gain and weights of that moment. Memory is O(C^2) and the open rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.guards import MIN_GAIN, cross_validated_gain, two_powers
from torchwatt.attribution.look import Rows, stack
from torchwatt.attribution.moments import Moments, moments, nothing
from torchwatt.attribution.nuisance import reading_weights, slow_gain
from torchwatt.attribution.posterior import Posterior, effective_columns, posterior
from torchwatt.attribution.prior import IDLE_FREE_REL, IDLE_QUIET_REL, Prior, Structure, learn
from torchwatt.core.meter import FloatArray

CLUSTER_S = 5.0
FOLDS = 4
ROUNDS = 2
MIN_ROWS = 40
# Open numbers: rows x columns. 8 million are 64 MB, an hour of a 100 ms sensor with 200 columns.
OPEN_NUMBERS = 8_000_000
LAG_SD_S = 1e-4
QUIET_NATS = 3.0  # log likelihood that the readings must gain for idle power to differ from the baseline


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Statistics of folded readings: moments of four folds of 5 s blocks, cluster scores, timing."""

    folds: tuple[Moments, ...]
    scores: FloatArray
    timing: FloatArray
    clusters: int

    @property
    def total(self) -> Moments:
        """Return the moments of all folds."""
        return sum(self.folds[1:], self.folds[0])

    def __add__(self, more: Sums) -> Sums:
        folds = tuple(a + b for a, b in zip(self.folds, more.folds, strict=True))
        return Sums(folds, self.scores + more.scores, self.timing + more.timing, self.clusters + more.clusters)


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """Powers of all columns, idle last, in the sensor's own watts; `time_share_w` are those of time share."""

    posterior: Posterior
    prior: Prior
    time_share_w: FloatArray
    gain: float  # cross-validated, over time share
    rows: int
    clusters: int
    reason: str  # why time share must be used; empty where the fit may be


class Estimator:
    """Collects rows and solves for powers; `idle_w` is the idle baseline, if there is one."""

    def __init__(self, shape: Structure, columns: int, idle_w: float | None = None) -> None:
        self._shape = shape
        self._columns = columns
        self._idle_w = idle_w
        self._open: list[Rows] = []
        self._folded = empty_sums(columns + 1)
        self._prior: Prior | None = None
        self._rows = 0

    def add(self, rows: Rows) -> None:
        """Add readings, in time order."""
        if len(rows) == 0:
            return
        self._open.append(rows)
        self._rows += len(rows)
        if sum(map(len, self._open)) * (self._columns + 1) > OPEN_NUMBERS:
            self._fold()

    def _fold(self) -> None:
        rows = stack(self._open)
        prior, sums = self._refine(rows)
        self._prior, self._folded, self._open = prior, sums, []

    def solve(self, pseudo: Moments | None = None) -> Estimate | None:
        """Return the powers; None with fewer than `MIN_ROWS` readings.

        Args:
            pseudo: Replayed measurements of columns, as moments with the noise of their context.
        """
        if self._rows < MIN_ROWS:
            return None
        prior, sums = self._refine(stack(self._open)) if self._open else (self._prior, self._folded)
        if prior is None:
            return None
        total = sums.total
        gain = cross_validated_gain(list(sums.folds), prior)
        if pseudo is not None:
            total = total + _scaled(pseudo, prior.noise_w**2)
        scores = _meat(sums, prior)
        result = posterior(total, prior, scores, sums.timing * LAG_SD_S)
        share_w = two_powers(sums.total, prior.mean_w, float(prior.covariance[-1, -1]))
        reason = "" if gain >= MIN_GAIN or pseudo is not None else "the readings cannot distinguish the layers"
        return Estimate(result, prior, share_w, gain, self._rows, sums.clusters, reason)

    def _refine(self, rows: Rows) -> tuple[Prior, Sums]:
        """Alternate between powers, the slow gain and the weights of readings."""
        gain, weight = np.ones(len(rows)), np.ones(len(rows))
        mean_w, idle_sd_w = first_guess(moments(rows.design, rows.power_w, weight) + self._folded.total, self._idle_w)
        sizes_w = self._prior.size_w if self._prior is not None else None
        total = (self._folded + sums_of(rows, gain, weight, mean_w)).total
        prior = learn(total, self._shape, mean_w, idle_sd_w, sizes_w)
        for _ in range(ROUNDS):
            power_w = posterior(total, prior).power_w
            gain = slow_gain(rows, power_w)
            residual_w = rows.power_w - gain * (rows.design @ power_w)
            weight = reading_weights(rows, residual_w, power_w)
            total = (self._folded + sums_of(rows, gain, weight, power_w)).total
            mean_w = two_powers(total, mean_w, idle_sd_w**2)
            prior = learn(total, self._shape, mean_w, idle_sd_w, prior.size_w)
        power_w = posterior(total, prior).power_w
        return prior, self._folded + sums_of(rows, gain, weight, power_w)


def first_guess(total: Moments, idle_w: float | None) -> tuple[FloatArray, float]:
    """Return a prior mean for busy columns and idle, and the standard deviation of idle.

    The idle baseline before the run may have had other clocks than the pauses inside it: it is used unless the readings
    contradict it.
    """
    columns = len(total.pull)
    flat_w = float(total.pull[:-1].sum() + total.pull[-1]) / max(float(total.gram.sum()), 1e-12)
    free = two_powers(total, np.full(columns, flat_w), (IDLE_FREE_REL * flat_w) ** 2)
    if idle_w is None:
        return free, IDLE_FREE_REL * flat_w
    quiet = np.full(columns, flat_w)
    quiet[-1] = idle_w
    quiet_sd_w = max(IDLE_QUIET_REL * idle_w, 0.5)
    held = two_powers(total, quiet, quiet_sd_w**2)
    rows = max(total.rows, 1.0)
    worse = 0.5 * rows * float(np.log(total.about(held).square / max(total.about(free).square, 1e-12)))
    if worse > QUIET_NATS + 0.5 * np.log(rows):
        return free, IDLE_FREE_REL * flat_w
    return held, quiet_sd_w


def empty_sums(columns: int) -> Sums:
    """Return the sums of no readings."""
    return Sums(tuple(nothing(columns) for _ in range(FOLDS)), np.zeros((columns, columns)), np.zeros(columns), 0)


def sums_of(rows: Rows, gain: FloatArray, weight: FloatArray, power_w: FloatArray) -> Sums:
    """Fold rows into sums, at these gains, weights and powers."""
    design = rows.design * gain[:, None]
    cluster = np.floor(rows.at_s / CLUSTER_S).astype(np.int64)
    fold = cluster % FOLDS
    folds = tuple(moments(design[fold == f], rows.power_w[fold == f], weight[fold == f]) for f in range(FOLDS))
    pulled = weight * (rows.power_w - design @ power_w)
    edges = np.flatnonzero(np.diff(cluster)) + 1
    each = np.add.reduceat(design * pulled[:, None], np.concatenate(([0], edges)), axis=0)
    timing = design.T @ (weight * gain * (rows.slope @ power_w))
    return Sums(folds, each.T @ each, timing, len(each))


def _meat(sums: Sums, prior: Prior) -> FloatArray:
    """Return the scores, corrected for few clusters and for residuals that the fit made smaller."""
    total = sums.total
    few = sums.clusters / max(sums.clusters - 1, 1)
    fitted = total.rows / max(total.rows - effective_columns(total, prior), 0.3 * total.rows)
    return sums.scores * few * fitted


def _scaled(pseudo: Moments, noise2: float) -> Moments:
    """Scale pseudo-observations (weights in 1/W^2) to the readings' weights."""
    return Moments(pseudo.gram * noise2, pseudo.pull * noise2, pseudo.square * noise2, pseudo.rows)
