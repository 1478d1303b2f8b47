"""From decoded events to columns, block by block: an event lives no longer than its block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np

from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.tracing.traces.events import NO_ARGS, Args, Event
from torchwatt.tracing.traces.labels import MODULE_PREFIX, is_own, is_reserved
from torchwatt.tracing.traces.tables import ANNOTATION, COPY, FILL, KERNEL, MODULE, OWN

# torch 1.8 wrote the categories of its C++ types; since 1.12 they are lower case.
OPERATORS = ("cpu_op", "Operator")
LAUNCHES = (
    "cuda_runtime", "cuda_driver", "hip_runtime", "hip_driver", "Runtime",
    "xpu_runtime", "xpu_driver", "privateuse1_runtime", "privateuse1_driver",
)  # fmt: skip
RECORDS = {
    "kernel": KERNEL, "Kernel": KERNEL, "concurrent_kernel": KERNEL,
    "gpu_memcpy": COPY, "Memcpy": COPY, "gpu_memset": FILL, "Memset": FILL,
}  # fmt: skip
ANNOTATIONS = ("user_annotation", "annotation", "UserAnnotation")
PYTHON = ("python_function",)
FLOW = "fwdbwd"

LATEST_US = 9.0e15  # a time beyond (year 2255) is no time, and would not fit nanoseconds in 64 bits

Block = tuple[IntArray, ...]


class Codes(dict[Any, int]):
    """Gives every new key the next number."""

    def __missing__(self, key: Any) -> int:
        self[key] = code = len(self)
        return code


class Threads(dict[tuple[int | str, int | str], int]):
    """Numbers threads by (process, thread), however the two are written: 25738 and "25738" are one thread."""

    def __init__(self) -> None:
        self.known = Codes()

    def __missing__(self, key: tuple[int | str, int | str]) -> int:
        self[key] = code = self.known[_number(key[0]), _number(key[1])]
        return code

    def system_ids(self) -> tuple[int, ...]:
        """Return the operating system's number of each thread, -1 where it is a word."""
        return tuple(tid if isinstance(tid, int) else -1 for _, tid in self.known)


