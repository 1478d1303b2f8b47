"""Share of each column of work in each reading, through the sensor's response: rows of the design matrix.

For a boxcar alone, A_kj = O_j(a, b) / w, the seconds of column j inside the window [a, b] = [u_k - d - w, u_k - d].
Behind a low-pass, A_kj = [O_j(a, b) - tau (F_j(b) - F_j(a))] / w, where F_j is the filtered activity of column j:
tau F' = activity - F, integrated over the window. Exact, one pass over the records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.kernel import Kernel
from torchwatt.core.meter import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Work of a device in seconds since one origin: interval, column, and whether it was carried over.

    `weight` is 1 for work; a meter's samples are records whose weights are their watts.
    """

    start_s: FloatArray
    end_s: FloatArray
    column: IntArray
    filled: np.ndarray
    columns: int
    weight: FloatArray | None = None

    def between(self, start_s: float, end_s: float) -> Records:
        """Return the records that overlap a window."""
        keep = (self.end_s > start_s) & (self.start_s < end_s)
        weight = self.weight[keep] if self.weight is not None else None
        return Records(self.start_s[keep], self.end_s[keep], self.column[keep], self.filled[keep], self.columns, weight)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Readings and their weights by column. The last column is idle: one minus all others, so a row adds up to 1.

    `slope` is the derivative of `design` by the instant of the reading, per second: the effect of an error of timing.
    """

    at_s: FloatArray  # (M,)
    power_w: FloatArray  # (M,)
    design: FloatArray  # (M, C + 1)
    slope: FloatArray  # (M, C + 1)
    filled: FloatArray  # (M,) share of the work in the window that was carried over

    def __len__(self) -> int:
        return len(self.at_s)

    def take(self, keep: np.ndarray) -> Rows:
        """Return some of the rows."""
        return Rows(self.at_s[keep], self.power_w[keep], self.design[keep], self.slope[keep], self.filled[keep])


def stack(parts: list[Rows]) -> Rows:
    """Concatenate rows of several intervals."""
    if len(parts) == 1:
        return parts[0]
    names = ("at_s", "power_w", "design", "slope", "filled")
    return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def look(records: Records, at_s: FloatArray, power_w: FloatArray, kernel: Kernel) -> Rows:
    """Compute the rows of readings published at increasing instants `at_s`.

    Records must reach back from the first reading by `kernel.reach_s`.
    """
    end_s = at_s - kernel.lag_s
    edges = np.concatenate((end_s - kernel.window_s, end_s))
    grid, place = np.unique(edges, return_inverse=True)
    if kernel.tau_s > 0:
        grid, place = np.concatenate(([grid[0] - 15 * kernel.tau_s], grid)), place + 1
    before, after = place[: len(at_s)], place[len(at_s) :]
    pieces = _cut(records.between(float(grid[0]), float(grid[-1])), grid)
    seconds = _table(pieces.interval + 1, pieces, pieces.end_s - pieces.start_s, len(grid))
    total = np.cumsum(seconds, axis=0)
    design = total[after] - total[before]
    level = _filtered(pieces, grid, kernel.tau_s) if kernel.tau_s > 0 else _running(pieces, grid)
    rise = level[after] - level[before]
    if kernel.tau_s > 0:
        design -= kernel.tau_s * rise
    filled = _filled_share(pieces, len(grid), before, after)
    return Rows(
        at_s, power_w, _with_idle(design / kernel.window_s, 1.0), _with_idle(rise / kernel.window_s, 0.0), filled
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Pieces:
    """Records cut at the edges of all windows; `interval` i lies between edges i and i + 1."""

    interval: IntArray
    column: IntArray
    start_s: FloatArray
    end_s: FloatArray
    runs_on: np.ndarray  # it still runs at the interval's end
    filled: np.ndarray
    columns: int
    weight: FloatArray | None


def _cut(records: Records, grid: FloatArray) -> _Pieces:
    first_edge = np.maximum(np.searchsorted(grid, records.start_s, side="right") - 1, 0)
    last_edge = np.minimum(np.searchsorted(grid, records.end_s, side="left") - 1, len(grid) - 2)
    count = np.maximum(last_edge - first_edge + 1, 0)
    which = np.repeat(np.arange(len(count)), count)
    interval = first_edge[which] + np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    hi = grid[interval + 1]
    end = records.end_s[which]
    return _Pieces(
        interval,
        records.column[which],
        np.maximum(records.start_s[which], grid[interval]),
        np.minimum(end, hi),
        end >= hi,
        records.filled[which],
        records.columns,
        records.weight[which] if records.weight is not None else None,
    )


def _table(row: IntArray, pieces: _Pieces, values: FloatArray, rows: int) -> FloatArray:
    values = values * pieces.weight if pieces.weight is not None else values
    flat = np.bincount(row * pieces.columns + pieces.column, values, rows * pieces.columns)
    return np.asarray(flat, dtype=np.float64).reshape(rows, pieces.columns)


def _running(pieces: _Pieces, grid: FloatArray) -> FloatArray:
    """Return whether each column runs at each edge (just before it): the limit of the filter for tau = 0."""
    return _table(pieces.interval + 1, pieces, pieces.runs_on.astype(np.float64), len(grid))


def _filtered(pieces: _Pieces, grid: FloatArray, tau_s: float) -> FloatArray:
    """Return the low-passed activity of each column at each edge; it starts from zero, 15 tau before."""
    hi = grid[pieces.interval + 1]
    gained = np.exp((pieces.end_s - hi) / tau_s) - np.exp((pieces.start_s - hi) / tau_s)
    level = _table(pieces.interval + 1, pieces, gained, len(grid))
    fade = np.exp(-np.diff(grid) / tau_s)
    for i in range(1, len(grid)):
        level[i] += fade[i - 1] * level[i - 1]
    return level


def _filled_share(pieces: _Pieces, edges: int, before: IntArray, after: IntArray) -> FloatArray:
    if not pieces.filled.any():
        return np.zeros(len(before))
    long = pieces.end_s - pieces.start_s
    work = np.concatenate(([0.0], np.cumsum(np.bincount(pieces.interval, long, edges - 1))))
    part = np.concatenate(([0.0], np.cumsum(np.bincount(pieces.interval, long * pieces.filled, edges - 1))))
    worked_s = work[after] - work[before]
    share = np.divide(part[after] - part[before], worked_s, out=np.zeros(len(before)), where=worked_s > 0)
    return np.asarray(share, dtype=np.float64)


def _with_idle(table: FloatArray, total: float) -> FloatArray:
    return np.concatenate((table, total - table.sum(axis=1, keepdims=True)), axis=1)
