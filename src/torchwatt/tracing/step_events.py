"""Determine when a device finished each step: it runs behind the host, by milliseconds or by many steps.

A CUDA event is queued where the host ends a step, and read when it has passed. Events give the time between each
other, on the device's clock; anchors, events on a separate empty stream that pass at once, align that clock with the
host's repeatedly, since the two drift apart.
"""

from __future__ import annotations

import contextlib
import threading
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from torchwatt.core.energy_curve import interpolate
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.tracing.overhead_budget import OverheadBudget, thread_clock
from torchwatt.tracing.user_process import devices_in_use

MOST_PENDING = 256  # events that have not passed; beyond, steps are not stamped
MOST_STAMPS = 20_000  # beyond, every second one is dropped
ANCHOR_EVERY_NS = 5_000_000_000  # clocks drift by some parts in a million, and steadily
BOUND_NS = 100_000  # a shorter lag behind the host is within the error of the clocks
JOINED_NS = 1_000_000  # in a shorter gap between two steps the host seldom queues other work
ANCHOR_PATIENCE_NS = 200_000  # an anchor that did not pass at once is discarded

# What ended: a step, or an outermost call, which is a step where nothing else marks steps.
EventKind = Literal["step", "call"]
HostStep = tuple[int, int, int]  # host's start_ns, end_ns and number of steps


class DeviceEvents(Protocol):
    """The device's own clock, read by events."""

    def record(self, *, separate: bool = False) -> Any:
        """Record an event behind the work that the host has queued, or on a separate stream."""

    def passed(self, event: Any) -> bool:
        """Return whether the device has reached an event, without waiting."""

    def ns_between(self, start: Any, end: Any) -> float:
        """Return the device's time between two events that have passed, in ns."""


class DeviceSteps(NamedTuple):
    """An interval in which a device did a number of steps of a stage; `bound`: it began with work in its queue."""

    start_ns: int
    end_ns: int
    steps: int
    bound: bool
    stage: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceLag:
    """Ends on the host, the device's lag behind each in ns, and whether each was a call."""

    host_ns: IntArray
    lag_ns: FloatArray
    call: NDArray[np.bool_]


NO_LAG = DeviceLag(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype=np.bool_))


class StepEvents:
    """Pairs of the host's and the device's ends, on the host's clock.

    One thread stamps; others may call `known`. Only the stamping thread and the end of a session query the device.
    """

    def __init__(self, events: DeviceEvents, clock_ns: Callable[[], int]) -> None:
        self._events, self._clock_ns = events, clock_ns
        self._reading = threading.Lock()
        self._pending: deque[tuple[int, bool, Any]] = deque()
        self._latest: tuple[Any, float] | None = None  # an event that has passed, and its time on the device's clock
        self._host, self._call, self._device = array("q"), array("b"), array("d")
        self._anchors: tuple[array[float], array[int]] = array("d"), array("q")  # device's clock, host's clock
        self._still = array("q")  # times when the host had waited for the device
        self._anchored_ns = -ANCHOR_EVERY_NS
        self._every, self._skipped = 1, 0

    def mark(self, kind: EventKind = "step") -> bool:
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

    def known(self) -> DeviceLag:
        """Return the ends read so far. Does not query the device, so any thread may call it."""
        with self._reading:
            columns = self._host[:], self._device[:], self._call[:], self._anchors[0][:], self._anchors[1][:]
            still = np.array(self._still[:], dtype=np.int64)
        host, call = np.array(columns[0], dtype=np.int64), np.array(columns[2], dtype=np.bool_)
        device, at = np.array(columns[3], dtype=np.float64), np.array(columns[4], dtype=np.float64)
        if not len(host) or not len(device):
            return NO_LAG
        on_host = _line(np.array(columns[1]), device, at - at[0])
        lag = np.maximum(on_host - (host - at[0]), 0.0)
        # A synchronization is not the end of a step: marked as a call, no step is matched with it.
        host, lag = np.append(host, still), np.append(lag, np.zeros(len(still)))
        order = np.argsort(host, kind="stable")
        return DeviceLag(host[order], lag[order], np.append(call, np.ones(len(still), dtype=np.bool_))[order])


