"""Arithmetic of nested intervals: innermost, enclosing, following, crossing. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.meter import FloatArray, IntArray

NO_INDEX = -1


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
    owner = np.full(len(seq), NO_INDEX, dtype=np.int64)
    use = np.flatnonzero(s1 > s0)
    if not len(seq) or not len(use):
        return owner
    origin, size = int(seq.min()), int(seq.max() - seq.min()) + 1
    lo, hi = np.clip(s0[use] - origin, 0, size), np.clip(s1[use] - origin, 0, size)
    paint = np.full(size, NO_INDEX, dtype=np.int64)
    # Outer ranges first; inner ones paint over them. Among equals the one that ended last is the outer.
    for i in np.lexsort((-use, use * 0 + s0[use] - s1[use])):
        paint[lo[i] : hi[i]] = use[i]
    return paint[seq - origin]


def enclosing_indices(start: Sequence[int], end: Sequence[int]) -> list[int]:
    """Return the index of each interval's enclosing one, -1 at the top; sorted by start, outer before inner."""
    stack: list[int] = []
    result: list[int] = []
    for i, begin in enumerate(start):
        while stack and end[stack[-1]] <= begin:
            stack.pop()
        result.append(stack[-1] if stack else NO_INDEX)
        stack.append(i)
    return result


def extend_to_siblings(start: Sequence[int], end: Sequence[int], limit: int) -> tuple[list[int], list[int]]:
    """Extend each node to the start of its next sibling, so that the engine's own work has an owner.

    Args:
        start: Starts in order, outer before inner.
        end: Ends.
        limit: Where the last top-level node ends: the end of the backward call.

    Returns:
        The new ends, and each node's parent. Nested nodes stay inside their parent.
    """
    up = enclosing_indices(start, end)
    ends = [0] * len(start)
    following: dict[int, int] = {}  # parent -> start of the following sibling
    for i in reversed(range(len(start))):
        end_limit = limit if up[i] == NO_INDEX else min(end[i], end[up[i]])
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
    for i, up in enumerate(enclosing_indices(start, end)):  # type: ignore[arg-type]
        if up != NO_INDEX:
            own[up] -= end[i] - start[i]
    return own


def enclosing_array(start: IntArray, end: IntArray, *, clip: bool = False) -> IntArray:
    """Return the same as `enclosing_indices`, vectorised; sorted by start, outer before inner.

    Args:
        start: Starts.
        end: Ends.
        clip: Cut in place, in `end`, what ends after its enclosing interval.
    """
    encloser = np.full(len(start), NO_INDEX, dtype=np.int64)
    depth = np.arange(len(start)) - np.searchsorted(np.sort(end), start, side="right")
    above = np.flatnonzero(depth <= 0)
    for level in range(1, int(depth.max(initial=0)) + 1):
        level_members = np.flatnonzero(depth == level)
        place = np.searchsorted(above, level_members) - 1
        inner, outer = level_members[place >= 0], above[place[place >= 0]]
        encloser[inner] = outer
        if clip:
            end[inner] = np.minimum(end[inner], end[outer])
        above = level_members
    return encloser


def cut_crossings(start: IntArray, end: IntArray, soft: IntArray) -> None:
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


