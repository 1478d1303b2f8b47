"""Computes the row of `run` again from the other tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from math import fsum, sqrt

from torchwatt.audit.schema import Row, Value
from torchwatt.audit.verification.bundle_facts import BundleFacts, number, text
from torchwatt.audit.verification.finding import Findings
from torchwatt.audit.verification.table_reader import is_same_number
from torchwatt.core.ledger import is_fully_covered
from torchwatt.core.terms import PROVENANCES
from torchwatt.core.units import Z90

PART_OF_KIND = {"gpu": "accelerator", "cpu": "cpu", "dram": "dram", "ram": "dram"}
_NUMBERS = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
CLEAN_EXIT = "SystemExit"  # sys.exit() without an error
TRACING_REL, TRACING_S = 1.05, 5.0  # what is put together after the end counts, too
Expected = tuple[str, Value, float]  # column, value, size of what was subtracted to get it


def check_run(facts: BundleFacts, file: str, findings: Findings) -> None:
    """Compare every cell of the run that follows from other tables."""
    if not facts.run or facts.broken & {"run", "device"}:
        return
    expected = [*_energies(facts), *_place(facts), *_units(facts)]
    if "layer" not in facts.broken:
        expected += _layers(facts)
    for column, value, scale in expected:
        actual = facts.run[column]
        if not _agree(value, actual, scale):
            findings.add(
                "DERIVED", file, "is not what the other tables say", row=1, column=column,
                expected="nothing" if value is None else value, found=actual,
            )  # fmt: skip
    _times(facts, file, findings)
    for column, reason, required in (*_words(facts), *_follows(facts), *_family(facts)):
        findings.add("LAW", file, reason, row=1, column=column, expected=required, found=facts.run[column])


def check_systematic(facts: BundleFacts, file: str, findings: Findings) -> None:
    """Compare each device's systematic interval with its band and reading error; version 1 has none."""
    if facts.schema.version.startswith("1."):
        return
    for name, row in facts.devices.items():
        energy_j = number(row, "energy_j")
        coverage = number(row, "coverage_ratio")  # of a device with a ledger
        if energy_j is None or coverage is None:
            continue
        ends = _systematic([row], energy_j, facts.duration_s())
        for end, expected in zip(("lo", "hi"), ends, strict=True):
            column = f"energy_systematic_{end}_j"
            if not _agree(expected, row[column], energy_j):
                findings.add(
                    "DERIVED", file, "is not the band of the meter and its readings", row=facts.device_rows[name],
                    column=column, expected="nothing" if expected is None else expected, found=row[column],
                )  # fmt: skip


def _words(facts: BundleFacts) -> Iterator[tuple[str, str, str]]:
    """Yield contradictions within the row: (column, reason, expected)."""
    run = facts.run
    if run["tool_name"] != "torchwatt":
        yield "tool_name", "these tables are torchwatt's", "torchwatt"
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6}){2}", text(run, "schema_version")):
        yield "schema_version", "is no version", "such as 2.0.0"
    if run["status"] == "complete" and text(run, "exit_reason") not in {"", CLEAN_EXIT}:
        yield "exit_reason", "is complete, and says why it was not", "nothing"
    if run["status"] == "aborted" and run["exit_reason"] is None and not facts.merged:
        yield "exit_reason", "was aborted, and does not say why", "a reason"
    counted = run["units_counted"] is not None
    if run["functional_unit_provenance"] != ("declared" if counted else "assumed"):
        yield "functional_unit_provenance", "users declare what they count", "declared" if counted else "assumed"
    if not counted and run["functional_unit"] != "run":
        yield "functional_unit", "nothing was counted", "run"
    traced, steps = number(run, "traced_step_count"), number(run, "step_count")
    if traced is not None and steps is not None and traced > steps:
        yield "traced_step_count", "is more than step_count", f"at most {steps:.0f}"
    p50_s, p99_s = number(run, "sample_interval_p50_s"), number(run, "sample_interval_p99_s")
    if p50_s is not None and p99_s is not None and p50_s > p99_s:
        yield "sample_interval_p50_s", "is more than sample_interval_p99_s", f"at most {p99_s!r}"
    cost_s = number(run, "tracing_cost_s")
    if cost_s is not None and cost_s > TRACING_REL * facts.duration_s() + TRACING_S:
        yield "tracing_cost_s", "is more time than the run took", f"at most {facts.duration_s()!r}"


