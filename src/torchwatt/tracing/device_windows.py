"""Run torch.profiler around whole steps: start and stop on the training thread, export, pass to a worker."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchwatt.core.errors import TraceError
from torchwatt.core.meter import FloatArray, IntArray
from torchwatt.core.terms import Slot
from torchwatt.core.trace import Activity
from torchwatt.helper_process import helper_command
from torchwatt.kineto.host_ownership import RecordedRanges
from torchwatt.kineto.join_worker import read_activities, write_ranges
from torchwatt.tracing.autograd_recorder import CLOCK_STEP_NS, quiet_logging
from torchwatt.tracing.step_events import JOINED_NS, DeviceSteps

RECORDED_EVENT_NS = 1_100  # in a transformer step of 13 ms with 3,910 events


_advice_is_given = False


@contextmanager
def _without_advice() -> Iterator[None]:
    """Suppress torch's advice at the first profiling in a process (2.11: set acc_events), not meant for users."""
    global _advice_is_given  # noqa: PLW0603 - torch warns once a process
    if _advice_is_given:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    _advice_is_given = True


class WindowRecorder:
    """One window: `prepare` a step early, `start` and `stop` at ends of steps.

    Args:
        clock_ns: The session's clock.
        synchronize: Waits for all devices, so that no kernel crosses the window's edges.
        activities: What to record.
    """

    def __init__(self, clock_ns: Callable[[], int], synchronize: Callable[[], None], activities: Any) -> None:
        self._clock_ns = clock_ns
        self._synchronize = synchronize
        experimental = torch._C._profiler._ExperimentalConfig
        try:
            config = experimental(trace_only=True)
        except TypeError:  # before torch 2.13
            config = experimental()
        self._profiler = torch.profiler.profile(activities=activities, experimental_config=config)
        self._offset_ns = 0
        self.cost_ns = 0
        self.start_ns = self.end_ns = 0

    def prepare(self) -> None:
        """Attach the profiler to the devices, so that `start` is fast."""
        began = self._clock_ns()
        with quiet_logging(), _without_advice():
            self._profiler.prepare_trace()
        self.cost_ns += self._clock_ns() - began

    def start(self) -> None:
        """Start recording. The wait for the devices is not booked: they execute queued work meanwhile."""
        self._synchronize()
        began = self._clock_ns()
        with quiet_logging():
            self._profiler.start_trace()
        self._offset_ns = self._anchor()
        self.start_ns = self._clock_ns()
        self.cost_ns += self.start_ns - began

    def stop(self) -> None:
        """Stop recording; the events are kept until `export`."""
        self._synchronize()
        began = self.end_ns = self._clock_ns()
        with quiet_logging():
            self._profiler.stop_trace()
        self.cost_ns += self._clock_ns() - began

    def export(self, path: Path) -> int | None:
        """Write the trace; return the offset from its clock to the session's in ns, None if the wall clock was set."""
        began, offset = self._clock_ns(), self._anchor()
        with quiet_logging():
            self._profiler.export_chrome_trace(str(path))
        events = path.stat().st_size // 250  # bytes an event, in a file of 117,000 events
        self.cost_ns += self._clock_ns() - began + events * RECORDED_EVENT_NS
        return (offset + self._offset_ns) // 2 if abs(offset - self._offset_ns) < CLOCK_STEP_NS else None

    def unix_ns(self, t_ns: Any) -> Any:
        """Map a time on the session's clock to the clock of the trace."""
        return t_ns - self._offset_ns

    def _anchor(self) -> int:
        looks = []
        for _ in range(3):
            before, real, after = self._clock_ns(), time.time_ns(), self._clock_ns()
            looks.append((after - before, (before + after) // 2 - real))
        return min(looks)[1]


PATIENCE_S = 60.0  # for the last windows, when a session ends
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where there is one, a trace never touches a disk


@dataclass(slots=True)
class JoinJob:
    """One window being joined."""

    process: subprocess.Popen[bytes]
    result: Path
    covered: tuple[int, int]


class JoinWorkers:
    """Pass windows to workers and collect their results; `folder` is a temporary directory that `close` removes."""

    def __init__(self, folder: Path | None = None) -> None:
        parent = folder or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
        self.folder = Path(tempfile.mkdtemp(prefix="torchwatt-", dir=parent))
        self._pid = os.getpid()
        self._job: JoinJob | None = None
        self._count = 0
        self.windows: list[tuple[Activity, ...]] = []
        self.failures: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether a window is being joined."""
        self.look()
        return self._job is not None

    def next_trace(self) -> Path:
        """Return the path for the next trace."""
        return self.folder / f"{self._count}.json"

    def hand_over(self, ranges: RecordedRanges, offset_ns: int, covered: tuple[int, int]) -> None:
        """Start a worker on the trace at `next_trace()`; `covered`: when devices were recorded."""
        trace = self.next_trace()
        table, result = trace.with_suffix(".ranges"), trace.with_suffix(".joined")
        write_ranges(table, ranges)
        arguments = [str(trace), str(table), str(result), str(offset_ns)]
        command = helper_command("torchwatt.kineto.join_worker", *arguments)
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        self._job = JoinJob(process, result, covered)
        self._count += 1

    def look(self) -> None:
        """Collect a finished result, without waiting."""
        job = self._job
        if job is None or job.process.poll() is None:
            return
        self._job = None
        try:
            activities = read_activities(job.result)
            self.windows.append(tuple(replace(activity, covered=(job.covered,)) for activity in activities))
        except TraceError as error:
            self.failures.append(str(error))
        job.result.unlink(missing_ok=True)

    def finish(self, patience_s: float = PATIENCE_S) -> None:
        """Wait for the last window, at most `patience_s`."""
        if self._job is not None:
            began = time.monotonic()
            try:
                self._job.process.wait(patience_s)
            except subprocess.TimeoutExpired:
                self._job.process.kill()
                self._job.process.wait()
                self.failures.append(f"joining a window took more than {time.monotonic() - began:.0f} s")
                self._job = None
        self.look()

    def close(self) -> None:
        """Kill the worker and remove the folder; in a forked child, such as a loader's worker, do nothing."""
        if os.getpid() != self._pid:
            return
        if self._job is not None:
            self._job.process.kill()
            self._job.process.wait()
            self._job = None
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder)


MAX_FILLED = 500_000  # records; beyond, one copy of a window stands for several steps

Interval = tuple[int, int]


def extrapolate_windows(
    windows: Sequence[Activity], steps: Sequence[DeviceSteps], rename: Callable[[str], str], least: int = 1
) -> Activity:
    """Merge a device's windows and fill the steps in which it was not recorded.

    Args:
        windows: Of one device, each with one `covered` interval: whole steps, the device idle before and after.
        steps: All steps of the loop on the device, sorted, disjoint.
        rename: From the names in the windows to those of the report.
        least: Minimum number of steps per copy of a window: as many as were recorded in it.
    """
    windows = sorted(windows, key=lambda window: window.covered[0])
    recorded = [window.covered[0] for window in windows]
    unrecorded = _unrecorded_steps(recorded, steps)
    counts = _counts(recorded, steps)
    nearest = _nearest_of_stage(recorded, counts, unrecorded)
    sizes = np.array([len(window) for window in windows], dtype=np.int64)
    each = max(-(-int(sizes[nearest].sum()) // MAX_FILLED), least) if unrecorded else 1
    parts = [(window, _table(window), False) for window in windows]
    for begin, end in _groups(unrecorded, recorded, each):
        group, own = _join_steps(unrecorded[begin:end]), counts[nearest[begin]]
        window = _in_stage(windows[nearest[begin]], frozenset(own), group.stage)
        times = group.steps / max(own[group.stage] or own.total(), 1)
        parts.append((window, _stretch_window(window, group, times), True))
    covered = [*recorded, *((step.start_ns, step.end_ns) for step in unrecorded)]
    together = _merge_parts(parts, rename)
    return replace(
        together,
        covered=_close_gaps(sorted(covered)),
        steps=tuple((step.start_ns, step.end_ns) for step in steps),
        notes=tuple(_notes(windows, counts, unrecorded, each)),
    )


def _close_gaps(covered: Sequence[Interval]) -> tuple[Interval, ...]:
    """Close gaps shorter than `JOINED_NS`, such as between a window and the next step: nothing was queued in them."""
    closed: list[Interval] = []
    for start, end in covered:
        if closed and start - closed[-1][1] < JOINED_NS:
            closed[-1] = closed[-1][0], max(end, closed[-1][1])
        else:
            closed.append((start, end))
    return tuple(closed)


def _unrecorded_steps(recorded: Sequence[Interval], steps: Sequence[DeviceSteps]) -> list[DeviceSteps]:
    """Return the steps that no window overlaps; windows are sorted and disjoint."""
    starts, ends = np.array(recorded, dtype=np.int64).reshape(-1, 2).T
    bounds = np.array([(step.start_ns, step.end_ns) for step in steps], dtype=np.int64).reshape(-1, 2)
    touched = np.searchsorted(starts, bounds[:, 1], side="left") > np.searchsorted(ends, bounds[:, 0], side="right")
    return [step for step, overlaps in zip(steps, touched.tolist(), strict=True) if not overlaps]


def _counts(recorded: Sequence[Interval], steps: Sequence[DeviceSteps]) -> list[Counter[str]]:
    """Return the number of steps by stage in each window: those whose middle lies in it."""
    middles = np.array([(step.start_ns + step.end_ns) // 2 for step in steps], dtype=np.int64)
    counts: list[Counter[str]] = []
    for begin, end in np.searchsorted(middles, np.array(recorded, dtype=np.int64).reshape(-1, 2)).tolist():
        counts.append(Counter())
        for step in steps[begin:end]:
            counts[-1][step.stage] += step.steps
    return counts


def _in_stage(window: Activity, stages: frozenset[str], stage: str) -> Activity:
    """Return the work that a window's steps of one stage did.

    Args:
        window: Its steps are of `stages`. If none is of the wanted one, all are taken for steps of it.
        stages: Stages of the window's steps. Work of other stages is that of other threads, and is kept.
        stage: The wanted stage.
    """
    if stage not in stages:
        moved = tuple(replace(slot, stage=stage) if slot.stage in stages else slot for slot in window.slots)
        return replace(window, slots=moved)
    is_other = np.array([slot.stage in stages and slot.stage != stage for slot in window.slots], dtype=np.bool_)
    return window.take(~is_other[window.slot]) if is_other.any() else window


def _groups(unrecorded: Sequence[DeviceSteps], recorded: Sequence[Interval], each: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of groups of at most `each` adjacent steps of one stage, with no gap or window between them."""
    starts = [start for start, _ in recorded]
    begin = 0
    for i in range(1, len(unrecorded) + 1):
        if i < len(unrecorded) and i - begin < each:
            before, after = unrecorded[i - 1], unrecorded[i]
            is_other = after.start_ns - before.end_ns >= JOINED_NS or after.stage != before.stage
            if not is_other and bisect_right(starts, before.end_ns) == bisect_right(starts, after.start_ns):
                continue
        yield begin, i
        begin = i


def _nearest_of_stage(
    recorded: Sequence[Interval], counts: Sequence[Counter[str]], unrecorded: Sequence[DeviceSteps]
) -> IntArray:
    """Return for each step the nearest window with a step of its stage, or if none has one the nearest."""
    nearest = np.zeros(len(unrecorded), dtype=np.int64)
    for stage in {step.stage for step in unrecorded}:
        mine = [i for i, step in enumerate(unrecorded) if step.stage == stage]
        usable = np.array([i for i, own in enumerate(counts) if own[stage]] or range(len(counts)), dtype=np.int64)
        nearest[mine] = usable[_nearest([recorded[i] for i in usable.tolist()], [unrecorded[i] for i in mine])]
    return nearest


def _nearest(recorded: Sequence[Interval], unrecorded: Sequence[DeviceSteps]) -> IntArray:
    middle = np.array([start + end for start, end in recorded], dtype=np.int64)
    targets = np.array([step.start_ns + step.end_ns for step in unrecorded], dtype=np.int64)
    after = np.clip(np.searchsorted(middle, targets), 0, len(middle) - 1)
    before = np.maximum(after - 1, 0)
    nearest: IntArray = np.where(np.abs(middle[before] - targets) <= np.abs(middle[after] - targets), before, after)
    return nearest


def _join_steps(group: Sequence[DeviceSteps]) -> DeviceSteps:
    steps = sum(step.steps for step in group)
    bound = sum(step.bound for step in group) * 2 > len(group)
    return DeviceSteps(group[0].start_ns, group[-1].end_ns, steps, bound, group[0].stage)


def _table(window: Activity) -> IntArray:
    return np.column_stack((window.start_ns, window.end_ns))


def _stretch_window(window: Activity, group: DeviceSteps, times: float) -> IntArray:
    """Stretch a window over steps: order, overlap and shares are kept.

    Device work takes as long as in the window; only pauses, in which the device waits for the host, are stretched or
    shortened. They are left out where work was queued, and where the steps are too short for them.

    Args:
        window: Its work lies in `covered`, whose length includes the recorder's own time.
        group: The steps.
        times: Ratio of their number to the window's steps.
    """
    start, end = window.covered[0]
    table = np.clip(_table(window) - start, 0, end - start)
    edges, busy = _busy_time(table)
    length, pause = group.end_ns - group.start_ns, end - start - busy[-1]
    pace = length / max(busy[-1], 1)
    if not group.bound and pause > 0:
        pace = min(times, pace)
    slack = (length - pace * busy[-1]) / pause if pause > 0 else 0.0
    worked = np.interp(table, edges, busy)
    laid: IntArray = np.floor(worked * pace + (table - worked) * slack + 0.5).astype(np.int64) + group.start_ns
    return np.clip(laid, group.start_ns, group.end_ns)


def _busy_time(table: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return the edges of records, and the time until each edge in which any record ran; the last is the total."""
    edges = np.unique(np.append(table, 0)).astype(np.float64)
    starts, ends = np.sort(table[:, 0]), np.sort(table[:, 1])
    running = np.searchsorted(starts, edges, side="right") > np.searchsorted(ends, edges, side="right")
    return edges, np.concatenate(([0.0], np.cumsum(np.diff(edges) * running[:-1])))


def _merge_parts(parts: Sequence[tuple[Activity, IntArray, bool]], rename: Callable[[str], str]) -> Activity:
    slots: dict[Slot, int] = {}
    words: dict[str, int] = {}
    slot_maps, word_maps = {}, {}
    for window in {id(window): window for window, *_ in parts}.values():
        named = [replace(slot, fqn=rename(slot.fqn)) for slot in window.slots]
        slot_maps[id(window)] = np.array([slots.setdefault(slot, len(slots)) for slot in named], dtype=np.int64)
        numbers = [words.setdefault(word, len(words)) for word in window.signatures]
        word_maps[id(window)] = np.array(numbers, dtype=np.int64)
    filled = np.concatenate([np.full(len(window), is_filled) for window, _, is_filled in parts])
    times = np.concatenate([table for _, table, _ in parts])
    return Activity(
        device=parts[0][0].device,
        slots=tuple(slots),
        slot=np.concatenate([slot_maps[id(window)][window.slot] for window, *_ in parts]),
        start_ns=times[:, 0],
        end_ns=times[:, 1],
        stream=np.concatenate([window.stream for window, *_ in parts]),
        filled=filled.astype(np.bool_),
        signatures=tuple(words) or ("",),
        signature=np.concatenate([word_maps[id(window)][window.signature] for window, *_ in parts]),
    )


def _notes(
    windows: Sequence[Activity], counts: Sequence[Counter[str]], unrecorded: Sequence[DeviceSteps], each: int
) -> Iterator[str]:
    yield from dict.fromkeys(note for window in windows for note in window.notes)
    n = len(unrecorded)
    yield f"{len(windows)} windows of whole steps were recorded, {n} other steps are filled from the nearest"
    if each > 1 and n:
        yield f"one copy of a window stands for {each} steps"
    for stage in dict.fromkeys(step.stage for step in unrecorded if step.stage):
        if not any(own[stage] for own in counts):
            yield f"no window has a step of the stage {stage!r}: its layers are those of other stages"
