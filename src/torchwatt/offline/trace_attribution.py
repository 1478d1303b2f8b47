"""Attribution of recorded files: saved traces and a power log, with the same code as a live run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from torchwatt.attribution.device_fit import DevicePriors
from torchwatt.attribution.sensor_response import SENSOR_FAMILIES
from torchwatt.core.errors import ConfigError
from torchwatt.core.meter import Event, Meter, Recording
from torchwatt.core.report import Report
from torchwatt.core.trace import EMPTY_TRACE, Activity, Trace
from torchwatt.core.units import NS_PER_S, ns_from_s
from torchwatt.kineto import JoinedTrace, join_trace, read_sidecar, read_trace, stage_name
from torchwatt.kineto.trace_offset import fit_offset
from torchwatt.offline.card_selection import match_idle_cards, select_cards
from torchwatt.reports.process_identity import new_run_id
from torchwatt.reports.report_builder import RunInterval, RunOutcome, build_report
from torchwatt.reports.run_options import RunOptions
from torchwatt.sensors.logs.power_log import DATELESS, ZONELESS, read_power_log

StrPath = str | os.PathLike[str]
OffsetOption = float | Literal["fit"] | None
MAX_OFFSET_S = 1e10
# Readings of a long log that are used around the trace: enough to find the sensor's period.
CONTEXT_NS = 60 * NS_PER_S
CONTEXT_READINGS = 20
DAY_NS = 86_400 * NS_PER_S
MOST_NAMES = 8  # of ranges in a message


@dataclass(frozen=True, slots=True)
class RecordedFiles:
    """Inputs of an offline run.

    `offset` is in seconds, added to the traces' times, or "fit". `sensor` is the family of the GPU's power sensor
    (a100, h100, ...); "auto" infers it from the readings. `idle` is a power log of the same devices without load.
    `device` names the log's cards in the order of the trace's devices, like CUDA_VISIBLE_DEVICES.
    `zone` is the time zone of the log's times if they have none. `stages` are the names of `record_function` ranges
    that are stages: `prefill`, a pattern such as `decode_*`, or `NAME=PATTERN` to give the stage another name.
    """

    traces: tuple[StrPath, ...]
    power: StrPath | None = None
    captures: tuple[StrPath, ...] = ()
    sidecar: StrPath | None = None
    offset: OffsetOption = None
    sensor: str = "auto"
    idle: StrPath | None = None
    device: tuple[str, ...] = ()
    zone: str | None = None
    stages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class OfflineResult:
    """Result: joined traces, and a report if there is a power log."""

    joined: tuple[JoinedTrace, ...]
    report: Report | None
    events: tuple[Event, ...] = field(default=())


def attribute(
    trace: StrPath | Sequence[StrPath],
    power: StrPath,
    *,
    offset: OffsetOption = None,
    sensor: str = "auto",
    idle: StrPath | None = None,
    device: str | int | Sequence[str | int] = (),
    zone: str | None = None,
    stage: str | Sequence[str] = (),
) -> Report:
    """Attribute the joules of a power log to the layers of a recorded run.

    Args:
        trace: A trace saved by torch.profiler (.json, .json.gz), or one per rank.
        power: A log of power readings; docs/power_logs.md lists the formats.
        offset: Seconds to add to the trace's times to get those of the log; "fit" searches for it.
        sensor: Family of the power sensor: "a100", "h100", "ada", "ampere", "volta", "turing", "pascal"; "auto" infers
            it from the readings.
        idle: A power log of the device without load and with its context loaded: gives its static power.
        device: The log's cards in the order of the trace's devices, by index, uuid, bus id, serial number, host or
            name: the value of CUDA_VISIBLE_DEVICES during the run.
        zone: Time zone of the log's times if they have none, such as "Europe/Paris"; default UTC.
        stage: Names of `record_function` ranges that are stages, such as "prefill", "decode_*", or "NAME=PATTERN";
            those of `torchwatt.stage` always are.

    Raises:
        TraceError: A trace cannot be read.
        SensorError: The power log cannot be read.
        ConfigError: Trace and log do not match: different devices, or times that do not overlap.
    """
    traces = (trace,) if isinstance(trace, (str, os.PathLike)) else tuple(trace)
    named = (device,) if isinstance(device, str | int) else tuple(device)
    files = RecordedFiles(
        traces,
        power,
        offset=offset,
        sensor=sensor,
        idle=idle,
        device=tuple(map(str, named)),
        zone=zone,
        stages=(stage,) if isinstance(stage, str) else tuple(stage),
    )
    result = attribute_files(files)
    assert result.report is not None  # noqa: S101  # a power log always gives one
    return result.report


def attribute_files(files: RecordedFiles) -> OfflineResult:
    """Join the traces and, if there is a power log, attribute its joules.

    Raises:
        TraceError: A trace, capture or sidecar cannot be read.
        SensorError: The power log cannot be read.
        ConfigError: The files do not belong together.
    """
    captures = [read_trace(path) for path in files.captures]
    sidecar = read_sidecar(files.sidecar) if files.sidecar is not None else None
    if isinstance(files.offset, float | int) and not abs(files.offset) <= MAX_OFFSET_S:
        raise ConfigError(f"--offset {files.offset:g}: give seconds, at most {MAX_OFFSET_S:g}")
    given_ns = ns_from_s(files.offset) if isinstance(files.offset, float | int) else 0
    joined = tuple(
        join_trace(read_trace(path), captures=captures, sidecar=sidecar, offset_ns=given_ns, stages=files.stages)
        for path in files.traces
    )
    _check_stages(files.stages, joined)
    _reject_shared_devices(joined)
    if files.power is None:
        return OfflineResult(joined, None)
    log = read_power_log(files.power, files.zone)
    recording, events = select_cards(log, joined, files.device)
    recording = _assume_date(recording, joined)
    if files.offset == "fit":
        joined, fit_events = _fit_offsets(joined, recording)
        events += fit_events
    elif files.offset is None and any(trace.clock == "unknown" for trace in joined):
        raise ConfigError("the trace does not name its clock: give --offset SECONDS, or --offset fit")
    return OfflineResult(joined, _attribute_traces(joined, recording, files, events), events)


def _attribute_traces(
    joined: Sequence[JoinedTrace], recording: Recording, files: RecordedFiles, events: Iterable[Event]
) -> Report:
    activities = tuple(activity for joined_trace in joined for activity in joined_trace.activities)
    start_ns, end_ns = _traced_interval(activities)
    _check_overlap(recording, start_ns, end_ns)
    notes = [
        Event(start_ns, "info", "TRACE_NOTE", joined_trace.source, note)
        for joined_trace in joined
        for note in joined_trace.notes
    ]
    trace: Trace = replace(
        EMPTY_TRACE,
        steps=max((activity.steps for activity in activities), key=len, default=()),
        modules=tuple({info.fqn: info for joined_trace in joined for info in joined_trace.modules}.values()),
        events=(*notes, *events),
        activities=activities,
    )
    # Recorded files use unix time: monotonic and realtime are the same.
    name = " + ".join(Path(path).name for path in files.traces)
    return build_report(
        new_run_id(),
        RunOptions(name=name, layers=False),
        RunInterval(start_ns, end_ns, start_ns),
        _drop_distant_readings(recording, start_ns, end_ns),
        trace,
        RunOutcome("complete", events=recording.events, priors=_declared_priors(files, recording.meters)),
    )


def _drop_distant_readings(recording: Recording, start_ns: int, end_ns: int) -> Recording:
    """Drop readings far from the run."""
    period_ns = max(series.channel.period_ns for series in recording.series)
    around_ns = max(CONTEXT_NS, CONTEXT_READINGS * period_ns)
    return recording.between(start_ns - around_ns, end_ns + around_ns)


def _declared_priors(files: RecordedFiles, meters: Sequence[Meter]) -> DevicePriors:
    """Return the sensor families and idle power that the caller gave.

    Activity before a recorded trace is unknown: the log's readings before it are not used as a baseline.
    """
    domains = [str(meter.domain) for meter in meters]
    if files.sensor != "auto" and files.sensor not in SENSOR_FAMILIES:
        raise ConfigError(f"no sensor family {files.sensor!r}: give auto or one of {', '.join(SENSOR_FAMILIES)}")
    families = {} if files.sensor == "auto" else dict.fromkeys(domains, files.sensor)
    idle_w: dict[str, float] = {}
    if files.idle is not None:
        idle_recording = match_idle_cards(read_power_log(files.idle, files.zone), meters)
        for series in idle_recording.series:
            if series.channel.quantity == "power":
                idle_w[str(series.channel.domain)] = float(np.mean(series.raw)) * series.channel.scale
    return DevicePriors(families=families, idle_w=idle_w, baseline=False)


def _traced_interval(activities: Sequence[Activity]) -> tuple[int, int]:
    if not activities:
        raise ConfigError("the trace contains no device record: profile with ProfilerActivity.CUDA")
    ends = [edge for activity in activities for edge in activity.covered]
    return min(start for start, _ in ends), max(end for _, end in ends)


def _check_stages(stages: Sequence[str], joined: Sequence[JoinedTrace]) -> None:
    """Reject a stage that no range of the traces has, which would be a row without joules."""
    names = sorted({name for trace in joined for name in trace.annotations})
    for stage in stages:
        if not stage.partition("=")[0].strip():
            raise ConfigError(f"--stage {stage!r}: give the stage a name, such as prefill or decode=decode_*")
        if not any(stage_name(name, (stage,)) is not None for name in names):
            some = ", ".join(names[:MOST_NAMES]) + ", ..." * (len(names) > MOST_NAMES) if names else "none at all"
            raise ConfigError(f"--stage {stage}: no record_function range of the trace has this name; it has: {some}")


def _reject_shared_devices(joined: Sequence[JoinedTrace]) -> None:
    """Reject two traces of one device: its joules would be counted twice."""
    sources: dict[str, str] = {}
    for trace in joined:
        for activity in trace.activities:
            if activity.device in sources:
                raise ConfigError(
                    f"{sources[activity.device]} and {trace.source} both contain records of {activity.device}: "
                    "attribute them separately, each with its own power log"
                )
            sources[activity.device] = trace.source


def _assume_date(recording: Recording, joined: Sequence[JoinedTrace]) -> Recording:
    """Move a log whose times have no date to the day of the trace."""
    starts = [int(activity.start_ns.min()) for trace in joined for activity in trace.activities if len(activity)]
    if not recording.meta.get(DATELESS) or not starts:
        return recording
    middle_ns = np.median([np.median(series.t_ns) for series in recording.series])
    days = round((min(starts) - middle_ns) / DAY_NS)
    moved = tuple(replace(series, t_ns=series.t_ns + days * DAY_NS) for series in recording.series)
    message = "times of the power log have no date: the trace's date is assumed"
    event = Event(min(starts), "info", "DATE_ASSUMED", "run", message)
    return replace(recording, series=moved, events=(*recording.events, event))


def _fit_offsets(
    joined: Sequence[JoinedTrace], recording: Recording
) -> tuple[tuple[JoinedTrace, ...], tuple[Event, ...]]:
    """Shift each trace to the offset at which its device's activity best explains the device's power."""
    moved, events = [], []
    for trace in joined:
        device = max(trace.activities, key=len, default=None)
        power = recording.get(f"{device.device}/power") if device is not None else None
        if device is None or power is None:
            raise ConfigError(f"{trace.source}: no power readings of its device to fit an offset to; give --offset S")
        offset = fit_offset(device.start_ns, device.end_ns, power.t_ns, power.raw * power.channel.scale)
        if offset.ambiguous:
            raise ConfigError(
                f"{trace.source}: no offset could be found: the best explains {offset.explained:.0%} of the variance, "
                f"the next {offset.runner_up:.0%}; give --offset SECONDS"
            )
        text = (
            f"offset {offset.offset_ns / NS_PER_S:.6f} s was fitted: it explains {offset.explained:.0%} of the power's "
            f"variance, the next best offset {offset.runner_up:.0%}; it includes the sensor's lag"
        )
        events.append(Event(int(power.t_ns[0]), "info", "OFFSET_FITTED", trace.source, text))
        moved.append(_shift_trace(trace, offset.offset_ns))
    return tuple(moved), tuple(events)


def _shift_trace(trace: JoinedTrace, offset_ns: int) -> JoinedTrace:
    def later(edges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        return tuple((start + offset_ns, end + offset_ns) for start, end in edges)

    activities = tuple(
        replace(
            activity,
            start_ns=activity.start_ns + offset_ns,
            end_ns=activity.end_ns + offset_ns,
            covered=later(activity.covered),
            steps=later(activity.steps),
        )
        for activity in trace.activities
    )
    return replace(trace, activities=activities, offset_ns=trace.offset_ns + offset_ns)


def _check_overlap(recording: Recording, start_ns: int, end_ns: int) -> None:
    log_start_ns = min(int(series.t_ns[0]) for series in recording.series)
    log_end_ns = max(int(series.t_ns[-1]) for series in recording.series)
    if end_ns <= log_start_ns or start_ns >= log_end_ns:
        zone = "; times of the log have no zone and were read as UTC: give --zone NAME if they are of another zone"
        raise ConfigError(
            f"the power log ({_format_utc(log_start_ns)} to {_format_utc(log_end_ns)}) and the trace "
            f"({_format_utc(start_ns)} to {_format_utc(end_ns)}) do not overlap: give --offset SECONDS to add to "
            "the trace's times, or --offset fit" + zone * bool(recording.meta.get(ZONELESS))
        )


def _format_utc(t_ns: int) -> str:
    try:
        return datetime.fromtimestamp(t_ns / NS_PER_S, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return f"{t_ns} ns"
