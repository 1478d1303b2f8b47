"""Intervals of a run in which a device was recorded: outside them its activity is unknown, not idle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.trace import Activity
from torchwatt.core.units import NS_PER_S


def find_observed_windows(activity: Activity, start_ns: int, end_ns: int) -> IntArray:
    """Return the covered intervals inside a window: (n, 2) instants, disjoint and in order."""
    windows = activity.covered or ((start_ns, end_ns),)
    merged: list[list[int]] = []
    for lo, hi in sorted((max(a, start_ns), min(b, end_ns)) for a, b in windows):
        if hi <= lo:
            continue
        if merged and lo <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], hi)
        else:
            merged.append([lo, hi])
    return np.array(merged, dtype=np.int64).reshape(-1, 2)


def subtract_gaps(parts: IntArray, silent: Sequence[tuple[int, int]]) -> IntArray:
    """Subtract silent intervals, in which the energy is unknown."""
    remaining = [(int(lo), int(hi)) for lo, hi in parts]
    for a, b in silent:
        remaining = [(lo, hi) for p, q in remaining for lo, hi in ((p, min(q, a)), (max(p, b), q)) if hi > lo]
    return np.array(remaining, dtype=np.int64).reshape(-1, 2)


def clip_activity(activity: Activity, parts: IntArray) -> Activity:
    """Cut records at the ends of the intervals; records outside are dropped."""
    if len(parts) == 0:
        empty = np.zeros(0, dtype=np.int64)
        return _select_records(activity, empty, empty, empty)
    first_part = np.searchsorted(parts[:, 1], activity.start_ns, side="right")
    last_part = np.searchsorted(parts[:, 0], activity.end_ns, side="left") - 1
    count = np.maximum(last_part - first_part + 1, 0)
    which = np.repeat(np.arange(len(count)), count)
    part = first_part[which] + np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    start_ns = np.maximum(activity.start_ns[which], parts[part, 0])
    end_ns = np.minimum(activity.end_ns[which], parts[part, 1])
    return _select_records(activity, which, start_ns, end_ns)


def _select_records(activity: Activity, which: IntArray, start_ns: IntArray, end_ns: IntArray) -> Activity:
    return replace(
        activity,
        slot=activity.slot[which],
        start_ns=start_ns,
        end_ns=end_ns,
        stream=activity.stream[which],
        filled=activity.filled[which],
        signature=activity.signature[which] if len(activity.signature) else activity.signature,
    )


def find_intervals_inside(parts: IntArray, origin_ns: int, from_s: FloatArray, to_s: FloatArray) -> np.ndarray:
    """Return whether each interval lies completely inside one of `parts`."""
    edges = (parts - origin_ns) / NS_PER_S
    place = np.searchsorted(edges[:, 0], from_s, side="right") - 1
    return np.asarray((place >= 0) & (to_s <= edges[np.maximum(place, 0), 1]), dtype=np.bool_)