@dataclass(frozen=True, slots=True, eq=False)
class IntervalNest:
    """Intervals by thread; `parent` and the result of `at` are indices of the arrays it was made from."""

    parent: IntArray
    lanes: dict[int, tuple[IntArray, IntArray, IntArray]]  # thread -> places, starts, clipped ends; by start

    def at(self, thread: IntArray, t_ns: IntArray) -> IntArray:
        """Return the innermost interval that contains each instant, -1 where none does.

        An interval contains its start, not its end.
        """
        innermost = np.full(len(t_ns), NO_INDEX, dtype=np.int64)
        for lane, queries in groups_of(thread):
            if lane in self.lanes:
                innermost[queries] = self._in_lane(*self.lanes[lane], t_ns[queries])
        return innermost

    def _in_lane(self, place: IntArray, start: IntArray, end: IntArray, t_ns: IntArray) -> IntArray:
        end_of = np.zeros(len(self.parent), dtype=np.int64)
        end_of[place] = end
        latest = np.searchsorted(start, t_ns, side="right") - 1
        interval = np.where(latest >= 0, place[np.maximum(latest, 0)], NO_INDEX)
        open_ = np.flatnonzero(interval != NO_INDEX)
        while len(open_):  # climbs once per level that has ended
            open_ = open_[end_of[interval[open_]] <= t_ns[open_]]
            interval[open_] = self.parent[interval[open_]]
            open_ = open_[interval[open_] != NO_INDEX]
        return interval

    def climb(self, place: IntArray, is_target: NDArray[np.bool_]) -> IntArray:
        """Return for each interval the nearest target among itself and its ancestors, or -1.

        Args:
            place: Intervals, -1 allowed.
            is_target: Whether each interval of the nest is a target.
        """
        ancestor = place.copy()
        while True:
            going = np.flatnonzero(ancestor != NO_INDEX)
            going = going[~is_target[ancestor[going]]]
            if not len(going):
                return ancestor
            ancestor[going] = self.parent[ancestor[going]]

    def outermost(self, place: IntArray) -> IntArray:
        """Return the outermost ancestor of each interval, itself if it has none; -1 is kept."""
        ancestor = place.copy()
        while True:
            up = np.append(self.parent, NO_INDEX)[ancestor]
            if not (up != NO_INDEX).any():
                return ancestor
            ancestor = np.where(up != NO_INDEX, up, ancestor)


def nest_intervals(thread: IntArray, start_ns: IntArray, end_ns: IntArray) -> IntervalNest:
    """Find each interval's enclosing one; an interval that crosses another's end is cut there.

    Of two equal intervals the earlier in the arrays is the outer one.
    """
    parent = np.full(len(thread), NO_INDEX, dtype=np.int64)
    lanes: dict[int, tuple[IntArray, IntArray, IntArray]] = {}
    for lane, members in groups_of(thread):
        place = members[np.lexsort((-end_ns[members], start_ns[members]))]
        up, ends = enclosing_cut(start_ns[place].tolist(), end_ns[place].tolist())
        above = np.array(up, dtype=np.int64)
        parent[place] = np.where(above == NO_INDEX, NO_INDEX, place[above])
        lanes[lane] = place, start_ns[place], np.array(ends, dtype=np.int64)
    return IntervalNest(parent, lanes)


def enclosing_cut(start: list[int], end: list[int]) -> tuple[list[int], list[int]]:
    """Return each interval's enclosing one and its end, cut at the encloser's; sorted by start, longer first."""
    stack: list[int] = []
    up, ends = [NO_INDEX] * len(start), list(end)
    for i, begin in enumerate(start):
        while stack and ends[stack[-1]] <= begin:
            stack.pop()
        if stack:
            up[i] = stack[-1]
            ends[i] = min(ends[i], ends[stack[-1]])
        stack.append(i)
    return up, ends


def groups_of(key: IntArray) -> Iterator[tuple[int, IntArray]]:
    """Yield each distinct key with its indices, in order."""
    order = np.argsort(key, kind="stable")
    edges = group_starts(key[order])
    for lo, hi in pairwise(edges.tolist()):
        yield int(key[order[lo]]), order[lo:hi]


def group_starts(sorted_keys: IntArray) -> IntArray:
    """Return the start of each run of equal keys, and the length at the end."""
    if not len(sorted_keys):
        return np.zeros(1, dtype=np.int64)
    new = np.flatnonzero(np.diff(sorted_keys)) + 1
    return np.concatenate(([0], new, [len(sorted_keys)])).astype(np.int64)


def union_intervals(start_ns: IntArray, end_ns: IntArray) -> tuple[IntArray, IntArray]:
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
    lo, hi = union_intervals(start_ns, end_ns)
    return int((hi - lo).sum())


def busy_shares_ns(start_ns: IntArray, end_ns: IntArray) -> FloatArray:
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
