"""From logs to a trace: names, slots, spans, steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchwatt.core.meter import Event, IntArray
from torchwatt.core.terms import DATA, OPTIMIZER, UNATTRIBUTED, Phase
from torchwatt.core.trace import Trace
from torchwatt.core.units import s_from_ns
from torchwatt.tracing.backward import BackwardBook
from torchwatt.tracing.columns import Columns
from torchwatt.tracing.light import fill_forward
from torchwatt.tracing.log import DATA_KEY, END, FIRST_SCOPE_KEY, KEY, OPTIMIZER_KEY, START, TASK, Backward, Log
from torchwatt.tracing.naming import Names, resolve
from torchwatt.tracing.ranges import top_level, uncross
from torchwatt.tracing.registry import Registry
from torchwatt.tracing.steps import first_optimizer_ends, steps_between
from torchwatt.tracing.template import ASSUMED_REL_SD


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What one tracer may see of the hub; the first log is of the tracer's own thread."""

    logs: tuple[Log, ...]
    start_ns: int
    end_ns: int
    registry: Registry
    scopes: Mapping[str, int]
    given: int | None  # key of the model that the user named
    step_ends: tuple[int, ...]  # the user's own
    call_cost_ns: float


def assemble(view: View, events: Sequence[Event]) -> Trace:
    """Put together the trace of a view."""
    view.registry.refresh()
    return _Assembly(view).trace(events)


