"""Assign one owner to each device record, by rules in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.intervals import NO_INDEX, groups_of, nest_intervals
from torchwatt.core.meter import IntArray
from torchwatt.core.terms import Slot
from torchwatt.kineto.graph_replays import CapturedGraph, GraphReplays, label_replays
from torchwatt.kineto.host_timeline import HostTimeline
from torchwatt.kineto.joined_trace import OUTCOME_CODES
from torchwatt.kineto.kineto_trace import COPY, KERNEL, LaunchLinks
from torchwatt.kineto.trace_labels import (
    ANY_GRAPH,
    COMMUNICATION_SLOT,
    COMPILED,
    ORPHAN_SLOT,
    TRANSFER_SLOT,
    Shares,
    Sidecar,
    is_collective,
    is_host_copy,
)

OWNED_OUTCOMES = tuple(OUTCOME_CODES[o] for o in ("module-forward", "module-backward", "recompute", "optimizer"))


@dataclass(frozen=True, slots=True, eq=False)
class RecordOwners:
    """Slot and outcome of each record; `compiled` is the compiled graph's call that launched it."""

    slot: IntArray
    outcome: IntArray
    compiled: IntArray
    replays: GraphReplays


def assign_records(host: HostTimeline, links: LaunchLinks, captures: tuple[CapturedGraph, ...]) -> RecordOwners:
    """Find the owner of each record.

    1. Collectives are communication, whatever launched them. 2. No launch: an orphan. 3. Replayed: the owner at
    capture, or what encloses the replay. 4. A copy between host and device outside modules, autograd nodes and
    optimizers is a transfer. 5. All other records belong to the owner of their launch.
    """
    records, launches, book = host.trace.records, host.trace.launches, host.claims.book
    launched = np.flatnonzero(links.launch != NO_INDEX)
    at = links.launch[launched]
    slot = np.full(len(records), book(ORPHAN_SLOT), dtype=np.int64)
    outcome = np.full(len(records), OUTCOME_CODES["orphan"], dtype=np.int64)
    slot[launched], outcome[launched] = host.at(launches.thread[at], launches.start_ns[at])
    compiled = np.full(len(records), NO_INDEX, dtype=np.int64)
    compiled[launched] = host.compiled_at(launches.thread[at], launches.start_ns[at])
    replays = label_replays(host, links, captures)
    _assign_replays(host, links, replays, slot, outcome)
    copies = (records.kind == COPY) & _by_name(host, is_host_copy)[records.name]
    moved = copies & (links.launch != NO_INDEX) & ~np.isin(outcome, OWNED_OUTCOMES)
    slot[moved], outcome[moved] = book(TRANSFER_SLOT), OUTCOME_CODES["transfer"]
    collective = (records.kind == KERNEL) & (_by_name(host, is_collective)[records.name] | (records.collective == 1))
    slot[collective], outcome[collective] = book(COMMUNICATION_SLOT), OUTCOME_CODES["communication"]
    return RecordOwners(slot, outcome, compiled, replays)


def _assign_replays(
    host: HostTimeline, links: LaunchLinks, replays: GraphReplays, slot: IntArray, outcome: IntArray
) -> None:
    mapped = replays.slot != NO_INDEX
    slot[mapped], outcome[mapped] = replays.slot[mapped], replays.outcome[mapped]
    unmapped = links.graph & ~mapped
    nameless = np.flatnonzero(unmapped & (outcome == OUTCOME_CODES["outside"]))
    launch = links.launch[nameless]
    # A slot per launch site would be one per replay: graphs are distinguished by their number of kernels.
    sizes = dict(zip(*np.unique(links.launch[links.graph], return_counts=True), strict=True))
    slot[nameless] = [host.claims.book(Slot(f"(graph of {sizes[i]} nodes)", "other")) for i in launch.tolist()]
    outcome[unmapped] = OUTCOME_CODES["graph"]


def _by_name(host: HostTimeline, says: Callable[[str], bool]) -> NDArray[np.bool_]:
    return np.array([says(name) for name in host.trace.names] or [False], dtype=np.bool_)


def extern_calls(
    host: HostTimeline, sidecar: Sidecar, rows: IntArray, launch: IntArray, compiled: IntArray, graphs: dict[int, str]
) -> Iterator[tuple[IntArray, Shares]]:
    """Yield records of operators that compiled graphs call, with the modules of each call.

    A graph call with a number of calls of an operator other than the compiler wrote is skipped.

    Args:
        host: The host side of the trace.
        sidecar: The compiler's provenance.
        rows: Records to match, all launched within the call of a compiled graph.
        launch: Each one's launch.
        compiled: Each one's call of a compiled graph.
        graphs: The graph's key by call.
    """
    ops, launches = host.trace.ops, host.trace.launches
    call = host.compiled_at(ops.thread, ops.start_ns)
    nested = nest_intervals(ops.thread, ops.start_ns, ops.end_ns)
    top = (call != NO_INDEX) & (np.append(call, NO_INDEX)[nested.parent] != call)
    op = nested.climb(nested.at(launches.thread[launch], launches.start_ns[launch]), top)
    mine = (op != NO_INDEX) & (np.append(call, NO_INDEX)[op] == compiled)
    written = {
        int(place): shares
        for number, members in groups_of(np.where(top, call, NO_INDEX))
        if number in graphs
        for place, shares in _in_order(host, members[np.argsort(ops.start_ns[members])], graphs[number], sidecar)
    }
    for place, members in groups_of(np.where(mine, op, NO_INDEX)):
        if place in written:
            yield rows[members], written[place]


