"""Assign each instant to the innermost span of each thread; concurrent threads share by CPU time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.power_integral import BoolArray
from torchwatt.core.energy_curve import interpolate
from torchwatt.core.intervals import enclosing_array
from torchwatt.core.meter import FloatArray, IntArray, Series
from torchwatt.core.terms import IDLE, OUTSIDE, UNATTRIBUTED, Slot, is_bare_stage
from torchwatt.core.trace import Trace
from torchwatt.core.units import NS_PER_S

NO_OWNER = -1
MIN_BUSY_SHARE = 1e-3  # minimum weight of a thread that only waits
LEAST_BETWEEN = 0.01  # a thread that is less on a CPU between its spans waits there


@dataclass(frozen=True, slots=True, eq=False)
class OwnedIntervals:
    """Intervals, each with a slot and a weight; at every instant the weights add up to 1.

    `slot` is an index into the trace's slots, -1 for gaps; a gap in a stage has the slot of the stage's own
    time. `filled` marks work extrapolated from traced steps.
    """

    start_ns: IntArray
    end_ns: IntArray
    slot: IntArray
    filled: np.ndarray
    weight: FloatArray


def flatten_spans(start_ns: IntArray, end_ns: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Cut the spans of one thread into intervals of the innermost span.

    Spans that are not properly nested (a generator suspended inside a module) are clipped to the span they started in;
    the remainder is dropped.

    Returns:
        Start, end and span index of each interval, in time order, without gaps inside the outermost spans.
    """
    order = np.lexsort((-end_ns, start_ns))
    order = order[end_ns[order] > start_ns[order]]
    if len(order) == 0:
        empty = np.empty(0, dtype=np.int64)
        return empty, empty, empty
    start, end = start_ns[order], end_ns[order].copy()
    parent = enclosing_array(start, end, clip=True)
    index = np.arange(len(order))
    times = np.concatenate((end, start))
    after = np.concatenate((parent, index))  # the innermost span after each event
    # At a tie, ends come before starts, and inner spans end before the outer ones that end with them.
    kind = np.repeat([0, 1], len(order))
    by_time = np.lexsort((np.concatenate((-index, index)), kind, times))
    times, after = times[by_time], after[by_time]
    lo, hi, owner = times[:-1], times[1:], after[:-1]
    keep = (hi > lo) & (owner != NO_OWNER)
    return lo[keep], hi[keep], order[owner[keep]]


def cut_by_owner(trace: Trace, start_ns: int, end_ns: int) -> OwnedIntervals:
    """Cut a window into pieces; concurrent threads share it by their CPU time, where known.

    A thread that works between its spans has a share as well: a gap beside the other threads' spans.
    """
    parts = []
    for thread in np.unique(trace.thread):
        mine = np.flatnonzero(trace.thread == thread)
        lo, hi, span = flatten_spans(trace.start_ns[mine], trace.end_ns[mine])
        lo, hi = np.maximum(lo, start_ns), np.minimum(hi, end_ns)
        keep = hi > lo
        parts.append((lo[keep], hi[keep], mine[span[keep]]))
    if not parts:
        return _single_gap(start_ns, end_ns)
    lo, hi, span = (np.concatenate(column) for column in zip(*parts, strict=True))
    is_bare = find_gap_slots(trace)[trace.slot[span]]
    stages = lo[is_bare], hi[is_bare], trace.slot[span[is_bare]]
    lo, hi, span = lo[~is_bare], hi[~is_bare], span[~is_bare]
    slot, filled, share = trace.slot[span], trace.filled[span], _thread_busy_share(trace)[span]
    if len(parts) > 1:
        between = _work_between_spans(trace, (lo, hi, span), stages)
        columns = (slot, filled, share, np.ones(len(lo), dtype=np.bool_))
        slot, filled, share, in_span = (np.concatenate(pair) for pair in zip(columns, between[2:], strict=True))
        lo, hi = np.concatenate((lo, between[0])), np.concatenate((hi, between[1]))
        lo, hi, piece = _cut_at_edges(lo, hi, np.arange(len(lo)))
        beside = np.isin(lo, lo[in_span[piece]])
        lo, hi, piece = lo[beside], hi[beside], piece[beside]
        slot, filled, share = slot[piece], filled[piece], share[piece]
    cuts = np.unique(np.concatenate((lo, hi, [start_ns, end_ns])))
    weight = np.ones(len(lo))
    if len(parts) > 1:
        at = np.searchsorted(cuts, lo)
        weight = share / np.bincount(at, share, len(cuts))[at]
    gap_lo, gap_hi, gap_slot = _cut_gaps(*find_gaps(lo, hi, start_ns, end_ns), stages)
    return OwnedIntervals(
        np.concatenate((lo, gap_lo)),
        np.concatenate((hi, gap_hi)),
        np.concatenate((slot, gap_slot)),
        np.concatenate((filled, np.zeros(len(gap_lo), dtype=np.bool_))),
        np.concatenate((weight, np.ones(len(gap_lo)))),
    )


