"""Join a trace: every device record to a module and a phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from torchwatt.core.intervals import NO_INDEX, busy_ns
from torchwatt.core.meter import IntArray
from torchwatt.core.trace import Activity
from torchwatt.kineto.graph_replays import captures_of
from torchwatt.kineto.host_ownership import NO_RANGES, RecordedRanges
from torchwatt.kineto.host_timeline import HostTimeline, host_timeline
from torchwatt.kineto.joined_trace import OUTCOME_CODES, OUTCOMES, JoinedTrace, Outcome
from torchwatt.kineto.kineto_trace import ANNOTATION, KERNEL, KinetoTrace, LaunchLinks, link_launches
from torchwatt.kineto.record_owners import RecordOwners, RecordParts, assign_records, split_compiled_kernels
from torchwatt.kineto.trace_labels import STEP_PREFIX, Sidecar, annotation_label, module_infos

LABEL_NOTES = {
    "own": "labels are ranges that torchwatt or the user named for it",
    "module": "labels are the nn.Module calls that the profiler saw (with_stack=True)",
    "scope": "the trace names no module: labels are named ranges, and operators where there are none",
    "none": "the trace names no module and no range: labels are operators",
}


def join_trace(
    trace: KinetoTrace,
    *,
    captures: Sequence[KinetoTrace] = (),
    sidecar: Sidecar | None = None,
    live: RecordedRanges = NO_RANGES,
    offset_ns: int = 0,
    stages: Sequence[str] = (),
) -> JoinedTrace:
    """Join every device record of a trace to a module and a phase.

    Args:
        trace: As `read_trace` returns it.
        captures: Traces with the captures of CUDA or HIP graphs that this one replays.
        sidecar: Which modules the compiler fused into which kernel.
        live: Ranges with sequence numbers, where a session recorded them.
        offset_ns: Added to the trace's times: from unix time to the clock of the power readings.
        stages: Annotations that name a stage, as `stage_name` takes them; those of `torchwatt.stage` always do.
    """
    host, links = host_timeline(trace, live, stages), link_launches(trace)
    all_captures = own_captures = captures_of(host, links)
    for capture in captures:
        all_captures += captures_of(host_timeline(capture, stages=stages))
    assigned = assign_records(host, links, all_captures)
    parts = split_compiled_kernels(host, links, assigned, sidecar or Sidecar())
    stage = _record_stages(host, links)
    notes = (*_notes(host, links, assigned, parts), *_stage_notes(host, stage))
    activities = tuple(_activities(host, links, parts, stage, offset_ns, notes))
    length = parts.end_ns - parts.start_ns
    kernel = trace.records.kind[parts.row] == KERNEL
    return JoinedTrace(
        source=trace.source,
        rank=trace.rank,
        activities=activities,
        records=len(trace.records),
        kernel_ns=_by_outcome(parts.outcome[kernel], length[kernel]),
        copy_ns=_by_outcome(parts.outcome[~kernel], length[~kernel]),
        busy_ns={a.device: busy_ns(a.start_ns, a.end_ns) for a in activities},
        labels=LABEL_NOTES[host.claims.labels],
        clock=trace.clock,
        offset_ns=offset_ns,
        lost=max(len(links.unanswered) - sum(len(c.names) for c in own_captures), 0),
        modules=module_infos(host.claims.paths),
        notes=notes,
        device_names=tuple((f"gpu:{number}", name) for number, name in trace.device_names),
        annotations=frozenset(_annotations(trace)),
    )


def _annotations(trace: KinetoTrace) -> Iterator[str]:
    for code in np.unique(trace.ranges.name[trace.ranges.kind == ANNOTATION]).tolist():
        if not trace.names[code].startswith(STEP_PREFIX):
            yield annotation_label(trace.names[code])


def _by_outcome(outcome: IntArray, length_ns: IntArray) -> dict[Outcome, int]:
    return {name: int(length_ns[outcome == OUTCOME_CODES[name]].sum()) for name in OUTCOMES}


def _record_stages(host: HostTimeline, links: LaunchLinks) -> IntArray:
    """Return the stage (place in `claims.stage_names`) in which each record was launched, -1 for none."""
    launches = host.trace.launches
    launched = np.flatnonzero(links.launch != NO_INDEX)
    at = links.launch[launched]
    stage = np.full(len(host.trace.records), NO_INDEX, dtype=np.int64)
    stage[launched] = host.stage_at(launches.thread[at], launches.start_ns[at])
    return stage


def _activities(
    host: HostTimeline,
    links: LaunchLinks,
    parts: RecordParts,
    stage: IntArray,
    offset_ns: int,
    notes: tuple[str, ...],
) -> Iterator[Activity]:
    trace = host.trace
    device = trace.records.device[parts.row]
    covered = _recorded_interval(trace, offset_ns)
    slots, stages = tuple(host.claims.book.numbers), (*host.claims.stage_names, "")
    staged = parts.slot * len(stages) + stage[parts.row] % len(stages)  # -1, for none, is the last
    for index in np.unique(device).tolist():
        mine = np.flatnonzero(device == index)
        mine = mine[np.argsort(parts.start_ns[mine], kind="stable")]
        rows = parts.row[mine]
        used, slot = np.unique(staged[mine], return_inverse=True)
        yield Activity(
            device=f"gpu:{index}",
            slots=tuple(replace(slots[i // len(stages)], stage=stages[i % len(stages)]) for i in used.tolist()),
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


def _recorded_interval(trace: KinetoTrace, offset_ns: int) -> tuple[tuple[int, int], ...]:
    """Return the interval in which devices were recorded: from the first to the last event of the trace."""
    tables = [t for t in (trace.records, trace.launches, trace.ops, trace.ranges) if len(t)]
    if not tables:
        return ()
    start_ns, end_ns = min(int(t.start_ns.min()) for t in tables), max(int(t.end_ns.max()) for t in tables)
    return ((start_ns + offset_ns, end_ns + offset_ns),)


def _steps(trace: KinetoTrace, links: LaunchLinks, rows: IntArray, offset_ns: int) -> tuple[tuple[int, int], ...]:
    """Return the profiler's steps on the device's timeline: from the first record launched in a step to the next's."""
    ranges = trace.ranges
    step = np.array([name.startswith(STEP_PREFIX) for name in trace.names] or [False], dtype=np.bool_)
    marks = np.flatnonzero(step[ranges.name])
    marks = marks[np.argsort(ranges.start_ns[marks], kind="stable")]
    launched = rows[links.launch[rows] != NO_INDEX]
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


def _stage_notes(host: HostTimeline, stage: IntArray) -> Iterator[str]:
    counts = np.bincount(stage + 1, minlength=1)[1:]
    named = [f"{name} ({n} records)" for name, n in zip(host.claims.stage_names, counts.tolist(), strict=False) if n]
    if named:
        without = int((stage == NO_INDEX).sum())
        yield f"stages are those of the launching threads: {', '.join(named)}; {without} records have none"


def _notes(host: HostTimeline, links: LaunchLinks, assigned: RecordOwners, parts: RecordParts) -> Iterator[str]:
    yield LABEL_NOTES[host.claims.labels]
    yield from host.trace.notes
    orphans = int((assigned.outcome == OUTCOME_CODES["orphan"]).sum())
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
