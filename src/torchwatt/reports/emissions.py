"""Computes the impacts (grams of CO2e and others) of a report's joules, and compares them with an estimate."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from math import fsum
from numbers import Real
from typing import cast

import numpy as np

from torchwatt.carbon import HOW_TO_GET_GRAMS, PricedImpacts, PricedSubject, PricingNote, PricingPlan, RunUsage
from torchwatt.carbon.ecologits import ESTIMATED_CRITERIA, TokenEstimator, TokenLoad, installed_version
from torchwatt.carbon.pricing import price_run
from torchwatt.core.errors import ConfigError, FactorError
from torchwatt.core.factor import Impact
from torchwatt.core.intervals import union_intervals
from torchwatt.core.meter import Event, Severity
from torchwatt.core.report import HourEnergy, Report, hour_energies
from torchwatt.core.requests import TokenRow, generation_figures, request_times_s, rows_by_part
from torchwatt.core.terms import DECODE, Provenance, weakest_provenance
from torchwatt.core.trace import ModelSize
from torchwatt.core.units import NS_PER_HOUR, NS_PER_S, Z90
from torchwatt.reports.estimate_comparison import EstimateComparison
from torchwatt.views.rank_table import HOST_KINDS


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


def compare_with_estimate(
    report: Report, parameters: float | None = None, active_parameters: float | None = None
) -> EstimateComparison:
    """Return a run's joules per output token beside the estimate of EcoLogits.

    Args:
        report: A report with requests of a language model.
        parameters: Of the model; counted from the model if a library's generation showed it.
        active_parameters: Those used for one token; all of them for a model without experts.

    Raises:
        ConfigError: There are no requests; tokens, joules or parameters are unknown; or a count is invalid.
        MissingPackageError: ecologits is not installed.
    """
    if not report.tokens:
        raise ConfigError("against_estimate: no request in this run: call generate, or run.add_tokens, in the block")
    parts = rows_by_part(report.tokens)
    calls = "calls after the first" if "steady" in parts else "one call"
    rows = parts.get("steady", parts["all"])
    figures = {figure.name: figure.value for figure in generation_figures(rows)}
    outputs, total_j, times_s = figures["output_tokens"], figures["energy"], request_times_s(rows)
    if not outputs or times_s is None or not all(times_s):
        raise ConfigError("against_estimate: the output tokens or the times of the requests are unknown")
    if total_j is None:
        raise ConfigError("against_estimate: the joules of the requests are unknown: no meter covered all of them")
    name, total, active, counted_by = _model_size(report, parameters, active_parameters)
    device_share = _device_share(report, rows)
    latencies_s, busy_s = times_s
    load = TokenLoad(
        batch=latencies_s / busy_s,
        tokens_per_s=outputs / latencies_s,
        device_j=total_j * device_share / outputs,
        host_w=total_j * (1 - device_share) / busy_s,
    )
    estimator = TokenEstimator(total, active, _grid_zone(report))
    replacements = estimator.replacements(load)
    run_j, band_j, later_mj = report.energy_j, report.systematic_j, figures["decode_energy_per_output_token"]
    per_run = total_j / outputs / run_j if run_j else None
    return EstimateComparison(
        provenance=report.provenance or "",
        boundary=report.boundary,
        calls=calls,
        output_tokens=int(outputs),
        energy_j=total_j / outputs,
        band_j=None if band_j is None or per_run is None else (band_j[0] * per_run, band_j[1] * per_run),
        decode_j=None if later_mj is None else later_mj / 1e3,
        load=load,
        model=name,
        parameters=total,
        active_parameters=active,
        counted_by=counted_by,
        version=installed_version(),
        zone=estimator.zone,
        estimate=estimator.estimate(),
        estimate_at_batch=estimator.estimate(replacements["batch"]),
        assumptions=estimator.assumptions(load),
        replaced_j=estimator.estimate(dict(chain.from_iterable(x.items() for x in replacements.values()))).energy_j,
        run_impacts=() if per_run is None else tuple(_token_impacts(report, per_run)),
    )


def _token_impacts(report: Report, per_run: float) -> Iterator[Impact]:
    """Yield the impacts of one output token's electricity, of those of the run."""
    for impact in report.impacts:
        key = (impact.subject, impact.phase, impact.accounting_method)
        if key == ("run", "usage", "location") and impact.criterion in ESTIMATED_CRITERIA:
            lo, hi = (None if x is None else x * per_run for x in (impact.lo, impact.hi))
            yield replace(impact, value=impact.value * per_run, lo=lo, hi=hi)


