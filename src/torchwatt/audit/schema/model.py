"""What a column and a table can say about themselves; everything else is generated from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from torchwatt.core.terms import METHODS, PROVENANCES

ColumnType = Literal["string", "integer", "number", "boolean", "timestamp"]
Value = str | int | float | bool | datetime | None
Row = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Column:
    """One column; `required` cells are never empty.

    `values` are the only texts allowed; `many` makes a cell a list divided by `;`, each part of which must be
    allowed. `refers` is the `table.column` where a cell (or each part of it) must be found. `derived` is how the
    cell is computed from the other columns of its row: verify does it again.
    """

    name: str
    type: ColumnType
    unit: str
    required: bool
    description: str
    values: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    many: bool = False
    refers: str = ""
    derived: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """One file of a bundle: `<name>.csv`, or Parquet where that is its format."""

    name: str
    key: tuple[str, ...]
    description: str
    columns: tuple[Column, ...]
    format: Literal["csv", "parquet"] = "csv"
    optional: bool = False  # there only where there are rows for it

    @property
    def header(self) -> tuple[str, ...]:
        """Return the names of the columns in order."""
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """Return a column by name."""
        return next(column for column in self.columns if column.name == name)


def string(  # the words of the schema, each named
    name: str,
    description: str,
    *,
    required: bool = False,
    values: tuple[str, ...] = (),
    many: bool = False,
    refers: str = "",
) -> Column:
    """Make a column of text."""
    return Column(name, "string", "", required, description, values=values, many=many, refers=refers)


def number(
    name: str,
    unit: str,
    description: str,
    *,
    required: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    derived: str = "",
) -> Column:
    """Make a column of decimal numbers; `unit` is UCUM, empty where another column says it."""
    return Column(
        name, "number", unit, required, description, minimum=minimum, maximum=maximum, derived=derived
    )  # fmt: skip


def integer(name: str, unit: str, description: str, *, required: bool = False, minimum: float | None = None) -> Column:
    """Make a column of whole numbers."""
    return Column(name, "integer", unit, required, description, minimum=minimum)


def boolean(name: str, description: str, *, required: bool = False) -> Column:
    """Make a column of true and false."""
    return Column(name, "boolean", "", required, description)


def timestamp(name: str, description: str, *, required: bool = False) -> Column:
    """Make a column of instants: UTC, with microseconds and a `Z`."""
    return Column(name, "timestamp", "", required, description)


def provenance(name: str, description: str, *, required: bool = False) -> Column:
    """Make a column that says how a number is known, from best to least known."""
    return string(name, description, required=required, values=PROVENANCES)


def method(description: str, *, required: bool = False) -> Column:
    """Make the column that says how a number was got."""
    return string("method", description, required=required, values=METHODS)


RUN_ID = string("run_id", "the run; salt of every hash in the bundle", required=True, refers="run.run_id")
DEVICE_ID = string(
    "device_id", "the domain of one meter: gpu:0, cpu:0, ram", required=True, refers="device.device_id"
)  # fmt: skip
