"""Record one backward call node by node: torch's own recorder, limited to autograd nodes, without log output.

Narrower than `torch.profiler`: no operators, no chrome trace. About 2 ms for 335 nodes instead of 25.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median, median_low
from typing import Any

import numpy as np
import torch

from torchwatt.core.meter import IntArray
from torchwatt.tracing.log_rows import AutogradNodes
from torchwatt.tracing.overhead_budget import thread_clock

SILENT = 6  # above libkineto's highest level: it writes two USDT lines per window to stderr
CLOCK_STEP_NS = 50_000  # realtime moved by that against monotonic: times cannot be mapped
NODE_COST_NS = 1_100  # recording one event, in a transformer step of 13 ms with 3,910 events
NEEDED_NAMES = (
    "_prepare_profiler", "_enable_profiler", "_disable_profiler", "_profiler_enabled", "ProfilerConfig",
    "ProfilerState", "ProfilerActivity",
)  # fmt: skip

own_ns = thread_clock()
_one_at_a_time = threading.Lock()  # the recorder is process-wide


def missing_names() -> str | None:
    """Return the names this torch lacks for windows, comma-separated; None if none."""
    lacking = [name for name in NEEDED_NAMES if not hasattr(torch.autograd, name)]
    scopes = getattr(getattr(torch._C, "_profiler", None), "RecordScope", None)
    if not hasattr(scopes, "BACKWARD_FUNCTION"):
        lacking.append("RecordScope.BACKWARD_FUNCTION")
    if not hasattr(getattr(torch._C, "_profiler", None), "_ExperimentalConfig"):
        lacking.append("_ExperimentalConfig")
    return ", ".join(lacking) or None


def user_is_profiling() -> bool:
    """Return whether the user's profiler is running: a second one would take its events."""
    from torch.autograd import profiler

    autograd: Any = torch.autograd
    return bool(autograd._profiler_enabled() or getattr(profiler, "_is_profiler_enabled", False))


class RecordedNodes:
    """The events of a window, kept in torch's own form until read: reading takes as long as closing.

    Args:
        result: Of `torch.autograd._disable_profiler`.
        offset_ns: Monotonic minus realtime.
    """

    def __init__(self, result: Any, offset_ns: int) -> None:
        self._result = result
        self._offset_ns = offset_ns
        self._nodes: AutogradNodes | None = None
        self._lock = threading.Lock()

    def nodes(self) -> AutogradNodes:
        """Return the nodes, sorted by start."""
        with self._lock:
            if self._nodes is None:
                events = self._result.events()
                columns = [
                    [event.start_ns() for event in events],
                    [event.duration_ns() for event in events],
                    [event.sequence_nr() for event in events],
                    [event.fwd_thread_id() for event in events],
                    [event.start_thread_id() for event in events],
                ]
                self._nodes, self._result = _nodes(columns, self._offset_ns), None
            return self._nodes


class AutogradRecorder:
    """A recorder of the autograd nodes that run until `close`."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._offset = 0
        self.cost_ns = 0
        self.recording_ns = 0  # the part of `cost_ns` that lies inside the call

    def open(self) -> bool:
        """Start recording on this thread; return False if another thread is recording."""
        if not _one_at_a_time.acquire(blocking=False):
            return False
        began = own_ns()
        autograd: Any = torch.autograd
        try:
            profiler = torch._C._profiler
            plain = [False] * 5  # no shapes, memory, stack, flops, modules
            experimental = profiler._ExperimentalConfig()
            config = autograd.ProfilerConfig(autograd.ProfilerState.KINETO, *plain, experimental)
            cpu = {autograd.ProfilerActivity.CPU}
            with quiet_logging():
                autograd._prepare_profiler(config, cpu)
            with quiet_logging():  # again: the first preparation resets the level
                autograd._enable_profiler(config, cpu, {profiler.RecordScope.BACKWARD_FUNCTION})
        except BaseException:  # also an interrupt: the recorder must not stay on
            if autograd._profiler_enabled():
                autograd._disable_profiler()
            _one_at_a_time.release()
            raise
        self._offset = self._anchor()
        self.cost_ns = own_ns() - began
        return True

    def close(self, expected: int = 0) -> RecordedNodes | None:
        """Stop recording and return the events; None if the wall clock was set meanwhile.

        Args:
            expected: Approximate number of nodes that ran: recording them is part of the window's cost.
        """
        began = own_ns()
        autograd: Any = torch.autograd
        try:
            offset = self._anchor()
            with quiet_logging():
                result = autograd._disable_profiler()
        finally:
            _one_at_a_time.release()
        stepped = abs(offset - self._offset) >= CLOCK_STEP_NS
        self.recording_ns = NODE_COST_NS * expected
        self.cost_ns += own_ns() - began + self.recording_ns
        return None if stepped else RecordedNodes(result, (offset + self._offset) // 2)

    def _anchor(self) -> int:
        """Return monotonic minus realtime, from the tightest of three readings."""
        looks = []
        for _ in range(3):
            before, real, after = self._clock_ns(), time.time_ns(), self._clock_ns()
            looks.append((after - before, (before + after) // 2 - real))
        return min(looks)[1]


def _nodes(columns: list[list[int]], offset_ns: int) -> AutogradNodes:
    table = np.array(columns, dtype=np.int64).T
    start = table[:, 0] + offset_ns
    end = start + np.maximum(table[:, 1], 0)
    order = np.lexsort((-end, start))
    return AutogradNodes(start[order], end[order], table[order, 2], table[order, 3], table[order, 4])


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Raise libkineto's log level inside the block; environment and file descriptors are unchanged."""
    level = _severity()
    if level is None or "KINETO_LOG_LEVEL" in os.environ:  # the user has chosen a level
        yield
        return
    before = level.value
    level.value = SILENT
    try:
        yield
    finally:
        if level.value == SILENT:  # the first use of libkineto sets its own level, which is kept
            level.value = before


