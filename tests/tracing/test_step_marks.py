"""Ends of steps, with pauses between them: bounded, counted, and never a pause inside a row."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.tracing.loop_steps import steps_between
from torchwatt.tracing.scope import StepMarks

NOTHING = np.zeros(0, dtype=np.int64)


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=300), st.integers(2, 20))
def test_every_step_is_counted_and_no_pause_lies_in_a_row(noted, most):
    marks, now, pauses = StepMarks(most), 0, []
    for duration, pause_before in noted:
        if pause_before:
            pauses.append((now, now + 2))
            now += 2
            marks.resume(now)
        now += duration
        marks.add(now)
    steps = steps_between(marks.entries(), NOTHING, 0, marks.resumed())
    rows = [(step.start_ns, step.end_ns, step.count) for step in steps]
    assert sum(count for *_, count in rows) == len(noted)
    assert all(a_end <= b_start for (_, a_end, _), (b_start, _, _) in pairwise(rows))
    assert not any(
        start < pause_end and pause_start < end for start, end, _ in rows for pause_start, pause_end in pauses
    )
    covered = sum(end - start for start, end, _ in rows)
    assert covered == sum(duration for duration, _ in noted)
    assert len(rows) <= 2 * most + 2 + 2 * len(pauses)


def test_without_pauses_memory_is_bounded():
    marks = StepMarks(10)
    for end in range(1, 100_001):
        marks.add(end)
    assert len(marks.entries()) <= 10
    assert marks.resumed() == {}
