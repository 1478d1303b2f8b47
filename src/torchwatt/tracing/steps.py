"""Steps from what was seen: the user's own marks, else the first optimizer, else calls of the model. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from torchwatt.core.meter import IntArray

Mark = tuple[int, int, int]  # begin_ns, end_ns, how many steps


def steps_between(ends_ns: Sequence[int], starts_ns: IntArray, origin_ns: int) -> tuple[tuple[int, int], ...]:
    """Return (start_ns, end_ns) of each step.

    A step begins with the first span that starts after the previous step's end (time in between, such as
    printing, belongs to no step), or at that end if nothing was seen.

    Args:
        ends_ns: Where steps end, sorted.
        starts_ns: Starts of all spans of the thread, sorted.
        origin_ns: Start of the session.
    """
    steps = []
    previous = origin_ns
    for end in ends_ns:
        i = int(np.searchsorted(starts_ns, previous))
        begin = int(starts_ns[i]) if i < len(starts_ns) else previous
        steps.append((begin if begin < end else previous, end))
        previous = end
    return tuple(steps)


def first_optimizer(marks: Mapping[int, Sequence[Mark]], start_ns: int, end_ns: int) -> list[Mark]:
    """Return the marks, inside a session, of the optimizer that stepped first there."""
    inside = {key: [m for m in found if m[1] > start_ns and m[1] <= end_ns] for key, found in marks.items()}
    return min((found for found in inside.values() if found), key=lambda found: found[0][1], default=[])
