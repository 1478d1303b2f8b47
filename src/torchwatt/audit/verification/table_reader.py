"""Read a CSV table in pieces of bounded size, every cell checked by the lexical rules of its column."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from math import isclose, isfinite
from operator import lt
from pathlib import Path
from typing import BinaryIO, cast

from torchwatt.audit.bundle_limits import MAX_FILE_BYTES
from torchwatt.audit.cell_codec import escape, from_cell, numbers_from_cells, sort_value
from torchwatt.audit.formula import Formula, names, parse
from torchwatt.audit.schema import Column, Table, Value
from torchwatt.audit.verification.finding import Findings
from torchwatt.core.errors import BundleError
from torchwatt.disk.path_safety import bounded_lines, open_bounded_gzip, open_untrusted

CHUNK_ROWS = 4096
FEW = 64
LONGEST_ROW = 1 << 22  # characters
CellFault = tuple[str, str]  # expected, reason


@dataclass(frozen=True, slots=True)
class TableChunk:
    """Some rows of a table, by column; `rows` are their numbers, `None` a cell that is missing or wrong.

    `bad` are the rows with a wrong cell: nothing is computed from them, so that one fault is reported once.
    """

    rows: list[int]
    columns: dict[str, list[Value]]
    bad: set[int]

    def numbers(self, name: str) -> list[float | None]:
        """Return a column of numbers."""
        return cast("list[float | None]", self.columns[name])


def read_chunks(path: Path, table: Table, findings: Findings, newer: bool = False) -> Iterator[TableChunk]:
    """Yield the rows of a CSV file; faults of form and cells are added to `findings`.

    A bundle of a `newer` minor version may have more columns at the end.
    """
    number = 0
    read = _TableReader(path, table, findings)
    try:
        with open_untrusted(path, MAX_FILE_BYTES) as packed, _text(packed, zipped=path.suffix == ".gz") as text:
            lines = csv.reader(read.lines(text), strict=True)
            header = next(lines, [])
            if not read.header(header, newer=newer):
                return
            while block := list(islice(read.limit_rows(lines), CHUNK_ROWS)):
                yield read.chunk(block, number + 1, len(header))
                number += len(block)
    except UnicodeDecodeError as error:
        findings.add(
            "FORM",
            path.name,
            f"not UTF-8 after row {number}",
            expected="UTF-8",
            found=error.object[error.start : error.start + 1],
        )
    except (csv.Error, EOFError, OSError, zlib.error) as error:
        findings.add("FORM", path.name, f"cannot be read after row {number}: {error}")


def _text(packed: BinaryIO, *, zipped: bool) -> TextIOWrapper:
    return TextIOWrapper(open_bounded_gzip(packed) if zipped else packed, encoding="utf-8", newline="")


class _TableReader:
    def __init__(self, path: Path, table: Table, findings: Findings) -> None:
        self.file = path.name
        self.table = table
        self.findings = findings
        self.taken = 0  # characters since the last row
        self.checks: list[_ColumnParser] = [_ColumnParser(column) for column in table.columns]

    def lines(self, file: TextIOWrapper) -> Iterator[str]:
        """Pass lines on; a carriage return is never written by torchwatt and is reported once."""
        reported = False
        for number, line in enumerate(bounded_lines(file, LONGEST_ROW)):
            self.taken += len(line)
            if self.taken > LONGEST_ROW:
                raise csv.Error(f"a row is longer than {LONGEST_ROW} characters")
            if "\r" in line and not reported:
                reported = True
                self.findings.add(
                    "FORM", self.file, "holds a carriage return", row=number or None, expected="LF", found="CR"
                )
            yield line

    def limit_rows(self, rows: Iterator[list[str]]) -> Iterator[list[str]]:
        """Pass rows on; a quoted cell may have any number of lines, a row not."""
        for row in rows:
            self.taken = 0
            yield row

    def header(self, actual: list[str], *, newer: bool) -> bool:
        expected = list(self.table.header)
        if actual == expected or (newer and actual[: len(expected)] == expected):
            return True
        for index in range(max(len(expected), len(actual))):
            want, have = (names[index] if index < len(names) else "" for names in (expected, actual))
            if want != have:
                self.findings.add(
                    "FORM", self.file, f"header differs at column {index + 1}", column=want, expected=want, found=have
                )
                break
        return False

    def chunk(self, block: list[list[str]], first_row: int, width: int) -> TableChunk:
        rows = list(range(first_row, first_row + len(block)))
        if any(len(line) != width for line in block):
            for row, line in zip(rows, block, strict=True):
                if len(line) != width:
                    self.findings.add("FORM", self.file, "number of cells", row=row, expected=width, found=len(line))
            valid_rows = [(row, line) for row, line in zip(rows, block, strict=True) if len(line) == width]
            rows, block = [row for row, _ in valid_rows], [line for _, line in valid_rows]
        columns = zip(*block, strict=True) if block else iter([()] * width)
        chunk = TableChunk(rows, {}, set())
        for check, texts in zip(self.checks, columns, strict=False):
            chunk.columns[check.column.name] = check.values(texts, chunk, self.findings, self.file)
        return chunk


class _ColumnParser:
    """Parses one column; equal texts are parsed once."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.parsed: dict[str, Value] = {}
        self.wrong: dict[str, CellFault] = {}

    def values(self, texts: tuple[str, ...], chunk: TableChunk, findings: Findings, file: str) -> list[Value]:
        distinct = set(texts)
        if len(distinct) > FEW and self.column.type in {"number", "integer"}:
            read = numbers_from_cells(texts, self.column)
            if read is not None:
                return cast("list[Value]", read)
        if len(distinct) > FEW:  # numbers, mostly all different: nothing to remember from chunk to chunk
            self.parsed.clear()
            self.wrong.clear()
        for text in distinct - self.parsed.keys():
            self.parsed[text] = self._value(text)
        if self.wrong and not self.wrong.keys().isdisjoint(distinct):
            for row, text in zip(chunk.rows, texts, strict=True):
                if text in self.wrong:
                    chunk.bad.add(row)
                    expected, reason = self.wrong[text]
                    findings.add("CELL", file, reason, row=row, column=self.column.name, expected=expected, found=text)
        return [self.parsed[text] for text in texts]

    def _value(self, text: str) -> Value:
        try:
            value = from_cell(text, self.column)
        except BundleError:
            missing = text == "" and self.column.required
            self.wrong[text] = (self.column.type, "is required and empty" if missing else f"is no {self.column.type}")
            return None
        wrong = out_of_bounds(value, text, self.column)
        if wrong is not None:
            self.wrong[text] = wrong
            return None
        return value


