"""Rows of `window` and `hourly`: the joules cut by the run's own clock and by the world's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import fsum, isclose

from torchwatt.audit.lexical import utc
from torchwatt.audit.schema import Row
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.ledger import Ledger
from torchwatt.core.report import Report
from torchwatt.core.terms import Provenance, weakest

HOUR_NS = 3_600_000_000_000


def window_rows(report: Report) -> Iterator[Row]:
    """Make one row a nested session and one a step, in time order; their joules are inside the run's."""
    # A window's joules lie between readings, so they are derived, at best.
    known: Provenance | None = weakest("derived", report.provenance) if report.provenance else None
    found = [(w.start_ns, w.end_ns, "nested", w.name, w.energy_j) for w in report.windows]
    domains = [str(ledger.domain) for ledger in report.ledgers]
    found += [(s.start_ns, s.end_ns, "step", str(s.index), _all_j(s.energy_j, domains)) for s in report.steps]
    ordered = sorted(found, key=lambda w: (w[0], -w[1], w[2], w[3]))
    for index, (start_ns, end_ns, kind, name, energy_j) in enumerate(ordered):
        yield {
            "run_id": report.run_id,
            "window_id": index,
            "name": name,
            "kind": kind,
            "t_start_ns": start_ns - report.start_ns,
            "t_end_ns": end_ns - report.start_ns,
            "energy_j": energy_j,
            "provenance": known if energy_j is not None else None,
        }


def _all_j(energy_j: Mapping[str, float], domains: list[str]) -> float | None:
    """Add up the domains; None where one of them was not known then."""
    parts = [energy_j[name] for name in domains if name in energy_j]
    return fsum(parts) if parts and len(parts) == len(domains) else None


def hourly_rows(report: Report) -> Iterator[Row]:
    """Make one row a counting domain and hour of UTC."""
    curves = {str(curve.domain): curve for curve in report.curves}
    for ledger in report.ledgers:
        for hour_ns, energy_j in _hours(report, ledger, curves.get(str(ledger.domain))):
            yield {
                "run_id": report.run_id,
                "hour_utc": utc(hour_ns),
                "device_id": str(ledger.domain),
                "energy_j": energy_j,
                "provenance": ledger.provenance,
            }


def _hours(report: Report, ledger: Ledger, curve: EnergyCurve | None) -> Iterator[tuple[int, float]]:
    """Cut a domain's joules at full hours of unix time; none where no curve says when they were used."""
    offset_ns = report.start_unix_ns - report.start_ns
    if report.start_unix_ns // HOUR_NS == (report.end_ns + offset_ns) // HOUR_NS:
        yield report.start_unix_ns // HOUR_NS * HOUR_NS, ledger.energy_j
        return
    if curve is None or not isclose(curve.total_j, ledger.energy_j, rel_tol=1e-9, abs_tol=1e-9):
        return
    hour_ns = (curve.start_ns + offset_ns) // HOUR_NS * HOUR_NS
    while hour_ns < curve.end_ns + offset_ns:
        yield hour_ns, curve.between(hour_ns - offset_ns, hour_ns + HOUR_NS - offset_ns)
        hour_ns += HOUR_NS
