"""Map autograd nodes of a trace to the forward calls that made them.

The sequence number that autograd assigns to a node is unique on the forward's thread, and the trace has it at the
operator and at the node. The owner is that of the start of the last operator with that number: earlier operators with
it made no node. (On five real training traces this is the source of Kineto's own forward-backward arrow in 1,716 of
1,716 cases.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.meter import IntArray
from torchwatt.tracing.ranges import NOBODY, innermost
from torchwatt.tracing.traces.claims import Claims
from torchwatt.tracing.traces.live import NO_LIVE, Live
from torchwatt.tracing.traces.nest import by_group, nest
from torchwatt.tracing.traces.outcome import CODE
from torchwatt.tracing.traces.tables import Kineto


@dataclass(frozen=True, slots=True, eq=False)
class Owners:
    """Each autograd node's slot (phase backward) and outcome, and the operator that made it (row of the operators).

    -1 for an unknown owner or operator.
    """

    slot: IntArray
    outcome: IntArray
    op: IntArray


def owners(trace: Kineto, claims: Claims, live: Live = NO_LIVE) -> Owners:
    """Find the owner of each autograd node."""
    nodes, ops = claims.nodes, trace.ops
    thread = _forward_threads(trace, nodes)
    op = _makers(trace, thread, nodes)
    op = np.where(op == NOBODY, _by_arrow(trace, nodes), op)
    slot, outcome = _at_ops(trace, claims, op)
    recorded = _by_ranges(trace, claims, live, thread)
    slot = np.where(recorded >= 0, recorded, slot)
    outcome = np.where(recorded >= 0, CODE["module-backward"], outcome)
    source = _inherit(trace, nodes, (ops.sequence[nodes] < 0) & (op == NOBODY) & (slot == NOBODY))
    return Owners(slot[source], outcome[source], op[source])


def _at_ops(trace: Kineto, claims: Claims, op: IntArray) -> tuple[IntArray, IntArray]:
    """Return slot (in phase backward) and outcome at the start of each operator."""
    with_op = np.flatnonzero(op != NOBODY)
    slot = np.full(len(op), NOBODY, dtype=np.int64)
    outcome = np.full(len(op), NOBODY, dtype=np.int64)
    thread, t_ns = trace.ops.thread[op[with_op]], trace.ops.start_ns[op[with_op]]
    own, _, _ = claims.at(thread, t_ns)
    around = claims.scope_at(thread, t_ns)
    slot[with_op] = np.where(own >= 0, own, around)
    outcome[with_op] = np.where(own >= 0, CODE["module-backward"], np.where(around >= 0, CODE["scope"], NOBODY))
    return claims.book.in_phase(slot, "backward"), outcome


def _by_ranges(trace: Kineto, claims: Claims, live: Live, thread: IntArray) -> IntArray:
    """Return the slot of each node by ranges with sequence numbers, where a session recorded them."""
    seq = trace.ops.sequence[claims.nodes]
    slot = np.full(len(seq), NOBODY, dtype=np.int64)
    codes, numbers = live.on(trace, claims.book)
    for lane, mine in by_group(codes):
        numbered = np.flatnonzero((thread == lane) & (seq >= 0))
        row = innermost(live.seq0[mine], live.seq1[mine], seq[numbered])
        in_range = row != NOBODY
        slot[numbered[in_range]] = numbers[mine[row[in_range]]]
    return claims.book.in_phase(slot, "backward")


def _forward_ops(trace: Kineto, nodes: IntArray) -> IntArray:
    """Return the operators that may have made a node, in order of time."""
    ops = trace.ops
    forward = (ops.sequence >= 0) & (ops.forward == 0)
    forward[nodes] = False
    rows = np.flatnonzero(forward)
    return rows[np.argsort(ops.start_ns[rows], kind="stable")]


def _makers(trace: Kineto, thread: IntArray, nodes: IntArray) -> IntArray:
    """Return for each node the last operator of its forward's thread with its sequence number."""
    ops, seq = trace.ops, trace.ops.sequence[nodes]
    maker = np.full(len(seq), NOBODY, dtype=np.int64)
    rows = _forward_ops(trace, nodes)
    for lane, members in by_group(ops.thread[rows]):
        mine = rows[members]
        mine = mine[np.argsort(ops.sequence[mine], kind="stable")]
        numbered = np.flatnonzero((thread == lane) & (seq >= 0))
        at = np.searchsorted(ops.sequence[mine], seq[numbered], side="right") - 1
        hit = (at >= 0) & (ops.sequence[mine[np.maximum(at, 0)]] == seq[numbered])
        maker[numbered[hit]] = mine[at[hit]]
    return maker


