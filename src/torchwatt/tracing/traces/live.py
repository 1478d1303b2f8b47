"""Ranges that a live session recorded itself, with the sequence numbers that autograd assigned during each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from torchwatt.core.errors import TraceError
from torchwatt.core.meter import IntArray
from torchwatt.core.terms import Slot
from torchwatt.tracing.ranges import NOBODY
from torchwatt.tracing.traces.tables import Kineto


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """Columns of equal length, in order of the ends of calls (of two equal ranges the first is the inner one).

    `thread` is the operating system's number, times are unix nanoseconds like the trace's, `[seq0, seq1)` are the
    sequence numbers assigned during the call, and `slot` points into `slots`.
    """

    thread: IntArray
    start_ns: IntArray
    end_ns: IntArray
    seq0: IntArray
    seq1: IntArray
    slot: IntArray
    slots: tuple[Slot, ...] = ()

    def __post_init__(self) -> None:
        if len({len(c) for c in (self.thread, self.start_ns, self.end_ns, self.seq0, self.seq1, self.slot)}) > 1:
            raise TraceError("columns of recorded ranges differ in length")

    def on(self, trace: Kineto, number_of: Callable[[Slot], int]) -> tuple[IntArray, IntArray]:
        """Return each range's thread as numbered in the trace, and its slot as numbered by `number_of`."""
        codes = {tid: code for code, tid in enumerate(trace.threads)}
        numbers = np.array([number_of(slot) for slot in self.slots] or [NOBODY], dtype=np.int64)
        # A thread that is not in the trace launched nothing: any unused number is suitable.
        thread = [codes.get(tid, -2 - i) for i, tid in enumerate(self.thread.tolist())]
        return np.array(thread, dtype=np.int64), numbers[self.slot]


_NONE = np.zeros(0, dtype=np.int64)
NO_LIVE = Live(_NONE, _NONE, _NONE, _NONE, _NONE, _NONE)
