"""Frames of a journal: each has a version, a length and a checksum, so that incomplete or damaged ones are skipped.

    magic 4 | version 1 | kind 1 | zero 2 | number 4 | length 4 | CRC-32 4 | payload

All little-endian. The checksum covers the bytes from the version to the end of the payload, without its own. Each frame
can be read without the others: after damage a reader continues at the next magic.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from torchwatt.core.errors import BundleError

FRAME_MAGIC = b"\x9dTWJ"
FRAME_VERSION = 1
MAX_FRAME_BYTES = 1 << 26  # of one payload
_FIELDS = struct.Struct("<BBHII")  # version, kind, zero, number, length
_CRC = struct.Struct("<I")
HEAD_BYTES = len(FRAME_MAGIC) + _FIELDS.size + _CRC.size
_MAX_CHECKSUM_RATIO = (
    8  # checksums may cover this many times the size of a file, so that a crafted file cannot make reading slow
)


class FrameKind(IntEnum):
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
    REQUESTS = 11  # requests of language models that ended since the previous REQUESTS; JSON


@dataclass(frozen=True, slots=True)
class Frame:
    """One complete frame; `at` is its byte offset in the file."""

    kind: int
    number: int
    payload: bytes
    at: int = 0


@dataclass(frozen=True, slots=True)
class DamagedRange:
    """A range of bytes of a file without a complete frame."""

    at: int
    length: int


def encode_frame(kind: FrameKind, number: int, payload: bytes) -> bytes:
    """Encode a frame.

    Raises:
        BundleError: The payload is too long.
    """
    if len(payload) > MAX_FRAME_BYTES:
        raise BundleError(f"a frame of {len(payload)} bytes is too long for a journal")
    fields = _FIELDS.pack(FRAME_VERSION, kind, 0, number & 0xFFFFFFFF, len(payload))
    return b"".join((FRAME_MAGIC, fields, _CRC.pack(zlib.crc32(payload, zlib.crc32(fields))), payload))


def decode_frames(data: bytes) -> Iterator[Frame | DamagedRange]:
    """Yield the complete frames of a file in order, and the damaged ranges between them.

    Raises:
        BundleError: A frame has a newer version, or checking the many false frame beginnings would take too long.
    """
    at, good_end, work = 0, 0, 0
    view = memoryview(data)
    while True:
        at = data.find(FRAME_MAGIC, at)
        if at < 0:
            break
        frame = _parse_frame(view, at)
        if frame is None:
            at += 1
            continue
        work += len(frame.payload)
        if work > _MAX_CHECKSUM_RATIO * len(data):
            raise BundleError("the file is made of false beginnings of frames: no journal of ours")
        if not _checksum_holds(view, at, frame):
            at += 1
            continue
        if at > good_end:
            yield DamagedRange(good_end, at - good_end)
        yield frame
        at = good_end = at + HEAD_BYTES + len(frame.payload)
    if good_end < len(data):
        yield DamagedRange(good_end, len(data) - good_end)


def _parse_frame(view: memoryview, at: int) -> Frame | None:
    """Parse a frame without checking its checksum; return None if the header is invalid."""
    if at + HEAD_BYTES > len(view):
        return None
    version, kind, zero, number, length = _FIELDS.unpack_from(view, at + len(FRAME_MAGIC))
    end = at + HEAD_BYTES + length
    if zero or not version or length > MAX_FRAME_BYTES or end > len(view):
        return None
    return Frame(kind, number, bytes(view[at + HEAD_BYTES : end]), at)


def _checksum_holds(view: memoryview, at: int, frame: Frame) -> bool:
    """Return whether the checksum matches.

    Raises:
        BundleError: It matches, and the frame has an unsupported version.
    """
    begin = at + len(FRAME_MAGIC)
    fields = view[begin : begin + _FIELDS.size]
    (crc,) = _CRC.unpack_from(view, begin + _FIELDS.size)
    if crc != zlib.crc32(frame.payload, zlib.crc32(fields)):
        return False
    if fields[0] != FRAME_VERSION:
        raise BundleError(
            f"the journal is of version {fields[0]}, known here is {FRAME_VERSION}: use a newer torchwatt"
        )
    return True


WORD_BYTES = 8
MAX_UNPACKED_BYTES = 1 << 26  # of one frame's blocks, unpacked
_BLOCK_HEAD = struct.Struct("<BBHIq")


@dataclass(frozen=True, slots=True)
class ReadingsBlock:
    """Readings of one channel: columns of int64, float64 and int64 as bytes of equal length."""

    key: str
    period_ns: int
    t_ns: bytes
    raw: bytes
    late_ns: bytes

    def __len__(self) -> int:
        return len(self.t_ns) // WORD_BYTES


def pack_blocks(blocks: Iterable[ReadingsBlock]) -> bytes:
    """Encode blocks as the payload of a frame."""
    return zlib.compress(b"".join(part for block in blocks for part in _block_parts(block)), 1)


def _block_parts(block: ReadingsBlock) -> Iterator[bytes]:
    key = block.key.encode()[:255]
    yield _BLOCK_HEAD.pack(len(key), 0, 0, len(block), block.period_ns)
    yield key
    for column in (block.t_ns, block.raw, block.late_ns):
        for plane in range(WORD_BYTES):
            yield column[plane::WORD_BYTES]


def unpack_blocks(payload: bytes) -> Iterator[ReadingsBlock]:
    """Yield the blocks of a payload.

    Raises:
        BundleError: The payload is not made of blocks.
    """
    data, at = decompress_payload(payload, MAX_UNPACKED_BYTES), 0
    while at < len(data):
        if at + _BLOCK_HEAD.size > len(data):
            raise BundleError("a block of readings is cut off")
        key_bytes, _, _, count, period_ns = _BLOCK_HEAD.unpack_from(data, at)
        column_start = at + _BLOCK_HEAD.size + key_bytes
        columns = [
            data[column_start + i * count * WORD_BYTES : column_start + (i + 1) * count * WORD_BYTES] for i in range(3)
        ]
        at = column_start + 3 * count * WORD_BYTES
        if at > len(data):
            raise BundleError("a block of readings is cut off")
        key = data[column_start - key_bytes : column_start].decode(errors="replace")
        yield ReadingsBlock(key, period_ns, *(_join_planes(column, count) for column in columns))


def _join_planes(planes: bytes, count: int) -> bytes:
    column = bytearray(len(planes))
    for plane in range(WORD_BYTES):
        column[plane::WORD_BYTES] = planes[plane * count : (plane + 1) * count]
    return bytes(column)


def decompress_payload(payload: bytes, most_bytes: int) -> bytes:
    """Decompress a zlib payload of at most `most_bytes` decompressed bytes.

    Raises:
        BundleError: The payload is damaged or larger.
    """
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(payload, most_bytes)
    except zlib.error as error:
        raise BundleError(f"a frame cannot be unpacked: {error}") from error
    if not unpacker.eof:
        raise BundleError("a frame is cut off, or larger than any of ours")
    return data
