"""Assign each instant to the innermost span of each thread; concurrent threads share by CPU time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.trace import Trace

NOBODY = -1
LEAST_BUSY = 1e-3  # a thread that only waits gets a part as well


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Intervals, each with a slot and a weight; at every instant the weights add up to 1.

    `slot` is an index into the trace's slots, -1 for gaps. `filled` marks carried-over work.
    """

    start_ns: IntArray
    end_ns: IntArray
    slot: IntArray
    filled: np.ndarray
    weight: FloatArray


def flatten(start_ns: IntArray, end_ns: IntArray) -> tuple[IntArray, IntArray, IntArray]:
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
    parent = _parents(start, end)
    index = np.arange(len(order))
    times = np.concatenate((end, start))
    after = np.concatenate((parent, index))  # the innermost span after each event
    # At a tie, ends come before starts, and inner spans end before the outer ones that end with them.
    kind = np.repeat([0, 1], len(order))
    by_time = np.lexsort((np.concatenate((-index, index)), kind, times))
    times, after = times[by_time], after[by_time]
    lo, hi, owner = times[:-1], times[1:], after[:-1]
    keep = (hi > lo) & (owner != NOBODY)
    return lo[keep], hi[keep], order[owner[keep]]


def _parents(start: IntArray, end: IntArray) -> IntArray:
    """Find each span's parent and clip its end to the parent's; spans sorted by start, longer first."""
    depth = np.arange(len(start)) - np.searchsorted(np.sort(end), start, side="right")
    parent = np.full(len(start), NOBODY, dtype=np.int64)
    above = np.flatnonzero(depth <= 0)
    for level in range(1, int(depth.max(initial=0)) + 1):
        at_level = np.flatnonzero(depth == level)
        if len(at_level) == 0 or len(above) == 0:
            continue
        place = np.searchsorted(above, at_level) - 1
        has_parent = place >= 0
        parent[at_level[has_parent]] = above[place[has_parent]]
        end[at_level[has_parent]] = np.minimum(end[at_level[has_parent]], end[parent[at_level[has_parent]]])
        above = at_level
    return parent


def pieces(trace: Trace, start_ns: int, end_ns: int) -> Pieces:
    """Cut a window into pieces; concurrent threads share it by their CPU time, where known."""
    parts = []
    for thread in np.unique(trace.thread):
        mine = np.flatnonzero(trace.thread == thread)
        lo, hi, span = flatten(trace.start_ns[mine], trace.end_ns[mine])
        lo, hi = np.maximum(lo, start_ns), np.minimum(hi, end_ns)
        keep = hi > lo
        parts.append((lo[keep], hi[keep], mine[span[keep]]))
    if not parts:
        return _gap_only(start_ns, end_ns)
    lo, hi, span = (np.concatenate(column) for column in zip(*parts, strict=True))
    if len(parts) > 1:
        lo, hi, span = _split_at_each_other(lo, hi, span)
    slot, filled = trace.slot[span], trace.filled[span]
    cuts = np.unique(np.concatenate((lo, hi, [start_ns, end_ns])))
    weight = np.ones(len(lo))
    if len(parts) > 1:
        at, own = np.searchsorted(cuts, lo), _busy(trace)[span]
        weight = own / np.bincount(at, own, len(cuts))[at]
    gap_lo, gap_hi = gaps(lo, hi, start_ns, end_ns)
    return Pieces(
        np.concatenate((lo, gap_lo)),
        np.concatenate((hi, gap_hi)),
        np.concatenate((slot, np.full(len(gap_lo), NOBODY))),
        np.concatenate((filled, np.zeros(len(gap_lo), dtype=np.bool_))),
        np.concatenate((weight, np.ones(len(gap_lo)))),
    )


def _busy(trace: Trace) -> FloatArray:
    """Return for each span the part of its time that its thread spends on a CPU; 1 for all where unknown."""
    if not len(trace) or len(trace.thread_busy) <= int(trace.thread.max()):
        return np.ones(len(trace))
    return np.maximum(np.array(trace.thread_busy, dtype=np.float64), LEAST_BUSY)[trace.thread]


def _gap_only(start_ns: int, end_ns: int) -> Pieces:
    full_weight = np.ones(1)
    return Pieces(
        np.array([start_ns]), np.array([end_ns]), np.array([NOBODY]), np.zeros(1, dtype=np.bool_), full_weight
    )


def _split_at_each_other(lo: IntArray, hi: IntArray, span: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Cut every interval wherever another begins or ends, so that equal starts mean equal intervals."""
    cuts = np.unique(np.concatenate((lo, hi)))
    first_cut, last_cut = np.searchsorted(cuts, lo), np.searchsorted(cuts, hi)
    which = np.repeat(np.arange(len(lo)), last_cut - first_cut)
    place = np.arange(len(which)) - np.repeat(
        np.cumsum(last_cut - first_cut) - (last_cut - first_cut), last_cut - first_cut
    )
    begin = first_cut[which] + place
    return cuts[begin], cuts[begin + 1], span[which]


def gaps(lo: IntArray, hi: IntArray, start_ns: int, end_ns: int) -> tuple[IntArray, IntArray]:
    """Return the intervals of the window without any work."""
    order = np.argsort(lo, kind="stable")
    reach = np.maximum.accumulate(np.concatenate(([start_ns], hi[order])))
    nxt = np.concatenate((lo[order], [end_ns]))
    keep = nxt > reach
    return reach[keep], nxt[keep]
