"""Find the owner of a launch at an instant of a host thread, from module down to unattributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.intervals import NO_INDEX, IntervalNest, groups_of, innermost, nest_intervals
from torchwatt.core.meter import IntArray
from torchwatt.core.terms import UNATTRIBUTED, Phase, Slot
from torchwatt.kineto.host_ownership import NO_RANGES, HostOwnership, RecordedRanges, host_ownership
from torchwatt.kineto.joined_trace import OUTCOME_CODES
from torchwatt.kineto.kineto_trace import KinetoTrace
from torchwatt.kineto.trace_labels import NODE_PREFIX, is_backward_op, is_reserved, scope_name


@dataclass(frozen=True, slots=True, eq=False)
class AutogradOwners:
    """Each autograd node's slot (phase backward) and outcome, the operator that made it, and that operator's thread.

    Operators are rows of the trace's; -1 for what is unknown.
    """

    slot: IntArray
    outcome: IntArray
    op: IntArray
    thread: IntArray


def autograd_owners(trace: KinetoTrace, claims: HostOwnership, live: RecordedRanges = NO_RANGES) -> AutogradOwners:
    """Find the owner of each autograd node."""
    nodes, ops = claims.nodes, trace.ops
    thread = _forward_threads(trace, nodes)
    op = _makers(trace, thread, nodes)
    op = np.where(op == NO_INDEX, _by_arrow(trace, nodes), op)
    slot, outcome = _at_ops(trace, claims, op)
    recorded = _by_ranges(trace, claims, live, thread)
    slot = np.where(recorded >= 0, recorded, slot)
    outcome = np.where(recorded >= 0, OUTCOME_CODES["module-backward"], outcome)
    source = _inherit(trace, nodes, (ops.sequence[nodes] < 0) & (op == NO_INDEX) & (slot == NO_INDEX))
    return AutogradOwners(slot[source], outcome[source], op[source], thread[source])


def _at_ops(trace: KinetoTrace, claims: HostOwnership, op: IntArray) -> tuple[IntArray, IntArray]:
    """Return slot (in phase backward) and outcome at the start of each operator."""
    with_op = np.flatnonzero(op != NO_INDEX)
    slot = np.full(len(op), NO_INDEX, dtype=np.int64)
    outcome = np.full(len(op), NO_INDEX, dtype=np.int64)
    thread, t_ns = trace.ops.thread[op[with_op]], trace.ops.start_ns[op[with_op]]
    own, _, _ = claims.at(thread, t_ns)
    around = claims.scope_at(thread, t_ns)
    slot[with_op] = np.where(own >= 0, own, around)
    outcome[with_op] = np.where(
        own >= 0, OUTCOME_CODES["module-backward"], np.where(around >= 0, OUTCOME_CODES["scope"], NO_INDEX)
    )
    return claims.book.in_phase(slot, "backward"), outcome


def _by_ranges(trace: KinetoTrace, claims: HostOwnership, live: RecordedRanges, thread: IntArray) -> IntArray:
    """Return the slot of each node by ranges with sequence numbers, where a session recorded them."""
    seq = trace.ops.sequence[claims.nodes]
    slot = np.full(len(seq), NO_INDEX, dtype=np.int64)
    codes, numbers = live.on(trace, claims.book)
    for lane, mine in groups_of(codes):
        numbered = np.flatnonzero((thread == lane) & (seq >= 0))
        row = innermost(live.seq0[mine], live.seq1[mine], seq[numbered])
        in_range = row != NO_INDEX
        slot[numbered[in_range]] = numbers[mine[row[in_range]]]
    return claims.book.in_phase(slot, "backward")


def _forward_ops(trace: KinetoTrace, nodes: IntArray) -> IntArray:
    """Return the operators that may have made a node, in order of time."""
    ops = trace.ops
    forward = (ops.sequence >= 0) & (ops.forward == 0)
    forward[nodes] = False
    rows = np.flatnonzero(forward)
    return rows[np.argsort(ops.start_ns[rows], kind="stable")]


def _makers(trace: KinetoTrace, thread: IntArray, nodes: IntArray) -> IntArray:
    """Return for each node the last operator of its forward's thread with its sequence number."""
    ops, seq = trace.ops, trace.ops.sequence[nodes]
    maker = np.full(len(seq), NO_INDEX, dtype=np.int64)
    rows = _forward_ops(trace, nodes)
    for lane, members in groups_of(ops.thread[rows]):
        mine = rows[members]
        mine = mine[np.argsort(ops.sequence[mine], kind="stable")]
        numbered = np.flatnonzero((thread == lane) & (seq >= 0))
        at = np.searchsorted(ops.sequence[mine], seq[numbered], side="right") - 1
        hit = (at >= 0) & (ops.sequence[mine[np.maximum(at, 0)]] == seq[numbered])
        maker[numbered[hit]] = mine[at[hit]]
    return maker


