"""Converts a report to rows of the tables; equal reports give equal rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

from torchwatt.audit.devices import device_rows
from torchwatt.audit.lexical import utc
from torchwatt.audit.ranks import rank_layer_rows, rank_rows
from torchwatt.audit.run_row import functional_unit, run_rows
from torchwatt.audit.schema import Row
from torchwatt.audit.windows import hourly_rows, window_rows
from torchwatt.core.factor import Factor, Impact
from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.report import Report
from torchwatt.core.terms import RESERVED
from torchwatt.core.trace import ModuleInfo


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
        "measured_share": entry.measured_share,
        "measured_in": entry.measured_in,
        "time_share_j": entry.time_share_j,
        "stage": entry.stage,
        "energy_systematic_lo_j": entry.energy_systematic_lo_j,
        "energy_systematic_hi_j": entry.energy_systematic_hi_j,
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
            "t": utc(report.start_unix_ns + t_ns),
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
}