def out_of_bounds(value: Value, text: str, column: Column) -> CellFault | None:
    """Return which constraint of its column a cell breaks, as (expected, reason)."""
    if isinstance(value, str):
        if escape(value) != text:
            return escape(value), "text that a spreadsheet may run, or that is not written as torchwatt writes it"
        parts = value.split(";") if column.many else [value]
        if column.values and not all(part in column.values for part in parts):
            return "one of " + ", ".join(column.values), "is no word of this column"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if column.minimum is not None and value < column.minimum:
            return f"at least {column.minimum:g}", "is too small"
        if column.maximum is not None and value > column.maximum:
            return f"at most {column.maximum:g}", "is too large"
    return None


KnownValues = Mapping[str, frozenset[Value]]  # "device.device_id" -> its values


class KeyChecks:
    """Checks order and uniqueness of keys, and references."""

    def __init__(self, table: Table, file: str, known_values: KnownValues, findings: Findings) -> None:
        self.table = table
        self.file = file
        self.known_values = known_values
        self.findings = findings
        self.last: tuple[Value, ...] | None = None
        self.required = [table.column(name).required for name in table.key]
        self.refers = [column for column in table.columns if column.refers]

    def check(self, chunk: TableChunk) -> None:
        """Check one chunk."""
        self._order(chunk)
        self.references(chunk)

    def references(self, chunk: TableChunk) -> None:
        """Check references to tables that were read before."""
        for column in self.refers:
            values = self.known_values.get(column.refers)
            if values is None:
                continue
            cells = chunk.columns[column.name]
            for value in set(cells) - values - {None}:
                self._reference(chunk, column.name, column.refers, value, values, many=column.many)

    def _order(self, chunk: TableChunk) -> None:
        keys = list(zip(*(chunk.columns[name] for name in self.table.key), strict=True))
        previous = self.last
        if _are_increasing(keys) and (previous is None or not keys or _is_before(previous, keys[0])):
            self.last = keys[-1] if keys else previous
            return
        for row, key in zip(chunk.rows, keys, strict=True):
            if any(value is None for value, required in zip(key, self.required, strict=True) if required):
                continue
            if previous is not None and not _is_before(previous, key):
                self._report(row, key, same=previous == key)
            previous = key
        self.last = previous

    def _report(self, row: int, key: tuple[Value, ...], *, same: bool) -> None:
        reason = "the same key as the row before" if same else "out of the order of the key"
        self.findings.add("KEY", self.file, reason, row=row, column=",".join(self.table.key), found=_show_key(key))

    def _reference(
        self, chunk: TableChunk, column: str, refers: str, value: Value, known_values: frozenset[Value], *, many: bool
    ) -> None:
        parts = str(value).split(";") if many else [value]
        lost = [part for part in parts if part not in known_values]
        if not lost:
            return
        for row, cell in zip(chunk.rows, chunk.columns[column], strict=True):
            if cell == value:
                self.findings.add(
                    "REFERENCE", self.file, f"{lost[0]} is not there", row=row, column=column,
                    expected=f"a row of {refers}", found=value,
                )  # fmt: skip


