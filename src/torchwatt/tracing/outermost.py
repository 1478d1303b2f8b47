"""Find the outermost modules of the step that just ended, and the calls that pass their wrappers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchwatt.tracing.rows import FORWARD_TASK, KEY, START, TASK, Row


def outermost_keys(rows: Sequence[Row]) -> set[int]:
    """Return the keys of modules whose calls no other module call encloses, from rows of a log.

    Rows are in order of their ends, so that a call follows all calls that it encloses.
    """
    keys = set()
    covered = 1 << 62
    for row in reversed(rows):
        if row[KEY] > 0 and row[TASK] == FORWARD_TASK and row[START] < covered:
            keys.add(row[KEY])
            covered = row[START]
    return keys


def passing_calls(rows: Sequence[Row], step_calls: int, watched: Callable[[int], bool]) -> int:
    """Return the number of nested calls in a step whose module's class is patched: they pass its wrapper.

    Args:
        rows: The latest of a log; the last ones are those of a traced step.
        step_calls: Number of rows of that step.
        watched: Whether the class of a key's module is patched.
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
