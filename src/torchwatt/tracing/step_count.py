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
        entries, new = self._seen, news.calls
        calls = Calls(*(np.concatenate(pair) for pair in zip(_columns(entries.calls), _columns(new), strict=True)))
        backward_ns = np.concatenate((entries.backward_ns, news.backward_ns))
        forward = np.searchsorted(np.sort(calls.start_ns[calls.grown]), backward_ns[:, 0])
        ends = dict(enumerate(entries.optimizers)) | {
            i: [*(entries.optimizers[i] if i < len(entries.optimizers) else ()), *each]
            for i, each in enumerate(news.optimizers)
        }
        self._seen = replace(
            entries,
            end_ns=end_ns,
            calls=_fewer(calls, np.sort(backward_ns[:, 0])) if len(calls) > MOST_CALLS else calls,
            backward_ns=backward_ns,
            backward_count=np.ones(len(backward_ns), dtype=np.int64),
            backward_again=np.diff(forward, prepend=-1) == 0,
            unseen_ns=np.concatenate((entries.unseen_ns, news.unseen_ns)),
            starts_ns=np.sort(np.concatenate((calls.start_ns, backward_ns[:, 0]))),
            optimizers=[ends[i] for i in sorted(ends)] if any(ends.values()) else (),
        )

    def count(self) -> int:
        """Return the number of steps so far."""
        entries = self._seen
        self.looked_at = len(entries.calls) + len(entries.backward_ns) + sum(map(len, entries.optimizers))
        marks = marks_of(entries)
        if marks is None:
            return self._settled + int(entries.calls.count[entries.calls.main].sum())
        ends = sum(map(len, entries.optimizers))
        self.steps_per_end = len(marks) / ends if ends else 0.0
        evaluations = evaluations_of(entries, marks)
        total = self._settled + sum(n for _, n in marks) + int(evaluations.count.sum())
        if len(marks) > 2 * KEPT:
            self._settle(marks, evaluations)
        return total

    def _settle(self, marks: Sequence[Mark], evaluations: Calls) -> None:
        entries, until_ns = self._seen, marks[-KEPT][0]
        self._settled += sum(n for end_ns, n in marks if end_ns <= until_ns)
        self._settled += int(evaluations.count[evaluations.start_ns < until_ns].sum())
        later = entries.backward_ns[:, 0] >= until_ns
        self._seen = replace(
            entries,
            origin_ns=until_ns,
            calls=entries.calls.take(entries.calls.start_ns >= until_ns),
            backward_ns=entries.backward_ns[later],
            backward_count=entries.backward_count[later],
            backward_again=entries.backward_again[later],
            unseen_ns=entries.unseen_ns[entries.unseen_ns[:, 1] > until_ns],
            optimizers=[[end for end in ends if end[1] > until_ns] for ends in entries.optimizers],
        )


def _columns(calls: Calls) -> tuple[np.ndarray, ...]:
    return calls.start_ns, calls.end_ns, calls.count, calls.grown, calls.main, calls.rounds, calls.inside


def _fewer(calls: Calls, backward_ns: IntArray) -> Calls:
    """Merge similar neighbours without a backward call between them, except the latest `KEPT`."""
    old = len(calls) - KEPT
    between = np.searchsorted(backward_ns, calls.start_ns[:old])
    change = (np.diff(between) != 0) | (np.diff(calls.grown[:old]) != 0) | (np.diff(calls.main[:old]) != 0)
    starts = np.concatenate(([0], np.flatnonzero(change) + 1, np.arange(old, len(calls))))
    ends = np.append(starts[1:], len(calls)) - 1
    count = np.add.reduceat(calls.count, starts)
    columns = calls.grown[starts], calls.main[starts], calls.rounds[starts], calls.inside[starts]
    return Calls(calls.start_ns[starts], calls.end_ns[ends], count, *columns)
