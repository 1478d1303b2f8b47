"""Serialises a trace: compressed integer columns, and JSON for the rest."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.errors import BundleError, TraceError
from torchwatt.core.journal_format import decompress_payload
from torchwatt.core.meter import Event, IntArray
from torchwatt.core.terms import Slot
from torchwatt.core.trace import Activity, ModuleInfo, SlotWork, Trace
from torchwatt.journal.journal_records import decode_record, encode_record

MAX_TRACE_BYTES = 1 << 28  # unpacked
_HEAD_SIZE = struct.Struct("<I")
_COLUMN_HEAD = struct.Struct("<BxxxIq")  # bytes per value, count, first value
_WIDTHS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class _StoredActivity:
    device: str
    slots: tuple[Slot, ...]
    signatures: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _StoredTrace:
    """What a trace contains beside columns; `until_ns` is the instant up to which the trace is complete."""

    until_ns: int
    slots: tuple[Slot, ...]
    modules: tuple[ModuleInfo, ...]
    carry_rel_sd: dict[int, float]
    events: tuple[Event, ...]
    cost_s: float
    windows: int
    devices: tuple[_StoredActivity, ...]
    traced_steps: int = 0
    stages: tuple[str, ...] = ()  # names indexed by the column step_stages, which is absent if this is empty
    untold_calls: tuple[int, ...] = ()
    thread_busy: tuple[float, ...] = ()
    thread_between: tuple[float, ...] = ()
    work: tuple[SlotWork, ...] = ()


def pack_trace(trace: Trace, until_ns: int) -> bytes:
    """Return the payload of a TRACE frame."""
    devices = tuple(_StoredActivity(a.device, a.slots, a.signatures, a.notes) for a in trace.activities)
    stages = tuple(dict.fromkeys(trace.step_stages))
    head = encode_record(
        _StoredTrace(
            until_ns, trace.slots, trace.modules, dict(trace.carry_rel_sd), trace.events, trace.cost_s, trace.windows,
            devices, trace.traced_steps, stages, tuple(sorted(trace.untold_calls)), trace.thread_busy,
            trace.thread_between, trace.work,
        )
    )  # fmt: skip
    steps = _interval_array(trace.steps)
    columns = [*_span_columns(trace.slot, trace.start_ns, trace.end_ns, trace.thread, trace.filled, trace.calls)]
    columns += [steps[:, 0], steps[:, 1], np.array(trace.step_counts, dtype=np.int64)]
    if stages:
        columns.append(np.array([stages.index(stage) for stage in trace.step_stages], dtype=np.int64))
    for a in trace.activities:
        covered, device_steps = _interval_array(a.covered), _interval_array(a.steps)
        columns += _span_columns(a.slot, a.start_ns, a.end_ns, a.stream, a.filled, a.signature)
        columns += [covered[:, 0], covered[:, 1], device_steps[:, 0], device_steps[:, 1]]
    return zlib.compress(b"".join((_HEAD_SIZE.pack(len(head)), head, *map(_pack_column, columns))), 1)


def unpack_trace(payload: bytes) -> tuple[Trace, int]:
    """Return a trace, and the instant up to which it is complete.

    Raises:
        BundleError: The payload is not a valid trace.
    """
    data = decompress_payload(payload, MAX_TRACE_BYTES)
    if len(data) < _HEAD_SIZE.size:
        raise BundleError("a trace is cut off")
    (length,) = _HEAD_SIZE.unpack_from(data)
    head = decode_record(data[_HEAD_SIZE.size : _HEAD_SIZE.size + length], _StoredTrace)
    arrays = _unpack_columns(data, _HEAD_SIZE.size + length)
    try:
        return _decode_trace(head, arrays), head.until_ns
    except (TraceError, ValueError, IndexError) as error:
        raise BundleError(f"a trace is inconsistent: {error}") from error


def _next_column(arrays: Iterator[IntArray]) -> IntArray:
    """Return the next column; raise ValueError at the end, where StopIteration would end an enclosing generator."""
    column = next(arrays, None)
    if column is None:
        raise ValueError("it is cut off")
    return column


def _decode_trace(head: _StoredTrace, arrays: Iterator[IntArray]) -> Trace:
    slot, start, end, thread, filled, calls = _read_spans(arrays, len(head.slots))
    begins, ends, counts = _next_column(arrays), _next_column(arrays), _next_column(arrays)
    stage = _next_column(arrays).tolist() if head.stages else []
    if not all(0 <= work.slot < len(head.slots) for work in head.work):
        raise ValueError("an index is out of range")
    if stage and not 0 <= min(stage) <= max(stage) < len(head.stages):
        raise ValueError("an index is out of range")
    activities = tuple(_decode_activity(device, arrays) for device in head.devices)
    return Trace(
        head.slots, slot, start, end, thread, filled.astype(np.bool_), calls,
        steps=_interval_tuples(begins, ends),
        step_counts=tuple(counts.tolist()),
        modules=head.modules,
        carry_rel_sd=head.carry_rel_sd,
        events=head.events,
        cost_s=head.cost_s,
        windows=head.windows,
        activities=activities,
        untold_calls=frozenset(head.untold_calls),
        traced_steps=head.traced_steps,
        step_stages=tuple(head.stages[index] for index in stage),
        thread_busy=head.thread_busy,
        thread_between=head.thread_between,
        work=head.work,
    )  # fmt: skip


def _decode_activity(head: _StoredActivity, arrays: Iterator[IntArray]) -> Activity:
    slot, start, end, stream, filled, signature = _read_spans(arrays, len(head.slots), len(head.signatures))
    covered, steps = (
        _interval_tuples(_next_column(arrays), _next_column(arrays)),
        _interval_tuples(_next_column(arrays), _next_column(arrays)),
    )
    return Activity(
        head.device, head.slots, slot, start, end, stream, filled.astype(np.bool_), head.signatures, signature,
        covered, steps, head.notes,
    )  # fmt: skip


def _span_columns(
    slot: IntArray, start: IntArray, end: IntArray, thread: IntArray, filled: NDArray[np.bool_], labels: IntArray
) -> Iterator[IntArray]:
    """Yield the columns with small values: starts as differences from the previous span, ends as durations."""
    yield slot
    yield _differences(start)
    yield end - start
    yield thread
    yield filled.astype(np.int64)
    yield labels


def _read_spans(arrays: Iterator[IntArray], slots: int, signatures: int | None = None) -> tuple[IntArray, ...]:
    slot, steps, length, thread, filled, labels = (_next_column(arrays) for _ in range(6))
    start = np.cumsum(steps)
    for index, count in ((slot, slots), (labels, signatures)):
        if count is not None and len(index) and not 0 <= int(index.min()) <= int(index.max()) < count:
            raise ValueError("an index is out of range")
    return slot, start, start + length, thread, filled, labels


def _differences(values: IntArray) -> IntArray:
    return np.diff(values, prepend=np.int64(0)) if len(values) else values


def _interval_array(pairs: tuple[tuple[int, int], ...]) -> IntArray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _interval_tuples(begins: IntArray, ends: IntArray) -> tuple[tuple[int, int], ...]:
    return tuple(zip(begins.tolist(), ends.tolist(), strict=True))


def _pack_column(values: IntArray) -> bytes:
    """Return integers with the fewest bytes that their range needs; the first, which may be large, is stored apart."""
    first_value = int(values[0]) if len(values) else 0
    later_values = values[1:]
    low, high = (int(later_values.min()), int(later_values.max())) if len(later_values) else (0, 0)
    width = next(w for w in _WIDTHS if -(1 << (8 * w - 1)) <= low and high < 1 << (8 * w - 1))
    return _COLUMN_HEAD.pack(width, len(values), first_value) + later_values.astype(f"<i{width}").tobytes()


def _unpack_columns(data: bytes, at: int) -> Iterator[IntArray]:
    while at < len(data):
        if at + _COLUMN_HEAD.size > len(data):
            raise ValueError("a column is cut off")
        width, count, first_value = _COLUMN_HEAD.unpack_from(data, at)
        at += _COLUMN_HEAD.size
        if width not in _WIDTHS or at + width * max(count - 1, 0) > len(data):
            raise ValueError("a column is cut off")
        values = np.empty(count, dtype=np.int64)
        if count:
            values[0] = first_value
            values[1:] = np.frombuffer(data, f"<i{width}", count - 1, at)
            at += width * (count - 1)
        yield values
