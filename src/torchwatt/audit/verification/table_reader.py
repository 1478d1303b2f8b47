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
from torchwatt.disk.path_safety import open_untrusted
from torchwatt.disk.safe_gzip import bounded_lines, open_bounded_gzip

CHUNK_ROWS = 4096
FEW = 64
LONGEST_ROW = 1 << 22  # characters
CellFault = tuple[str, str]  # expected, reason


@dataclass(frozen=True, slots=True)
class TableChunk:
    """Some rows of a table, by column; `rows` are their numbers, `None` a cell that is missing or wrong.

    `bad` are the rows with a wrong cell: nothing is computed from them, so that one fault is told once.
    """

    rows: list[int]
    columns: dict[str, list[Value]]
    bad: set[int]

    def numbers(self, name: str) -> list[float | None]:
        """Return a column of numbers."""
        return cast("list[float | None]", self.columns[name])


def read_chunks(path: Path, table: Table, findings: Findings, newer: bool = False) -> Iterator[TableChunk]:
    """Yield the rows of a CSV file; what is wrong with its form and its cells goes to `findings`.

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
            while block := list(islice(read.counted(lines), CHUNK_ROWS)):
                yield read.piece(block, number + 1, len(header))
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
        """Pass lines on; a carriage return is never written by torchwatt and is told once."""
        told = False
        for number, line in enumerate(bounded_lines(file, LONGEST_ROW)):
            self.taken += len(line)
            if self.taken > LONGEST_ROW:
                raise csv.Error(f"a row is longer than {LONGEST_ROW} characters")
            if "\r" in line and not told:
                told = True
                self.findings.add(
                    "FORM", self.file, "holds a carriage return", row=number or None, expected="LF", found="CR"
                )
            yield line

    def counted(self, rows: Iterator[list[str]]) -> Iterator[list[str]]:
        """Pass rows on; a quoted cell may have any number of lines, a row not."""
        for row in rows:
            self.taken = 0
            yield row

    def header(self, found: list[str], *, newer: bool) -> bool:
        wanted = list(self.table.header)
        if found == wanted or (newer and found[: len(wanted)] == wanted):
            return True
        for index in range(max(len(wanted), len(found))):
            want, have = (names[index] if index < len(names) else "" for names in (wanted, found))
            if want != have:
                self.findings.add(
                    "FORM", self.file, f"header differs at column {index + 1}", column=want, expected=want, found=have
                )
                break
        return False

    def piece(self, block: list[list[str]], first: int, width: int) -> TableChunk:
        rows = list(range(first, first + len(block)))
        if any(len(line) != width for line in block):
            for row, line in zip(rows, block, strict=True):
                if len(line) != width:
                    self.findings.add("FORM", self.file, "number of cells", row=row, expected=width, found=len(line))
            kept = [(row, line) for row, line in zip(rows, block, strict=True) if len(line) == width]
            rows, block = [row for row, _ in kept], [line for _, line in kept]
        columns = zip(*block, strict=True) if block else iter([()] * width)
        piece = TableChunk(rows, {}, set())
        for check, texts in zip(self.checks, columns, strict=False):
            piece.columns[check.column.name] = check.values(texts, piece, self.findings, self.file)
        return piece


class _ColumnParser:
    """Checks one column; equal texts are looked at once."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.known: dict[str, Value] = {}
        self.wrong: dict[str, CellFault] = {}

    def values(self, texts: tuple[str, ...], piece: TableChunk, findings: Findings, file: str) -> list[Value]:
        distinct = set(texts)
        if len(distinct) > FEW and self.column.type in {"number", "integer"}:
            read = numbers_from_cells(texts, self.column)
            if read is not None:
                return cast("list[Value]", read)
        if len(distinct) > FEW:  # numbers, mostly all different: nothing to remember from piece to piece
            self.known.clear()
            self.wrong.clear()
        for text in distinct - self.known.keys():
            self.known[text] = self._value(text)
        if self.wrong and not self.wrong.keys().isdisjoint(distinct):
            for row, text in zip(piece.rows, texts, strict=True):
                if text in self.wrong:
                    piece.bad.add(row)
                    expected, reason = self.wrong[text]
                    findings.add("CELL", file, reason, row=row, column=self.column.name, expected=expected, found=text)
        return [self.known[text] for text in texts]

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
    """Return what a well written cell breaks of its column's constraints, as (expected, reason)."""
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
    """Checks that rows are in the order of the key, each key once, and that what they name exists."""

    def __init__(self, table: Table, file: str, known: KnownValues, findings: Findings) -> None:
        self.table = table
        self.file = file
        self.known = known
        self.findings = findings
        self.last: tuple[Value, ...] | None = None
        self.required = [table.column(name).required for name in table.key]
        self.refers = [column for column in table.columns if column.refers]

    def look(self, piece: TableChunk) -> None:
        """Check one piece."""
        self._order(piece)
        self.references(piece)

    def references(self, piece: TableChunk) -> None:
        """Check that what the rows name exists, as far as it is known by now."""
        for column in self.refers:
            known = self.known.get(column.refers)
            if known is None:
                continue
            values = piece.columns[column.name]
            for value in set(values) - known - {None}:
                self._reference(piece, column.name, column.refers, value, known, many=column.many)

    def _order(self, piece: TableChunk) -> None:
        keys = list(zip(*(piece.columns[name] for name in self.table.key), strict=True))
        last = self.last
        if _are_increasing(keys) and (last is None or not keys or _is_before(last, keys[0])):
            self.last = keys[-1] if keys else last
            return
        for row, key in zip(piece.rows, keys, strict=True):
            if any(value is None for value, required in zip(key, self.required, strict=True) if required):
                continue
            if last is not None and not _is_before(last, key):
                self._tell(row, key, same=last == key)
            last = key
        self.last = last

    def _tell(self, row: int, key: tuple[Value, ...], *, same: bool) -> None:
        reason = "the same key as the row before" if same else "out of the order of the key"
        self.findings.add("KEY", self.file, reason, row=row, column=",".join(self.table.key), found=_shown(key))

    def _reference(
        self, piece: TableChunk, column: str, refers: str, value: Value, known: frozenset[Value], *, many: bool
    ) -> None:
        parts = str(value).split(";") if many else [value]
        lost = [part for part in parts if part not in known]
        if not lost:
            return
        for row, found in zip(piece.rows, piece.columns[column], strict=True):
            if found == value:
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