def _follows(facts: BundleFacts) -> Iterator[tuple[str, str, str]]:
    """Yield contradictions with the devices and tracing_cost_s: (column, reason, expected)."""
    run = facts.run
    if facts.old:
        return
    drivers = {text(row, "driver_version") for row in facts.devices.values()} - {""}
    if not facts.merged and set(text(run, "driver_version").split(";")) - {""} != drivers:
        yield "driver_version", "is not that of the devices", ";".join(sorted(drivers)) or "nothing"
    if (run["tracing_cost_s"] is None) != (run["overhead_method"] is None):
        timed = run["tracing_cost_s"] is not None
        yield "overhead_method", "says how tracing_cost_s is known", "self_timed" if timed else "nothing"


def _family(facts: BundleFacts) -> Iterator[tuple[str, str, str]]:
    """Yield contradictions about parents and ranks: (column, reason, expected)."""
    run = facts.run
    if run["parent_run_id"] is not None and run["parent_run_id"] == run["run_id"]:
        yield "parent_run_id", "is the run itself", "another run"
    if (number(run, "world_size") or 1) > 1 and not facts.merged:
        yield "world_size", "has ranks, and there is no rank.csv", "1"


def _agree(expected: Value, actual: Value, scale: float) -> bool:
    if isinstance(expected, int | float) and isinstance(actual, int | float):
        return is_same_number(float(expected), float(actual), scale=scale)
    return expected == actual


def _energies(facts: BundleFacts) -> Iterator[Expected]:
    counted = list(facts.counted.values())
    energies_j = [number(row, "energy_j") or 0.0 for row in counted]
    total_j = fsum(energies_j) if counted else None
    yield "energy_it_j", total_j, 0.0
    us = _all_numbers(counted, "reading_u_j")
    yield "energy_it_reading_u_j", None if us is None else sqrt(fsum(u * u for u in us)), 0.0
    for end in ("lo", "hi"):
        ends_j = _all_numbers(counted, f"energy_{end}_j")
        yield f"energy_it_{end}_j", None if ends_j is None else fsum(ends_j), 0.0
    lo_j, hi_j = _systematic(counted, total_j, number(facts.run, "duration_s") or 0.0)
    yield "energy_it_systematic_lo_j", lo_j, total_j or 0.0
    yield "energy_it_systematic_hi_j", hi_j, 0.0
    order = [list[str](PROVENANCES).index(text(row, "provenance")) for row in counted if row["provenance"]]
    yield "energy_it_provenance", PROVENANCES[max(order)] if order else None, 0.0
    for part in ("accelerator", "cpu", "dram", "other"):
        parts_j = [
            joules for row, joules in zip(counted, energies_j, strict=True)
            if PART_OF_KIND.get(text(row, "kind"), "other") == part
        ]  # fmt: skip
        yield f"energy_{part}_j", fsum(parts_j) if parts_j else None, 0.0
    coverages = [share for row in counted if (share := number(row, "coverage_ratio")) is not None]
    yield "coverage_ratio", min(coverages, default=None), 0.0
    yield "boundary", ";".join(sorted(facts.counted)) or None, 0.0
    yield "measurement_level", _level(counted), 0.0


def _all_numbers(rows: list[Row], column: str) -> list[float] | None:
    """Return a column's numbers; None if one is missing, or without rows."""
    values = [value for row in rows if (value := number(row, column)) is not None]
    return values if values and len(values) == len(rows) else None


def _systematic(counted: list[Row], total_j: float | None, run_s: float) -> tuple[float | None, float | None]:
    """Reading errors in quadrature; bands are common to all joules of a meter, so they are added.

    None where a meter states no band, or was away for a part of the run.
    """
    if total_j is None:
        return None, None
    lows, highs, us = [], [], []
    for row in counted:
        energy_j, u_j = number(row, "energy_j") or 0.0, number(row, "reading_u_j")
        lo, hi = number(row, "sensor_accuracy_lo_rel"), number(row, "sensor_accuracy_hi_rel")
        if lo is None or hi is None or not is_fully_covered(number(row, "coverage_ratio") or 0.0, run_s):
            return None, None
        us.append(u_j or 0.0)
        lows.append(energy_j * lo)
        highs.append(energy_j * hi)
    reading_j = Z90 * sqrt(fsum(u * u for u in us))
    return max(total_j + fsum(lows) - reading_j, 0.0), total_j + fsum(highs) + reading_j


def _level(counted: list[Row]) -> str | None:
    if not counted:
        return None
    if any(row["provenance"] != "measured" for row in counted):
        return "M0"
    kinds = {row["kind"] for row in counted}
    return "M2" if "module" in kinds or kinds >= {"cpu", "dram"} else "M1"


