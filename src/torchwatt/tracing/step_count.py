"""Count the steps of a loop incrementally, from new entries and the latest rounds. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.tracing.rounds import NO_STRETCH, Mark, OptimizerEnd
from torchwatt.tracing.steps import Calls, Evidence, evaluations_of, marks_of

KEPT = 64  # rounds that are evaluated again: later entries may change them
MOST_CALLS = 2_048  # outermost calls that are evaluated again; beyond, neighbours are merged


@dataclass(frozen=True, slots=True, eq=False)
class News:
    """New entries of a loop; fields as in `Evidence`, sorted by time."""

    calls: Calls
    backward_ns: IntArray
    unseen_ns: IntArray
    optimizers: Sequence[Sequence[OptimizerEnd]]  # of each thread that ends these steps


class StepCount:
    """Counts steps as `steps_of` does; entries older than the last `KEPT` rounds are counted once and dropped."""

    def __init__(self, start_ns: int) -> None:
        self._settled = 0
        none = np.zeros(0, dtype=np.int64)
        no_calls = Calls(none, none, none, none.astype(np.bool_), none.astype(np.bool_), none, none.astype(np.bool_))
        self._seen = Evidence(start_ns, start_ns, none, no_calls, NO_STRETCH, none, none.astype(np.bool_))
        self.looked_at = 0  # entries that the last count evaluated
        self.steps_per_end = 0.0  # per optimizer step, recently; 0 where no optimizer ends steps

    def add(self, news: News, end_ns: int) -> None:
        """Add the entries until `end_ns`."""
        seen, new = self._seen, news.calls
        calls = Calls(*(np.concatenate(pair) for pair in zip(_columns(seen.calls), _columns(new), strict=True)))
        backward_ns = np.concatenate((seen.backward_ns, news.backward_ns))
        forward = np.searchsorted(np.sort(calls.start_ns[calls.grown]), backward_ns[:, 0])
        ends = dict(enumerate(seen.optimizers)) | {
            i: [*(seen.optimizers[i] if i < len(seen.optimizers) else ()), *each]
            for i, each in enumerate(news.optimizers)
        }
        self._seen = replace(
            seen,
            end_ns=end_ns,
            calls=_fewer(calls, np.sort(backward_ns[:, 0])) if len(calls) > MOST_CALLS else calls,
            backward_ns=backward_ns,
            backward_count=np.ones(len(backward_ns), dtype=np.int64),
            backward_again=np.diff(forward, prepend=-1) == 0,
            unseen_ns=np.concatenate((seen.unseen_ns, news.unseen_ns)),
            starts_ns=np.sort(np.concatenate((calls.start_ns, backward_ns[:, 0]))),
            optimizers=[ends[i] for i in sorted(ends)] if any(ends.values()) else (),
        )

    def count(self) -> int:
        """Return the number of steps so far."""
        seen = self._seen
        self.looked_at = len(seen.calls) + len(seen.backward_ns) + sum(map(len, seen.optimizers))
        marks = marks_of(seen)
        if marks is None:
            return self._settled + int(seen.calls.count[seen.calls.main].sum())
        ends = sum(map(len, seen.optimizers))
        self.steps_per_end = len(marks) / ends if ends else 0.0
        evaluations = evaluations_of(seen, marks)
        total = self._settled + sum(n for _, n in marks) + int(evaluations.count.sum())
        if len(marks) > 2 * KEPT:
            self._settle(marks, evaluations)
        return total

    def _settle(self, marks: Sequence[Mark], evaluations: Calls) -> None:
        seen, until_ns = self._seen, marks[-KEPT][0]
        self._settled += sum(n for end_ns, n in marks if end_ns <= until_ns)
        self._settled += int(evaluations.count[evaluations.start_ns < until_ns].sum())
        later = seen.backward_ns[:, 0] >= until_ns
        self._seen = replace(
            seen,
            origin_ns=until_ns,
            calls=seen.calls.take(seen.calls.start_ns >= until_ns),
            backward_ns=seen.backward_ns[later],
            backward_count=seen.backward_count[later],
            backward_again=seen.backward_again[later],
            unseen_ns=seen.unseen_ns[seen.unseen_ns[:, 1] > until_ns],
            optimizers=[[end for end in ends if end[1] > until_ns] for ends in seen.optimizers],
        )


def _columns(calls: Calls) -> tuple[np.ndarray, ...]:
    return calls.start_ns, calls.end_ns, calls.count, calls.grown, calls.main, calls.rounds, calls.inside


def _fewer(calls: Calls, backward_ns: IntArray) -> Calls:
    """Merge similar neighbours without a backward call between them, except the latest `KEPT`."""
    old = len(calls) - KEPT
    between = np.searchsorted(backward_ns, calls.start_ns[:old])
    change = (np.diff(between) != 0) | (np.diff(calls.grown[:old]) != 0) | (np.diff(calls.main[:old]) != 0)
    first = np.concatenate(([0], np.flatnonzero(change) + 1, np.arange(old, len(calls))))
    last = np.append(first[1:], len(calls)) - 1
    count = np.add.reduceat(calls.count, first)
    columns = calls.grown[first], calls.main[first], calls.rounds[first], calls.inside[first]
    return Calls(calls.start_ns[first], calls.end_ns[last], count, *columns)
