"""Read a CSV table in pieces of bounded size, every cell checked by the lexical rules of its column."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from torchwatt.audit.inside import MAX_FILE_BYTES
from torchwatt.audit.lexical import escape, from_cell, numbers_from_cells
from torchwatt.audit.schema import Column, Table, Value
from torchwatt.audit.verification.finding import Findings
from torchwatt.core.errors import BundleError
from torchwatt.disk.inflate import bounded_lines, inflated
from torchwatt.disk.path_safety import open_own

ROWS = 4096
FEW = 64
LONGEST_ROW = 1 << 22  # characters
Wrong = tuple[str, str]  # expected, reason


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a table, by column; `rows` are their numbers, `None` a cell that is missing or wrong.

    `bad` are the rows with a wrong cell: nothing is computed from them, so that one fault is told once.
    """

    rows: list[int]
    columns: dict[str, list[Value]]
    bad: set[int]

    def numbers(self, name: str) -> list[float | None]:
        """Return a column of numbers."""
        return cast("list[float | None]", self.columns[name])


def pieces(path: Path, table: Table, findings: Findings, newer: bool = False) -> Iterator[Piece]:
    """Yield the rows of a CSV file; what is wrong with its form and its cells goes to `findings`.

    A bundle of a `newer` minor version may have more columns at the end.
    """
    number = 0
    read = _Reader(path, table, findings)
    try:
        with open_own(path, MAX_FILE_BYTES) as packed, _text(packed, zipped=path.suffix == ".gz") as text:
            lines = csv.reader(read.lines(text), strict=True)
            header = next(lines, [])
            if not read.header(header, newer=newer):
                return
            while block := list(islice(read.counted(lines), ROWS)):
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
    return TextIOWrapper(inflated(packed) if zipped else packed, encoding="utf-8", newline="")


class _Reader:
    def __init__(self, path: Path, table: Table, findings: Findings) -> None:
        self.file = path.name
        self.table = table
        self.findings = findings
        self.taken = 0  # characters since the last row
        self.checks: list[_Cells] = [_Cells(column) for column in table.columns]

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

    def piece(self, block: list[list[str]], first: int, width: int) -> Piece:
        rows = list(range(first, first + len(block)))
        if any(len(line) != width for line in block):
            for row, line in zip(rows, block, strict=True):
                if len(line) != width:
                    self.findings.add("FORM", self.file, "number of cells", row=row, expected=width, found=len(line))
            kept = [(row, line) for row, line in zip(rows, block, strict=True) if len(line) == width]
            rows, block = [row for row, _ in kept], [line for _, line in kept]
        columns = zip(*block, strict=True) if block else iter([()] * width)
        piece = Piece(rows, {}, set())
        for check, texts in zip(self.checks, columns, strict=False):
            piece.columns[check.column.name] = check.values(texts, piece, self.findings, self.file)
        return piece


class _Cells:
    """Checks one column; equal texts are looked at once."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.known: dict[str, Value] = {}
        self.wrong: dict[str, Wrong] = {}

    def values(self, texts: tuple[str, ...], piece: Piece, findings: Findings, file: str) -> list[Value]:
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


def out_of_bounds(value: Value, text: str, column: Column) -> Wrong | None:
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
