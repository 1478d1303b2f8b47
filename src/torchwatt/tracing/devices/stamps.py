"""When a device was done with each step: the host runs ahead of it, by milliseconds or by many steps.

A CUDA event is put into the queue where the host ends a step, and looked at when it has passed. Events tell how long
after another they passed, on the device's clock; anchors, events on an empty stream of their own that pass at once, tie
that clock to the host's again and again, since the two drift apart.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from torchwatt.core.meter import FloatArray, IntArray

MOST_PENDING = 256  # events that have not passed; then steps go without
MOST_STAMPS = 20_000  # beyond, every second one is dropped
ANCHOR_EVERY_NS = 5_000_000_000  # clocks drift by some parts in a million, and evenly
BOUND_NS = 100_000  # less than this behind the host is within the error of the clocks
JOINED_NS = 1_000_000  # between two steps the host is seldom away for less to do something else on the device
ANCHOR_PATIENCE_NS = 200_000  # an anchor that did not pass at once says nothing


class Events(Protocol):
    """The device's own clock, by events."""

    def record(self, *, apart: bool = False) -> Any:
        """Put an event behind the work that the host has queued, or apart from it; None where none may be."""

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


class Stamps:
    """Pairs of the host's and the device's ends of steps, all on the host's clock in the end."""

    def __init__(self, events: Events, clock_ns: Callable[[], int]) -> None:
        self._events, self._clock_ns = events, clock_ns
        self._pending: deque[tuple[int, Any]] = deque()
        self._last: tuple[Any, float] | None = None  # an event that has passed, and when on the device's clock
        self._host, self._device = array("q"), array("d")
        self._anchors: tuple[array[float], array[int]] = array("d"), array("q")  # device's clock, host's clock
        self._anchored_ns = -ANCHOR_EVERY_NS
        self._every, self._skipped = 1, 0

    def mark(self) -> None:
        """Note that the host ends a step here."""
        self.settle()
        now = self._clock_ns()
        if now - self._anchored_ns >= ANCHOR_EVERY_NS:
            self._anchor(now)
        self._skipped += 1
        if self._last is None or self._skipped < self._every or len(self._pending) >= MOST_PENDING:
            return
        event = self._events.record()
        if event is not None:
            self._pending.append((self._clock_ns(), event))
            self._skipped = 0

    def settle(self) -> None:
        """Read the events that have passed."""
        while self._pending and self._events.passed(self._pending[0][1]):
            host_ns, event = self._pending.popleft()
            self._host.append(host_ns)
            self._device.append(self._read(event))
        if len(self._host) > MOST_STAMPS:
            self._host, self._device = self._host[1::2], self._device[1::2]
            self._every *= 2

    def _anchor(self, now: int) -> None:
        self._anchored_ns = now
        before = self._clock_ns()
        event = self._events.record(apart=True)
        while event is not None and not self._events.passed(event):
            if self._clock_ns() - before > ANCHOR_PATIENCE_NS:
                return
        if event is not None:
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

    def known(self) -> tuple[IntArray, FloatArray]:
        """Return when the host ended steps, and how long after that the device did, in ns."""
        n = min(len(self._host), len(self._device))  # the training thread may be adding one
        host = np.array(self._host[:n], dtype=np.int64)
        device, at = (np.array(column, dtype=np.float64) for column in self._anchors)
        if not n or not len(device):
            return host[:0], np.zeros(0)
        first = at[0]
        on_host = _line(np.array(self._device[:n]), device, at - first)
        return host, np.maximum(on_host - (host - first), 0.0)


def _line(x: FloatArray, known_x: FloatArray, known_y: FloatArray) -> FloatArray:
    """Interpolate; beyond the ends both clocks are taken to run alike."""
    inside: FloatArray = np.interp(x, known_x, known_y)
    line: FloatArray = inside + np.minimum(x - known_x[0], 0.0) + np.maximum(x - known_x[-1], 0.0)
    return line


def on_device(steps: Sequence[tuple[int, int, int]], host_ns: IntArray, lag_ns: FloatArray, now_ns: int) -> list[Busy]:
    """Return when a device did each of the host's steps, in order.

    It begins when the host does, or when it is done with what came before, or at the end of what came just before: a
    reading whose window lies across two steps is watched all the time. It ends at the step's own stamp, or, where
    that was left out, as long after the host as at the stamps around.

    Args:
        steps: start_ns, end_ns and number of steps, of the host, sorted.
        host_ns: When the host ended steps, where that was stamped.
        lag_ns: How long after that the device did.
        now_ns: What ends later has not ended yet.
    """
    if not len(host_ns):
        return [Busy(start, end, n, bound=False) for start, end, n in steps]
    starts = np.array([start for start, *_ in steps] + [np.iinfo(np.int64).max], dtype=np.int64)
    ends = np.array([end for _, end, _ in steps], dtype=np.int64)
    own = np.searchsorted(host_ns, ends)
    stamp = host_ns[np.minimum(own, len(host_ns) - 1)]
    there = (own < len(host_ns)) & (stamp <= starts[1:])
    # Where nothing but calls are steps, the stamp comes when the next call begins, and what is missing came there, too.
    at_next = there[:-1] & (starts[1:-1] - stamp[:-1] < stamp[:-1] - ends[:-1])
    calls = at_next.sum() * 2 > there.sum()
    usual = np.append(starts[1:-1], ends[-1:]) if calls else ends
    at = np.where(there, stamp, usual)
    done = at + np.interp(at, host_ns, lag_ns).astype(np.int64)
    done = np.minimum(np.maximum.accumulate(done), now_ns) if len(done) else done
    found, free_ns = [], -JOINED_NS
    for (start, end, n), end_ns in zip(steps, done.tolist(), strict=True):
        begin = free_ns if start - free_ns < JOINED_NS else start
        free_ns = max(end_ns, begin, min(end, now_ns))
        found.append(Busy(begin, free_ns, n, bound=begin - start > BOUND_NS))
    return found