def _line(x: FloatArray, known_x: FloatArray, known_y: FloatArray) -> FloatArray:
    """Interpolate; beyond the ends both clocks are assumed to run at the same rate."""
    interpolated: FloatArray = np.interp(x, known_x, known_y)
    line: FloatArray = interpolated + np.minimum(x - known_x[0], 0.0) + np.maximum(x - known_x[-1], 0.0)
    return line


def device_steps(
    steps: Sequence[HostStep], stamped: DeviceLag, now_ns: int, *, calls: bool = False
) -> list[DeviceSteps]:
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
        return [DeviceSteps(start, end, n, bound=False) for start, end, n in steps]
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
        device_steps.append(DeviceSteps(begin, free_ns, n, bound=begin - start > BOUND_NS))
    return device_steps


def nonempty_steps(device_steps: Sequence[DeviceSteps]) -> list[HostStep]:
    """Return steps of nonzero length: a step of zero length is counted with its neighbour."""
    host_steps: list[HostStep] = []
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


class CudaEvents:
    """Events on the current stream of one device, or on a separate, empty one."""

    def __init__(self, index: int) -> None:
        self._separate = torch.cuda.Stream(index)  # type: ignore[no-untyped-call]

    def record(self, *, separate: bool = False) -> Any:
        """Record an event on a stream; not during graph capture, since the event would become part of the graph."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._separate if separate else torch.cuda.current_stream(self._separate.device))
        return event

    def passed(self, event: Any) -> bool:
        """Return whether the device has reached an event."""
        return bool(event.query())

    def ns_between(self, start: Any, end: Any) -> float:
        """Return the time between events in ns; CUDA returns ms in single precision, exact to about 0.5 us."""
        return float(start.elapsed_time(end)) * 1e6


STAMP_SHARE = 0.1  # of the budget; where steps are too short, some are not stamped

own_ns = thread_clock()


class StepClocks:
    """Stamp ends of steps on the current device; only for the first thread that ends a step."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._stamps: dict[int, StepEvents] = {}
        self._owner: object = None
        self._until_stamp = 0  # steps until the next stamp
        self._cost_ns = 0.0  # of a stamp, moving average

    def ended(
        self, owner: object, budget: OverheadBudget, step_ns: float, *, kind: EventKind = "step", surely: bool = False
    ) -> None:
        """Stamp the end of a step or call, unless it costs too much for so short a step; `surely`: always.

        Args:
            owner: The thread's owner.
            budget: Pays.
            step_ns: Length of a step.
            kind: What ended.
            surely: A window begins or ends here.
        """
        self._owner = self._owner or owner
        if self._owner is not owner or budget.share <= 0:
            return
        if self._until_stamp > 0 and not surely:
            self._until_stamp -= 1
            return
        began = own_ns()
        stamps = self._current()
        plain = stamps is not None and stamps.mark(kind)
        cost_ns = own_ns() - began
        budget.pay("fixed", cost_ns)
        if plain:
            self._cost_ns += (cost_ns - self._cost_ns) * (0.05 if self._cost_ns else 1.0)
        self._until_stamp = ceil(self._cost_ns / max(STAMP_SHARE * budget.share * step_ns, 1.0)) - 1 if step_ns else 0

    def still(self) -> None:
        """Record that the host has waited for all devices."""
        for stamps in self._stamps.values():
            stamps.still()

    def _current(self) -> StepEvents | None:
        """Return the stamps of the current device; None where the program has not initialised it."""
        index = torch.cuda.current_device()
        stamps = self._stamps.get(index)
        if stamps is None and index in devices_in_use():
            stamps = self._stamps[index] = StepEvents(CudaEvents(index), self._clock_ns)
        return stamps

    def settle(self) -> None:
        """Read the remaining events: on the thread that ends the session, which has waited for the devices."""
        for index, stamps in self._stamps.items():
            with contextlib.suppress(Exception), torch.cuda.device(index):  # keep what was read before
                stamps.settle()

    def only(self) -> DeviceLag:
        """Return the lag of the only device in use; no stamps where several devices are in use."""
        used = devices_in_use() if self._stamps else ()
        return self.known(f"gpu:{used[0]}") if len(used) == 1 else NO_LAG

    def known(self, device: str) -> DeviceLag:
        """Return the host's ends and the lag of device "gpu:<torch index>" behind each."""
        _, _, number = device.partition(":")
        stamps = self._stamps.get(int(number)) if number.isdecimal() else None
        return stamps.known() if stamps is not None else NO_LAG
