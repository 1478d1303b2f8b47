"""Nesting of intervals that are nested or disjoint, by thread: innermost at an instant, and enclosing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.meter import IntArray
from torchwatt.tracing.ranges import NOBODY
from torchwatt.tracing.traces.tables import group_starts


@dataclass(frozen=True, slots=True, eq=False)
class Nest:
    """Intervals by thread; `parent` and the result of `at` are indices of the arrays it was made from."""

    parent: IntArray
    lanes: dict[int, tuple[IntArray, IntArray, IntArray]]  # thread -> places, starts, clipped ends; by start

    def at(self, thread: IntArray, t_ns: IntArray) -> IntArray:
        """Return the innermost interval that contains each instant, -1 where none does.

        An interval contains its start, not its end.
        """
        innermost = np.full(len(t_ns), NOBODY, dtype=np.int64)
        for lane, queries in by_group(thread):
            if lane in self.lanes:
                innermost[queries] = self._in_lane(*self.lanes[lane], t_ns[queries])
        return innermost

    def _in_lane(self, place: IntArray, start: IntArray, end: IntArray, t_ns: IntArray) -> IntArray:
        end_of = np.zeros(len(self.parent), dtype=np.int64)
        end_of[place] = end
        latest = np.searchsorted(start, t_ns, side="right") - 1
        interval = np.where(latest >= 0, place[np.maximum(latest, 0)], NOBODY)
        open_ = np.flatnonzero(interval != NOBODY)
        while len(open_):  # climbs once per level that has ended
            open_ = open_[end_of[interval[open_]] <= t_ns[open_]]
            interval[open_] = self.parent[interval[open_]]
            open_ = open_[interval[open_] != NOBODY]
        return interval

    def climb(self, place: IntArray, is_target: NDArray[np.bool_]) -> IntArray:
        """Return for each interval the nearest target among itself and its ancestors, or -1.

        Args:
            place: Intervals, -1 allowed.
            is_target: Whether each interval of the nest is a target.
        """
        ancestor = place.copy()
        while True:
            going = np.flatnonzero(ancestor != NOBODY)
            going = going[~is_target[ancestor[going]]]
            if not len(going):
                return ancestor
            ancestor[going] = self.parent[ancestor[going]]

    def outermost(self, place: IntArray) -> IntArray:
        """Return the outermost ancestor of each interval, itself if it has none; -1 is kept."""
        ancestor = place.copy()
        while True:
            up = np.append(self.parent, NOBODY)[ancestor]
            if not (up != NOBODY).any():
                return ancestor
            ancestor = np.where(up != NOBODY, up, ancestor)


def nest(thread: IntArray, start_ns: IntArray, end_ns: IntArray) -> Nest:
    """Find each interval's enclosing one; an interval that crosses another's end is cut there.

    Of two equal intervals the earlier in the arrays is the outer one.
    """
    parent = np.full(len(thread), NOBODY, dtype=np.int64)
    lanes: dict[int, tuple[IntArray, IntArray, IntArray]] = {}
    for lane, members in by_group(thread):
        place = members[np.lexsort((-end_ns[members], start_ns[members]))]
        up, ends = enclosing(start_ns[place].tolist(), end_ns[place].tolist())
        above = np.array(up, dtype=np.int64)
        parent[place] = np.where(above == NOBODY, NOBODY, place[above])
        lanes[lane] = place, start_ns[place], np.array(ends, dtype=np.int64)
    return Nest(parent, lanes)


def enclosing(start: list[int], end: list[int]) -> tuple[list[int], list[int]]:
    """Return each interval's enclosing one and its end, cut at the encloser's; sorted by start, longer first."""
    stack: list[int] = []
    up, ends = [NOBODY] * len(start), list(end)
    for i, begin in enumerate(start):
        while stack and ends[stack[-1]] <= begin:
            stack.pop()
        if stack:
            up[i] = stack[-1]
            ends[i] = min(ends[i], ends[stack[-1]])
        stack.append(i)
    return up, ends


def by_group(key: IntArray) -> Iterator[tuple[int, IntArray]]:
    """Yield each distinct key with its indices, in order."""
    order = np.argsort(key, kind="stable")
    edges = group_starts(key[order])
    for lo, hi in pairwise(edges.tolist()):
        yield int(key[order[lo]]), order[lo:hi]
