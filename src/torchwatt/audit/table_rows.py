"""Converts a report to rows of the tables; equal reports give equal rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from math import fsum

import numpy as np

from torchwatt.audit.cell_codec import utc_from_unix_ns
from torchwatt.audit.run_rows import device_rows, functional_unit, run_rows, salted_hash
from torchwatt.audit.schema import Row
from torchwatt.core.factor import Factor, Impact
from torchwatt.core.ledger import Entry, Ledger, layer_values
from torchwatt.core.report import Report, Step, hour_energies
from torchwatt.core.terms import RESERVED, Provenance, weakest_provenance
from torchwatt.core.trace import ModuleInfo
from torchwatt.core.units import ns_from_s


def rank_rows(report: Report) -> Iterator[Row]:
    """Yield one row per rank."""
    for part in report.ranks:
        has_times = part.start_ns is not None and part.end_ns is not None
        yield {
            "run_id": report.run_id,
            "rank": part.rank,
            "node": part.node,
            "local_rank": part.local_rank,
            "status": part.status,
            "reason": part.reason,
            "source_run_id": part.run_id,
            "host_hash": salted_hash(report.run_id, part.host),
            "t_start_ns": part.start_ns - report.start_ns if part.start_ns is not None else None,
            "t_end_ns": part.end_ns - report.start_ns if part.end_ns is not None else None,
            "duration_s": part.duration_s if has_times else None,
            "energy_j": part.energy_j,
            "energy_communication_j": part.communication_j,
            "cpu_s": part.cpu_s,
            "host_busy_s": part.host_busy_s,
            "step_count": part.step_count,
            "clock_method": part.clock_method,
            "clock_bound_ns": part.clock_bound_ns,
        }


def rank_layer_rows(report: Report) -> Iterator[Row]:
    """Yield one row per rank, domain, layer and phase."""
    for part in report.ranks:
        for entry in part.entries:
            yield {
                "run_id": report.run_id,
                "rank": part.rank,
                "device_id": str(entry.domain),
                "fqn": entry.fqn,
                "phase": entry.phase,
                "calls": entry.calls,
                "time_self_s": entry.time_self_s,
                "energy_self_j": entry.energy_self_j,
                "method": entry.method,
                "provenance": entry.provenance,
                "stage": entry.stage,
            }


def window_rows(report: Report) -> Iterator[Row]:
    """Yield one row per step and per window (a nested session, an epoch, ...), in time order.

    Their energy is part of that of the run.
    """
    # Windows begin and end between readings, so their energy is derived, at best.
    provenance: Provenance | None = weakest_provenance("derived", report.provenance) if report.provenance else None
    windows = [
        (w.start_ns, w.end_ns, str(w.kind), w.name, w.energy_j, "", w.input_tokens, w.output_tokens)
        for w in report.windows
    ]
    domains = [str(ledger.domain) for ledger in report.counted]
    windows += [
        (s.start_ns, s.end_ns, "step", _step_numbers(s), _sum_over_domains(s.energy_j, domains), s.stage, None, None)
        for s in report.steps
    ]
    ordered = sorted(windows, key=lambda w: (w[0], -w[1], w[2], w[3]))
    bands = _bands_j(report, [(w[0], w[1]) for w in ordered])
    for index, (start_ns, end_ns, kind, name, energy_j, stage, inputs, outputs) in enumerate(ordered):
        yield {
            "run_id": report.run_id,
            "window_id": index,
            "name": name,
            "kind": kind,
            "t_start_ns": start_ns - report.start_ns,
            "t_end_ns": end_ns - report.start_ns,
            "energy_j": energy_j,
            "provenance": provenance if energy_j is not None else None,
            "stage": stage,
            "input_tokens": inputs,
            "output_tokens": outputs,
            **_repeat_interval(report, energy_j, end_ns - start_ns),
            **({} if energy_j is None or bands is None else _systematic_interval(energy_j, *bands[index])),
        }


def _step_numbers(step: Step) -> str:
    """Return the number of a step; for a row of several steps, the first and the last number."""
    return str(step.index) if step.count == 1 else f"{step.index}-{step.index + step.count - 1}"


def _repeat_interval(report: Report, energy_j: float | None, long_ns: int) -> Row:
    interval_j = report.repeat_interval_j(energy_j, long_ns)
    return {} if interval_j is None else {"energy_lo_j": interval_j[0], "energy_hi_j": interval_j[1]}


def _systematic_interval(energy_j: float, below_j: float, above_j: float) -> Row:
    return {"energy_systematic_lo_j": max(energy_j + below_j, 0.0), "energy_systematic_hi_j": energy_j + above_j}


def _bands_j(report: Report, windows: Sequence[tuple[int, int]]) -> list[tuple[float, float]] | None:
    """Return the systematic deviations (down, up) of the energy of each window; None if a meter states no accuracy."""
    if not windows or not report.counted:
        return None
    start_ns, end_ns = np.array(windows, dtype=np.int64).T
    curves = {str(curve.domain): curve for curve in report.curves}
    below_j, above_j = np.zeros(len(windows)), np.zeros(len(windows))
    for name in (str(ledger.domain) for ledger in report.counted):
        meter, curve = report.meter(name), curves.get(name)
        if meter is None or meter.accuracy_rel is None or curve is None:
            return None
        part_j = curve.at(end_ns) - curve.at(start_ns)
        below_j += part_j * meter.accuracy_rel[0]
        above_j += part_j * meter.accuracy_rel[1]
    return list(zip(below_j.tolist(), above_j.tolist(), strict=True))


def _sum_over_domains(energy_j: Mapping[str, float], domains: list[str]) -> float | None:
    """Return the sum over the domains; None if one of them is unknown."""
    parts = [energy_j[name] for name in domains if name in energy_j]
    return fsum(parts) if parts and len(parts) == len(domains) else None


def hourly_rows(report: Report) -> Iterator[Row]:
    """Yield one row per counted domain and hour of UTC."""
    for item in hour_energies(report):
        yield {
            "run_id": report.run_id,
            "hour_utc": item.hour_utc,
            "device_id": item.device_id,
            "energy_j": item.energy_j,
            "provenance": item.provenance,
        }


def rows_by_table(report: Report) -> dict[str, list[Row]]:
    """Return the rows of every CSV table of the schema, in no particular order."""
    return {name: list(make(report)) for name, make in _MAKERS.items()}


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
        "reserved": entry.fqn in RESERVED,
        "module_class": module.class_name if module else None,
        "params": module.params if module else None,
        "param_bytes": module.param_bytes if module else None,
        "dtype": (module.dtype or None) if module else None,
        **layer_values(ledger, entry),
    }


def factor_rows(factors: tuple[Factor, ...]) -> Iterator[Row]:
    """Yield one row per factor."""
    yield from (asdict(factor) for factor in dict.fromkeys(factors))


def impact_rows(run_id: str, impacts: tuple[Impact, ...], factors: tuple[Factor, ...], units: float) -> Iterator[Row]:
    """Yield one row per impact; those of the run also have the value per functional unit."""
    methods = {factor.factor_id: factor.accounting_method for factor in factors}
    for impact in impacts:
        cells = dict(asdict(impact), run_id=run_id, factor_ids=";".join(impact.factor_ids))
        method = next((methods[name] for name in impact.factor_ids if methods.get(name)), "na")
        cells["accounting_method"] = cells.get("accounting_method") or method
        cells["scenario"] = cells.get("scenario") or "as_run"
        if impact.subject == "run" and units > 0 and cells.get("per_unit_value") is None:
            cells["per_unit_value"] = impact.value / units
        yield cells


def _impacts(report: Report) -> Iterator[Row]:
    return impact_rows(report.run_id, report.impacts, report.factors, functional_unit(report)[1])


def _events(report: Report) -> Iterator[Row]:
    events = sorted(report.events, key=lambda e: (e.t_ns, e.code, e.subject, e.message))
    for index, event in enumerate(events):
        t_ns = event.t_ns - report.start_ns
        yield asdict(event) | {
            "run_id": report.run_id,
            "event_index": index,
            "t_ns": t_ns,
            "t": utc_from_unix_ns(report.start_unix_ns + t_ns),
        }


def _tokens(report: Report) -> Iterator[Row]:
    provenance: Provenance | None = report.provenance and weakest_provenance("apportioned", report.provenance)
    for row in report.tokens:
        yield {
            "run_id": report.run_id,
            "request": row.request,
            "stage": row.stage,
            "batch": row.batch,
            "input_tokens": row.input_tokens,
            "cached_tokens": row.cached_tokens,
            "output_tokens": row.output_tokens,
            "drafted_tokens": row.drafted_tokens,
            "accepted_tokens": row.accepted_tokens,
            "t_start_ns": None if row.start_ns is None else row.start_ns - report.start_ns,
            "t_end_ns": None if row.end_ns is None else row.end_ns - report.start_ns,
            "time_s": row.time_s,
            "energy_j": row.energy_j,
            "provenance": provenance if row.energy_j is not None else None,
            "cache_bytes": row.cache_bytes,
            **_repeat_interval(report, row.energy_j, ns_from_s(row.time_s or 0.0)),
        }


_MAKERS: Mapping[str, Callable[[Report], Iterator[Row]]] = {
    "run": run_rows,
    "device": device_rows,
    "window": window_rows,
    "layer": _layers,
    "hourly": hourly_rows,
    "factor": lambda report: factor_rows(report.factors),
    "impact": _impacts,
    "event": _events,
    "rank": rank_rows,
    "rank_layer": rank_layer_rows,
    "token": _tokens,
}
