"""Share of each column of work in each reading, through the sensor's response: rows of the design matrix.

For a boxcar alone, A_kj = O_j(a, b) / w, the seconds of column j inside the window [a, b] = [u_k - d - w, u_k - d].
Behind a low-pass, A_kj = [O_j(a, b) - tau (F_j(b) - F_j(a))] / w, where F_j is the filtered activity of column j:
tau F' = activity - F, integrated over the window. Exact, one pass over the records.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.sensor_response import SensorResponse
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import Slot
from torchwatt.core.trace import Activity
from torchwatt.core.units import NS_PER_S


@dataclass(frozen=True, slots=True, eq=False)
class WorkRecords:
    """Work of a device in seconds since one origin: interval, column, and whether it was extrapolated.

    `weight` is 1 for work; a meter's samples are records whose weights are their watts.
    """

    start_s: FloatArray
    end_s: FloatArray
    column: IntArray
    filled: np.ndarray
    columns: int
    weight: FloatArray | None = None

    def between(self, start_s: float, end_s: float) -> WorkRecords:
        """Return the records that overlap a window."""
        keep = (self.end_s > start_s) & (self.start_s < end_s)
        weight = self.weight[keep] if self.weight is not None else None
        return WorkRecords(
            self.start_s[keep], self.end_s[keep], self.column[keep], self.filled[keep], self.columns, weight
        )


@dataclass(frozen=True, slots=True, eq=False)
class DesignRows:
    """Readings and their weights by column. The last column is idle: one minus all others, so a row adds up to 1.

    `slope` is the derivative of `design` by the instant of the reading, per second: the effect of an error of timing.
    """

    at_s: FloatArray  # (M,)
    power_w: FloatArray  # (M,)
    design: FloatArray  # (M, C + 1)
    slope: FloatArray  # (M, C + 1)
    filled: FloatArray  # (M,) share of extrapolated work in the window

    def __len__(self) -> int:
        return len(self.at_s)

    def take(self, keep: np.ndarray) -> DesignRows:
        """Return some of the rows."""
        return DesignRows(self.at_s[keep], self.power_w[keep], self.design[keep], self.slope[keep], self.filled[keep])


def stack_rows(parts: list[DesignRows]) -> DesignRows:
    """Concatenate rows of several intervals."""
    if len(parts) == 1:
        return parts[0]
    names = ("at_s", "power_w", "design", "slope", "filled")
    return DesignRows(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def build_design_rows(
    records: WorkRecords, at_s: FloatArray, power_w: FloatArray, kernel: SensorResponse
) -> DesignRows:
    """Compute the rows of readings published at increasing instants `at_s`.

    Records must reach back from the first reading by `kernel.reach_s`.
    """
    end_s = at_s - kernel.lag_s
    edges = np.concatenate((end_s - kernel.window_s, end_s))
    grid, place = np.unique(edges, return_inverse=True)
    if kernel.tau_s > 0:
        grid, place = np.concatenate(([grid[0] - 15 * kernel.tau_s], grid)), place + 1
    before, after = place[: len(at_s)], place[len(at_s) :]
    pieces = _cut_records(records.between(float(grid[0]), float(grid[-1])), grid)
    seconds = _sum_table(pieces.interval + 1, pieces, pieces.end_s - pieces.start_s, len(grid))
    total = np.cumsum(seconds, axis=0)
    design = total[after] - total[before]
    level = _low_pass_columns(pieces, grid, kernel.tau_s) if kernel.tau_s > 0 else _running_columns(pieces, grid)
    rise = level[after] - level[before]
    if kernel.tau_s > 0:
        design -= kernel.tau_s * rise
    filled = _extrapolated_share(pieces, len(grid), before, after)
    return DesignRows(
        at_s, power_w, _append_idle(design / kernel.window_s, 1.0), _append_idle(rise / kernel.window_s, 0.0), filled
    )


@dataclass(frozen=True, slots=True, eq=False)
class _RecordPieces:
    """Records cut at the edges of all windows; `interval` i lies between edges i and i + 1."""

    interval: IntArray
    column: IntArray
    start_s: FloatArray
    end_s: FloatArray
    runs_on: np.ndarray  # whether it continues at the interval's end
    filled: np.ndarray
    columns: int
    weight: FloatArray | None


def _cut_records(records: WorkRecords, grid: FloatArray) -> _RecordPieces:
    first_edge = np.maximum(np.searchsorted(grid, records.start_s, side="right") - 1, 0)
    last_edge = np.minimum(np.searchsorted(grid, records.end_s, side="left") - 1, len(grid) - 2)
    count = np.maximum(last_edge - first_edge + 1, 0)
    which = np.repeat(np.arange(len(count)), count)
    interval = first_edge[which] + np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    hi = grid[interval + 1]
    end = records.end_s[which]
    return _RecordPieces(
        interval,
        records.column[which],
        np.maximum(records.start_s[which], grid[interval]),
        np.minimum(end, hi),
        end >= hi,
        records.filled[which],
        records.columns,
        records.weight[which] if records.weight is not None else None,
    )


def _sum_table(row: IntArray, pieces: _RecordPieces, values: FloatArray, rows: int) -> FloatArray:
    values = values * pieces.weight if pieces.weight is not None else values
    flat = np.bincount(row * pieces.columns + pieces.column, values, rows * pieces.columns)
    return np.asarray(flat, dtype=np.float64).reshape(rows, pieces.columns)


def _running_columns(pieces: _RecordPieces, grid: FloatArray) -> FloatArray:
    """Return whether each column runs at each edge (just before it): the limit of the filter for tau = 0."""
    return _sum_table(pieces.interval + 1, pieces, pieces.runs_on.astype(np.float64), len(grid))


def _low_pass_columns(pieces: _RecordPieces, grid: FloatArray, tau_s: float) -> FloatArray:
    """Return the low-passed activity of each column at each edge; it starts from zero, 15 tau before."""
    hi = grid[pieces.interval + 1]
    gained = np.exp((pieces.end_s - hi) / tau_s) - np.exp((pieces.start_s - hi) / tau_s)
    level = _sum_table(pieces.interval + 1, pieces, gained, len(grid))
    fade = np.exp(-np.diff(grid) / tau_s)
    for i in range(1, len(grid)):
        level[i] += fade[i - 1] * level[i - 1]
    return level


def _extrapolated_share(pieces: _RecordPieces, edges: int, before: IntArray, after: IntArray) -> FloatArray:
    if not pieces.filled.any():
        return np.zeros(len(before))
    long = pieces.end_s - pieces.start_s
    work = np.concatenate(([0.0], np.cumsum(np.bincount(pieces.interval, long, edges - 1))))
    part = np.concatenate(([0.0], np.cumsum(np.bincount(pieces.interval, long * pieces.filled, edges - 1))))
    worked_s = work[after] - work[before]
    share = np.divide(part[after] - part[before], worked_s, out=np.zeros(len(before)), where=worked_s > 0)
    return np.asarray(share, dtype=np.float64)


def _append_idle(table: FloatArray, total: float) -> FloatArray:
    return np.concatenate((table, total - table.sum(axis=1, keepdims=True)), axis=1)


# The work grows with the cube of the columns; beyond this the smallest are pooled by signature.
MAX_COLUMNS = 600


@dataclass(frozen=True, slots=True, eq=False)
class WorkColumns:
    """The columns of one activity, and their slots and groups.

    `seconds` (S, C) is how long each slot ran in each column, `shared_s` (S,) its equal share of the time in which
    several streams ran. `signature`, `kind` (same set of signatures in the slot, a layer type) and `module` number
    groups of similar columns.
    """

    slots: tuple[Slot, ...]
    of_record: IntArray
    seconds: FloatArray
    shared_s: FloatArray
    signature: IntArray
    kind: IntArray
    module: IntArray
    pooled: int

    @property
    def count(self) -> int:
        """Return the number of columns, without idle."""
        return int(self.seconds.shape[1])


def build_work_columns(activity: Activity, max_columns: int = MAX_COLUMNS) -> WorkColumns:
    """Return the columns of an activity."""
    long_s = (activity.end_ns - activity.start_ns) / NS_PER_S
    signature = activity.signature if len(activity.signature) else np.zeros(len(activity), dtype=np.int64)
    pair = activity.slot * max(len(activity.signatures), 1) + signature
    names, of_record = np.unique(pair, return_inverse=True)
    slot_of, signature_of = np.divmod(names, max(len(activity.signatures), 1))
    merged, pooled = _pool_columns(_sum_seconds(of_record, long_s, len(names)), signature_of, max_columns)
    of_record = merged[of_record]
    count = int(merged.max(initial=-1)) + 1
    seconds = np.zeros((len(activity.slots), count))
    np.add.at(seconds, (activity.slot, of_record), long_s)
    pair_of_column = np.zeros(
        count, dtype=np.int64
    )  # one pair of each column: all pairs of a column have its signature
    pair_of_column[merged] = np.arange(len(names))
    kinds = _number_kinds(activity.slots, slot_of, signature_of)
    return WorkColumns(
        activity.slots,
        np.asarray(of_record, dtype=np.int64),
        seconds,
        share_device_time_s(activity),
        np.asarray(signature_of[pair_of_column] if len(activity.signature) else np.arange(count)),
        kinds[slot_of[pair_of_column]],
        _number_names([slot.fqn for slot in activity.slots])[slot_of[pair_of_column]],
        pooled,
    )


def build_work_records(activity: Activity, columns: WorkColumns, origin_ns: int) -> WorkRecords:
    """Return the records on the estimator's clock, in seconds from `origin_ns`."""
    start_s, end_s = ((t - origin_ns) / NS_PER_S for t in (activity.start_ns, activity.end_ns))
    return WorkRecords(start_s, end_s, columns.of_record, activity.filled, columns.count)


