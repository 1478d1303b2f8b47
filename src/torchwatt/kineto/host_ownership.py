"""Find the owner of an instant on a host thread: module, autograd node, optimizer, loader; else a named range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.errors import TraceError
from torchwatt.core.intervals import NO_INDEX, IntervalNest, nest_intervals
from torchwatt.core.meter import IntArray
from torchwatt.core.terms import Phase, Slot
from torchwatt.kineto.joined_trace import OUTCOME_CODES
from torchwatt.kineto.kineto_trace import ANNOTATION, MODULE, OWN, KinetoTrace
from torchwatt.kineto.trace_labels import (
    COMPILED,
    NODE_PREFIX,
    is_scope,
    module_paths,
    own_slot,
    reserved_slot,
    scope_name,
    stage_name,
)


@dataclass(frozen=True, slots=True, eq=False)
class RecordedStages:
    """When threads were in which stage: columns of equal length, threads and times as in `RecordedRanges`.

    Of one thread, intervals are nested or disjoint; `stage` points into `names`.
    """

    thread: IntArray
    start_ns: IntArray
    end_ns: IntArray
    stage: IntArray
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class RecordedRanges:
    """Columns of equal length, in order of the ends of calls (of two equal ranges the first is the inner one).

    `thread` is the operating system's number, times are unix nanoseconds like the trace's, `[seq0, seq1)` are the
    sequence numbers assigned during the call, and `slot` points into `slots`. Where the session recorded `stages`,
    those that the trace names do not count.
    """

    thread: IntArray
    start_ns: IntArray
    end_ns: IntArray
    seq0: IntArray
    seq1: IntArray
    slot: IntArray
    slots: tuple[Slot, ...] = ()
    stages: RecordedStages | None = None

    def __post_init__(self) -> None:
        if len({len(c) for c in (self.thread, self.start_ns, self.end_ns, self.seq0, self.seq1, self.slot)}) > 1:
            raise TraceError("columns of recorded ranges differ in length")

    def on(self, trace: KinetoTrace, number_of: Callable[[Slot], int]) -> tuple[IntArray, IntArray]:
        """Return each range's thread as numbered in the trace, and its slot as numbered by `number_of`."""
        numbers = np.array([number_of(slot) for slot in self.slots] or [NO_INDEX], dtype=np.int64)
        return _thread_codes(trace, self.thread), numbers[self.slot]


def _thread_codes(trace: KinetoTrace, thread: IntArray) -> IntArray:
    """Return the numbers that the trace has for the operating system's threads."""
    codes = {tid: code for code, tid in enumerate(trace.threads)}
    # A thread that is not in the trace launched nothing: any unused number is suitable.
    return np.array([codes.get(tid, -2 - i) for i, tid in enumerate(thread.tolist())], dtype=np.int64)


_EMPTY_COLUMN = np.zeros(0, dtype=np.int64)
NO_RANGES = RecordedRanges(_EMPTY_COLUMN, _EMPTY_COLUMN, _EMPTY_COLUMN, _EMPTY_COLUMN, _EMPTY_COLUMN, _EMPTY_COLUMN)


_NODE = -2  # in `slot`: an autograd node, whose owner is found by its sequence number


class SlotIndex:
    """Numbers slots."""

    def __init__(self) -> None:
        self.numbers: dict[Slot, int] = {}

    def __call__(self, slot: Slot) -> int:
        """Return a slot's number, a new one if it has none."""
        return self.numbers.setdefault(slot, len(self.numbers))

    def in_phase(self, numbers: IntArray, phase: Phase) -> IntArray:
        """Return the slots of the same names in another phase; -1 is kept."""
        slots = tuple(self.numbers)
        used = np.unique(numbers[numbers != NO_INDEX])
        change = np.full(len(slots) + 1, NO_INDEX, dtype=np.int64)
        change[used] = [self(Slot(slots[i].fqn, phase)) for i in used]
        return change[numbers]


