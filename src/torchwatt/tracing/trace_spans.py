"""Lay templates over calls that were not traced, vectorised where no recorded span lies inside. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from torchwatt.core.intervals import NO_INDEX, enclosing_indices, extend_to_siblings, innermost, top_level
from torchwatt.core.meter import IntArray
from torchwatt.core.terms import Phase, Slot
from torchwatt.tracing.aggregated_spans import AggregatedSpans, SpanKinds
from torchwatt.tracing.call_template import (
    CallTemplate,
    ElasticTemplate,
    TimedCall,
    stretch_template,
    stretch_templates,
)
from torchwatt.tracing.log_rows import (
    COMMUNICATION_KEY,
    END,
    FIRST_SCOPE_KEY,
    KEY,
    NO_CHANGES,
    NO_STAGE,
    OUTERMOST_TASK,
    PROFILER_KEY,
    SEQ0,
    SEQ1,
    START,
    AutogradNodes,
    BackwardCall,
)
from torchwatt.tracing.loop_steps import OptimizerEnd

if TYPE_CHECKING:
    from torchwatt.tracing.device_profiler import DeviceProfiler
    from torchwatt.tracing.log_rows import CallSignature
    from torchwatt.tracing.loop_steps import StepMark
    from torchwatt.tracing.module_registry import ModuleRegistry
    from torchwatt.tracing.thread_log import ThreadLog

REDUCTION = -2  # in place of the number of a call: one call of the reducer in each backward call
MOST_AFTER_NS = 200_000  # engine work after the last node; more is an interruption or a user's callback
MAX_FILLED = 300_000  # spans, about 15 MB
UNOWNED = 0  # module keys are above, all others below
Piece = tuple[int, int, int, int]  # start_ns, end_ns, key of the owner, calls (1 for a call's first piece, else 0)


def owners_of_nodes(
    nodes: AutogradNodes, own: IntArray, other_tables: Sequence[IntArray] = ()
) -> tuple[IntArray, IntArray]:
    """Return for each node the key of its owner, and a number that identifies the owner's call.

    A node belongs to the innermost call (or scope) during which its sequence number was assigned, on the thread of its
    forward pass. A node without a number (AccumulateGrad) belongs to the owner of the node that ended just before it.

    Args:
        nodes: Sorted by start.
        own: Log table of the thread that called backward.
        other_tables: Log tables of other threads, tried for nodes whose forward ran elsewhere.
    """
    key = np.full(len(nodes.seq), UNOWNED, dtype=np.int64)
    call = np.full(len(nodes.seq), NO_INDEX, dtype=np.int64)
    base = 0
    for table, members in _by_thread(nodes, own, other_tables):
        row = _rows(table, nodes.seq[members])
        has_owner = row != NO_INDEX
        key[members[has_owner]] = table[row[has_owner], KEY]
        call[members[has_owner]] = row[has_owner] + base
        base += len(table)
    by_end = np.argsort(nodes.end_ns, kind="stable")
    before = np.searchsorted(nodes.end_ns[by_end], nodes.start_ns, side="right") - 1
    for i in np.flatnonzero(nodes.seq < 0):
        if before[i] >= 0 and (j := by_end[before[i]]) != i:
            key[i], call[i] = key[j], call[j]
    return key, call


def _by_thread(
    nodes: AutogradNodes, own: IntArray, other_tables: Sequence[IntArray]
) -> list[tuple[IntArray, IntArray]]:
    numbered = np.flatnonzero(nodes.seq >= 0)
    groups = Counter(nodes.forward_thread[numbered].tolist())
    if len(groups) <= 1:
        return [(own, numbered)]
    # On a CPU the calling thread runs the nodes, which identifies it; else it is the thread with most forward nodes.
    runners = [int(t) for t in np.unique(nodes.thread) if int(t) in groups]
    caller = runners[0] if len(runners) == 1 else groups.most_common(1)[0][0]
    result = []
    for thread in groups:
        members = numbered[nodes.forward_thread[numbered] == thread]
        table = own if thread == caller else _best_owner(other_tables, nodes.seq[members])
        if table is not None:
            result.append((table, members))
    return result


def _best_owner(tables: Sequence[IntArray], seq: IntArray) -> IntArray | None:
    return max(tables, key=lambda table: int((_rows(table, seq) != NO_INDEX).sum()), default=None)


def _rows(table: IntArray, seq: IntArray) -> IntArray:
    if not len(seq):
        return seq
    named = (table[:, KEY] > 0) | (table[:, KEY] <= FIRST_SCOPE_KEY)
    near = np.flatnonzero(named & (table[:, SEQ1] > seq.min()) & (table[:, SEQ0] <= seq.max()))
    rows = innermost(table[near, SEQ0], table[near, SEQ1], seq)
    return np.where(rows == NO_INDEX, NO_INDEX, near[rows]) if len(near) else rows


def merge_pieces(
    start: Sequence[int], end: Sequence[int], key: Sequence[int], call: Sequence[int], limit: int
) -> IntArray:
    """Return the pieces of one thread's nodes (sorted), with engine overhead, neighbours of one call merged."""
    ends, up = extend_to_siblings(start, end, limit)
    starts: list[int] = []
    stops: list[int] = []
    owners: list[int] = []
    calls: list[int] = []
    previous: dict[int, tuple[int, int]] = {}  # parent -> (index of the piece, call) of the previous sibling
    seen_parents: set[int] = set()
    for i, owner in enumerate(key):
        index, before = previous.get(up[i], (NO_INDEX, NO_INDEX))
        if owner == UNOWNED:
            previous.pop(up[i], None)
        elif index != NO_INDEX and before == call[i] and stops[index] == start[i]:
            stops[index] = ends[i]
        elif ends[i] > start[i]:
            previous[up[i]] = len(starts), call[i]
            starts.append(start[i])
            stops.append(ends[i])
            owners.append(owner)
            calls.append(int(call[i] not in seen_parents))
            seen_parents.add(call[i])
    return np.array([starts, stops, owners, calls], dtype=np.int64).T


