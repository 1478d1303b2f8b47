"""Read a trace of any length block by block, cut between events, so that memory stays bounded.

A block is cut where a closing and an opening brace meet. The decoder decides whether that is a border of two events or
lies inside one (in a name, in nested arguments): a prefix cut anywhere else is not valid JSON. Blocks that it refuses
are read event by event (`salvage`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

from torchwatt.core.errors import TraceError
from torchwatt.tracing.traces.events import Event, Found, Head, Refused, decode_events, decode_tail
from torchwatt.tracing.traces.salvage import Salvage, head_of

BLOCK = 1 << 18  # bytes decoded at a time: about a thousand events, which fit a core's cache; 8 MiB take twice as long
HEAD_LIMIT = 1 << 26  # the list of events must begin within that many bytes
WAITING = 1 << 23  # bytes buffered for the end of an event: events have kilobytes
CUTS = 16  # borders tried in a block before it is read event by event

_BLANK = 1 << 12  # bytes of white space allowed before the first bracket, or inside the opening
_BORDER = re.compile(rb"\}\s*,\s*(?=\{)")
_OPENING = re.compile(rb'"traceEvents"\s*:\s*\[')


def events_of(stream: IO[bytes], name: str, state: Found, block: int = BLOCK) -> Iterator[list[Event]]:
    """Yield the events of a trace, some thousands at a time.

    Raises:
        TraceError: The file is not a trace.
    """
    buffer, listed = _opening(stream, name, state, block)
    reader = Salvage(state)
    while not state.complete:
        more = stream.read(block)
        buffer += more
        if not more:
            yield _last(buffer, reader, listed=listed)
            return
        cut = _cut(buffer)
        if cut is not None:
            events, buffer = cut
        else:
            events, used = reader.read(buffer, at_end=False)
            buffer = buffer[used:]
        yield events
        if len(buffer) > block + WAITING:  # an event without an end would fill the memory
            state.malformed += 1
            state.truncated = True
            return
    _read_tail(stream, buffer, state)


def _opening(stream: IO[bytes], name: str, state: Found, block: int) -> tuple[bytes, bool]:
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


def _cut(data: bytes) -> tuple[list[Event], bytes] | None:
    """Decode up to the last border of two events; None where the decoder accepts no border."""
    for border in _borders(data):
        try:
            return decode_events(b"[" + data[: border.start() + 1] + b"]"), data[border.end() :]
        except Refused:
            continue
    return None


def _borders(data: bytes) -> list[re.Match[bytes]]:
    """Return the last borders, last one first."""
    reach = 1 << 16
    while True:
        borders = list(_BORDER.finditer(data, max(len(data) - reach, 0)))
        if borders or reach >= len(data):
            return borders[: -CUTS - 1 : -1]
        reach *= 8


def _last(buffer: bytes, reader: Salvage, *, listed: bool) -> list[Event]:
    """Decode the remainder of the file, with the fields that follow the events."""
    state = reader.state
    try:
        if listed:
            events = decode_events(b"[" + buffer)
        else:
            tail = decode_tail(b'{"traceEvents":[' + buffer)
            events, state.head = tail.events, merged(state.head, tail)
    except Refused:
        events, used = reader.read(buffer, at_end=True)
        state.head = merged(state.head, head_of(b"{" + buffer[used:].lstrip(b", \t\r\n")))
        state.truncated |= not state.complete
    state.complete |= not state.truncated
    return events


def _read_tail(stream: IO[bytes], buffer: bytes, state: Found) -> None:
    buffer += stream.read(HEAD_LIMIT)
    state.head = merged(state.head, head_of(b"{" + buffer.lstrip(b", \t\r\n")))


def merged(head: Head, tail: Head | None) -> Head:
    """Merge the fields before the events with those after them, which take precedence."""
    if tail is None:
        return head
    return Head(
        tail.base_ns if tail.base_ns is not None else head.base_ns,
        tail.distributed or head.distributed,
        tail.devices or head.devices,
    )
