"""Estimate powers of all columns from rows of readings, for any sensor.

Readings arrive in chunks. The latest are kept as rows, so that gain and weights can be refined; older ones are folded
into sufficient statistics with the gain and weights of that moment. Memory is O(C^2) and the open rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.design_matrix import DesignRows, stack_rows
from torchwatt.attribution.posterior import (
    IDLE_FREE_REL,
    IDLE_QUIET_REL,
    ColumnGroups,
    Moments,
    Posterior,
    Prior,
    compute_moments,
    count_effective_columns,
    empty_moments,
    learn_prior,
    solve_posterior,
)
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


# Leakage follows temperature and clocks follow load over many seconds; layers change within milliseconds.
GAIN_SMOOTH_S = 8.0
GAIN_BOUND = 0.15
CELL_S = 0.5


def estimate_slow_gain(rows: DesignRows, power_w: FloatArray) -> FloatArray:
    """Return each reading's common gain: readings over model, smoothed over 8 s; its weighted mean is 1."""
    model_w = rows.design @ power_w
    cell = np.floor((rows.at_s - rows.at_s[0]) / CELL_S).astype(np.int64)
    cells = int(cell[-1]) + 1
    products = np.bincount(cell, rows.power_w * model_w, cells)
    squares = np.bincount(cell, model_w**2, cells)
    reach = round(2 * GAIN_SMOOTH_S / CELL_S)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) * CELL_S / (GAIN_SMOOTH_S / 2)) ** 2)
    products, squares = (np.convolve(values, bell)[reach : reach + cells] for values in (products, squares))
    gain = np.divide(products, squares, out=np.ones(cells), where=squares > 0)
    middles = (np.arange(cells) + 0.5) * CELL_S + rows.at_s[0]
    each = np.interp(rows.at_s, middles, gain)
    each /= float(np.average(each, weights=model_w**2 + 1e-12))
    return np.asarray(np.clip(each, 1 - GAIN_BOUND, 1 + GAIN_BOUND), dtype=np.float64)


def estimate_reading_weights(rows: DesignRows, residual_w: FloatArray, power_w: FloatArray) -> FloatArray:
    """Return weights 1 / Var, mean 1: Var = v0 + v1 J^2 + v2 f.

    J is the slope of the model at the reading's instant, so v1 is the variance of publication times; f is the share of
    extrapolated work in the window, whose times are estimates. Non-negative least squares on squared residuals, in
    three rounds of reweighting.
    """
    slope = rows.slope @ power_w
    shapes = [np.ones(len(rows)), slope**2]
    if rows.filled.any():
        shapes.append(rows.filled)
    square = np.minimum(residual_w**2, 25 * np.median(residual_w**2) + 1e-12)  # outliers do not set the scale
    variance = np.full(len(rows), float(square.mean()) + 1e-12)
    design = np.stack(shapes, axis=1)
    for _ in range(3):
        variance = design @ _non_negative_fit(design / variance[:, None], square / variance)
        variance = np.maximum(variance, 0.05 * float(square.mean()) + 1e-12)
    weight = 1.0 / variance
    return np.asarray(weight / weight.mean(), dtype=np.float64)


def _non_negative_fit(design: FloatArray, values: FloatArray) -> FloatArray:
    """Return non-negative least-squares coefficients, with the constant always included, by trying all subsets."""
    best, best_cost = np.zeros(design.shape[1]), np.inf
    for bits in range(2 ** (design.shape[1] - 1)):
        use = [0, *(i + 1 for i in range(design.shape[1] - 1) if bits >> i & 1)]
        coefficients = np.linalg.lstsq(design[:, use], values, rcond=None)[0]
        cost = float(((design[:, use] @ coefficients - values) ** 2).sum())
        if np.all(coefficients >= 0) and cost < best_cost:
            best, best_cost = np.zeros(design.shape[1]), cost
            best[use] = coefficients
    return best


CLUSTER_S = 5.0
FOLDS = 4
ROUNDS = 2
MIN_ROWS = 40
# Open numbers: rows x columns. 8 million are 64 MB, an hour of a 100 ms sensor with 200 columns.
MAX_OPEN_NUMBERS = 8_000_000
LAG_SD_S = 1e-4
BASELINE_NATS = 3.0  # log likelihood that the readings must gain for idle power to differ from the baseline


@dataclass(frozen=True, slots=True, eq=False)
class ReadingSums:
    """Statistics of folded readings: moments of four folds of 5 s blocks, cluster scores, timing."""

    folds: tuple[Moments, ...]
    scores: FloatArray
    timing: FloatArray
    clusters: int

    @property
    def total(self) -> Moments:
        """Return the moments of all folds."""
        return sum(self.folds[1:], self.folds[0])

    def __add__(self, more: ReadingSums) -> ReadingSums:
        folds = tuple(a + b for a, b in zip(self.folds, more.folds, strict=True))
        return ReadingSums(folds, self.scores + more.scores, self.timing + more.timing, self.clusters + more.clusters)


