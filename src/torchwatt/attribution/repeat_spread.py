"""Estimate the spread between repeats of a run from the differences between its own steps.

A repeat does the same steps on a machine in a different state: other neighbours, clocks, temperatures. Such changes are
slow, continue between runs as within one, and do not average out. So a repeat is assumed to differ from this run as one
twelfth of this run differs from another, per step (the floor of the Allan deviation of flicker noise). Work
extrapolated from a few traced steps has a second error, drawn anew in each repeat: the choice of traced steps. Errors
that are the same in every repeat (a meter's band, the watts that time share assumes) are not in these intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from torchwatt.attribution.owned_intervals import Exposure
from torchwatt.core.energy_curve import EnergyCurve, spaced_instants
from torchwatt.core.ledger import interval_around
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import UNATTRIBUTED, Slot
from torchwatt.core.trace import Trace
from torchwatt.core.units import NS_PER_S, Z90

BLOCKS = 12
MIN_BLOCKS = 4
REPEAT_DISTANCE_S = 600.0  # repeats are assumed to lie ten minutes apart: slower changes are not included
# One traced step has no spread; our own default, with the weight of this many more steps.
ASSUMED_REL_SD, ASSUMED_FREEDOM = 0.3, 3.0
SAME_TEMPLATE_REL = 0.02  # filled steps whose shares differ by less have the same template
MAX_GRID_NUMBERS = 2_000_000  # steps x slots: beyond, neighbouring steps are merged
CHUNK_NUMBERS = 500_000  # of them, at a time


@dataclass(frozen=True, slots=True, eq=False)
class StepGrid:
    """A run cut at the starts of its steps; each interval has a block, -1 for work that occurs only once.

    `steps` is the number of steps in an interval, `stage` the stage of each block.
    """

    t_ns: IntArray
    block: IntArray
    steps: FloatArray
    stage: IntArray

    @property
    def known(self) -> bool:
        """Return whether any stage of the run has blocks to compare."""
        return len(self.stage) > 0


def build_step_grid(curve: EnergyCurve, trace: Trace, columns: int, steps: Sequence[tuple[int, int]] = ()) -> StepGrid:
    """Cut a curve at the steps of its run, or, without steps, into blocks of equal time.

    The first step is warm-up, and occurs once in every repeat. A stage with too few steps or readings has no blocks.

    Args:
        curve: Of the domain.
        trace: Its steps and their stages.
        columns: Number of slots to be compared: with very many steps and slots, neighbouring steps are merged.
        steps: Those on the device's own timeline, where they are known.
    """
    steps = steps or trace.steps
    if len(steps) < MIN_BLOCKS + 1:
        return _time_grid(curve)
    starts, stages, counts = _merge_steps(trace, steps, max(MAX_GRID_NUMBERS // max(columns, 1), 4 * BLOCKS))
    edges = np.concatenate(([curve.start_ns], starts, [steps[-1][1], curve.end_ns]))
    edges = np.maximum.accumulate(np.clip(edges, curve.start_ns, curve.end_ns))
    owner = np.concatenate(([-1], np.arange(len(starts)), [-1]))  # step of each interval; -1: none
    keep = np.diff(edges) > 0
    owner, t_ns = owner[keep], np.concatenate((edges[:-1][keep], edges[-1:]))
    owner[_find_silent(curve, t_ns)] = -1
    block = np.full(len(owner), -1)
    stage: list[int] = []
    max_blocks = min(BLOCKS, len(curve.t_ns) // 2)
    for number, name in enumerate(sorted(set(stages))):
        mine = np.flatnonzero((owner > 0) & (np.array(stages)[owner] == name))
        if min(max_blocks, len(mine)) < MIN_BLOCKS:
            continue
        for part in np.array_split(mine, min(max_blocks, len(mine))):
            block[part] = len(stage)
            stage.append(number)
    return StepGrid(t_ns, block, np.where(owner >= 0, counts[owner], 1.0), np.array(stage, dtype=np.int64))


def _merge_steps(
    trace: Trace, steps: Sequence[tuple[int, int]], max_rows: int
) -> tuple[IntArray, list[str], FloatArray]:
    """Return start, stage and number of steps, with neighbours merged where there are more than `max_rows`."""
    stages = trace.step_stages if len(trace.step_stages) == len(steps) else ("",) * len(steps)
    counts = trace.step_counts if len(trace.step_counts) == len(steps) else (1,) * len(steps)
    size = -(-len(steps) // max_rows)
    starts_of_rows = np.arange(0, len(steps), size)
    starts = np.array([start for start, _ in steps], dtype=np.int64)[starts_of_rows]
    names = ["+".join(sorted(set(stages[i : i + size]))) for i in starts_of_rows.tolist()]
    return starts, names, np.add.reduceat(np.array(counts, dtype=np.float64), starts_of_rows)


def _time_grid(curve: EnergyCurve) -> StepGrid:
    max_blocks = min(BLOCKS, len(curve.t_ns) // 2)
    t_ns = np.unique(spaced_instants(curve.start_ns, curve.end_ns, max(max_blocks, 1) + 1))
    heard = np.flatnonzero(~_find_silent(curve, t_ns))
    block, block_count = np.full(len(t_ns) - 1, -1), len(heard) if len(heard) >= MIN_BLOCKS else 0
    block[heard[:block_count]] = np.arange(block_count)
    return StepGrid(t_ns, block, np.ones(len(block)), np.zeros(block_count, dtype=np.int64))


def _find_silent(curve: EnergyCurve, t_ns: IntArray) -> np.ndarray:
    """Return which intervals overlap a silent interval, in which the energy is unknown."""
    touched = np.zeros(len(t_ns) - 1, dtype=np.bool_)
    for lo, hi in curve.silent:
        touched |= (t_ns[:-1] < hi) & (t_ns[1:] > lo)
    return touched


@dataclass(frozen=True, slots=True, eq=False)
class RepeatSpread:
    """Differences between repeats, each a standard deviation in joules.

    `drift_j` is the effect of slow changes of the machine on each slot, `traced_j` the error of joules filled in from
    traced steps, with `freedom` degrees; `total_j`, `freedom_total` are the drift of the domain's total. None: unknown.
    """

    total_j: float
    freedom_total: float
    drift_j: FloatArray
    traced_j: FloatArray
    freedom: FloatArray

    @property
    def traced_sd_j(self) -> FloatArray:
        """Return the error of the traced steps as the SD of a normal distribution with equal 90 % interval."""
        return np.asarray(self.traced_j * student_quantile(self.freedom) / Z90, dtype=np.float64)

    def rescale(self, joules: FloatArray, errors: FloatArray) -> RepeatSpread:
        """Return the spread after multiplication of each slot's joules, and of their errors, by factors."""
        return replace(self, drift_j=self.drift_j * joules, traced_j=self.traced_j * errors)

    def total_half_j(self, reading_j: float) -> float:
        """Return half the 90 % interval of the total; two runs differ by the drift of both."""
        return float(np.hypot(np.sqrt(2.0) * student_quantile(self.freedom_total) * self.total_j, Z90 * reading_j))

    def half_j(self, fit_j: FloatArray, reading_j: FloatArray) -> FloatArray:
        """Return half the 90 % intervals of the slots.

        Args:
            fit_j: Standard deviation of each slot's fitted joules.
            reading_j: Each slot's part of the standard uncertainty of reading the meter: as in the total beside it.
        """
        drift = student_quantile(self.freedom_total) * self.drift_j
        traced = student_quantile(self.freedom) * self.traced_j
        once = Z90 * np.hypot(fit_j, reading_j)
        return np.asarray(np.sqrt(2.0 * (drift**2 + traced**2) + once**2), dtype=np.float64)


