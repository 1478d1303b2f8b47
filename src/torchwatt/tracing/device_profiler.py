"""Record devices in windows of whole steps, as often as the budget allows."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from torchwatt.core.meter import Event, Severity
from torchwatt.core.terms import COMMUNICATION, DATA, IDLE, OPTIMIZER, Slot
from torchwatt.core.trace import Activity
from torchwatt.kineto.host_ownership import RecordedRanges, RecordedStages
from torchwatt.tracing import autograd_recorder
from torchwatt.tracing.device_windows import JoinWorkers, WindowRecorder, extrapolate_windows
from torchwatt.tracing.log_rows import (
    COMMUNICATION_KEY,
    DATA_KEY,
    END,
    FIRST_SCOPE_KEY,
    KEY,
    NO_STAGE,
    OPTIMIZER_KEY,
    SEQ0,
    SEQ1,
    START,
    UNCOUNTED_COMMUNICATION_KEY,
)
from torchwatt.tracing.named_parts import NamedParts
from torchwatt.tracing.step_events import NO_LAG, DeviceLag, HostStep, StepClocks, device_steps, nonempty_steps
from torchwatt.tracing.thread_log import ThreadLog
from torchwatt.tracing.tracing_policy import TracingPolicy, WindowScheduler
from torchwatt.tracing.user_process import device_names, synchronize

WINDOW_KIND = "device window"
SHORT_STEP_NS = 30_000_000  # shorter steps are recorded several at a time
SHORT_STEPS = 3
KEY_MARK = "#"  # prefix of a module's key, until its name is known

Note = Callable[[Severity, str, str], None]

_profiler_is_warm = False


class DeviceProfiler:
    """Record devices on one thread, in windows that begin and end with steps: idle, prepared, recording, idle.

    Args:
        clock_ns: The session's clock.
        note: Receives events.
        meters: Domain of each device's meter by UUID.
        forced: For tests on machines without a device: record the CPU in the same way.
        edit: For tests: may change the exported file before the worker reads it.
    """

    def __init__(
        self,
        clock_ns: Callable[[], int],
        note: Note,
        meters: Mapping[str, str],
        *,
        forced: bool = False,
        edit: Callable[[Path], None] | None = None,
    ) -> None:
        self._clock_ns, self._note, self._edit = clock_ns, note, edit
        activity = torch.profiler.ProfilerActivity
        self._activities = [activity.CPU] if forced else [activity.CPU, activity.CUDA]
        self._synchronize: Callable[[], None] = (lambda: None) if forced else synchronize
        self._forced, self._meters = forced, meters
        self._clocks = None if forced else StepClocks(clock_ns)
        self._jobs = JoinWorkers()
        self._pacer = WindowScheduler(clock_ns())
        self._recorder: WindowRecorder | None = None
        self._log: ThreadLog | None = None  # of the thread whose steps are recorded
        self._logs: Sequence[ThreadLog] = ()  # of all threads
        self._named: NamedParts | None = None
        # Held while a thread advances the window: torch crashes if another prepares one while a trace is exported.
        self._advancing = threading.Lock()
        self._steps_left = 0
        self._most_steps = 1
        self.recording = False
        self._broken = False

    def attach(self, logs: Sequence[ThreadLog], named: NamedParts) -> None:
        """Take the stages of all threads from their logs, which may grow."""
        self._logs, self._named = logs, named

    @property
    def is_on(self) -> bool:
        """Whether a window is prepared or open; no other kind of window may then open."""
        return self._recorder is not None

    def records(self, log: ThreadLog) -> bool:
        """Return whether a thread's next step is recorded, so that its module calls must be logged."""
        return self.recording and log is self._log

    def warm_up(self) -> None:
        """Open and close an empty window, once per process, if a device is in use: the first may take seconds."""
        global _profiler_is_warm
        if _profiler_is_warm or not self._in_use() or autograd_recorder.user_is_profiling():
            return
        try:
            recorder = self._recorder = WindowRecorder(self._clock_ns, self._synchronize, self._activities)
            recorder.prepare()
            recorder.start()
            recorder.stop()
            self._recorder, _profiler_is_warm = None, True
        except Exception as error:
            self._give_up(error)

    def _in_use(self) -> bool:
        """Return whether the program uses a device; any closer query would initialise CUDA."""
        return self._forced or bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]

    def step_ended(self, log: ThreadLog, conductor: TracingPolicy, *, stamp: bool = True) -> None:
        """Advance the window at the end of a thread's step, before the next step is decided on.

        Without `stamp` it is the start of a call, whose predecessor was stamped at its end.
        """
        if self._broken or self._is_of_another(log) or not self._may_ask():
            return
        if not self._advancing.acquire(blocking=False):
            return
        try:
            if self._is_of_another(log):
                return
            if self._clocks is not None and stamp:
                self._clocks.ended(log, conductor.budget, log.stride.step_ns, surely=self.is_on)
            if self.recording:
                self._steps_left -= 1
                if self._steps_left <= 0:
                    self._close(log, conductor)
            elif self._recorder is not None:
                self._open(log)
            elif self._is_due(conductor):
                self._prepare(log)
        except Exception as error:
            self._give_up(error)
        finally:
            self._advancing.release()

    def _is_of_another(self, log: ThreadLog) -> bool:
        """Return whether a window is prepared or open that records another thread's steps."""
        return self._log is not None and log is not self._log

    def call_ended(self, log: ThreadLog, conductor: TracingPolicy) -> None:
        """Stamp the end of an outermost call, where such calls are steps."""
        if self._broken or self._clocks is None or not self._may_ask():
            return
        try:
            self._clocks.ended(log, conductor.budget, log.stride.step_ns, kind="call", surely=self.is_on)
        except Exception as error:
            self._give_up(error)

    def _may_ask(self) -> bool:
        """Return whether devices may be queried: not during graph capture, which a query would break."""
        return self._forced or (self._in_use() and not torch.cuda.is_current_stream_capturing())

    def _is_due(self, conductor: TracingPolicy) -> bool:
        now_ns = self._clock_ns()
        conductor.budget.has_windows = True
        if conductor.budget.share <= 0 or self._jobs.busy:
            return False
        return self._pacer.wants(WINDOW_KIND, now_ns, conductor.budget.room_ns("windows", now_ns))

    def _prepare(self, log: ThreadLog) -> None:
        if autograd_recorder.user_is_profiling():
            self._note("info", "PROFILER_BUSY", "another profiler was running: devices were not recorded meanwhile")
            return
        self._recorder = WindowRecorder(self._clock_ns, self._synchronize, self._activities)
        self._recorder.prepare()
        self._log = log

    def _open(self, log: ThreadLog) -> None:
        recorder = self._recorder
        assert recorder is not None  # noqa: S101 - checked by the caller
        if autograd_recorder.user_is_profiling():
            self._note("info", "PROFILER_BUSY", "another profiler was running: devices were not recorded meanwhile")
            self._recorder = self._log = None
            return
        recorder.start()
        self._waited()
        self.recording = True
        self._steps_left = SHORT_STEPS if log.stride.step_ns < SHORT_STEP_NS else 1
        self._most_steps = max(self._most_steps, self._steps_left)

    def _close(self, log: ThreadLog, conductor: TracingPolicy) -> None:
        recorder = self._recorder
        assert recorder is not None  # noqa: S101 - recording
        self.recording, self._recorder, self._log = False, None, None
        recorder.stop()
        self._waited()
        path = self._jobs.next_trace()
        offset_ns = recorder.export(path)
        if self._edit is not None:
            self._edit(path)
        if offset_ns is None:
            path.unlink(missing_ok=True)
            self._note("info", "CLOCK_STEPPED", "the wall clock was set during a window: window dropped")
        else:
            ranges = self._ranges(log, recorder)
            self._jobs.hand_over(ranges, offset_ns, (recorder.start_ns, recorder.end_ns))
        conductor.budget.pay("windows", recorder.cost_ns)
        self._pacer.paid(WINDOW_KIND, recorder.cost_ns, self._clock_ns())

    def _ranges(self, log: ThreadLog, recorder: WindowRecorder) -> RecordedRanges:
        """Return what a window's worker joins kernels to."""
        if self._named is None:
            return _ranges(log, recorder, ())
        ranges = _ranges(log, recorder, self._named.stage_rows.values())
        return replace(ranges, stages=_stages(self._logs, self._named.stages, recorder))

    def _waited(self) -> None:
        if self._clocks is not None:
            self._clocks.still()

    def _give_up(self, error: Exception) -> None:
        # A private interface of torch failed: continue without windows.
        self._broken, self.recording = True, False
        with contextlib.suppress(Exception):
            if self._recorder is not None and torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
                self._recorder.stop()
        self._recorder = self._log = None
        self._note("warning", "WINDOW_FAILED", f"device windows stopped: {type(error).__name__}: {error}")

    def abandon(self) -> None:
        """Stop an open window, on the thread that opened it."""
        if self.recording and self._recorder is not None:
            self.recording = False
            with contextlib.suppress(Exception):
                self._recorder.stop()
        self._recorder = self._log = None

    def activities(
        self,
        steps: Sequence[HostStep],
        stages: Sequence[str],
        name_of: Callable[[int], str],
        *,
        calls: bool,
        at_end: bool,
        now_ns: int,
    ) -> tuple[tuple[Activity, ...], tuple[Event, ...]]:
        """Return the recorded activity of each device; with `at_end`, wait for the worker first.

        `steps` are the host's: start_ns, end_ns, number of steps, with the stage of each; `calls`: they are outermost
        calls.
        """
        self._jobs.finish() if at_end else self._jobs.look()
        if at_end and self._clocks is not None:
            self._clocks.settle()
        by_device: dict[str, list[Activity]] = {}
        for window in self._jobs.windows:
            for activity in window:
                by_device.setdefault(activity.device, []).append(activity)

        def rename(fqn: str) -> str:
            return name_of(int(fqn[1:])) if fqn.startswith(KEY_MARK) and fqn[1:].lstrip("-").isdecimal() else fqn

        activities = []
        for device, windows in sorted(by_device.items()):
            done = device_steps(steps, self._stamps(device), now_ns, calls=calls)
            done = [step._replace(stage=stage) for step, stage in zip(done, stages, strict=True)]
            activities.append(extrapolate_windows(windows, done, rename, self._most_steps))
        names = device_names(torch.cuda, self._meters) if activities and not self._forced else {}
        named = tuple(replace(activity, device=names.get(activity.device, activity.device)) for activity in activities)
        events = tuple(Event(now_ns, "warning", "WINDOW_LOST", "run", text) for text in self._jobs.failures)
        return named, events

    def windows(self) -> list[tuple[Activity, ...]]:
        """Return the activities of the windows joined so far, one tuple per window, named by the devices' meters."""
        self._jobs.look()
        names = device_names(torch.cuda, self._meters) if self._jobs.windows and not self._forced else {}
        return [
            tuple(replace(activity, device=names.get(activity.device, activity.device)) for activity in window)
            for window in self._jobs.windows
        ]

    def done(self, steps: Sequence[HostStep], now_ns: int, *, calls: bool) -> list[HostStep]:
        """Return the steps as the program's only device did them; the host's steps where there are several devices."""
        only = self._clocks.only() if self._clocks is not None else NO_LAG
        return nonempty_steps(device_steps(steps, only, now_ns, calls=calls)) if len(only.host_ns) else list(steps)

    def _stamps(self, device: str) -> DeviceLag:
        return NO_LAG if self._clocks is None else self._clocks.known(device)

    def close(self) -> None:
        """Stop recording, kill the worker and remove its files."""
        self.abandon()
        self._jobs.close()