def join_backward(call: BackwardCall, own: IntArray, other_tables: Sequence[IntArray] = ()) -> list[IntArray]:
    """Return the pieces of a traced backward call, one table per thread, with a row for each piece.

    The first table is of the thread with most nodes: the calling thread on a CPU, or the device's thread, for which the
    calling thread only waits.
    """
    nodes = call.nodes if call.nodes is None or isinstance(call.nodes, AutogradNodes) else call.nodes.nodes()
    if nodes is None or not len(nodes.seq):
        return []
    key, number = owners_of_nodes(nodes, own, other_tables)
    lanes = []
    for thread, _ in Counter(nodes.thread.tolist()).most_common():
        m = np.flatnonzero(nodes.thread == thread)
        start = np.clip(nodes.start_ns[m], call.start_ns, call.end_ns).tolist()
        end = np.clip(nodes.end_ns[m], call.start_ns, call.end_ns).tolist()
        columns = [start, end, key[m].tolist(), number[m].tolist()]
        if call.reduces:
            lane = list(zip(*columns, strict=True))
            lane += reducer_intervals(start, end, nodes.seq[m].tolist(), call.end_ns)
            lane.sort(key=lambda node: (node[0], -node[1]))
            columns = [[node[i] for node in lane] for i in range(4)]
        limit = min(call.end_ns, max(columns[1]) + MOST_AFTER_NS)
        lanes.append(merge_pieces(columns[0], columns[1], columns[2], columns[3], limit))
    return lanes


def reducer_intervals(start: Sequence[int], end: Sequence[int], seq: Sequence[int], limit: int) -> list[Piece]:
    """Return the intervals in which DDP's reducer ran between nodes (sorted, of one thread), as communication nodes.

    The reducer hooks into each AccumulateGrad: after it, it copies the gradient into a bucket and sends full buckets.
    After the last node it waits for the sums of all ranks and copies them back, until the call ends.
    """
    up = enclosing_indices(start, end)
    intervals: list[Piece] = []
    following: dict[int, int] = {}  # parent -> start of the following sibling
    for i in reversed(range(len(start))):
        end_ns = following.get(up[i], limit if up[i] == NO_INDEX else end[up[i]])
        is_last = up[i] == NO_INDEX and up[i] not in following
        if end_ns > end[i] and (seq[i] < 0 or is_last):
            intervals.append((end[i], end_ns, COMMUNICATION_KEY, REDUCTION))
        following[up[i]] = start[i]
    return intervals


def inner_spans(call: BackwardCall, table: IntArray) -> tuple[tuple[int, int], ...]:
    """Return the outermost recorded spans (recomputed modules, hooks) within a backward call."""
    rows = table[call.first : call.last]
    if not len(rows):
        return ()
    start = np.clip(rows[:, START], call.start_ns, call.end_ns)
    end = np.clip(rows[:, END], call.start_ns, call.end_ns)
    return tuple((int(start[i]), int(end[i])) for i in top_level(start, end))