def _are_increasing(keys: list[tuple[Value, ...]]) -> bool:
    """Return whether keys that are all there come in order, as they nearly always do."""
    try:
        return all(map(lt, keys, keys[1:]))
    except TypeError:
        return False


def _is_before(previous: tuple[Value, ...], key: tuple[Value, ...]) -> bool:
    try:
        return previous < key  # columns have one type each
    except TypeError:
        return tuple(map(sort_value, previous)) < tuple(map(sort_value, key))


def _show_key(key: tuple[Value, ...]) -> str:
    return ", ".join(str(part) for part in key)


# The same operations on the same digits give the same digits; this leaves room for another program's order of them.
REL = 1e-12


def is_same_number(expected: float, actual: float, *, rel: float = REL, scale: float = 0.0) -> bool:
    """Compare two numbers; `scale` is the size of what was subtracted to get them, if anything was."""
    return isclose(expected, actual, rel_tol=rel, abs_tol=rel * abs(scale))


class DerivedChecks:
    """Checks the derived columns of one table."""

    def __init__(self, table: Table, file: str, findings: Findings) -> None:
        self.file = file
        self.findings = findings
        self.columns = [(c.name, c.derived, names(c.derived), parse(c.derived)) for c in table.columns if c.derived]

    def check(self, chunk: TableChunk, extra: Mapping[str, list[float | None]] | None = None) -> None:
        """Check one chunk; `extra` are columns of other tables, row by row."""
        for column, text, input_names, formula in self.columns:
            inputs = [extra[name] if extra and name in extra else chunk.numbers(name) for name in input_names]
            cells = chunk.numbers(column)
            ratio = text == "/".join(input_names)  # most columns: told by one division whether there is more to look at
            for row, cell, values in zip(chunk.rows, cells, zip(*inputs, strict=True), strict=True):
                if cell is None and None in values:
                    continue
                if ratio and cell is not None and len(values) == 2:
                    over, under = values
                    if over is not None and under and over / under == cell:
                        continue
                expected = _evaluate_formula(formula, input_names, values)
                if _cells_agree(expected, cell, values if "-" in text else ()) or row in chunk.bad:
                    continue
                self.findings.add(
                    "DERIVED", self.file, f"is not {text}", row=row, column=column,
                    expected="nothing" if expected is None else expected, found=cell,
                )  # fmt: skip


def _evaluate_formula(formula: Formula, input_names: tuple[str, ...], values: tuple[Value, ...]) -> float | None:
    """Evaluate; None if an input is missing, divides by 0 or overflows."""
    if None in values:
        return None
    try:
        value = formula(dict(zip(input_names, values, strict=True)))  # type: ignore[arg-type]  # no None in it
    except (ZeroDivisionError, OverflowError):
        return None
    return value if isfinite(value) else None


def _cells_agree(expected: float | None, actual: float | None, subtracted: tuple[Value, ...]) -> bool:
    if expected is None or actual is None:
        return expected is actual
    if expected == actual:
        return True
    # A difference has the error of what it is made of; integers have none.
    return is_same_number(
        expected, actual, scale=max((abs(v) for v in subtracted if isinstance(v, float)), default=0.0)
    )
