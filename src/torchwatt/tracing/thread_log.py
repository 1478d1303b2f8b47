"""The log of one thread: rows appended by the wrappers, their compact form, and folded records."""

from __future__ import annotations

import threading
from array import array
from dataclasses import replace
from itertools import repeat

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.tracing.aggregated_spans import (
    SpanKinds,
    concatenate_spans,
    merge_spans,
    no_spans,
    shift_numbers,
    split_log,
)
from torchwatt.tracing.autograd_recorder import NO_MARGINS, MarginProbe
from torchwatt.tracing.log_rows import (
    ALL_CALLS,
    DATA_KEY,
    END,
    FORWARD_TASK,
    KEY,
    NO_ROWS,
    OUTERMOST_TASK,
    PARTIAL,
    PROFILER_KEY,
    START,
    STEP_KEY,
    TASK,
    BackwardCall,
    LogReader,
    PossibleStepEnd,
    Row,
    keys_of,
    rows_table,
)
from torchwatt.tracing.loop_steps import OptimizerEnds
from torchwatt.tracing.named_parts import OpenNames
from torchwatt.tracing.overhead_budget import ThreadCpuTime, thread_clock
from torchwatt.tracing.shape_samples import ShapeSamples
from torchwatt.tracing.trace_spans import LogSnapshot
from torchwatt.tracing.tracing_policy import StepBatch

MAX_RECORDS = 16_384
MOST_MERGED = 1 << 40
MAX_SKELETONS = 1_024
MAX_CPU_READINGS = 16_384
FEW_ENTRIES = 32
NEVER_NS = 1 << 62
own_ns = thread_clock()


