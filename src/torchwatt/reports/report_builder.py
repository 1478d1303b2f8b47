"""Makes a report from a recording and a trace."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, isnan

import numpy as np

from torchwatt.attribution.counter_scope import MODULE_GPUS_FACT
from torchwatt.attribution.device_fit import NO_PRIORS, REPLAY_CONTEXT_REL, CudaUse, DevicePriors, SlotReplay
from torchwatt.attribution.phase_timeline import phase_timeline
from torchwatt.attribution.run_attribution import PHASES_UNSEEN_CODE, Attribution, attribute_recording
from torchwatt.attribution.sensor_response import SensorModel
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.errors import ConfigError
from torchwatt.core.ledger import Ledger
from torchwatt.core.meter import Event, Meter, Recording, Series, Unavailable, coverage_event
from torchwatt.core.report import Report, Status, Step, Window
from torchwatt.core.requests import RequestBatch, token_positions, token_rows
from torchwatt.core.terms import DRAWN_GAUGES, METER_LOSSES, Slot
from torchwatt.core.trace import ModelSize, ReplayedPower, Trace
from torchwatt.reports.emissions import add_impacts
from torchwatt.reports.process_identity import software_versions
from torchwatt.reports.run_options import RunOptions
from torchwatt.sensors.calibrations import calibration_key, calibrations_file, load_calibrations
from torchwatt.sensors.readers.gpu_users import has_cuda_library
from torchwatt.tracing import cuda_domains


def load_sensor_models(meters: Sequence[Meter]) -> tuple[dict[str, SensorModel], list[Event]]:
    """Return saved calibrations of these GPUs by channel key; a damaged file adds an event and is not changed."""
    powers = [(meter, channel) for meter in meters for channel in meter.channels if channel.quantity == "power"]
    keyed = [(calibration_key(meter, channel.sensor), channel.key) for meter, channel in powers]
    channels_by_key = {key: channel for key, channel in keyed if key is not None}
    if not channels_by_key:
        return {}, []
    try:
        calibrations = load_calibrations(calibrations_file())
        return {
            channels_by_key[key]: SensorModel.from_json(calibrations[key])
            for key in channels_by_key
            if key in calibrations
        }, []
    except ConfigError as error:
        return {}, [Event(time.monotonic_ns(), "warning", "CALIBRATION_UNREADABLE", "run", str(error))]


def read_cuda_use(meters: Sequence[Meter]) -> CudaUse | None:
    """Return this process's use of CUDA as torch reports it; None without a GPU.

    If torch cannot report it, CUDA counts as used, so that no card is excluded because of a missing answer.
    """
    uuids = {uuid: str(meter.domain) for meter in meters if (uuid := meter.fact("uuid"))}
    if not uuids:
        return None
    try:
        started, domains = cuda_domains(uuids)
    except Exception:  # an unsupported torch version
        return CudaUse(initialised=True, library=True)
    return CudaUse(started, has_cuda_library(os.getpid()), domains)


def device_priors(
    priors: DevicePriors,
    replays: Sequence[ReplayedPower],
    work: Mapping[Slot, tuple[float, float]],
    trace: Trace,
) -> DevicePriors:
    """Add replayed layers' power, and each slot's operations and bytes in the whole run, to `known`."""
    looped: dict[str, list[SlotReplay]] = {}
    idle_w = dict(priors.idle_w)
    for replayed in replays:
        # The context (caches, clocks) may contribute as much uncertainty as the loop itself.
        sd_rel = (
            float(np.hypot(REPLAY_CONTEXT_REL, replayed.sd_w / replayed.power_w))
            if replayed.power_w > 0
            else REPLAY_CONTEXT_REL
        )
        looped.setdefault(str(replayed.domain), []).extend(
            SlotReplay(slot, replayed.power_w, sd_rel) for slot in replayed.slots
        )
        if replayed.quiet_w is not None:
            idle_w[str(replayed.domain)] = replayed.quiet_w
    calls = np.bincount(trace.slot, trace.calls, len(trace.slots)) if len(trace) else np.zeros(len(trace.slots))
    count = dict(zip(trace.slots, calls.tolist(), strict=True))
    run_work: dict[str | Slot, tuple[float, float]] = {
        slot: (flops * count[slot], moved * count[slot]) for slot, (flops, moved) in work.items() if count.get(slot)
    }
    return replace(
        priors,
        idle_w=idle_w,
        replays={domain: tuple(slot_replays) for domain, slot_replays in looped.items()},
        work=run_work,
    )


@dataclass(frozen=True, slots=True)
class RunInterval:
    """Interval of a session: monotonic start and end, and the start in unix time."""

    start_ns: int
    end_ns: int
    start_unix_ns: int


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a session ended, and the units, windows and events collected during it."""

    status: Status
    exit_reason: str = ""
    units: dict[str, float] = field(default_factory=dict)
    windows: tuple[Window, ...] = ()
    events: tuple[Event, ...] = ()
    priors: DevicePriors = NO_PRIORS  # inputs about the devices, independent of the readings
    software: Mapping[str, str] | None = None  # of the run, if not this process
    excluded: tuple[str, ...] = ()  # domains that are metered but not in the total
    requests: tuple[RequestBatch, ...] = ()
    models: tuple[ModelSize, ...] = ()  # that generated them


