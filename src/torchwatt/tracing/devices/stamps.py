"""When a device was done with each step: the host runs ahead of it, by milliseconds or by many steps.

A CUDA event is put into the queue where the host ends a step, and looked at when it has passed. Events tell how long
after another they passed, on the device's clock; anchors, events on an empty stream of their own that pass at once, tie
that clock to the host's again and again, since the two drift apart.
"""

from __future__ import annotations

import threading
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.instants import interpolate
from torchwatt.core.meter import FloatArray, IntArray

MOST_PENDING = 256  # events that have not passed; then steps go without
MOST_STAMPS = 20_000  # beyond, every second one is dropped
ANCHOR_EVERY_NS = 5_000_000_000  # clocks drift by some parts in a million, and evenly
BOUND_NS = 100_000  # less than this behind the host is within the error of the clocks
JOINED_NS = 1_000_000  # between two steps the host is seldom away for less to do something else on the device
ANCHOR_PATIENCE_NS = 200_000  # an anchor that did not pass at once says nothing

# What ended there: a step, or a call outside any other, which is a step where nothing else marks steps.
Kind = Literal["step", "call"]
Step = tuple[int, int, int]  # start_ns, end_ns and how many, of the host


class Events(Protocol):
    """The device's own clock, by events."""

    def record(self, *, apart: bool = False) -> Any:
        """Put an event behind the work that the host has queued, or apart from it."""

    def passed(self, event: Any) -> bool:
        """Say whether the device has got there, without waiting."""

    def ns_between(self, first: Any, second: Any) -> float:
        """Return the device's nanoseconds from one event to another; both have passed."""


class Busy(NamedTuple):
    """One stretch of a device's time in which it did a number of steps; `bound`: it began with work in its queue."""

    start_ns: int
    end_ns: int
    steps: int
    bound: bool


@dataclass(frozen=True, slots=True, eq=False)
class Stamped:
    """When the host ended something, how long after that the device did, in ns, and whether it was a call."""

    host_ns: IntArray
    lag_ns: FloatArray
    call: NDArray[np.bool_]


NO_STAMPS = Stamped(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype=np.bool_))


