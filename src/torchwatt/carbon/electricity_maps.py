"""Reads Electricity Maps' history files as its portal exports them: one zone, one row per hour.

Two versions of the header exist; both are read:

    Datetime (UTC),Country,Zone Name,Zone Id,Carbon Intensity gCO₂eq/kWh (direct),Carbon Intensity gCO₂eq/kWh (LCA),
        Low Carbon Percentage,Renewable Percentage,Data Source,Data Estimated,Data Estimation Method
    Datetime (UTC),Country,Zone name,Zone id,Carbon intensity gCO₂eq/kWh (direct),Carbon intensity gCO₂eq/kWh (Life
        cycle),Carbon-free energy percentage (CFE%),Renewable energy percentage (RE%),Data source,Data estimated,...
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from io import StringIO
from itertools import pairwise
from math import isfinite
from pathlib import Path

from torchwatt.carbon.declared_factors import GRID_UNIT
from torchwatt.carbon.factor_files import MAX_FACTOR, plain_number
from torchwatt.carbon.grid_series import GridSeries, hourly_series
from torchwatt.core.errors import FactorError
from torchwatt.core.factor import Factor, with_factor_id

_TIME, _ZONE = "datetime (utc)", "zone id"
_DIRECT = "carbon intensity gco₂eq/kwh (direct)"
_LIFECYCLE = ("carbon intensity gco₂eq/kwh (life cycle)", "carbon intensity gco₂eq/kwh (lca)")
_ESTIMATED = {"true": True, "false": False}
HOUR = timedelta(hours=1)
NAME = "Electricity Maps"
LICENCE = "ODbL (files of the data portal)"


@dataclass(frozen=True, slots=True)
class HourlyIntensity:
    """Grid intensity of a zone in one hour, as published; `is_estimated` is None if the source does not state it."""

    zone: str
    start: datetime
    g_per_kwh: float
    basis: str
    is_estimated: bool | None
    estimation_method: str
    data_source: str = ""


def is_history(header: str) -> bool:
    """Return whether `header`, the first line of a file, is that of a history file."""
    try:
        names = [name.strip().casefold() for name in next(csv.reader([header.removeprefix("\ufeff")]), [])]
    except csv.Error:
        return False
    return _TIME in names and _ZONE in names


def read_history(path: Path, text: str, *, basis: str = "lifecycle") -> GridSeries:
    """Read a history file.

    Args:
        path: The file, named in errors.
        text: The file's content.
        basis: `lifecycle` or `direct`; the file has a column for each.

    Raises:
        FactorError: The file is not hourly, has several zones, or a value is missing or impossible.
    """
    try:
        rows = list(csv.DictReader(StringIO(text.removeprefix("\ufeff"), newline="")))
    except csv.Error as error:
        raise FactorError(f"{path}: {error}") from error
    intensities = [_hour(path, number, _fold_header(row), basis) for number, row in enumerate(rows, 1)]
    hours = [hour for hour in intensities if hour is not None]
    _check_hourly(path, hours)
    digest = sha256(text.encode()).hexdigest()
    factors = (as_factor(hour, f"history file {path.name}", digest) for hour in hours)
    return hourly_series(f"{NAME} {hours[0].zone} ({path.name})", factors)


def _fold_header(row: Mapping[str | None, str | None]) -> dict[str, str]:
    """Return the cells of a row by folded column name; cells beyond the header are omitted."""
    return {name.strip().casefold(): (value or "").strip() for name, value in row.items() if name is not None}


def _hour(path: Path, number: int, row: Mapping[str, str], basis: str) -> HourlyIntensity | None:
    where = f"{path} row {number}"
    columns = (_DIRECT,) if basis == "direct" else _LIFECYCLE
    column = next((name for name in columns if name in row), None)
    if column is None:
        raise FactorError(f"{path}: no column {columns[0]!r}; is it a history file of carbon intensity?")
    if not row[column]:
        return None  # an hour without data stays missing
    return HourlyIntensity(
        zone=row[_ZONE],
        start=_start(where, row[_TIME]),
        g_per_kwh=_grams(where, row[column]),
        basis=basis,
        is_estimated=_ESTIMATED.get(row.get("data estimated", "").casefold()),
        estimation_method=row.get("data estimation method", ""),
        data_source=row.get("data source", ""),
    )


def _start(where: str, text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise FactorError(f"{where}: no time: {text!r}") from error
    # The column is in UTC by its name; a zone in the cell must agree.
    try:
        instant = instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
        instant + HOUR  # raises OverflowError if the end of the hour is no valid time
    except OverflowError as error:
        raise FactorError(f"{where}: no time: {text!r}") from error
    if instant.minute or instant.second or instant.microsecond:
        raise FactorError(f"{where}: {text!r} is not a whole hour")
    return instant


def _grams(where: str, text: str) -> float:
    try:
        value = float(plain_number(text))
    except ValueError as error:
        raise FactorError(f"{where}: no number: {text!r}") from error
    if not isfinite(value) or not 0 <= value <= MAX_FACTOR:
        raise FactorError(f"{where}: {text!r} is no carbon intensity")
    return value


def _check_hourly(path: Path, hours: list[HourlyIntensity]) -> None:
    zones = sorted({hour.zone for hour in hours})
    if len(zones) != 1 or not zones[0]:
        raise FactorError(f"{path}: expected the hours of one zone, found {', '.join(zones) or 'none'}")
    starts = sorted(hour.start for hour in hours)
    steps = [after - before for before, after in pairwise(starts)]
    if not steps or min(steps) != HOUR:
        raise FactorError(f"{path}: not hourly (the closest rows are {min(steps, default=None)} apart)")


def as_factor(hour: HourlyIntensity, version: str, digest: str = "", retrieved_at: datetime | None = None) -> Factor:
    """Return one hour as a factor, with its zone, its time and whether it was estimated."""
    return with_factor_id(
        Factor(
            factor_id="",
            kind="grid_gwp",
            value=hour.g_per_kwh,
            unit=GRID_UNIT,
            provenance="sourced",
            source_name=f"{NAME}, from {hour.data_source}" if hour.data_source else NAME,
            zone=hour.zone,
            data_year=hour.start.year,
            basis=hour.basis,
            gas="CO2e",
            perspective="consumption",
            accounting_method="location",
            source_url="https://portal.electricitymaps.com",
            source_version=version,
            licence=LICENCE,
            coverage_note="flow-traced: imports and exports are inside",
            zone_system="electricitymaps",
            temporal_resolution="hour",
            valid_from=hour.start,
            valid_to=hour.start + HOUR,
            retrieved_at=retrieved_at,
            source_sha256=digest,
            is_estimated=hour.is_estimated,
            estimation_method=hour.estimation_method,
        )
    )


def merge_histories(label: str, grids: Iterator[GridSeries] | tuple[GridSeries, ...]) -> GridSeries:
    """Merge several history files of one zone, such as those of two years."""
    return hourly_series(label, [factor for grid in grids for factor in grid.by_hour.values()])