class _Assembly:
    def __init__(self, view: View) -> None:
        self.view = view
        # Calls first: whatever a call refers to in the table is there by then.
        self.calls = {log: [c for c in list(log.backwards) if self._shows(c)] for log in view.logs}
        self.tables = {log: log.table() for log in view.logs}
        self.used = np.unique(np.concatenate([table[:, KEY] for table in self.tables.values()]))
        self.names: Names = resolve(view.registry.roots, view.registry.facts, self.used, view.given)
        self.scope_names = {key: name for name, key in view.scopes.items()}
        self.columns = Columns()
        self.rows = 0
        self.windows: list[Backward] = []
        self.carried: dict[int, float] = {}

    def _shows(self, call: Backward) -> bool:
        return call.start_ns >= self.view.start_ns and call.end_ns <= self.view.end_ns

    def _shown(self, table: IntArray) -> IntArray:
        return np.flatnonzero((table[:, START] >= self.view.start_ns) & (table[:, END] <= self.view.end_ns))

    def trace(self, events: Sequence[Event]) -> Trace:
        book = BackwardBook(self.tables)
        slot_of = {key: self._slot(key, backward=True) for key in sorted(book.owners())}
        for number, log in enumerate(self.view.logs):
            self._real(log, number)
            self._light(log, number)
            if self.calls[log]:
                book.write(self.columns, slot_of, log, self.calls[log], number)
        self.windows = [c for calls in self.calls.values() for c in calls if c.nodes is not None]
        cost_ns = self.rows * self.view.call_cost_ns + sum(c.cost_ns for c in self.windows)
        arrays: dict[str, Any] = self.columns.arrays()
        return Trace(
            slots=tuple(self.columns.slots),
            **arrays,
            steps=self._steps(),
            modules=self.names.modules,
            carry_rel_sd=self.carried | book.carry_rel_sd(slot_of),
            events=(*events, *self._notes(book)),
            cost_s=s_from_ns(cost_ns),
            windows=len(self.windows),
        )

    def _slot(self, key: int, *, backward: bool) -> int:
        if key > 0:
            return self.columns.index(self.names.of(key), "backward" if backward else "forward")
        if key <= FIRST_SCOPE_KEY:
            return self.columns.index(self.scope_names[key], "backward" if backward else "other")
        reserved: dict[int, tuple[str, Phase]] = {
            OPTIMIZER_KEY: (OPTIMIZER, "optimizer"),
            DATA_KEY: (DATA, "data"),
        }
        return self.columns.index(*reserved.get(key, (UNATTRIBUTED, "backward" if backward else "forward")))

    def _real(self, log: Log, thread: int) -> None:
        table = self.tables[log]
        rows = table[self._shown(table)]
        self.rows += len(rows)
        if not len(rows):
            return
        kinds, kind = np.unique(rows[:, KEY] * 2 + (rows[:, TASK] >= 0), return_inverse=True)
        slots = np.array([self._slot(int(k) // 2, backward=bool(k % 2)) for k in kinds], dtype=np.int64)
        # A wrapper (DDP, torch.compile) and what it wraps share a name: count the call once.
        repeats = [wrapper for wrapper, inner in self.names.wrapped.items() if inner in self.used]
        calls = 1 - np.isin(rows[:, KEY], repeats)
        start, end = rows[:, START].copy(), rows[:, END].copy()
        self._uncross(start, end, np.flatnonzero(rows[:, KEY] <= FIRST_SCOPE_KEY), self.calls[log])
        self.columns.add(slots[kind], start, end, thread=thread, filled=False, calls=calls)

    @staticmethod
    def _uncross(start: IntArray, end: IntArray, scopes: IntArray, calls: Sequence[Backward]) -> None:
        if not len(scopes):
            return
        first = np.concatenate((start, np.array([c.start_ns for c in calls], dtype=np.int64)))
        last = np.concatenate((end, np.array([c.end_ns for c in calls], dtype=np.int64)))
        starts, ends = np.sort(first), np.sort(last)
        began = np.searchsorted(starts, end[scopes]) - np.searchsorted(starts, start[scopes], side="right")
        ended = np.searchsorted(ends, end[scopes]) - np.searchsorted(ends, start[scopes], side="right")
        suspects = scopes[began != ended]  # as many must begin inside as end there
        uncross(first, last, suspects)
        end[suspects] = last[suspects]

    def _light(self, log: Log, thread: int) -> None:
        table = self.tables[log]
        for template, start, end in fill_forward(table, self._shown(table)):
            slot = np.array([self._slot(int(key), backward=False) for key in template.owner], dtype=np.int64)
            self.carried |= dict.fromkeys(slot.tolist(), ASSUMED_REL_SD)
            slots, calls = (np.tile(column, len(start)) for column in (slot, template.calls))
            self.columns.add(slots, start.ravel(), end.ravel(), thread=thread, filled=True, calls=calls)

    def _steps(self) -> tuple[tuple[int, int], ...]:
        view, log = self.view, self.view.logs[0]
        table = self.tables[log]
        table = table[self._shown(table)]
        ends: Sequence[int] = view.step_ends
        if not ends:
            marks = [mark for each in view.logs for mark in list(each.steps)]
            ends = first_optimizer_ends([m for m in marks if view.start_ns <= m[1] and m[0] <= view.end_ns])
        if not ends:
            calls = table[np.isin(table[:, KEY], list(self.names.main)) & (table[:, TASK] < 0)]
            top = top_level(calls[:, START], calls[:, END])
            return tuple((int(s), int(e)) for s, e in calls[top][:, [START, END]])
        starts = [c.start_ns for c in self.calls[log]]
        return steps_between(ends, np.sort(np.concatenate((table[:, START], starts)).astype(np.int64)), view.start_ns)

    def _notes(self, book: BackwardBook) -> list[Event]:
        end, total = self.view.end_ns, sum(len(calls) for calls in self.calls.values())
        notes = []
        if book.mismatched:
            text = f"{book.mismatched} of {total} backward calls are filled from a window of another structure"
            notes.append(Event(end, "info", "TEMPLATE_MISMATCH", "run", text))
        if book.unfilled:
            text = f"{book.unfilled} of {total} backward calls have no window: their layers are not known"
            notes.append(Event(end, "info", "BACKWARD_UNTRACED", "run", text))
        return notes
