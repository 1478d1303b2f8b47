"""Seconds of each slot in each reading interval: the design matrix of the estimator, kept sparse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.power import BoolArray
from torchwatt.attribution.timeline import Pieces
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.units import NS_PER_S

# Rows per dense block: 2048 x 1000 slots are 16 MB.
BLOCK_ROWS = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Exposure:
    """Seconds of slot `column[i]` inside reading interval `row[i]`; the rows of an interval add up to its length.

    `energy_j` and `length_s` are per interval. `filled_s` is the part of `seconds` that was carried over.
    """

    row: IntArray
    column: IntArray
    seconds: FloatArray
    filled_s: FloatArray
    energy_j: FloatArray
    length_s: FloatArray
    columns: int

    @property
    def rows(self) -> int:
        """Return the number of reading intervals."""
        return len(self.energy_j)

    def time_s(self) -> FloatArray:
        """Return seconds per slot."""
        return _sums(self.column, self.seconds, self.columns)

    def carried_s(self) -> FloatArray:
        """Return carried-over seconds per slot."""
        return _sums(self.column, self.filled_s, self.columns)

    def mix(self, per_column: FloatArray) -> FloatArray:
        """Return, for each interval, the sum over slots of seconds x value."""
        return _sums(self.row, self.seconds * per_column[self.column], self.rows)

    def blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        """Yield dense blocks of rows, so that memory does not grow with the run."""
        order = np.argsort(self.row, kind="stable")
        row, column, seconds = self.row[order], self.column[order], self.seconds[order]
        for start in range(0, self.rows, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, self.rows)
            lo, hi = np.searchsorted(row, [start, stop])
            flat = (row[lo:hi] - start) * self.columns + column[lo:hi]
            dense = _sums(flat, seconds[lo:hi], (stop - start) * self.columns)
            yield slice(start, stop), dense.reshape(stop - start, self.columns)


def _sums(index: IntArray, values: FloatArray, length: int) -> FloatArray:
    """Add up values by index."""
    return np.asarray(np.bincount(index, values, length), dtype=np.float64)


def expose(
    pieces: Pieces, t_ns: IntArray, energy_j: FloatArray, columns: int, unheard: BoolArray | None = None
) -> Exposure:
    """Overlap pieces with reading intervals.

    Args:
        pieces: Cover the window from the first to the last reading; slots are below `columns`.
        t_ns: Strictly increasing instants of n + 1 readings.
        energy_j: Cumulative joules at these instants.
        columns: The number of slots.
        unheard: Of the n intervals, those with unknown joules: they are left out, since 0 J would count as 0 W.
    """
    first_row = np.searchsorted(t_ns, pieces.start_ns, side="right") - 1
    last_row = np.searchsorted(t_ns, pieces.end_ns, side="left") - 1
    first_row, last_row = np.maximum(first_row, 0), np.minimum(last_row, len(t_ns) - 2)
    count = np.maximum(last_row - first_row + 1, 0)
    which = np.repeat(np.arange(len(count)), count)
    row = first_row[which] + np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    overlap_ns = np.minimum(pieces.end_ns[which], t_ns[row + 1]) - np.maximum(pieces.start_ns[which], t_ns[row])
    seconds = np.maximum(overlap_ns, 0) / NS_PER_S * pieces.weight[which]
    exposure = Exposure(
        row,
        pieces.slot[which],
        seconds,
        np.where(pieces.filled[which], seconds, 0.0),
        np.diff(energy_j),
        np.diff(t_ns) / NS_PER_S,
        columns,
    )
    return exposure if unheard is None or not unheard.any() else _heard(exposure, ~unheard)


def _heard(exposure: Exposure, rows: BoolArray) -> Exposure:
    """Keep the intervals selected by `rows`."""
    selected = rows[exposure.row]
    return Exposure(
        (np.cumsum(rows) - 1)[exposure.row[selected]],
        exposure.column[selected],
        exposure.seconds[selected],
        exposure.filled_s[selected],
        exposure.energy_j[rows],
        exposure.length_s[rows],
        exposure.columns,
    )
