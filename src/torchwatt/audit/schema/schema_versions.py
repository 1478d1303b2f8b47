"""Earlier versions of the tables, whose bundles can still be verified, read, repriced and ingested.

`version_1.json` describes the tables of versions 1.1 and 1.2. Readers get the rows of all bundles with the column names
of the current version; columns that a version does not have are missing, never 0.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from torchwatt.audit.bundle_limits import MAX_FILE_BYTES
from torchwatt.audit.schema import SCHEMA_VERSION, TABLE_BY_NAME, TABLES, Column, Table
from torchwatt.disk.path_safety import open_untrusted

T = TypeVar("T")
_HEAD_BYTES = 1 << 16  # contains the header and the version of any `run.csv` written by torchwatt
_NEWEST_MINOR = 2  # of version 1
# Columns that minor versions of version 2 added at the ends of tables.
_ADDED: Mapping[int, Mapping[str, frozenset[str]]] = {
    1: {"device": frozenset({"device_key", "machine_key"})},
    2: {"window": frozenset({"input_tokens", "output_tokens"})},
}
# Columns that version 1 named differently. Its intervals of totals were systematic ones, its uncertainties those of
# reading alone.
_RENAMED: Mapping[str, Mapping[str, str]] = {
    "run": {
        "energy_it_u_j": "energy_it_reading_u_j",
        "energy_it_lo_j": "energy_it_systematic_lo_j",
        "energy_it_hi_j": "energy_it_systematic_hi_j",
    },
    "device": {"counts_toward_total": "counted", "energy_u_j": "reading_u_j"},
    "window": {"energy_u_j": "reading_u_j"},
    "hourly": {"energy_u_j": "reading_u_j"},
}


@dataclass(frozen=True, slots=True)
class Schema:
    """Tables of one version, with the names in its files; `renamed` gives the current names by table and column."""

    version: str
    tables: tuple[Table, ...]
    renamed: Mapping[str, Mapping[str, str]]

    def table(self, name: str) -> Table:
        """Return a table by name."""
        return next(table for table in self.tables if table.name == name)

    def current(self, table: str, cells: Mapping[str, T], missing: T) -> dict[str, T]:
        """Return cells (or columns of cells) by their current names; columns that the version lacks are `missing`."""
        if self.tables is TABLES:
            return dict(cells)
        names = self.renamed.get(table, {})
        renamed = {names.get(name, name): value for name, value in cells.items()}
        return {name: missing for name in TABLE_BY_NAME[table].header if name not in renamed} | renamed


CURRENT = Schema(SCHEMA_VERSION, TABLES, {})


def schema_of(version: str) -> Schema | None:
    """Return the tables of a version; None if this torchwatt cannot read it.

    A newer minor version has the current tables with additional columns at their ends. Text that is not a version gives
    the current one; the checks of the tables then find the differences.
    """
    parts = _parts(version)
    if parts is None:
        return CURRENT
    if parts[0] == _current_major():
        newest = _parts(SCHEMA_VERSION) or parts
        return CURRENT if parts >= newest else Schema(version, _tables_2(parts[1]), {})
    is_readable = parts[0] == 1 and parts[1] <= _NEWEST_MINOR
    return Schema(version, _tables_1(), _RENAMED) if is_readable else None


def is_newer(version: str) -> bool:
    """Return whether a bundle's minor version is newer than this torchwatt's."""
    parts, ours = _parts(version), _parts(SCHEMA_VERSION)
    return parts is not None and ours is not None and parts[0] == ours[0] and parts[1] > ours[1]


def version_in(folder: Path, root: Path | None = None) -> str:
    """Return the version in a bundle's `run.csv`; empty if it cannot be read."""
    try:
        with open_untrusted(folder / "run.csv", MAX_FILE_BYTES, root) as file:
            head = file.read(_HEAD_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    try:
        lines = csv.reader(StringIO(head, newline=""))
        return dict(zip(next(lines, []), next(lines, []), strict=False)).get("schema_version", "")
    except csv.Error:
        return ""


def _parts(version: str) -> tuple[int, int] | None:
    parts = version.split(".")
    good = len(parts) == 3 and all(part.isascii() and part.isdecimal() and len(part) < 7 for part in parts)
    return (int(parts[0]), int(parts[1])) if good else None


def _current_major() -> int:
    return int(SCHEMA_VERSION.partition(".")[0])


def added_since(schema: Schema) -> Iterator[str]:
    """Yield `table.csv: columns` for the columns that minor versions of version 2 added after this schema."""
    parts = _parts(schema.version)
    for minor, tables in _ADDED.items():
        if parts is not None and parts < (_current_major(), minor):
            yield from (f"{name}.csv: {', '.join(sorted(columns))}" for name, columns in tables.items())


@cache
def _tables_2(minor: int) -> tuple[Table, ...]:
    """Return the tables of version 2.`minor`."""
    later = [added for number, added in _ADDED.items() if number > minor]
    gone = {table.name: frozenset().union(*(added.get(table.name, ()) for added in later)) for table in TABLES}
    return tuple(
        replace(table, columns=tuple(column for column in table.columns if column.name not in gone[table.name]))
        for table in TABLES
    )


@cache
def _tables_1() -> tuple[Table, ...]:
    text = (files("torchwatt.audit.schema") / "version_1.json").read_text(encoding="utf-8")
    return tuple(_table(table) for table in json.loads(text))


def _table(saved: dict[str, Any]) -> Table:
    columns = tuple(_column(column) for column in saved["columns"])
    return Table(
        saved["name"], tuple(saved["key"]), saved["description"], columns, saved["format"], optional=saved["optional"]
    )


def _column(saved: dict[str, Any]) -> Column:
    fields: dict[str, Any] = {"unit": "", "required": False, "description": ""} | saved
    return Column(**fields | {"values": tuple(saved.get("values", ()))})
