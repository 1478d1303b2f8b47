"""Makes a report from a recording and a trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, isnan

import numpy as np

from torchwatt.attribution.attribute import PHASES_UNSEEN, Attribution, attribute
from torchwatt.attribution.known import NOTHING, Known
from torchwatt.attribution.scopes import CONTAINS
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.ledger import Ledger
from torchwatt.core.meter import Event, Recording, Unavailable, lost_part
from torchwatt.core.report import Report, Status, Step, Window
from torchwatt.core.terms import METER_LOSSES
from torchwatt.core.trace import Trace
from torchwatt.session.grams import with_grams
from torchwatt.session.known import known_of
from torchwatt.session.options import Options
from torchwatt.session.software import software


@dataclass(frozen=True, slots=True)
class Bounds:
    """Interval of a session: monotonic start and end, and the start in unix time."""

    start_ns: int
    end_ns: int
    start_unix_ns: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended, and the units, windows and events collected during it."""

    status: Status
    exit_reason: str = ""
    units: dict[str, float] = field(default_factory=dict)
    windows: tuple[Window, ...] = ()
    events: tuple[Event, ...] = ()
    priors: Known = NOTHING  # inputs about the devices, independent of the readings
    software: Mapping[str, str] | None = None  # of the run, if not this process
    excluded: tuple[str, ...] = ()  # domains that are metered but not in the total


def settle(
    run_id: str, options: Options, bounds: Bounds, recording: Recording, trace: Trace, outcome: Outcome
) -> Report:
    """Attribute the recording and make the report."""
    priors = known_of(outcome.priors, options.replays, options.work, trace)
    attribution = attribute(recording, trace, bounds.start_ns, bounds.end_ns, priors)
    return report_of(run_id, options, bounds, recording, trace, outcome, attribution)


def report_of(  # noqa: PLR0917  the parts of a report
    run_id: str,
    options: Options,
    bounds: Bounds,
    recording: Recording,
    trace: Trace,
    outcome: Outcome,
    attribution: Attribution,
) -> Report:
    """Make a report from an attribution and all other parts."""
    report = Report(
        run_id=run_id,
        name=options.name,
        status=_status(outcome.status, attribution, recording),
        start_ns=bounds.start_ns,
        end_ns=bounds.end_ns,
        start_unix_ns=bounds.start_unix_ns,
        ledgers=tuple(ledger for ledger in attribution.ledgers if not _is_apart(ledger, attribution, outcome.excluded)),
        curves=attribution.curves,
        meters=tuple(m for m in attribution.meters if any(c.quantity != "gauge" for c in m.channels)),
        unavailable=_distinct((*recording.unavailable, *attribution.unavailable)),
        events=_in_order(
            _with_losses((*recording.events, *trace.events, *attribution.events, *outcome.events), attribution, bounds)
        ),
        steps=tuple(_steps(trace, attribution.curves)),
        windows=tuple(_seen_whole(sorted(outcome.windows, key=_place), _counted_curves(attribution, outcome))),
        modules=trace.modules,
        units=dict(outcome.units),
        sampler=recording.stats,
        tracing_cost_s=trace.cost_s if options.layers else None,
        traced_steps=trace.traced_steps if options.layers else None,
        exit_reason=outcome.exit_reason,
        software=outcome.software or software(),
    )
    return with_grams(report, options.carbon)


def _with_losses(events: Iterable[Event], attribution: Attribution, bounds: Bounds) -> Iterable[Event]:
    """Add an event for each meter that did not cover the whole run, unless the events report it already."""
    collected = tuple(events)
    yield from collected
    losses = {event.subject for event in collected if event.code in METER_LOSSES}
    for ledger in attribution.ledgers:
        if not ledger.is_whole and not {str(ledger.domain), "run"} & losses:
            yield lost_part(ledger.domain, ledger.coverage, bounds.end_ns)


def _is_apart(ledger: Ledger, attribution: Attribution, excluded: Sequence[str]) -> bool:
    """Return whether a domain is excluded from the report: a device of no rank, or a module with only such GPUs."""
    meter = next((m for m in attribution.meters if m.domain == ledger.domain), None)
    gpus = (meter.fact(CONTAINS) or "").split(";") if meter is not None and meter.domain.kind == "module" else []
    return str(ledger.domain) in excluded or (bool(gpus) and set(gpus) <= set(excluded))


def _status(status: Status, attribution: Attribution, recording: Recording) -> Status:
    """Return `partial` for a complete run if a meter was missing at times or most of a step was never sampled."""
    meters = {str(meter.domain) for meter in recording.meters if meter.provenance == "measured"}
    gone = {item.domain for item in (*recording.unavailable, *attribution.unavailable)}
    away = not all(ledger.is_whole for ledger in attribution.ledgers) or bool({*meters, "run"} & gone)
    unseen = any(event.code == PHASES_UNSEEN for event in attribution.events)
    return "partial" if status == "complete" and (away or unseen) else status


def _steps(trace: Trace, curves: Sequence[EnergyCurve]) -> Iterable[Step]:
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


def _counted_curves(attribution: Attribution, outcome: Outcome) -> list[EnergyCurve]:
    counted = {
        ledger.domain for ledger in attribution.ledgers if ledger.counted and str(ledger.domain) not in outcome.excluded
    }
    return [curve for curve in attribution.curves if curve.domain in counted]


def _seen_whole(windows: Sequence[Window], curves: Sequence[EnergyCurve]) -> Iterable[Window]:
    """Yield windows with joules from the run's curves, as slow counters publish after a nested session has ended."""
    for window, window_j in zip(windows, _parts_j([(w.start_ns, w.end_ns) for w in windows], curves), strict=True):
        complete = bool(curves) and len(window_j) == len(curves)
        yield replace(window, energy_j=fsum(window_j.values()) if complete else window.energy_j)


def _place(window: Window) -> tuple[int, int]:
    """Return a sort key: by start; for equal starts the longer one first."""
    return window.start_ns, -window.end_ns


def window_of(report: Report) -> Window:
    """Return a nested session's window in the enclosing one."""
    return Window(report.name, report.start_ns, report.end_ns, report.energy_j)


def _distinct(unavailable: Iterable[Unavailable]) -> tuple[Unavailable, ...]:
    return tuple(dict.fromkeys(unavailable))


def _in_order(events: Iterable[Event]) -> tuple[Event, ...]:
    return tuple(sorted(dict.fromkeys(events), key=lambda e: (e.t_ns, e.code, e.subject, e.message)))
