"""Read events one by one where the fast decoder refuses a block: odd numbers, wrong types, a truncated file."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from torchwatt.core.errors import TraceError
from torchwatt.tracing.traces.events import EMPTY, Event, Found, Head, Refused

MOST_MALFORMED = 50_000  # each is searched for in its block: a file of malformed events would take forever
LONGEST_EVENT = 1 << 20  # an event not closed within that many bytes is malformed, not truncated

_BORDER = re.compile(r"\}\s*,\s*(?=\{)")
_NEXT = re.compile(r"[\s,]*")
# Kineto has written inf and nan as C++ prints them, and Windows paths without escaping; neither is JSON.
_ODD_NUMBER = re.compile(r"(?<=[:\[,\s])-?(?:nan\(ind\)|inf|nan)(?=\s*[,}\]])")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})?')
_SCANNER = json.JSONDecoder(strict=False)
_RAW = {"grid", "block", "kernel"}  # kept as JSON
_WHOLE_NUMBERS = ("correlation", "Sequence number", "Fwd thread id", "device", "graph node id")


class Salvage:
    """Reads the events that can be interpreted; counts the others."""

    def __init__(self, state: Found) -> None:
        self.state = state

    def read(self, data: bytes, *, at_end: bool) -> tuple[list[Event], int]:
        """Return the complete events at the start of `data` and how many bytes they took.

        Stops at the bracket that closes the list (`found.complete`), or at an incomplete event. Bytes are decoded as
        Latin-1, so that positions in the text are positions in the file; names are corrected afterwards.
        """
        text = _repaired(data.decode("latin-1"))
        events: list[Event] = []
        at = 0
        while True:
            at = _skip(text, at)
            if at < len(text) and text[at] == "]":
                self.state.complete = True
                return events, at + 1
            try:
                value, end = _SCANNER.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                border = _BORDER.search(text, at)
                if border is None or (_cut_off(error, text) and not at_end):
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

    def _keep(self, value: Any, events: list[Event]) -> None:
        event = event_of(value)
        if event is None:
            self.state.malformed += 1
        else:
            events.append(event)


def event_of(value: Any) -> Event | None:
    """Return an event from decoded JSON; None if its fields are invalid."""
    if not isinstance(value, dict):
        return None
    fields = {key: _text(item) for key, item in value.items()}
    args = fields.get("args")
    plain = {k: _text(v) for k, v in args.items() if k not in _RAW} if isinstance(args, dict) else None
    for attempt in (plain, _whole(plain)):
        try:
            event = msgspec.convert({**fields, "args": attempt}, Event, strict=False)
        except (msgspec.ValidationError, OverflowError, RecursionError, UnicodeEncodeError):
            continue
        if isinstance(args, dict) and event.args is not None:
            for key in _RAW & args.keys():
                setattr(event.args, key, _raw(args[key]))
        return event
    return None


def _raw(value: Any) -> msgspec.Raw:
    try:
        return msgspec.Raw(msgspec.json.encode(_text(value)))
    except (RecursionError, UnicodeEncodeError, OverflowError, TypeError):
        return EMPTY


def head_of(data: bytes) -> Head | None:
    """Return the head of a trace; None if it is invalid."""
    try:
        return msgspec.json.decode(data, type=Head, strict=False)
    except Refused:
        base = re.search(rb'"baseTimeNanoseconds"\s*:\s*"?(\d{1,19})\b', data)
        return Head(int(base.group(1))) if base else None


def _whole(args: dict[str, Any] | None) -> dict[str, Any]:
    """Return the arguments that are integers."""
    limit = 2**63
    return {
        k: v
        for k, v in (args or {}).items()
        if k in _WHOLE_NUMBERS and isinstance(v, int) and not isinstance(v, bool) and -limit <= v < limit
    }


def _text(value: Any) -> Any:
    if isinstance(value, str) and not value.isascii():
        try:
            return value.encode("latin-1").decode("utf-8", "replace")
        except UnicodeEncodeError:  # was escaped in the file, and is already correct
            return value
    return value


def _repaired(text: str) -> str:
    """Replace invalid JSON by text of the same length, so that positions are kept."""
    text = _ODD_NUMBER.sub(lambda m: "NaN".rjust(len(m.group())), text)
    return _ESCAPE.sub(lambda m: m.group() if len(m.group()) > 1 else "/", text)


def _skip(text: str, at: int) -> int:
    match = _NEXT.match(text, at)
    return match.end() if match is not None else at


def _cut_off(error: Exception, text: str) -> bool:
    """Return whether an event fails only because the text ends here."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    ends = error.pos >= len(text) - 8  # a literal such as `false` may be cut in the middle
    return ends or (error.msg.startswith("Unterminated string") and error.pos >= len(text) - LONGEST_EVENT)
