"""Frames of a journal: each carries a version, a length and a checksum, so that what is torn or flipped is left out.

    magic 4 | version 1 | kind 1 | zero 2 | number 4 | length 4 | CRC-32 4 | payload

All little-endian. The checksum covers everything from the version to the end of the payload, itself left out. Frames
mean something each for itself: a reader that meets damage looks for the next magic and goes on.
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
_WORK = 8  # times the size of a file is what its checksums may cost: a file made to be slow ends in an error


class Kind(IntEnum):
    """What a frame holds."""

    HEAD = 1  # who runs, on which meters; JSON
    BEGIN = 2  # when the run began; JSON
    STATE = 3  # units, windows, events so far; JSON; replaces the one before
    BEAT = 4  # the owner lived at this instant
    TRACE = 5  # who ran when, so far; replaces the one before
    READINGS = 6  # of any channels, since the frame before
    NOTES = 7  # what the sampler noticed so far; JSON; replaces the one before
    GONE = 8  # the sampler saw that its owner is gone
    STOP = 9  # the block has ended, its report is not made yet; JSON
    END = 10  # the report was made: nothing is missing


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole frame; `at` is where it begins in the file."""

    kind: int
    number: int
    payload: bytes
    at: int = 0


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of a file that holds no whole frame."""

    at: int
    length: int


def encode(kind: Kind, number: int, payload: bytes) -> bytes:
    """Return a frame.

    Raises:
        BundleError: The payload is too long.
    """
    if len(payload) > MOST_BYTES:
        raise BundleError(f"a frame of {len(payload)} bytes is too long for a journal")
    fields = _FIELDS.pack(VERSION, kind, 0, number & 0xFFFFFFFF, len(payload))
    return b"".join((MAGIC, fields, _CRC.pack(zlib.crc32(payload, zlib.crc32(fields))), payload))


def decode(data: bytes) -> Iterator[Frame | Damage]:
    """Yield the whole frames of a file in order, and the stretches between them that are none.

    Raises:
        BundleError: A frame is of a newer version, or the file is made of false beginnings.
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
    """Return what could be a frame, unchecked; None where it cannot be one."""
    if at + HEAD_BYTES > len(view):
        return None
    version, kind, zero, number, length = _FIELDS.unpack_from(view, at + len(MAGIC))
    end = at + HEAD_BYTES + length
    if zero or not version or length > MOST_BYTES or end > len(view):
        return None
    return Frame(kind, number, bytes(view[at + HEAD_BYTES : end]), at)


def _sums(view: memoryview, at: int, frame: Frame) -> bool:
    """Return whether the checksum holds.

    Raises:
        BundleError: It does, and the frame is of a version that is not known here.
    """
    begin = at + len(MAGIC)
    fields = view[begin : begin + _FIELDS.size]
    (crc,) = _CRC.unpack_from(view, begin + _FIELDS.size)
    if crc != zlib.crc32(frame.payload, zlib.crc32(fields)):
        return False
    if fields[0] != VERSION:
        raise BundleError(f"the journal is of version {fields[0]}, known here is {VERSION}: use a newer torchwatt")
    return True
