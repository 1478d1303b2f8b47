"""Where steps ended: all of them at first, in a long run every second, fourth, ... with exact counts. Pure."""

from __future__ import annotations

from array import array

MAX_MARKS = 20_000


class Marks:
    """Ends of consecutive steps; beyond `MAX_MARKS` neighbours are put together."""

    def __init__(self, most: int = MAX_MARKS) -> None:
        self._most = most + most % 2  # even: nothing is left over when neighbours are put together
        self._ends = array("q")
        self.every = 1  # steps that an entry stands for; the last may stand for less
        self.steps = 0

    def add(self, end_ns: int) -> None:
        """Note a step."""
        if self.steps % self.every == 0:
            if len(self._ends) >= self._most:
                self._ends = self._ends[1::2]
                self.every *= 2
            self._ends.append(end_ns)
        else:
            self._ends[-1] = end_ns
        self.steps += 1

    def entries(self) -> list[tuple[int, int]]:
        """Return (end_ns, steps) of each entry."""
        ends = list(self._ends)
        counts = [self.every] * len(ends)
        if counts:
            counts[-1] = self.steps - self.every * (len(counts) - 1)
        return list(zip(ends, counts, strict=True))
