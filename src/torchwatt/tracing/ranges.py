"""Arithmetic of nested intervals: innermost, enclosing, following, crossing. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchwatt.core.meter import FloatArray, IntArray

NOBODY = -1


def innermost(s0: IntArray, s1: IntArray, seq: IntArray) -> IntArray:
    """Return for each number the index of the innermost half-open range `[s0, s1)` that contains it.

    Args:
        s0: First number of each range; ranges are nested or disjoint, in order of the ends of calls, so that of two
            equal
            ranges the first is the inner one.
        s1: One past the last number of each range.
        seq: The numbers to look up.

    Returns:
        Indices into `s0`, -1 where no range contains the number.
    """
    owner = np.full(len(seq), NOBODY, dtype=np.int64)
    use = np.flatnonzero(s1 > s0)
    if not len(seq) or not len(use):
        return owner
    origin, size = int(seq.min()), int(seq.max() - seq.min()) + 1
    lo, hi = np.clip(s0[use] - origin, 0, size), np.clip(s1[use] - origin, 0, size)
    paint = np.full(size, NOBODY, dtype=np.int64)
    # Outer ranges first; inner ones paint over them. Among equals the one that ended last is the outer.
    for i in np.lexsort((-use, use * 0 + s0[use] - s1[use])):
        paint[lo[i] : hi[i]] = use[i]
    return paint[seq - origin]


def parents(start: Sequence[int], end: Sequence[int]) -> list[int]:
    """Return the index of each interval's enclosing one, -1 at the top; sorted by start, outer before inner."""
    stack: list[int] = []
    result: list[int] = []
    for i, begin in enumerate(start):
        while stack and end[stack[-1]] <= begin:
            stack.pop()
        result.append(stack[-1] if stack else NOBODY)
        stack.append(i)
    return result


def extend(start: Sequence[int], end: Sequence[int], limit: int) -> tuple[list[int], list[int]]:
    """Extend each node to the start of its next sibling, so that the engine's own work has an owner.

    Args:
        start: Starts in order, outer before inner.
        end: Ends.
        limit: Where the last top-level node ends: the end of the backward call.

    Returns:
        The new ends, and each node's parent. Nested nodes stay inside their parent.
    """
    up = parents(start, end)
    ends = [0] * len(start)
    following: dict[int, int] = {}  # parent -> start of the following sibling
    for i in reversed(range(len(start))):
        end_limit = limit if up[i] == NOBODY else min(end[i], end[up[i]])
        ends[i] = max(following.get(up[i], end_limit), start[i])
        following[up[i]] = start[i]
    return ends, up


def top_level(start: IntArray | FloatArray, end: IntArray | FloatArray) -> IntArray:
    """Return the indices, in order of start, of the intervals that no earlier interval encloses."""
    order = np.lexsort((-end, start))
    if not len(order):
        return order
    before = np.maximum.accumulate(end[order])
    return order[np.concatenate(([True], start[order][1:] >= before[:-1]))]


def self_times(start: Sequence[float], end: Sequence[float]) -> list[float]:
    """Return each interval's length without its children; sorted by start, outer before inner."""
    own = [e - s for s, e in zip(start, end, strict=True)]
    for i, up in enumerate(parents(start, end)):  # type: ignore[arg-type]
        if up != NOBODY:
            own[up] -= end[i] - start[i]
    return own


def enclosing(start: IntArray, end: IntArray) -> IntArray:
    """Return the same as `parents`, vectorised; sorted by start, outer before inner."""
    encloser = np.full(len(start), NOBODY, dtype=np.int64)
    depth = np.arange(len(start)) - np.searchsorted(np.sort(end), start, side="right")
    above = np.flatnonzero(depth <= 0)
    for level in range(1, int(depth.max(initial=0)) + 1):
        level_members = np.flatnonzero(depth == level)
        place = np.searchsorted(above, level_members) - 1
        encloser[level_members[place >= 0]] = above[place[place >= 0]]
        above = level_members
    return encloser


def uncross(start: IntArray, end: IntArray, soft: IntArray) -> None:
    """Cut, in place, the `soft` intervals that cross others; all others must be nested or disjoint.

    Only ranges of the user's own `scope` can cross: a generator may open one and close it much later.
    """
    for i in soft:
        begins, ends = start > start[i], end > start[i]
        out = begins & (start < end[i]) & (end > end[i])  # begins inside, ends later
        over = ~begins & ends & (end < end[i]) & (start < start[i])  # began earlier, ends inside
        if out.any():
            end[i] = start[out].min()
        if over.any():
            end[i] = min(int(end[i]), int(end[over].min()))