class Gathered:
    """Columns under construction."""

    def __init__(self) -> None:
        self.names = Codes()
        self.signatures = Codes()
        self.threads = Threads()
        self.streams = Codes()
        self.blocks: dict[str, list[Block]] = {k: [] for k in ("records", "launches", "ops", "ranges", "flows")}
        self.events = 0
        self.timeless = 0  # events whose time makes no sense

    def add(self, events: Sequence[Event]) -> None:
        """Take over one block."""
        self.events += len(events)
        groups: dict[str, list[Event]] = {}
        for event in events:
            try:
                groups[event.cat].append(event)
            except KeyError:
                groups[event.cat] = [event]
        for category, members in groups.items():
            if category in RECORDS:
                self._records([e for e in members if e.ph == "X"], RECORDS[category])
            elif category in OPERATORS:
                self._ops([e for e in members if e.ph == "X"])
            elif category in LAUNCHES:
                self._launches([e for e in members if e.ph == "X"])
            elif category in ANNOTATIONS:
                self._ranges([e for e in members if e.ph == "X"], ANNOTATION)
            elif category in PYTHON:
                self._ranges([e for e in members if e.name.startswith(MODULE_PREFIX)], MODULE)
            elif category == FLOW:
                self._flows(members)

    def _records(self, events: list[Event], kind: int) -> None:
        events, start, end = self._timed(events)
        args = _args(events)
        device = [a.device if a.device >= 0 else _number(e.pid) for a, e in zip(args, events, strict=True)]
        stream = [a.stream if a.stream != -1 else e.tid for a, e in zip(args, events, strict=True)]
        shape = ((e.name, bytes(a.grid), bytes(a.block)) for a, e in zip(args, events, strict=True))
        self.blocks["records"].append((
            np.array([d if isinstance(d, int) else -1 for d in device], dtype=np.int64),
            self._stream(stream),
            start,
            end,
            _ints(args, "correlation"),
            self._named(events),
            np.fromiter(map(self.signatures.__getitem__, shape), np.int64, len(events)),
            np.full(len(events), kind, dtype=np.int64),
            _ints(args, "graph_node"),
            np.array([bool(a.collective) for a in args], dtype=np.int64),
        ))  # fmt: skip

    def _launches(self, events: list[Event]) -> None:
        events, start, end = self._timed(events)
        args = _args(events)
        kernel = [self.names[_word(a.kernel)] if bytes(a.kernel) else -1 for a in args]
        self.blocks["launches"].append((
            self._thread(events), start, end, _ints(args, "correlation"), self._named(events),
            np.array(kernel, dtype=np.int64),
        ))  # fmt: skip

    def _ops(self, events: list[Event]) -> None:
        events, start, end = self._timed(events)
        args = _args(events)
        names = self._named(events)
        thread = self._thread(events)
        self.blocks["ops"].append((thread, start, end, names, _ints(args, "sequence"), _ints(args, "forward_thread")))
        # Before torch 1.11 annotations were written as operators; some, such as the optimizer's, are told by name.
        kept = np.flatnonzero(np.array([is_reserved(e.name) or is_own(e.name) for e in events], dtype=np.bool_))
        if len(kept):
            own = np.array([OWN if is_own(events[i].name) else ANNOTATION for i in kept], dtype=np.int64)
            self.blocks["ranges"].append((thread[kept], start[kept], end[kept], names[kept], own))

    def _ranges(self, events: list[Event], kind: int) -> None:
        events, start, end = self._timed(events)
        kinds = [OWN if kind == ANNOTATION and is_own(e.name) else kind for e in events]
        self.blocks["ranges"].append((
            self._thread(events), start, end, self._named(events), np.array(kinds, dtype=np.int64),
        ))  # fmt: skip

    def _flows(self, events: list[Event]) -> None:
        events, start, _ = self._timed(events)
        keys = [hash(e.id) >> 1 for e in events]
        arrives = [e.ph == "f" for e in events]
        self.blocks["flows"].append((
            self._thread(events), start, np.array(keys, dtype=np.int64), np.array(arrives, dtype=np.int64),
        ))  # fmt: skip

    def _timed(self, events: list[Event]) -> tuple[list[Event], IntArray, IntArray]:
        """Return the events whose times make sense, with start and end in ns."""
        ts, dur = _floats(events, "ts"), _floats(events, "dur")
        good = (np.abs(ts) < LATEST_US) & (dur >= 0) & (dur < LATEST_US / 100)  # false for nan
        if not good.all():
            self.timeless += int((~good).sum())
            events = [event for event, fine in zip(events, good, strict=True) if fine]
            ts, dur = ts[good], dur[good]
        start = ns_from_us(ts)
        return events, start, start + ns_from_us(dur)

    def _thread(self, events: list[Event]) -> IntArray:
        return np.array([self.threads[e.pid, e.tid] for e in events], dtype=np.int64)

    def _named(self, events: list[Event]) -> IntArray:
        get: Callable[[str], int] = self.names.__getitem__
        return np.fromiter(map(get, map(attrgetter("name"), events)), np.int64, len(events))

    def _stream(self, streams: Iterable[int | str]) -> IntArray:
        return np.array([s if isinstance(s, int) else _number(s, self.streams) for s in streams], dtype=np.int64)

    def columns(self, table: str, width: int) -> list[IntArray]:
        """Return the finished columns of one table."""
        blocks = self.blocks[table]
        if not blocks:
            return [np.zeros(0, dtype=np.int64) for _ in range(width)]
        return [np.concatenate(column) for column in zip(*blocks, strict=True)]


def ns_from_us(time_us: FloatArray) -> IntArray:
    """Convert to whole nanoseconds without losing digits: unix microseconds times 1000 do not fit a double."""
    whole = np.floor(time_us)
    return whole.astype(np.int64) * 1000 + np.rint((time_us - whole) * 1000).astype(np.int64)


def _args(events: list[Event]) -> list[Args]:
    return [event.args or NO_ARGS for event in events]


def _floats(events: list[Event], field: str) -> FloatArray:
    return np.fromiter(map(attrgetter(field), events), np.float64, len(events))


def _ints(args: list[Args], field: str) -> IntArray:
    get = attrgetter(field)
    try:
        return np.fromiter(map(get, args), np.int64, len(args))
    except OverflowError:  # beyond 64 bits: no number that could lead anywhere
        return np.array([v if abs(v) < 2**63 else -1 for v in map(get, args)], dtype=np.int64)


def _number(text: int | str, otherwise: Codes | None = None) -> Any:
    """Read "stream 7" or "25738" as a number; words stay words, or become negative numbers."""
    if isinstance(text, int):
        return text if abs(text) < 2**62 else -1
    digits = text.rsplit(" ", 1)[-1]
    if digits.isdecimal() and len(digits) < 19:
        return int(digits)
    return text if otherwise is None else -2 - otherwise[text]


def _word(raw: msgspec.Raw) -> str:
    try:
        return str(msgspec.json.decode(raw))
    except msgspec.DecodeError:
        return ""
