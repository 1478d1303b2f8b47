"""Whatever happens to the bytes of a journal, what is read from it is what was written."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.core.errors import BundleError
from torchwatt.core.journal_format import (
    FRAME_MAGIC,
    HEAD_BYTES,
    DamagedRange,
    Frame,
    FrameKind,
    ReadingsBlock,
    decode_frames,
    encode_frame,
    pack_blocks,
    unpack_blocks,
)

payloads = st.lists(st.binary(max_size=60) | st.just(FRAME_MAGIC * 3), min_size=1, max_size=6)


def file_of(contents):
    return b"".join(encode_frame(FrameKind.READINGS, i, content) for i, content in enumerate(contents))


def whole(data):
    return [frame.payload for frame in decode_frames(data) if isinstance(frame, Frame)]


@given(payloads)
def test_frames_come_back_as_they_were(contents):
    assert whole(file_of(contents)) == contents


@given(payloads)
def test_a_file_cut_anywhere_holds_every_frame_before_the_cut(contents):
    data, ends = file_of(contents), np.cumsum([HEAD_BYTES + len(content) for content in contents])
    for cut in range(len(data) + 1):
        assert whole(data[:cut]) == contents[: int(np.searchsorted(ends, cut, side="right"))]


@given(payloads, st.data())
def test_a_flipped_bit_costs_the_frame_that_it_is_in_and_no_other(contents, data):
    good = bytearray(file_of(contents))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= 1 << data.draw(st.integers(0, 7))
    ends = np.cumsum([HEAD_BYTES + len(content) for content in contents])
    hit = int(np.searchsorted(ends, at, side="right"))
    assert whole(bytes(good)) == contents[:hit] + contents[hit + 1 :]


@given(payloads, st.binary(max_size=40), st.integers(0, 6))
def test_garbage_between_frames_and_at_the_end_is_passed_over_and_counted(contents, garbage, place):
    frames = [encode_frame(FrameKind.READINGS, i, content) for i, content in enumerate(contents)]
    data = b"".join((*frames[:place], garbage, *frames[place:]))
    assert whole(data) == contents
    assert sum(part.length for part in decode_frames(data) if isinstance(part, DamagedRange)) == len(garbage)


def test_a_newer_version_is_named():
    fields = struct.pack("<BBHII", 2, 1, 0, 0, 3)
    data = FRAME_MAGIC + fields + struct.pack("<I", zlib.crc32(b"abc", zlib.crc32(fields))) + b"abc"
    with pytest.raises(BundleError, match=r"version 2.*newer torchwatt"):
        list(decode_frames(data))


def test_a_file_made_of_false_beginnings_does_not_take_for_ever():
    length = 1 << 16
    evil = (FRAME_MAGIC + struct.pack("<BBHIII", 1, 1, 0, 0, length, 0)) * 40_000
    with pytest.raises(BundleError, match="false beginnings"):
        list(decode_frames(evil))


columns = st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(width=64), st.integers(0, 2**40)), max_size=9)


@given(st.lists(st.tuples(st.text(max_size=20), st.integers(0, 2**40), columns), max_size=4))
def test_readings_come_back_bit_by_bit(told):
    blocks = []
    for key, period_ns, rows in told:
        t_ns, raw, late_ns = (np.array([row[i] for row in rows]) for i in range(3))
        parts = t_ns.astype("<i8"), raw.astype("<f8"), late_ns.astype("<i8")
        blocks.append(ReadingsBlock(key, period_ns, *(part.tobytes() for part in parts)))
    assert list(unpack_blocks(pack_blocks(blocks))) == blocks


@given(st.binary(max_size=200))
def test_any_other_bytes_are_no_readings(data):
    for payload in (data, zlib.compress(data)):
        try:
            list(unpack_blocks(payload))
        except BundleError:
            continue


def test_a_payload_that_unpacks_without_end_is_refused():
    with pytest.raises(BundleError, match="larger than any"):
        list(unpack_blocks(zlib.compress(bytes(1 << 27), 1)))
