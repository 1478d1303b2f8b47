"""Properties of columns and tables, from which headers, checks and descriptions are generated."""

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

    `values` are the allowed texts; `many` makes a cell a list separated by `;`, each part of which must be allowed.
    `refers` is the `table.column` that must contain the cell (or each part of it). `derived` is the formula of the
    cell from other columns of its row; `verify` evaluates it.
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
    optional: bool = False  # the file exists only if the table has rows

    @property
    def header(self) -> tuple[str, ...]:
        """Return the names of the columns in order."""
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """Return a column by name."""
        return next(column for column in self.columns if column.name == name)


def string(  # one argument for each property
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
    """Make a column of decimal numbers; `unit` is UCUM, empty if another column contains it."""
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
    """Make a column of provenances."""
    return string(name, description, required=required, values=PROVENANCES)


def method(description: str, *, required: bool = False) -> Column:
    """Make the column of methods."""
    return string("method", description, required=required, values=METHODS)


RUN_ID = string("run_id", "the run; salt of every hash in the bundle", required=True, refers="run.run_id")
DEVICE_ID = string(
    "device_id", "the domain of one meter: gpu:0, cpu:0, ram", required=True, refers="device.device_id"
)  # fmt: skip
