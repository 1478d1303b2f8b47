"""Find which optimizer steps make up one round of the program's main loop. Pure."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.meter import IntArray

OptimizerEnd = tuple[int, int, int]  # key, end_ns, number of steps that end there
Mark = tuple[int, int]  # end_ns, number of steps that end there

MOST_PERIOD = 4  # optimizer steps per round of a loop that calls the model between them (a GAN, actor and critic)
REGULAR = 0.9  # share of the steps that follow the period
# Optimizers that step at random step twice between two steps of another one as often as chance predicts.
ENOUGH_BY_CHANCE, FEW_TWICE = 6.0, 0.02
MAX_ENDS = 20_000
NOTHING: IntArray = np.zeros(0, dtype=np.int64)
NO_STRETCH: IntArray = np.zeros((0, 2), dtype=np.int64)


class OptimizerEnds:
    """Ends of the steps of all optimizers of one thread; in a long run neighbours are merged."""

    def __init__(self, most_entries: int = MAX_ENDS) -> None:
        self._most = most_entries
        self._columns = array("q"), array("q"), array("q")

    def extend(self, ends: Iterable[tuple[int, int]]) -> None:
        """Record ends (key of the optimizer, end_ns), in order of time."""
        keys, times, counts = self._columns
        for key, end_ns in ends:
            keys.append(key)
            times.append(end_ns)
            counts.append(1)
        if len(keys) > 2 * self._most:
            self._put_together()

    def entries(self) -> list[OptimizerEnd]:
        """Return key, end_ns and number of steps of each entry."""
        return list(zip(*self._columns, strict=False))  # another thread may be adding one

    def _put_together(self) -> None:
        entries = self.entries()
        older, newer = entries[: self._most], entries[self._most :]
        lead = Counter(key for key, *_ in older).most_common(1)[0][0]
        steps = rounds(older)
        pairs = [(lead, end, a + b) for (_, a), (end, b) in zip(steps[::2], steps[1::2], strict=False)]
        if len(steps) % 2:
            pairs.append((lead, *steps[-1]))
        self._columns = tuple(array("q", column) for column in zip(*pairs, *newer, strict=True))  # type: ignore[assignment]


def rounds(
    ends: Sequence[OptimizerEnd], forward_ns: IntArray = NOTHING, unseen_ns: IntArray = NO_STRETCH
) -> list[Mark]:
    """Return the ends of rounds, and how many rounds end there.

    The steps of two optimizers belong to one round if the model was not called between them (encoder and decoder, an
    optimizer per layer), if they alternate in a short cycle (a GAN), or if all others step at most once between two
    steps of one of them (a GAN that skips updates). A round has at most one step of each. Optimizers of which one
    finished before the other began (the phases of a fine-tuning, folds) share no round.

    Args:
        ends: Sorted by time.
        forward_ns: Starts of recorded calls of the model, sorted.
        unseen_ns: Intervals in which calls were not recorded, sorted; shape (n, 2).
    """
    if len({key for key, *_ in ends}) < 2:
        return [(end_ns, count) for _, end_ns, count in ends]
    first_ends: dict[int, int] = {}
    last_ends: dict[int, int] = {}
    for key, end_ns, _ in ends:
        first_ends.setdefault(key, end_ns)
        last_ends[key] = end_ns
    joined = _joined(ends, forward_ns, unseen_ns)
    lead = _lead([key for key, *_ in ends])
    leads_last = lead is not None and ends[0][0] != lead
    result: list[Mark] = []
    members: set[int] = set()
    for i, (key, end_ns, count) in enumerate(ends):
        is_new_round = key in members or count > 1 or any(last_ends[member] < first_ends[key] for member in members)
        is_new_round |= leads_last and lead in members
        if members and not is_new_round and (joined(i) or lead is not None):
            result[-1] = end_ns, result[-1][1]
        else:
            members = set()
            result.append((end_ns, count))
        members.add(key)
    return result


class _Joined:
    """Whether an optimizer step may belong to the same round as the one before it."""

    def __init__(self, together: set[tuple[int, int]], keys: Sequence[int], *, cycle: bool) -> None:
        self._together = together
        self._keys = keys
        self._cycle = cycle

    def __call__(self, i: int) -> bool:
        return self._cycle or (self._keys[i - 1], self._keys[i]) in self._together


def _joined(ends: Sequence[OptimizerEnd], forward_ns: IntArray, unseen_ns: IntArray) -> _Joined:
    keys = [key for key, *_ in ends]
    times = np.array([end_ns for _, end_ns, _ in ends], dtype=np.int64)
    between = np.diff(np.searchsorted(forward_ns, times), prepend=0)
    hidden = _overlap(unseen_ns, times)
    pair_counts: Counter[tuple[int, int]] = Counter()
    called: Counter[tuple[int, int]] = Counter()
    for i in range(1, len(keys)):
        pair_counts[keys[i - 1], keys[i]] += int(not hidden[i])
        called[keys[i - 1], keys[i]] += int(between[i] > 0)
    usually = 2 * called.total() < max(pair_counts.total(), 1)  # for pairs without observations
    together = {pair for pair, n in pair_counts.items() if (2 * called[pair] < n if n else usually)}
    return _Joined(together, keys, cycle=_is_cycle(keys))


def _overlap(unseen_ns: IntArray, times: IntArray) -> NDArray[np.bool_]:
    """Return for each instant whether an interval overlaps the time since the instant before."""
    before = np.searchsorted(unseen_ns[:, 0], times) - 1  # the latest interval that began earlier
    latest_end = np.append(unseen_ns[:, 1], np.iinfo(np.int64).min)[before]
    return np.asarray(latest_end > np.concatenate((times[:1], times[:-1])), dtype=np.bool_)


def _lead(keys: Sequence[int]) -> int | None:
    """Return the optimizer (of at most `MOST_PERIOD`) between whose steps others rarely step twice, else None."""
    numbers = Counter(keys)
    for lead, n in numbers.most_common() if len(numbers) <= MOST_PERIOD else ():
        other_numbers = {key: k for key, k in numbers.items() if key != lead}
        by_chance = sum(k * k / (n + k) for k in other_numbers.values())
        if by_chance >= ENOUGH_BY_CHANCE and _twice(keys, lead) <= FEW_TWICE * sum(other_numbers.values()):
            return lead
    return None


def _twice(keys: Sequence[int], lead: int) -> int:
    """Return how often another optimizer steps again without a step of this one in between."""
    members: set[int] = set()
    twice = 0
    for key in keys:
        twice += key in members
        members = set() if key == lead else members | {key}
    return twice


def _is_cycle(keys: Sequence[int]) -> bool:
    """Return whether optimizers alternate in a cycle of a few steps."""
    sequence = np.array(keys, dtype=np.int64)
    for period in range(2, MOST_PERIOD + 1):
        if len(sequence) >= 2 * period and np.mean(sequence[period:] == sequence[:-period]) >= REGULAR:
            return True
    return False