@functools.cache
def _severity() -> ctypes.c_int | None:
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        with contextlib.suppress(OSError, ValueError):
            library = ctypes.CDLL(str(folder / name))
            return ctypes.c_int.in_dll(library, "_ZN9libkineto6Logger14severityLevel_E")
    return None


LOOPS = 24
MOST_IN_PLACE, ENOUGH_IN_PLACE = 8, 3
# The code around is longer than what can be repeated here: in steps of 0.2 and 1.2 ms the margins were 1.4 to 2.7 times
# what the loop and the program's cold caches account for (torch 2.13, a clock around `step` and `backward`).
MORE_IN_PLACE = 2.2
EARLIEST_NS, LATEST_NS = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class HookMargins:
    """How long torch, or the profiler at a call that it answers, works before and after the recorded spans, in ns."""

    optimizer_before_ns: float = 0.0
    optimizer_after_ns: float = 0.0
    backward_before_ns: float = 0.0
    answer_before_ns: int = 0
    answer_after_ns: int = 0

    def times(self, factor: float) -> HookMargins:
        """Return the margins in a program whose calls take `factor` times as long as in a loop."""
        factor *= MORE_IN_PLACE
        return HookMargins(
            self.optimizer_before_ns * factor, self.optimizer_after_ns * factor, self.backward_before_ns * factor
        )


NO_MARGINS = HookMargins()


class MarginProbe:
    """Measures margins in some traced steps, where the program's own work leaves the caches cold.

    Between matrix products they are ten times those of a loop.
    """

    def __init__(self) -> None:
        self._before_ns: deque[int] = deque(maxlen=MOST_IN_PLACE)
        self._after_ns: deque[int] = deque(maxlen=MOST_IN_PLACE)
        self._open: Any = None
        self._answers: deque[tuple[int, int]] = deque(maxlen=MOST_IN_PLACE)
        self.around_answer_ns = 0, 0

    def answered(self, before_ns: int, after_ns: int) -> None:
        """Record how long the profiler worked before and after a call that is answered: see `inference_recorders`."""
        self._answers.append((before_ns, after_ns))
        before, after = zip(*self._answers, strict=True)
        self.around_answer_ns = median_low(before), min(after)

    def after_backward(self) -> int:
        """Repeat the work of an optimizer step before its first hook; return the total time spent here in ns."""
        if len(self._before_ns) == MOST_IN_PLACE or user_is_profiling():
            return 0
        began = own_ns()
        opened = _open_range()
        self._before_ns.append(own_ns() - began)
        opened.__exit__(None, None, None)
        return own_ns() - began

    def optimizer_begins(self) -> None:
        """Open a range inside that of the optimizer step."""
        if len(self._after_ns) < MOST_IN_PLACE and not user_is_profiling():
            self._open = _open_range()

    def optimizer_ended(self) -> int:
        """Repeat the work of an optimizer step after its last hook; return its time in ns."""
        if self._open is None:
            return 0
        opened, self._open, began = self._open, None, own_ns()
        opened.__exit__(None, None, None)
        self._after_ns.append(own_ns() - began)
        return self._after_ns[-1]

    def margins(self, in_a_loop: HookMargins) -> HookMargins | None:
        """Return the measured margins; None before there are enough measurements."""
        if len(self._before_ns) < ENOUGH_IN_PLACE:
            return None
        before = median(self._before_ns)
        after = median(self._after_ns or (in_a_loop.optimizer_after_ns,))
        colder = before / max(in_a_loop.optimizer_before_ns, 1.0)
        return HookMargins(before, after, in_a_loop.backward_before_ns * colder)


def _open_range() -> Any:
    """Open a range as `Optimizer.step` does before its hooks, and iterate over no hooks."""
    import torch

    hooks: tuple[Callable[[], None], ...] = ()
    opened: Any = torch.autograd.profiler.record_function(f"Optimizer.step#{HookMargins.__name__}.step")
    opened.__enter__()
    for hook in chain(hooks, hooks):
        hook()
    return opened