def _is_before(last: tuple[Value, ...], key: tuple[Value, ...]) -> bool:
    try:
        return last < key  # columns have one type each
    except TypeError:
        return tuple(map(sort_value, last)) < tuple(map(sort_value, key))


def _shown(key: tuple[Value, ...]) -> str:
    return ", ".join(str(part) for part in key)


# The same operations on the same digits give the same digits; this leaves room for another program's order of them.
REL = 1e-12


def is_same_number(expected: float, found: float, *, rel: float = REL, scale: float = 0.0) -> bool:
    """Compare two numbers; `scale` is the size of what was subtracted to get them, if anything was."""
    return isclose(expected, found, rel_tol=rel, abs_tol=rel * abs(scale))


class DerivedChecks:
    """Checks the derived columns of one table."""

    def __init__(self, table: Table, file: str, findings: Findings) -> None:
        self.file = file
        self.findings = findings
        self.columns = [(c.name, c.derived, names(c.derived), parse(c.derived)) for c in table.columns if c.derived]

    def look(self, piece: TableChunk, extra: Mapping[str, list[float | None]] | None = None) -> None:
        """Check one piece; `extra` are columns of other tables, row by row."""
        for column, text, wanted, formula in self.columns:
            inputs = [extra[name] if extra and name in extra else piece.numbers(name) for name in wanted]
            cells = piece.numbers(column)
            ratio = text == "/".join(wanted)  # most columns: told by one division whether there is more to look at
            for row, cell, values in zip(piece.rows, cells, zip(*inputs, strict=True), strict=True):
                if cell is None and None in values:
                    continue
                if ratio and cell is not None and len(values) == 2:
                    over, under = values
                    if over is not None and under and over / under == cell:
                        continue
                expected = _evaluate_formula(formula, wanted, values)
                if _cells_agree(expected, cell, values if "-" in text else ()) or row in piece.bad:
                    continue
                self.findings.add(
                    "DERIVED", self.file, f"is not {text}", row=row, column=column,
                    expected="nothing" if expected is None else expected, found=cell,
                )  # fmt: skip


def _evaluate_formula(formula: Formula, wanted: tuple[str, ...], values: tuple[Value, ...]) -> float | None:
    """Evaluate; None where an input is missing, or where it cannot be said (a division by 0)."""
    if None in values:
        return None
    try:
        value = formula(dict(zip(wanted, values, strict=True)))  # type: ignore[arg-type]  # no None in it
    except (ZeroDivisionError, OverflowError):
        return None
    return value if isfinite(value) else None


def _cells_agree(expected: float | None, found: float | None, subtracted: tuple[Value, ...]) -> bool:
    if expected is None or found is None:
        return expected is found
    if expected == found:
        return True
    # A difference has the error of what it is made of; integers have none.
    return is_same_number(expected, found, scale=max((abs(v) for v in subtracted if isinstance(v, float)), default=0.0))
