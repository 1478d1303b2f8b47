"""Shapes of traced module calls, and the work of slots that follows from them."""

from __future__ import annotations

import threading
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import Slot
from torchwatt.core.trace import SlotWork
from torchwatt.tracing.module_operations import CallWork, ShapeKey, ShapeReader, WorkFormula, work_formula

MOST_SAMPLES = 16_384  # of a thread; beyond, a random half is kept
MOST_ERROR = 0.1  # of the mean work of a call; beyond, it is unknown
FEW_SAMPLES = 3  # with fewer, it is unknown how much others differ
SURE_SLOPE = 3.0  # standard errors from which a slope counts
NO_WORK = CallWork(0.0, 0.0, 0)
has_function_mode: Callable[[], bool] = torch._C._is_torch_function_mode_enabled


class ShapeSamples:
    """Shapes of traced calls of one thread, by the start of each call; other threads may read them.

    `unread` has the keys of modules with a call whose shapes could not be read: their work is unknown.
    """

    __slots__ = ("_entries", "_formulas", "_lock", "_numbers", "_works", "unread")

    def __init__(self) -> None:
        self._entries = array("q")  # start_ns, and twice the number of the shapes, plus 1 in a backward call
        self._numbers: dict[ShapeKey, int] = {}
        self._formulas: dict[int, WorkFormula] = {}
        self._works: dict[ShapeKey, CallWork | None] = {}
        self._lock = threading.Lock()
        self.unread: set[int] = set()

    def note(  # noqa: PLR0917 - one call of a wrapper
        self, reader: ShapeReader, key: int, start_ns: int, task: int, module: Any, args: Any, kwargs: Any, y: Any
    ) -> None:
        """Record the shapes of a call that has ended; the user's call must not fail because they cannot be read.

        Args:
            reader: Of the module's class.
            key: Of the module.
            start_ns: Of the call.
            task: Autograd's graph task; below 0 outside of backward calls.
            module: What was called.
            args: Its arguments.
            kwargs: Its arguments by name.
            y: What it returned.
        """
        try:
            if has_function_mode():
                with torch._C.DisableTorchFunction():
                    shapes = (key, *reader(module, args, kwargs, y))
            else:
                shapes = (key, *reader(module, args, kwargs, y))
            number = self._numbers.get(shapes)
            if number is None:
                number = self._add(shapes, module)
            self._entries.extend((start_ns, 2 * number + (task >= 0)))
            if len(self._entries) > 2 * MOST_SAMPLES:
                self._thin()
        except Exception:
            self.unread.add(key)

    def note_stopped(self, key: int, start_ns: int) -> None:
        """Record a call in a backward call that raised: checkpoints stop recomputing before the last product."""
        number = self._numbers.setdefault((key, None), len(self._numbers))
        self._entries.extend((start_ns, 2 * number + 1))

    def _add(self, shapes: ShapeKey, module: Any) -> int:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise TypeError("torch.func hides a dimension of the input")
        key = shapes[0]
        if key not in self._formulas:
            self._formulas[key] = work_formula(module)
        return self._numbers.setdefault(shapes, len(self._numbers))

    def _thin(self) -> None:
        """Keep a random half: every second one would drop the same modules in each step."""
        table = np.frombuffer(self._entries, dtype=np.int64).reshape(-1, 2)
        table = table[np.random.default_rng(len(table)).random(len(table)) < 0.5].copy()
        used, number = np.unique(table[:, 1] // 2, return_inverse=True)
        table[:, 1] = 2 * number + table[:, 1] % 2
        shapes = list(self._numbers)
        with self._lock:
            self._entries = array("q", table.ravel().tolist())
            self._numbers = {shapes[each]: i for i, each in enumerate(used.tolist())}
            self._works = {}

    def table(self) -> tuple[IntArray, list[tuple[int, CallWork | None]]]:
        """Return samples (start_ns, number, 1 in a backward call), shape (n, 3), and key and work by number."""
        with self._lock:
            entries = np.array(self._entries[:], dtype=np.int64).reshape(-1, 2)
            shapes = list(self._numbers)
        for each in shapes:
            if each not in self._works:
                self._works[each] = NO_WORK if each[1] is None else self._formulas[each[0]](each[1:])
        works = [(each[0], self._works[each]) for each in shapes]
        return np.column_stack((entries[:, 0], entries[:, 1] // 2, entries[:, 1] % 2)), works


@dataclass(frozen=True, slots=True)
class WorkSample:
    """The work of one traced call."""

    t_ns: int
    work: CallWork
    recomputed: bool  # within a backward call


def slot_works(
    samples: Mapping[tuple[str, str], list[WorkSample]],
    slots: Iterable[Slot],
    spans: Mapping[str, Any],
    begins_ns: Mapping[str, IntArray],
) -> Iterator[SlotWork]:
    """Yield the mean work of a call of each slot with samples, where the samples tell it to `MOST_ERROR`.

    A backward call counts the gradients and, of a checkpointed module, the recomputed forward.

    Args:
        samples: By name and stage of a module.
        slots: Of the trace, in order.
        spans: Columns `slot`, `start_ns`, `end_ns` and `calls` of the trace.
        begins_ns: When each stage began, by its name, in order.
    """
    for i, slot in enumerate(slots):
        taken = samples.get((slot.fqn, slot.stage))
        if not taken or slot.phase not in {"forward", "backward"}:
            continue
        own = np.flatnonzero((spans["slot"] == i) & (spans["calls"] > 0))
        own = own[np.argsort(spans["start_ns"][own], kind="stable")]
        times = _CallTimes(spans["start_ns"][own], spans["end_ns"][own], spans["calls"][own], begins_ns[slot.stage])
        if len(own):
            means = _backward_means(taken, times) if slot.phase == "backward" else _forward_means(taken, times)
            if means is not None:
                yield SlotWork(i, *means)


def _backward_means(samples: list[WorkSample], times: _CallTimes) -> list[float] | None:
    """Return mean work of the calls of a backward slot: recomputed forward calls are calls of it as well."""
    again = [each.work for each in samples if each.recomputed]
    grown = [each for each in samples if each.work.has_gradient]
    # A reentrant checkpoint makes the graph when it recomputes, every other one in the forward pass.
    made = [each.work for each in grown if not each.recomputed] or [each.work for each in grown]
    if not made:
        return None
    gradients = np.array([(work.gradient_flops, work.gradient_bytes, 0.0) for work in made], dtype=np.float64)
    forward = np.array([(work.flops, work.bytes_moved, 0.0) for work in again], dtype=np.float64).reshape(-1, 3)
    calls = int(times.calls.sum()) / (2 if again else 1)
    missing = max(1.0 - len(made) / calls, 0.0)
    if any(_standard_error(column, missing) > MOST_ERROR * column.mean() for column in gradients.T[:2]):
        return None
    return [float(mean) for mean in np.concatenate((gradients, forward)).mean(axis=0)]


def _forward_means(samples: list[WorkSample], times: _CallTimes) -> list[float] | None:
    """Return mean operations, bytes and rows of the calls of a forward slot."""
    works = [(s.t_ns, s.work.flops, s.work.bytes_moved, s.work.rows) for s in samples if not s.recomputed]
    if not works:
        return None
    table = np.array(sorted(works), dtype=np.float64)
    t_ns = np.array(sorted(work[0] for work in works), dtype=np.int64)
    means = [times.mean_of(column, t_ns) for column in table[:, 1:].T]
    is_known = all(error <= MOST_ERROR * mean for mean, error in means)
    return [mean for mean, _ in means] if is_known else None


@dataclass(frozen=True, slots=True)
class _CallTimes:
    """The calls of one slot: spans that stand for them, in order, and when its stage began, each time.

    A *stretch* is the time from one begin of the stage to the next: a request, where the stage is `decode`.
    """

    start_ns: IntArray
    end_ns: IntArray
    calls: IntArray
    begins_ns: IntArray

    def mean_of(self, values: FloatArray, t_ns: IntArray) -> tuple[float, float]:
        """Return the mean over all calls of a value that is known of some, and its standard error.

        Calls of a stretch have the mean of its samples, and those of other stretches the mean of all stretches with
        samples; within a stretch the value may grow with the position of the call (decoding reads a growing cache),
        with one slope in all of them. Without several stretches, a value that does not grow is interpolated over time.

        Args:
            values: In order of time.
            t_ns: When the calls began.
        """
        stretch, position = self._stretch(t_ns), self._position(t_ns)
        sampled, group = np.unique(stretch, return_inverse=True)
        slope = _common_slope(values, position, group)
        begins = np.bincount(group, values - slope * position) / np.bincount(group)
        covered = self._stretch(np.maximum(self.end_ns - 1, self.start_ns)) - self._stretch(self.start_ns) + 1
        stretches = len(np.unique(self._stretch(self.start_ns))) + int((covered - 1).sum())
        if stretches == 1:
            missing = max(1.0 - len(values) / float(self.calls.sum()), 0.0)
            error = _standard_error(values - slope * position, missing)
            if not slope:
                at_ns = np.where(self.calls > 1, (self.start_ns + self.end_ns) // 2, self.start_ns)
                mean = float(np.average(np.interp(at_ns - t_ns[0], t_ns - t_ns[0], values), weights=self.calls))
            else:
                mean = float(begins[0] + slope * np.average(self._span_positions(covered), weights=self.calls))
            return mean, error
        at = np.searchsorted(sampled, self._stretch(self.start_ns)).clip(max=len(sampled) - 1)
        is_sampled = (sampled[at] == self._stretch(self.start_ns)) & (covered == 1)
        each = np.where(is_sampled, begins[at], begins.mean()) + slope * self._span_positions(covered)
        missing = float(np.average(~is_sampled, weights=self.calls))
        return float(np.average(each, weights=self.calls)), _standard_error(begins, missing)

    def _stretch(self, t_ns: IntArray) -> IntArray:
        return np.searchsorted(self.begins_ns, t_ns, side="right")

    def _position(self, t_ns: IntArray) -> FloatArray:
        """Return how many calls of its stretch precede the call at each of some times."""
        before = np.concatenate(([0], np.cumsum(self.calls)))
        first = np.concatenate(([0], np.searchsorted(self.start_ns, self.begins_ns)))
        done = before[np.searchsorted(self.start_ns, t_ns)] - before[first[self._stretch(t_ns)]]
        return np.asarray(done, dtype=np.float64)

    def _span_positions(self, covered: IntArray) -> FloatArray:
        """Return the mean position of the calls of each span; a span may cover several stretches."""
        within = (self.calls / covered - 1.0) / 2.0
        return np.asarray(np.where(covered > 1, within, self._position(self.start_ns) + within), dtype=np.float64)


def _standard_error(values: FloatArray, missing: float) -> float:
    """Return the standard error of a mean of which a part (0 to 1) is not sampled; infinite for too few samples."""
    if missing <= 0:
        return 0.0
    return float(values.std(ddof=1)) / float(np.sqrt(len(values))) * missing if len(values) >= FEW_SAMPLES else np.inf


def _common_slope(values: FloatArray, position: FloatArray, group: IntArray) -> float:
    """Return the slope of values by position that is common to all groups; 0 unless it is sure."""
    count = np.bincount(group)
    x = position - (np.bincount(group, position) / count)[group]
    y = values - (np.bincount(group, values) / count)[group]
    spread, freedom = float(x @ x), len(values) - len(count) - 1
    if spread <= 0 or freedom <= 0:
        return 0.0
    slope = float(x @ y) / spread
    error = float(np.sqrt(np.sum((y - slope * x) ** 2) / freedom / spread))
    return slope if abs(slope) > SURE_SLOPE * error else 0.0


def samples_by_name(
    tables: Iterable[tuple[ShapeSamples, Callable[[IntArray], list[str]]]],
    name_of: Callable[[int], str],
    bounds_ns: tuple[int, int],
) -> dict[tuple[str, str], list[WorkSample]]:
    """Return the samples within a time by name and stage of their modules, without modules of unknown work.

    Args:
        tables: Of each thread, its samples and the names of its stages at some times.
        name_of: Name of a module's key.
        bounds_ns: Start and end.
    """
    samples: dict[tuple[str, str], list[WorkSample]] = defaultdict(list)
    unknown: set[str] = set()
    for log, stages_of in tables:
        table, works = log.table()
        unknown |= {name_of(key) for key in log.unread}
        table = table[(table[:, 0] >= bounds_ns[0]) & (table[:, 0] <= bounds_ns[1])]
        for (t_ns, number, again), stage in zip(table.tolist(), stages_of(table[:, 0]), strict=True):
            key, work = works[number]
            if work is None:
                unknown.add(name_of(key))
            else:
                samples[name_of(key), stage].append(WorkSample(t_ns, work, bool(again)))
    return {(name, stage): each for (name, stage), each in samples.items() if name not in unknown}
