"""Split kernels that several modules share: a fused kernel's time is cut in proportion; total time is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.meter import IntArray
from torchwatt.tracing.ranges import NOBODY
from torchwatt.tracing.traces.assign import Assigned
from torchwatt.tracing.traces.extern import extern_calls
from torchwatt.tracing.traces.labels import COMPILED
from torchwatt.tracing.traces.launch import Links
from torchwatt.tracing.traces.nest import by_group
from torchwatt.tracing.traces.outcome import CODE
from torchwatt.tracing.traces.resolve import Host
from torchwatt.tracing.traces.sidecar import ANY_GRAPH, Shares, Sidecar
from torchwatt.tracing.traces.tables import KERNEL


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Records, with shared ones cut into consecutive parts; `row` is each part's record."""

    row: IntArray
    slot: IntArray
    outcome: IntArray
    start_ns: IntArray
    end_ns: IntArray
    shared: NDArray[np.bool_]  # by record: cut by provenance
    triton: NDArray[np.bool_]  # by record: a compiled kernel, with or without provenance


def split(host: Host, links: Links, assigned: Assigned, sidecar: Sidecar) -> Parts:
    """Assign compiled kernels to the modules that the compiler fused into them, as far as a sidecar has them."""
    trace = host.trace
    records = trace.records
    triton = (records.kind == KERNEL) & np.array(
        [name.startswith("triton_") for name in trace.names] or [False], dtype=np.bool_
    )[records.name]
    shared = np.zeros(len(records), dtype=np.bool_)
    own = np.isin(assigned.outcome, [CODE["orphan"], CODE["communication"]])
    blocks = []
    candidates = np.flatnonzero((records.kind == KERNEL) & ~own) if sidecar.graphs else np.zeros(0, dtype=np.int64)
    for part, shares in (
        *_fused(host, assigned, sidecar, candidates),
        *_extern(host, links, assigned, sidecar, candidates[~triton[candidates]]),
    ):
        part = part[~shared[part]]  # noqa: PLW2901  # records already labelled by name
        shared[part] = True
        blocks.append(_cut(host, part, shares))
    uncut = np.flatnonzero(~shared)
    blocks.append(
        (uncut, assigned.slot[uncut], assigned.outcome[uncut], records.start_ns[uncut], records.end_ns[uncut])
    )
    row, slot, outcome, start, end = (np.concatenate(column) for column in zip(*blocks, strict=True))
    return Parts(row, slot, outcome, start, end, shared, triton)


def _fused(host: Host, assigned: Assigned, sidecar: Sidecar, rows: IntArray) -> Iterator[tuple[IntArray, Shares]]:
    """Yield kernels that the compiler generated, with their shares by name."""
    records = host.trace.records
    pairs = np.stack((assigned.compiled[rows], records.name[rows]), axis=1)
    distinct, which = np.unique(pairs, axis=0, return_inverse=True)
    for number, members in by_group(which.reshape(-1)):
        call, name = distinct[number].tolist()
        yield from _calls(rows[members], records.start_ns, _graph(host, call), host.trace.names[name], sidecar)


def _extern(
    host: Host, links: Links, assigned: Assigned, sidecar: Sidecar, rows: IntArray
) -> Iterator[tuple[IntArray, Shares]]:
    """Yield kernels of operators that compiled graphs call unchanged."""
    rows = rows[(assigned.compiled[rows] != NOBODY) & ~links.graph[rows]]
    if not len(rows):
        return
    compiled = assigned.compiled[rows]
    graphs = {call: _graph(host, call) for call in np.unique(compiled).tolist()}
    yield from extern_calls(host, sidecar, rows, links.launch[rows], compiled, graphs)


def _calls(
    rows: IntArray, start_ns: IntArray, graph: str, kernel: str, sidecar: Sidecar
) -> Iterator[tuple[IntArray, Shares]]:
    """Yield the records of one kernel in one call of a graph with their shares, per call where the sidecar has these.

    If the trace and the provenance differ in the number of calls, all records get the kernel's overall shares.
    """
    by_call = [shares for i in range(len(rows)) if (shares := sidecar.shares(graph, f"{kernel}#{i}"))]
    further = sidecar.shares(graph, f"{kernel}#{len(rows)}")
    together = sidecar.shares(graph, kernel)
    if len(by_call) == len(rows) and not further:
        ordered = rows[np.argsort(start_ns[rows], kind="stable")]
        for row, shares in zip(ordered, by_call, strict=True):
            yield np.array([row]), shares
    elif together:
        yield rows, together


def _graph(host: Host, call: int) -> str:
    code = int(host.claims.compiled_name[call]) if call != NOBODY else NOBODY
    match = COMPILED.match(host.trace.names[code]) if code != NOBODY else None
    return match.group(1) if match is not None else ANY_GRAPH


def _cut(host: Host, rows: IntArray, shares: Shares) -> tuple[IntArray, ...]:
    """Cut records at the cumulative weights; parts of one record are consecutive and together as long as the record."""
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
