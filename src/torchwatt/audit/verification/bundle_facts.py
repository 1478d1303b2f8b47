"""Facts of a bundle that checks of several tables need."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from math import fsum

from torchwatt.audit.schema import Row
from torchwatt.audit.schema.schema_versions import CURRENT, Schema, added_since
from torchwatt.audit.verification.table_reader import TableChunk


@dataclass(slots=True)
class ExactSum:
    """A sum over chunks; each chunk is added exactly, so a million rows cost no digits."""

    parts: list[float] = field(default_factory=list)

    def add(self, values: list[float]) -> None:
        """Add the numbers of one chunk."""
        self.parts.append(fsum(values))
        if len(self.parts) > 4096:
            self.parts = [fsum(self.parts)]

    @property
    def value(self) -> float:
        """Return the sum so far."""
        return fsum(self.parts)


@dataclass(frozen=True, slots=True)
class WindowFact:
    """The cells of a row of `window` that samples are compared with."""

    row: int
    kind: str
    start_ns: int
    end_ns: int
    energy_j: float | None
    name: str = ""


@dataclass(slots=True)
class CurveFact:
    """Summary of one curve: ends, silent time, largest hole, extremes."""

    first_ns: int
    last_ns: int = 0
    silent_ns: int = 0
    hole_ns: int = 0  # the longest interval that is not silent, and the row that ends it
    hole_row: int = 0
    usual_ns: int = 0  # of 99 intervals in 100, as the run says
    largest_j: float = 0.0
    least_w: float = float("inf")
    most_w: float = 0.0


@dataclass(frozen=True, slots=True)
class EventFact:
    """The events of one code about one subject."""

    row: int  # of the first
    severity: str
    count: int


@dataclass(slots=True)
class BundleFacts:
    """Small tables whole, large ones as sums; `broken` are tables of which something could not be read."""

    schema: Schema = CURRENT  # of the bundle's files; rows have the current version's names
    run: Row = field(default_factory=dict)
    devices: dict[str, Row] = field(default_factory=dict)
    device_rows: dict[str, int] = field(default_factory=dict)
    factors: dict[str, Row] = field(default_factory=dict)
    factor_rows: dict[str, int] = field(default_factory=dict)
    impacts: list[tuple[int, Row]] = field(default_factory=list)
    windows: dict[int, WindowFact] = field(default_factory=dict)
    window_tokens: dict[str, ExactSum] = field(default_factory=dict)  # by unit, of windows that state tokens
    layer_j: dict[str, ExactSum] = field(default_factory=lambda: defaultdict(ExactSum))  # by device
    unattributed_j: ExactSum = field(default_factory=ExactSum)
    fqn_j: dict[str, ExactSum] = field(default_factory=dict)  # only of layers that an impact names
    hour_rows: dict[tuple[str, datetime], int] = field(default_factory=dict)
    hourly_j: dict[str, dict[datetime, float]] = field(default_factory=lambda: defaultdict(dict))
    broken: set[str] = field(default_factory=set)
    curves: dict[str, CurveFact] = field(default_factory=dict)
    sample_file: str = "sample.parquet"
    events: dict[tuple[str, str], EventFact] = field(default_factory=dict)  # by code and subject
    wraps_ns: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    merged: bool = False  # of several ranks
    repriced: bool = False  # the manifest of the bundle before it was priced again is in it

    @property
    def old(self) -> bool:
        """Return whether the bundle is of version 1, whose writer said less."""
        return self.schema.version.startswith("1.")

    @property
    def has_losses(self) -> bool:
        """Return whether the writer added an event for each part of the run in which a meter was away: since 2.1."""
        return not any("device_key" in columns for columns in added_since(self.schema))

    def events_of(self, subject: str, codes: frozenset[str]) -> bool:
        """Return whether an event with one of these codes is about a device, or about the whole run."""
        return any(code in codes and about in {subject, "run"} for code, about in self.events)

    def has_event(self, codes: frozenset[str]) -> bool:
        """Return whether there is an event with one of these codes."""
        return any(code in codes for code, _ in self.events)

    @property
    def counted(self) -> dict[str, Row]:
        """Return the devices inside the total."""
        return {name: row for name, row in self.devices.items() if row["counted"]}

    def duration_s(self) -> float:
        """Return the run's wall time; 0 where it could not be read."""
        return number(self.run, "duration_s") or 0.0


def rows_of(chunk: TableChunk) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a chunk that have no wrong cell, as (number, row)."""
    names = list(chunk.columns)
    for row, values in zip(chunk.rows, zip(*chunk.columns.values(), strict=True), strict=True):
        if row not in chunk.bad:
            yield row, dict(zip(names, values, strict=True))


def number(row: Row, name: str) -> float | None:
    """Return a cell that is a number."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def text(row: Row, name: str) -> str:
    """Return a cell that is text; "" where it is missing."""
    value = row.get(name)
    return value if isinstance(value, str) else ""
