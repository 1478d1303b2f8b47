"""Rows of the user's scopes and stages in the logs of threads."""

from __future__ import annotations

import sys
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from torchwatt.core.intervals import cut_crossings, top_level
from torchwatt.core.meter import IntArray, Severity
from torchwatt.core.terms import UNATTRIBUTED
from torchwatt.tracing.log_rows import (
    ALL_CALLS,
    END,
    FIRST_SCOPE_KEY,
    KEY,
    NO_STAGE,
    OFF,
    START,
    STEP_ENDS,
    TASK,
    BackwardCall,
    OpenStage,
    SignatureTable,
)  # fmt: skip
from torchwatt.tracing.patches import graph_task_id, sequence_nr

if TYPE_CHECKING:
    from torchwatt.tracing.aggregated_spans import AggregatedSpans
    from torchwatt.tracing.fast_path import FastPath
    from torchwatt.tracing.module_registry import ModuleRegistry
    from torchwatt.tracing.thread_log import ThreadLog
    from torchwatt.tracing.trace_spans import LogSnapshot

NOT_LOGGED = -1


class OpenNames:
    """The scopes and stages that are open on one thread, and the changes of its stage."""

    __slots__ = ("_changes", "scopes", "staged")

    def __init__(self) -> None:
        self.scopes: list[tuple[int, str]] = []  # start and name of each
        self.staged: list[OpenStage] = []
        self._changes = array("q")  # times, and the number of the stage after each; 32 bytes for each stage

    def starts_ns(self) -> list[int]:
        """Return when the open ones began."""
        return [*(start_ns for start_ns, _ in self.scopes), *(stage.start_ns for stage in self.staged)]

    def stage_changed(self, t_ns: int) -> None:
        """Record a change to the innermost stage that is open."""
        self._changes.extend((t_ns, self.staged[-1].number if self.staged else NO_STAGE))

    def stages(self) -> IntArray:
        """Return the changes of the stage, as `stages_at` takes them."""
        return np.array(self._changes[:], dtype=np.int64).reshape(-1, 2)


class NamingContext(Protocol):
    """The attributes of the hub that are used here."""

    quiet: FastPath
    registry: ModuleRegistry
    signatures: SignatureTable
    clock_ns: Callable[[], int]
    force_rows: int

    def log(self) -> ThreadLog:
        """Return this thread's log."""

    def look_closer(self) -> None:
        """Request a full trace: new work begins."""

    def overflow(self, log: ThreadLog) -> None:
        """Compact a log that has grown too long within a step."""

    def note(self, severity: Severity, code: str, message: str) -> None:
        """Record an event, once per code."""


class NamedParts:
    """Writes scopes and stages to the logs.

    A scope is a row with a key below those of all modules. A stage is such a row, for time in which nothing else was
    recorded, and two changes in `OpenNames`, by which other rows get their stage.
    """

    def __init__(self, host: NamingContext) -> None:
        self._host = host
        self._lock = threading.RLock()  # reentrant: a signal handler of the user may open a scope
        self.scopes: dict[str, int] = {}  # key of each, by name
        self.stage_rows: dict[tuple[str, int], int] = {}  # key, by the scope around it and the stage's number
        self.stages: dict[str, int] = {}  # number of each stage, by name
        self._entered: dict[int, int] = {}  # how often each stage began
        self._stand_ins: dict[int, object] = {}  # by key, an object whose id stands for the row in signatures

    def scope_key(self, name: str) -> int:
        """Return the key of a user's scope; equal names share one."""
        with self._lock:
            return self.scopes.setdefault(name, self._next_key())

    def _next_key(self) -> int:
        return FIRST_SCOPE_KEY - len(self.scopes) - len(self.stage_rows)

    def _count(self, key: int) -> None:
        """Have a new kind of row counted in steps of which only the end is recorded, and trace the next step."""
        with self._lock:
            stand_in = self._stand_ins.setdefault(key, object())
            self._host.registry.by_id[id(stand_in)] = key
            self._host.quiet.scopes.add(id(stand_in))
            self._host.signatures.count_scope(key)
        self._host.look_closer()

    def scope_begins(self, name: str) -> tuple[ThreadLog, str, int, int, int]:
        """Open a user's scope; pass the result to `scope_ended`."""
        log, start = self._host.log(), self._host.clock_ns()
        key = self.scope_key(name)
        if key not in self._stand_ins:
            self._count(key)
        if log.mode != ALL_CALLS and (log.inside or self._host.quiet.inside == log.ident):
            start = NOT_LOGGED  # nested inside an outermost call: filled in
        else:
            log.names.scopes.append((start, name))
        return log, name, sequence_nr(), graph_task_id(), start

    def scope_ended(self, begun: tuple[ThreadLog, str, int, int, int]) -> None:
        """Log a user's scope on the thread where it began."""
        log, name, seq, task, start = begun
        if start != NOT_LOGGED and log.mode != OFF and (start, name) in log.names.scopes:
            log.names.scopes.remove((start, name))
            next_number = sequence_nr() if log is self._host.log() else seq
            self._log_row(log, self.scopes[name], start, (seq, next_number, task))

    def _log_row(self, log: ThreadLog, key: int, start_ns: int, numbers: tuple[int, int, int]) -> int:
        """Log a row that ends now, with autograd's numbers; return its end."""
        log.settle()
        # What began in a step of which only the end is recorded is filled in from a step with the same scopes.
        if log.mode == STEP_ENDS and start_ns >= log.step_end:
            if self._host.quiet.alone:
                self._host.quiet.called.append(id(self._stand_ins[key]))
            return self._host.clock_ns()
        if log.asleep_since <= start_ns < log.step_end:  # around the optimizer's step, which has ended the loop's step
            return self._host.clock_ns()
        if len(log.rows) > self._host.force_rows:
            self._host.overflow(log)
        end_ns = self._host.clock_ns()
        log.rows.append((key, start_ns, end_ns, *numbers))
        return end_ns

    def stage_begins(self, name: str) -> tuple[ThreadLog, OpenStage] | None:
        """Open a stage; pass the result to `stage_ended`. None: inside the call of a module there are no stages."""
        start_ns, host, log = self._host.clock_ns(), self._host, self._host.log()
        if log.inside or host.quiet.inside == log.ident or host.registry.enclosed(sys._getframe(1)):
            text = f"the stage {name!r} was opened inside a module's call: its joules are in the stage around that call"
            host.note("info", "STAGE_INSIDE_CALL", text)
            return None
        with self._lock:
            number = self.stages.setdefault(name, len(self.stages) + 1)
            around = log.names.scopes[-1][1] if log.names.scopes else UNATTRIBUTED
            key = self.stage_rows.setdefault((around, number), self._next_key())
            times = self._entered[number] = self._entered.get(number, 0) + 1
        if key not in self._stand_ins:
            self._count(key)
        elif not times & (times - 1):  # the 2nd, 4th, 8th ...: a rare stage is traced as well
            host.look_closer()
        stage = OpenStage(number, key, start_ns)
        log.names.staged.append(stage)
        log.names.stage_changed(stage.start_ns)
        return log, stage

    def stage_ended(self, begun: tuple[ThreadLog, OpenStage]) -> None:
        """Log a stage on the thread where it began."""
        log, stage = begun
        if log.mode != OFF and stage in log.names.staged:
            log.names.staged.remove(stage)
            number = sequence_nr()
            end_ns = self._log_row(log, stage.key, stage.start_ns, (number, number, graph_task_id()))
            log.names.stage_changed(end_ns)


