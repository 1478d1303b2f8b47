"""Read a saved trace, plain or gzipped, into columns."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from torchwatt.core.errors import TraceError
from torchwatt.disk.path_safety import open_bounded_gzip, open_user_path
from torchwatt.kineto.column_builder import MAX_DEVICE, ColumnBuilder
from torchwatt.kineto.kineto_trace import DeviceRecords, FlowArrows, HostRanges, KinetoTrace, LaunchCalls, Operators
from torchwatt.kineto.trace_events import (
    DECODE_ERRORS,
    ReadState,
    TolerantReader,
    TraceEvent,
    TraceHead,
    decode_events,
    decode_tail,
    head_of,
)

BLOCK_BYTES = (
    1 << 18
)  # bytes decoded at a time: about a thousand events, which fit a core's cache; 8 MiB take twice as long
HEAD_LIMIT = 1 << 26  # the list of events must begin within that many bytes
MOST_BUFFERED_BYTES = 1 << 23  # bytes buffered for the end of an event: events have kilobytes
MOST_BORDERS = 16  # borders tried in a block before it is read event by event

_BLANK = 1 << 12  # bytes of white space allowed before the first bracket, or inside the opening
_BORDER = re.compile(rb"\}\s*,\s*(?=\{)")
_OPENING = re.compile(rb'"traceEvents"\s*:\s*\[')


def events_of(stream: IO[bytes], name: str, state: ReadState, block: int = BLOCK_BYTES) -> Iterator[list[TraceEvent]]:
    """Yield the events of a trace, some thousands at a time.

    Raises:
        TraceError: The file is not a trace.
    """
    buffer, listed = _read_opening(stream, name, state, block)
    reader = TolerantReader(state)
    while not state.complete:
        more = stream.read(block)
        buffer += more
        if not more:
            yield _last_events(buffer, reader, listed=listed)
            return
        cut = _cut(buffer)
        if cut is not None:
            events, buffer = cut
        else:
            events, used = reader.read(buffer, at_end=False)
            buffer = buffer[used:]
        yield events
        if len(buffer) > block + MOST_BUFFERED_BYTES:  # an event without an end would fill the memory
            state.malformed += 1
            state.truncated = True
            return
    _read_tail(stream, buffer, state)


def _read_opening(stream: IO[bytes], name: str, state: ReadState, block: int) -> tuple[bytes, bool]:
    """Return the data after the bracket that opens the events, and whether the file is a bare list of them."""
    data, searched = b"", 0
    while True:
        more = stream.read(max(block, len(data)))  # twice as much each time, so that a long head is not copied often
        data += more
        start = data[:_BLANK].lstrip(b"\xef\xbb\xbf \t\r\n")
        if not more and not start:
            raise TraceError(f"{name} is empty: export it again with torch.profiler's export_chrome_trace()")
        if start.startswith(b"["):
            return data[data.index(b"[") + 1 :], True
        if match := _OPENING.search(data, max(searched - _BLANK, 0)):
            state.head = head_of(data[: match.start()].rstrip(b", \t\r\n") + b"}") or state.head
            return data[match.end() :], False
        searched = len(data)
        if not more or len(data) > HEAD_LIMIT or (start and not start.startswith(b"{")):
            raise TraceError(
                f'{name} has no list "traceEvents": give a trace saved by torch.profiler (.json, .json.gz)'
            )


def _cut(data: bytes) -> tuple[list[TraceEvent], bytes] | None:
    """Decode up to the last border of two events; None where the decoder accepts no border."""
    for border in _borders(data):
        try:
            return decode_events(b"[" + data[: border.start() + 1] + b"]"), data[border.end() :]
        except DECODE_ERRORS:
            continue
    return None


def _borders(data: bytes) -> list[re.Match[bytes]]:
    """Return the last borders, last one first."""
    reach = 1 << 16
    while True:
        borders = list(_BORDER.finditer(data, max(len(data) - reach, 0)))
        if borders or reach >= len(data):
            return borders[: -MOST_BORDERS - 1 : -1]
        reach *= 8


def _last_events(buffer: bytes, reader: TolerantReader, *, listed: bool) -> list[TraceEvent]:
    """Decode the remainder of the file, with the fields that follow the events."""
    state = reader.state
    try:
        if listed:
            events = decode_events(b"[" + buffer)
        else:
            tail = decode_tail(b'{"traceEvents":[' + buffer)
            events, state.head = tail.events, merge_heads(state.head, tail)
    except DECODE_ERRORS:
        events, used = reader.read(buffer, at_end=True)
        state.head = merge_heads(state.head, head_of(b"{" + buffer[used:].lstrip(b", \t\r\n")))
        state.truncated |= not state.complete
    state.complete |= not state.truncated
    return events


def _read_tail(stream: IO[bytes], buffer: bytes, state: ReadState) -> None:
    buffer += stream.read(HEAD_LIMIT)
    state.head = merge_heads(state.head, head_of(b"{" + buffer.lstrip(b", \t\r\n")))


def merge_heads(head: TraceHead, tail: TraceHead | None) -> TraceHead:
    """Merge the fields before the events with those after them, which take precedence."""
    if tail is None:
        return head
    return TraceHead(
        tail.base_ns if tail.base_ns is not None else head.base_ns,
        tail.distributed or head.distributed,
        tail.devices or head.devices,
    )


_GZIP = b"\x1f\x8b"
# Without a base, times are unix microseconds; this is September 2001.
_UNIX_US = 10**15
# A base beyond the year 2096 is invalid; added to times of an event that are nearly as large it would not fit 64 bits.
LATEST_BASE_NS = 4 * 10**18
MERGED_SHARE = 100  # processes with less than this fraction (1/100) of another's calls are ignored
_MOST_RANKS = 10**7
_MOST_BYTES = 1 << 40  # the file is read block by block
# Names, times and numbers of an event take at least 10 bytes of an archive; fewer bytes mean artificial repetition.
LEAST_EVENT_BYTES, FREE_EVENTS = 4, 250_000


def read_trace(path: str | os.PathLike[str], *, block: int = BLOCK_BYTES) -> KinetoTrace:
    """Read a trace saved by torch.profiler (.json or .json.gz).

    A trace that is truncated or has malformed events is read as far as possible; `notes` have the omissions.

    Args:
        path: The file.
        block: Number of bytes decoded at a time.

    Raises:
        TraceError: The file cannot be read, is empty, is not a trace, or has the events of several processes.
    """
    name = Path(path).name
    state, gathered = ReadState(), ColumnBuilder()
    try:
        with _open_trace(Path(path)) as (stream, size):
            most_events = FREE_EVENTS + size // LEAST_EVENT_BYTES
            for events in _read_to_damage(events_of(stream, name, state, block), name, state):
                gathered.add(events)
                if gathered.events > most_events:
                    raise TraceError(f"{name} holds more events than {size} bytes can: no profiler wrote this file")
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror or error}") from error
    if not gathered.events:
        raise TraceError(f"{name} holds no complete event: export it again, and let the export finish")
    _refuse_merged(name, gathered)
    return _build_trace(name, state, gathered)


def _refuse_merged(name: str, gathered: ColumnBuilder) -> None:
    """Raise an error for a trace of several processes: their ids of correlations, streams and devices collide."""
    gathered.flush()
    several = max((_main_processes(calls) for calls in gathered.processes.values()), key=len, default=[])
    if len(several) > 1:
        names = ", ".join(sorted(map(str, several))[:8])
        raise TraceError(
            f"{name} holds the calls of {len(several)} processes ({names}), as a merge of several ranks does: "
            "kernels cannot be assigned to them. Give the trace of each rank, one --trace per rank"
        )


def _main_processes(calls: Mapping[int | str, int]) -> list[int | str]:
    """Return the processes of these calls; a process number with few calls is damage."""
    least = max(2, max(calls.values(), default=0) / MERGED_SHARE)
    return [process for process, count in calls.items() if count >= least]


@contextmanager
def _open_trace(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Yield the unpacked content of a trace, and the file's size in bytes."""
    with open_user_path(path, _MOST_BYTES) as plain:
        size = os.fstat(plain.fileno()).st_size
        zipped = plain.read(2) == _GZIP
        plain.seek(0)
        yield open_bounded_gzip(plain) if zipped else plain, size