@dataclass(frozen=True, slots=True, eq=False)
class PowerEstimate:
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

    def __init__(self, shape: ColumnGroups, columns: int, idle_w: float | None = None) -> None:
        self._shape = shape
        self._columns = columns
        self._idle_w = idle_w
        self._open: list[DesignRows] = []
        self._folded = build_empty_sums(columns + 1)
        self._prior: Prior | None = None
        self._rows = 0

    def add(self, rows: DesignRows) -> None:
        """Add readings, in time order."""
        if len(rows) == 0:
            return
        self._open.append(rows)
        self._rows += len(rows)
        if sum(map(len, self._open)) * (self._columns + 1) > MAX_OPEN_NUMBERS:
            self._fold()

    def _fold(self) -> None:
        rows = stack_rows(self._open)
        prior, sums = self._refine(rows)
        self._prior, self._folded, self._open = prior, sums, []

    def solve(self, pseudo: Moments | None = None) -> PowerEstimate | None:
        """Return the powers; None with fewer than `MIN_ROWS` readings.

        Args:
            pseudo: Replayed measurements of columns, as moments with the noise of their context.
        """
        if self._rows < MIN_ROWS:
            return None
        prior, sums = self._refine(stack_rows(self._open)) if self._open else (self._prior, self._folded)
        if prior is None:
            return None
        total = sums.total
        gain = cross_validate_gain(list(sums.folds), prior)
        if pseudo is not None:
            total = total + _scale_moments(pseudo, prior.noise_w**2)
        scores = _corrected_scores(sums, prior)
        result = solve_posterior(total, prior, scores, sums.timing * LAG_SD_S)
        share_w = fit_two_powers(sums.total, prior.mean_w, float(prior.covariance[-1, -1]))
        reason = "" if gain >= MIN_GAIN or pseudo is not None else "the readings cannot distinguish the layers"
        return PowerEstimate(result, prior, share_w, gain, self._rows, sums.clusters, reason)

    def _refine(self, rows: DesignRows) -> tuple[Prior, ReadingSums]:
        """Alternate between powers, the slow gain and the weights of readings."""
        gain, weight = np.ones(len(rows)), np.ones(len(rows))
        mean_w, idle_sd_w = guess_mean_powers(
            compute_moments(rows.design, rows.power_w, weight) + self._folded.total, self._idle_w
        )
        sizes_w = self._prior.size_w if self._prior is not None else None
        total = (self._folded + sum_design_rows(rows, gain, weight, mean_w)).total
        prior = learn_prior(total, self._shape, mean_w, idle_sd_w, sizes_w)
        for _ in range(ROUNDS):
            power_w = solve_posterior(total, prior).power_w
            gain = estimate_slow_gain(rows, power_w)
            residual_w = rows.power_w - gain * (rows.design @ power_w)
            weight = estimate_reading_weights(rows, residual_w, power_w)
            total = (self._folded + sum_design_rows(rows, gain, weight, power_w)).total
            mean_w = fit_two_powers(total, mean_w, idle_sd_w**2)
            prior = learn_prior(total, self._shape, mean_w, idle_sd_w, prior.size_w)
        power_w = solve_posterior(total, prior).power_w
        return prior, self._folded + sum_design_rows(rows, gain, weight, power_w)


def guess_mean_powers(total: Moments, idle_w: float | None) -> tuple[FloatArray, float]:
    """Return a prior mean for busy columns and idle, and the standard deviation of idle.

    The idle baseline before the run may have had other clocks than the pauses inside it: it is used unless the readings
    contradict it.
    """
    columns = len(total.pull)
    flat_w = float(total.pull[:-1].sum() + total.pull[-1]) / max(float(total.gram.sum()), 1e-12)
    free = fit_two_powers(total, np.full(columns, flat_w), (IDLE_FREE_REL * flat_w) ** 2)
    if idle_w is None:
        return free, IDLE_FREE_REL * flat_w
    quiet = np.full(columns, flat_w)
    quiet[-1] = idle_w
    quiet_sd_w = max(IDLE_QUIET_REL * idle_w, 0.5)
    held = fit_two_powers(total, quiet, quiet_sd_w**2)
    rows = max(total.rows, 1.0)
    worse = 0.5 * rows * float(np.log(total.about(held).square / max(total.about(free).square, 1e-12)))
    if worse > BASELINE_NATS + 0.5 * np.log(rows):
        return free, IDLE_FREE_REL * flat_w
    return held, quiet_sd_w


def build_empty_sums(columns: int) -> ReadingSums:
    """Return the sums of no readings."""
    return ReadingSums(
        tuple(empty_moments(columns) for _ in range(FOLDS)), np.zeros((columns, columns)), np.zeros(columns), 0
    )


def sum_design_rows(rows: DesignRows, gain: FloatArray, weight: FloatArray, power_w: FloatArray) -> ReadingSums:
    """Fold rows into sums, at these gains, weights and powers."""
    design = rows.design * gain[:, None]
    cluster = np.floor(rows.at_s / CLUSTER_S).astype(np.int64)
    fold = cluster % FOLDS
    folds = tuple(compute_moments(design[fold == f], rows.power_w[fold == f], weight[fold == f]) for f in range(FOLDS))
    pulled = weight * (rows.power_w - design @ power_w)
    edges = np.flatnonzero(np.diff(cluster)) + 1
    each = np.add.reduceat(design * pulled[:, None], np.concatenate(([0], edges)), axis=0)
    timing = design.T @ (weight * gain * (rows.slope @ power_w))
    return ReadingSums(folds, each.T @ each, timing, len(each))


def _corrected_scores(sums: ReadingSums, prior: Prior) -> FloatArray:
    """Return the scores, corrected for few clusters and for residuals that the fit made smaller."""
    total = sums.total
    few = sums.clusters / max(sums.clusters - 1, 1)
    fitted = total.rows / max(total.rows - count_effective_columns(total, prior), 0.3 * total.rows)
    return sums.scores * few * fitted


def _scale_moments(pseudo: Moments, noise2: float) -> Moments:
    """Scale pseudo-observations (weights in 1/W^2) to the readings' weights."""
    return Moments(pseudo.gram * noise2, pseudo.pull * noise2, pseudo.square * noise2, pseudo.rows)