@dataclass(frozen=True, slots=True, eq=False)
class LogSnapshot:
    """A consistent copy of a log."""

    table: IntArray  # rows, in order of their ends
    calls: tuple[BackwardCall, ...]
    records: AggregatedSpans  # of steps that are no longer in the table
    runs: int  # number of runs in the records
    units: int
    kinds: SpanKinds
    traced: tuple[int, ...]  # start_ns and end_ns of each traced step
    skeletons: tuple[int, ...]  # of each step whose bounds were noted among those of which the end alone is
    cpu: IntArray  # times, sorted, and the thread's CPU time by then; shape (n, 2)
    optimizers: tuple[OptimizerEnd, ...]  # where optimizer steps ended
    nodes: Mapping[int, int]  # by the end of a step: how many autograd nodes it made outside backward calls
    inside: bool  # the records end within a step, after a call that made a graph
    stages: IntArray = field(default_factory=lambda: NO_CHANGES)  # changes of the stage, as in `stages_at`
    folded_ns: int = 0  # rows that began earlier, and are still in the table, hold records: they stay rows


@dataclass(frozen=True, slots=True, eq=False)
class TraceInputs:
    """What a tracer reads from the hub; the first log belongs to the tracer's own thread."""

    logs: tuple[ThreadLog, ...]
    start_ns: int
    end_ns: int
    done_ns: int  # when the devices had finished the session's work
    registry: ModuleRegistry
    scopes: Mapping[str, int]
    given: int | None  # key of the model that the user named
    steps: tuple[StepMark, ...]  # as marked by the user
    cost_ns: int
    signatures: Sequence[CallSignature] = ()
    devices: DeviceProfiler | None = None
    most_filled: int = MAX_FILLED  # approximate limit of spans that are filled in
    is_last: bool = False  # no other session uses the devices: wait for their work
    functions: Mapping[int, tuple[str, int]] = field(default_factory=dict)  # compiled functions: name, parameters
    resumed: Mapping[int, int] = field(default_factory=dict)  # by end of a step: its start after a pause
    stages: Mapping[int, str] = field(default_factory=lambda: {NO_STAGE: ""})  # names of stages, by number
    stage_rows: Mapping[int, tuple[str, int]] = field(default_factory=dict)  # by key: scope around, and stage's number