def _in_order(host: HostTimeline, places: IntArray, graph: str, sidecar: Sidecar) -> Iterator[tuple[int, Shares]]:
    """Pair a graph call's operators of one name with the provenance, if they are equal in number."""
    names = host.trace.ops.name[places]
    for code, members in groups_of(names):
        operator = host.trace.names[code].removeprefix("aten::")
        for key in (f"extern_kernels.{operator}", f"torch.ops.aten.{operator}.default"):
            shares_by_call = [sidecar.shares(graph, f"{key}#{i}") for i in range(len(members) + 1)]
            if shares_by_call[-1] is None and all(shares_by_call[:-1]):
                yield from (
                    (int(places[m]), shares) for m, shares in zip(members, shares_by_call, strict=False) if shares
                )


@dataclass(frozen=True, slots=True, eq=False)
class RecordParts:
    """Records, with shared ones cut into consecutive parts; `row` is each part's record."""

    row: IntArray
    slot: IntArray
    outcome: IntArray
    start_ns: IntArray
    end_ns: IntArray
    shared: NDArray[np.bool_]  # by record: cut by provenance
    triton: NDArray[np.bool_]  # by record: a compiled kernel, with or without provenance


def split_compiled_kernels(
    host: HostTimeline, links: LaunchLinks, assigned: RecordOwners, sidecar: Sidecar
) -> RecordParts:
    """Assign compiled kernels to the modules that the compiler fused into them, as far as a sidecar has them."""
    trace = host.trace
    records = trace.records
    triton = (records.kind == KERNEL) & np.array(
        [name.startswith("triton_") for name in trace.names] or [False], dtype=np.bool_
    )[records.name]
    shared = np.zeros(len(records), dtype=np.bool_)
    own = np.isin(assigned.outcome, [OUTCOME_CODES["orphan"], OUTCOME_CODES["communication"]])
    blocks = []
    candidates = np.flatnonzero((records.kind == KERNEL) & ~own) if sidecar.graphs else np.zeros(0, dtype=np.int64)
    for part, shares in (
        *_fused_kernels(host, assigned, sidecar, candidates),
        *_extern_kernels(host, links, assigned, sidecar, candidates[~triton[candidates]]),
    ):
        part = part[~shared[part]]  # noqa: PLW2901  # records already labelled by name
        shared[part] = True
        blocks.append(_cut_records(host, part, shares))
    uncut = np.flatnonzero(~shared)
    blocks.append(
        (uncut, assigned.slot[uncut], assigned.outcome[uncut], records.start_ns[uncut], records.end_ns[uncut])
    )
    row, slot, outcome, start, end = (np.concatenate(column) for column in zip(*blocks, strict=True))
    return RecordParts(row, slot, outcome, start, end, shared, triton)


def _fused_kernels(
    host: HostTimeline, assigned: RecordOwners, sidecar: Sidecar, rows: IntArray
) -> Iterator[tuple[IntArray, Shares]]:
    """Yield kernels that the compiler generated, with their shares by name."""
    records = host.trace.records
    pairs = np.stack((assigned.compiled[rows], records.name[rows]), axis=1)
    distinct, which = np.unique(pairs, axis=0, return_inverse=True)
    for number, members in groups_of(which.reshape(-1)):
        call, name = distinct[number].tolist()
        yield from _calls(rows[members], records.start_ns, _graph(host, call), host.trace.names[name], sidecar)


def _extern_kernels(
    host: HostTimeline, links: LaunchLinks, assigned: RecordOwners, sidecar: Sidecar, rows: IntArray
) -> Iterator[tuple[IntArray, Shares]]:
    """Yield kernels of operators that compiled graphs call unchanged."""
    rows = rows[(assigned.compiled[rows] != NO_INDEX) & ~links.graph[rows]]
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


def _graph(host: HostTimeline, call: int) -> str:
    code = int(host.claims.compiled_name[call]) if call != NO_INDEX else NO_INDEX
    match = COMPILED.match(host.trace.names[code]) if code != NO_INDEX else None
    return match.group(1) if match is not None else ANY_GRAPH


def _cut_records(host: HostTimeline, rows: IntArray, shares: Shares) -> tuple[IntArray, ...]:
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
    return OUTCOME_CODES["module-backward" if phase == "backward" else "module-forward"]
