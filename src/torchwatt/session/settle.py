"""From what was recorded to a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import fsum

from torchwatt.attribution.attribute import Attribution, attribute
from torchwatt.attribution.known import NOTHING, Known
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.meter import Event, Recording, Unavailable
from torchwatt.core.report import Report, Status, Step, Window
from torchwatt.core.trace import Trace
from torchwatt.session.grams import with_grams
from torchwatt.session.known import known_of
from torchwatt.session.options import Options
from torchwatt.session.software import software


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a session ran: monotonic, and where that is in the world."""

    start_ns: int
    end_ns: int
    start_unix_ns: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended and what the user said during it."""

    status: Status
    exit_reason: str = ""
    units: dict[str, float] = field(default_factory=dict)
    windows: tuple[Window, ...] = ()
    events: tuple[Event, ...] = ()
    known: Known = NOTHING  # of the devices, before their readings are looked at


def settle(run_id: str, asked: Options, bounds: Bounds, recording: Recording, trace: Trace, outcome: Outcome) -> Report:
    """Attribute the recording and put everything that was found out into one value."""
    known = known_of(outcome.known, asked.replays, asked.work, trace)
    found = attribute(recording, trace, bounds.start_ns, bounds.end_ns, known)
    report = Report(
        run_id=run_id,
        name=asked.name,
        status=_status(outcome.status, found, recording),
        start_ns=bounds.start_ns,
        end_ns=bounds.end_ns,
        start_unix_ns=bounds.start_unix_ns,
        ledgers=found.ledgers,
        curves=found.curves,
        meters=tuple(m for m in recording.meters if any(c.quantity != "gauge" for c in m.channels)),
        unavailable=_distinct((*recording.unavailable, *found.unavailable)),
        events=_in_order((*recording.events, *trace.events, *found.events, *outcome.events)),
        steps=tuple(_steps(trace, found.curves)),
        windows=tuple(_seen_whole(window, found.curves) for window in outcome.windows),
        modules=trace.modules,
        units=dict(outcome.units),
        sampler=recording.stats,
        tracing_cost_s=trace.cost_s if asked.layers else None,
        exit_reason=outcome.exit_reason,
        software=software(),
    )
    return with_grams(report, asked.carbon)


def _status(status: Status, found: Attribution, recording: Recording) -> Status:
    """Call a run partial in which a meter that was found at its start was away for a part of it, or for all of it."""
    meters = {str(meter.domain) for meter in recording.meters if meter.provenance == "measured"}
    gone = {item.domain for item in (*recording.unavailable, *found.unavailable)}
    away = not all(ledger.is_whole for ledger in found.ledgers) or bool({*meters, "run"} & gone)
    return "partial" if status == "complete" and away else status


def _steps(trace: Trace, curves: Sequence[EnergyCurve]) -> Iterable[Step]:
    """Give each step the joules of the meters that were there for all of it; no part of a step passes for the whole.

    A meter that did not move in so short a step has not measured it.
    """
    index = 0
    counts = trace.step_counts or (1,) * len(trace.steps)
    for (start_ns, end_ns), count in zip(trace.steps, counts, strict=True):
        seen = ((c, c.between(start_ns, end_ns)) for c in curves if c.knows(start_ns, end_ns))
        known = {str(c.domain): joules for c, joules in seen if joules > 0 or c.provenance == "modelled"}
        yield Step(index, start_ns, end_ns, known, count)
        index += count


def _seen_whole(window: Window, curves: Sequence[EnergyCurve]) -> Window:
    """Read a nested session's joules from the outer one's curves: slow counters publish after it has ended."""
    known = [c.between(window.start_ns, window.end_ns) for c in curves if c.knows(window.start_ns, window.end_ns)]
    return replace(window, energy_j=fsum(known) if curves and len(known) == len(curves) else window.energy_j)


def window_of(report: Report) -> Window:
    """Return what an enclosing session keeps of a nested one."""
    total_j = fsum(ledger.energy_j for ledger in report.ledgers) if report.ledgers else None
    return Window(report.name, report.start_ns, report.end_ns, total_j)


def _distinct(unavailable: Iterable[Unavailable]) -> tuple[Unavailable, ...]:
    return tuple(dict.fromkeys(unavailable))


def _in_order(events: Iterable[Event]) -> tuple[Event, ...]:
    return tuple(sorted(dict.fromkeys(events), key=lambda e: (e.t_ns, e.code, e.subject, e.message)))