def measure_margins() -> HookMargins:
    """Measure the margins in a loop, in about a millisecond; no user code is called."""
    import torch

    before, after = [], []
    for _ in range(LOOPS):
        began = time.perf_counter_ns()
        opened, entered = _open_range(), time.perf_counter_ns()
        opened.__exit__(None, None, None)
        before.append(entered - began)
        after.append(time.perf_counter_ns() - entered)
    return HookMargins(median(before), median(after), _before_backward(torch))


def _before_backward(torch: Any) -> float:
    as_tuple: Callable[..., Any] | None = getattr(torch.autograd, "_tensor_or_tensors_to_tuple", None)
    make_grads: Callable[..., Any] | None = getattr(torch.autograd, "_make_grads", None)
    if as_tuple is None or make_grads is None:
        return 0.0
    loss, times = torch.zeros((), requires_grad=True), []
    for _ in range(LOOPS):
        began = time.perf_counter_ns()
        make_grads((loss,), as_tuple(None, 1), is_grads_batched=False)
        times.append(time.perf_counter_ns() - began)
    return median(times)


def widen_in_place(
    bounds: tuple[IntArray, IntArray],
    which: IntArray,
    own: IntArray,
    all_bounds: tuple[IntArray, IntArray],
    margins_ns: tuple[float, float],
) -> None:
    """Widen spans by margins; profiler work that touches a span moves outwards: torch's own work lies beyond it.

    Args:
        bounds: Starts and ends of spans, changed in place.
        which: Indices of the spans to widen.
        own: Indices of profiler work.
        all_bounds: Starts and ends of all spans of the thread but this profiler work.
        margins_ns: Before and after each span.
    """
    start, end = bounds
    if not len(which):
        return
    before_ns, after_ns = (round(each) for each in margins_ns)
    none_ns = np.zeros(len(which), dtype=np.int64)
    touching = _touching_index(end, own, start[which])
    bounds_ns = _with_own(all_bounds, bounds, np.setdiff1d(own, touching))
    room_ns = before_ns + _length(bounds, touching)
    earlier = (
        start[which] - widen_spans(start[which], end[which], bounds_ns, room_ns, none_ns)[0] - _length(bounds, touching)
    )
    earlier = np.maximum(earlier, 0)
    start[which] -= earlier
    _move(bounds, touching, -earlier)
    touching = _touching_index(start, own, end[which])
    bounds_ns = _with_own((np.append(all_bounds[0], start[which]), all_bounds[1]), bounds, np.setdiff1d(own, touching))
    room_ns = after_ns + _length(bounds, touching)
    later = (
        widen_spans(start[which], end[which], bounds_ns, none_ns, room_ns)[1] - end[which] - _length(bounds, touching)
    )
    later = np.maximum(later, 0)
    end[which] += later
    _move(bounds, touching, later)


def _with_own(
    others: tuple[IntArray, IntArray], bounds: tuple[IntArray, IntArray], own: IntArray
) -> tuple[IntArray, IntArray]:
    return np.concatenate((others[0], bounds[0][own])), np.concatenate((others[1], bounds[1][own]))


def _length(bounds: tuple[IntArray, IntArray], own: IntArray) -> IntArray:
    return np.where(own >= 0, bounds[1][own] - bounds[0][own], 0)


def _move(bounds: tuple[IntArray, IntArray], own: IntArray, by_ns: IntArray) -> None:
    """Move the profiler work with these indices, where there is any: -1 is none."""
    for each in bounds:
        each[own[own >= 0]] += by_ns[own >= 0]


def _touching_index(bound: IntArray, own: IntArray, t_ns: IntArray) -> IntArray:
    """Return for each instant the index of the profiler work with this bound, else -1."""
    order = own[np.argsort(bound[own], kind="stable")]
    touching = np.append(order, -1)[np.searchsorted(bound[order], t_ns)]
    return np.where((touching >= 0) & (bound[touching] == t_ns), touching, -1)


def widen_spans(
    start_ns: IntArray,
    end_ns: IntArray,
    all_bounds: tuple[IntArray, IntArray],
    before_ns: IntArray,
    after_ns: IntArray,
) -> tuple[IntArray, IntArray]:
    """Widen spans by margins, at most to the next boundary of any span; return new starts and ends.

    Args:
        start_ns: Of the spans.
        end_ns: Of the spans.
        all_bounds: Starts and ends of all spans of the thread.
        before_ns: Margin before each.
        after_ns: Margin after each; the last span gets none, since what follows is unknown.
    """
    if not len(start_ns):
        return start_ns, end_ns
    starts, ends = (np.concatenate(([EARLIEST_NS], np.sort(each), [LATEST_NS])) for each in all_bounds)
    earliest = np.maximum(
        ends[np.searchsorted(ends, start_ns, side="right") - 1], starts[np.searchsorted(starts, start_ns) - 1]
    )
    latest = np.minimum(starts[np.searchsorted(starts, end_ns)], ends[np.searchsorted(ends, end_ns, side="right")])
    latest = np.where(latest == LATEST_NS, end_ns, latest)
    return np.maximum(start_ns - before_ns, earliest), np.minimum(end_ns + after_ns, latest)
