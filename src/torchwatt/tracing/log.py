"""The log of one thread: what the wrappers append, and its compact form."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from torchwatt.core.meter import IntArray

# key, start_ns, end_ns, first and next autograd sequence number, autograd graph task
Row = tuple[int, int, int, int, int, int]
KEY, START, END, SEQ0, SEQ1, TASK = range(6)

OPTIMIZER_KEY = -1
DATA_KEY = -2
UNKNOWN_KEY = -3
FIRST_SCOPE_KEY = -10  # scopes count down from here; modules count up from 1

FORWARD_TASK = -1  # what torch says outside a backward call
LIGHT_TASK = -2  # ours: an outermost call of a step whose modules were not traced

COMPACT_ROWS = 20_000  # at the end of a step
FORCE_ROWS = 100_000  # wherever we are


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """The autograd nodes of one backward call, one entry each, on our clock."""

    start_ns: IntArray
    end_ns: IntArray
    seq: IntArray  # -1: AccumulateGrad
    forward_thread: IntArray  # torch's small ids, not the operating system's
    thread: IntArray


@dataclass(slots=True, eq=False)
class Backward:
    """One outermost backward call and the positions in the log at its start and end."""

    start_ns: int
    end_ns: int
    first: int
    last: int
    light: bool
    nodes: Nodes | None = None
    cost_ns: int = 0  # of the window
    cache: dict[str, Any] = field(default_factory=dict)  # what assembly found out once


class Log:
    """Spans of one thread, appended by it alone; other threads may compact and read."""

    __slots__ = (
        "_chunks", "_compacted", "_lock", "backwards", "former", "ident", "inside", "opened", "rows", "steps",
        "tracers",
    )  # fmt: skip

    def __init__(self, ident: int) -> None:
        self.ident = ident
        self.rows: list[Row] = []
        self.backwards: list[Backward] = []
        self.steps: list[tuple[int, int, int]] = []  # optimizer steps: end_ns, start_ns, key of the optimizer
        self.opened: dict[int, int] = {}  # optimizer steps that have begun: id -> start_ns
        self.inside = False  # light mode: within an outermost call
        self.tracers: list[tuple[object, int]] = []  # those that were started on this thread: (tracer, start_ns)
        self.former: list[tuple[int, int]] = []  # start_ns and end_ns of those that have stopped
        self._chunks: list[IntArray] = []
        self._compacted = 0
        self._lock = threading.RLock()  # a finaliser of the user may run within

    def claimed(self, since_ns: int) -> bool:
        """Say whether a tracer ran on this thread after a moment: then its spans are that tracer's alone."""
        return bool(self.tracers) or any(end > since_ns for _, end in self.former)

    def total(self) -> int:
        """Return how many rows were ever appended."""
        with self._lock:
            return self._compacted + len(self.rows)

    def compact(self) -> None:
        """Move the tuples into an array: 48 bytes a row instead of about 300."""
        with self._lock:
            n = len(self.rows)
            if n:
                flat = chain.from_iterable(self.rows[:n])
                self._chunks.append(np.fromiter(flat, np.int64, 6 * n).reshape(n, 6))
                del self.rows[:n]
                self._compacted += n

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            for held in (self.rows, self.backwards, self.steps, self._chunks):
                held.clear()
            self._compacted = 0

    def table(self) -> IntArray:
        """Return all rows so far, one line each, in the order in which they ended."""
        self.compact()
        with self._lock:
            if len(self._chunks) > 1:
                self._chunks = [np.concatenate(self._chunks)]
            return self._chunks[0] if self._chunks else np.empty((0, 6), dtype=np.int64)
