"""A report as rows of tables; pure, so the same report gives the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from math import fsum, isnan, sqrt

from torchwatt.audit.devices import device_rows, salted
from torchwatt.audit.lexical import utc
from torchwatt.audit.schema import SCHEMA_VERSION, Row
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.report import Report
from torchwatt.core.terms import RESERVED, UNATTRIBUTED
from torchwatt.core.trace import ModuleInfo

_PART_OF_KIND = {"gpu": "accelerator", "cpu": "cpu", "dram": "dram", "ram": "dram"}


def rows_by_table(report: Report) -> dict[str, list[Row]]:
    """Return the rows of every table of the schema, in no particular order."""
    return {name: list(make(report)) for name, make in _MAKERS.items()}


def _run(report: Report) -> Iterator[Row]:
    unit, count = next(iter(sorted(report.units.items())), ("run", 1.0))
    pue = next((f for f in report.factors if f.kind == "pue"), None)
    grid = next((f for f in report.factors if f.kind == "grid_gwp"), None)
    software, bounds = report.software, report.energy_bounds_j
    yield {
        "run_id": report.run_id,
        "schema_version": SCHEMA_VERSION,
        "tool_name": "torchwatt",
        "tool_version": software.get("torchwatt"),
        "name": report.name,
        "started_at": utc(report.start_unix_ns),
        "ended_at": utc(report.start_unix_ns + report.end_ns - report.start_ns),
        "duration_s": report.duration_s,
        "status": report.status,
        "exit_reason": report.exit_reason,
        **_energies(report),
        "functional_unit": unit,
        "functional_unit_count": count,
        "functional_unit_provenance": "declared" if report.units else "assumed",
        "units_counted": ";".join(f"{name}={value!r}" for name, value in sorted(report.units.items())),
        "step_count": report.step_count,
        "zone": grid.zone if grid else None,
        "pue": pue.value if pue else None,
        "pue_factor_id": pue.factor_id if pue else None,
        "sampler_mode": report.sampler.mode,
        "sampler_cpu_s": report.sampler.cpu_s,
        "sampler_missed": sum(report.sampler.missed.values()),
        "tracing_cost_s": report.tracing_cost_s,
        "os": software.get("os"),
        "python_version": software.get("python"),
        "torch_version": software.get("torch"),
        "host_hash": salted(report.run_id, software.get("host")),
        "energy_it_lo_j": bounds[0] if bounds is not None else None,
        "energy_it_hi_j": bounds[1] if bounds is not None else None,
    }


def _energies(report: Report) -> Row:
    ledgers = report.ledgers
    entries = [entry for ledger in ledgers for entry in ledger.entries]
    booked_j = fsum(entry.energy_self_j for entry in entries)
    unclaimed_j = fsum(entry.energy_self_j for entry in entries if entry.fqn == UNATTRIBUTED)
    return {
        "boundary": ";".join(sorted(str(ledger.domain) for ledger in ledgers)),
        "boundary_excluded": ";".join(sorted({item.domain for item in report.unavailable})),
        "energy_it_j": report.energy_j,
        "energy_it_u_j": _root_sum_of_squares(ledgers),
        "energy_it_provenance": report.provenance,
        **{f"energy_{part}_j": _part_j(ledgers, part) for part in ("accelerator", "cpu", "dram", "other")},
        "energy_unattributed_j": unclaimed_j if ledgers else None,
        "closure_residual_j": None if report.energy_j is None else report.energy_j - booked_j,
        "coverage_ratio": min((ledger.coverage for ledger in ledgers), default=None),
    }


def _part_j(ledgers: tuple[Ledger, ...], part: str) -> float | None:
    """Add up the domains of one part; a part without a meter is missing, not 0."""
    parts = [x.energy_j for x in ledgers if _PART_OF_KIND.get(x.domain.kind, "other") == part]
    return fsum(parts) if parts else None


def _root_sum_of_squares(ledgers: tuple[Ledger, ...]) -> float | None:
    # Readings of different meters err independently; their bands do not, and stay out of this number.
    known = [ledger.energy_u_j for ledger in ledgers if ledger.energy_u_j is not None]
    return sqrt(fsum(u * u for u in known)) if ledgers and len(known) == len(ledgers) else None


def _layers(report: Report) -> Iterator[Row]:
    modules = {name: m for m in report.modules for name in (m.fqn, *m.aliases)}
    for ledger in report.ledgers:
        for entry in ledger.entries:
            yield _layer(report.run_id, ledger, entry, modules)


def _layer(run_id: str, ledger: Ledger, entry: Entry, modules: Mapping[str, ModuleInfo]) -> Row:
    module = modules.get(entry.fqn)
    return {
        "run_id": run_id,
        "device_id": str(ledger.domain),
        "fqn": entry.fqn,
        "phase": entry.phase,
        "reserved": entry.fqn in RESERVED,
        "module_class": module.class_name if module else None,
        "params": module.params if module else None,
        "param_bytes": module.param_bytes if module else None,
        "calls": entry.calls,
        "time_self_s": entry.time_self_s,
        "energy_self_j": entry.energy_self_j,
        "energy_self_lo_j": entry.energy_self_lo_j,
        "energy_self_hi_j": entry.energy_self_hi_j,
        "energy_static_j": entry.energy_static_j,
        "energy_dynamic_j": entry.energy_dynamic_j,
        "energy_share": entry.energy_self_j / ledger.energy_j if ledger.energy_j > 0 else None,
        "energy_per_call_j": entry.energy_self_j / entry.calls if entry.calls else None,
        "method": entry.method,
        "provenance": entry.provenance,
        "carried_share": entry.carried_share,
    }


def _samples(report: Report) -> Iterator[Row]:
    for curve in report.curves:
        yield from _curve(report, curve)


def _curve(report: Report, curve: EnergyCurve) -> Iterator[Row]:
    power_w = [None, *(None if isnan(power) else power for power in curve.power_w().tolist())]
    energy_j = (curve.energy_j - curve.energy_j[0]).tolist()
    for t_ns, power, energy in zip(curve.t_ns.tolist(), power_w, energy_j, strict=True):
        yield {
            "run_id": report.run_id,
            "device_id": str(curve.domain),
            "t_ns": t_ns - report.start_ns,
            "power_w": power,
            "energy_j": energy,
            "provenance": curve.provenance,
        }


def _factors(report: Report) -> Iterator[Row]:
    yield from (asdict(factor) for factor in dict.fromkeys(report.factors))


def _impacts(report: Report) -> Iterator[Row]:
    for impact in report.impacts:
        yield asdict(impact) | {"run_id": report.run_id, "factor_ids": ";".join(impact.factor_ids)}


def _events(report: Report) -> Iterator[Row]:
    events = sorted(report.events, key=lambda e: (e.t_ns, e.code, e.subject, e.message))
    for index, event in enumerate(events):
        t_ns = event.t_ns - report.start_ns
        yield asdict(event) | {
            "run_id": report.run_id,
            "event_index": index,
            "t_ns": t_ns,
            "t": utc(report.start_unix_ns + t_ns),
        }


_MAKERS: Mapping[str, Callable[[Report], Iterator[Row]]] = {
    "run": _run,
    "device": device_rows,
    "layer": _layers,
    "sample": _samples,
    "factor": _factors,
    "impact": _impacts,
    "event": _events,
}