def build_report(
    run_id: str, options: RunOptions, bounds: RunInterval, recording: Recording, trace: Trace, outcome: RunOutcome
) -> Report:
    """Attribute the recording and make the report."""
    priors = device_priors(outcome.priors, options.replays, options.work, trace)
    if options.whole_machine:
        priors = replace(priors, named=frozenset(str(meter.domain) for meter in recording.meters))
    attribution = attribute_recording(recording, trace, bounds.start_ns, bounds.end_ns, priors)
    return assemble_report(run_id, options, bounds, recording, trace, outcome, attribution)


def assemble_report(  # noqa: PLR0917  the parts of a report
    run_id: str,
    options: RunOptions,
    bounds: RunInterval,
    recording: Recording,
    trace: Trace,
    outcome: RunOutcome,
    attribution: Attribution,
) -> Report:
    """Make a report from an attribution and all other parts."""
    counted = _counted_curves(attribution, outcome)
    report = Report(
        run_id=run_id,
        name=options.name,
        status=_report_status(outcome.status, attribution, recording),
        start_ns=bounds.start_ns,
        end_ns=bounds.end_ns,
        start_unix_ns=bounds.start_unix_ns,
        ledgers=tuple(
            add_work(ledger, trace)
            for ledger in attribution.ledgers
            if not _is_excluded(ledger, attribution, outcome.excluded)
        ),
        curves=attribution.curves,
        meters=tuple(m for m in attribution.meters if any(c.quantity != "gauge" for c in m.channels)),
        unavailable=_distinct((*recording.unavailable, *attribution.unavailable)),
        events=_sort_events(
            _add_coverage_events(
                (*recording.events, *trace.events, *attribution.events, *outcome.events), attribution, bounds
            )
        ),
        steps=tuple(_step_energies(trace, attribution.curves)),
        windows=tuple(_window_energies(sorted(outcome.windows, key=_window_order), counted)),
        modules=trace.modules,
        units=dict(outcome.units),
        sampler=recording.stats,
        tracing_cost_s=trace.cost_s if options.layers else None,
        traced_steps=trace.traced_steps if options.layers else None,
        exit_reason=outcome.exit_reason,
        software=outcome.software or software_versions(),
        timeline=phase_timeline(trace, bounds.start_ns, bounds.end_ns),
        gauges=tuple(_drawn_gauges(recording, bounds)),
        tokens=token_rows(outcome.requests, counted),
        positions=token_positions(outcome.requests, counted),
        models=outcome.models,
    )
    return add_impacts(report, options.carbon)


def add_work(ledger: Ledger, trace: Trace) -> Ledger:
    """Add operations and bytes to the entries of known work: those of a mean call, times the calls of the entry."""
    work_of = {trace.slots[work.slot]: work for work in trace.work}
    entries = []
    for entry in ledger.entries:
        work = work_of.get(Slot(entry.fqn, entry.phase, entry.stage))
        if work is None or not entry.calls:
            entries.append(entry)
            continue
        entries.append(
            replace(
                entry,
                flops=work.flops * entry.calls,
                bytes_moved=work.bytes_moved * entry.calls,
                input_rows=work.rows * entry.calls if entry.phase == "forward" else None,
            )
        )
    return replace(ledger, entries=tuple(entries))


def _drawn_gauges(recording: Recording, bounds: RunInterval) -> Iterator[Series]:
    for series in recording.series:
        if series.channel.name in DRAWN_GAUGES:
            clipped = series.between(bounds.start_ns, bounds.end_ns)
            if len(clipped):
                yield clipped


