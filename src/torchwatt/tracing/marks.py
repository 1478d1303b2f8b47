"""Where steps ended: all of them at first, in a long run every second, fourth, ... with exact counts. Pure."""

from __future__ import annotations

from array import array

MAX_MARKS = 20_000


class Marks:
    """Begin and end of consecutive steps; beyond `MAX_MARKS` neighbours are put together."""

    def __init__(self, most: int = MAX_MARKS) -> None:
        self._most = most
        self._begins = array("q")
        self._ends = array("q")
        self.every = 1  # steps that an entry stands for; the last may stand for less
        self.steps = 0

    def add(self, begin_ns: int, end_ns: int) -> None:
        """Note a step."""
        if self.steps % self.every == 0:
            if len(self._ends) >= self._most:
                self._halve()
            self._begins.append(begin_ns)
            self._ends.append(end_ns)
        else:
            self._ends[-1] = end_ns
        self.steps += 1

    def _halve(self) -> None:
        # As long as `_most` is even nothing is left over, and the next step begins a new entry.
        self._begins = self._begins[::2]
        self._ends = self._ends[1::2]
        self.every *= 2

    def entries(self) -> list[tuple[int, int, int]]:
        """Return (begin_ns, end_ns, steps) of each entry."""
        counts = [self.every] * len(self._ends)
        if counts:
            counts[-1] = self.steps - self.every * (len(counts) - 1)
        return list(zip(list(self._begins), list(self._ends), counts, strict=True))