def _forward_threads(trace: KinetoTrace, nodes: IntArray) -> IntArray:
    """Return the thread on which each node's forward ran.

    Torch has its own thread numbers (`Fwd thread id`), and no table in the trace maps them. Arrows do; without arrows,
    the thread is used whose operators have most of the sequence numbers and begin before the nodes.
    """
    ops = trace.ops
    number = ops.forward[nodes]
    thread = np.full(len(nodes), NO_INDEX, dtype=np.int64)
    arrows = _arrows(trace, nodes)
    rows = _forward_ops(trace, nodes)
    lanes = list(groups_of(ops.thread[rows]))
    for torch_number, members in groups_of(number):
        source = arrows[0][np.isin(arrows[1], members)]
        if len(source):
            values, counts = np.unique(source, return_counts=True)
            thread[members] = values[np.argmax(counts)]
        elif torch_number > 0 and lanes:
            scores = [_score(trace, rows[mine], nodes[members]) for _, mine in lanes]
            if max(scores):
                thread[members] = lanes[int(np.argmax(scores))][0]
    return thread


def _score(trace: KinetoTrace, rows: IntArray, nodes: IntArray) -> int:
    """Count the nodes with a number that an operator of this thread, begun earlier, has."""
    ops = trace.ops
    seq, earliest = np.unique(ops.sequence[rows], return_index=True)  # rows are in order of time
    at = np.minimum(np.searchsorted(seq, ops.sequence[nodes]), len(seq) - 1)
    same = seq[at] == ops.sequence[nodes]
    return int((same & (ops.start_ns[rows[earliest[at]]] <= ops.start_ns[nodes])).sum())


