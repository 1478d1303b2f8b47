"""Reads a user's file of factors: CSV with some or all columns of a bundle's `factor.csv`."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import sha256
from io import StringIO
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from torchwatt.carbon.declared_factors import GRID_UNIT
from torchwatt.core.errors import FactorError
from torchwatt.core.factor import Factor, with_factor_id
from torchwatt.core.terms import PROVENANCES

# Kinds of factors in formulas, and the unit that the arithmetic expects.
UNITS: Mapping[str, str] = {
    "grid_gwp": "g{CO2e}/kW.h",
    "contract_gwp": "g{CO2e}/kW.h",
    "residual_mix": "g{CO2e}/kW.h",
    "grid_adpe": "kg{Sbeq}/kW.h",
    "grid_pe": "MJ/kW.h",
    "grid_wue": "L/kW.h",
    "pue": "1",
    "wue": "L/kW.h",
    "embodied_gwp": "kg{CO2e}",
    "embodied_adpe": "kg{Sbeq}",
    "embodied_pe": "MJ",
    "lifetime": "a",
    "share": "1",
}
MAX_FACTOR = 1e12  # of any unit: no grid, building or device has a larger factor
_REQUIRED = ("kind", "value", "unit", "source_name")
_NUMBERS = frozenset({"value", "lo", "hi", "u"})
_TIMES = frozenset({"valid_from", "valid_to", "retrieved_at"})
_DEVICE = "device"  # not a column of bundles: the device of an embodied figure, such as gpu or gpu:0


@dataclass(frozen=True, slots=True)
class FactorLine:
    """One factor of a file, and its device; empty if it is not about a device."""

    factor: Factor
    device: str = ""


def read_factors(path: Path, text: str) -> tuple[FactorLine, ...]:
    """Read a file of factors.

    Required columns: kind, value, unit, source_name. `provenance` is `sourced` where a source_url is given and
    `declared` where not. The SHA-256 of the file goes into each factor.

    Raises:
        FactorError: A column or a value is missing or impossible; names the row and the column.
    """
    rows = read_rows(path, text, (_DEVICE,))
    return tuple(FactorLine(factor, cells.get(_DEVICE, "")) for _, cells, factor in rows)


def read_rows(
    path: Path, text: str, columns: Sequence[str] = (), required: Sequence[str] = ()
) -> Iterator[tuple[str, Mapping[str, str], Factor]]:
    """Yield one (place for messages, cells that are not empty, factor) a row.

    Args:
        path: The file, named in messages.
        text: Its content.
        columns: Allowed columns besides those of a factor.
        required: Those of `columns` that are required.

    Raises:
        FactorError: A column or a value is missing or impossible; names the row and the column.
    """
    needed = (*required, *_REQUIRED)
    rows = csv.DictReader(StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    allowed = {field.name for field in fields(Factor)} | set(columns)
    try:
        header = rows.fieldnames or []
    except csv.Error as error:
        raise FactorError(f"{path}: {error}") from error
    if missing := [name for name in needed if name not in header]:
        raise FactorError(f"{path}: no column {', '.join(missing)}; a file of factors needs {', '.join(needed)}")
    if strange := [name for name in header if name not in allowed]:
        raise FactorError(f"{path}: unknown column {strange[0]!r}; known are {', '.join(sorted(allowed))}")
    digest = sha256(text.encode()).hexdigest()
    try:
        for number, row in enumerate(rows, 1):
            where = f"{path} row {number}"
            if None in row or None in row.values():
                raise FactorError(f"{where}: not as many cells as columns")
            cells = {name: cell for name, cell in row.items() if cell and name != "factor_id"}
            if empty := [name for name in needed if name not in cells]:
                raise FactorError(f"{where}: {', '.join(empty)} is empty")
            own = {name: cell for name, cell in cells.items() if name not in columns}
            yield where, cells, _factor_of_line(where, own, digest)
    except csv.Error as error:
        raise FactorError(f"{path}: {error}") from error


def _factor_of_line(where: str, cells: Mapping[str, str], digest: str) -> Factor:
    kind = cells["kind"]
    if kind not in UNITS:
        raise FactorError(f"{where}: unknown kind {kind!r}; known are {', '.join(UNITS)}")
    if cells["unit"] != UNITS[kind]:
        # A kilogram read as a gram is the most common public error: never convert silently.
        raise FactorError(f"{where}: {kind} must be in {UNITS[kind]}, found {cells['unit']!r}")
    values: dict[str, Any] = {"source_sha256": digest, "provenance": _provenance(where, cells)}
    values |= {name: _value(where, name, text) for name, text in cells.items()}
    values["accounting_method"] = _method(where, kind, cells.get("accounting_method", ""))
    factor = Factor(**{"factor_id": "", **values})
    _check_range(where, factor)
    return with_factor_id(factor)


def _method(where: str, kind: str, method: str) -> str:
    """Return the accounting method: `market` for contracts and residual mixes, for a grid that of the row."""
    if kind in {"contract_gwp", "residual_mix"}:
        usual: tuple[str, ...] = ("market",)
    else:
        usual = ("location", "market") if kind == "grid_gwp" else ("location",) if kind.startswith("grid_") else ("",)
    if method and method not in usual:
        raise FactorError(f"{where}: {kind} cannot be {method!r} by accounting_method; leave it empty")
    return method or usual[0]


def _provenance(where: str, cells: Mapping[str, str]) -> str:
    provenance = cells.get("provenance") or ("sourced" if cells.get("source_url") else "declared")
    if provenance not in PROVENANCES:
        raise FactorError(f"{where}: provenance {provenance!r}; one of {', '.join(PROVENANCES)}")
    return provenance


def _value(where: str, name: str, text: str) -> Any:
    try:
        if name in _NUMBERS:
            return _number(text)
        if name == "data_year":
            return _year(text)
        if name in _TIMES:
            return utc_time(text)
    except ValueError as error:
        raise FactorError(f"{where}, column {name}: {error}") from error
    if name == "is_estimated":
        if text not in {"true", "false"}:
            raise FactorError(f"{where}, column is_estimated: true or false, found {text!r}")
        return text == "true"
    return text


def _year(text: str) -> int:
    year = int(plain_number(text))
    if not 1900 <= year <= 9999:
        raise ValueError(f"{text[:20]!r} is no year")
    return year


def _number(text: str) -> float:
    value = float(plain_number(text))
    if not isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    if abs(value) > MAX_FACTOR:
        raise ValueError(f"{value!r} is beyond {MAX_FACTOR:g}, as no factor is")
    return value


def plain_number(text: str) -> str:
    """Return `text`, checked to be a number that every CSV reader parses alike.

    Raises:
        ValueError: It has digits of other scripts or underscores, which only Python accepts.
    """
    if not text.isascii() or "_" in text:
        raise ValueError(f"{text[:40]!r}: write numbers with the digits 0 to 9, such as 56.1")
    return text


def utc_time(text: str) -> datetime:
    """Read an RFC 3339 time in UTC.

    Raises:
        ValueError: It is not a time, or has no time zone.
    """
    instant = datetime.fromisoformat(plain_number(text))
    if instant.tzinfo is None:
        raise ValueError(f"{text!r} says no time zone; write 2026-01-01T00:00:00Z")
    try:
        return instant.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{text!r} lies before the year 1 or after 9999 in UTC") from error


def _check_range(where: str, factor: Factor) -> None:
    least = 1.0 if factor.kind == "pue" else 0.0
    if factor.value < least or (factor.kind == "lifetime" and 0 in {factor.value, factor.lo}):
        raise FactorError(f"{where}: {factor.kind} {factor.value!r} is not possible")
    if factor.kind == "share" and factor.value > 1:
        raise FactorError(f"{where}: a share is at most 1, found {factor.value!r}")
    if factor.lo is not None and factor.lo < least:
        raise FactorError(f"{where}: lo {factor.lo!r} is not possible for {factor.kind}")
    if factor.valid_from is not None and factor.valid_to is not None and factor.valid_to <= factor.valid_from:
        raise FactorError(f"{where}: valid_to {factor.valid_to} is not after valid_from {factor.valid_from}")
    if (factor.lo is None) != (factor.hi is None):
        raise FactorError(f"{where}: give both lo and hi, or neither")
    if factor.lo is not None and factor.hi is not None and not factor.lo <= factor.value <= factor.hi:
        raise FactorError(f"{where}: {factor.value!r} is not between lo {factor.lo!r} and hi {factor.hi!r}")


VALUE = "g_per_kwh"
STEPS = tuple(timedelta(minutes=minutes) for minutes in (15, 30, 60))
_START = re.compile(r"start(?: \(([A-Za-z0-9_+/-]+)\))?")
# Optional columns, as in a bundle's `factor.csv`.
_TEXTS = ("zone", "basis", "source_name", "source_url", "source_version", "licence", "perspective", "accounting_method")
_BASES = frozenset({"lifecycle", "direct", "upstream", "combustion_only", "unknown"})


def is_interval_file(header: str) -> bool:
    """Return whether `header`, the first line of a file, is that of grid intensity over time."""
    names = _header_names(header)
    return VALUE in names and any(_START.fullmatch(name) for name in names)


def _header_names(header: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([header.removeprefix("\ufeff")]), [])]
    except csv.Error:
        return []


def read_interval_file(path: Path, text: str) -> tuple[Factor, ...]:
    """Return one factor per row with its start (`valid_from`) and end (`valid_to`); rows without a number are gaps.

    Raises:
        FactorError: A time is invalid, ambiguous or repeated, rows are not 15, 30 or 60 minutes apart, or a value is
            impossible; the message names the row.
    """
    names = _header_names(text.partition("\n")[0])
    column = next(name for name in names if _START.fullmatch(name))
    if strange := [name for name in names if name not in {column, VALUE, "is_estimated", *_TEXTS}]:
        allowed = ", ".join((VALUE, "is_estimated", *_TEXTS))
        raise FactorError(f"{path}: unknown column {strange[0]!r}; beside {column!r} there may be {allowed}")
    place = _time_zone(path, column)
    digest = sha256(text.encode()).hexdigest()
    starts: list[datetime] = []
    cells: list[Mapping[str, str]] = []
    try:
        rows = csv.DictReader(StringIO(text.removeprefix("\ufeff"), newline=""), names, strict=True)
        next(rows, None)  # the header
        for number, row in enumerate(rows, 1):
            if None in row or None in row.values():
                raise FactorError(f"{path} row {number}: not as many cells as columns")
            if row[VALUE].strip():
                where = f"{path} row {number}"
                starts.append(_start(where, row[column].strip(), place, starts[-1] if starts else None))
                cells.append({**row, "where": where})
    except csv.Error as error:
        raise FactorError(f"{path}: {error}") from error
    step = _step(path, starts)
    return tuple(_factor_of_interval(path, row, start, step, digest) for start, row in zip(starts, cells, strict=True))


def _time_zone(path: Path, column: str) -> tzinfo | None:
    match = _START.fullmatch(column)
    name = match[1] if match is not None else None
    if name is None or name == "UTC":
        return UTC if name else None
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError) as error:
        raise FactorError(f"{path}: {name!r} in the header is no time zone, such as Europe/Paris or UTC") from error


def _start(where: str, text: str, place: tzinfo | None, previous: datetime | None) -> datetime:
    """Return the start of a row in UTC; `previous` is that of the row before it."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise FactorError(f"{where}: no time: {text!r}") from error
    if instant.tzinfo is None and place is None:
        raise FactorError(f"{where}: {text!r} says no time zone: write +01:00 behind it, or the place in the header")
    try:
        if instant.tzinfo is not None:
            return instant.astimezone(UTC)
        earlier, later = (instant.replace(tzinfo=place, fold=fold).astimezone(UTC) for fold in (0, 1))
        if earlier.astimezone(place).replace(tzinfo=None, fold=0) != instant:
            raise FactorError(f"{where}: {text!r} does not exist there: the clocks were put forward over it")
    except OverflowError as error:
        raise FactorError(f"{where}: no time: {text!r}") from error
    if earlier == later or (previous is not None and earlier > previous):
        return earlier
    if previous is None:
        raise FactorError(f"{where}: {text!r} is there twice, as the clocks are put back: begin the file before it")
    return later


