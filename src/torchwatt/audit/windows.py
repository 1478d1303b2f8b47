"""Rows of `window` and `hourly`: energy by windows of the run and by hours of UTC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import fsum

import numpy as np

from torchwatt.audit.schema import Row
from torchwatt.core.hours import hour_energies
from torchwatt.core.report import Report, Step
from torchwatt.core.terms import Provenance, weakest

BLOCKS = (
    12  # of the run, from whose differences its interval is computed (attribution.repeats); shorter windows have none
)


def window_rows(report: Report) -> Iterator[Row]:
    """Yield one row per step and per window (a nested session, an epoch, ...), in time order.

    Their energy is part of that of the run.
    """
    # Windows begin and end between readings, so their energy is derived, at best.
    provenance: Provenance | None = weakest("derived", report.provenance) if report.provenance else None
    windows = [(w.start_ns, w.end_ns, str(w.kind), w.name, w.energy_j, "") for w in report.windows]
    domains = [str(ledger.domain) for ledger in report.counted]
    windows += [(s.start_ns, s.end_ns, "step", _numbers(s), _all_j(s.energy_j, domains), s.stage) for s in report.steps]
    ordered = sorted(windows, key=lambda w: (w[0], -w[1], w[2], w[3]))
    bands = _bands_j(report, [(w[0], w[1]) for w in ordered])
    for index, (start_ns, end_ns, kind, name, energy_j, stage) in enumerate(ordered):
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
            **_repeat(report, energy_j, end_ns - start_ns),
            **({} if energy_j is None or bands is None else _systematic(energy_j, *bands[index])),
        }


def _numbers(step: Step) -> str:
    """Return the number of a step; for a row of several steps, the first and the last number."""
    return str(step.index) if step.count == 1 else f"{step.index}-{step.index + step.count - 1}"


def _repeat(report: Report, energy_j: float | None, long_ns: int) -> Row:
    """Return the interval over repeats of a window, relative to that of the run; {} for short windows."""
    interval_j, total_j = report.interval_j, report.energy_j
    if energy_j is None or interval_j is None or not total_j or long_ns * BLOCKS < report.end_ns - report.start_ns:
        return {}
    return {"energy_lo_j": energy_j * interval_j[0] / total_j, "energy_hi_j": energy_j * interval_j[1] / total_j}


def _systematic(energy_j: float, below_j: float, above_j: float) -> Row:
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


def _all_j(energy_j: Mapping[str, float], domains: list[str]) -> float | None:
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
