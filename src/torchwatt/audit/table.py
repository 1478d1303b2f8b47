"""Encodes rows as a CSV file, in the order of the key."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from datetime import datetime
from io import StringIO
from itertools import pairwise

from torchwatt.audit.lexical import shortened, to_cell
from torchwatt.audit.schema import Row, Table, Value
from torchwatt.core.errors import BundleError

Key = tuple[tuple[float, str], ...]


def table_bytes(table: Table, rows: Iterable[Row]) -> bytes:
    """Return one CSV file: RFC 4180 but with LF, UTF-8 without BOM, rows in the order of the key.

    Raises:
        BundleError: A value does not fit its column, two rows have the same key, or a row has an unknown column.
    """
    buffer = StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n", strict=True)
    writer.writerow(table.header)
    ordered = sorted(rows, key=lambda row: key_of(table, row))
    _refuse_twins(table, ordered)
    writer.writerows(_cells(table, row) for row in ordered)
    return buffer.getvalue().encode()


def key_of(table: Table, row: Row) -> Key:
    """Return the sort key of a row: numbers by value, text by code point before escaping."""
    return tuple(sortable(row.get(name)) for name in table.key)


def sortable(value: Value) -> tuple[float, str]:
    """Return the sort key of one value."""
    if isinstance(value, datetime):
        return value.timestamp(), ""
    return (value, "") if isinstance(value, int | float) else (0, "" if value is None else shortened(str(value)))


def _refuse_twins(table: Table, ordered: list[Row]) -> None:
    for before, after in pairwise(ordered):
        if key_of(table, before) == key_of(table, after):
            twins = {name: after.get(name) for name in table.key}
            raise BundleError(f"{table.name}: two rows for {twins}")


def _cells(table: Table, row: Row) -> list[str]:
    cells = []
    for column in table.columns:
        try:
            cells.append(to_cell(row.get(column.name), column))
        except BundleError as error:
            raise BundleError(f"{table.name} {key_of(table, row)}: {error}") from error
    return cells
