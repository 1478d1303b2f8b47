"""Map autograd nodes to the modules that created them, as pieces of time. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.tracing.ranges import NOBODY, extend, innermost, parents, top_level
from torchwatt.tracing.rows import COMMUNICATION_KEY, END, FIRST_SCOPE_KEY, KEY, SEQ0, SEQ1, START, Backward, Nodes

REDUCTION = -2  # in place of the number of a call: one call of the reducer in each backward call
MOST_AFTER_NS = 200_000  # engine work after the last node; more is an interruption or a user's callback
UNOWNED = 0  # module keys are above, all others below
Piece = tuple[int, int, int, int]  # start_ns, end_ns, key of the owner, calls (1 for a call's first piece, else 0)


def owners(nodes: Nodes, own: IntArray, other_tables: Sequence[IntArray] = ()) -> tuple[IntArray, IntArray]:
    """Return for each node the key of its owner, and a number that identifies the owner's call.

    A node belongs to the innermost call (or scope) during which its sequence number was assigned, on the thread of its
    forward pass. A node without a number (AccumulateGrad) belongs to the owner of the node that ended just before it.

    Args:
        nodes: Sorted by start.
        own: Log table of the thread that called backward.
        other_tables: Log tables of other threads, tried for nodes whose forward ran elsewhere.
    """
    key = np.full(len(nodes.seq), UNOWNED, dtype=np.int64)
    call = np.full(len(nodes.seq), NOBODY, dtype=np.int64)
    base = 0
    for table, members in _by_thread(nodes, own, other_tables):
        row = _rows(table, nodes.seq[members])
        has_owner = row != NOBODY
        key[members[has_owner]] = table[row[has_owner], KEY]
        call[members[has_owner]] = row[has_owner] + base
        base += len(table)
    by_end = np.argsort(nodes.end_ns, kind="stable")
    before = np.searchsorted(nodes.end_ns[by_end], nodes.start_ns, side="right") - 1
    for i in np.flatnonzero(nodes.seq < 0):
        if before[i] >= 0 and (j := by_end[before[i]]) != i:
            key[i], call[i] = key[j], call[j]
    return key, call


def _by_thread(nodes: Nodes, own: IntArray, other_tables: Sequence[IntArray]) -> list[tuple[IntArray, IntArray]]:
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
        table = own if thread == caller else _best(other_tables, nodes.seq[members])
        if table is not None:
            result.append((table, members))
    return result


def _best(tables: Sequence[IntArray], seq: IntArray) -> IntArray | None:
    return max(tables, key=lambda table: int((_rows(table, seq) != NOBODY).sum()), default=None)


def _rows(table: IntArray, seq: IntArray) -> IntArray:
    if not len(seq):
        return seq
    named = (table[:, KEY] > 0) | (table[:, KEY] <= FIRST_SCOPE_KEY)
    near = np.flatnonzero(named & (table[:, SEQ1] > seq.min()) & (table[:, SEQ0] <= seq.max()))
    rows = innermost(table[near, SEQ0], table[near, SEQ1], seq)
    return np.where(rows == NOBODY, NOBODY, near[rows]) if len(near) else rows


def pieces(
    start: Sequence[int], end: Sequence[int], key: Sequence[int], call: Sequence[int], limit: int
) -> list[Piece]:
    """Return the pieces of one thread's nodes (sorted), with engine overhead, neighbours of one call merged."""
    ends, up = extend(start, end, limit)
    result: list[list[int]] = []
    previous: dict[int, tuple[int, int]] = {}  # parent -> (index into result, call) of the previous sibling
    seen_parents: set[int] = set()
    for i, owner in enumerate(key):
        index, before = previous.get(up[i], (NOBODY, NOBODY))
        if owner == UNOWNED:
            previous.pop(up[i], None)
        elif index != NOBODY and before == call[i] and result[index][1] == start[i]:
            result[index][1] = ends[i]
        elif ends[i] > start[i]:
            previous[up[i]] = len(result), call[i]
            result.append([start[i], ends[i], owner, int(call[i] not in seen_parents)])
            seen_parents.add(call[i])
    return [(s, e, owner, calls) for s, e, owner, calls in result]


def join(call: Backward, own: IntArray, other_tables: Sequence[IntArray] = ()) -> list[list[Piece]]:
    """Return the pieces of a traced backward call, one list per thread.

    The first list is of the thread with most nodes: the calling thread on a CPU, or the device's thread, for which the
    calling thread only waits.
    """
    nodes = call.nodes if call.nodes is None or isinstance(call.nodes, Nodes) else call.nodes.nodes()
    if nodes is None or not len(nodes.seq):
        return []
    key, number = owners(nodes, own, other_tables)
    lanes = []
    for thread, _ in Counter(nodes.thread.tolist()).most_common():
        m = np.flatnonzero(nodes.thread == thread)
        start = np.clip(nodes.start_ns[m], call.start_ns, call.end_ns).tolist()
        end = np.clip(nodes.end_ns[m], call.start_ns, call.end_ns).tolist()
        lane = list(zip(start, end, key[m].tolist(), number[m].tolist(), strict=True))
        if call.reduces:
            lane += reduction(start, end, nodes.seq[m].tolist(), call.end_ns)
            lane.sort(key=lambda node: (node[0], -node[1]))
        columns = [[node[i] for node in lane] for i in range(4)]
        limit = min(call.end_ns, max(columns[1]) + MOST_AFTER_NS)
        lanes.append(pieces(columns[0], columns[1], columns[2], columns[3], limit))
    return lanes


def reduction(start: Sequence[int], end: Sequence[int], seq: Sequence[int], limit: int) -> list[Piece]:
    """Return the intervals in which DDP's reducer ran between nodes (sorted, of one thread), as communication nodes.

    The reducer hooks into each AccumulateGrad: after it, it copies the gradient into a bucket and sends full buckets.
    After the last node it waits for the sums of all ranks and copies them back, until the call ends.
    """
    up = parents(start, end)
    intervals: list[Piece] = []
    following: dict[int, int] = {}  # parent -> start of the following sibling
    for i in reversed(range(len(start))):
        end_ns = following.get(up[i], limit if up[i] == NOBODY else end[up[i]])
        is_last = up[i] == NOBODY and up[i] not in following
        if end_ns > end[i] and (seq[i] < 0 or is_last):
            intervals.append((end[i], end_ns, COMMUNICATION_KEY, REDUCTION))
        following[up[i]] = start[i]
    return intervals


def inner_spans(call: Backward, table: IntArray) -> tuple[tuple[int, int], ...]:
    """Return the outermost recorded spans (recomputed modules, hooks) within a backward call."""
    rows = table[call.first : call.last]
    if not len(rows):
        return ()
    start = np.clip(rows[:, START], call.start_ns, call.end_ns)
    end = np.clip(rows[:, END], call.start_ns, call.end_ns)
    return tuple((int(start[i]), int(end[i])) for i in top_level(start, end))