def _forward_threads(trace: Kineto, nodes: IntArray) -> IntArray:
    """Return the thread on which each node's forward ran.

    Torch has its own thread numbers (`Fwd thread id`), and no table in the trace maps them. Arrows do; without arrows,
    the thread is used whose operators have most of the sequence numbers and begin before the nodes.
    """
    ops = trace.ops
    number = ops.forward[nodes]
    thread = np.full(len(nodes), NOBODY, dtype=np.int64)
    arrows = _arrows(trace, nodes)
    rows = _forward_ops(trace, nodes)
    lanes = list(by_group(ops.thread[rows]))
    for torch_number, members in by_group(number):
        source = arrows[0][np.isin(arrows[1], members)]
        if len(source):
            values, counts = np.unique(source, return_counts=True)
            thread[members] = values[np.argmax(counts)]
        elif torch_number > 0 and lanes:
            scores = [_score(trace, rows[mine], nodes[members]) for _, mine in lanes]
            if max(scores):
                thread[members] = lanes[int(np.argmax(scores))][0]
    return thread


def _score(trace: Kineto, rows: IntArray, nodes: IntArray) -> int:
    """Count the nodes with a number that an operator of this thread, begun earlier, has."""
    ops = trace.ops
    seq, earliest = np.unique(ops.sequence[rows], return_index=True)  # rows are in order of time
    at = np.minimum(np.searchsorted(seq, ops.sequence[nodes]), len(seq) - 1)
    same = seq[at] == ops.sequence[nodes]
    return int((same & (ops.start_ns[rows[earliest[at]]] <= ops.start_ns[nodes])).sum())


def _arrows(trace: Kineto, nodes: IntArray) -> tuple[IntArray, IntArray, IntArray]:
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
    arrival = nest(ops.thread[nodes], ops.start_ns[nodes], ops.end_ns[nodes]).at(flows.thread[end], flows.t_ns[end])
    hit = arrival != NOBODY
    return flows.thread[begin[hit]], arrival[hit], flows.t_ns[begin[hit]]


def _by_arrow(trace: Kineto, nodes: IntArray) -> IntArray:
    """Return the operator where an arrow to each node begins; the last one, where there are several."""
    ops = trace.ops
    maker = np.full(len(nodes), NOBODY, dtype=np.int64)
    thread, node, t_ns = _arrows(trace, nodes)
    if len(node):
        at = nest(ops.thread, ops.start_ns, ops.end_ns).at(thread, t_ns)
        maker[node] = at
    return maker


def _inherit(trace: Kineto, nodes: IntArray, orphaned: NDArray[np.bool_]) -> IntArray:
    """Return for each node the node whose owner it takes, usually itself.

    AccumulateGrad has no number: the engine runs it right after the node that made its gradient, on the same thread.
    """
    start, end = trace.ops.start_ns[nodes], trace.ops.end_ns[nodes]
    source = np.arange(len(nodes))
    for _, mine in by_group(trace.ops.thread[nodes]):
        ended = mine[np.argsort(end[mine], kind="stable")]
        before = np.searchsorted(end[ended], start[mine], side="right") - 1
        heir = orphaned[mine] & (before >= 0)
        source[mine[heir]] = ended[before[heir]]
    while True:  # follow chains, doubling the distance each time
        further = source[source]
        if np.array_equal(further, source):
            return source
        source = further
