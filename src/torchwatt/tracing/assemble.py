"""From logs to a trace: names, slots, spans, steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torchwatt.core.activity import Activity
from torchwatt.core.meter import Event, IntArray
from torchwatt.core.terms import COMMUNICATION, COMPILE, DATA, OPTIMIZER, UNATTRIBUTED, Phase
from torchwatt.core.trace import Trace
from torchwatt.core.units import s_from_ns
from torchwatt.tracing.asleep import StepBook, steps_among
from torchwatt.tracing.backward import BackwardBook
from torchwatt.tracing.columns import Columns
from torchwatt.tracing.devices.watch import Watch
from torchwatt.tracing.filling import Filler
from torchwatt.tracing.fold import Records, join_records, merge, shifted, split
from torchwatt.tracing.light import ForwardBook
from torchwatt.tracing.log import Log, Look
from torchwatt.tracing.naming import Names, resolve
from torchwatt.tracing.ranges import uncross
from torchwatt.tracing.registry import Registry
from torchwatt.tracing.rows import (
    COMMUNICATION_KEY,
    COMPILE_KEY,
    DATA_KEY,
    END,
    FIRST_SCOPE_KEY,
    KEY,
    OPTIMIZER_KEY,
    START,
    TASK,
    Backward,
)
from torchwatt.tracing.steps import Mark, Step, calls_as_steps, first_optimizer, steps_between

MAX_FILLED = 300_000  # spans, about 15 MB
LEAST_RECORDS = 1_024
FEW_UNITS = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What one tracer may see of the hub; the first log is of the tracer's own thread."""

    logs: tuple[Log, ...]
    start_ns: int
    end_ns: int
    done_ns: int  # by then devices were done with the session's work
    registry: Registry
    scopes: Mapping[str, int]
    given: int | None  # key of the model that the user named
    steps: tuple[Mark, ...]  # the user's own
    cost_ns: int
    devices: Watch | None = None
    most_filled: int = MAX_FILLED  # about so many spans that were not traced themselves
    is_last: bool = False  # nobody else needs the devices: wait for what they did
    functions: Mapping[int, str] = field(default_factory=dict)  # compiled ones that were called outside any module
    resumed: Mapping[int, int] = field(default_factory=dict)  # end of a step: when it began, where a pause was before


def assemble(view: View, events: Sequence[Event]) -> Trace:
    """Put together the trace of a view."""
    view.registry.refresh()
    return _Assembly(view).trace(events)


