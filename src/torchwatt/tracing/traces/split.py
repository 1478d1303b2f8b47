"""Kernels that several modules share: a fused kernel's time is cut in proportion, so that nothing is made or lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.meter import IntArray
from torchwatt.tracing.ranges import NOBODY
from torchwatt.tracing.traces.assign import Assigned
from torchwatt.tracing.traces.labels import COMPILED
from torchwatt.tracing.traces.outcome import CODE
from torchwatt.tracing.traces.resolve import Host
from torchwatt.tracing.traces.sidecar import ANY_GRAPH, Shares, Sidecar
from torchwatt.tracing.traces.tables import KERNEL


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Records, those that are shared cut into consecutive parts. `row` is each part's record."""

    row: IntArray
    slot: IntArray
    outcome: IntArray
    start_ns: IntArray
    end_ns: IntArray
    shared: NDArray[np.bool_]  # by record: cut by provenance
    triton: NDArray[np.bool_]  # by record: a compiled kernel, whether or not provenance knows it


def split(host: Host, assigned: Assigned, sidecar: Sidecar) -> Parts:
    """Give compiled kernels to the modules that the compiler fused into them, as far as a sidecar says."""
    trace = host.trace
    records = trace.records
    triton = (records.kind == KERNEL) & np.array(
        [name.startswith("triton_") for name in trace.names] or [False], dtype=np.bool_
    )[records.name]
    shared = np.zeros(len(records), dtype=np.bool_)
    own = np.isin(assigned.outcome, [CODE["orphan"], CODE["communication"]])
    blocks = []
    candidates = np.flatnonzero((records.kind == KERNEL) & ~own) if sidecar.graphs else np.zeros(0, dtype=np.int64)
    pairs = np.stack((assigned.compiled[candidates], records.name[candidates]), axis=1)
    for pair in np.unique(pairs, axis=0).tolist():
        shares = sidecar.shares(_graph(trace.names, pair[0]), trace.names[pair[1]])
        if shares:
            rows = candidates[(pairs == pair).all(axis=1)]
            shared[rows] = True
            blocks.append(_cut(host, rows, shares))
    whole = np.flatnonzero(~shared)
    blocks.append(
        (whole, assigned.slot[whole], assigned.outcome[whole], records.start_ns[whole], records.end_ns[whole])
    )
    row, slot, outcome, start, end = (np.concatenate(column) for column in zip(*blocks, strict=True))
    return Parts(row, slot, outcome, start, end, shared, triton)


def _graph(names: tuple[str, ...], code: int) -> str:
    match = COMPILED.match(names[code]) if code != NOBODY else None
    return match.group(1) if match is not None else ANY_GRAPH


def _cut(host: Host, rows: IntArray, shares: Shares) -> tuple[IntArray, ...]:
    """Cut records at the cumulative weights; parts of one record are consecutive and as long as the record."""
    records, k = host.trace.records, len(shares)
    edges = np.concatenate(([0.0], np.cumsum([weight for _, weight in shares])))
    edges[-1] = 1.0
    start, length = records.start_ns[rows], records.end_ns[rows] - records.start_ns[rows]
    cuts = start[:, None] + np.rint(length[:, None] * edges[None, :]).astype(np.int64)
    slots = np.array([host.claims.book(slot) for slot, _ in shares], dtype=np.int64)
    outcomes = np.array([_outcome(slot.phase) for slot, _ in shares], dtype=np.int64)
    return (
        np.repeat(rows, k), np.tile(slots, len(rows)), np.tile(outcomes, len(rows)),
        cuts[:, :-1].ravel(), cuts[:, 1:].ravel(),
    )  # fmt: skip


def _outcome(phase: str) -> int:
    return CODE["module-backward" if phase == "backward" else "module-forward"]