def share_device_time_s(activity: Activity) -> FloatArray:
    """Return each slot's seconds of device time; time of n concurrent records is shared equally."""
    edges = np.concatenate((activity.start_ns, activity.end_ns))
    order = np.argsort(edges, kind="stable")
    running = np.cumsum(np.repeat([1, -1], len(activity))[order])[:-1]
    long_s = np.diff(edges[order]) / NS_PER_S
    shared = np.divide(long_s, running, out=np.zeros_like(long_s), where=running > 0)
    total = np.empty(len(edges))
    total[order] = np.concatenate(([0.0], np.cumsum(shared)))
    own_s = total[len(activity) :] - total[: len(activity)]
    return np.asarray(np.bincount(activity.slot, own_s, len(activity.slots)), dtype=np.float64)


def _sum_seconds(index: IntArray, long_s: FloatArray, count: int) -> FloatArray:
    return np.asarray(np.bincount(index, long_s, count), dtype=np.float64)


def _pool_columns(time_s: FloatArray, signature: IntArray, max_columns: int) -> tuple[IntArray, int]:
    """Keep the longest columns and pool the others by signature; return new numbers and how many were pooled."""
    if len(time_s) <= max_columns:
        return np.arange(len(time_s)), 0
    by_time = np.argsort(-time_s, kind="stable")
    separate = np.zeros(len(time_s), dtype=np.bool_)
    separate[by_time[: max_columns // 2]] = True
    name = np.where(separate, np.arange(len(time_s)), len(time_s) + signature)
    pooled_names = np.unique(name[~separate])
    if len(pooled_names) > max_columns - max_columns // 2:  # too many signatures as well: the smallest are one column
        by_signature = np.bincount(np.searchsorted(pooled_names, name[~separate]), time_s[~separate])
        small = pooled_names[np.argsort(-by_signature, kind="stable")[max_columns - max_columns // 2 - 1 :]]
        name[np.isin(name, small)] = small[0]
    return np.unique(name, return_inverse=True)[1], int((~separate).sum())


def _number_kinds(slots: tuple[Slot, ...], slot_of: IntArray, signature_of: IntArray) -> IntArray:
    """Number the layer types: slots of one phase with the same set of signatures."""
    sets: list[list[int]] = [[] for _ in slots]
    for slot, signature in zip(slot_of.tolist(), signature_of.tolist(), strict=True):
        sets[slot].append(signature)
    return _number_names(
        [(slot.phase, tuple(slot_signatures)) for slot, slot_signatures in zip(slots, sets, strict=True)]
    )


def _number_names(names: Sequence[Hashable]) -> IntArray:
    """Number distinct names in order of their first appearance."""
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([index[name] for name in names], dtype=np.int64)
