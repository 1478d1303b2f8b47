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


def events_of(stream: IO[bytes], name: str, found: Found, block: int = BLOCK) -> Iterator[list[Event]]:
    """Yield the events of a trace, some thousands at a time.

    Raises:
        TraceError: The file is not a trace.
    """
    rest, listed = _opening(stream, name, found, block)
    reader = Salvage(found)
    while not found.complete:
        more = stream.read(block)
        rest += more
        if not more:
            yield _last(rest, reader, listed=listed)
            return
        cut = _cut(rest)
        if cut is not None:
            events, rest = cut
        else:
            events, used = reader.read(rest, last=False)
            rest = rest[used:]
        yield events
        if len(rest) > block + WAITING:  # an event without an end would fill the memory
            found.malformed += 1
            found.truncated = True
            return
    _read_tail(stream, rest, found)


def _opening(stream: IO[bytes], name: str, found: Found, block: int) -> tuple[bytes, bool]:
    """Return the data after the bracket that opens the events, and whether the file is a bare list of them."""
    data, looked = b"", 0
    while True:
        more = stream.read(max(block, len(data)))  # twice as much each time, so that a long head is not copied often
        data += more
        start = data[:_BLANK].lstrip(b"\xef\xbb\xbf \t\r\n")
        if not more and not start:
            raise TraceError(f"{name} is empty: export it again with torch.profiler's export_chrome_trace()")
        if start.startswith(b"["):
            return data[data.index(b"[") + 1 :], True
        if match := _OPENING.search(data, max(looked - _BLANK, 0)):
            found.head = head_of(data[: match.start()].rstrip(b", \t\r\n") + b"}") or found.head
            return data[match.end() :], False
        looked = len(data)
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
        found = list(_BORDER.finditer(data, max(len(data) - reach, 0)))
        if found or reach >= len(data):
            return found[: -CUTS - 1 : -1]
        reach *= 8


def _last(rest: bytes, reader: Salvage, *, listed: bool) -> list[Event]:
    """Decode the remainder of the file, with the fields that follow the events."""
    found = reader.found
    try:
        if listed:
            events = decode_events(b"[" + rest)
        else:
            tail = decode_tail(b'{"traceEvents":[' + rest)
            events, found.head = tail.events, merged(found.head, tail)
    except Refused:
        events, used = reader.read(rest, last=True)
        found.head = merged(found.head, head_of(b"{" + rest[used:].lstrip(b", \t\r\n")))
        found.truncated |= not found.complete
    found.complete |= not found.truncated
    return events


def _read_tail(stream: IO[bytes], rest: bytes, found: Found) -> None:
    rest += stream.read(HEAD_LIMIT)
    found.head = merged(found.head, head_of(b"{" + rest.lstrip(b", \t\r\n")))


def merged(first: Head, second: Head | None) -> Head:
    """Merge the fields before the events with those after them, which take precedence."""
    if second is None:
        return first
    return Head(
        second.base_ns if second.base_ns is not None else first.base_ns,
        second.distributed or first.distributed,
        second.devices or first.devices,
    )
