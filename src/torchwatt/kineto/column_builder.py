"""Convert decoded events to columns, block by block; events are dropped with their block."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np

from torchwatt.core.errors import TraceError
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.kineto.kineto_trace import ANNOTATION, COPY, FILL, KERNEL, MODULE, OWN
from torchwatt.kineto.trace_events import DECODE_ERRORS, EMPTY, NO_ARGUMENTS, EventArguments, TraceEvent
from torchwatt.kineto.trace_labels import MODULE_PREFIX, is_own, is_reserved

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
CALL_CATEGORIES = frozenset((*OPERATORS, *LAUNCHES, *PYTHON))
USED_CATEGORIES = frozenset((*OPERATORS, *LAUNCHES, *RECORDS, *ANNOTATIONS, *PYTHON, FLOW))

BATCH = 1 << 11  # events converted at a time: numpy's overhead per call is small, and they still fit the cache

MAX_DEVICE = 2**16
# A time beyond (year 2128, in unix microseconds) is invalid; with a base added it would not fit 64 bits of nanoseconds.
LATEST_US = 5.0e15

ColumnBlock = tuple[IntArray, ...]

_phase, _name, _place = attrgetter("ph"), attrgetter("name"), attrgetter("pid", "tid")


class NameCodes(dict[Any, int]):
    """Numbers new keys in order."""

    def __missing__(self, key: Any) -> int:
        self[key] = code = len(self)
        return code


_MOST_THREADS = 1 << 16


class ThreadCodes(dict[tuple[int | str, int | str], int]):
    """Numbers threads by (process, thread), independent of type: 25738 and "25738" are one thread."""

    def __init__(self) -> None:
        self.known = NameCodes()

    def __missing__(self, key: tuple[int | str, int | str]) -> int:
        if len(self) >= _MOST_THREADS:
            raise TraceError(f"more than {_MOST_THREADS} threads: no profiler wrote this file")
        self[key] = code = self.known[_number(key[0]), _number(key[1])]
        return code

    def system_ids(self) -> tuple[int, ...]:
        """Return the operating system's number of each thread, -1 where it is not numeric."""
        return tuple(tid if isinstance(tid, int) else -1 for _, tid in self.known)


