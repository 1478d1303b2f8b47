"""Aggregate the outermost spans of steps that were not traced over time, to bound memory. Pure.

A record is one span of such a step (an outermost call, a backward call, an optimizer step, a scope). Records between
two traced steps form a run. In each run, `merge` combines `g` neighbours: per kind one span with their exact total time
and count, laid one after the other from the start of the first. Total times are exact; only the position within the
interval is lost.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.intervals import self_times
from torchwatt.core.meter import IntArray
from torchwatt.tracing.autograd_recorder import EARLIEST_NS, LATEST_NS, NO_MARGINS, HookMargins, widen_in_place
from torchwatt.tracing.log_rows import (  # fmt: skip
    AROUND_KEY,
    COMMUNICATION_KEY,
    COMPILE_KEY,
    DATA_KEY,
    END,
    FAILED_SIZE,
    FIRST_SCOPE_KEY,
    KEY,
    NO_CHANGES,
    NO_STAGE,
    OPTIMIZER_KEY,
    OUTERMOST_TASK,
    PROFILER_KEY,
    SEQ0,
    SEQ1,
    START,
    STEP_KEY,
    TASK,
    UNCOUNTED_COMMUNICATION_KEY,
    BackwardCall,
    stages_at,
)

MAX_KINDS = 8_192  # beyond, calls of one module are of one kind, independent of graph size
ANY_GRAPH = -1
MOST_REGULAR = 8  # maximum number of calls without gradients that may be part of each step


@dataclass(frozen=True, slots=True, eq=False)
class AggregatedSpans:
    """Columns, sorted by start, outer before inner; `kind` is a number of `SpanKinds`."""

    kind: IntArray
    start: IntArray
    end: IntArray
    count: IntArray
    run: IntArray
    unit: IntArray  # number of the outermost record that is or contains this one
    own_ns: IntArray  # the profiler's work in it, which `take_out_own` separates

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, index: IntArray) -> AggregatedSpans:
        """Return some of the records."""
        return AggregatedSpans(*(getattr(self, f.name)[index] for f in fields(self)))


def no_spans() -> AggregatedSpans:
    """Return an empty set of records."""
    return AggregatedSpans(*(np.zeros(0, dtype=np.int64) for _ in fields(AggregatedSpans)))


def concatenate_spans(parts: Sequence[AggregatedSpans]) -> AggregatedSpans:
    """Concatenate records of consecutive stretches."""
    return AggregatedSpans(
        *(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(AggregatedSpans))
    )


def shift_numbers(records: AggregatedSpans, runs: int, units: int) -> AggregatedSpans:
    """Renumber runs and units of records to follow earlier ones."""
    return replace(records, run=records.run + runs, unit=records.unit + units)


class SpanKinds:
    """Numbers of the kinds of records: ("row", key, graph size, task) or ("backward", structure...).

    `stage` has the number of the stage of each kind: records of two stages are of two kinds.
    """

    def __init__(self) -> None:
        self.of: list[tuple[Hashable, ...]] = []
        self.stage: list[int] = []
        self._number: dict[tuple[int, tuple[Hashable, ...]], int] = {}

    def number(self, kind: tuple[Hashable, ...], stage: int = NO_STAGE) -> int:
        """Return the number of a kind in a stage; of a coarser one beyond `MAX_KINDS`."""
        number = self._number.get((stage, kind))
        if number is None:
            if len(self.of) >= MAX_KINDS:
                kind = ("row", kind[1], ANY_GRAPH if kind[2] else 0, kind[3]) if kind[0] == "row" else ("backward",)
            number = self._number.setdefault((stage, kind), len(self.of))
            if number == len(self.of):
                self.of.append(kind)
                self.stage.append(stage)
        return number

    def where(self, *head: Hashable) -> list[int]:
        """Return the numbers of all kinds that begin with `head`."""
        return [i for i, kind in enumerate(self.of) if kind[: len(head)] == head]


@dataclass(frozen=True, slots=True, eq=False)
class LogParts:
    """The parts of a stretch of a log: traced rows and calls unchanged, and records of the rest."""

    kept: IntArray  # indices of rows
    calls: tuple[BackwardCall, ...]
    records: AggregatedSpans
    runs: int  # how many runs ended
    inside: bool  # a call that made a graph is the last of what trains: its step goes on


def split_log(
    table: IntArray,
    calls: Sequence[BackwardCall],
    kinds: SpanKinds,
    *,
    since_ns: int = 0,
    breaks: Sequence[int] = (),
    margins: HookMargins = NO_MARGINS,
    within_step: bool = False,
    stages: IntArray = NO_CHANGES,
) -> LogParts:
    """Separate the traced part of a stretch from the records of the rest.

    Args:
        table: Log table of one thread.
        calls: Its backward calls; light ones must have their structure in `cache["keys"]`.
        kinds: Gets the kinds that occur.
        since_ns: What began earlier is kept: what lay inside it may be folded already.
        breaks: Times that no record is put together across, such as those at which scopes began that are still open.
        margins: What torch does around optimizer steps and backward calls, and the profiler after calls that are
            answered; it is added to theirs.
        within_step: A call that made a graph, and whose step goes on, came before.
        stages: Changes of the thread's stage, as in `stages_at`.
    """
    reserved = (
        OPTIMIZER_KEY, DATA_KEY, COMMUNICATION_KEY, UNCOUNTED_COMMUNICATION_KEY, COMPILE_KEY, PROFILER_KEY, AROUND_KEY,
    )  # fmt: skip
    rows = np.isin(table[:, KEY], reserved) | (table[:, KEY] <= FIRST_SCOPE_KEY)
    rows |= table[:, TASK] <= OUTERMOST_TASK
    rows &= table[:, START] >= since_ns
    light = np.array(
        [call.light and call.nodes is None and call.start_ns >= since_ns for call in calls], dtype=np.bool_
    )
    call_starts = np.array([call.start_ns for call in calls], dtype=np.int64)
    call_ends = np.array([call.end_ns for call in calls], dtype=np.int64)
    rows &= ~_compiled_in(
        table, np.append(table[~rows, START], call_starts[~light]), np.append(table[~rows, END], call_ends[~light])
    )
    starts = np.sort(np.concatenate((table[~rows, START], call_starts[~light])))
    rows &= ~_holds(table[:, START], table[:, END], starts)
    light &= ~_holds(call_starts, call_ends, starts)
    mine, backward = np.flatnonzero(rows), np.flatnonzero(light)
    backward_stage = stages_at(stages, call_starts[backward]).tolist()
    kind = _row_kinds(table[mine], kinds, stages) + [
        kinds.number(("backward", *calls[i].cache["keys"]), stage)
        for i, stage in zip(backward.tolist(), backward_stage, strict=True)
    ]
    start, end = _widen_intervals(table, mine, calls, margins)
    used = np.concatenate((np.arange(len(mine)), len(mine) + backward))
    start, end = start[used], end[used]
    order = np.lexsort((-end, start))
    start, end, numbers = start[order], end[order], np.array(kind, dtype=np.int64)[order]
    kept_rows = table[~rows]
    grown = kept_rows[
        (kept_rows[:, KEY] > 0) & (kept_rows[:, SEQ1] > kept_rows[:, SEQ0]) & (kept_rows[:, TASK] < 0), START
    ]
    ends = np.concatenate((kept_rows[kept_rows[:, KEY] == OPTIMIZER_KEY, START], call_starts[~light]))
    numbers, within_step = _mark_within_step(numbers, start, kinds, (grown, ends), within_step=within_step)
    unit = _units(start, end)
    edges = np.sort(np.concatenate((
        table[~rows, START], table[~rows, END], call_starts[~light], call_ends[~light],
        np.array(breaks, dtype=np.int64),
        _evaluations(start, numbers, unit, kinds),
    )))  # fmt: skip
    run = np.searchsorted(edges, start, side="right")
    around_ns = margins.answer_before_ns + margins.answer_after_ns
    own_ns = (np.append(_are_answers(table[mine]), np.zeros(len(backward), dtype=np.bool_)) * around_ns)[order]
    records = AggregatedSpans(numbers, start, end, np.ones(len(start), dtype=np.int64), run, unit, own_ns)
    return LogParts(
        np.flatnonzero(~rows), tuple(c for c, own in zip(calls, light, strict=True) if not own), records, len(edges),
        within_step,
    )  # fmt: skip


def _evaluations(start: IntArray, kind: IntArray, unit: IntArray, kinds: SpanKinds) -> IntArray:
    """Return where calls that made no graph begin or end, except the same few of them in each step.

    Their number between two steps shows which are an evaluation: no merged record may cross the bounds of one. All
    arguments but the last are columns of records in order.
    """
    if not len(start):
        return start
    sort = np.array([_sort(each) for each in kinds.of], dtype=np.int64)[kind]
    unit_starts = np.flatnonzero(np.diff(unit, prepend=-1))
    unit_sorts = np.maximum.reduceat(sort, unit_starts)  # of each unit
    unit_sorts, unit_starts = unit_sorts[unit_sorts > _NEITHER], unit_starts[unit_sorts > _NEITHER]
    begins = np.flatnonzero(np.diff(unit_sorts, prepend=_NEITHER))
    length = np.diff(np.append(begins, len(unit_sorts)))
    before = np.concatenate(([0, 0], length))[: len(length)]  # of the preceding stretch of the same sort
    odd = (length != before) | (length > MOST_REGULAR)
    either = odd | np.append(odd[1:], True) | np.concatenate(([True], odd[:-1]))
    either[:1] = False  # the first has no predecessor
    return np.asarray(start[unit_starts[begins[either]]], dtype=np.int64)


_NEITHER, _EVALUATES, _TRAINS = range(3)
_WITHIN_STEP = "inside"  # the last part of the kind of a call without a graph, after one in the same step that made one


def lies_within_step(kind: tuple[Hashable, ...]) -> bool:
    """Return whether calls of a kind made no graph and came after a call of the same step that made one."""
    return kind[-1] == _WITHIN_STEP


def _mark_within_step(
    numbers: IntArray,
    start: IntArray,
    kinds: SpanKinds,
    kept_intervals: tuple[IntArray, IntArray],
    *,
    within_step: bool,
) -> tuple[IntArray, bool]:
    """Return the kinds, with separate ones for calls without a graph within a step, and whether the last step goes on.

    Args:
        numbers: The kinds of records, in the order of these.
        start: When each began.
        kinds: Gets the new kinds.
        kept_intervals: Start times, in steps that are not among the records, of calls that made graphs and of
            what comes after such calls.
        within_step: A call that made a graph came before all this.
    """
    of = [kinds.of[number] for number in numbers.tolist()]
    sort = np.array([_sort(kind) for kind in of], dtype=np.int64)
    grows = np.array([sort == _TRAINS and _leads_on(kind) for kind, sort in zip(of, sort, strict=True)], dtype=np.bool_)
    grown = np.sort(np.concatenate((start[grows], kept_intervals[0], np.full(int(within_step), EARLIEST_NS + 1))))
    ends = np.sort(np.concatenate((start[(sort == _TRAINS) & ~grows], kept_intervals[1])))

    def goes_on(t_ns: IntArray) -> NDArray[np.bool_]:
        latest, end = (np.append(EARLIEST_NS, each)[np.searchsorted(each, t_ns)] for each in (grown, ends))
        return np.asarray(latest > end, dtype=np.bool_)

    renumbered = numbers.copy()
    for i in np.flatnonzero((sort == _EVALUATES) & goes_on(start)).tolist():
        renumbered[i] = kinds.number((*of[i], _WITHIN_STEP), kinds.stage[numbers[i]])
    return renumbered, bool(goes_on(np.array([LATEST_NS]))[0])


def _leads_on(kind: tuple[Hashable, ...]) -> bool:
    """Return whether records of a training kind are calls of a module, or the first part of a step."""
    return kind[0] == "row" and isinstance(kind[1], int) and (kind[1] > 0 or (kind[1] == STEP_KEY and kind[2] != 0))


def _sort(kind: tuple[Hashable, ...]) -> int:
    """Return whether records of a kind compute no gradients, train, or neither (data, profiler work)."""
    if kind[0] == "backward" or kind[1] in {STEP_KEY, OPTIMIZER_KEY}:
        return _TRAINS
    if not isinstance(kind[1], int) or kind[1] <= 0:
        return _NEITHER
    if kind[2] == FAILED_SIZE or lies_within_step(kind):
        return _NEITHER
    return _EVALUATES if kind[2] == 0 else _TRAINS


def _compiled_in(table: IntArray, start: IntArray, end: IntArray) -> NDArray[np.bool_]:
    """Return for each row whether it is a compilation within a kept interval, whose template excludes it."""
    compiled = np.zeros(len(table), dtype=np.bool_)
    for i in np.flatnonzero(table[:, KEY] == COMPILE_KEY):
        compiled[i] = ((start <= table[i, START]) & (end >= table[i, END])).any()
    return compiled


def _widen_intervals(
    table: IntArray, mine: IntArray, calls: Sequence[BackwardCall], margins: HookMargins
) -> tuple[IntArray, IntArray]:
    """Return starts and ends of rows and of backward calls, widened by torch's own work around them.

    Those of the calls are stored in their caches too.
    """
    calls_ns = np.array([(call.start_ns, call.end_ns) for call in calls], dtype=np.int64).reshape(-1, 2)
    rows = table[mine]
    bounds = np.concatenate((rows[:, START], calls_ns[:, 0])), np.concatenate((rows[:, END], calls_ns[:, 1]))
    beside = np.ones(len(table), dtype=np.bool_)
    beside[mine[rows[:, KEY] == PROFILER_KEY]] = False
    all_bounds = (
        np.concatenate((table[beside, START], calls_ns[:, 0])),
        np.concatenate((table[beside, END], calls_ns[:, 1])),
    )
    widen_rows(rows, bounds, all_bounds, margins)
    touched = np.isin(calls_ns[:, 0], rows[rows[:, KEY] == PROFILER_KEY, END])
    wide = zip(*(each[len(mine) :].tolist() for each in bounds), strict=True)
    for call, has_own, each in zip(calls, touched.tolist(), wide, strict=True):
        if has_own or "wide" not in call.cache:  # else its profiler work was folded, and moved with it
            call.cache["wide"] = each
    return bounds


def widen_rows(
    rows: IntArray, bounds: tuple[IntArray, IntArray], all_bounds: tuple[IntArray, IntArray], margins: HookMargins
) -> None:
    """Widen optimizer steps and backward calls by torch's own work around them.

    Args:
        rows: Of a log.
        bounds: Starts and ends of the rows, and then of backward calls; changed in place.
        all_bounds: Starts and ends of all spans of the thread but the rows of profiler work.
        margins: To widen by.
    """
    own = np.flatnonzero(rows[:, KEY] == PROFILER_KEY)
    steps = np.flatnonzero((rows[:, KEY] == OPTIMIZER_KEY) & (rows[:, TASK] < 0))  # not inside a backward call
    widen_in_place(bounds, steps, own, all_bounds, (margins.optimizer_before_ns, margins.optimizer_after_ns))
    all_bounds = np.concatenate((all_bounds[0], bounds[0][steps])), np.concatenate((all_bounds[1], bounds[1][steps]))
    calls = np.arange(len(rows), len(bounds[0]))
    widen_in_place(bounds, calls, own, all_bounds, (margins.backward_before_ns, 0.0))
    widen_in_place(bounds, np.flatnonzero(_are_answers(rows)), own, all_bounds, (0.0, margins.answer_after_ns))


def _holds(start: IntArray, end: IntArray, starts: IntArray) -> NDArray[np.bool_]:
    """Return for each interval whether a kept interval begins inside it (not at its own start)."""
    return np.asarray(np.searchsorted(starts, end) > np.searchsorted(starts, start), dtype=np.bool_)


def _are_answers(rows: IntArray) -> NDArray[np.bool_]:
    """Return for each row whether it is an answered call: other outermost calls have profiler work before them."""
    bare = ~np.isin(rows[:, START], rows[rows[:, KEY] == PROFILER_KEY, END])
    return np.asarray(bare & (rows[:, KEY] > 0) & (rows[:, TASK] <= OUTERMOST_TASK), dtype=np.bool_)


def _row_kinds(rows: IntArray, kinds: SpanKinds, stages: IntArray) -> list[int]:
    size = rows[:, SEQ1] - rows[:, SEQ0]
    task = np.minimum(rows[:, TASK], 0)
    # A step of which only the end is recorded may have begun before its stage.
    stage = stages_at(stages, np.where(rows[:, KEY] == STEP_KEY, rows[:, END] - 1, rows[:, START]))
    number, columns = np.zeros(len(rows), dtype=np.int64), (rows[:, KEY], size, task, stage)
    for column in columns:  # column by column: sorting whole rows takes many times as long
        distinct, place = np.unique(column, return_inverse=True)
        number = np.unique(number * len(distinct) + place, return_inverse=True)[1]
    _, examples = np.unique(number, return_index=True)
    kind_rows = np.column_stack(columns)[examples]
    numbers = [kinds.number(("row", *kind), stage) for *kind, stage in kind_rows.tolist()]
    return [numbers[i] for i in number.tolist()]


def _units(start: IntArray, end: IntArray) -> IntArray:
    if not len(start):
        return start
    is_next = start[1:] >= np.maximum.accumulate(end)[:-1]
    return np.concatenate(([0], np.cumsum(is_next)))


def merge_spans(records: AggregatedSpans, g: int) -> AggregatedSpans:
    """Merge records over `g` neighbouring units of a run, by kind; `g` of 1 changes nothing."""
    if g <= 1 or not len(records):
        return records
    own = _own_times(records)
    merged = records.unit // g
    group = np.cumsum((np.diff(records.run, prepend=records.run[:1]) != 0) | (np.diff(merged, prepend=merged[:1]) != 0))
    code = group * (int(records.kind.max()) + 1) + records.kind
    _, starts_of, where = np.unique(code, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(starts_of))  # in order of first appearance
    total = np.bincount(rank[where], own).astype(np.int64)
    count, own_ns = (np.bincount(rank[where], each).astype(np.int64) for each in (records.count, records.own_ns))
    starts_of = np.sort(starts_of)
    begins = np.flatnonzero(np.diff(group[starts_of], prepend=-1))  # the first record of each group
    before = np.cumsum(total) - total
    offset = before - np.repeat(before[begins], np.diff(np.append(begins, len(starts_of))))
    start = np.repeat(records.start[starts_of[begins]], np.diff(np.append(begins, len(starts_of)))) + offset
    return AggregatedSpans(
        records.kind[starts_of], start, start + total, count, records.run[starts_of], merged[starts_of] * g, own_ns
    )


def _own_times(records: AggregatedSpans) -> IntArray:
    if (records.start[1:] >= records.end[:-1]).all():
        return records.end - records.start
    return np.array(self_times(records.start.tolist(), records.end.tolist()), dtype=np.int64)
