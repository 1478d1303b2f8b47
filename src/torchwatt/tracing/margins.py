"""Measure torch's own work around the spans that its hooks show. Pure but for `measure` and `InPlace`.

The hooks of an optimizer run inside `Optimizer.step`, after torch has opened its own range, and a backward call
makes its first gradient before it enters the engine: a tenth of a step of 0.2 ms.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import Any

import numpy as np

from torchwatt.core.meter import IntArray
from torchwatt.tracing.kineto import user_is_profiling
from torchwatt.tracing.own_time import own_time

LOOPS = 24
MOST_IN_PLACE, ENOUGH_IN_PLACE = 8, 3
# The code around is longer than what can be repeated here: in steps of 0.2 and 1.2 ms the margins were 1.4 to 2.7 times
# what the loop and the program's cold caches account for (torch 2.13, a clock around `step` and `backward`).
MORE_IN_PLACE = 2.2
own_ns = own_time()
FIRST, LAST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Margins:
    """How long torch works before and after the recorded spans, in ns."""

    optimizer_before_ns: float = 0.0
    optimizer_after_ns: float = 0.0
    backward_before_ns: float = 0.0

    def times(self, factor: float) -> Margins:
        """Return the margins in a program whose calls take `factor` times as long as in a loop."""
        factor *= MORE_IN_PLACE
        return Margins(
            self.optimizer_before_ns * factor, self.optimizer_after_ns * factor, self.backward_before_ns * factor
        )


NO_MARGINS = Margins()


class InPlace:
    """Measures margins in some traced steps, where the program's own work leaves the caches cold.

    Between matrix products they are ten times those of a loop.
    """

    def __init__(self) -> None:
        self._before_ns: deque[int] = deque(maxlen=MOST_IN_PLACE)
        self._after_ns: deque[int] = deque(maxlen=MOST_IN_PLACE)
        self._open: Any = None

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

    def margins(self, in_a_loop: Margins) -> Margins | None:
        """Return the measured margins; None before there are enough measurements."""
        if len(self._before_ns) < ENOUGH_IN_PLACE:
            return None
        before = median(self._before_ns)
        after = median(self._after_ns or (in_a_loop.optimizer_after_ns,))
        colder = before / max(in_a_loop.optimizer_before_ns, 1.0)
        return Margins(before, after, in_a_loop.backward_before_ns * colder)


def _open_range() -> Any:
    """Open a range as `Optimizer.step` does before its hooks, and iterate over no hooks."""
    import torch

    hooks: tuple[Callable[[], None], ...] = ()
    opened: Any = torch.autograd.profiler.record_function(f"Optimizer.step#{Margins.__name__}.step")
    opened.__enter__()
    for hook in chain(hooks, hooks):
        hook()
    return opened


def measure() -> Margins:
    """Measure the margins in a loop, in about a millisecond; no user code is called."""
    import torch

    before, after = [], []
    for _ in range(LOOPS):
        began = time.perf_counter_ns()
        opened, entered = _open_range(), time.perf_counter_ns()
        opened.__exit__(None, None, None)
        before.append(entered - began)
        after.append(time.perf_counter_ns() - entered)
    return Margins(median(before), median(after), _before_backward(torch))


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
    touching = _touching(end, own, start[which])
    bounds_ns = _with_own(all_bounds, bounds, np.setdiff1d(own, touching))
    room_ns = before_ns + _length(bounds, touching)
    earlier = start[which] - widen(start[which], end[which], bounds_ns, room_ns, none_ns)[0] - _length(bounds, touching)
    earlier = np.maximum(earlier, 0)
    start[which] -= earlier
    _move(bounds, touching, -earlier)
    touching = _touching(start, own, end[which])
    bounds_ns = _with_own((np.append(all_bounds[0], start[which]), all_bounds[1]), bounds, np.setdiff1d(own, touching))
    room_ns = after_ns + _length(bounds, touching)
    later = widen(start[which], end[which], bounds_ns, none_ns, room_ns)[1] - end[which] - _length(bounds, touching)
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


def _touching(bound: IntArray, own: IntArray, t_ns: IntArray) -> IntArray:
    """Return for each instant the index of the profiler work with this bound, else -1."""
    order = own[np.argsort(bound[own], kind="stable")]
    touching = np.append(order, -1)[np.searchsorted(bound[order], t_ns)]
    return np.where((touching >= 0) & (bound[touching] == t_ns), touching, -1)


def widen(
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
    starts, ends = (np.concatenate(([FIRST], np.sort(each), [LAST])) for each in all_bounds)
    earliest = np.maximum(
        ends[np.searchsorted(ends, start_ns, side="right") - 1], starts[np.searchsorted(starts, start_ns) - 1]
    )
    latest = np.minimum(starts[np.searchsorted(starts, end_ns)], ends[np.searchsorted(ends, end_ns, side="right")])
    latest = np.where(latest == LAST, end_ns, latest)
    return np.maximum(start_ns - before_ns, earliest), np.minimum(end_ns + after_ns, latest)
