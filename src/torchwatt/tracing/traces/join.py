"""Join a trace: every device record to a module and a phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from torchwatt.core.activity import Activity
from torchwatt.core.meter import IntArray
from torchwatt.tracing.ranges import NOBODY
from torchwatt.tracing.traces.assign import Assigned, assign
from torchwatt.tracing.traces.busy import busy_ns
from torchwatt.tracing.traces.graphs import captures_of
from torchwatt.tracing.traces.labels import STEP_PREFIX
from torchwatt.tracing.traces.launch import Links, link
from torchwatt.tracing.traces.live import NO_LIVE, Live
from torchwatt.tracing.traces.modules import module_infos
from torchwatt.tracing.traces.outcome import CODE, OUTCOMES, Joined, Outcome
from torchwatt.tracing.traces.resolve import Host, host_of
from torchwatt.tracing.traces.sidecar import Sidecar
from torchwatt.tracing.traces.split import Parts, split
from torchwatt.tracing.traces.tables import KERNEL, Kineto

LABELS = {
    "own": "labels are ranges that torchwatt or the user named for it",
    "module": "labels are the nn.Module calls that the profiler saw (with_stack=True)",
    "scope": "the trace names no module: labels are named ranges, and operators where there are none",
    "none": "the trace names no module and no range: labels are operators",
}


def join(
    trace: Kineto,
    *,
    captures: Sequence[Kineto] = (),
    sidecar: Sidecar | None = None,
    live: Live = NO_LIVE,
    offset_ns: int = 0,
) -> Joined:
    """Join every device record of a trace to a module and a phase.

    Args:
        trace: As `read_trace` returns it.
        captures: Traces with the captures of CUDA or HIP graphs that this one replays.
        sidecar: Which modules the compiler fused into which kernel.
        live: Ranges with sequence numbers, where a session recorded them.
        offset_ns: Added to the trace's times: from unix time to the clock of the power readings.
    """
    host, links = host_of(trace, live), link(trace)
    all_captures = own_captures = captures_of(host, links)
    for capture in captures:
        all_captures += captures_of(host_of(capture))
    assigned = assign(host, links, all_captures)
    parts = split(host, links, assigned, sidecar or Sidecar())
    activities = tuple(_activities(host, links, parts, offset_ns, notes := tuple(_notes(host, links, assigned, parts))))
    length = parts.end_ns - parts.start_ns
    kernel = trace.records.kind[parts.row] == KERNEL
    return Joined(
        source=trace.source,
        rank=trace.rank,
        activities=activities,
        records=len(trace.records),
        kernel_ns=_by_outcome(parts.outcome[kernel], length[kernel]),
        copy_ns=_by_outcome(parts.outcome[~kernel], length[~kernel]),
        busy_ns={a.device: busy_ns(a.start_ns, a.end_ns) for a in activities},
        labels=LABELS[host.claims.labels],
        clock=trace.clock,
        offset_ns=offset_ns,
        lost=max(len(links.unanswered) - sum(len(c.names) for c in own_captures), 0),
        modules=module_infos(host.claims.paths),
        notes=notes,
        device_names=tuple((f"gpu:{number}", name) for number, name in trace.device_names),
    )


def _by_outcome(outcome: IntArray, length_ns: IntArray) -> dict[Outcome, int]:
    return {name: int(length_ns[outcome == CODE[name]].sum()) for name in OUTCOMES}


def _activities(host: Host, links: Links, parts: Parts, offset_ns: int, notes: tuple[str, ...]) -> Iterator[Activity]:
    trace = host.trace
    device = trace.records.device[parts.row]
    covered = _covered(trace, offset_ns)
    slots = tuple(host.claims.book.numbers)
    for index in np.unique(device).tolist():
        mine = np.flatnonzero(device == index)
        mine = mine[np.argsort(parts.start_ns[mine], kind="stable")]
        rows = parts.row[mine]
        used, slot = np.unique(parts.slot[mine], return_inverse=True)
        yield Activity(
            device=f"gpu:{index}",
            slots=tuple(slots[i] for i in used.tolist()),
            slot=slot.astype(np.int64),
            start_ns=parts.start_ns[mine] + offset_ns,
            end_ns=parts.end_ns[mine] + offset_ns,
            stream=trace.records.stream[rows],
            filled=np.zeros(len(mine), dtype=np.bool_),
            signatures=trace.signatures,
            signature=trace.records.signature[rows],
            covered=covered,
            steps=_steps(trace, links, np.unique(rows), offset_ns),
            notes=notes,
        )


def _covered(trace: Kineto, offset_ns: int) -> tuple[tuple[int, int], ...]:
    """Return the interval in which devices were recorded: from the first to the last event of the trace."""
    tables = [t for t in (trace.records, trace.launches, trace.ops, trace.ranges) if len(t)]
    if not tables:
        return ()
    start_ns, end_ns = min(int(t.start_ns.min()) for t in tables), max(int(t.end_ns.max()) for t in tables)
    return ((start_ns + offset_ns, end_ns + offset_ns),)


def _steps(trace: Kineto, links: Links, rows: IntArray, offset_ns: int) -> tuple[tuple[int, int], ...]:
    """Return the profiler's steps on the device's timeline: from the first record launched in a step to the next's."""
    ranges = trace.ranges
    step = np.array([name.startswith(STEP_PREFIX) for name in trace.names] or [False], dtype=np.bool_)
    marks = np.flatnonzero(step[ranges.name])
    marks = marks[np.argsort(ranges.start_ns[marks], kind="stable")]
    launched = rows[links.launch[rows] != NOBODY]
    if not len(marks) or not len(launched):
        return ()
    began = trace.launches.start_ns[links.launch[launched]]
    which = np.searchsorted(ranges.start_ns[marks], began, side="right") - 1
    in_step = (which >= 0) & (began < ranges.end_ns[marks][np.maximum(which, 0)])
    starts, end_ns = [], 0
    for i in range(len(marks)):
        mine = launched[in_step & (which == i)]
        if len(mine):
            starts.append(int(trace.records.start_ns[mine].min()))
            end_ns = max(end_ns, int(trace.records.end_ns[mine].max()))
    edges = sorted({*starts, end_ns})
    return tuple((a + offset_ns, b + offset_ns) for a, b in pairwise(edges))


def _notes(host: Host, links: Links, assigned: Assigned, parts: Parts) -> Iterator[str]:
    yield LABELS[host.claims.labels]
    yield from host.trace.notes
    orphans = int((assigned.outcome == CODE["orphan"]).sum())
    if orphans:
        yield f"{orphans} records have no launch in the trace (launched before it began): booked to (orphan)"
    if links.ambiguous:
        yield f"{links.ambiguous} records share a correlation id with several launches: the last before each is used"
    replays = assigned.replays
    if replays.graphs > replays.mapped:
        lacking = replays.graphs - replays.mapped
        yield f"{lacking} of {replays.graphs} graph replays have no capture that fits: booked to what encloses them"
    if replays.mapped:
        yield f"{replays.mapped} of {replays.graphs} graph replays are labelled by the order of their capture"
    shared = int(parts.shared.sum())
    if shared:
        yield f"{shared} compiled kernels are shared by the modules fused into them, by the sidecar's weights"
    if compiled := int((parts.triton & ~parts.shared).sum()):
        yield f"{compiled} compiled kernels have no provenance: booked to what encloses their launch"
    if host.trace.clock == "unknown":
        yield "the trace does not name its clock: give an offset to align it with power readings"
