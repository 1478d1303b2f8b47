"""Frames of a journal: each has a version, a length and a checksum, so that incomplete or damaged ones are skipped.

    magic 4 | version 1 | kind 1 | zero 2 | number 4 | length 4 | CRC-32 4 | payload

All little-endian. The checksum covers the bytes from the version to the end of the payload, without its own. Each frame
can be read without the others: after damage a reader continues at the next magic.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from torchwatt.core.errors import BundleError

MAGIC = b"\x9dTWJ"
VERSION = 1
MOST_BYTES = 1 << 26  # of one payload
_FIELDS = struct.Struct("<BBHII")  # version, kind, zero, number, length
_CRC = struct.Struct("<I")
HEAD_BYTES = len(MAGIC) + _FIELDS.size + _CRC.size
_WORK = 8  # checksums may cover this many times the size of a file, so that a crafted file cannot make reading slow


class Kind(IntEnum):
    """The content of a frame."""

    HEAD = 1  # the process and its meters; JSON
    BEGIN = 2  # when the run began; JSON
    STATE = 3  # units, windows, events so far; JSON; replaces the previous STATE
    BEAT = 4  # the measured process was alive at this instant
    TRACE = 5  # spans of modules so far; replaces the previous TRACE
    READINGS = 6  # readings of any channels since the previous READINGS
    NOTES = 7  # the sampler's notes so far; JSON; replaces the previous NOTES
    GONE = 8  # the sampler found that the measured process has ended
    STOP = 9  # the run has ended, its report is not made yet; JSON
    END = 10  # the report was made: the journal is complete


@dataclass(frozen=True, slots=True)
class Frame:
    """One complete frame; `at` is its byte offset in the file."""

    kind: int
    number: int
    payload: bytes
    at: int = 0


@dataclass(frozen=True, slots=True)
class Damage:
    """A range of bytes of a file without a complete frame."""

    at: int
    length: int


def encode(kind: Kind, number: int, payload: bytes) -> bytes:
    """Encode a frame.

    Raises:
        BundleError: The payload is too long.
    """
    if len(payload) > MOST_BYTES:
        raise BundleError(f"a frame of {len(payload)} bytes is too long for a journal")
    fields = _FIELDS.pack(VERSION, kind, 0, number & 0xFFFFFFFF, len(payload))
    return b"".join((MAGIC, fields, _CRC.pack(zlib.crc32(payload, zlib.crc32(fields))), payload))


def decode(data: bytes) -> Iterator[Frame | Damage]:
    """Yield the complete frames of a file in order, and the damaged ranges between them.

    Raises:
        BundleError: A frame has a newer version, or checking the many false frame beginnings would take too long.
    """
    at, good_end, work = 0, 0, 0
    view = memoryview(data)
    while True:
        at = data.find(MAGIC, at)
        if at < 0:
            break
        frame = _frame(view, at)
        if frame is None:
            at += 1
            continue
        work += len(frame.payload)
        if work > _WORK * len(data):
            raise BundleError("the file is made of false beginnings of frames: no journal of ours")
        if not _sums(view, at, frame):
            at += 1
            continue
        if at > good_end:
            yield Damage(good_end, at - good_end)
        yield frame
        at = good_end = at + HEAD_BYTES + len(frame.payload)
    if good_end < len(data):
        yield Damage(good_end, len(data) - good_end)


def _frame(view: memoryview, at: int) -> Frame | None:
    """Parse a frame without checking its checksum; return None if the header is invalid."""
    if at + HEAD_BYTES > len(view):
        return None
    version, kind, zero, number, length = _FIELDS.unpack_from(view, at + len(MAGIC))
    end = at + HEAD_BYTES + length
    if zero or not version or length > MOST_BYTES or end > len(view):
        return None
    return Frame(kind, number, bytes(view[at + HEAD_BYTES : end]), at)


def _sums(view: memoryview, at: int, frame: Frame) -> bool:
    """Return whether the checksum matches.

    Raises:
        BundleError: It matches, and the frame has an unsupported version.
    """
    begin = at + len(MAGIC)
    fields = view[begin : begin + _FIELDS.size]
    (crc,) = _CRC.unpack_from(view, begin + _FIELDS.size)
    if crc != zlib.crc32(frame.payload, zlib.crc32(fields)):
        return False
    if fields[0] != VERSION:
        raise BundleError(f"the journal is of version {fields[0]}, known here is {VERSION}: use a newer torchwatt")
    return True