def _work_between_spans(
    trace: Trace, pieces: tuple[IntArray, IntArray, IntArray], stages: tuple[IntArray, IntArray, IntArray]
) -> tuple[IntArray, IntArray, IntArray, BoolArray, FloatArray, BoolArray]:
    """Return the gaps between the spans of each thread that works in them: start, end, slot, filled, share, in a span.

    Between two filled spans the thread's share is that of its spans: their template has the step's CPU time.

    Args:
        trace: Whose threads they are.
        pieces: Start, end and span of the pieces of all threads.
        stages: As in `_cut_gaps`.
    """
    found = []
    for thread, between in enumerate(trace.thread_between):
        mine = np.flatnonzero(trace.thread[pieces[2]] == thread)
        if between < LEAST_BETWEEN or not len(mine):
            continue
        lo, hi, span = (column[mine] for column in pieces)
        order = np.argsort(lo, kind="stable")
        lo, hi, filled = lo[order], hi[order], trace.filled[span[order]]
        gap = np.flatnonzero(lo[1:] > hi[:-1])
        start, end, slot = _cut_gaps(hi[gap], lo[gap + 1], stages)
        of = gap[np.searchsorted(hi[gap], start, side="right") - 1]
        is_filled = filled[of] & filled[of + 1]
        busy = max(trace.thread_busy[thread], MIN_BUSY_SHARE)
        found.append((start, end, slot, is_filled, np.where(is_filled, busy, between)))
    none = np.zeros(0, dtype=np.int64)
    found.append((none, none, none, none.astype(np.bool_), none.astype(np.float64)))
    start, end, slot, is_filled, share = (np.concatenate(column) for column in zip(*found, strict=True))
    return start, end, slot, is_filled, share, np.zeros(len(start), dtype=np.bool_)


def find_gap_slots(trace: Trace) -> BoolArray:
    """Return for each slot, and last for `NO_OWNER`, whether it stands for time in which nothing was recorded."""
    return np.array([*(is_bare_stage(slot) for slot in trace.slots), True], dtype=np.bool_)


def _cut_gaps(
    gap_lo: IntArray, gap_hi: IntArray, stages: tuple[IntArray, IntArray, IntArray]
) -> tuple[IntArray, IntArray, IntArray]:
    """Cut gaps at the bounds of stages; return start, end and slot of each part, -1 where no stage was open.

    Args:
        gap_lo: Starts of the gaps, sorted.
        gap_hi: Their ends.
        stages: Start, end and slot of the stages' own time; where threads have two at once, the first one counts.
    """
    lo, hi, slot = stages
    cuts = np.unique(np.concatenate((gap_lo, gap_hi, lo, hi)))
    owner = np.full(len(cuts), NO_OWNER)
    bounds = np.searchsorted(cuts, lo), np.searchsorted(cuts, hi)
    for begin, end, number in zip(*(column[::-1].tolist() for column in (*bounds, slot)), strict=True):
        owner[begin:end] = number
    starts, ends = cuts[:-1], cuts[1:]
    in_gap = np.searchsorted(gap_lo, starts, side="right") > np.searchsorted(gap_hi, starts, side="right")
    return starts[in_gap], ends[in_gap], owner[:-1][in_gap]


