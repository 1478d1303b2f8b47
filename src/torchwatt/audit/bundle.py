"""Reads the CSV tables of a bundle, and their cells by type; errors name the file, the row and the column."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from io import StringIO
from pathlib import Path

from torchwatt.audit.bundle_limits import checked_run_name, read_bundle_file
from torchwatt.audit.cell_codec import from_cell
from torchwatt.audit.schema import TABLE_BY_NAME, Row, Table, Value
from torchwatt.audit.schema.schema_versions import CURRENT, Schema, schema_of, version_in
from torchwatt.core.errors import BundleError
from torchwatt.core.plain_text import to_encodable
from torchwatt.core.units import J_PER_KWH
from torchwatt.disk.path_safety import path_kind


@dataclass(frozen=True, slots=True)
class Bundle:
    """Rows of the CSV tables by name of the table; cells have the types of the schema, None if missing.

    Columns have the names of the current version; `schema` is the version of the files.
    """

    directory: Path
    tables: Mapping[str, tuple[Row, ...]]
    schema: Schema = CURRENT

    @property
    def run(self) -> Row:
        """Return the one row of `run`."""
        return self.tables["run"][0]

    def __getitem__(self, table: str) -> tuple[Row, ...]:
        if table not in TABLE_BY_NAME:
            raise KeyError(table)
        return self.tables.get(table, ())  # the bundle's version may not have it


def read_bundle(directory: str | os.PathLike[str], root: Path | None = None) -> Bundle:
    """Read the CSV tables of a bundle; for the samples see `read_samples`.

    Additional columns of a newer minor version are omitted. If the bundle was found below a folder that the user named,
    that is `root`, and links below it are not followed.

    Raises:
        BundleError: A file is missing or malformed, or the bundle is of another major version.
    """
    folder = Path(directory)
    version = version_in(folder, root)
    schema = schema_of(version)
    if schema is None:
        raise BundleError(f"{folder}: schema {version}; this torchwatt reads {CURRENT.version} and older")
    tables = {
        table.name: _read_any(folder / f"{table.name}.csv", table, schema, root)
        for table in schema.tables
        if table.format == "csv"
    }
    bundle = Bundle(folder, tables, schema)
    if len(bundle["run"]) != 1:
        raise BundleError(f"{folder / 'run.csv'}: expected one row, found {len(bundle['run'])}")
    checked_run_name(bundle.run["run_id"], folder)
    return bundle


def _read_any(path: Path, table: Table, schema: Schema, root: Path | None) -> tuple[Row, ...]:
    if table.optional and path_kind(path) is None:
        return ()
    return tuple(schema.current(table.name, row, None) for row in _read(path, table, root))


def _read(path: Path, table: Table, root: Path | None) -> tuple[Row, ...]:
    try:
        text = read_bundle_file(path, root=root).decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: not UTF-8 at byte {error.start}") from error
    lines = _records(path, text)
    header = next(lines, [])
    if tuple(header[: len(table.header)]) != table.header:
        raise BundleError(f"{path}: {_difference(header, table)}")
    rows = tuple(_row(f"{path} row {number}", line, header, table) for number, line in enumerate(lines, 1))
    _refuse_repeated_keys(path, table, rows)
    return rows


def _records(path: Path, text: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(StringIO(text, newline=""), strict=True)
    except csv.Error as error:
        raise BundleError(f"{path}: {error}") from error


def _difference(header: list[str], table: Table) -> str:
    for index, name in enumerate(table.header):
        actual = header[index] if index < len(header) else None
        if actual != name:
            return f"column {index + 1} should be {name!r}, found {actual!r}"
    return "header differs"


def _row(where: str, line: list[str], header: list[str], table: Table) -> Row:
    if len(line) != len(header):
        raise BundleError(f"{where}: {len(line)} cells under {len(header)} columns")
    row: dict[str, Value] = {}
    for column, text in zip(table.columns, line, strict=False):
        try:
            row[column.name] = from_cell(text, column)
        except BundleError as error:
            raise BundleError(f"{where}, column {column.name}: {error}") from error
    return row


def _refuse_repeated_keys(path: Path, table: Table, rows: tuple[Row, ...]) -> None:
    rows_by_key: dict[tuple[Value, ...], int] = {}
    for number, row in enumerate(rows, 1):
        key = tuple(row[name] for name in table.key)
        if key in rows_by_key:
            raise BundleError(f"{path} row {number}: the same {', '.join(table.key)} as row {rows_by_key[key]}")
        rows_by_key[key] = number


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


def count_tokens(bundle: Bundle) -> tuple[int, int, int] | None:
    """Return all tokens, those without cached input, and output tokens of a run; None if some are unknown."""
    requests = {row["request"]: row for row in bundle["token"]}.values()  # each row has the request's counts
    counts = [tuple(row[f"{kind}_tokens"] for kind in ("input", "cached", "output")) for row in requests]
    if any(not isinstance(value, int) for row in counts for value in row):
        return None
    prompt, cached, output = (sum(row[i] for row in counts) for i in range(3))  # type: ignore[misc]
    return prompt + output, prompt - cached + output, output


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
