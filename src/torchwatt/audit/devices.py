"""Rows of `device`: every domain with a ledger, a meter or a curve, or with a reason why it is unavailable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256

from torchwatt.audit.schema import Row
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.ledger import Ledger
from torchwatt.core.meter import Meter
from torchwatt.core.report import Z90, Report
from torchwatt.core.terms import Domain, kind_of


def salted(run_id: str, secret: str | None) -> str | None:
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
            "kind": kind_of(domain),
            "counted": domain in ledgers and ledgers[domain].counted,
            "parent_device_id": _parent(ledgers.get(domain), ledgers),
            **_meter(meters.get(domain), report.run_id),
            **_known(ledgers.get(domain), curves.get(domain)),
            **_intervals(report, ledgers.get(domain)),
            **_counter(ledgers.get(domain), meters.get(domain)),
            **_unavailable(report, domain),
            **_identity(report, domain, meters.get(domain)),
        }


def _identity(report: Report, domain: str, meter: Meter | None) -> Row:
    """Return the keys by which the joules of several runs are counted once (`torchwatt.audit.counting`)."""
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
    address = meter.fact("pci_bus_id") or ("" if kind_of(domain) == "gpu" else local)
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
        "device_hash": salted(run_id, meter.fact("uuid")),
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


def _known(ledger: Ledger | None, curve: EnergyCurve | None) -> Row:
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


MOST_RAW = 2**63  # integers of a bundle are signed with 64 bits; larger readings are left empty


def _counter(ledger: Ledger | None, meter: Meter | None) -> Row:
    """Return the first and last reading of the counter, their difference in J, and the energy outside of it."""
    channel = meter.channel("counter") if meter is not None else None
    if ledger is None or ledger.counter_start_raw is None or ledger.counter_end_raw is None:
        return {}
    wraps, modulus = ledger.counter_wraps or 0, (channel.modulus if channel is not None else None) or 0
    largest = max(ledger.counter_start_raw, ledger.counter_end_raw)
    if largest >= MOST_RAW:
        return {}
    if not wraps and not largest < modulus < MOST_RAW:
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
