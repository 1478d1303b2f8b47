"""Keep ends of steps with exact counts; in a long run only every second, fourth, ... end. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

MAX_MARKS = 20_000
Columns = tuple["array[int]", "array[int]", "array[int]"]


class Marks:
    """Ends of consecutive steps; beyond `MAX_MARKS` neighbours are merged.

    Steps with other work between them stay separate: a row of several steps contains these steps only.
    """

    def __init__(self, most_entries: int = MAX_MARKS) -> None:
        self._most = most_entries + most_entries % 2  # even, so that neighbours merge in pairs
        self._entries = array("q"), array("q"), array("q")  # ends, counts, starts after a pause
        self._begin_ns = 0
        self.every = 1  # steps per entry; the last entry, and those before a pause, may have fewer
        self.steps = 0

    def resume(self, t_ns: int) -> None:
        """Record that the time since the last step was no part of a step."""
        self._begin_ns = t_ns

    def add(self, end_ns: int) -> None:
        """Record a step."""
        while len(self._entries[0]) >= self._most and self._is_new():
            self._put_together()
        if self._is_new():
            _append(self._entries, end_ns, 1, self._begin_ns)
        else:
            _extend(self._entries, end_ns, 1)
        self._begin_ns = 0
        self.steps += 1

    def _is_new(self) -> bool:
        counts = self._entries[1]
        return not counts or counts[-1] >= self.every or self._begin_ns > 0

    def _put_together(self) -> None:
        self.every *= 2
        fewer: Columns = array("q"), array("q"), array("q")
        for end_ns, count, begin_ns in zip(*self._entries, strict=True):
            if fewer[0] and not begin_ns and fewer[1][-1] + count <= self.every:
                _extend(fewer, end_ns, count)
            else:
                _append(fewer, end_ns, count, begin_ns)
        self._entries = fewer
        if self.every > self.steps:  # only pauses keep the entries separate
            self._most *= 2

    def entries(self) -> list[tuple[int, int]]:
        """Return (end_ns, steps) of each entry."""
        ends, counts, _ = self._entries
        return list(zip(ends, counts, strict=False))  # another thread may be adding one

    def resumed(self) -> Mapping[int, int]:
        """Return the start after a pause, by the end of the entry that follows it."""
        ends, _, begins = self._entries
        return {end: begin for end, begin in zip(ends, begins, strict=False) if begin}


def _append(entries: Columns, end_ns: int, count: int, begin_ns: int) -> None:
    for column, value in zip(entries, (end_ns, count, begin_ns), strict=True):
        column.append(value)


def _extend(entries: Columns, end_ns: int, count: int) -> None:
    entries[0][-1] = end_ns
    entries[1][-1] += count
