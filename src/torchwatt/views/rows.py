"""The rows of `run.layers`: one per domain, layer, phase and stage."""

from __future__ import annotations

from typing import Any

from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.report import Report
from torchwatt.core.terms import Phase
from torchwatt.views.layers import class_names, tied
from torchwatt.views.tree import containers, totals

LAYER_COLUMNS = (
    "domain",
    "fqn",
    "phase",
    "stage",
    "module_class",
    "energy_self_j",
    "energy_self_lo_j",
    "energy_self_hi_j",
    "energy_total_j",
    "energy_static_j",
    "energy_dynamic_j",
    "energy_share",
    "time_self_s",
    "calls",
    "energy_per_call_j",
    "method",
    "provenance",
    "carried_share",
    "measured_share",
    "measured_in",
    "time_share_j",
    "counted",
    "energy_systematic_lo_j",
    "energy_systematic_hi_j",
    "tied",
)


def layer_rows(report: Report) -> list[dict[str, Any]]:
    """Return one row per (domain, fqn, phase, stage), most joules first within its domain; None is unknown.

    A module without own entries has a row for each phase of the modules inside it. `tied`: the interval of the
    difference from the row above includes 0.
    """
    classes = class_names(report)
    container_of = containers((entry.fqn for ledger in report.counted for entry in ledger.entries), classes)
    rows = []
    for ledger in report.counted:
        total = {
            stage: totals(((e.fqn, e.phase, e.energy_self_j) for e in ledger.entries if e.stage == stage), container_of)
            for stage in sorted({entry.stage for entry in ledger.entries})
        }
        ordered = sorted(ledger.entries, key=lambda e: (-e.energy_self_j, e.fqn, e.phase, e.stage))
        for above, entry in zip([None, *ordered], ordered, strict=False):
            # A reserved name contains nothing: its total is its own.
            total_j = total[entry.stage].get(entry.fqn, {}).get(entry.phase, entry.energy_self_j)
            row = _row(ledger, entry, total_j, classes.get(entry.fqn))
            rows.append(row | {"tied": above is not None and tied(_half(above), _half(entry))})
        booked = {(entry.fqn, entry.phase, entry.stage) for entry in ledger.entries}
        rows += [
            _container_row(ledger, fqn, phase, stage, total_j, classes.get(fqn))
            for stage, by_name in total.items()
            for fqn, by_phase in reversed(by_name.items())
            for phase, total_j in by_phase.items()
            if (fqn, phase, stage) not in booked
        ]
    return rows


def _container_row(
    ledger: Ledger, fqn: str, phase: Phase, stage: str, total_j: float, module_class: str | None
) -> dict[str, Any]:
    """Return the row of a module without own entries in this phase: its self energy is 0."""
    values = {
        "domain": str(ledger.domain),
        "fqn": fqn,
        "phase": phase,
        "stage": stage,
        "module_class": module_class,
        "energy_self_j": 0.0,
        "energy_total_j": total_j,
        "energy_share": 0.0 if ledger.energy_j > 0 else None,
        "time_self_s": 0.0,
        "provenance": "derived",
        "counted": ledger.counted,
        "tied": False,
    }
    return {column: values.get(column) for column in LAYER_COLUMNS}


def _half(entry: Entry) -> tuple[float, float | None]:
    hi_j = entry.energy_self_hi_j
    return entry.energy_self_j, None if hi_j is None else hi_j - entry.energy_self_j


def _row(ledger: Ledger, entry: Entry, total_j: float, module_class: str | None) -> dict[str, Any]:
    return {
        "domain": str(ledger.domain),
        "fqn": entry.fqn,
        "phase": entry.phase,
        "stage": entry.stage,
        "module_class": module_class,
        "energy_self_j": entry.energy_self_j,
        "energy_self_lo_j": entry.energy_self_lo_j,
        "energy_self_hi_j": entry.energy_self_hi_j,
        "energy_total_j": total_j,
        "energy_static_j": entry.energy_static_j,
        "energy_dynamic_j": entry.energy_dynamic_j,
        "energy_share": entry.energy_self_j / ledger.energy_j if ledger.energy_j > 0 else None,
        "time_self_s": entry.time_self_s,
        "calls": entry.calls,
        "energy_per_call_j": entry.energy_self_j / entry.calls if entry.calls else None,
        "method": entry.method,
        "provenance": entry.provenance,
        "carried_share": entry.carried_share,
        "measured_share": entry.measured_share,
        "measured_in": entry.measured_in or None,
        "time_share_j": entry.time_share_j,
        "counted": ledger.counted,
        "energy_systematic_lo_j": entry.energy_systematic_lo_j,
        "energy_systematic_hi_j": entry.energy_systematic_hi_j,
    }