def _step(path: Path, starts: list[datetime]) -> timedelta:
    distances = [after - before for before, after in pairwise(starts)]
    if any(step <= timedelta(0) for step in distances):
        late = next(after for before, after in pairwise(starts) if after <= before)
        raise FactorError(f"{path}: {late:%Y-%m-%dT%H:%MZ} comes twice or too late: give the rows in order of time")
    step = min(distances, default=None)
    if step not in STEPS or any(distance % step for distance in distances):
        raise FactorError(f"{path}: rows are {step} apart; expected 15, 30 or 60 minutes, all alike")
    if any(timedelta(minutes=start.minute, seconds=start.second) % STEPS[0] or start.microsecond for start in starts):
        raise FactorError(f"{path}: rows begin at {starts[0]:%H:%M:%S}; expected whole quarters of an hour")
    return step


def _factor_of_interval(path: Path, row: Mapping[str, str], start: datetime, step: timedelta, digest: str) -> Factor:
    texts: dict[str, Any] = {name: row[name].strip() for name in _TEXTS if row.get(name, "").strip()}
    basis, method = texts.get("basis", "unknown"), texts.get("accounting_method", "location")
    if basis not in _BASES or method not in {"location", "market"}:
        raise FactorError(f"{row['where']}: basis {basis!r} or accounting_method {method!r} is not known")
    estimated = row.get("is_estimated", "").strip()
    if estimated not in {"", "true", "false"}:
        raise FactorError(f"{row['where']}, column is_estimated: true or false, found {estimated!r}")
    return with_factor_id(
        Factor(
            factor_id="",
            kind="grid_gwp",
            value=_grams(row["where"], row[VALUE].strip()),
            unit=GRID_UNIT,
            provenance="sourced" if "source_url" in texts else "declared",
            data_year=start.year,
            temporal_resolution="hour",
            valid_from=start,
            valid_to=start + step,
            source_sha256=digest,
            is_estimated=None if not estimated else estimated == "true",
            **{"source_name": path.name, **texts, "accounting_method": method, "basis": basis},
        )
    )


def _grams(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise FactorError(f"{where}: no number: {text!r}") from error
    if not isfinite(value) or not 0 <= value <= MAX_FACTOR or "_" in text:
        raise FactorError(f"{where}: {text!r} is no carbon intensity in g/kWh")
    return value
