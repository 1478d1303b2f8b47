"""The row of `run`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from math import fsum, sqrt

import numpy as np

from torchwatt.audit.devices import salted
from torchwatt.audit.lexical import LONGEST_TEXT, utc
from torchwatt.audit.schema import DECLARED, SCHEMA_VERSION, Row
from torchwatt.core.errors import BundleError
from torchwatt.core.ledger import Ledger
from torchwatt.core.report import Z90, Report
from torchwatt.core.terms import UNATTRIBUTED

LONGEST_UNIT = 200  # characters
PART_OF_KIND = {"gpu": "accelerator", "cpu": "cpu", "dram": "dram", "ram": "dram"}


def run_rows(report: Report) -> Iterator[Row]:
    """Yield the row.

    Raises:
        BundleError: The user declared a value that is not a column of `run`.
    """
    software, cost_s = report.software, report.tracing_cost_s
    yield {
        **_declared(report),
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
        **_units(report),
        **_place(report),
        **_sampling(report),
        "tracing_cost_s": cost_s,
        "overhead_ratio": cost_s / report.duration_s if cost_s is not None and report.duration_s > 0 else None,
        "overhead_method": "self_timed" if cost_s is not None else None,
        "os": software.get("os"),
        "kernel": software.get("kernel"),
        "python_version": software.get("python"),
        "torch_version": software.get("torch"),
        "driver_version": ";".join(dict.fromkeys(m.fact("driver") or "" for m in report.meters if m.fact("driver"))),
        "host_hash": salted(report.run_id, software.get("host")),
    }


def _declared(report: Report) -> Row:
    for name in report.declared:
        if name not in DECLARED:
            raise BundleError(f"declared {name!r} is no column of run; it may be one of {', '.join(DECLARED)}")
    return dict(report.declared)


def _energies(report: Report) -> Row:
    ledgers, interval_j, systematic_j = report.counted, report.interval_j, report.systematic_j
    total_j = report.energy_j
    entries = [entry for ledger in ledgers for entry in ledger.entries]
    booked_j = fsum(entry.energy_self_j for entry in entries)
    unclaimed_j = fsum(entry.energy_self_j for entry in entries if entry.fqn == UNATTRIBUTED)
    return {
        "boundary": ";".join(sorted(str(ledger.domain) for ledger in ledgers)),
        "boundary_excluded": ";".join(sorted({item.domain for item in report.unavailable})),
        "energy_it_j": report.energy_j,
        "energy_it_reading_u_j": _root_sum_of_squares(ledgers),
        "energy_it_systematic_lo_j": systematic_j[0] if systematic_j is not None else None,
        "energy_it_systematic_hi_j": systematic_j[1] if systematic_j is not None else None,
        "energy_it_lo_j": interval_j[0] if interval_j is not None else None,
        "energy_it_hi_j": interval_j[1] if interval_j is not None else None,
        "energy_it_u_j": None if interval_j is None or total_j is None else (interval_j[1] - total_j) / Z90,
        "energy_it_provenance": report.provenance,
        **{f"energy_{part}_j": _part_j(ledgers, part) for part in ("accelerator", "cpu", "dram", "other")},
        "energy_unattributed_j": unclaimed_j if ledgers else None,
        "closure_residual_j": None if report.energy_j is None else report.energy_j - booked_j,
        "coverage_ratio": min((ledger.coverage for ledger in ledgers), default=None),
        "measurement_level": measurement_level((x.domain.kind, x.provenance) for x in ledgers),
    }


def measurement_level(domains: Iterator[tuple[str, str]]) -> str | None:
    """Return the level of a boundary (M0, M1, M2) from (kind, provenance) of its domains; None without domains."""
    parts = list(domains)
    if not parts:
        return None
    if any(provenance != "measured" for _, provenance in parts):
        return "M0"
    kinds = {kind for kind, _ in parts}
    return "M2" if "module" in kinds or kinds >= {"cpu", "dram"} else "M1"  # the module of a superchip contains both


def _part_j(ledgers: tuple[Ledger, ...], part: str) -> float | None:
    """Return the energy of the domains of one part; None, not 0, for a part without a meter."""
    parts = [x.energy_j for x in ledgers if PART_OF_KIND.get(x.domain.kind, "other") == part]
    return fsum(parts) if parts else None


def _root_sum_of_squares(ledgers: tuple[Ledger, ...]) -> float | None:
    # Reading errors of different meters are independent; their systematic errors are not, and are not included.
    uncertainties_j = [ledger.energy_u_j for ledger in ledgers if ledger.energy_u_j is not None]
    return sqrt(fsum(u * u for u in uncertainties_j)) if ledgers and len(uncertainties_j) == len(ledgers) else None


def _units(report: Report) -> Row:
    unit, count = functional_unit(report)
    counted = [f"{name[:LONGEST_UNIT]}={count!r}" for name, count in sorted(report.units.items())]
    ends = accumulate(len(each) + 1 for each in counted)
    return {
        "functional_unit": unit,
        "functional_unit_count": count,
        "functional_unit_provenance": "declared" if report.units else "assumed",
        "units_counted": ";".join(each for each, end in zip(counted, ends, strict=True) if end <= LONGEST_TEXT),
        "step_count": report.step_count,
        "traced_step_count": report.traced_steps,
    }


def functional_unit(report: Report) -> tuple[str, float]:
    """Return the functional unit and its count: the first counted unit by name, else one run."""
    unit, count = next(iter(sorted(report.units.items())), ("run", 1.0))
    return unit[:LONGEST_UNIT], count


def _place(report: Report) -> Row:
    pue = next((f for f in report.factors if f.kind == "pue"), None)
    grid = next((f for f in report.factors if f.kind == "grid_gwp"), None)
    facility_j = None if pue is None or report.energy_j is None else report.energy_j * pue.value
    return {
        "zone": grid.zone if grid else None,
        "pue": pue.value if pue else None,
        "pue_factor_id": pue.factor_id if pue else None,
        "energy_facility_j": facility_j,
    }


def _sampling(report: Report) -> Row:
    steps_ns = [np.diff(curve.t_ns) for curve in report.curves]
    p50_s, p99_s = intervals_s(np.concatenate(steps_ns)) if steps_ns else (None, None)
    return {
        "sampler_mode": report.sampler.mode,
        "sampler_cpu_s": report.sampler.cpu_s,
        "sampler_missed": sum(report.sampler.missed.values()),
        "sample_interval_p50_s": p50_s,
        "sample_interval_p99_s": p99_s,
    }


def intervals_s(steps_ns: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[float, float]:
    """Return the 50th and the 99th percentile, without interpolation."""
    p50, p99 = np.percentile(steps_ns, [50, 99], method="inverted_cdf")
    return float(p50) / 1e9, float(p99) / 1e9