def _arrows(trace: KinetoTrace, nodes: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Return the thread where each arrow begins, the node (place in `nodes`) where it ends, and its start time."""
    flows, ops = trace.flows, trace.ops
    begin, end = np.flatnonzero(flows.arrives == 0), np.flatnonzero(flows.arrives == 1)
    begin = begin[np.argsort(flows.key[begin], kind="stable")]
    if not len(begin) or not len(end):
        none = np.zeros(0, dtype=np.int64)
        return none, none, none
    at = np.minimum(np.searchsorted(flows.key[begin], flows.key[end]), len(begin) - 1)
    pair = flows.key[begin[at]] == flows.key[end]
    begin, end = begin[at[pair]], end[pair]
    arrival = nest_intervals(ops.thread[nodes], ops.start_ns[nodes], ops.end_ns[nodes]).at(
        flows.thread[end], flows.t_ns[end]
    )
    hit = arrival != NO_INDEX
    return flows.thread[begin[hit]], arrival[hit], flows.t_ns[begin[hit]]


def _by_arrow(trace: KinetoTrace, nodes: IntArray) -> IntArray:
    """Return the operator where an arrow to each node begins; the last one, where there are several."""
    ops = trace.ops
    maker = np.full(len(nodes), NO_INDEX, dtype=np.int64)
    thread, node, t_ns = _arrows(trace, nodes)
    if len(node):
        at = nest_intervals(ops.thread, ops.start_ns, ops.end_ns).at(thread, t_ns)
        maker[node] = at
    return maker


def _inherit(trace: KinetoTrace, nodes: IntArray, orphaned: NDArray[np.bool_]) -> IntArray:
    """Return for each node the node whose owner it takes, usually itself.

    AccumulateGrad has no number: the engine runs it right after the node that made its gradient, on the same thread.
    """
    start, end = trace.ops.start_ns[nodes], trace.ops.end_ns[nodes]
    source = np.arange(len(nodes))
    for _, mine in groups_of(trace.ops.thread[nodes]):
        ended = mine[np.argsort(end[mine], kind="stable")]
        before = np.searchsorted(end[ended], start[mine], side="right") - 1
        heir = orphaned[mine] & (before >= 0)
        source[mine[heir]] = ended[before[heir]]
    while True:  # follow chains, doubling the distance each time
        further = source[source]
        if np.array_equal(further, source):
            return source
        source = further


@dataclass(frozen=True, slots=True, eq=False)
class HostTimeline:
    """The host side of a trace, prepared for look-ups."""

    trace: KinetoTrace
    claims: HostOwnership
    owners: AutogradOwners
    ops: IntervalNest | None  # top operators, only without a better label

    def at(self, thread: IntArray, t_ns: IntArray) -> tuple[IntArray, IntArray]:
        """Return slot and outcome of launches at instants.

        Innermost module, autograd node, optimizer or loader; else the innermost named range; else the compiled graph;
        else, in a trace without module names, the operator; else `(unattributed)`.
        """
        claims, book = self.claims, self.claims.book
        slot, outcome, node = claims.at(thread, t_ns)
        in_backward = node != NO_INDEX
        slot = np.where(in_backward, np.append(self.owners.slot, NO_INDEX)[node], slot)
        outcome = np.where(in_backward, np.append(self.owners.outcome, NO_INDEX)[node], outcome)
        around = claims.scope_at(thread, t_ns)
        in_scope = around != NO_INDEX
        backward = in_backward & in_scope & (slot < 0)
        around = np.where(backward, book.in_phase(np.where(backward, around, NO_INDEX), "backward"), around)
        outcome = np.where((slot < 0) & in_scope, OUTCOME_CODES["scope"], outcome)
        slot = np.where(slot < 0, around, slot)
        self._by_compiled_graph(thread, t_ns, node, slot, outcome)
        if self.ops is not None:
            self._by_operator(thread, t_ns, node, slot, outcome)
        nobody = slot < 0
        unclaimed = np.where(in_backward, book(Slot(UNATTRIBUTED, "backward")), book(Slot(UNATTRIBUTED, "other")))
        return np.where(nobody, unclaimed, slot), np.where(nobody, OUTCOME_CODES["outside"], outcome)

    def stage_at(self, thread: IntArray, t_ns: IntArray) -> IntArray:
        """Return the stage (place in `claims.stage_names`) of launches at instants, -1 for none.

        A thread of autograd's has the stage of the thread that ran the forward pass, which waits for it.
        """
        own = self.claims.stage_at(thread, t_ns)
        forward = np.append(self.owners.thread, NO_INDEX)[self.claims.node_at(thread, t_ns)]
        return np.where(own == NO_INDEX, self.claims.stage_at(forward, t_ns), own)

    def _by_compiled_graph(
        self, thread: IntArray, t_ns: IntArray, node: IntArray, slot: IntArray, outcome: IntArray
    ) -> None:
        """Set launches without an owner to the compiled graph's call around them, a range that torch writes itself."""
        call = self.compiled_at(thread, t_ns)
        open_ = np.flatnonzero((slot < 0) & (call != NO_INDEX))
        for i in open_.tolist():
            phase: Phase = "backward" if node[i] != NO_INDEX else "other"
            name = scope_name(self.trace.names[int(self.claims.compiled_name[call[i]])])
            slot[i], outcome[i] = self.claims.book(Slot(name, phase)), OUTCOME_CODES["scope"]

    def _by_operator(self, thread: IntArray, t_ns: IntArray, node: IntArray, slot: IntArray, outcome: IntArray) -> None:
        """Name by the forward operator of the autograd node, or by the outermost running operator."""
        assert self.ops is not None  # noqa: S101  # checked by the caller
        maker = np.append(self.owners.op, NO_INDEX)[node]
        running = self.ops.outermost(self.ops.at(thread, t_ns))
        op = np.where(maker != NO_INDEX, maker, running)
        open_ = np.flatnonzero((slot < 0) & (op != NO_INDEX))
        for code in np.unique(self.trace.ops.name[op[open_]]).tolist():
            mine = open_[self.trace.ops.name[op[open_]] == code]
            name = self.trace.names[code].removeprefix(NODE_PREFIX)
            for backward in (False, True):
                part = mine[((node[mine] != NO_INDEX) | is_backward_op(name)) == backward]
                phase: Phase = "backward" if backward else "forward"
                if len(part):
                    slot[part], outcome[part] = self.claims.book(Slot(name, phase)), OUTCOME_CODES["op"]

    def compiled_at(self, thread: IntArray, t_ns: IntArray) -> IntArray:
        """Return the call of a compiled graph (place in `claims.compiled_name`) at instants, -1 outside."""
        return self.claims.compiled.at(thread, t_ns)


def host_timeline(trace: KinetoTrace, live: RecordedRanges = NO_RANGES, stages: Sequence[str] = ()) -> HostTimeline:
    """Prepare the host side of a trace; `stages` are names of annotations, as `stage_name` takes them."""
    claims = host_ownership(trace, live, stages)
    top: IntervalNest | None = None
    if claims.labels in {"scope", "none"}:
        plain = np.array([not is_reserved(name) for name in trace.names] or [True], dtype=np.bool_)[trace.ops.name]
        # Reserved ranges that old traces wrote as operators enclose operators but are not operators.
        end = np.where(plain, trace.ops.end_ns, trace.ops.start_ns)
        top = nest_intervals(trace.ops.thread, trace.ops.start_ns, end)
    return HostTimeline(trace, claims, autograd_owners(trace, claims, live), top)
