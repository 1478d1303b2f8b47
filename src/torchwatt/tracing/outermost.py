"""Which modules were called outside any other in the step that just ended. Pure."""

from __future__ import annotations

from collections.abc import Sequence

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
