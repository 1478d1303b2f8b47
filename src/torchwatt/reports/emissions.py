"""Computes the impacts (grams of CO2e and others) of a report's joules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import fsum
from typing import cast

from torchwatt.carbon import HOW_TO_GET_GRAMS, PricedImpacts, PricedSubject, PricingNote, PricingPlan, RunUsage
from torchwatt.carbon.pricing import price_run
from torchwatt.core.errors import FactorError
from torchwatt.core.meter import Event, Severity
from torchwatt.core.report import HourEnergy, Report, hour_energies
from torchwatt.core.terms import Provenance, weakest_provenance
from torchwatt.core.units import NS_PER_HOUR, NS_PER_S, Z90


def add_impacts(report: Report, plan: PricingPlan) -> Report:
    """Return the report with its impacts; a factor that cannot be applied adds an event and never loses the run."""
    try:
        priced = price_run(report_usage(report), plan)
    except FactorError as error:
        priced = PricedImpacts(notes=(PricingNote("error", "FACTOR_UNUSABLE", str(error)),))
    note_events = tuple(
        Event(report.end_ns, cast("Severity", note.severity), note.code, "run", note.message) for note in priced.notes
    )
    facility = {"facility_preset": plan.facility} if plan.facility else {}
    priced_report = replace(
        report,
        factors=priced.factors,
        impacts=priced.impacts,
        events=(*report.events, *note_events),
        declared={**facility, **report.declared},
    )
    return replace(
        priced_report, carbon_hint="" if _needs_no_hint(priced_report, plan, priced) else _carbon_hint(priced)
    )


def running_carbon_g(
    energy_j: float, provenance: Provenance, plan: PricingPlan, start_unix_ns: int, now_unix_ns: int
) -> float | None:
    """Return location-based grams of a running session's joules; None if the plan has no factor for them."""
    hours = tuple(range(start_unix_ns // NS_PER_HOUR, now_unix_ns // NS_PER_HOUR + 1))
    subject = PricedSubject("run", energy_j, provenance)
    try:
        duration_s, start, end = (
            (now_unix_ns - start_unix_ns) / NS_PER_S,
            utc_time(start_unix_ns),
            utc_time(now_unix_ns),
        )
        priced = price_run(RunUsage((subject,), duration_s, hours, start=start, end=end), replace(plan, embodied=()))
    except FactorError:
        return None
    gwp_row = ("gwp", "usage", "location")
    return next((i.value for i in priced.impacts if (i.criterion, i.phase, i.accounting_method) == gwp_row), None)


def _needs_no_hint(report: Report, plan: PricingPlan, priced: PricedImpacts) -> bool:
    """Return whether no hint is needed: there are grams, or a grid was named and no factor failed."""
    failed = any(note.severity == "error" for note in priced.notes)
    return report.carbon_g is not None or (bool(plan.location) and not failed)


def _carbon_hint(priced: PricedImpacts) -> str:
    """Return how to get grams."""
    failed = [note.message for note in priced.notes if note.severity == "error"]
    return failed[0] if failed else HOW_TO_GET_GRAMS


def report_usage(report: Report) -> RunUsage:
    """Return the joules of the run and of each counted domain, with their intervals and hours."""
    offset_ns = report.start_unix_ns - report.start_ns
    cut = hour_energies(report)
    touched = range(report.start_unix_ns // NS_PER_HOUR, (report.end_ns + offset_ns) // NS_PER_HOUR + 1)
    unit, units = next(iter(report.sorted_units), ("run", 1.0))
    return RunUsage(
        subjects=tuple(_usage_subjects(report, cut)),
        duration_s=report.duration_s,
        hours=tuple(sorted({item.hour for item in cut}) or touched),
        unit=unit,
        units=units,
        unit_provenance="declared" if report.units else "assumed",
        start=utc_time(report.start_unix_ns),
        end=utc_time(report.end_ns + offset_ns),
    )


def utc_time(unix_ns: int) -> datetime:
    """Return an instant to the microsecond."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=unix_ns // 1000)


def _usage_subjects(report: Report, cut: tuple[HourEnergy, ...]) -> Iterator[PricedSubject]:
    by_device: dict[str, dict[int, float]] = defaultdict(dict)
    run_hours: dict[int, list[float]] = defaultdict(list)
    for item in cut:
        by_device[item.device_id][item.hour] = item.energy_j
        run_hours[item.hour].append(item.energy_j)
    if report.energy_j is not None:
        lo_j, hi_j = report.systematic_j or (None, None)
        complete = len(by_device) == len(report.counted)
        hourly_j = {hour: fsum(parts) for hour, parts in run_hours.items()} if complete else {}
        provenance = weakest_provenance(*(ledger.provenance for ledger in report.counted))
        yield PricedSubject("run", report.energy_j, provenance, lo_j, hi_j, hourly_j)
    for ledger in report.counted:
        name = str(ledger.domain)
        meter = report.meter(name)
        band = meter.accuracy_rel if meter is not None and ledger.is_whole else None
        lo_j, hi_j = accuracy_interval_j(ledger.energy_j, band, ledger.energy_u_j)
        yield PricedSubject(f"device:{name}", ledger.energy_j, ledger.provenance, lo_j, hi_j, by_device[name])


def accuracy_interval_j(
    energy_j: float, band: tuple[float, float] | None, u_j: float | None
) -> tuple[float, float] | tuple[None, None]:
    """Return a domain's 90 % interval from its meter's accuracy band and the reading error; None without a band."""
    if band is None:
        return None, None
    low, high = band
    reading_j = Z90 * (u_j or 0.0)
    return max(energy_j * (1 + low) - reading_j, 0.0), energy_j * (1 + high) + reading_j
