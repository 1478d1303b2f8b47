"""A ring of readings in shared memory: one writer, any number of readers. Numpy-free."""

from __future__ import annotations

import time

RING_WORDS = 8
COUNT, GENERATION, PERIOD_NS, READS, MISSED, FAILING_NS, THINNED = range(7)
_TRIES = 1000


class Ring:
    """Records (t_ns, raw, late_ns) in three columns, with state words.

    A full ring is thinned in place: every second record stays and the channel's period doubles, so that bounded memory
    covers the whole run. The generation is odd during thinning; a reader reads again if it changed.
    """

    def __init__(self, words: memoryview, data: memoryview, capacity: int) -> None:
        self._words = words
        self._data = data
        self._capacity = capacity
        size = capacity * 8
        self._t_ns = data[:size].cast("q")
        self._raw = data[size : 2 * size].cast("d")
        self._late_ns = data[2 * size : 3 * size].cast("q")

    def word(self, index: int) -> int:
        """Return a state word."""
        return int(self._words[index])

    def put(self, index: int, value: int) -> None:
        """Set a state word; for the writer only."""
        self._words[index] = value

    def append(self, t_ns: int, raw: float, late_ns: int) -> bool:
        """Add a record; return whether the ring was thinned to make room."""
        count = self._words[COUNT]
        thinned = count >= self._capacity
        if thinned:
            count = self._thin(count)
        self._t_ns[count] = t_ns
        self._raw[count] = raw
        self._late_ns[count] = late_ns
        self._words[COUNT] = count + 1  # last, so that a reader sees complete records only
        self._words[READS] += 1
        return thinned

    def _thin(self, count: int) -> int:
        self._words[GENERATION] += 1
        kept_count = (count + 1) // 2
        for column in (self._t_ns, self._raw, self._late_ns):
            column[:kept_count] = column[:count:2]
        self._words[COUNT] = kept_count
        self._words[PERIOD_NS] *= 2
        self._words[THINNED] += 1
        self._words[GENERATION] += 1
        return kept_count

    def read(self, start: int = 0) -> tuple[bytes, bytes, bytes]:
        """Return the columns from record `start` on, as bytes of int64, float64 and int64."""
        for _ in range(_TRIES):
            before = self._words[GENERATION]
            if before % 2 == 0:
                count = self._words[COUNT]
                columns = (self._t_ns, self._raw, self._late_ns)
                copies = tuple(bytes(column[min(start, count) : count]) for column in columns)
                if self._words[GENERATION] == before:
                    return copies[0], copies[1], copies[2]
            time.sleep(0.001)
        return b"", b"", b""  # the writer ended during thinning

    def newest_ns(self) -> int:
        """Return the time of the last record in ns; 0 without records."""
        count = self.word(COUNT)
        return int(self._t_ns[count - 1]) if count else 0

    def first_since(self, start_ns: int) -> int:
        """Return the index of the first record at or after an instant."""
        lo, hi = 0, self.word(COUNT)
        while lo < hi:
            middle = (lo + hi) // 2
            if self._t_ns[middle] < start_ns:
                lo = middle + 1
            else:
                hi = middle
        return lo

    def release(self) -> None:
        """Release the views of the memory."""
        for view in (self._t_ns, self._raw, self._late_ns, self._words, self._data):
            view.release()
