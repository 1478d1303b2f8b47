"""Converts cells to text and back, by column type, in a form that all CSV readers parse alike."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from io import StringIO
from itertools import pairwise
from math import isfinite

from torchwatt.audit.schema import Column, Row, Table, Value
from torchwatt.core.errors import BundleError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"
# Python's int() and float() also accept "1_000", "INF" and Arabic digits, which other readers do not.
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
LARGEST_INTEGER = 2**63  # exclusive: 64-bit signed, which every reader supports
LARGEST_NUMBER = 1e100  # no quantity of a run is larger, and sums and squares of smaller ones stay numbers
TIME_PATTERN = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z"
_STAMP = re.compile(TIME_PATTERN)
_NUMBERS = {
    kind: re.compile(rf"(?:{pattern.pattern})?(?:\n(?:{pattern.pattern})?)*")
    for kind, pattern in (("number", _NUMBER), ("integer", _INTEGER))
}

# Spreadsheets evaluate cells that start with one of these as formulas. Module names are untrusted.
_FORMULA_STARTS = tuple("=+-@＝＋－＠'")
# Matches every result of `escape`, for external validators.
SAFE_TEXT = r"^[^=+\-@\t\r\n＝＋－＠][^\r\n]*$"
_ESCAPED = re.compile(r"\\(\\|u[0-9a-f]{4})")


# Python's csv reads cells of up to 131,072 characters, and escaping may write six for one.
LONGEST_TEXT = 20_000


def utc_from_unix_ns(unix_ns: int) -> datetime:
    """Return a unix time in ns as a datetime, truncated to microseconds in integer arithmetic."""
    return _EPOCH + timedelta(microseconds=unix_ns // 1000)


def to_cell(value: Value, column: Column) -> str:
    """Write one value; text beyond `LONGEST_TEXT` is cut.

    Raises:
        BundleError: A required cell is empty, a number is not finite, or the type is not the column's.
    """
    if value is None or value == "":
        if column.required:
            raise BundleError(f"{column.name} is required and missing")
        return ""
    if column.type == "boolean" and isinstance(value, bool):
        return "true" if value else "false"
    if column.type == "timestamp" and isinstance(value, datetime):
        return value.astimezone(UTC).strftime(TIME_FORMAT).rjust(27, "0")  # strftime does not pad years below 1000
    if column.type == "string" and isinstance(value, str):
        return escape(shorten_text(value))
    if column.type in {"integer", "number"} and isinstance(value, int | float):
        return _number(value, column)
    raise BundleError(f"{column.name}: {value!r} is no {column.type}")


def _number(value: float, column: Column) -> str:
    if not isfinite(value):
        raise BundleError(f"{column.name}: {value!r} is not a finite number")
    if abs(value) > (LARGEST_NUMBER if column.type == "number" else LARGEST_INTEGER - 1):
        raise BundleError(f"{column.name}: {value!r} is larger than any quantity of a run")
    if column.type == "number":
        return repr(float(value))  # the shortest text that reads back as the same number
    if int(value) != value:
        raise BundleError(f"{column.name}: {value!r} is no integer")
    return str(int(value))


def from_cell(text: str, column: Column) -> Value:
    """Parse one cell; the exact inverse of `to_cell`, except for text that was cut.

    Raises:
        BundleError: `to_cell` would not write this text for the column's type.
    """
    if text == "":
        if column.required:
            raise BundleError("is required and empty")
        return None
    if column.type == "string":
        return unescape(text)
    if column.type == "boolean" and text in {"true", "false"}:
        return text == "true"
    if column.type == "timestamp" and _STAMP.fullmatch(text):
        return _stamp(text)
    if column.type == "integer" and _INTEGER.fullmatch(text) and abs(int(text)) < LARGEST_INTEGER:
        return int(text)
    if column.type == "number" and _NUMBER.fullmatch(text) and abs(float(text)) <= LARGEST_NUMBER:
        return float(text)
    raise BundleError(f"expected a {column.type}, found {text[:80]!r}")


def numbers_from_cells(texts: Sequence[str], column: Column) -> list[float | None] | None:
    """Parse all cells of a numeric column at once; None if one may be invalid and each must be parsed by itself.

    A result equals that of `from_cell` for each cell.
    """
    joined = "\n".join(texts)
    if joined.count("\n") != len(texts) - 1 or not _NUMBERS[column.type].fullmatch(joined):
        return None
    values = [(float(text) if column.type == "number" else int(text)) if text else None for text in texts]
    numbers = [value for value in values if value is not None]
    if (column.required and len(numbers) < len(values)) or not numbers:
        return None
    least, greatest = min(numbers), max(numbers)
    largest = LARGEST_NUMBER if column.type == "number" else LARGEST_INTEGER - 1
    low = -largest if column.minimum is None else max(column.minimum, -largest)
    high = largest if column.maximum is None else min(column.maximum, largest)
    return values if low <= least and greatest <= high else None


def _stamp(text: str) -> datetime:
    try:
        return datetime.strptime(text, TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError as error:
        raise BundleError(f"no such time: {text!r}") from error


def shorten_text(text: str) -> str:
    """Cut text to `LONGEST_TEXT` characters; an appended digest distinguishes texts with the same beginning."""
    if len(text) <= LONGEST_TEXT:
        return text
    digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{text[: LONGEST_TEXT - len(digest) - 3]}...{digest}"


def escape(text: str) -> str:
    r"""Return text on one line that a spreadsheet does not evaluate; `unescape` restores it exactly.

    Text that starts like a formula, or holds control characters, gets a leading `'`. After it, `\\` is a
    backslash and `\uXXXX` a control character. All other text is written unchanged.
    """
    if not text.startswith(_FORMULA_STARTS) and (text.isprintable() or not any(map(_is_control, text))):
        return text  # printable text has no control characters
    return "'" + "".join(map(_escape_char, text))


def _is_control(char: str) -> bool:
    # Cs: half a surrogate pair cannot be written as UTF-8. Zl, Zp: line ends to some readers.
    return unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"}


def _escape_char(char: str) -> str:
    if char == "\\":
        return "\\\\"
    return f"\\u{ord(char):04x}" if _is_control(char) else char


def unescape(text: str) -> str:
    """Read back what `escape` wrote."""
    if not text.startswith("'"):
        return text
    return _ESCAPED.sub(lambda m: "\\" if m[1] == "\\" else chr(int(m[1][1:], 16)), text[1:])


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
    _refuse_equal_keys(table, ordered)
    writer.writerows(_row_cells(table, row) for row in ordered)
    return buffer.getvalue().encode()


def key_of(table: Table, row: Row) -> Key:
    """Return the sort key of a row: numbers by value, text by code point before escaping."""
    return tuple(sort_value(row.get(name)) for name in table.key)


def sort_value(value: Value) -> tuple[float, str]:
    """Return the sort key of one value."""
    if isinstance(value, datetime):
        return value.timestamp(), ""
    return (value, "") if isinstance(value, int | float) else (0, "" if value is None else shorten_text(str(value)))


def _refuse_equal_keys(table: Table, ordered: list[Row]) -> None:
    for before, after in pairwise(ordered):
        if key_of(table, before) == key_of(table, after):
            twins = {name: after.get(name) for name in table.key}
            raise BundleError(f"{table.name}: two rows for {twins}")


def _row_cells(table: Table, row: Row) -> list[str]:
    cells = []
    for column in table.columns:
        try:
            cells.append(to_cell(row.get(column.name), column))
        except BundleError as error:
            raise BundleError(f"{table.name} {key_of(table, row)}: {error}") from error
    return cells