class ThreadLog:
    """Spans of one thread, appended only by that thread; other threads may settle, compact and read it."""

    __slots__ = (
        "_chunks", "_compacted", "_folded_ns", "_g", "_is_inside", "_readers", "_records", "_runs", "_settling",
        "_tail", "_units", "answered", "answers", "asleep_since", "backwards", "before", "call_ns", "calls_asleep",
        "cpu", "cpu_readings", "deaf", "ends", "former", "ident", "in_place", "inside", "kinds", "lead_optimizer",
        "leads_itself", "lock", "margins", "mode", "names", "native", "nodes", "noted", "opened", "optimizer_ends",
        "others", "own_until", "partial", "reducers", "rows", "shapes", "since", "skeletons", "step_end", "stepless",
        "stride", "traced", "tracers", "within_step",
    )  # fmt: skip

    def __init__(self, ident: int, start_ns: int = 0) -> None:
        self.ident = ident
        self.native = threading.get_native_id()  # the thread's id in Kineto
        self.cpu = ThreadCpuTime(self.native)
        self.mode = ALL_CALLS
        self.stride = StepBatch(start_ns)
        self.lead_optimizer: int | None = None  # its steps are the steps of this thread
        self.others: dict[int, PossibleStepEnd] = {}  # the latest step of each other optimizer
        self.rows, self.shapes = list[Row](), ShapeSamples()
        self.backwards: list[BackwardCall] = []
        self.before: BackwardCall | None = None  # the latest backward call with a known structure
        self.partial = False  # calls since the latest backward call were recorded by bounds only
        self.since = 0  # row index after the latest backward call
        self.reducers: set[int] = set()  # DDP reducers prepared since then, for the next backward call
        self.ends: list[tuple[int, int]] = []  # optimizer steps: key, end_ns
        self.noted: list[Row] = []  # ends of `FastPath` steps, and calls without gradients, not settled yet
        # Calls without gradients that may still be recorded before the next decision, and those since the last one.
        self.answers = self.answered = 0
        self.optimizer_ends = OptimizerEnds()  # earlier ones
        self.opened: dict[int, int] = {}  # optimizer steps in progress: key -> start_ns
        self.names = OpenNames()
        self.stepless = True  # neither optimizer, backward call nor user marks ends of steps: outermost calls do
        self.step_end = 0  # of the latest step
        self.asleep_since = NEVER_NS  # when the latest step began, if only its end was recorded
        self.traced = array("q")  # start and end of each traced step
        self.skeletons = array("q")  # start and end of steps recorded by bounds, as templates for those by end
        self.cpu_readings = array("q")  # times, and this thread's CPU time at each, at bounds of outermost spans
        self.nodes: dict[int, int] = {}  # end_ns of a step -> number of autograd nodes made outside backward calls
        self.deaf = False  # the forward pass before the latest backward call was not recorded
        self.leads_itself = False  # backward calls come without one: a traced step has shown it
        self.calls_asleep = 0  # outermost calls since the latest end of a step, in mode ASLEEP; see `FastPath`
        self.within_step = 0  # number of calls without gradients that may belong to the step that a call began
        self.inside = False  # inside an outermost call, if its class is patched
        self.tracers: list[tuple[object, int]] = []  # tracers started on this thread: (tracer, start_ns)
        self.former: list[tuple[int, int]] = []  # start_ns and end_ns of stopped tracers
        self.kinds = SpanKinds()
        self.call_ns = 0.0  # what logging one call costs
        self.margins = NO_MARGINS  # of torch's own work around recorded spans
        self.in_place = MarginProbe()
        self.own_until = 0  # end of the latest profiler work
        self._chunks: list[IntArray] = []
        self._compacted = 0
        self._records = no_spans()
        self._g = 1
        self._runs = self._units = self._tail = self._folded_ns = 0
        self._is_inside = False  # what was folded ends within a step, after a call that made a graph
        self._settling = False
        self._readers: list[LogReader] = []
        self.lock = threading.RLock()  # reentrant: a finaliser of the user may run inside

    def claimed(self, since_ns: int) -> bool:
        """Return whether a tracer ran on this thread after a time: its spans then belong to that tracer only."""
        return bool(self.tracers) or any(end > since_ns for _, end in self.former)

    def takes_reducers(self) -> bool:
        """Return whether DDP reduces gradients in the backward call that begins, and mark the reducer as used.

        With several models it is unknown which of them a call belongs to: each of their calls counts as reducing.
        """
        reduces = bool(self.reducers)
        if len(self.reducers) == 1:
            self.reducers.clear()
        return reduces

    def backward_ended(self, call: BackwardCall) -> None:
        """Log a backward call; if calls before it were not logged, its structure is marked as partial."""
        if self.partial:
            call.cache["keys"] = ((PARTIAL, 0),)
        self.backwards.append(call)
        self.since, self.partial = self.total(), False

    def settle(self) -> None:
        """Log the recorded ends of steps and calls, before any later row."""
        if not self.noted:  # an end leaves the list when it is booked
            return
        with self.lock:
            if self._settling:  # reentered from a finaliser or a signal handler
                return
            self._settling = True
            try:
                if len(self.noted) > FEW_ENTRIES:
                    self._settle_many()
                while self.noted:  # one by one: an interrupt may come between any two lines
                    row = self.noted[0]
                    if row[END] > self.step_end:
                        self._settle_one(row)
                    del self.noted[0]
            finally:
                self._settling = False

    def _settle_one(self, row: Row) -> None:
        if row[KEY] == STEP_KEY:
            self.end_asleep(row[END], OUTERMOST_TASK - row[TASK])
            if self.lead_optimizer is not None:
                self.ends.append((self.lead_optimizer, row[END]))
        else:
            self.rows.append(row)
            self.step_end, self.asleep_since = row[END], NEVER_NS  # not part of the following step

    def _settle_many(self) -> None:
        """Log many entries at once."""
        self._compact()
        noted = list(self.noted)
        rows = rows_table([row for row in noted if row[END] > self.step_end])
        last_ns = noted[-1][END]
        steps = rows[:, KEY] == STEP_KEY
        rows[steps, START] = np.concatenate(([self.step_end], rows[:, END]))[:-1][steps]
        done = len(self._chunks), len(self.ends)
        try:
            self._chunks.append(rows)
            if self.lead_optimizer is not None:
                self.ends.extend(zip(repeat(self.lead_optimizer), rows[steps, END].tolist(), strict=False))
            self._compacted += len(rows)
            self.step_end = max(self.step_end, last_ns)  # these ends now count as logged
            self.asleep_since = int(rows[-1, START]) if len(rows) and steps[-1] else NEVER_NS
        except BaseException:  # an interrupt: undo
            if self.step_end < last_ns:
                del self._chunks[done[0] :], self.ends[done[1] :]
                self._compacted = sum(len(chunk) for chunk in self._chunks)
            raise
        del self.noted[: len(noted)]

    def evaluates(self) -> bool:
        """Return whether the latest entry is a module call or data loading, rather than the end of a step."""
        latest = self.noted or self.rows[-2:]
        key = next((row[KEY] for row in reversed(latest) if row[KEY] != PROFILER_KEY), STEP_KEY)
        return key > 0 or key == DATA_KEY

    def read_cpu(self, t_ns: int) -> None:
        """Record the CPU time of the calling thread; when the list is full, every second entry is dropped."""
        if len(self.cpu_readings) >= 2 * MAX_CPU_READINGS:
            pairs = np.frombuffer(self.cpu_readings, dtype=np.int64).reshape(-1, 2)[::2].copy()
            self.cpu_readings = array("q", pairs.ravel().tolist())
        if not self.cpu_readings or t_ns > self.cpu_readings[-2]:
            self.cpu_readings.extend((t_ns, own_ns()))

    def add_own(self, began_ns: int, end_ns: int, number: int, task: int = FORWARD_TASK) -> None:
        """Log profiler work, without what was logged before.

        Args:
            began_ns: When it began.
            end_ns: When it ended.
            number: Autograd's sequence number, which such work does not change.
            task: `OUTERMOST_TASK` beside a call of which only the bounds are logged.
        """
        began_ns = max(began_ns, self.own_until)
        if began_ns < end_ns:
            self.own_until = end_ns
            self.stride.own_rows += 1
            self.rows.append((PROFILER_KEY, began_ns, end_ns, number, number, task))

    def add_skeleton(self, start_ns: int, end_ns: int) -> None:
        """Record a step whose bounds serve as a template; when the list is full, every second entry is dropped."""
        if len(self.skeletons) >= 2 * MAX_SKELETONS:
            pairs = np.frombuffer(self.skeletons, dtype=np.int64).reshape(-1, 2)[::2].copy()
            self.skeletons = array("q", pairs.ravel().tolist())
            kept_ends = {*pairs[:, 1].tolist(), *self.traced[1::2]}
            self.nodes = {end: nodes for end, nodes in self.nodes.items() if end in kept_ends}
        self.skeletons.extend((start_ns, end_ns))

    def end_asleep(self, end_ns: int, signature: int = 0, *, goes_on: bool = False) -> None:
        """Log a step of which only the end is known, and which of the counted modules ran; or a part that goes on."""
        start_ns, self.step_end = self.step_end, end_ns
        self.asleep_since = NEVER_NS if goes_on else start_ns
        self.rows.append((STEP_KEY, start_ns, end_ns, 0, int(goes_on), OUTERMOST_TASK - signature))

    def total(self) -> int:
        """Return the number of rows."""
        with self.lock:
            self.settle()
            return self._compacted + len(self.rows)

    def kept(self) -> int:
        """Return the number of rows and records in memory."""
        with self.lock:
            return self.total() + len(self._records)

    def compact(self) -> None:
        """Move the tuples into an array: 48 bytes per row instead of about 300."""
        with self.lock:
            self.settle()
            self._compact()

    def _compact(self) -> None:
        n = len(self.rows)
        if n:
            self._chunks.append(rows_table(self.rows[:n]))
            del self.rows[:n]
            self._compacted += n

    def clear(self) -> None:
        """Clear all entries."""
        with self.lock:
            for held in (self.rows, self.backwards, self._chunks, self.ends, self.noted):
                held.clear()
            self.optimizer_ends = OptimizerEnds()
            self._records, self.before, self.since = no_spans(), None, 0
            self._compacted = self._tail = 0

    def table(self) -> IntArray:
        """Return all rows so far, in order of their ends."""
        self.compact()
        with self.lock:
            if len(self._chunks) > 1:
                self._chunks = [np.concatenate(self._chunks)]
            return self._chunks[0] if self._chunks else NO_ROWS

    def look(self) -> LogSnapshot:
        """Return a copy that is independent of later appends and folds."""
        with self.lock:
            calls = tuple(self.backwards)  # first, so that all rows that a call refers to are in the table
            table = self.table()
            for call in calls:
                if not call.is_filed:
                    keys_of(table, call, self.before)
                    self.before, call.is_filed = call, True
            self.book_ends()
            optimizers = tuple(self.optimizer_ends.entries())
            return LogSnapshot(
                table,
                calls,
                self._records,
                self._runs,
                self._units,
                self.kinds,
                tuple(self.traced),
                tuple(self.skeletons),
                np.array(self.cpu_readings[:], dtype=np.int64).reshape(-1, 2),
                optimizers,
                dict(self.nodes),
                self._is_inside,
                self.names.stages(),
                self._folded_ns,
            )

    def book_ends(self) -> None:
        """Move ends of optimizer steps to `optimizer_ends` and to the readers."""
        ends, self.ends = self.ends, []
        self.optimizer_ends.extend(ends)
        for reader in self._readers:
            reader.ended(ends)

    def reader(self, *, from_start: bool) -> LogReader:
        """Return a reader of later entries, or of all entries."""
        with self.lock:
            latest_ns = self.backwards[-1].end_ns if self.backwards and not from_start else 0
            reader = LogReader(self, 0 if from_start else self.total(), latest_ns)
            self.book_ends()
            self._readers.append(reader)
            return reader

    def forget_reader(self, reader: LogReader) -> None:
        """Remove a reader."""
        with self.lock:
            self._readers = [each for each in self._readers if each is not reader]

    def rows_from(self, position: int) -> list[IntArray]:
        """Return the compacted rows from a position of the table on, in parts."""
        parts: list[IntArray] = []
        at = self._compacted
        for chunk in reversed(self._chunks):
            if at <= position:
                break
            at -= len(chunk)
            parts.insert(0, chunk[max(position - at, 0) :])
        return parts

    def recent(self) -> list[Row]:
        """Return the rows since the latest decision, compacted or not."""
        with self.lock:
            first_row = self.stride.first_row - (self.total() - len(self.rows))
            if first_row >= 0:
                return self.rows[first_row:]
            compact = [row for rows in self.rows_from(self.stride.first_row) for row in rows.tolist()]
            return [*map(tuple, compact), *self.rows]

    def fold(self, now_ns: int) -> int:
        """Replace rows of untraced steps by records, coarser as they grow; to be called outside module calls.

        Returns:
            Number of neighbouring units that a record stands for; 1: not merged.
        """
        with self.lock:
            snapshot, tail = self.look(), self._tail
            breaks = [*self.names.starts_ns(), *self.skeletons]
            # Rows after the latest end of a step may belong to the next one, and are folded with it.
            until_ns = self.step_end or now_ns
            later = [call for call in snapshot.calls if call.end_ns > until_ns]
            calls = [call for call in snapshot.calls if self._folded_ns <= call.start_ns and call.end_ns <= until_ns]
            body = snapshot.table[tail:]
            late = len(body) - int(np.searchsorted(body[:, END], until_ns, side="right"))
            body = body[: len(body) - late]
            parts = split_log(
                body, calls, self.kinds,
                since_ns=self._folded_ns, breaks=breaks, margins=self.margins, within_step=self._is_inside,
                stages=snapshot.stages,
            )  # fmt: skip
            self._is_inside = parts.inside
            self._records = concatenate_spans((self._records, shift_numbers(parts.records, self._runs, self._units)))
            self._runs += parts.runs
            self._units += len(parts.records)
            while len(self._records) > MAX_RECORDS:
                self._g = min(2 * self._g, MOST_MERGED)
                self._records = merge_spans(self._records, self._g)
                if self._g == MOST_MERGED:  # traced steps separate the records: the limit of spans makes those rarer
                    break
            older = snapshot.calls[: len(snapshot.calls) - len(calls) - len(later)]
            kept_rows = np.arange(tail), parts.kept + tail, np.arange(len(snapshot.table) - late, len(snapshot.table))
            self._drop(snapshot.table, np.concatenate(kept_rows), (*older, *parts.calls, *later))
            self._tail -= late
            self._folded_ns = until_ns
            return self._g

    def _drop(self, table: IntArray, kept_rows: IntArray, calls: tuple[BackwardCall, ...]) -> None:
        for reader in self._readers:
            reader.keep()
            reader.moved(len(kept_rows))
        mask = np.zeros(len(table) + 1, dtype=np.int64)
        mask[kept_rows + 1] = 1
        place = np.cumsum(mask)  # old position -> new position
        self._chunks = [table[kept_rows]]
        self._compacted = self._tail = len(kept_rows)

        def moved(call: BackwardCall) -> BackwardCall:
            since, first_row, end_row = (int(place[i]) for i in (call.since, call.first, call.last))
            return replace(call, since=since, first=first_row, last=end_row)

        self.backwards[:] = [moved(call) for call in calls]
        self.before = None if self.before is None else moved(self.before)
        self.since = int(place[self.since])
        self.stride.first_row = int(place[self.stride.first_row])