def _ranges(log: ThreadLog, recorder: WindowRecorder, stage_rows: Collection[int]) -> RecordedRanges:
    """Return the thread's rows since the window opened, for joining; slots have keys, resolved to names later.

    Rows of stages own nothing: `stage_rows` are their keys.
    """
    table = log.table()
    rows = table[int(np.searchsorted(table[:, END], recorder.start_ns)) :]
    rows = rows[rows[:, START] >= recorder.start_ns]
    shown = rows[
        (rows[:, KEY] > 0)
        | np.isin(rows[:, KEY], (OPTIMIZER_KEY, DATA_KEY, COMMUNICATION_KEY, UNCOUNTED_COMMUNICATION_KEY))
        | ((rows[:, KEY] <= FIRST_SCOPE_KEY) & ~np.isin(rows[:, KEY], list(stage_rows)))
    ]
    keys, slot = np.unique(shown[:, KEY], return_inverse=True)
    return RecordedRanges(
        thread=np.full(len(shown), log.native, dtype=np.int64),
        start_ns=recorder.unix_ns(shown[:, START]),
        end_ns=recorder.unix_ns(shown[:, END]),
        seq0=shown[:, SEQ0],
        seq1=shown[:, SEQ1],
        slot=slot.astype(np.int64),
        slots=tuple(_slot(int(key)) for key in keys),
    )


