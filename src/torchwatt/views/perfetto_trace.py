"""A run in the Trace Event Format of Chrome, which Perfetto reads: watts as counters, what ran as slices. Pure.

Times are microseconds since the run's start on its monotonic clock, to the nanosecond; `start_unix_ns` gives the same
instant in unix time. Power is in W, energy in J, utilisation in %, temperature in °C. The integral of a domain's power
is that domain's energy: where there are no readings the counter is 0 W, and a slice `no readings` covers that time.
Utilisation and temperature hold until the next reading; longer pauses have a slice `no readings` as well.
Format: "Trace Event Format", Google, 2016; Perfetto, `src/trace_processor/importers/json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.meter import IntArray
from torchwatt.core.report import Report, Step, Window
from torchwatt.core.terms import PROFILER, Slot
from torchwatt.core.trace import Activity, Trace
from torchwatt.core.units import NS_PER_S
from torchwatt.views.energy_rates import step_j
from torchwatt.views.power_chart import GaugeLine, gauge_lines

MAX_READINGS = 20_000  # of each gauge
MAX_SLICES = 200_000  # of modules: 4 MB compressed, which the browser opens within seconds
RUN_PROCESS = 1
FILLED = "filled in from traced steps"
PARTLY_FILLED = f"partly {FILLED}"
NO_READINGS = "no readings (power unknown)"
NO_GAUGE_READINGS = "no readings (the counter shows the last one)"
_US_PER_NS = 1e-3


@dataclass(frozen=True, slots=True)
class SpanTimeline:
    """Spans of a run's trace, and of its devices; `omitted` shorter ones were left out."""

    trace: Trace
    omitted: int = 0


def select_spans(trace: Trace, limit: int = MAX_SLICES) -> SpanTimeline:
    """Keep the longest `limit` spans and device records: whatever encloses one that is kept is kept as well."""
    durations = [trace.end_ns - trace.start_ns, *(part.end_ns - part.start_ns for part in trace.activities)]
    count = sum(map(len, durations))
    if count <= limit:
        return SpanTimeline(trace)
    shortest_ns = int(np.partition(np.concatenate(durations), count - limit)[count - limit])
    masks = [duration >= shortest_ns for duration in durations]
    if sum(int(mask.sum()) for mask in masks) > limit:  # many of one length
        masks = [duration > shortest_ns for duration in durations]
    activities = tuple(_take_records(a, mask) for a, mask in zip(trace.activities, masks[1:], strict=True))
    columns = ("slot", "start_ns", "end_ns", "thread", "filled", "calls")
    longest = replace(trace, activities=activities, **{name: getattr(trace, name)[masks[0]] for name in columns})
    return SpanTimeline(longest, count - sum(int(mask.sum()) for mask in masks))


def _take_records(activity: Activity, mask: NDArray[np.bool_]) -> Activity:
    columns = ("slot", "start_ns", "end_ns", "stream", "filled")
    signature = activity.signature[mask] if len(activity.signature) else activity.signature
    return replace(activity, signature=signature, **{name: getattr(activity, name)[mask] for name in columns})


@dataclass(frozen=True, slots=True)
class _Slice:
    name: str
    start_ns: int
    end_ns: int
    category: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def to_perfetto(report: Report, timeline: SpanTimeline | None = None) -> bytes:
    """Return the trace as JSON text.

    Args:
        report: The run. Its curves give counters; its steps and windows give slices.
        timeline: Spans of its modules; a report alone (such as that of a bundle) has none.
    """
    about = _about(report, timeline)
    events = [json.dumps(event, allow_nan=False) for event in _events(report, timeline, about)]
    head = f'"displayTimeUnit": "ms",\n"otherData": {json.dumps(about, allow_nan=False)}'
    body = ",\n".join(events)
    return f'{{{head},\n"traceEvents": [\n{body}\n]}}\n'.encode()


def _about(report: Report, timeline: SpanTimeline | None) -> dict[str, Any]:
    """Return units, clock and gaps of the trace, for a reader of the file."""
    if timeline is None:
        modules = "none: a report has no spans, only a run that has just ended has them"
    elif timeline.omitted:
        modules = f"the {MAX_SLICES} longest; {timeline.omitted} shorter ones are left out"
    else:
        modules = "all"
    return {
        "tool": f"torchwatt {report.software.get('torchwatt', '')}".strip(),
        "run": _text(report.name),
        "run_id": report.run_id,
        "status": report.status,
        "clock": "microseconds since the run's start, monotonic",
        "start_unix_ns": str(report.start_unix_ns),
        "units": "power in W, energy in J, utilisation in %, temperature in °C",
        "energy_j": report.energy_j,
        "provenance": report.provenance,
        "module_slices": modules,
        "filled": f"slices with `{FILLED}` were not traced themselves: their place is that of like steps",
    }