def _layers(facts: BundleFacts) -> Iterator[Expected]:
    total_j = number(facts.run, "energy_it_j")
    booked_j = fsum(part for name in facts.counted if name in facts.layer_j for part in facts.layer_j[name].parts)
    yield "energy_unattributed_j", facts.unattributed_j.value if facts.counted else None, 0.0
    yield "closure_residual_j", None if total_j is None else total_j - booked_j, total_j or 0.0


def _place(facts: BundleFacts) -> Iterator[Expected]:
    factor = facts.factors.get(text(facts.run, "pue_factor_id"))
    if factor is not None:
        yield "pue", factor["value"], 0.0
    elif not facts.broken & {"factor", "impact"}:
        yield "pue", None, 0.0
        used = {name for _, cells in facts.impacts if cells["scenario"] == "as_run" for name in ids_of(cells)}
        pues = sorted(name for name in used if facts.factors.get(name, {}).get("kind") == "pue")
        yield "pue_factor_id", pues[0] if pues else None, 0.0
    zones = {row["zone"] for row in facts.factors.values()}
    if facts.run["zone"] is not None and facts.run["zone"] not in zones:
        yield "zone", next(iter(sorted(str(zone) for zone in zones if zone)), None), 0.0


def _units(facts: BundleFacts) -> Iterator[Expected]:
    unit, count = text(facts.run, "functional_unit"), number(facts.run, "functional_unit_count")
    counted = text(facts.run, "units_counted")
    if not counted:
        yield "functional_unit_count", 1.0, 0.0
    elif f";{unit}={count!r};" not in f";{counted};":
        yield "units_counted", f"{unit}={count!r}", 0.0
    if "window" not in facts.broken:
        yield "step_count", _step_count(facts), 0.0
        counts = dict(item.rpartition("=")[::2] for item in counted.split(";"))
        for name, tokens in facts.window_tokens.items():
            if name not in counts and ("TOKENS_PARTIAL", "run") in facts.events:
                continue  # tokens of a part of the run are not counted for the whole
            if not is_same_number(tokens.value, _count(counts.get(name, ""))):
                yield "units_counted", f"{name}={tokens.value!r}", 0.0


def _count(count_text: str) -> float:
    try:
        return float(count_text)
    except ValueError:
        return -1.0


def _step_count(facts: BundleFacts) -> int | None:
    """Return the number of steps that the rows of `window` stand for.

    A step's name is its number, or in a long run the first and the last number of those that the row stands for.
    """
    names = [window.name for window in facts.windows.values() if window.kind == "step"]
    matches = [_NUMBERS.fullmatch(name) for name in names]
    if not all(matches):
        return len(names)
    spans = sorted((int(each[1]), int(each[2] or each[1])) for each in matches if each)
    if any(begin != end for begin, end in spans):
        follows = [0, *(end + 1 for _, end in spans)]
        return follows[-1] if [begin for begin, _ in spans] == follows[:-1] else len(names)
    return _step_count_of_old(facts, names)


def _step_count_of_old(facts: BundleFacts, names: list[str]) -> int | None:
    """Return the same where names are first numbers only; the size of the last row comes from `step_count`."""
    numbers, step_count = sorted(int(name) for name in names), number(facts.run, "step_count")
    if (
        numbers
        and numbers[0] == 0
        and len(set(numbers)) == len(numbers)
        and step_count is not None
        and step_count > numbers[-1]
    ):
        folded = numbers[-1] >= len(numbers)  # rows of several steps: the last one may be one, too
        return int(step_count) if folded else len(numbers)
    return len(numbers)


def _times(facts: BundleFacts, file: str, findings: Findings) -> None:
    begun, ended = facts.run["started_at"], facts.run["ended_at"]
    if not isinstance(begun, datetime) or not isinstance(ended, datetime):
        return
    seconds = (ended - begun) / timedelta(seconds=1)
    if abs(seconds - facts.duration_s()) > 2e-6:  # both times are cut to microseconds
        findings.add(
            "DERIVED", file, "is not started_at and duration_s", row=1, column="ended_at",
            expected=later(begun, facts.duration_s()), found=ended,
        )  # fmt: skip


def ids_of(cells: Row) -> list[str]:
    """Return the factors that a row of `impact` names."""
    return [name for name in text(cells, "factor_ids").split(";") if name]


def later(begun: datetime, seconds: float) -> datetime | None:
    """Return an instant so much later; None where that is no time any more."""
    try:
        return begun + timedelta(seconds=seconds)
    except OverflowError:
        return None
