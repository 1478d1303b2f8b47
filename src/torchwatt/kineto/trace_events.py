"""One event of a Kineto trace, with the fields that the join needs, decoded into types."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from torchwatt.core.errors import TraceError

EMPTY = msgspec.Raw(b"")


class EventArguments(msgspec.Struct, gc=False):
    """The arguments of an event that the join reads; all others are skipped by the decoder.

    Grids, blocks and a HIP launch's kernel name stay raw JSON: they are compared, and rarely decoded.
    """

    correlation: int = -1
    sequence: int = msgspec.field(default=-1, name="Sequence number")
    forward_thread: int = msgspec.field(default=0, name="Fwd thread id")
    device: int = -1
    stream: int | str = -1
    grid: msgspec.Raw = EMPTY
    block: msgspec.Raw = EMPTY
    kernel: msgspec.Raw = EMPTY  # ROCm names the kernel at its launch
    graph_node: int = msgspec.field(default=-1, name="graph node id")
    collective: str = msgspec.field(default="", name="Collective name")


NO_ARGUMENTS = EventArguments()


class TraceEvent(msgspec.Struct, gc=False):
    """One event; times in microseconds as written. Threads and devices are numbers or words, by torch's version."""

    ph: str = ""
    cat: str = ""
    name: str = ""
    pid: int | str = -1
    tid: int | str = -1
    ts: float = float("nan")
    dur: float = 0.0
    id: int | str = -1
    args: EventArguments | None = None


class TraceHead(msgspec.Struct):
    """The fields of a trace beside its events."""

    base_ns: int | None = msgspec.field(default=None, name="baseTimeNanoseconds")
    distributed: dict[str, object] = msgspec.field(default_factory=dict, name="distributedInfo")
    devices: list[dict[str, object]] = msgspec.field(default_factory=list, name="deviceProperties")


class TraceTail(TraceHead):
    """The last block of a file: its remaining events and the fields that follow them."""

    events: list[TraceEvent] = msgspec.field(default_factory=list, name="traceEvents")


@dataclass(slots=True)
class ReadState:
    """Results of reading a file besides its events."""

    head: TraceHead = field(default_factory=TraceHead)
    malformed: int = 0  # events that cannot be interpreted and were left out
    truncated: bool = False  # the file ends inside its events
    complete: bool = False  # the end of the list of events was reached


# Errors of decoders for invalid JSON, which includes excessive nesting. The last one also covers integers with more
# digits than Python converts, and text with half a surrogate pair.
DECODE_ERRORS = (msgspec.DecodeError, RecursionError, ValueError)

decode_events = msgspec.json.Decoder(list[TraceEvent]).decode
decode_tail = msgspec.json.Decoder(TraceTail).decode


MOST_MALFORMED = 50_000  # each is searched for in its block: a file of malformed events would take forever
LONGEST_EVENT = 1 << 20  # an event not closed within that many bytes is malformed, not truncated

_TEXT_BORDER = re.compile(r"\}\s*,\s*(?=\{)")
_SEPARATOR = re.compile(r"[\s,]*")
# Kineto has written inf and nan as C++ prints them, and Windows paths without escaping; neither is JSON.
_ODD_NUMBER = re.compile(r"(?<=[:\[,\s])-?(?:nan\(ind\)|inf|nan)(?=\s*[,}\]])")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})?')
_SCANNER = json.JSONDecoder(strict=False)
_RAW = {"grid", "block", "kernel"}  # kept as JSON
_WHOLE_NUMBERS = ("correlation", "Sequence number", "Fwd thread id", "device", "graph node id")


