"""Typed access to the cells of a bundle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from torchwatt.audit.bundle import Bundle
from torchwatt.audit.schema import Row
from torchwatt.core.errors import BundleError
from torchwatt.core.plain_text import to_encodable
from torchwatt.core.units import J_PER_KWH

AS_RUN = "as_run"
# Exports state the systematic interval (of the meter), not the interval over repeats of the run.
SYSTEMATIC = ("energy_it_systematic_lo_j", "energy_it_systematic_hi_j")


def text(row: Row, name: str) -> str:
    """Return a text cell, empty if missing."""
    value = row.get(name)
    return "" if value is None else str(value)


def number(row: Row, name: str) -> float | None:
    """Return a numeric cell; None if missing, never 0."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def in_utf8(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return rows that can be encoded as UTF-8: lone surrogates in text are escaped."""
    return tuple(
        {name: to_encodable(value, "utf-8") if isinstance(value, str) else value for name, value in row.items()}
        for row in rows
    )


def timestamp(row: Row, name: str) -> datetime:
    """Return a timestamp cell.

    Raises:
        BundleError: It is missing.
    """
    value = row.get(name)
    if not isinstance(value, datetime):
        raise BundleError(f"{name} is missing")
    return value


def kwh(row: Row, name: str) -> float | None:
    """Return a cell in joules, converted to kWh."""
    joules = number(row, name)
    return None if joules is None else joules / J_PER_KWH


def impact(  # the key of the table
    bundle: Bundle,
    criterion: str,
    *,
    phase: str = "usage",
    method: str = "location",
    subject: str = "run",
    scenario: str = AS_RUN,
) -> Row | None:
    """Return one row of `impact`; None if it does not exist."""
    values = (subject, criterion, phase, method, scenario)
    columns = ("subject", "criterion", "phase", "accounting_method", "scenario")
    return next((row for row in bundle["impact"] if tuple(row[column] for column in columns) == values), None)


def factors_of(bundle: Bundle, row: Row | None) -> tuple[Row, ...]:
    """Return the factors of an impact, in the order of its `factor_ids`."""
    if row is None:
        return ()
    by_id = {factor["factor_id"]: factor for factor in bundle["factor"]}
    return tuple(by_id[name] for name in text(row, "factor_ids").split(";") if name in by_id)


def first_of_kind(factors: Iterable[Row], kind: str) -> Row | None:
    """Return the first factor of a kind."""
    return next((factor for factor in factors if factor["kind"] == kind), None)


def counted_devices(bundle: Bundle, *kinds: str) -> list[Row]:
    """Return the devices inside the total, of these kinds or all."""
    rows = (row for row in bundle["device"] if row["counted"])
    return [row for row in rows if not kinds or row["kind"] in kinds]


def pue_of(bundle: Bundle) -> float | None:
    """Return the PUE used for the grams, else the declared one; None if there is neither."""
    used = first_of_kind(factors_of(bundle, impact(bundle, "gwp")), "pue")
    return number(bundle.run, "pue") if used is None else number(used, "value")


def intensity_g_per_kwh(bundle: Bundle) -> float | None:
    """Return the applied grid intensity; over several hours, their mean weighted by energy."""
    grams, energy_kwh = impact(bundle, "gwp"), kwh(bundle.run, "energy_it_j")
    if grams is None or not energy_kwh:
        return None
    used = first_of_kind(factors_of(bundle, grams), "pue")
    return (number(grams, "value") or 0.0) / energy_kwh / ((number(used, "value") or 1.0) if used is not None else 1.0)


def select_scenario(bundle: Bundle, scenario: str) -> Bundle:
    """Return the bundle with the impacts of one scenario as `as_run`, for exporters that use one scenario.

    Raises:
        BundleError: There are no impacts of that scenario.
    """
    if scenario == AS_RUN:
        return bundle
    rows = tuple({**row, "scenario": AS_RUN} for row in bundle["impact"] if row["scenario"] == scenario)
    if not rows:
        scenarios = sorted({text(row, "scenario") for row in bundle["impact"]})
        raise BundleError(f"no impacts of scenario {scenario!r}; the bundle has {', '.join(scenarios) or 'no impacts'}")
    return replace(bundle, tables={**bundle.tables, "impact": rows})
