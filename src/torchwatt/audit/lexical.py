"""Converts cells to text and back, by column type, in a form that all CSV readers parse alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from math import isfinite

from torchwatt.audit.schema import Column, Value
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


def utc(unix_ns: int) -> datetime:
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
        return escape(shortened(value))
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


def shortened(text: str) -> str:
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
    return "'" + "".join(map(_escaped, text))


def _is_control(char: str) -> bool:
    # Cs: half a surrogate pair cannot be written as UTF-8. Zl, Zp: line ends to some readers.
    return unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"}


def _escaped(char: str) -> str:
    if char == "\\":
        return "\\\\"
    return f"\\u{ord(char):04x}" if _is_control(char) else char


def unescape(text: str) -> str:
    """Read back what `escape` wrote."""
    if not text.startswith("'"):
        return text
    return _ESCAPED.sub(lambda m: "\\" if m[1] == "\\" else chr(int(m[1][1:], 16)), text[1:])