class TolerantReader:
    """Reads the events that can be interpreted; counts the others."""

    def __init__(self, state: ReadState) -> None:
        self.state = state

    def read(self, data: bytes, *, at_end: bool) -> tuple[list[TraceEvent], int]:
        """Return the complete events at the start of `data` and how many bytes they took.

        Stops at the bracket that closes the list (`found.complete`), or at an incomplete event. Bytes are decoded as
        Latin-1, so that positions in the text are positions in the file; names are corrected afterwards.
        """
        text = _repair(data.decode("latin-1"))
        events: list[TraceEvent] = []
        at = 0
        while True:
            at = _skip_separators(text, at)
            if at < len(text) and text[at] == "]":
                self.state.complete = True
                return events, at + 1
            try:
                value, end = _SCANNER.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                border = _TEXT_BORDER.search(text, at)
                if border is None or (_is_cut_off(error, text) and not at_end):
                    return events, at
                self.state.malformed += 1
                if self.state.malformed > MOST_MALFORMED:
                    raise TraceError(
                        f"more than {MOST_MALFORMED} events make no sense: export the trace again"
                    ) from error
                at = border.end()
                continue
            self._keep(value, events)
            at = end

    def _keep(self, value: Any, events: list[TraceEvent]) -> None:
        event = event_of(value)
        if event is None:
            self.state.malformed += 1
        else:
            events.append(event)


def event_of(value: Any) -> TraceEvent | None:
    """Return an event from decoded JSON; None if its fields are invalid."""
    if not isinstance(value, dict):
        return None
    fields = {key: _decode_text(item) for key, item in value.items()}
    args = fields.get("args")
    plain = {k: _decode_text(v) for k, v in args.items() if k not in _RAW} if isinstance(args, dict) else None
    for attempt in (plain, _integer_arguments(plain)):
        try:
            event = msgspec.convert({**fields, "args": attempt}, TraceEvent, strict=False)
        except (msgspec.ValidationError, OverflowError, RecursionError, UnicodeEncodeError):
            continue
        if isinstance(args, dict) and event.args is not None:
            for key in _RAW & args.keys():
                setattr(event.args, key, _raw(args[key]))
        return event
    return None


def _raw(value: Any) -> msgspec.Raw:
    try:
        return msgspec.Raw(msgspec.json.encode(_decode_text(value)))
    except (RecursionError, UnicodeEncodeError, OverflowError, TypeError):
        return EMPTY


def head_of(data: bytes) -> TraceHead | None:
    """Return the head of a trace; None if it is invalid."""
    try:
        return msgspec.json.decode(data, type=TraceHead, strict=False)
    except DECODE_ERRORS:
        base = re.search(rb'"baseTimeNanoseconds"\s*:\s*"?(\d{1,19})\b', data)
        return TraceHead(int(base.group(1))) if base else None


def _integer_arguments(args: dict[str, Any] | None) -> dict[str, Any]:
    """Return the arguments that are integers."""
    limit = 2**63
    return {
        k: v
        for k, v in (args or {}).items()
        if k in _WHOLE_NUMBERS and isinstance(v, int) and not isinstance(v, bool) and -limit <= v < limit
    }


def _decode_text(value: Any) -> Any:
    if isinstance(value, str) and not value.isascii():
        try:
            return value.encode("latin-1").decode("utf-8", "replace")
        except UnicodeEncodeError:  # was escaped in the file, and is already correct
            return value
    return value


def _repair(text: str) -> str:
    """Replace invalid JSON by text of the same length, so that positions are kept."""
    text = _ODD_NUMBER.sub(lambda m: "NaN".rjust(len(m.group())), text)
    return _ESCAPE.sub(lambda m: m.group() if len(m.group()) > 1 else "/", text)


def _skip_separators(text: str, at: int) -> int:
    match = _SEPARATOR.match(text, at)
    return match.end() if match is not None else at


def _is_cut_off(error: Exception, text: str) -> bool:
    """Return whether an event fails only because the text ends here."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    ends = error.pos >= len(text) - 8  # a literal such as `false` may be cut in the middle
    return ends or (error.msg.startswith("Unterminated string") and error.pos >= len(text) - LONGEST_EVENT)
