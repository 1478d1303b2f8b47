"""Steps from what was seen: the user's own marks, else the first optimizer, else calls of the model. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.tracing.fold import Records
from torchwatt.tracing.ranges import top_level
from torchwatt.tracing.rows import END, START

Mark = tuple[int, int]  # end_ns, and how many steps end there
Step = tuple[int, int, int]  # start_ns, end_ns, how many
NEVER: Mapping[int, int] = MappingProxyType({})


def steps_between(
    marks: Sequence[Mark], starts_ns: IntArray, origin_ns: int, resumed: Mapping[int, int] = NEVER
) -> list[Step]:
    """Return each step.

    A step begins with the first span that starts after the previous step's end (time in between, such as
    printing, belongs to no step), or at that end if nothing was seen.

    Args:
        marks: Where steps end, sorted.
        starts_ns: Starts of all spans of the thread, sorted.
        origin_ns: Start of the session.
        resumed: By the end of a step: an instant before which nothing belongs to it (an evaluation ran, say).
    """
    if not marks:
        return []
    ends, counts = np.array(marks, dtype=np.int64).T
    previous = np.concatenate(([origin_ns], ends[:-1]))
    if resumed:
        previous = np.maximum(previous, [resumed.get(end, 0) for end, _ in marks])
    following = np.append(starts_ns, np.iinfo(np.int64).max)[np.searchsorted(starts_ns, previous)]
    begins = np.where(following < ends, following, previous)
    return list(zip(begins.tolist(), ends.tolist(), counts.tolist(), strict=True))


def first_optimizer(threads: Sequence[Mapping[int, Sequence[Mark]]], start_ns: int, end_ns: int) -> list[Mark]:
    """Return the marks, inside a session, of the optimizer that stepped first there; one map a thread.

    Compiled functions, whose keys are negative, end steps where no optimizer does.
    """
    inside: dict[int, list[Mark]] = {}
    for thread in threads:
        for optimizer, marks in thread.items():
            found = [mark for mark in marks if start_ns < mark[0] <= end_ns]
            inside[optimizer] = sorted([*inside.get(optimizer, []), *found])
    seen = {optimizer: marks for optimizer, marks in inside.items() if marks}
    optimizers = [marks for optimizer, marks in seen.items() if optimizer > 0]
    return min(optimizers or seen.values(), default=[])


def calls_as_steps(rows: IntArray, records: Records) -> list[Step]:
    """Take the outermost of some calls, logged and folded ones, for steps."""
    start, end = np.concatenate((rows[:, START], records.start)), np.concatenate((rows[:, END], records.end))
    count = np.concatenate((np.ones(len(rows), dtype=np.int64), records.count))
    top = top_level(start, end)
    return list(zip(start[top].tolist(), end[top].tolist(), count[top].tolist(), strict=True))
