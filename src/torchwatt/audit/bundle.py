"""Reads the CSV tables of a bundle; errors name the file, the row and the column."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from torchwatt.audit.bundle_limits import checked_run_name, read_bundle_file
from torchwatt.audit.cell_codec import from_cell
from torchwatt.audit.schema import Row, Table, Value
from torchwatt.audit.schema.schema_versions import CURRENT, Schema, schema_of, version_in
from torchwatt.core.errors import BundleError
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
        return self.tables[table]


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
