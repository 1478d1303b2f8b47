"""Templates made of traced calls, and their stretching over untraced calls. Pure."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.tracing.ranges import self_times

T = TypeVar("T")

# One window has no spread; an assumed default.
ASSUMED_REL_SD = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """Spans within a call, as fractions of its net time (without recorded spans inside it)."""

    first: FloatArray  # start fractions in [0, 1], in order, outer before inner
    last: FloatArray
    owner: IntArray  # a key of the registry, or a slot
    calls: IntArray

    def shares(self) -> dict[int, float]:
        """Return the share of net time of each owner, children excluded."""
        total: dict[int, float] = defaultdict(float)
        for owner, own in zip(self.owner, self_times(list(self.first), list(self.last)), strict=True):
            total[int(owner)] += own
        return dict(total)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call on the clock: its interval and the outermost recorded spans inside it, sorted, disjoint."""

    start_ns: int
    end_ns: int
    inner: tuple[tuple[int, int], ...] = ()

    @property
    def net_ns(self) -> int:
        """Duration without the recorded spans inside, in ns."""
        return self.end_ns - self.start_ns - sum(end - start for start, end in self.inner)

    def to_net(self, t_ns: IntArray) -> IntArray:
        """Map clock times to net time since the start; times inside a recorded span map to its start."""
        net = np.clip(t_ns, self.start_ns, self.end_ns) - self.start_ns
        for start, end in self.inner:
            net -= np.clip(t_ns - start, 0, end - start)
        return net

    def from_net(self, net_ns: IntArray, *, late: bool) -> IntArray:
        """Map net time back to the clock; at a recorded span: `late` after it, else before it."""
        clock = net_ns + self.start_ns
        for start, end in self.inner:
            clock = clock + np.where(clock >= start if late else clock > start, end - start, 0)
        return clock


def template_of(call: Call, pieces: Sequence[tuple[int, int, int, int]] | IntArray) -> Template | None:
    """Return the template of a traced call and its sorted pieces (start_ns, end_ns, owner, calls); None if empty."""
    net = call.net_ns
    table = np.asarray(pieces, dtype=np.int64)
    if net <= 0 or not len(table):
        return None
    return Template(call.to_net(table[:, 0]) / net, call.to_net(table[:, 1]) / net, table[:, 2], table[:, 3])


def stretch(template: Template, call: Call) -> tuple[IntArray, IntArray]:
    """Lay a template over a call: linear in net time, so order and total are kept; starts and ends in ns."""
    net = call.net_ns
    starts, ends = (np.floor(f * net + 0.5).astype(np.int64) for f in (template.first, template.last))
    if not call.inner:
        return starts + call.start_ns, ends + call.start_ns
    start, end = call.from_net(starts, late=True), call.from_net(ends, late=False)
    return np.minimum(start, end), end


def stretch_many(template: Template, start_ns: IntArray, end_ns: IntArray) -> tuple[IntArray, IntArray]:
    """Lay a template over many calls without recorded spans inside; one row per call."""
    net = (end_ns - start_ns)[:, None]
    return (
        np.floor(template.first[None, :] * net + 0.5).astype(np.int64) + start_ns[:, None],
        np.floor(template.last[None, :] * net + 0.5).astype(np.int64) + start_ns[:, None],
    )


class Catalogue(Generic[T]):
    """Templates, or what they are made from, by structure and time."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, list[tuple[int, T]]] = defaultdict(list)

    def add(self, keys: Sequence[Hashable], t_ns: int, template: T) -> None:
        """Add a template under its structures and under "any"."""
        for key in (*keys, None):
            bisect.insort(self._by_key[key], (t_ns, template), key=lambda entry: entry[0])

    def candidates(
        self, keys: Sequence[Hashable], accept: Callable[[T], bool] = lambda _: True
    ) -> tuple[list[tuple[int, T]], bool]:
        """Return the templates, by time, of the first structure that has any, and whether one matched.

        Args:
            keys: Structures, the best first; after them, templates of any structure.
            accept: Whether a template is suitable.
        """
        for key in (*keys, None):
            entries = [entry for entry in self._by_key.get(key, ()) if accept(entry[1])]
            if entries:
                return entries, key is not None
        return [], False


def around(entries: Sequence[tuple[int, T]], t_ns: int, most_entries: int) -> list[T]:
    """Return at most `most_entries` templates before and after a time, from entries sorted by time."""
    i = bisect.bisect(entries, t_ns, key=lambda entry: entry[0])
    return [template for _, template in entries[max(i - most_entries, 0) : i + most_entries]]


def relative_sd(groups: Sequence[Sequence[Mapping[int, float]]]) -> dict[int, float]:
    """Return the relative SD of each slot's share between windows, pooled over structures.

    Args:
        groups: For each structure its windows, each a map of slot to share. A slot that a window of the
            same structure lacks has share 0 there.

    Returns:
        By slot; `ASSUMED_REL_SD` where no structure has two windows.
    """
    squares: dict[int, float] = defaultdict(float)
    freedom: dict[int, int] = defaultdict(int)
    values: dict[int, list[float]] = defaultdict(list)
    for windows in groups:
        for slot in {slot for window in windows for slot in window}:
            shares = [window.get(slot, 0.0) for window in windows]
            mean = math.fsum(shares) / len(shares)
            squares[slot] += math.fsum((share - mean) ** 2 for share in shares)
            freedom[slot] += len(shares) - 1
            values[slot] += shares
    return {
        slot: math.sqrt(squares[slot] / freedom[slot]) / mean if freedom[slot] and mean > 0 else ASSUMED_REL_SD
        for slot, shares in values.items()
        for mean in (math.fsum(shares) / len(shares),)
    }