def _grid_zone(report: Report) -> str:
    return next((factor.zone for factor in report.factors if factor.kind == "grid_gwp"), "")


def _device_share(report: Report, rows: Sequence[TokenRow]) -> float:
    """Return the accelerators' part of the joules while requests ran."""
    bounds = [(row.start_ns, row.end_ns) for row in rows if row.start_ns is not None and row.end_ns is not None]
    start_ns, end_ns = union_intervals(*np.array(bounds, dtype=np.int64).T)
    counted = {ledger.domain for ledger in report.counted}
    joules = {
        curve.domain: float(np.nansum(curve.parts_j(start_ns, end_ns)))
        for curve in report.curves
        if curve.domain in counted
    }
    total_j = fsum(joules.values())
    devices_j = fsum(energy_j for domain, energy_j in joules.items() if domain.kind not in HOST_KINDS)
    return devices_j / total_j if total_j > 0 else 0.0


GIVE_PARAMETERS = "give run.against_estimate(parameters=..., active_parameters=...)"


def _model_size(report: Report, parameters: float | None, active_parameters: float | None) -> tuple[str, int, int, str]:
    """Return class, parameters, active parameters, and how these are known."""
    for name, value in (("parameters", parameters), ("active_parameters", active_parameters)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or not 1 <= value <= MOST):
            raise ConfigError(f"against_estimate({name}={value!r}): give a number of parameters, such as 135e6")
    size = report.models[0] if len(report.models) == 1 else None
    if parameters is None and size is None:
        why = (
            f"{len(report.models)} models generated in this run" if report.models
            else "a bundle does not contain the model" if report.from_bundle
            else "no library's generation showed the model"
        )  # fmt: skip
        raise ConfigError(f"against_estimate: the number of parameters is unknown, as {why}: {GIVE_PARAMETERS}")
    if parameters is not None or size is None:
        name, total, active, counted_by = "", parameters or 0, active_parameters or parameters or 0, "given"
    else:
        name, total = size.class_name, size.parameters
        experts, counted_by = _experts_per_token(report, size)
        if active_parameters is None and experts is None:
            message = f"{name} has {size.experts} experts, and its configuration does not state how many a token uses"
            raise ConfigError(f"against_estimate: {message}: {GIVE_PARAMETERS}")
        active = size.active_parameters(experts or 0) if active_parameters is None else active_parameters
        counted_by = counted_by if active_parameters is None else "given"
    if active > total:
        raise ConfigError(f"against_estimate: {active:.6g} active parameters of {total:.6g}: {GIVE_PARAMETERS}")
    return name, int(total), int(active), counted_by


MOST = 1e15  # parameters
EXPERT = re.compile(r"(.+)\.experts\.\d+")


def _experts_per_token(report: Report, size: ModelSize) -> tuple[float | None, str]:
    """Return how many experts of a layer a token used, and how that is known.

    Where each expert is a module and each pass has one token, its calls are the routed tokens. More calls than the
    configuration routes are calls without tokens; then, and in other runs, the configuration is used.
    """
    if not size.experts:
        return 0.0, "all"
    calls = {
        (entry.fqn, entry.phase): entry.calls or 0
        for ledger in report.counted
        for entry in ledger.entries
        if entry.stage == DECODE
    }
    routed = {(fqn, phase): n for (fqn, phase), n in calls.items() if EXPERT.fullmatch(fqn)}
    layers = {(match[1], phase) for fqn, phase in routed if (match := EXPERT.fullmatch(fqn))}
    passes = sum(calls.get(layer, 0) for layer in layers)
    single = len({row.batch for row in report.tokens}) == len({row.request for row in report.tokens})
    measured = sum(routed.values()) / passes if passes and single else 0.0
    if 0 < measured <= (size.experts_per_token or size.experts):
        return measured, f"{measured:.3g} of {size.experts} experts a token, by their calls in decode"
    if size.experts_per_token is None:
        return None, ""
    return size.experts_per_token, f"{size.experts_per_token} of {size.experts} experts a token, by the configuration"