class Stamps:
    """Pairs of the host's and the device's ends, all on the host's clock in the end.

    One thread stamps, others may look at what is known. Only what stamps, and the end of a session, asks the device.
    """

    def __init__(self, events: Events, clock_ns: Callable[[], int]) -> None:
        self._events, self._clock_ns = events, clock_ns
        self._asking = threading.Lock()
        self._pending: deque[tuple[int, bool, Any]] = deque()
        self._last: tuple[Any, float] | None = None  # an event that has passed, and when on the device's clock
        self._host, self._call, self._device = array("q"), array("b"), array("d")
        self._anchors: tuple[array[float], array[int]] = array("d"), array("q")  # device's clock, host's clock
        self._still = array("q")  # when the host had waited for the device
        self._anchored_ns = -ANCHOR_EVERY_NS
        self._every, self._skipped = 1, 0

    def mark(self, kind: Kind = "step") -> bool:
        """Note that the host ends something here; returns whether that was all, and no anchor beside it."""
        now = self._clock_ns()
        with self._asking:
            self._settle()
            if anchored := now - self._anchored_ns >= ANCHOR_EVERY_NS:
                self._anchor(now)
            self._skipped += 1
            if self._last is None or self._skipped < self._every or len(self._pending) >= MOST_PENDING:
                return not anchored
            event = self._events.record()
            self._pending.append((self._clock_ns(), kind == "call", event))
            self._skipped = 0
            return not anchored

    def still(self) -> None:
        """Note that the device has done all there is: the host has waited for it."""
        self._still.append(self._clock_ns())

    def settle(self) -> None:
        """Read the events that have passed; where the thread that stamps is about to, that does it."""
        if self._asking.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._asking.release()

    def _settle(self) -> None:
        while self._pending and self._events.passed(self._pending[0][2]):
            host_ns, call, event = self._pending.popleft()
            self._device.append(self._read(event))
            self._call.append(call)
            self._host.append(host_ns)  # the last: who looks meanwhile sees whole entries only
        if len(self._host) > MOST_STAMPS:
            self._host, self._call, self._device = self._host[1::2], self._call[1::2], self._device[1::2]
            self._every *= 2

    def _anchor(self, now: int) -> None:
        self._anchored_ns = now
        before = self._clock_ns()
        event = self._events.record(apart=True)
        while not self._events.passed(event):
            if self._clock_ns() - before > ANCHOR_PATIENCE_NS:
                return
        after = self._clock_ns()
        self._anchors[0].append(self._read(event))
        self._anchors[1].append((before + after) // 2)

    def _read(self, event: Any) -> float:
        """Return when an event passed, counted from the one before: a long time would lose digits."""
        device_ns = 0.0
        if self._last is not None:
            device_ns = self._last[1] + self._events.ns_between(self._last[0], event)
        self._last = event, device_ns
        return device_ns

    def known(self) -> Stamped:
        """Return what is known by now; asks nothing of the device, so any thread may."""
        with self._asking:
            columns = self._host[:], self._device[:], self._call[:], self._anchors[0][:], self._anchors[1][:]
            still = np.array(self._still[:], dtype=np.int64)
        host, call = np.array(columns[0], dtype=np.int64), np.array(columns[2], dtype=np.bool_)
        device, at = np.array(columns[3], dtype=np.float64), np.array(columns[4], dtype=np.float64)
        if not len(host) or not len(device):
            return NO_STAMPS
        on_host = _line(np.array(columns[1]), device, at - at[0])
        lag = np.maximum(on_host - (host - at[0]), 0.0)
        # A moment of stillness is no step's end: as a call where steps are matched, it is matched by none.
        host, lag = np.append(host, still), np.append(lag, np.zeros(len(still)))
        order = np.argsort(host, kind="stable")
        return Stamped(host[order], lag[order], np.append(call, np.ones(len(still), dtype=np.bool_))[order])


def _line(x: FloatArray, known_x: FloatArray, known_y: FloatArray) -> FloatArray:
    """Interpolate; beyond the ends both clocks are taken to run alike."""
    inside: FloatArray = np.interp(x, known_x, known_y)
    line: FloatArray = inside + np.minimum(x - known_x[0], 0.0) + np.maximum(x - known_x[-1], 0.0)
    return line


def on_device(steps: Sequence[Step], stamped: Stamped, now_ns: int, *, calls: bool = False) -> list[Busy]:
    """Return when a device did each of the host's steps, in order.

    It begins when the host does, or when it is done with what came before, or at the end of what came just before: a
    reading whose window lies across two steps is watched all the time. It ends at the step's own stamp, or, where
    that was left out, as long after the host as at the stamps around.

    Args:
        steps: Of the host, sorted.
        stamped: When the host ended what, and how long after that the device did.
        now_ns: What ends later has not ended yet.
        calls: Whether the steps are calls outside any other.
    """
    if not len(stamped.host_ns) or not steps:
        return [Busy(start, end, n, bound=False) for start, end, n in steps]
    starts = np.array([start for start, *_ in steps] + [np.iinfo(np.int64).max], dtype=np.int64)
    ends = np.array([end for _, end, _ in steps], dtype=np.int64)
    own = np.append(stamped.host_ns[stamped.call == calls], np.iinfo(np.int64).max)
    stamp = own[np.searchsorted(own[:-1], ends)]
    at = np.where((stamp <= starts[1:]) & (stamp < own[-1]), stamp, ends)
    behind = at + interpolate(at, stamped.host_ns, stamped.lag_ns).astype(np.int64)
    done = np.minimum(np.maximum.accumulate(behind), now_ns)
    found, free_ns = [], -JOINED_NS
    for (start, end, n), end_ns in zip(steps, done.tolist(), strict=True):
        begin = free_ns if start - free_ns < JOINED_NS else start
        free_ns = max(end_ns, begin, min(end, now_ns))
        found.append(Busy(begin, free_ns, n, bound=begin - start > BOUND_NS))
    return found


def whole(found: Sequence[Busy]) -> list[Step]:
    """Return steps of some length: what has no time of its own yet is counted with its neighbour."""
    kept: list[Step] = []
    rest = 0
    for busy in found:
        if busy.end_ns > busy.start_ns:
            kept.append((busy.start_ns, busy.end_ns, busy.steps + rest))
            rest = 0
        elif kept:
            start, end, n = kept[-1]
            kept[-1] = start, end, n + busy.steps
        else:
            rest += busy.steps
    return kept
