"""Decodes a log file: UTF-8 or UTF-16, with or without a byte order mark, with NUL bytes, or truncated."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from torchwatt.core.errors import SensorError
from torchwatt.disk.inflate import bounded_lines
from torchwatt.disk.path_safety import open_named

_SNIFFED = 1 << 16  # bytes
MAX_BYTES = 1 << 30  # a month at ten readings a second
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_STRANGE = 0.1  # a file with a larger share of characters that do not occur in text is refused
_SPACES = "\t\n\r\f\v\x1b"  # and the escape sequences of terminals


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end: `number` counts from 1, `ended` is False where the file stops before a line end."""

    number: int
    text: str
    ended: bool


def open_log(path: Path) -> TextIO:
    """Open a log as text, with the encoding detected from its first bytes; invalid bytes become `\ufffd`.

    Raises:
        SensorError: The file is not text.
        OSError: The file is not a regular file, exceeds 1 GiB, or cannot be read.
    """
    file = open_named(path, MAX_BYTES)
    try:
        start = file.read(_SNIFFED)
        encoding = _encoding(start)
        _check_text(start.decode(encoding, "replace"), path.name)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return TextIOWrapper(file, encoding=encoding, errors="replace")


def log_lines(file: TextIO) -> Iterator[Line]:
    """Yield the lines of a log without NUL bytes, which a crash may leave in it.

    Raises:
        OSError: A line is too long.
    """
    for number, line in enumerate(bounded_lines(file), 1):
        yield Line(number, line.rstrip("\n").replace("\0", ""), line.endswith("\n"))


def _encoding(start: bytes) -> str:
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    # In UTF-16 every second byte of digits and names is NUL.
    even, odd = start[0::2].count(0), start[1::2].count(0)
    if len(start) >= 4 and max(even, odd) > 0.4 * (len(start) // 2) and min(even, odd) < 0.1 * max(even, odd):
        return "utf-16-be" if even > odd else "utf-16-le"
    return "utf-8"


def _check_text(text: str, name: str) -> None:
    text = text.replace("\0", "")
    strange = sum(char == "�" or (char < " " and char not in _SPACES) for char in text)
    if strange > max(_STRANGE * len(text), 1):
        raise SensorError(f"{name} is not text: give a power log as CSV, as nvidia-smi --format=csv writes it")
