"""Which module a backward node belongs to: the innermost call that made it, found by sequence number."""

from __future__ import annotations

import numpy as np

from torchwatt.core.meter import IntArray

NOBODY = -1


def innermost(seq_lo: IntArray, seq_hi: IntArray, wanted: IntArray) -> IntArray:
    """Return, for each number, the index of the innermost range `lo <= n < hi` that holds it, or NOBODY.

    Ranges come from calls on one thread, so two of them are nested or apart.
    """
    if len(seq_lo) == 0:
        return np.full(len(wanted), NOBODY, dtype=np.int64)
    order = np.lexsort((-seq_hi, seq_lo))
    order = order[seq_hi[order] > seq_lo[order]]
    lo, hi = seq_lo[order], seq_hi[order]
    parent = _parents(hi, lo)
    at = np.searchsorted(lo, wanted, side="right") - 1
    for _ in range(len(order)):
        outside = at >= 0
        outside[outside] = hi[at[outside]] <= wanted[outside]
        if not outside.any():
            break
        at[outside] = parent[at[outside]]
    found = np.full(len(wanted), NOBODY, dtype=np.int64)
    found[at >= 0] = order[at[at >= 0]]
    return found


def _parents(hi: IntArray, lo: IntArray) -> IntArray:
    """Return each range's enclosing range; ranges sorted by start, longer first."""
    parent = np.full(len(lo), NOBODY, dtype=np.int64)
    open_ones: list[int] = []
    for i in range(len(lo)):
        while open_ones and hi[open_ones[-1]] <= lo[i]:
            open_ones.pop()
        parent[i] = open_ones[-1] if open_ones else NOBODY
        open_ones.append(i)
    return parent


def node_owners(sequence: IntArray, seq_lo: IntArray, seq_hi: IntArray) -> IntArray:
    """Return the range that owns each node of a pass, nodes in the order in which they ran.

    AccumulateGrad has no number (-1): it runs right after the node that produced its gradient, and goes with it.
    """
    owner = innermost(seq_lo, seq_hi, sequence)
    numbered = np.where(sequence >= 0, np.arange(len(sequence)), -1)
    last = np.maximum.accumulate(numbered) if len(numbered) else numbered
    return np.where(last >= 0, owner[np.maximum(last, 0)], NOBODY)


def extend(start_ns: IntArray, end_ns: IntArray, until_ns: int) -> IntArray:
    """Return ends moved to the start of the next node that is not nested in this one: the engine's own time.

    Nodes are sorted by start. A nested node (a checkpoint's inner pass) keeps its end.
    """
    if len(start_ns) == 0:
        return end_ns
    reach = np.maximum.accumulate(end_ns)
    top = np.concatenate(([True], start_ns[1:] >= reach[:-1]))
    out = end_ns.copy()
    tops = np.flatnonzero(top)
    out[tops] = np.concatenate((start_ns[tops[1:]], [max(until_ns, int(end_ns[tops[-1]]))]))
    return out