def uncross_scopes(start: IntArray, end: IntArray, scopes: IntArray, calls: Sequence[BackwardCall]) -> None:
    """Shorten, in place, the scopes among spans that end after a span, or a backward call, in which they began.

    Args:
        start: Starts of spans.
        end: Their ends.
        scopes: Indices of the scopes.
        calls: Backward calls of the same thread.
    """
    if not len(scopes):
        return
    all_starts = np.concatenate((start, np.array([c.start_ns for c in calls], dtype=np.int64)))
    all_ends = np.concatenate((end, np.array([c.end_ns for c in calls], dtype=np.int64)))
    starts, ends = np.sort(all_starts), np.sort(all_ends)
    began = np.searchsorted(starts, end[scopes]) - np.searchsorted(starts, start[scopes], side="right")
    ended = np.searchsorted(ends, end[scopes]) - np.searchsorted(ends, start[scopes], side="right")
    suspects = scopes[began != ended]  # beginnings and ends inside a span must be equal in number
    cut_crossings(all_starts, all_ends, suspects)
    end[suspects] = all_ends[suspects]


def scopes_in_steps(
    snapshot: LogSnapshot, kept_rows: IntArray, records: AggregatedSpans, scopes: frozenset[int]
) -> Iterator[tuple[int, int, int]]:
    """Yield the recorded scopes that lie within a step and outside of module calls: key, end_ns, how often.

    Args:
        snapshot: Of a thread's log.
        kept_rows: Indices of the rows that are not among the records.
        records: The others.
        scopes: Keys of the user's scopes.
    """
    if not scopes:
        return
    bounds = np.array((*snapshot.traced, *snapshot.skeletons), dtype=np.int64).reshape(-1, 2)
    step_starts = np.sort(bounds[:, 0])

    def begins_ns(end_ns: IntArray) -> IntArray:
        return np.append(step_starts, 0)[np.searchsorted(step_starts, end_ns) - 1]

    rows = snapshot.table[kept_rows]
    calls = rows[(rows[:, KEY] > 0) & (rows[:, TASK] < 0)]
    rows = rows[np.isin(rows[:, KEY], list(scopes)) & (rows[:, TASK] < 0)]
    top = calls[top_level(calls[:, START], calls[:, END])]
    around = np.searchsorted(top[:, START], rows[:, START], side="right") - 1
    is_outside = np.append(top[:, END], 0)[around] <= rows[:, START]
    is_inside_step = rows[:, START] >= begins_ns(rows[:, END])
    yield from ((key, end, 1) for key, end in rows[is_outside & is_inside_step][:, [KEY, END]].tolist())
    of = snapshot.kinds.of
    for i in np.flatnonzero(records.start >= begins_ns(records.end)).tolist():
        kind = of[int(records.kind[i])]
        if kind[0] == "row" and isinstance(kind[1], int) and kind[1] in scopes:
            yield kind[1], int(records.end[i]), int(records.count[i])