class _Assembly:
    def __init__(self, view: View) -> None:
        self.view = view
        self.looks: dict[Log, Look] = {}
        self.records: dict[Log, Records] = {}
        self.kept: dict[Log, IntArray] = {}  # rows that are not among the records
        self.calls: dict[Log, list[Backward]] = {}
        for log in view.logs:
            look = log.look()
            parts = split(look.table, look.calls, look.kinds, since_ns=view.start_ns)
            shown = [c for c in parts.calls if self._shows(c)]
            self.looks[log], self.calls[log], self.kept[log] = look, shown, parts.kept
            self.records[log] = self._shown_records(look, parts.records)
        used = [look.table[:, KEY] for look in self.looks.values()] + [self._keys(look) for look in self.looks.values()]
        self.used = np.unique(np.concatenate(used))
        self.names: Names = resolve(view.registry.roots, view.registry.facts, self.used, view.given)
        self.names.fqn.update({key: name for key, name in view.functions.items() if key in self.used})
        self.scope_names = {key: name for name, key in view.scopes.items()}
        self.columns = Columns()
        self.carried: dict[int, float] = {}
        self.filled_calls = self.filled_steps = 0

    @staticmethod
    def _keys(look: Look) -> IntArray:
        return np.array([kind[1] for kind in look.kinds.of if kind[0] == "row"], dtype=np.int64)

    def _shown_records(self, look: Look, new: Records) -> Records:
        """Return the records of the view: those folded before, and the log's own, folded as far as memory asks."""
        records, g = join_records((look.records, shifted(new, look.runs, look.units))), 1
        while len(records) > self._most_records(look):
            g *= 2
            coarser = merge(records, g)
            if len(coarser) == len(records) and g > FEW_UNITS:
                break  # runs of a few units between traced steps: no coarser than this
            records = coarser
        inside = (records.start >= self.view.start_ns) & (records.end <= self.view.end_ns)
        return records.take(np.flatnonzero(inside))

    def _most_records(self, look: Look) -> int:
        """Return how many records can be filled without making a trace too long."""
        steps = max(len(look.traced) // 2, 1)
        return max(self.view.most_filled * steps // max(len(look.table), 1), LEAST_RECORDS)

    def _shows(self, call: Backward) -> bool:
        return call.start_ns >= self.view.start_ns and call.end_ns <= self.view.end_ns

    def _shown(self, table: IntArray) -> IntArray:
        return np.flatnonzero((table[:, START] >= self.view.start_ns) & (table[:, END] <= self.view.end_ns))

    def trace(self, events: Sequence[Event]) -> Trace:
        book = BackwardBook(self.looks)
        for number, log in enumerate(self.view.logs):
            self._real(log, number)
            self._light(log, number, book)
            if self.calls[log]:
                book.write(self.columns, self._backward_slot, log, self.calls[log], number)
            self._asleep(log, number)
        carried = book.carry_rel_sd(self._backward_slot)
        arrays: dict[str, Any] = self.columns.arrays()
        steps, calls = self._steps()
        activities, lost = self._activities(steps, calls=calls)
        if self.view.devices is not None:
            steps = self.view.devices.done(steps, self.view.done_ns, calls=calls)
        return Trace(
            slots=tuple(self.columns.slots),
            **arrays,
            steps=tuple((begin, end) for begin, end, _ in steps),
            step_counts=tuple(n for *_, n in steps) if any(n > 1 for *_, n in steps) else (),
            modules=self.names.modules,
            carry_rel_sd=self.carried | carried,
            events=(*events, *self._notes(book), *lost),
            activities=activities,
            cost_s=s_from_ns(self.view.cost_ns),
            windows=sum(c.nodes is not None for calls in self.calls.values() for c in calls),
        )

    def _backward_slot(self, key: int) -> int:
        return self._slot(key, backward=True)

    def _forward_slot(self, key: int) -> int:
        return self._slot(key, backward=False)

    def _slot(self, key: int, *, backward: bool) -> int:
        if key > 0:
            return self.columns.index(self.names.of(key), "backward" if backward else "forward")
        if key <= FIRST_SCOPE_KEY:
            return self.columns.index(self.scope_names[key], "backward" if backward else "other")
        reserved: dict[int, tuple[str, Phase]] = {
            OPTIMIZER_KEY: (OPTIMIZER, "optimizer"),
            DATA_KEY: (DATA, "data"),
            COMMUNICATION_KEY: (COMMUNICATION, "communication"),
            COMPILE_KEY: (COMPILE, "compile"),
        }
        return self.columns.index(*reserved.get(key, (UNATTRIBUTED, "backward" if backward else "forward")))

    def _kept_rows(self, log: Log) -> IntArray:
        table = self.looks[log].table
        rows = table[self.kept[log]]
        return rows[self._shown(rows)]

    def _real(self, log: Log, thread: int) -> None:
        rows = self._kept_rows(log)
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

    def _light(self, log: Log, thread: int, book: BackwardBook) -> None:
        """Add what is known of steps that were not traced: their records as they are, and what fills them."""
        records, kinds = self.records[log], self.looks[log].kinds
        if not len(records):
            return
        slot = np.array([self._kind_slot(kind) for kind in kinds.of], dtype=np.int64)[records.kind]
        own = np.setdiff1d(np.arange(len(records)), steps_among(records, kinds))
        bare = records.take(own)
        self.columns.add(slot[own], bare.start, bare.end, thread=thread, filled=False, calls=bare.count)
        forward = ForwardBook(self.looks[log].table)
        chosen = list(forward.nearest(records, kinds))
        Filler(self.columns, thread, self._forward_slot).fill_records(records, chosen)
        Filler(self.columns, thread, self._backward_slot).fill_records(records, book.nearest(records, kinds))
        filled = {int(key) for i, _ in chosen if isinstance(key := kinds.of[int(records.kind[i])][1], int)}
        self.filled_calls += int(records.count[[i for i, _ in chosen]].sum()) if chosen else 0
        self.carried |= forward.carry_rel_sd(self._forward_slot, filled)

    def _asleep(self, log: Log, thread: int) -> None:
        """Add what fills steps of which only the end was noted: whole traced steps."""
        records, kinds = self.records[log], self.looks[log].kinds
        asleep = steps_among(records, kinds)
        if not len(asleep):
            return
        apart = self._slot(COMPILE_KEY, backward=False)
        book = StepBook(self.columns.of_thread(thread), self.looks[log].traced, apart)
        chosen = list(book.nearest(records, kinds))
        if not chosen:
            rest, slot = records.take(asleep), self.columns.index(UNATTRIBUTED, "other")
            self.columns.add(slot, rest.start, rest.end, thread=thread, filled=False, calls=0)
        Filler(self.columns, thread, int).fill_records(records, chosen)
        self.filled_steps += int(records.count[asleep].sum())
        for slot, sd in book.carry_rel_sd().items():
            self.carried[slot] = max(sd, self.carried.get(slot, 0.0))

    def _kind_slot(self, kind: tuple[Any, ...]) -> int:
        if kind[0] == "backward":
            return self.columns.index(UNATTRIBUTED, "backward")
        return self._slot(kind[1], backward=kind[3] >= 0)

    def _steps(self) -> tuple[list[Step], bool]:
        """Return the steps, and whether they are calls of the model, since nothing else marks any."""
        view, log = self.view, self.view.logs[0]
        rows, records = self._kept_rows(log), self.records[log]
        marks = [mark for mark in view.steps if mark[0] <= view.end_ns]
        marks = marks or first_optimizer([look.marks for look in self.looks.values()], view.start_ns, view.end_ns)
        if marks:
            calls = [c.start_ns for c in self.calls[log]]
            starts = np.sort(np.concatenate((rows[:, START], records.start, calls)).astype(np.int64))
            return steps_between(marks, starts, view.start_ns, view.resumed), False
        main = [key for key in self.names.main if key in self.used] or [key for key in view.functions if key > 0]
        calls_of_model = rows[np.isin(rows[:, KEY], main) & (rows[:, TASK] < 0)]
        kinds = [i for i, kind in enumerate(self.looks[log].kinds.of) if kind[0] == "row" and kind[1] in main]
        also = records.take(np.flatnonzero(np.isin(records.kind, kinds)))
        return calls_as_steps(calls_of_model, also), True

    def _activities(self, steps: Sequence[Step], *, calls: bool) -> tuple[tuple[Activity, ...], tuple[Event, ...]]:
        view = self.view
        if view.devices is None:
            return (), ()

        def name_of(key: int) -> str:
            return self.names.of(key) if key > 0 else self.scope_names.get(key, UNATTRIBUTED)

        return view.devices.activities(steps, name_of, calls=calls, last=view.is_last, now_ns=view.done_ns)

    def _notes(self, book: BackwardBook) -> list[Event]:
        end = self.view.end_ns
        total = sum(self.records_of_backward(log) + len(self.calls[log]) for log in self.view.logs)
        notes = []
        if book.mismatched:
            text = f"{book.mismatched} of {total} backward calls are filled from a window of another structure"
            notes.append(Event(end, "info", "TEMPLATE_MISMATCH", "run", text))
        if book.unfilled:
            text = f"{book.unfilled} of {total} backward calls have no window: their layers are not known"
            notes.append(Event(end, "info", "BACKWARD_UNTRACED", "run", text))
        if self.filled_calls:
            text = f"{self.filled_calls} outermost calls were not traced inside: their layers are filled in from others"
            notes.append(Event(end, "info", "CALLS_FILLED", "run", text))
        if self.filled_steps:
            text = f"of {self.filled_steps} steps only the end was noted: their layers are filled in from others"
            notes.append(Event(end, "info", "STEPS_FILLED", "run", text))
        return notes

    def records_of_backward(self, log: Log) -> int:
        """Return how many backward calls the records of a thread stand for."""
        records = self.records[log]
        own = [i for i, kind in enumerate(self.looks[log].kinds.of) if kind[0] == "backward"]
        return int(records.count[np.isin(records.kind, own)].sum())
