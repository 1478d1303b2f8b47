"""Converts readings to frames, for a session whose sampler process does not write them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from torchwatt.core.blocks import Block
from torchwatt.core.meter import Recording, Series
from torchwatt.sensors.journal.rings import ANCHORS, PART_RECORDS

MOST_KEYS = 10_000


class New:
    """Tracks which readings were written, so that each is written once."""

    def __init__(self, since_ns: int = 0) -> None:
        self._since_ns = since_ns
        self._known: dict[str, int] = {}

    @property
    def since_ns(self) -> int:
        """Return the earliest instant from which readings are needed."""
        return min(self._known.values(), default=self._since_ns)

    def blocks(self, recording: Recording) -> list[Block]:
        """Return the readings that were not returned before."""
        new_blocks = []
        for series in recording.series:
            key = series.channel.key
            since_ns = self._known.get(key, self._since_ns)
            fresh = series.between(since_ns, np.iinfo(np.int64).max - 1)
            if len(fresh):
                self._known[key] = int(fresh.t_ns[-1]) + 1
                new_blocks.append(block_of(fresh))
        return new_blocks


def block_of(series: Series, stride: int = 1) -> Block:
    """Return a series as a block."""
    t_ns, raw, late_ns = (np.ascontiguousarray(c[::stride]) for c in (series.t_ns, series.raw, series.late_ns))
    period_ns = series.channel.period_ns * stride
    return Block(series.channel.key, period_ns, t_ns.tobytes(), raw.tobytes(), late_ns.tobytes())


def anchors_of(pairs: Iterable[tuple[int, int]]) -> Block:
    """Return pairs of (monotonic, realtime) nanoseconds as a block."""
    table = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    mono, real = (np.ascontiguousarray(table[:, i]).tobytes() for i in (0, 1))
    return Block(ANCHORS, 0, mono, bytes(len(mono)), real)


def parts(recording: Recording, stride: int) -> Iterator[Block]:
    """Yield all readings in blocks of at most one frame."""
    for series in recording.series:
        for at in range(0, len(series), PART_RECORDS * stride):
            t_ns = series.t_ns[at : at + PART_RECORDS * stride]
            yield block_of(series.between(int(t_ns[0]), int(t_ns[-1])), stride)
