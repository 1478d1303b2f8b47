"""Determine when a device finished each step: it runs behind the host, by milliseconds or by many steps.

A CUDA event is queued where the host ends a step, and read when it has passed. Events give the time between each
other, on the device's clock; anchors, events on a separate empty stream that pass at once, align that clock with the
host's repeatedly, since the two drift apart.
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

MOST_PENDING = 256  # events that have not passed; beyond, steps are not stamped
MOST_STAMPS = 20_000  # beyond, every second one is dropped
ANCHOR_EVERY_NS = 5_000_000_000  # clocks drift by some parts in a million, and steadily
BOUND_NS = 100_000  # a shorter lag behind the host is within the error of the clocks
JOINED_NS = 1_000_000  # in a shorter gap between two steps the host seldom queues other work
ANCHOR_PATIENCE_NS = 200_000  # an anchor that did not pass at once is discarded

# What ended: a step, or an outermost call, which is a step where nothing else marks steps.
Kind = Literal["step", "call"]
Step = tuple[int, int, int]  # host's start_ns, end_ns and number of steps


class Events(Protocol):
    """The device's own clock, read by events."""

    def record(self, *, separate: bool = False) -> Any:
        """Record an event behind the work that the host has queued, or on a separate stream."""

    def passed(self, event: Any) -> bool:
        """Return whether the device has reached an event, without waiting."""

    def ns_between(self, start: Any, end: Any) -> float:
        """Return the device's time between two events that have passed, in ns."""


class Busy(NamedTuple):
    """An interval in which a device did a number of steps; `bound`: it began with work in its queue."""

    start_ns: int
    end_ns: int
    steps: int
    bound: bool


@dataclass(frozen=True, slots=True, eq=False)
class Stamped:
    """Ends on the host, the device's lag behind each in ns, and whether each was a call."""

    host_ns: IntArray
    lag_ns: FloatArray
    call: NDArray[np.bool_]


NO_STAMPS = Stamped(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype=np.bool_))