class SpanColumns:
    """Spans of all kinds, added in blocks; `index` numbers slots.

    `calls` below zero: the number of calls of the slot is unknown.
    """

    def __init__(self) -> None:
        self.slots: dict[Slot, int] = {}
        self._blocks: list[tuple[IntArray, IntArray, IntArray, IntArray, IntArray, IntArray]] = []

    def index(self, fqn: str, phase: Phase, stage: str = "") -> int:
        """Return the number of a slot."""
        return self.slots.setdefault(Slot(fqn, phase, stage), len(self.slots))

    def same_in_any_stage(self, slots: Iterable[int]) -> dict[int, int]:
        """Map the slots of the same name and phase as some slots, in any stage, to the latter."""
        of = list(self.slots)
        number = {(of[i].fqn, of[i].phase): i for i in slots}
        return {i: number[slot.fqn, slot.phase] for i, slot in enumerate(of) if (slot.fqn, slot.phase) in number}

    def add(self, slot: Any, start: IntArray, end: IntArray, *, thread: int, filled: bool, calls: Any) -> None:
        """Add spans; `slot` and `calls` are arrays or one value for all."""
        n = len(start)
        columns = (slot, start, end, thread, int(filled), calls)
        slot_, start_, end_, thread_, filled_, calls_ = (
            np.broadcast_to(np.asarray(column, dtype=np.int64), n) for column in columns
        )
        self._blocks.append((slot_, start_, end_, thread_, filled_, calls_))

    def of_thread(self, thread: int) -> IntArray:
        """Return the spans of a thread added so far: slot, start_ns, end_ns, calls (below zero: unknown)."""
        parts = [np.column_stack((b[0], b[1], b[2], b[5])) for b in self._blocks if len(b[3]) and b[3][0] == thread]
        return np.concatenate(parts) if parts else np.empty((0, 4), dtype=np.int64)

    def untold_calls(self) -> set[int]:
        """Return the slots whose number of calls is unknown."""
        return {slot for block in self._blocks for slot in block[0][block[5] < 0].tolist()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the columns that `Trace` takes."""
        names = ("slot", "start_ns", "end_ns", "thread", "filled", "calls")
        if not self._blocks:
            empty: dict[str, NDArray[Any]] = {name: np.zeros(0, dtype=np.int64) for name in names}
            return empty | {"filled": np.zeros(0, dtype=np.bool_)}
        joined = [np.concatenate(block) for block in zip(*self._blocks, strict=True)]
        result: dict[str, NDArray[Any]] = dict(zip(names, joined, strict=True))
        return result | {"filled": result["filled"].astype(np.bool_), "calls": np.maximum(result["calls"], 0)}


class SpanFiller:
    """Adds filled spans of one thread to the columns.

    Args:
        columns: Get the spans.
        thread: Number of the thread.
        slot_of: Slot of an owner in a stage, by the stage's number.
    """

    def __init__(self, columns: SpanColumns, thread: int, slot_of: Callable[[int, int], int]) -> None:
        self._columns = columns
        self._thread = thread
        self._slot_of = slot_of

    def fill(
        self, template: CallTemplate, starts: IntArray, ends: IntArray, count: IntArray, stage: int = NO_STAGE
    ) -> None:
        """Add a template laid over calls of a stage, one row each; `count`: number of calls that a row stands for."""
        slot = np.array([self._slot_of(int(key), stage) for key in template.owner], dtype=np.int64)
        slots = np.tile(slot, len(starts))
        calls = (template.calls[None, :] * count[:, None]).ravel()  # below zero: unknown
        self._columns.add(slots, starts.ravel(), ends.ravel(), thread=self._thread, filled=True, calls=calls)

    def fill_records(
        self, records: AggregatedSpans, kinds: SpanKinds, chosen: Iterable[tuple[int, CallTemplate]]
    ) -> None:
        """Lay templates over records, in the stages of these; other records inside one keep their time."""
        same_template: dict[tuple[int, int], tuple[CallTemplate, list[int]]] = {}
        for i, template in chosen:
            inner, stage = inner_records(records, i), kinds.stage[int(records.kind[i])]
            if inner:
                call = TimedCall(int(records.start[i]), int(records.end[i]), inner)
                starts, ends = stretch_template(template, call)
                self.fill(template, starts[None], ends[None], records.count[i : i + 1], stage)
            else:
                same_template.setdefault((id(template), stage), (template, []))[1].append(i)
        for (_, stage), (template, members) in same_template.items():
            starts, ends = stretch_templates(template, records.start[members], records.end[members])
            self.fill(template, starts, ends, records.count[members], stage)


def inner_records(records: AggregatedSpans, i: int) -> tuple[tuple[int, int], ...]:
    """Return the outermost records inside a record, as (start_ns, end_ns); they follow it in order."""
    end = records.end[i]
    end_row = i + 1
    while end_row < len(records) and records.start[end_row] < end:
        end_row += 1
    members = np.arange(i + 1, end_row)
    top = members[top_level(records.start[members], records.end[members])]
    return tuple((int(records.start[j]), int(records.end[j])) for j in top)


def fit_template(elastic: ElasticTemplate, records: AggregatedSpans, i: int) -> CallTemplate:
    """Return the template of a record, fitted to the mean length of the calls that it stands for."""
    if elastic.is_rigid:
        return elastic.plain
    inner_ns = sum(end - start for start, end in inner_records(records, i))
    net_ns = int(records.end[i] - records.start[i]) - inner_ns
    return elastic.fitted(net_ns / int(records.count[i]))


def wants_gradients(module: nn.Module) -> bool:
    """Return whether any parameter of a module requires a gradient."""
    return any(parameter.requires_grad for parameter in module.parameters())


def is_forward_kind(kind: tuple[Hashable, ...]) -> bool:
    """Return whether records of a kind are module calls outside a backward call."""
    return kind[0] == "row" and isinstance(kind[1], int) and kind[1] > 0 and kind[3] != 0


def take_out_own(records: AggregatedSpans, kinds: SpanKinds) -> AggregatedSpans:
    """Return records with the profiler's work in each as a record of its own before it; `kinds` gets its kinds."""
    which = np.flatnonzero(records.own_ns > 0)
    if not len(which):
        return records
    stages = [kinds.stage[n] for n in records.kind[which].tolist()]
    number = {stage: kinds.number(("row", PROFILER_KEY, 0, OUTERMOST_TASK), stage) for stage in set(stages)}
    latest_ns = np.minimum(records.end, np.append(records.start[1:], records.end[-1:]))  # what is inside stays whole
    begun_ns = np.minimum(records.start + records.own_ns, latest_ns)
    own = replace(records, end=begun_ns).take(which)
    own = replace(own, kind=np.array([number[stage] for stage in stages]))
    start_ns = np.where(records.own_ns > 0, begun_ns, records.start)
    rest = replace(records, start=start_ns)
    return AggregatedSpans(*(np.insert(getattr(rest, f.name), which, getattr(own, f.name)) for f in fields(rest)))


def _led_ns(snapshot: LogSnapshot) -> IntArray:
    """Return the start of the forward pass before each backward call, and of the call; shape (n, 2)."""
    starts = []
    for call in snapshot.calls:
        rows = snapshot.table[call.since : call.first]
        begun = rows[(rows[:, KEY] > 0) & (rows[:, SEQ1] > rows[:, SEQ0]), START]
        starts.append((int(begun.min()) if len(begun) else call.start_ns, call.start_ns))
    return np.array(starts, dtype=np.int64).reshape(-1, 2)