def _read_to_damage(blocks: Iterator[list[TraceEvent]], name: str, state: ReadState) -> Iterator[list[TraceEvent]]:
    """Yield the blocks of a broken archive up to the damage."""
    any_yet = False
    while True:
        try:
            events = next(blocks, None)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if not any_yet:
                raise TraceError(f"the archive {name} is broken ({error}): compress or copy it again") from error
            state.truncated = True
            return
        if events is None:
            return
        any_yet |= bool(events)
        yield events


def _build_trace(name: str, state: ReadState, gathered: ColumnBuilder) -> KinetoTrace:
    gathered.flush()
    base, clock = _clock(state, gathered)
    notes = [*_notes(name, state, gathered)]
    if state.head.base_ns is not None and clock != "base":
        notes.append(f"baseTimeNanoseconds of {name} is no time of this age and is left out")
    records, launches, ops, ranges, flows = (
        gathered.columns(table, width)
        for table, width in (("records", 10), ("launches", 6), ("ops", 6), ("ranges", 5), ("flows", 4))
    )
    for times in (records[2], records[3], launches[1], launches[2], ops[1], ops[2], ranges[1], ranges[2], flows[1]):
        np.add(times, base, out=times)
    rank = state.head.distributed.get("rank")
    return KinetoTrace(
        source=name,
        names=tuple(gathered.names),
        signatures=tuple(_signature(*key) for key in gathered.signatures),
        threads=gathered.threads.system_ids(),
        records=DeviceRecords(*records),
        launches=LaunchCalls(*launches),
        ops=Operators(*ops),
        ranges=HostRanges(*ranges),
        flows=FlowArrows(*flows),
        events=gathered.events,
        clock=clock,
        rank=rank if isinstance(rank, int) and 0 <= rank < _MOST_RANKS else None,
        device_names=tuple(_devices(state)),
        notes=tuple(notes),
    )