def _stages(logs: Sequence[ThreadLog], names: Collection[str], recorder: WindowRecorder) -> RecordedStages:
    """Return when threads were in which stage while a window was open; the first of `names` has the number 1."""
    parts = [np.zeros((0, 4), dtype=np.int64)]
    for log in list(logs):
        changes = log.names.stages()
        end_ns = np.append(changes[1:, 0], recorder.end_ns)
        rows = np.insert(changes, 1, end_ns[: len(changes)], axis=1)  # start, end, number
        rows = np.insert(rows, 0, log.native, axis=1)
        parts.append(rows[(rows[:, 2] > recorder.start_ns) & (rows[:, 3] != NO_STAGE)])
    thread, start_ns, end_ns, number = np.concatenate(parts).T
    return RecordedStages(thread, recorder.unix_ns(start_ns), recorder.unix_ns(end_ns), number - 1, tuple(names))


def _slot(key: int) -> Slot:
    if key == OPTIMIZER_KEY:
        return Slot(OPTIMIZER, "optimizer")
    if key == DATA_KEY:
        return Slot(DATA, "data")
    if key in (COMMUNICATION_KEY, UNCOUNTED_COMMUNICATION_KEY):
        return Slot(COMMUNICATION, "communication")
    return Slot(f"{KEY_MARK}{key}", "forward" if key > 0 else "other")


def _add_activity(sums: dict[Slot, float], activity: Activity) -> None:
    """Add a device's busy ns by slot in a window, and its idle ns."""
    length_ns = (activity.end_ns - activity.start_ns).astype(np.float64)
    for slot, ns in zip(
        activity.slots, np.bincount(activity.slot, length_ns, len(activity.slots)).tolist(), strict=True
    ):
        sums[slot] += ns
    order = np.argsort(activity.start_ns, kind="stable")
    reach = np.maximum.accumulate(activity.end_ns[order])
    busy_ns = float((reach - np.maximum(activity.start_ns[order], np.concatenate(([0], reach[:-1])))).clip(0).sum())
    watched_ns = float(sum(end - start for start, end in activity.covered))
    sums[Slot(IDLE, "other")] += max(watched_ns - busy_ns, 0.0)