def estimate_repeat_spread(
    parts: Exposure, power_w: FloatArray, grid: StepGrid, slots: Sequence[Slot], rel_sd: Mapping[int, float]
) -> RepeatSpread | None:
    """Compare a run's blocks with each other, and its traced steps; None without blocks.

    Args:
        parts: Seconds of each slot in each interval of the grid, with the curve's joules.
        power_w: Watts of each slot, by which an interval's joules are split.
        grid: Of the same intervals.
        slots: Of the columns.
        rel_sd: By column, the relative SD of its share between traced windows, where known.
    """
    if not grid.known:
        return None
    weight_j = parts.mix(power_w)
    per_w = np.divide(parts.energy_j, weight_j, out=np.zeros(parts.rows), where=weight_j > 0)
    joules = parts.seconds * power_w[parts.column] * per_w[parts.row]
    filled = np.divide(parts.filled_s, parts.seconds, out=np.zeros(len(joules)), where=parts.seconds > 0)
    phases = {phase: i for i, phase in enumerate(dict.fromkeys(slot.phase for slot in slots))}
    phase = np.array([phases[slot.phase] for slot in slots], dtype=np.int64)
    by_phase = np.zeros((parts.rows, len(phases)))
    np.add.at(by_phase, (parts.row, phase[parts.column]), parts.filled_s)
    common = _relative_spread(parts.energy_j[:, None], grid)[:, 0]
    inside_j = _sum_by_stage(parts.energy_j[:, None], grid)[:, 0]
    once = float((inside_j * common).sum() / inside_j.sum()) if inside_j.sum() > 0 else float(common.mean())
    total_j = _drift_sd_j(parts.energy_j[:, None], common[:, None], grid, once)[0]
    drift_j, traced_j, freedom = (np.zeros(parts.columns) for _ in range(3))
    wide = max(CHUNK_NUMBERS // max(parts.rows, 1), 1)
    for start in range(0, parts.columns, wide):
        mine = (parts.column >= start) & (parts.column < start + wide)
        count = min(wide, parts.columns - start)
        at = parts.row[mine], parts.column[mine] - start
        own, carried, template = (np.zeros((parts.rows, count)) for _ in range(3))
        np.add.at(own, at, joules[mine])
        np.add.at(carried, at, (joules * filled)[mine])
        np.add.at(template, at, parts.filled_s[mine])
        template /= np.maximum(by_phase[:, phase[start : start + count]], 1e-12)
        part = slice(start, start + count)
        share = carried.sum(axis=0) / np.maximum(own.sum(axis=0), 1e-12)
        alone = _drift_sd_j(own, _relative_spread(own, grid), grid, once)
        drift_j[part] = share * _drift_sd_j(own, common[:, None], grid, once) + (1.0 - share) * alone
        assumed_rel = np.array([rel_sd.get(start + i, ASSUMED_REL_SD) for i in range(count)])
        error_j, freedom[part] = _traced_error(own, carried, template, parts.energy_j, assumed_rel)
        traced_j[part] = share * error_j  # traced steps have no extrapolation error
    return RepeatSpread(float(total_j), float(_degrees_of_freedom(grid)), drift_j, traced_j, freedom)


def share_reading_error_j(curve: EnergyCurve, energy_j: FloatArray) -> FloatArray:
    """Return each slot's part of the standard uncertainty of reading the meter, by its part of the joules."""
    return energy_j * (curve.u_j / curve.total_j if curve.total_j > 0 else 0.0)


def unsplit_interval_j(curve: EnergyCurve, trace: Trace) -> tuple[float, float] | tuple[None, None]:
    """Return the 90 % interval between repeats of an unsplit domain's joules; None where it cannot be estimated."""
    grid = build_step_grid(curve, trace, 1)
    rows = np.arange(len(grid.block))
    seconds = np.diff(grid.t_ns) / NS_PER_S
    joules = np.diff(curve.at(grid.t_ns))
    parts = Exposure(rows, np.zeros_like(rows), seconds, np.zeros(len(rows)), joules, seconds, 1)
    spread = estimate_repeat_spread(parts, np.ones(1), grid, (Slot(UNATTRIBUTED, "other"),), {})
    return interval_around(curve.total_j, None if spread is None else spread.total_half_j(curve.u_j))


def _stage_numbers(grid: StepGrid) -> IntArray:
    return np.unique(grid.stage)


def _degrees_of_freedom(grid: StepGrid) -> int:
    return max(len(grid.stage) - len(_stage_numbers(grid)), 1)


def _relative_spread(joules: FloatArray, grid: StepGrid) -> FloatArray:
    """Return (stages, columns): SD between blocks of a stage, per step and relative to their mean."""
    in_block = grid.block >= 0
    count = np.bincount(grid.block[in_block], grid.steps[in_block], len(grid.stage))
    sums = np.zeros((len(grid.stage), joules.shape[1]))
    np.add.at(sums, grid.block[in_block], joules[in_block])
    each = sums / count[:, None]
    length_s = float(grid.t_ns[-1] - grid.t_ns[0]) / NS_PER_S
    rows = []
    for stage in _stage_numbers(grid):
        mine = each[grid.stage == stage]
        mean = mine.mean(axis=0)
        drift = mine.std(axis=0, ddof=1) * np.sqrt(flicker_ratio(1.0 + REPEAT_DISTANCE_S / length_s, len(mine)))
        rows.append(np.divide(drift, mean, out=np.zeros_like(mean), where=mean > 0))
    return np.stack(rows)


def flicker_ratio(distance: float, blocks: int) -> float:
    """Return the variance between runs over that between the blocks of one run, of flicker noise.

    Barnes, Tables of bias functions B1 and B2 (NBS Technical Note 375, 1969): the effect of 1/f noise on averages over
    times with pauses between them, and over consecutive times.

    Args:
        distance: From the start of a run to that of the next, in lengths of a run, at least 1.
        blocks: Number of blocks of the run.
    """
    before = (distance - 1.0) ** 2 * np.log(distance - 1.0) if distance > 1.0 else 0.0
    between = ((distance + 1.0) ** 2 * np.log(distance + 1.0) + before) / 2.0 - distance**2 * np.log(distance)
    within = blocks * np.log(blocks) / (blocks - 1)
    return float(between / within)


def _drift_sd_j(joules: FloatArray, relative: FloatArray, grid: StepGrid, once: float) -> FloatArray:
    """Return the standard deviation of each column's joules: its stages drift together.

    Args:
        joules: (intervals, columns).
        relative: (stages, columns or 1): how far a stage's blocks drift.
        grid: Of the same intervals.
        once: Relative drift of joules outside all blocks, taken from the machine's drift: the part of such a column
            inside blocks may be small, and its spread is then no estimate for the rest.
    """
    in_blocks = grid.block >= 0
    return np.asarray((_sum_by_stage(joules, grid) * relative).sum(axis=0) + once * joules[~in_blocks].sum(axis=0))


def _sum_by_stage(joules: FloatArray, grid: StepGrid) -> FloatArray:
    """Return (stages, columns): joules inside of the blocks of each stage."""
    of_row = np.where(grid.block >= 0, grid.stage[grid.block], -1)
    return np.stack([joules[of_row == stage].sum(axis=0) for stage in _stage_numbers(grid)])


def _traced_error(
    own: FloatArray, carried: FloatArray, template: FloatArray, energy_j: FloatArray, assumed_rel: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the error of each slot's joules due to the choice of traced steps, and its degrees of freedom.

    Consecutive steps filled from the same traced step are one observation, weighted by its joules; so a run filled from
    four steps has an error of about half the spread of those four, independent of its length.
    """
    weight = energy_j / max(float(energy_j.sum()), 1e-12)
    filled = carried > 0.5 * own
    close = np.abs(np.diff(template, axis=0)) <= SAME_TEMPLATE_REL * np.maximum(template[1:], template[:-1])
    new = np.ones(own.shape, dtype=np.bool_)
    new[1:] = ~(filled[1:] & filled[:-1] & close)
    group = np.cumsum(new, axis=0) - 1 + np.arange(own.shape[1]) * len(own)
    size = np.bincount(group.ravel(), np.repeat(weight, own.shape[1]), own.size).reshape(own.shape[::-1]).T
    value = np.bincount(group.ravel(), own.ravel(), own.size).reshape(own.shape[::-1]).T
    total_j = own.sum(axis=0)
    scale = float(energy_j.sum())
    mean = total_j / scale
    share = np.divide(value / scale, size, out=np.zeros_like(size), where=size > 0)
    together = (size**2).sum(axis=0)
    freedom = 1.0 / np.maximum(together, 1e-12) - 1.0
    observed = (size * (share - mean) ** 2).sum(axis=0) / np.maximum(1.0 - together, 1e-9)
    prior = np.where(assumed_rel > 0, ASSUMED_FREEDOM, 0.0)
    all_ = np.maximum(freedom + prior, 1e-9)
    variance = (freedom * observed + prior * (assumed_rel * mean) ** 2) / all_ * together
    return np.sqrt(variance) * scale, np.maximum(all_, 1.0)


def student_quantile(freedom: FloatArray | float) -> FloatArray:
    """Return the two-sided 90 % quantile of Student's t (Cornish and Fisher, 1938)."""
    degrees = np.maximum(np.asarray(freedom, dtype=np.float64), 1.0)
    z = Z90
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return np.asarray(z + sum(term / degrees**power for power, term in enumerate(terms, 1)), dtype=np.float64)