@dataclass(frozen=True, slots=True, eq=False)
class HostOwnership:
    """Intervals that own launches inside them, the innermost first; and `scopes`, which own the others.

    `node` is each claim's autograd node (place in `nodes`, rows of the trace's operators), or -1. Intervals of `stages`
    are stages of their thread; `stage` points into `stage_names`.
    """

    book: SlotIndex
    tree: IntervalNest
    slot: IntArray
    outcome: IntArray
    node: IntArray
    nodes: IntArray
    scopes: IntervalNest
    scope_slot: IntArray
    paths: dict[int, str]
    labels: str  # "own", "module", "scope", "none": the best kind of label in the trace
    compiled: IntervalNest
    compiled_name: IntArray
    stages: IntervalNest
    stage: IntArray
    stage_names: tuple[str, ...]
    _is_node: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    def at(self, thread: IntArray, t_ns: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Return slot, outcome and autograd node (place in `nodes`) at instants; -1: none.

        An autograd node has no slot yet; a module called inside one is recomputed.
        """
        place = self.tree.at(thread, t_ns)
        slot, outcome, node = (np.append(column, NO_INDEX)[place] for column in (self.slot, self.outcome, self.node))
        module = (slot >= 0) & (outcome == OUTCOME_CODES["module-forward"])
        recomputed = module & (self.tree.climb(np.where(module, place, NO_INDEX), self._is_node) != NO_INDEX)
        slot = np.where(recomputed, self.book.in_phase(np.where(recomputed, slot, NO_INDEX), "backward"), slot)
        outcome = np.where(recomputed, OUTCOME_CODES["recompute"], outcome)
        return slot, outcome, node

    def node_at(self, thread: IntArray, t_ns: IntArray) -> IntArray:
        """Return the autograd node (place in `nodes`) around each instant, -1 outside; modules may lie between."""
        return np.append(self.node, NO_INDEX)[self.tree.climb(self.tree.at(thread, t_ns), self._is_node)]

    def stage_at(self, thread: IntArray, t_ns: IntArray) -> IntArray:
        """Return the innermost stage (place in `stage_names`) of threads at instants, -1 for none."""
        return np.append(self.stage, NO_INDEX)[self.stages.at(thread, t_ns)]

    def scope_at(self, thread: IntArray, t_ns: IntArray) -> IntArray:
        """Return the slot of the innermost named range, -1 outside."""
        return np.append(self.scope_slot, NO_INDEX)[self.scopes.at(thread, t_ns)]


def host_ownership(trace: KinetoTrace, live: RecordedRanges = NO_RANGES, stages: Sequence[str] = ()) -> HostOwnership:
    """Collect the claims on the trace's host threads; `stages` are names of annotations, as `stage_name` takes them."""
    book, ranges = SlotIndex(), trace.ranges
    paths = module_paths(trace)
    slots, outcomes = _named_slots(trace, book, paths)
    slot, outcome = slots[ranges.name], outcomes[ranges.name]
    claiming = np.flatnonzero(slot >= 0)
    nodes = np.flatnonzero(_names_with_prefix(trace, NODE_PREFIX)[trace.ops.name])
    live_thread, live_slot = live.on(trace, book)
    columns = [
        (ranges.thread[claiming], ranges.start_ns[claiming], ranges.end_ns[claiming]),
        (trace.ops.thread[nodes], trace.ops.start_ns[nodes], trace.ops.end_ns[nodes]),
        (live_thread, live.start_ns, live.end_ns),
    ]
    thread, start, end = (np.concatenate(column) for column in zip(*columns, strict=True))
    none = np.full(len(claiming), NO_INDEX), np.full(len(live_slot), NO_INDEX)
    node = np.concatenate((none[0], np.arange(len(nodes)), none[1])).astype(np.int64)
    forward = np.full(len(live_slot), OUTCOME_CODES["module-forward"])
    stage_of = [stage_name(name, stages) for name in trace.names]
    is_stage = np.array([*(stage is not None for stage in stage_of), False])[ranges.name] & (ranges.kind == ANNOTATION)
    scope = np.flatnonzero(_scope_names(trace)[ranges.name] & (ranges.kind == ANNOTATION) & ~is_stage)
    staged = live.stages or _annotated_stages(trace, stage_of, np.flatnonzero(is_stage))
    stage_thread = _thread_codes(trace, staged.thread) if live.stages is not None else staged.thread
    compiled = np.flatnonzero(_compiled_names(trace)[ranges.name])
    return HostOwnership(
        book=book,
        tree=nest_intervals(thread, start, end),
        slot=np.concatenate((slot[claiming], np.full(len(nodes), _NODE), live_slot)).astype(np.int64),
        outcome=np.concatenate((outcome[claiming], np.full(len(nodes), NO_INDEX), forward)).astype(np.int64),
        node=node,
        nodes=nodes,
        scopes=nest_intervals(ranges.thread[scope], ranges.start_ns[scope], ranges.end_ns[scope]),
        scope_slot=_scope_slots(trace, book, ranges.name[scope]),
        paths=paths,
        labels=_best_labels(ranges.kind, live, len(scope)),
        compiled=nest_intervals(ranges.thread[compiled], ranges.start_ns[compiled], ranges.end_ns[compiled]),
        compiled_name=ranges.name[compiled],
        stages=nest_intervals(stage_thread, staged.start_ns, staged.end_ns),
        stage=staged.stage,
        stage_names=staged.names,
        _is_node=node != NO_INDEX,
    )


def _annotated_stages(trace: KinetoTrace, stage_of: Sequence[str | None], places: IntArray) -> RecordedStages:
    """Return the annotations that name stages; threads are the trace's numbers."""
    ranges = trace.ranges
    numbers: dict[str, int] = {}
    stage = [numbers.setdefault(stage_of[code] or "", len(numbers)) for code in ranges.name[places].tolist()]
    columns = ranges.thread[places], ranges.start_ns[places], ranges.end_ns[places]
    return RecordedStages(*columns, np.array(stage, dtype=np.int64), tuple(numbers))


def _named_slots(trace: KinetoTrace, book: SlotIndex, paths: dict[int, str]) -> tuple[IntArray, IntArray]:
    """Return slot and outcome by name code, -1 for names that claim nothing."""
    slots = np.full(len(trace.names) + 1, NO_INDEX, dtype=np.int64)
    outcomes = np.full(len(trace.names) + 1, NO_INDEX, dtype=np.int64)
    kinds = np.unique(np.stack((trace.ranges.name, trace.ranges.kind), axis=1), axis=0)
    for code, kind in kinds.tolist():
        name = trace.names[code]
        if kind == MODULE:
            slot: Slot | None = Slot(paths[code], "forward")
        else:
            slot = own_slot(name) if kind == OWN else reserved_slot(name)
        if slot is not None:
            slots[code], outcomes[code] = book(slot), _outcome(slot, kind)
    return slots, outcomes


def _outcome(slot: Slot, kind: int) -> int:
    by_phase = {
        "backward": "module-backward", "optimizer": "optimizer", "data": "data", "transfer": "transfer",
        "communication": "communication", "other": "scope",
    }  # fmt: skip
    outcome = by_phase.get(slot.phase, "module-forward") if kind != MODULE else "module-forward"
    return OUTCOME_CODES[outcome]  # type: ignore[index]


def _scope_slots(trace: KinetoTrace, book: SlotIndex, name: IntArray) -> IntArray:
    number = {code: book(Slot(scope_name(trace.names[code]), "other")) for code in np.unique(name).tolist()}
    return np.array([number[code] for code in name.tolist()], dtype=np.int64)


def _scope_names(trace: KinetoTrace) -> NDArray[np.bool_]:
    return np.array([is_scope(name) for name in trace.names] or [False], dtype=np.bool_)


def _compiled_names(trace: KinetoTrace) -> NDArray[np.bool_]:
    return np.array([COMPILED.match(name) is not None for name in trace.names] or [False], dtype=np.bool_)


def _names_with_prefix(trace: KinetoTrace, prefix: str) -> NDArray[np.bool_]:
    return np.array([name.startswith(prefix) for name in trace.names] or [False], dtype=np.bool_)


def _best_labels(kind: IntArray, live: RecordedRanges, scopes: int) -> str:
    if len(live.start_ns) or (kind == OWN).any():
        return "own"
    if (kind == MODULE).any():
        return "module"
    return "scope" if scopes else "none"
