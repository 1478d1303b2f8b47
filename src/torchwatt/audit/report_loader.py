"""Reconstructs a report from a bundle, as far as the tables contain it."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from torchwatt.audit.bundle import AS_RUN, Bundle, number, read_bundle, text, timestamp
from torchwatt.audit.sample_table import read_samples
from torchwatt.audit.schema import Row
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.errors import BundleError, LedgerError, SensorError
from torchwatt.core.factor import Factor, Impact
from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.meter import Channel, Event, Meter, Quantity, SamplerStats, Unavailable
from torchwatt.core.report import Report, Step, Window
from torchwatt.core.requests import TokenRow
from torchwatt.core.terms import Domain
from torchwatt.core.trace import ModuleInfo
from torchwatt.core.units import ns_from_s

PERIODS = ("epoch", "evaluation", "checkpoint", "idle", "other")  # windows that an integration or `watch` adds
_HOLE_NS = 500_000_000  # if power is missing for longer, the meter was not read; as in `verification.sample_checks`


def load_report(
    directory: str | os.PathLike[str],
    *,
    start_ns: int = 0,
    start_unix_ns: int | None = None,
    root: Path | None = None,
    all_windows: bool = False,
) -> Report:
    """Reconstruct the report of a bundle, without impacts and factors.

    Args:
        directory: The bundle.
        start_ns: The monotonic time of its start, which bundles do not contain.
        start_unix_ns: The unix time of its start, if known more exactly than to the bundle's microsecond.
        root: The folder that the user named, if the bundle was found below it.
        all_windows: Include epochs, evaluations and checkpoints, not only nested sessions.

    Raises:
        BundleError: A table is malformed, or a ledger does not balance.
    """
    bundle = read_bundle(directory, root)
    try:
        return _report(bundle, start_ns, start_unix_ns, root, all_windows=all_windows)
    except (LedgerError, SensorError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{bundle.directory}: {error}") from error


def load_priced_report(directory: str | os.PathLike[str]) -> Report:
    """Reconstruct the report of a bundle with the impacts of the run itself, and their factors; see `load_report`."""
    bundle = read_bundle(directory)
    impacts = tuple(_impact(row) for row in bundle["impact"] if row["scenario"] == AS_RUN)
    used = {name for impact in impacts for name in impact.factor_ids}
    factors = tuple(row_factor(row) for row in bundle["factor"] if row["factor_id"] in used)
    return replace(load_report(directory, all_windows=True), impacts=impacts, factors=factors)


def row_factor(row: Row) -> Factor:
    """Return the factor of a row."""
    columns = {item.name: row[item.name] for item in fields(Factor)}
    return Factor(**{name: value for name, value in columns.items() if value is not None})  # type: ignore[arg-type]


def _impact(row: Row) -> Impact:
    columns = {item.name: row[item.name] for item in fields(Impact) if row[item.name] is not None}
    names = tuple(filter(None, text(row, "factor_ids").split(";")))
    return Impact(**{**columns, "factor_ids": names})  # type: ignore[arg-type]


def _report(
    bundle: Bundle, start_ns: int, start_unix_ns: int | None, root: Path | None, *, all_windows: bool
) -> Report:
    run = bundle.run
    duration_s = number(run, "duration_s") or 0.0
    curves = tuple(_curves(bundle, start_ns, root))
    rows = bundle["device"]
    began = timestamp(run, "started_at")
    return Report(
        run_id=text(run, "run_id"),
        name=text(run, "name"),
        status=cast("Any", text(run, "status")),
        start_ns=start_ns,
        end_ns=start_ns + ns_from_s(duration_s),
        start_unix_ns=ns_from_s(began.timestamp()) if start_unix_ns is None else start_unix_ns,
        ledgers=tuple(_ledgers(bundle, duration_s)),
        curves=curves,
        meters=tuple(_meter(row) for row in rows if row["energy_j"] is not None),
        unavailable=tuple(
            Unavailable(text(row, "device_id"), text(row, "unavailable_reason"), text(row, "unavailable_fix"))
            for row in rows
            if row["unavailable_reason"] is not None
        ),
        events=tuple(_event(row, start_ns) for row in bundle["event"]),
        steps=tuple(_steps(bundle, start_ns, curves)),
        windows=tuple(
            Window(
                text(row, "name"), *_edges(row, start_ns), number(row, "energy_j"), cast("Any", row["kind"]),
                number(row, "input_tokens"), number(row, "output_tokens"),
            )
            for row in bundle["window"]
            if row["kind"] == "nested" or (all_windows and row["kind"] in PERIODS)
        ),
        modules=tuple(_modules(bundle)),
        units=_units(text(run, "units_counted")),
        sampler=SamplerStats(
            cast("Any", text(run, "sampler_mode")), number(run, "sampler_cpu_s") or 0.0,
            missed={"all": int(number(run, "sampler_missed") or 0)},
        ),
        tracing_cost_s=number(run, "tracing_cost_s"),
        traced_steps=_whole(run, "traced_step_count"),
        exit_reason=text(run, "exit_reason"),
        tokens=tuple(_token(row, start_ns) for row in bundle["token"]),
        from_bundle=True,
        software={
            name: text(run, column) for name, column in _SOFTWARE.items() if run[column] is not None
        },
    )  # fmt: skip


_SOFTWARE = {
    "torchwatt": "tool_version", "python": "python_version", "torch": "torch_version", "os": "os", "kernel": "kernel",
}  # fmt: skip


def _ledgers(bundle: Bundle, window_s: float) -> Iterator[Ledger]:
    by_device: dict[str, list[Row]] = defaultdict(list)
    for row in bundle["layer"]:
        by_device[text(row, "device_id")].append(row)
    for row in bundle["device"]:
        energy_j = number(row, "energy_j")
        name = text(row, "device_id")
        # Skip devices of a job that no rank used (metered, without a ledger); devices not counted may have a ledger.
        if energy_j is None or not (row["counted"] or by_device[name]):
            continue
        domain = Domain.parse(name)
        yield Ledger(
            domain=domain,
            energy_j=energy_j,
            entries=tuple(_entry(domain, layer) for layer in by_device[name]),
            method=cast("Any", text(row, "method")),
            provenance=cast("Any", text(row, "provenance")),
            known_s=(number(row, "coverage_ratio") or 0.0) * window_s,
            window_s=window_s,
            energy_u_j=number(row, "reading_u_j"),
            energy_lo_j=number(row, "energy_lo_j"),
            energy_hi_j=number(row, "energy_hi_j"),
            static_w=number(row, "static_w"),
            cross_check_j=number(row, "cross_check_j"),
            sentence=text(row, "how_known"),
            counter_start_raw=_whole(row, "counter_start_raw"),
            counter_end_raw=_whole(row, "counter_end_raw"),
            counter_unit_j=number(row, "counter_unit_j"),
            counter_wraps=_whole(row, "counter_wraps"),
            counted=row["counted"] is True,
            part_of=text(row, "parent_device_id"),
        )


def _entry(domain: Domain, row: Row) -> Entry:
    return Entry(
        domain=domain,
        fqn=text(row, "fqn"),
        phase=cast("Any", text(row, "phase")),
        energy_self_j=number(row, "energy_self_j") or 0.0,
        energy_self_lo_j=number(row, "energy_self_lo_j"),
        energy_self_hi_j=number(row, "energy_self_hi_j"),
        energy_static_j=number(row, "energy_static_j"),
        energy_dynamic_j=number(row, "energy_dynamic_j"),
        time_self_s=number(row, "time_self_s") or 0.0,
        calls=_whole(row, "calls"),
        method=cast("Any", text(row, "method")),
        provenance=cast("Any", text(row, "provenance")),
        carried_share=number(row, "carried_share") or 0.0,
        measured_share=number(row, "measured_share"),
        measured_in=text(row, "measured_in"),
        time_share_j=number(row, "time_share_j"),
        stage=text(row, "stage"),
        energy_systematic_lo_j=number(row, "energy_systematic_lo_j"),
        energy_systematic_hi_j=number(row, "energy_systematic_hi_j"),
        flops=number(row, "flops"),
        bytes_moved=number(row, "bytes_moved"),
    )


def _meter(row: Row) -> Meter:
    """Return the meter of a device."""
    domain = Domain.parse(text(row, "device_id"))
    lo, hi = number(row, "sensor_accuracy_lo_rel"), number(row, "sensor_accuracy_hi_rel")
    period_ns = ns_from_s(number(row, "sensor_update_s") or 0.0)
    modulus = _whole(row, "counter_modulus_raw") or None
    facts = {"driver": text(row, "driver_version"), "power_limit_w": text(row, "power_limit_w")}
    facts |= {name: text(row, name) for name in ("device_key", "machine_key")}
    return Meter(
        domain=domain,
        channels=tuple(
            _channel(domain, sensor, period_ns, number(row, "counter_unit_j"), modulus, i)
            for i, sensor in enumerate(filter(None, text(row, "sensor").split(";")))
        ),
        provenance=cast("Any", text(row, "provenance")),
        scope=cast("Any", text(row, "scope") or "device"),
        model=text(row, "model"),
        vendor=text(row, "vendor"),
        accuracy_rel=None if lo is None or hi is None else (lo, hi),
        accuracy_source=text(row, "sensor_accuracy_source"),
        shared=bool(row["shared_with_others"]),
        notes=tuple(filter(None, text(row, "notes").split(";"))),
        facts=tuple((name, value) for name, value in facts.items() if value),
    )


def _channel(
    domain: Domain, sensor: str, period_ns: int, unit_j: float | None, modulus: int | None, index: int
) -> Channel:
    counts = unit_j is not None and index == 0
    quantity: Quantity = "counter" if counts else "power"
    return Channel(
        domain, f"{quantity}{index or ''}", quantity, "J" if counts else "W", unit_j if counts and unit_j else 1.0,
        period_ns, sensor, modulus if counts else None,
    )  # fmt: skip


def _event(row: Row, start_ns: int) -> Event:
    return Event(
        start_ns + int(number(row, "t_ns") or 0), cast("Any", text(row, "severity")), text(row, "code"),
        text(row, "subject"), text(row, "message"),
    )  # fmt: skip


def _edges(row: Row, start_ns: int) -> tuple[int, int]:
    return start_ns + int(number(row, "t_start_ns") or 0), start_ns + int(number(row, "t_end_ns") or 0)


def _steps(bundle: Bundle, start_ns: int, curves: Sequence[EnergyCurve]) -> Iterator[Step]:
    """Yield the steps with the energy per domain, computed from the curves; the table has only the sum."""
    step_rows = [
        ([int(part) for part in text(row, "name").split("-")], row) for row in bundle["window"] if row["kind"] == "step"
    ]
    # The table is in order of time, and a step of no length stands behind the one that begins with it.
    step_rows.sort(key=lambda step_row: step_row[0])
    numbers = [step_numbers for step_numbers, _ in step_rows]
    total = int(number(bundle.run, "step_count") or 0)
    # In older bundles a row has only its first step number, and includes the steps up to the next row.
    follows = [*(first_index for first_index, *_ in numbers[1:]), total]
    for ((index, *last_index), row), following in zip(step_rows, follows, strict=False):
        after = last_index[0] + 1 if last_index else following
        lo, hi = _edges(row, start_ns)
        energies_j = {str(curve.domain): curve.between(lo, hi) for curve in curves if curve.is_metered(lo, hi)}
        yield Step(index, lo, hi, energies_j, max(after - index, 1), text(row, "stage"))


def _token(row: Row, start_ns: int) -> TokenRow:
    begin_ns, end_ns = _whole(row, "t_start_ns"), _whole(row, "t_end_ns")
    return TokenRow(
        request=_whole(row, "request") or 0,
        batch=_whole(row, "batch") or 0,
        stage=text(row, "stage"),
        input_tokens=_whole(row, "input_tokens"),
        output_tokens=_whole(row, "output_tokens"),
        cached_tokens=_whole(row, "cached_tokens") or 0,
        drafted_tokens=_whole(row, "drafted_tokens"),
        accepted_tokens=_whole(row, "accepted_tokens"),
        start_ns=None if begin_ns is None else start_ns + begin_ns,
        end_ns=None if end_ns is None else start_ns + end_ns,
        time_s=number(row, "time_s"),
        energy_j=number(row, "energy_j"),
        cache_bytes=_whole(row, "cache_bytes"),
    )


def _modules(bundle: Bundle) -> Iterator[ModuleInfo]:
    names: set[str] = set()
    for row in bundle["layer"]:
        fqn = text(row, "fqn")
        if row["module_class"] is not None and fqn not in names:
            names.add(fqn)
            params, size = _whole(row, "params") or 0, _whole(row, "param_bytes") or 0
            yield ModuleInfo(fqn, text(row, "module_class"), params, size, dtype=text(row, "dtype"))


def _units(counted_text: str) -> dict[str, float]:
    return {unit: float(count) for unit, count in re.findall(r"(.+?)=([0-9][0-9.e+-]*)(?:;|$)", counted_text)}


def _whole(row: Row, name: str) -> int | None:
    value = row.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _curves(bundle: Bundle, start_ns: int, root: Path | None) -> Iterator[EnergyCurve]:
    rows = {text(row, "device_id"): row for row in bundle["device"]}
    for name, since_ns, power_w, energy_j in read_samples(bundle.directory, root):
        row = rows.get(name)
        if row is None or len(since_ns) < 2:
            continue
        t_ns = since_ns + start_ns
        hole = (np.diff(t_ns) >= _HOLE_NS) | (np.diff(energy_j) == 0)
        gaps = np.flatnonzero(np.isnan(power_w[1:]) & hole)
        silent = tuple((int(t_ns[i]), int(t_ns[i + 1])) for i in gaps.tolist())
        yield EnergyCurve(
            Domain.parse(name), t_ns, energy_j, cast("Any", text(row, "method")), cast("Any", text(row, "provenance")),
            number(row, "reading_u_j") or 0.0, number(row, "cross_check_j"), silent,
        )  # fmt: skip