def _add_coverage_events(events: Iterable[Event], attribution: Attribution, bounds: RunInterval) -> Iterable[Event]:
    """Add an event for each meter that did not cover the whole run, unless the events report it already."""
    collected = tuple(events)
    yield from collected
    losses = {event.subject for event in collected if event.code in METER_LOSSES}
    for ledger in attribution.ledgers:
        if not ledger.is_whole and not {str(ledger.domain), "run"} & losses:
            yield coverage_event(ledger.domain, ledger.coverage, bounds.end_ns)


def _is_excluded(ledger: Ledger, attribution: Attribution, excluded: Sequence[str]) -> bool:
    """Return whether a domain is excluded from the report: a device of no rank, or a module with only such GPUs."""
    meter = next((m for m in attribution.meters if m.domain == ledger.domain), None)
    gpus = (
        (meter.fact(MODULE_GPUS_FACT) or "").split(";") if meter is not None and meter.domain.kind == "module" else []
    )
    return str(ledger.domain) in excluded or (bool(gpus) and set(gpus) <= set(excluded))


def _report_status(status: Status, attribution: Attribution, recording: Recording) -> Status:
    """Return `partial` for a complete run if a meter was missing at times or most of a step was never sampled."""
    meters = {str(meter.domain) for meter in recording.meters if meter.provenance == "measured"}
    gone = {item.domain for item in (*recording.unavailable, *attribution.unavailable)}
    away = not all(ledger.is_whole for ledger in attribution.ledgers) or bool({*meters, "run"} & gone)
    unseen = any(event.code == PHASES_UNSEEN_CODE for event in attribution.events)
    return "partial" if status == "complete" and (away or unseen) else status


def _step_energies(trace: Trace, curves: Sequence[EnergyCurve]) -> Iterable[Step]:
    """Yield each step with the joules of the meters that covered all of it.

    A measured counter that did not advance during the step counts as unknown, not as 0 J.
    """
    index = 0
    counts = trace.step_counts or (1,) * len(trace.steps)
    parts = _parts_j(trace.steps, curves)
    modelled = {str(curve.domain) for curve in curves if curve.provenance == "modelled"}
    stages = trace.step_stages or ("",) * len(trace.steps)
    for (start_ns, end_ns), count, step_j, stage in zip(trace.steps, counts, parts, stages, strict=True):
        known_j = {domain: joules for domain, joules in step_j.items() if joules > 0 or domain in modelled}
        yield Step(index, start_ns, end_ns, known_j, count, stage)
        index += count


def _parts_j(bounds: Sequence[tuple[int, int]], curves: Sequence[EnergyCurve]) -> list[dict[str, float]]:
    """Return the joules of each window by domain, for the meters that covered all of it."""
    window_j: list[dict[str, float]] = [{} for _ in bounds]
    if bounds:
        start_ns, end_ns = np.array(bounds, dtype=np.int64).T
        for curve in curves:
            for domain_j, joules in zip(window_j, curve.parts_j(start_ns, end_ns).tolist(), strict=True):
                if not isnan(joules):
                    domain_j[str(curve.domain)] = joules
    return window_j


def _counted_curves(attribution: Attribution, outcome: RunOutcome) -> list[EnergyCurve]:
    counted = {
        ledger.domain for ledger in attribution.ledgers if ledger.counted and str(ledger.domain) not in outcome.excluded
    }
    return [curve for curve in attribution.curves if curve.domain in counted]


def _window_energies(windows: Sequence[Window], curves: Sequence[EnergyCurve]) -> Iterable[Window]:
    """Yield windows with joules from the run's curves, as slow counters publish after a nested session has ended."""
    for window, window_j in zip(windows, _parts_j([(w.start_ns, w.end_ns) for w in windows], curves), strict=True):
        complete = bool(curves) and len(window_j) == len(curves)
        yield replace(window, energy_j=fsum(window_j.values()) if complete else window.energy_j)


def _window_order(window: Window) -> tuple[int, int]:
    """Return a sort key: by start; for equal starts the longer one first."""
    return window.start_ns, -window.end_ns


def report_window(report: Report) -> Window:
    """Return a nested session's window in the enclosing one."""
    return Window(report.name, report.start_ns, report.end_ns, report.energy_j)


def _distinct(unavailable: Iterable[Unavailable]) -> tuple[Unavailable, ...]:
    return tuple(dict.fromkeys(unavailable))


def _sort_events(events: Iterable[Event]) -> tuple[Event, ...]:
    return tuple(sorted(dict.fromkeys(events), key=lambda e: (e.t_ns, e.code, e.subject, e.message)))
