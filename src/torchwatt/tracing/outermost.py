"""What the latest rows of a log say about the step that just ended."""

from __future__ import annotations

from collections.abc import Sequence

from torchwatt.tracing.log import Log
from torchwatt.tracing.rows import FORWARD_TASK, KEY, START, TASK, Row

LOOK_BACK = 5_000  # rows; a step has fewer, or waits for its end elsewhere


def outermost_keys(rows: Sequence[Row]) -> set[int]:
    """Return the keys of modules whose calls no other call of a module encloses, from the latest rows of a log.

    Rows are in the order in which calls ended, so that a call comes after all that it encloses.
    """
    keys = set()
    covered = 1 << 62
    for row in reversed(rows[-LOOK_BACK:]):
        if row[KEY] > 0 and row[TASK] == FORWARD_TASK and row[START] < covered:
            keys.add(row[KEY])
            covered = row[START]
    return keys


def step_begin(log: Log) -> int:
    """Return when the first thing was seen of the step that just ended, one that was not traced."""
    rows = log.rows[-max(log.total() - log.stride.first_row, 1) :]
    starts = [row[START] for row in rows]
    if log.stride.backwards and log.backwards:
        starts.append(log.backwards[-min(log.stride.backwards, len(log.backwards))].start_ns)
    return min(starts, default=log.stride.start_ns)