class ColumnBuilder:
    """Columns under construction."""

    def __init__(self) -> None:
        self.names = NameCodes()
        self.signatures = NameCodes()
        self.threads = ThreadCodes()
        self.streams = NameCodes()
        self.blocks: dict[str, list[ColumnBlock]] = {k: [] for k in ("records", "launches", "ops", "ranges", "flows")}
        self.events = 0
        self.timeless = 0  # events without a valid time
        self.processes: defaultdict[str, Counter[int | str]] = defaultdict(Counter)  # of operators, launches, modules
        self._waiting: dict[str, list[TraceEvent]] = {}

    def add(self, events: Sequence[TraceEvent]) -> None:
        """Add one block; events that no rule uses are dropped at once."""
        self.events += len(events)
        groups: defaultdict[str, list[TraceEvent]] = defaultdict(list)
        for event in events:
            groups[event.cat].append(event)
        for category in groups.keys() & USED_CATEGORIES:
            members = groups[category]
            if category in PYTHON:
                members = [event for event in members if event.name.startswith(MODULE_PREFIX)]
            elif category != FLOW and set(map(_phase, members)) != {"X"}:
                members = [event for event in members if event.ph == "X"]
            self._waiting.setdefault(category, []).extend(members)
        if sum(map(len, self._waiting.values())) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Convert waiting events to columns."""
        for category, members in self._waiting.items():
            if category in CALL_CATEGORIES:
                self.processes[category].update(event.pid for event in members if event.pid != -1)
            if category in RECORDS:
                self._records(members, RECORDS[category])
            elif category in OPERATORS:
                self._ops(members)
            elif category in LAUNCHES:
                self._launches(members)
            elif category == FLOW:
                self._flows(members)
            else:
                self._ranges(members, MODULE if category in PYTHON else ANNOTATION)
        self._waiting.clear()

    def _records(self, events: list[TraceEvent], kind: int) -> None:
        events, start, end = self._select_valid_times(events)
        args = _args(events)
        pairs = list(zip(args, events, strict=True))
        device = [a.device if 0 <= a.device <= MAX_DEVICE else _number(e.pid) for a, e in pairs]
        stream = [a.stream if a.stream != -1 else e.tid for a, e in pairs]
        shape = ((e.name, bytes(a.grid), bytes(a.block)) for a, e in pairs)
        self._put(
            "records",
            np.array([d if isinstance(d, int) else -1 for d in device], dtype=np.int64),
            np.array([_number(s, self.streams) for s in stream], dtype=np.int64),
            start,
            end,
            _ints(args, "correlation"),
            self._number_names(events),
            np.fromiter(map(self.signatures.__getitem__, shape), np.int64, len(events)),
            np.full(len(events), kind, dtype=np.int64),
            _ints(args, "graph_node"),
            np.array([a.collective != "" for a in args], dtype=np.int64),
        )

    def _launches(self, events: list[TraceEvent]) -> None:
        events, start, end = self._select_valid_times(events)
        args = _args(events)
        kernel = [self.names[_word(raw)] if raw is not EMPTY else -1 for raw in map(attrgetter("kernel"), args)]
        self._put(
            "launches",
            self._thread(events),
            start,
            end,
            _ints(args, "correlation"),
            self._number_names(events),
            np.array(kernel, dtype=np.int64),
        )

    def _ops(self, events: list[TraceEvent]) -> None:
        events, start, end = self._select_valid_times(events)
        args = _args(events)
        sequence, forward = _ints(args, "sequence"), _ints(args, "forward_thread")
        self._put("ops", self._thread(events), start, end, self._number_names(events), sequence, forward)

    def _ranges(self, events: list[TraceEvent], kind: int) -> None:
        events, start, end = self._select_valid_times(events)
        kinds = [OWN if kind == ANNOTATION and is_own(event.name) else kind for event in events]
        self._put(
            "ranges", self._thread(events), start, end, self._number_names(events), np.array(kinds, dtype=np.int64)
        )

    def _flows(self, events: list[TraceEvent]) -> None:
        events, start, _ = self._select_valid_times(events)
        keys = np.array([hash(event.id) >> 1 for event in events], dtype=np.int64)
        arrives = np.array([event.ph == "f" for event in events], dtype=np.int64)
        self._put("flows", self._thread(events), start, keys, arrives)

    def _put(self, table: str, *columns: IntArray) -> None:
        self.blocks[table].append(columns)

    def _select_valid_times(self, events: list[TraceEvent]) -> tuple[list[TraceEvent], IntArray, IntArray]:
        """Return the events with valid times, with start and end in ns."""
        ts, dur = _floats(events, "ts"), _floats(events, "dur")
        good = (np.abs(ts) < LATEST_US) & (dur >= 0) & (dur < LATEST_US / 100)  # false for nan
        if not good.all():
            self.timeless += int((~good).sum())
            events = [event for event, fine in zip(events, good, strict=True) if fine]
            ts, dur = ts[good], dur[good]
        start = ns_from_us(ts)
        return events, start, start + ns_from_us(dur)

    def _thread(self, events: list[TraceEvent]) -> IntArray:
        return np.fromiter(map(self.threads.__getitem__, map(_place, events)), np.int64, len(events))

    def _number_names(self, events: list[TraceEvent]) -> IntArray:
        return np.fromiter(map(self.names.__getitem__, map(_name, events)), np.int64, len(events))

    def columns(self, table: str, width: int) -> list[IntArray]:
        """Return the finished columns of one table."""
        self.flush()
        blocks = self.blocks[table]
        if table == "ranges":
            blocks = [*blocks, self._named_by_torch()]
        if not blocks:
            return [np.zeros(0, dtype=np.int64) for _ in range(width)]
        return [np.concatenate(column) for column in zip(*blocks, strict=True)]

    def _named_by_torch(self) -> ColumnBlock:
        """Return the ranges among the operators.

        Before torch 1.11 annotations were written as operators; those of optimizers, loaders, steps and torchwatt are
        recognised by name.
        """
        thread, start, end, name = self.columns("ops", 6)[:4]
        kind = [OWN if is_own(n) else ANNOTATION if is_reserved(n) else -1 for n in self.names]
        kinds = np.array([*kind, -1], dtype=np.int64)[name]
        is_range = kinds >= 0
        return thread[is_range], start[is_range], end[is_range], name[is_range], kinds[is_range]


def ns_from_us(time_us: FloatArray) -> IntArray:
    """Convert to whole nanoseconds without losing digits: unix microseconds times 1000 do not fit a double."""
    whole_us = np.floor(time_us)
    return whole_us.astype(np.int64) * 1000 + np.rint((time_us - whole_us) * 1000).astype(np.int64)


def _args(events: list[TraceEvent]) -> list[EventArguments]:
    return [event.args or NO_ARGUMENTS for event in events]


def _floats(events: list[TraceEvent], field: str) -> FloatArray:
    return np.fromiter(map(attrgetter(field), events), np.float64, len(events))


def _ints(args: list[EventArguments], field: str) -> IntArray:
    get = attrgetter(field)
    try:
        return np.fromiter(map(get, args), np.int64, len(args))
    except OverflowError:  # beyond 64 bits: invalid
        return np.array([v if abs(v) < 2**63 else -1 for v in map(get, args)], dtype=np.int64)


def _number(text: int | str, otherwise: NameCodes | None = None) -> Any:
    """Read "stream 7" or "25738" as a number; other text stays text, or becomes a negative number."""
    if isinstance(text, int):
        return text if abs(text) < 2**62 else -1
    digits = text.rsplit(" ", 1)[-1]
    if digits.isdecimal() and len(digits) < 19:
        return int(digits)
    return text if otherwise is None else -2 - otherwise[text]


def _word(raw: msgspec.Raw) -> str:
    try:
        return str(msgspec.json.decode(raw))
    except DECODE_ERRORS:
        return ""
