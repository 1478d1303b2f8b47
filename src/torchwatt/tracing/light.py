"""Forward spans of light steps: each outermost call is filled from the nearest traced call of that module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.tracing.log import END, FORWARD_TASK, KEY, LIGHT_TASK, START, TASK
from torchwatt.tracing.ranges import top_level
from torchwatt.tracing.template import Call, Template, stretch_many, template_of


def fill_forward(table: IntArray, shown: IntArray) -> Iterator[tuple[Template, IntArray, IntArray]]:
    """Yield templates with the starts and ends of the spans they stand for, one row a call.

    Args:
        table: Log table of a thread.
        shown: Indices of the rows that belong to the trace.
    """
    light = shown[table[shown, TASK] == LIGHT_TASK]
    if not len(light):
        return
    traced = np.flatnonzero((table[:, TASK] == FORWARD_TASK) & (table[:, KEY] > 0))
    full = traced[top_level(table[traced, START], table[traced, END])]
    users: dict[int, list[int]] = defaultdict(list)
    for key in np.unique(table[light, KEY]):
        models, calls = full[table[full, KEY] == key], light[table[light, KEY] == key]
        if len(models):
            for row, model in zip(calls, _nearest(table[models, START], table[calls, START]), strict=True):
                users[int(models[model])].append(int(row))
    for row, rows in users.items():
        template = _template(table, row)
        if template is not None:
            yield template, *stretch_many(template, table[rows, START], table[rows, END])


def _nearest(models: IntArray, calls: IntArray) -> IntArray:
    right = np.clip(np.searchsorted(models, calls), 0, len(models) - 1)
    left = np.maximum(right - 1, 0)
    closer = np.abs(models[left] - calls) <= np.abs(models[right] - calls)
    return np.where(closer, left, right)


def _template(table: IntArray, row: int) -> Template | None:
    start, end = int(table[row, START]), int(table[row, END])
    inside = np.flatnonzero((table[:row, START] >= start) & (table[:row, KEY] > 0))
    rows = table[inside]
    rows = rows[np.lexsort((-rows[:, END], rows[:, START]))]
    return template_of(Call(start, end), [(int(r[START]), int(r[END]), int(r[KEY]), 1) for r in rows])