def _events(report: Report, timeline: SpanTimeline | None, about: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield _metadata("process_name", RUN_PROCESS, 0, name=f"torchwatt: {_text(report.name)}")
    for curve in report.curves:
        yield from _counter_events(report, curve)
    gauges = tuple(gauge_lines(report, MAX_READINGS))
    for gauge in gauges:
        yield from _gauge_events(gauge)
    tracks = _Tracks(report)
    yield from tracks.add("about", [_Slice("about this trace", report.start_ns, report.end_ns, "about", about)])
    yield from tracks.add("epochs", map(_window_slice, report.windows))
    yield from tracks.add("stages", _stage_slices(report.steps))
    yield from tracks.add("steps", _step_slices(report, timeline.trace if timeline else None))
    for curve in report.curves:
        yield from tracks.add(f"{curve.domain} meter", _gap_slices(report, curve))
    for gauge in gauges:
        yield from tracks.add(f"{gauge.domain} {gauge.kind} sensor", _gauge_gap_slices(report, gauge))
    if timeline is not None:
        trace = timeline.trace
        for thread in np.unique(trace.thread).tolist():
            mine = trace.thread == thread
            columns = (trace.slot[mine], trace.start_ns[mine], trace.end_ns[mine], trace.filled[mine])
            yield from tracks.add(f"modules, thread {thread}", _span_slices(trace.slots, *columns))
        for activity in trace.activities:
            for stream in np.unique(activity.stream).tolist():
                mine = activity.stream == stream
                columns = (activity.slot[mine], activity.start_ns[mine], activity.end_ns[mine], activity.filled[mine])
                yield from tracks.add(f"{activity.device}, stream {stream}", _span_slices(activity.slots, *columns))


class _Tracks:
    """Numbers the tracks, and splits one into lanes where its slices overlap without being nested."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._count = 0

    def add(self, name: str, slices: Iterable[_Slice]) -> Iterator[dict[str, Any]]:
        """Yield the events of one track, in the order of their start, outer before inner."""
        run_start_ns, run_end_ns = self._report.start_ns, self._report.end_ns
        ends: list[list[int]] = []  # of each lane, the ends of the open slices, outermost first
        for each in sorted(slices, key=lambda piece: (piece.start_ns, -piece.end_ns)):
            start_ns, end_ns = (min(max(t_ns, run_start_ns), run_end_ns) for t_ns in (each.start_ns, each.end_ns))
            lane = _find_lane(ends, start_ns, end_ns)
            yield {
                "ph": "X", "name": _text(each.name), "cat": each.category, "pid": RUN_PROCESS,
                "tid": self._count + lane + 1, "ts": _us(start_ns - run_start_ns), "dur": _us(end_ns - start_ns),
                "args": dict(each.arguments),
            }  # fmt: skip
        for lane in range(len(ends)):
            number = self._count + lane + 1
            yield _metadata("thread_name", RUN_PROCESS, number, name=_text(name))
            yield _metadata("thread_sort_index", RUN_PROCESS, number, sort_index=number)
        self._count += len(ends)


def _find_lane(ends: list[list[int]], start_ns: int, end_ns: int) -> int:
    """Return the first lane in which a slice is nested in the open ones or follows them, and open it there."""
    for number, lane in enumerate(ends):
        while lane and lane[-1] <= start_ns:
            lane.pop()
        if not lane or end_ns <= lane[-1]:
            lane.append(end_ns)
            return number
    ends.append([end_ns])
    return len(ends) - 1


def _metadata(kind: str, process: int, thread: int, **arguments: str | int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": arguments}


def _us(duration_ns: int) -> float:
    return round(duration_ns * _US_PER_NS, 3)


def _text(value: str) -> str:
    """Replace lone surrogates, which no reader of JSON has to accept."""
    return value.encode("utf-8", "replace").decode()


def _counter_events(report: Report, curve: EnergyCurve) -> Iterator[dict[str, Any]]:
    """Yield the mean power from each point of a curve to the next one; 0 W where it is unknown, and at its end."""
    since_us = ((curve.t_ns - report.start_ns) * _US_PER_NS).round(3).tolist()
    power_w = np.append(np.nan_to_num(curve.power_w(), nan=0.0), 0.0).tolist()
    name = f"{curve.domain} power ({curve.provenance})"
    for at_us, watts in zip(since_us, power_w, strict=True):
        yield {"ph": "C", "name": name, "cat": "power", "pid": RUN_PROCESS, "ts": at_us, "args": {"W": watts}}


def _gauge_events(gauge: GaugeLine) -> Iterator[dict[str, Any]]:
    """Yield the readings of a gauge; each holds until the next one, and none is made up where readings are missing."""
    name = f"{gauge.domain} {gauge.kind}"
    for at_s, value in zip(gauge.t_s.tolist(), gauge.value.tolist(), strict=True):
        if not isnan(value):
            at_us = round(at_s * 1e6, 3)
            yield {
                "ph": "C",
                "name": name,
                "cat": "gauge",
                "pid": RUN_PROCESS,
                "ts": at_us,
                "args": {gauge.unit: value},
            }


def _gap_slices(report: Report, curve: EnergyCurve) -> Iterator[_Slice]:
    gaps = [(a, b) for a, b in curve.silent if a < report.end_ns and b > report.start_ns]
    if curve.start_ns > report.start_ns:
        gaps.insert(0, (report.start_ns, curve.start_ns))
    if curve.end_ns < report.end_ns:
        gaps.append((curve.end_ns, report.end_ns))
    return (_Slice(NO_READINGS, a, b, "meter", {"domain": str(curve.domain)}) for a, b in gaps)


def _gauge_gap_slices(report: Report, gauge: GaugeLine) -> Iterator[_Slice]:
    """Yield the pauses of a gauge, which begin at a NaN and end at the reading after it."""
    starts = np.flatnonzero(np.isnan(gauge.value[:-1]))
    for start_s, end_s in zip(gauge.t_s[starts].tolist(), gauge.t_s[starts + 1].tolist(), strict=True):
        start_ns, end_ns = (report.start_ns + round(at_s * NS_PER_S) for at_s in (start_s, end_s))
        yield _Slice(NO_GAUGE_READINGS, start_ns, end_ns, "meter", {"domain": gauge.domain})


def _window_slice(window: Window) -> _Slice:
    arguments = {} if window.energy_j is None else {"energy_j": window.energy_j}
    return _Slice(window.name or window.kind, window.start_ns, window.end_ns, window.kind, arguments)


def _stage_slices(steps: Sequence[Step]) -> Iterator[_Slice]:
    """Yield one slice for neighbouring steps of one stage."""
    for stage, group in groupby(steps, key=lambda step: step.stage):
        members = list(group)
        if stage:
            count = sum(step.count for step in members)
            yield _Slice(stage, members[0].start_ns, members[-1].end_ns, "stage", {"steps": count})


def _step_slices(report: Report, trace: Trace | None) -> Iterator[_Slice]:
    sources = _layer_sources(report.steps, trace)
    for step, source in zip(report.steps, sources, strict=True):
        arguments: dict[str, Any] = {"steps": step.count, "stage": step.stage}
        if (joules := step_j(report, step)) is not None:
            arguments["energy_j"] = joules
        arguments |= {f"energy_{domain}_j": joules for domain, joules in step.energy_j.items()}
        name = f"step {step.index}" if step.count == 1 else f"steps {step.index}-{step.index + step.count - 1}"
        if source:
            name, arguments["layers"] = f"{name} ({source.removesuffix(' from traced steps')})", source
        yield _Slice(name, step.start_ns, step.end_ns, "step", arguments)


def _layer_sources(steps: Sequence[Step], trace: Trace | None) -> list[str]:
    """Return for each step whether the layers that began in it were filled in; "" where all of them were traced."""
    if trace is None:
        return [""] * len(steps)
    profiler = [i for i, slot in enumerate(trace.slots) if slot.fqn == PROFILER]
    layers = ~np.isin(trace.slot, profiler)
    traced_ns = np.sort(trace.start_ns[layers & ~trace.filled])
    filled_ns = np.sort(trace.start_ns[layers & trace.filled])
    bounds = np.array([(step.start_ns, step.end_ns) for step in steps], dtype=np.int64).reshape(-1, 2)
    traced, filled = (np.diff(np.searchsorted(times, bounds))[:, 0] for times in (traced_ns, filled_ns))
    return [str(each) for each in np.select([filled == 0, traced == 0], ["", FILLED], PARTLY_FILLED)]


def _span_slices(
    slots: Sequence[Slot], slot: IntArray, start_ns: IntArray, end_ns: IntArray, filled: NDArray[np.bool_]
) -> Iterator[_Slice]:
    for number, start, end, guessed in zip(
        slot.tolist(), start_ns.tolist(), end_ns.tolist(), filled.tolist(), strict=True
    ):
        fqn, phase = slots[number].fqn, slots[number].phase
        yield _Slice(fqn, start, end, phase, {"phase": phase, "layers": FILLED} if guessed else {"phase": phase})
