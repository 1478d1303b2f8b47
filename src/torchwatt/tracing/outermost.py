"""Which modules were called outside any other in the step that just ended, and what passes their wrappers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchwatt.tracing.rows import FORWARD_TASK, KEY, START, TASK, Row


def outermost_keys(rows: Sequence[Row]) -> set[int]:
    """Return the keys of modules whose calls no other call of a module encloses, from rows of a log.

    Rows are in the order in which calls ended, so that a call comes after all that it encloses.
    """
    keys = set()
    covered = 1 << 62
    for row in reversed(rows):
        if row[KEY] > 0 and row[TASK] == FORWARD_TASK and row[START] < covered:
            keys.add(row[KEY])
            covered = row[START]
    return keys


def passing_calls(rows: Sequence[Row], step_calls: int, watched: Callable[[int], bool]) -> int:
    """Return how many calls of a step are inside another, of a module whose class is watched: they pass its wrapper.

    Args:
        rows: The latest of a log; the last ones are those of a traced step.
        step_calls: So many.
        watched: Whether the module of a key is of such a class.
    """
    passing, covered = 0, 1 << 62
    for row in reversed(rows[-step_calls:] if step_calls else ()):
        if row[KEY] <= 0 or row[TASK] != FORWARD_TASK:
            continue
        if row[START] < covered:
            covered = row[START]
        elif watched(row[KEY]):
            passing += 1
    return passing
