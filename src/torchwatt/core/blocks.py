"""Encodes readings as bytes for a frame of a journal: one block per channel. Numpy-free.

    key length 1 | zero 3 | count 4 | period_ns 8 | key | t_ns, raw, late_ns

Each column is written byte plane by byte plane (the lowest bytes of all values, then the next ones, ...): neighbours
have most of their high bytes in common, so that zlib at its fastest gets a third of the size.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torchwatt.core.errors import BundleError

WORD = 8
MOST_BYTES = 1 << 26  # of one frame's blocks, unpacked
_HEAD = struct.Struct("<BBHIq")


@dataclass(frozen=True, slots=True)
class Block:
    """Readings of one channel: columns of int64, float64 and int64 as bytes of equal length."""

    key: str
    period_ns: int
    t_ns: bytes
    raw: bytes
    late_ns: bytes

    def __len__(self) -> int:
        return len(self.t_ns) // WORD


def pack(blocks: Iterable[Block]) -> bytes:
    """Encode blocks as the payload of a frame."""
    return zlib.compress(b"".join(part for block in blocks for part in _parts(block)), 1)


def _parts(block: Block) -> Iterator[bytes]:
    key = block.key.encode()[:255]
    yield _HEAD.pack(len(key), 0, 0, len(block), block.period_ns)
    yield key
    for column in (block.t_ns, block.raw, block.late_ns):
        for plane in range(WORD):
            yield column[plane::WORD]


def unpack(payload: bytes) -> Iterator[Block]:
    """Yield the blocks of a payload.

    Raises:
        BundleError: The payload is not made of blocks.
    """
    data, at = inflated(payload, MOST_BYTES), 0
    while at < len(data):
        if at + _HEAD.size > len(data):
            raise BundleError("a block of readings is cut off")
        key_bytes, _, _, count, period_ns = _HEAD.unpack_from(data, at)
        column_start = at + _HEAD.size + key_bytes
        columns = [data[column_start + i * count * WORD : column_start + (i + 1) * count * WORD] for i in range(3)]
        at = column_start + 3 * count * WORD
        if at > len(data):
            raise BundleError("a block of readings is cut off")
        key = data[column_start - key_bytes : column_start].decode(errors="replace")
        yield Block(key, period_ns, *(_joined(column, count) for column in columns))


def _joined(planes: bytes, count: int) -> bytes:
    column = bytearray(len(planes))
    for plane in range(WORD):
        column[plane::WORD] = planes[plane * count : (plane + 1) * count]
    return bytes(column)


def inflated(payload: bytes, most_bytes: int) -> bytes:
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
