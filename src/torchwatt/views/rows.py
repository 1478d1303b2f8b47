"""The rows of `run.layers`: one per domain, layer and phase."""

from __future__ import annotations

from typing import Any

from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.report import Report
from torchwatt.core.terms import Slot
from torchwatt.views.layers import class_names
from torchwatt.views.tree import totals

LAYER_COLUMNS = (
    "domain",
    "fqn",
    "phase",
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
)


def layer_rows(report: Report) -> list[dict[str, Any]]:
    """Return one row per (domain, fqn, phase), most joules first within its domain; None is unknown."""
    classes = class_names(report)
    rows = []
    for ledger in report.ledgers:
        total_j = totals(ledger.entries, classes)
        ordered = sorted(ledger.entries, key=lambda e: (-e.energy_self_j, e.fqn, e.phase))
        rows += [
            _row(ledger, entry, total_j[Slot(entry.fqn, entry.phase)], classes.get(entry.fqn)) for entry in ordered
        ]
    return rows


def _row(ledger: Ledger, entry: Entry, total_j: float, module_class: str | None) -> dict[str, Any]:
    return {
        "domain": str(ledger.domain),
        "fqn": entry.fqn,
        "phase": entry.phase,
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
    }
