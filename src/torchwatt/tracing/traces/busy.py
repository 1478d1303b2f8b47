"""Compute how long a device worked, and each record's share; durations of concurrent streams are not summed."""

from __future__ import annotations

import numpy as np

from torchwatt.core.meter import FloatArray, IntArray


def union(start_ns: IntArray, end_ns: IntArray) -> tuple[IntArray, IntArray]:
    """Return the intervals in which at least one interval runs, in time order and disjoint."""
    real = end_ns > start_ns
    start, end = start_ns[real], end_ns[real]
    if not len(start):
        return start, end
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    new = np.concatenate(([True], start[1:] > reach[:-1]))
    return start[new], reach[np.concatenate((np.flatnonzero(new)[1:] - 1, [len(start) - 1]))]


def busy_ns(start_ns: IntArray, end_ns: IntArray) -> int:
    """Return how long at least one interval runs, in ns."""
    lo, hi = union(start_ns, end_ns)
    return int((hi - lo).sum())


def shares_ns(start_ns: IntArray, end_ns: IntArray) -> FloatArray:
    """Split busy time over the records: those that run at the same instant share it equally, in ns.

    The shares add up to `busy_ns`.
    """
    times = np.concatenate((start_ns, end_ns))
    order = np.argsort(times, kind="stable")
    running = np.cumsum(np.repeat([1, -1], len(start_ns))[order])
    length = np.diff(times[order], append=times[order][-1:])
    # With one cumulative integral of dt / n, each record's share is the difference between its ends.
    each = np.divide(length, running, out=np.zeros(len(times)), where=running > 0)
    grown = np.concatenate(([0.0], np.cumsum(each)))
    place = np.empty(len(times), dtype=np.int64)
    place[order] = np.arange(len(times))
    n = len(start_ns)
    return np.asarray(np.maximum(grown[place[n:]] - grown[place[:n]], 0.0), dtype=np.float64)
