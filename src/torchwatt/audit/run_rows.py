"""The row of `run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from itertools import accumulate
from math import fsum, sqrt

import numpy as np

from torchwatt.audit.cell_codec import LONGEST_TEXT, utc_from_unix_ns
from torchwatt.audit.schema import DECLARED, SCHEMA_VERSION, Row
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.errors import BundleError
from torchwatt.core.ledger import Ledger
from torchwatt.core.meter import Meter
from torchwatt.core.report import Report
from torchwatt.core.terms import UNATTRIBUTED, Domain, domain_kind
from torchwatt.core.units import Z90


def salted_hash(run_id: str, secret: str | None) -> str | None:
    """Return a hash of an identifier that differs from run to run; None if it is unknown."""
    return sha256(f"{run_id}:{secret}".encode()).hexdigest() if secret else None


def device_rows(report: Report) -> Iterator[Row]:
    """Yield one row per domain; `counted` domains are inside the total."""
    ledgers = {str(ledger.domain): ledger for ledger in report.ledgers}
    curves = {str(curve.domain): curve for curve in report.curves}
    meters = {str(meter.domain): meter for meter in report.meters}
    missing = [item.domain for item in report.unavailable]
    for domain in dict.fromkeys([*ledgers, *meters, *curves, *missing]):
        yield {
            "run_id": report.run_id,
            "device_id": domain,
            "kind": domain_kind(domain),
            "counted": domain in ledgers and ledgers[domain].counted,
            "parent_device_id": _parent(ledgers.get(domain), ledgers),
            **_meter(meters.get(domain), report.run_id),
            **_energy_cells(ledgers.get(domain), curves.get(domain)),
            **_intervals(report, ledgers.get(domain)),
            **_counter(ledgers.get(domain), meters.get(domain)),
            **_unavailable(report, domain),
            **_identity(report, domain, meters.get(domain)),
        }


def _identity(report: Report, domain: str, meter: Meter | None) -> Row:
    """Return the keys by which the joules of several runs are counted once (`torchwatt.audit.deduplication`)."""
    if meter is None:
        return {}
    machine = _machine(report, Domain.parse(domain).node)
    # A meter that was read from a bundle has the keys as facts, without the identifiers that they hash.
    return {
        "device_key": _device_key(report, domain, meter, machine),
        "machine_key": meter.fact("machine_key") or _key("machine", machine),
    }


def _machine(report: Report, node: int | None) -> str:
    """Return an identifier of the machine since its boot; empty for a recorded log, which may be of another machine."""
    if report.sampler.mode not in {"process", "thread"}:
        return ""
    if node is None:
        return report.software.get("machine", "")
    return next((part.host for part in report.ranks if part.node == node), "")


def _device_key(report: Report, domain: str, meter: Meter, machine: str) -> str | None:
    local = domain.rpartition("/")[2]
    if meter.scope == "process" and report.ranks:
        return _key("job", report.run_id, domain)  # a sum of shares of several processes
    if device_key := meter.fact("device_key"):
        return device_key
    if meter.scope == "process":
        return _key("process", report.software.get("process", ""), local) if machine else None
    if uuid := meter.fact("uuid"):
        return _key("uuid", uuid)
    address = meter.fact("pci_bus_id") or ("" if domain_kind(domain) == "gpu" else local)
    return _key("place", machine, address) if machine and address else None


def _key(*parts: str) -> str | None:
    """Return a hash of the parts that is equal in all runs; None if a part is empty."""
    return sha256(":".join(("torchwatt", *parts)).encode()).hexdigest() if all(parts) else None


def _parent(ledger: Ledger | None, ledgers: Mapping[str, Ledger]) -> str | None:
    """Return the domain that contains this one; the first if its energy is divided among several superchip modules."""
    parent = ledger.part_of.partition(", ")[0] if ledger is not None else ""
    return parent if parent in ledgers else None


def _meter(meter: Meter | None, run_id: str) -> Row:
    if meter is None:
        return {}
    lo, hi = meter.accuracy_rel or (None, None)
    channel = meter.channel("counter") or meter.channel("power")
    return {
        "vendor": meter.vendor,
        "model": meter.model,
        "device_hash": salted_hash(run_id, meter.fact("uuid")),
        "driver_version": meter.fact("driver"),
        "power_limit_w": _float(meter.fact("power_limit_w")),
        "scope": meter.scope,
        "shared_with_others": meter.shared,
        "sensor": ";".join(dict.fromkeys(c.sensor for c in meter.channels if c.quantity != "gauge")),
        "sensor_update_s": channel.period_ns / 1e9 if channel else None,
        "sensor_accuracy_lo_rel": lo,
        "sensor_accuracy_hi_rel": hi,
        "sensor_accuracy_source": meter.accuracy_source,
        "notes": ";".join(meter.notes),
    }


def _float(text: str | None) -> float | None:
    """Return a fact of a driver as a number; None if it is none, such as `[N/A]`."""
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _energy_cells(ledger: Ledger | None, curve: EnergyCurve | None) -> Row:
    """Return energy, method and provenance; a domain with a curve and no ledger is metered but not counted."""
    if ledger is None:
        if curve is None:
            return {}
        return {
            "energy_j": curve.total_j,
            "reading_u_j": curve.u_j,
            "method": curve.method,
            "provenance": curve.provenance,
            **_cross_check(curve.cross_check_j, curve.total_j),
        }
    return {
        "energy_j": ledger.energy_j,
        "reading_u_j": ledger.energy_u_j,
        "static_w": ledger.static_w,
        "coverage_ratio": ledger.coverage,
        "method": ledger.method,
        "provenance": ledger.provenance,
        "how_known": ledger.sentence,
        **_cross_check(ledger.cross_check_j, ledger.energy_j),
    }


def _intervals(report: Report, ledger: Ledger | None) -> Row:
    """Return the interval over repeats of the run and the systematic interval of the meter."""
    if ledger is None:
        return {}
    systematic_j, hi_j = report.systematic_of(ledger), ledger.energy_hi_j
    return {
        "energy_lo_j": ledger.energy_lo_j,
        "energy_hi_j": hi_j,
        "energy_u_j": None if hi_j is None else (hi_j - ledger.energy_j) / Z90,
        "energy_systematic_lo_j": systematic_j[0] if systematic_j is not None else None,
        "energy_systematic_hi_j": systematic_j[1] if systematic_j is not None else None,
    }


MAX_RAW = 2**63  # integers of a bundle are signed with 64 bits; larger readings are left empty


def _counter(ledger: Ledger | None, meter: Meter | None) -> Row:
    """Return the first and last reading of the counter, their difference in J, and the energy outside of it."""
    channel = meter.channel("counter") if meter is not None else None
    if ledger is None or ledger.counter_start_raw is None or ledger.counter_end_raw is None:
        return {}
    wraps, modulus = ledger.counter_wraps or 0, (channel.modulus if channel is not None else None) or 0
    largest = max(ledger.counter_start_raw, ledger.counter_end_raw)
    if largest >= MAX_RAW:
        return {}
    if not wraps and not largest < modulus < MAX_RAW:
        modulus = 0  # what the driver says of its range is wrong, and no joules rest on it
    unit_j = ledger.counter_unit_j or 0.0
    difference_j = (ledger.counter_end_raw - ledger.counter_start_raw + wraps * modulus) * unit_j
    return {
        "counter_start_raw": ledger.counter_start_raw,
        "counter_end_raw": ledger.counter_end_raw,
        "counter_unit_j": unit_j,
        "counter_wraps": wraps,
        "counter_modulus_raw": modulus,
        "counter_difference_j": difference_j,
        "counter_gap_j": ledger.energy_j - difference_j,
    }


def _cross_check(cross_check_j: float | None, energy_j: float) -> Row:
    if cross_check_j is None:
        return {}
    return {
        "cross_check_j": cross_check_j,
        "cross_check_rel_diff": cross_check_j / energy_j - 1 if energy_j > 0 else None,
    }


def _unavailable(report: Report, domain: str) -> Row:
    items = [item for item in report.unavailable if item.domain == domain]
    return {
        "unavailable_reason": "; ".join(dict.fromkeys(item.reason for item in items if item.reason)),
        "unavailable_fix": "; ".join(dict.fromkeys(item.fix for item in items if item.fix)),
    }


LONGEST_UNIT = 200  # characters
PART_OF_KIND = {"gpu": "accelerator", "cpu": "cpu", "dram": "dram", "ram": "dram"}


def run_rows(report: Report) -> Iterator[Row]:
    """Yield the row.

    Raises:
        BundleError: The user declared a value that is not a column of `run`.
    """
    software, cost_s = report.software, report.tracing_cost_s
    yield {
        **_declared_cells(report),
        "run_id": report.run_id,
        "schema_version": SCHEMA_VERSION,
        "tool_name": "torchwatt",
        "tool_version": software.get("torchwatt"),
        "name": report.name,
        "started_at": utc_from_unix_ns(report.start_unix_ns),
        "ended_at": utc_from_unix_ns(report.start_unix_ns + report.end_ns - report.start_ns),
        "duration_s": report.duration_s,
        "status": report.status,
        "exit_reason": report.exit_reason,
        **_energies(report),
        **_units(report),
        **_place_cells(report),
        **_sampling_cells(report),
        "tracing_cost_s": cost_s,
        "overhead_ratio": cost_s / report.duration_s if cost_s is not None and report.duration_s > 0 else None,
        "overhead_method": "self_timed" if cost_s is not None else None,
        "os": software.get("os"),
        "kernel": software.get("kernel"),
        "python_version": software.get("python"),
        "torch_version": software.get("torch"),
        "driver_version": ";".join(dict.fromkeys(m.fact("driver") or "" for m in report.meters if m.fact("driver"))),
        "host_hash": salted_hash(report.run_id, software.get("host")),
    }


def _declared_cells(report: Report) -> Row:
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
    """Return the functional unit and its count: the first of the counted units, else one run."""
    unit, count = next(iter(report.sorted_units), ("run", 1.0))
    return unit[:LONGEST_UNIT], count


def _place_cells(report: Report) -> Row:
    pue = next((f for f in report.factors if f.kind == "pue"), None)
    grid = next((f for f in report.factors if f.kind == "grid_gwp"), None)
    facility_j = None if pue is None or report.energy_j is None else report.energy_j * pue.value
    return {
        "zone": grid.zone if grid else None,
        "pue": pue.value if pue else None,
        "pue_factor_id": pue.factor_id if pue else None,
        "energy_facility_j": facility_j,
    }


def _sampling_cells(report: Report) -> Row:
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
