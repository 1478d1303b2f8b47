"""Reads a user's file of grid intensity over time: one row for each 15, 30 or 60 minutes.

    start,g_per_kwh                              times with their offset: 2026-03-29T01:00:00+01:00
    start (Europe/Warsaw),g_per_kwh,zone         times of that place, as a grid operator's portal exports them

A day on which the clocks change has 23 or 25 hours; of an hour that occurs twice, the first row is the earlier one.
Gaps are not filled: an hour that is not completely covered has no factor.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import sha256
from io import StringIO
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from torchwatt.carbon.declared import GRID_UNIT
from torchwatt.carbon.factor_file import LARGEST
from torchwatt.core.errors import FactorError
from torchwatt.core.factor import Factor, identified

VALUE = "g_per_kwh"
STEPS = tuple(timedelta(minutes=minutes) for minutes in (15, 30, 60))
_START = re.compile(r"start(?: \(([A-Za-z0-9_+/-]+)\))?")
# Optional columns, as in a bundle's `factor.csv`.
_TEXTS = ("zone", "basis", "source_name", "source_url", "source_version", "licence", "perspective", "accounting_method")
_BASES = frozenset({"lifecycle", "direct", "upstream", "combustion_only", "unknown"})


def is_own_hours(header: str) -> bool:
    """Return whether `header`, the first line of a file, is that of grid intensity over time."""
    names = _names(header)
    return VALUE in names and any(_START.fullmatch(name) for name in names)


def _names(header: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([header.removeprefix("\ufeff")]), [])]
    except csv.Error:
        return []


def read_own_hours(path: Path, text: str) -> tuple[Factor, ...]:
    """Return one factor per row with its start (`valid_from`) and end (`valid_to`); rows without a number are gaps.

    Raises:
        FactorError: A time is invalid, ambiguous or repeated, rows are not 15, 30 or 60 minutes apart, or a value is
            impossible; the message names the row.
    """
    names = _names(text.partition("\n")[0])
    column = next(name for name in names if _START.fullmatch(name))
    if strange := [name for name in names if name not in {column, VALUE, "is_estimated", *_TEXTS}]:
        allowed = ", ".join((VALUE, "is_estimated", *_TEXTS))
        raise FactorError(f"{path}: unknown column {strange[0]!r}; beside {column!r} there may be {allowed}")
    place = _place(path, column)
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
    return tuple(_factor(path, row, start, step, digest) for start, row in zip(starts, cells, strict=True))


def _place(path: Path, column: str) -> tzinfo | None:
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


def _factor(path: Path, row: Mapping[str, str], start: datetime, step: timedelta, digest: str) -> Factor:
    texts: dict[str, Any] = {name: row[name].strip() for name in _TEXTS if row.get(name, "").strip()}
    basis, method = texts.get("basis", "unknown"), texts.get("accounting_method", "location")
    if basis not in _BASES or method not in {"location", "market"}:
        raise FactorError(f"{row['where']}: basis {basis!r} or accounting_method {method!r} is not known")
    estimated = row.get("is_estimated", "").strip()
    if estimated not in {"", "true", "false"}:
        raise FactorError(f"{row['where']}, column is_estimated: true or false, found {estimated!r}")
    return identified(
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
    if not isfinite(value) or not 0 <= value <= LARGEST or "_" in text:
        raise FactorError(f"{where}: {text!r} is no carbon intensity in g/kWh")
    return value
