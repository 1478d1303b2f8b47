"""Lay templates over calls that were not traced, vectorised where no recorded span lies inside. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.tracing.columns import Columns
from torchwatt.tracing.elastic import ElasticTemplate
from torchwatt.tracing.fold import Records
from torchwatt.tracing.ranges import top_level
from torchwatt.tracing.template import Call, Template, stretch, stretch_many


class Filler:
    """Adds filled spans of one thread to the columns."""

    def __init__(self, columns: Columns, thread: int, slot_of: Callable[[int], int]) -> None:
        self._columns = columns
        self._thread = thread
        self._slot_of = slot_of

    def fill(self, template: Template, starts: IntArray, ends: IntArray, count: IntArray) -> None:
        """Add a template laid over calls, one row each; `count`: number of calls that a row stands for."""
        slot = np.array([self._slot_of(int(key)) for key in template.owner], dtype=np.int64)
        slots = np.tile(slot, len(starts))
        calls = (template.calls[None, :] * count[:, None]).ravel()  # below zero: unknown
        self._columns.add(slots, starts.ravel(), ends.ravel(), thread=self._thread, filled=True, calls=calls)

    def fill_records(self, records: Records, chosen: Iterable[tuple[int, Template]]) -> None:
        """Lay templates over records; other records inside one keep their time."""
        same_template: dict[int, tuple[Template, list[int]]] = {}
        for i, template in chosen:
            inner = inner_of(records, i)
            if inner:
                call = Call(int(records.start[i]), int(records.end[i]), inner)
                starts, ends = stretch(template, call)
                self.fill(template, starts[None], ends[None], records.count[i : i + 1])
            else:
                same_template.setdefault(id(template), (template, []))[1].append(i)
        for template, members in same_template.values():
            starts, ends = stretch_many(template, records.start[members], records.end[members])
            self.fill(template, starts, ends, records.count[members])


def inner_of(records: Records, i: int) -> tuple[tuple[int, int], ...]:
    """Return the outermost records inside a record, as (start_ns, end_ns); they follow it in order."""
    end = records.end[i]
    end_row = i + 1
    while end_row < len(records) and records.start[end_row] < end:
        end_row += 1
    members = np.arange(i + 1, end_row)
    top = members[top_level(records.start[members], records.end[members])]
    return tuple((int(records.start[j]), int(records.end[j])) for j in top)


def fitted(elastic: ElasticTemplate, records: Records, i: int) -> Template:
    """Return the template of a record, fitted to the mean length of the calls that it stands for."""
    if elastic.is_rigid:
        return elastic.plain
    inner_ns = sum(end - start for start, end in inner_of(records, i))
    net_ns = int(records.end[i] - records.start[i]) - inner_ns
    return elastic.fitted(net_ns / int(records.count[i]))
