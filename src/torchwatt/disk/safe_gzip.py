"""Reads untrusted gzip files: refuses files with an excessive compression ratio, and lines that are too long."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from typing import IO, TextIO

# Traces, curves and recordings have ratios of 10 to 30; the maximum of deflate is 1032.
MAX_RATIO = 100
UNCHECKED_BYTES = 1 << 26  # the ratio is not checked up to 64 MiB
MAX_LINE_CHARS = 1 << 24  # characters: a line of a recording has about 250,000


class _BoundedGzip(io.RawIOBase):
    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._gzip = gzip.GzipFile(fileobj=packed)
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        count = self._gzip.readinto(buffer)  # type: ignore[arg-type]  # any writable buffer
        self._bytes += count
        if self._bytes > UNCHECKED_BYTES and self._bytes > MAX_RATIO * self._packed.tell():
            raise OSError(f"it expands to more than {MAX_RATIO} times its size: no file of this kind does")
        return count


def open_bounded_gzip(packed: IO[bytes]) -> io.BufferedReader:
    """Return a reader of a gzip file's content; reading a damaged file raises `zlib.error` or `EOFError`.

    Raises:
        OSError: During reading, if the content exceeds 64 MiB and 100 times the compressed bytes read.
    """
    return io.BufferedReader(_BoundedGzip(packed), 1 << 17)


def bounded_lines(file: TextIO, longest: int = MAX_LINE_CHARS) -> Iterator[str]:
    """Yield the lines of a file.

    Raises:
        OSError: A line is longer than `longest` characters; it is not read to its end.
    """
    while line := file.readline(longest + 1):
        if len(line) > longest:
            raise OSError(f"a line is longer than {longest} characters")
        yield line
