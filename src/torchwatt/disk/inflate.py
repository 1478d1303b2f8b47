"""Gzip files of anybody: what expands out of all proportion is refused, and no line is longer than it may be."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from typing import IO, TextIO

# Traces, curves and recordings shrink to a tenth or a thirtieth of their size; deflate cannot shrink below 1/1032.
MAX_RATIO = 100
FREE_BYTES = 1 << 26  # up to 64 MiB no ratio is looked at
LONGEST_LINE = 1 << 24  # characters: a line of a recording has about 250,000


class _Inflated(io.RawIOBase):
    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._gzip = gzip.GzipFile(fileobj=packed)
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        count = self._gzip.readinto(buffer)  # type: ignore[arg-type]  # any writable buffer
        self._bytes += count
        if self._bytes > FREE_BYTES and self._bytes > MAX_RATIO * self._packed.tell():
            raise OSError(f"it expands to more than {MAX_RATIO} times its size: no file of this kind does")
        return count


def inflated(packed: IO[bytes]) -> io.BufferedReader:
    """Return what is in a gzip file, to be read like any file; `zlib.error` and `EOFError` say that it is broken.

    Raises:
        OSError: While it is read, if it expands to more than 64 MiB and to more than 100 times what was read of it.
    """
    return io.BufferedReader(_Inflated(packed), 1 << 17)


def bounded_lines(file: TextIO, longest: int = LONGEST_LINE) -> Iterator[str]:
    """Yield the lines of a file.

    Raises:
        OSError: One is longer than that: it is not read to its end.
    """
    while line := file.readline(longest + 1):
        if len(line) > longest:
            raise OSError(f"a line is longer than {longest} characters")
        yield line