def _thread_busy_share(trace: Trace) -> FloatArray:
    """Return for each span the part of its time that its thread spends on a CPU; 1 for all where unknown."""
    if not len(trace) or len(trace.thread_busy) <= int(trace.thread.max()):
        return np.ones(len(trace))
    return np.maximum(np.array(trace.thread_busy, dtype=np.float64), MIN_BUSY_SHARE)[trace.thread]


def _single_gap(start_ns: int, end_ns: int) -> OwnedIntervals:
    full_weight = np.ones(1)
    return OwnedIntervals(
        np.array([start_ns]), np.array([end_ns]), np.array([NO_OWNER]), np.zeros(1, dtype=np.bool_), full_weight
    )


def _cut_at_edges(lo: IntArray, hi: IntArray, span: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Cut every interval wherever another begins or ends, so that equal starts mean equal intervals."""
    cuts = np.unique(np.concatenate((lo, hi)))
    first_cut, last_cut = np.searchsorted(cuts, lo), np.searchsorted(cuts, hi)
    which = np.repeat(np.arange(len(lo)), last_cut - first_cut)
    place = np.arange(len(which)) - np.repeat(
        np.cumsum(last_cut - first_cut) - (last_cut - first_cut), last_cut - first_cut
    )
    begin = first_cut[which] + place
    return cuts[begin], cuts[begin + 1], span[which]


def find_gaps(lo: IntArray, hi: IntArray, start_ns: int, end_ns: int) -> tuple[IntArray, IntArray]:
    """Return the intervals of the window without any work."""
    order = np.argsort(lo, kind="stable")
    reach = np.maximum.accumulate(np.concatenate(([start_ns], hi[order])))
    nxt = np.concatenate((lo[order], [end_ns]))
    keep = nxt > reach
    return reach[keep], nxt[keep]


def gap_slots(trace: Trace) -> tuple[Slot, ...]:
    """Return the slots of gaps, which follow the trace's own; a stage's gaps that are not idle have its own slot."""
    stages = dict.fromkeys(slot.stage for slot in trace.slots if is_bare_stage(slot))
    idle = (Slot(IDLE, "other", stage) for stage in stages)
    return (Slot(IDLE, "other"), Slot(UNATTRIBUTED, "other"), Slot(OUTSIDE, "other"), *idle)


# Shorter pauses between two kernels of work are part of the work.
IDLE_MIN_NS = 100_000_000
# A shorter pause contains no complete interval between two readings of the process's CPU time.
IDLE_MIN_PERIODS = 2
# Below this use of one CPU the process did nothing.
IDLE_CPU_SHARE = 0.05


def classify_gaps(pieces: OwnedIntervals, trace: Trace, process_cpu: Series | None) -> OwnedIntervals:
    """Give every gap a slot: those of `gap_slots` follow the trace's own.

    Before the first and after the last span is `(outside)`. In between, a gap of at least 0.1 s, and of two readings of
    the process's CPU time, in which it used less than 5 % of one CPU is `(idle)`; every other gap is `(unattributed)`
    work: Python between the modules. Without the process's CPU time no gap is idle.
    """
    number = {slot: i for i, slot in enumerate(gap_slots(trace), start=len(trace.slots))}
    stages = [*(slot.stage for slot in trace.slots), ""]  # the last for NO_OWNER
    gap = np.flatnonzero(find_gap_slots(trace)[pieces.slot])
    nobody = gap[pieces.slot[gap] == NO_OWNER]
    idle = gap[_find_idle(pieces.start_ns[gap], pieces.end_ns[gap], process_cpu)]
    slot = pieces.slot.copy()
    slot[nobody] = number[Slot(UNATTRIBUTED, "other")]
    slot[idle] = [number[Slot(IDLE, "other", stages[own])] for own in pieces.slot[idle].tolist()]
    if len(trace):
        outside = (pieces.end_ns[nobody] <= trace.start_ns.min()) | (pieces.start_ns[nobody] >= trace.end_ns.max())
        slot[nobody[outside]] = number[Slot(OUTSIDE, "other")]
    return OwnedIntervals(pieces.start_ns, pieces.end_ns, slot, pieces.filled, pieces.weight)


def _find_idle(start_ns: IntArray, end_ns: IntArray, process_cpu: Series | None) -> np.ndarray:
    if process_cpu is None or len(process_cpu) < 2:
        return np.zeros(len(start_ns), dtype=np.bool_)
    # CPU time never falls: where two readers found different children, the higher value is right.
    cpu_s = np.maximum.accumulate(process_cpu.raw * process_cpu.channel.scale)
    used_s = interpolate(end_ns, process_cpu.t_ns, cpu_s) - interpolate(start_ns, process_cpu.t_ns, cpu_s)
    length_s = (end_ns - start_ns) / NS_PER_S
    least_ns = max(IDLE_MIN_NS, IDLE_MIN_PERIODS * process_cpu.channel.period_ns)
    long_enough = end_ns - start_ns >= least_ns
    return np.asarray(long_enough & (used_s < IDLE_CPU_SHARE * length_s), dtype=np.bool_)


# Rows per dense block: 2048 x 1000 slots are 16 MB.
BLOCK_ROWS = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Exposure:
    """Seconds of slot `column[i]` inside reading interval `row[i]`; the rows of an interval add up to its length.

    `energy_j` and `length_s` are per interval. `filled_s` is the part of `seconds` extrapolated from traced steps.
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
        return _sum_by_index(self.column, self.seconds, self.columns)

    def carried_s(self) -> FloatArray:
        """Return seconds per slot that were extrapolated from traced steps."""
        return _sum_by_index(self.column, self.filled_s, self.columns)

    def mix(self, per_column: FloatArray) -> FloatArray:
        """Return, for each interval, the sum over slots of seconds x value."""
        return _sum_by_index(self.row, self.seconds * per_column[self.column], self.rows)

    def blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        """Yield dense blocks of rows, so that memory does not grow with the run."""
        order = np.argsort(self.row, kind="stable")
        row, column, seconds = self.row[order], self.column[order], self.seconds[order]
        for start in range(0, self.rows, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, self.rows)
            lo, hi = np.searchsorted(row, [start, stop])
            flat = (row[lo:hi] - start) * self.columns + column[lo:hi]
            dense = _sum_by_index(flat, seconds[lo:hi], (stop - start) * self.columns)
            yield slice(start, stop), dense.reshape(stop - start, self.columns)


def _sum_by_index(index: IntArray, values: FloatArray, length: int) -> FloatArray:
    """Add up values by index."""
    return np.asarray(np.bincount(index, values, length), dtype=np.float64)


def compute_exposure(
    pieces: OwnedIntervals, t_ns: IntArray, energy_j: FloatArray, columns: int, unheard: BoolArray | None = None
) -> Exposure:
    """Overlap pieces with reading intervals.

    Args:
        pieces: Cover the window from the first to the last reading; slots are below `columns`.
        t_ns: Strictly increasing instants of n + 1 readings.
        energy_j: Cumulative joules at these instants.
        columns: The number of slots.
        unheard: Of the n intervals, those with unknown joules: they are omitted, since 0 J would count as 0 W.
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
    return exposure if unheard is None or not unheard.any() else _select_intervals(exposure, ~unheard)


def _select_intervals(exposure: Exposure, rows: BoolArray) -> Exposure:
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