def _devices(state: ReadState) -> Iterator[tuple[int, str]]:
    for device in state.head.devices:
        number = device.get("id")
        if isinstance(number, int) and 0 <= number <= MAX_DEVICE:
            yield number, str(device.get("name", ""))


def _clock(state: ReadState, gathered: ColumnBuilder) -> tuple[int, str]:
    """Return the offset of the times in ns, and its source."""
    if state.head.base_ns is not None and 0 <= state.head.base_ns < LATEST_BASE_NS:
        return state.head.base_ns, "base"
    starts = [
        block[at] for table, at in (("ops", 1), ("records", 2), ("launches", 1)) for block in gathered.blocks[table]
    ]
    middle = float(np.median(np.concatenate(starts))) if any(len(s) for s in starts) else 0.0
    return 0, "unix" if middle > _UNIX_US * 1000 else "unknown"


def _signature(name: str, grid: bytes, block: bytes) -> str:
    shape = " ".join(part.decode("utf-8", "replace").replace(" ", "") for part in (grid, block) if part)
    return f"{name} {shape}" if shape else name


def _notes(name: str, state: ReadState, gathered: ColumnBuilder) -> Iterator[str]:
    if state.truncated:
        yield f"{name} is cut short: its {gathered.events} complete events are used; let the export finish for the rest"
    if state.malformed:
        yield f"{state.malformed} events of {name} make no sense and are left out"
    if gathered.timeless:
        yield f"{gathered.timeless} events of {name} have no usable time and are left out"