class Stamps:
    """Pairs of the host's and the device's ends, on the host's clock.

    One thread stamps; others may call `known`. Only the stamping thread and the end of a session query the device.
    """

    def __init__(self, events: Events, clock_ns: Callable[[], int]) -> None:
        self._events, self._clock_ns = events, clock_ns
        self._reading = threading.Lock()
        self._pending: deque[tuple[int, bool, Any]] = deque()
        self._latest: tuple[Any, float] | None = None  # an event that has passed, and its time on the device's clock
        self._host, self._call, self._device = array("q"), array("b"), array("d")
        self._anchors: tuple[array[float], array[int]] = array("d"), array("q")  # device's clock, host's clock
        self._still = array("q")  # times when the host had waited for the device
        self._anchored_ns = -ANCHOR_EVERY_NS
        self._every, self._skipped = 1, 0

    def mark(self, kind: Kind = "step") -> bool:
        """Record an end on the host; return whether no anchor was recorded as well."""
        now_ns = self._clock_ns()
        with self._reading:
            self._settle()
            if anchored := now_ns - self._anchored_ns >= ANCHOR_EVERY_NS:
                self._anchor(now_ns)
            self._skipped += 1
            if self._latest is None or self._skipped < self._every or len(self._pending) >= MOST_PENDING:
                return not anchored
            event = self._events.record()
            self._pending.append((self._clock_ns(), kind == "call", event))
            self._skipped = 0
            return not anchored

    def still(self) -> None:
        """Record that the device has finished all queued work: the host has waited for it."""
        self._still.append(self._clock_ns())

    def settle(self) -> None:
        """Read the events that have passed, unless the stamping thread is about to."""
        if self._reading.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._reading.release()

    def _settle(self) -> None:
        while self._pending and self._events.passed(self._pending[0][2]):
            host_ns, call, event = self._pending.popleft()
            self._device.append(self._read(event))
            self._call.append(call)
            self._host.append(host_ns)  # last, so that other threads read complete entries only
        if len(self._host) > MOST_STAMPS:
            self._host, self._call, self._device = self._host[1::2], self._call[1::2], self._device[1::2]
            self._every *= 2

    def _anchor(self, now_ns: int) -> None:
        self._anchored_ns = now_ns
        before = self._clock_ns()
        event = self._events.record(separate=True)
        while not self._events.passed(event):
            if self._clock_ns() - before > ANCHOR_PATIENCE_NS:
                return
        after = self._clock_ns()
        self._anchors[0].append(self._read(event))
        self._anchors[1].append((before + after) // 2)

    def _read(self, event: Any) -> float:
        """Return an event's time on the device's clock, added up between events: long intervals lose digits."""
        device_ns = 0.0
        if self._latest is not None:
            device_ns = self._latest[1] + self._events.ns_between(self._latest[0], event)
        self._latest = event, device_ns
        return device_ns

    def known(self) -> Stamped:
        """Return the ends read so far. Does not query the device, so any thread may call it."""
        with self._reading:
            columns = self._host[:], self._device[:], self._call[:], self._anchors[0][:], self._anchors[1][:]
            still = np.array(self._still[:], dtype=np.int64)
        host, call = np.array(columns[0], dtype=np.int64), np.array(columns[2], dtype=np.bool_)
        device, at = np.array(columns[3], dtype=np.float64), np.array(columns[4], dtype=np.float64)
        if not len(host) or not len(device):
            return NO_STAMPS
        on_host = _line(np.array(columns[1]), device, at - at[0])
        lag = np.maximum(on_host - (host - at[0]), 0.0)
        # A synchronization is not the end of a step: marked as a call, no step is matched with it.
        host, lag = np.append(host, still), np.append(lag, np.zeros(len(still)))
        order = np.argsort(host, kind="stable")
        return Stamped(host[order], lag[order], np.append(call, np.ones(len(still), dtype=np.bool_))[order])


def _line(x: FloatArray, known_x: FloatArray, known_y: FloatArray) -> FloatArray:
    """Interpolate; beyond the ends both clocks are assumed to run at the same rate."""
    interpolated: FloatArray = np.interp(x, known_x, known_y)
    line: FloatArray = interpolated + np.minimum(x - known_x[0], 0.0) + np.maximum(x - known_x[-1], 0.0)
    return line


def on_device(steps: Sequence[Step], stamped: Stamped, now_ns: int, *, calls: bool = False) -> list[Busy]:
    """Return when a device did each of the host's steps, in order.

    A step begins when the host begins it or when the device finished the one before, or at the end of one just before:
    a reading that averages over two steps then has no gap. It ends at the step's own stamp, or, without one, with the
    interpolated lag of the stamps around.

    Args:
        steps: Of the host, sorted.
        stamped: Ends on the host, and the device's lag behind each.
        now_ns: Later ends are cut to this time.
        calls: Whether the steps are outermost calls.
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
    device_steps, free_ns = [], -JOINED_NS
    for (start, end, n), end_ns in zip(steps, done.tolist(), strict=True):
        begin = free_ns if start - free_ns < JOINED_NS else start
        free_ns = max(end_ns, begin, min(end, now_ns))
        device_steps.append(Busy(begin, free_ns, n, bound=begin - start > BOUND_NS))
    return device_steps


def whole(device_steps: Sequence[Busy]) -> list[Step]:
    """Return steps of nonzero length: a step of zero length is counted with its neighbour."""
    host_steps: list[Step] = []
    pending = 0
    for busy in device_steps:
        if busy.end_ns > busy.start_ns:
            host_steps.append((busy.start_ns, busy.end_ns, busy.steps + pending))
            pending = 0
        elif host_steps:
            start, end, n = host_steps[-1]
            host_steps[-1] = start, end, n + busy.steps
        else:
            pending += busy.steps
    return host_steps
