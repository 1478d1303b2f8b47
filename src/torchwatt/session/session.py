"""One session from its first reading to its report."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torchwatt.attribution.device_fit import DevicePriors
from torchwatt.attribution.sensor_response import SensorModel
from torchwatt.core.errors import ConfigError, warn
from torchwatt.core.meter import Event, Recording
from torchwatt.core.report import Report, Status, Window
from torchwatt.core.trace import EMPTY_TRACE, Trace
from torchwatt.core.units import NS_PER_S
from torchwatt.distributed.rank_session import RankSession, join_job
from torchwatt.journal.journal_records import RunState, RunStop
from torchwatt.journal.journal_writer import JournalWriter
from torchwatt.reports.process_identity import new_run_id
from torchwatt.reports.report_builder import (
    RunInterval,
    RunOutcome,
    build_report,
    load_sensor_models,
    read_cuda_use,
    report_window,
)
from torchwatt.reports.run_options import RunOptions
from torchwatt.sensors import Feed
from torchwatt.session import session_registry
from torchwatt.session.session_setup import (
    DeferredInterrupt,
    SessionTracing,
    open_feed,
    open_journal,
    sample_baseline,
    start_feed,
)
from torchwatt.tracing import Tracer, wait_for_devices
from torchwatt.views import SpanTimeline, select_spans

if TYPE_CHECKING:
    from torchwatt.generation import RequestLog
    from torchwatt.reports.output_files import WrittenFiles


MAX_COUNT = 2**53  # above this, floats do not hold every count exactly
MAX_FILLED_SPANS = 20_000  # limit on filled spans in a journal
CLOCK_DIFFERS_NS = NS_PER_S // 10
_now_ns = partial(time.monotonic_ns)  # the system's clock, also where the program replaces `time.monotonic_ns`
LOSS_CODES = frozenset({"TRACE_LOST", "READINGS_LOST", "ATTRIBUTION_LOST", "SETTLING_LOST"})


class Session:
    """Owns the feed, the tracer and the clock of one `with profile()` block.

    A session inside another of the same thread reads the outer one's meters: its joules are a window of the
    outer's, not additional ones. In a forked child every method does nothing.
    """

    def __init__(self, options: RunOptions, models: Sequence[tuple[str, Any]] = ()) -> None:
        self.options = options
        self.run_id = new_run_id()
        self.thread = threading.get_ident()
        self.pid = os.getpid()
        self.report: Report | None = None
        self._ended_trace: Trace | None = None  # until `timeline` selects from it
        self._timeline: SpanTimeline | None = None
        self.units: dict[str, float] = {}
        self.written: WrittenFiles | None = None
        self.task = session_registry.current_task()
        self._counting = threading.Lock()
        self.windows: list[Window] = []
        self._events: list[Event] = []
        self._sensors: dict[str, SensorModel] = {}
        self._outer: Session | None = None
        self._feed: Feed | None = None
        self._journal: JournalWriter | None = None
        self._tracing = SessionTracing(options, models, self._fault)
        self._start_ns = self._start_unix_ns = 0
        self._model = models[0][1] if models else None  # identifies the device of this process
        self._member: RankSession | None = None  # if this process is a rank of a job
        self.job_report: Report | None = None
        self.ended_ns: int | None = None  # readings after this are not part of the run

    @property
    def running(self) -> bool:
        """Return whether the session was started and not yet ended, in this process."""
        return self._feed is not None and self.report is None and self.pid == os.getpid()

    def start(self) -> None:
        """Start metering and tracing; if a part fails, those that started are undone."""
        self.thread, self.task = threading.get_ident(), session_registry.current_task()
        self._outer = cast("Session | None", session_registry.enclosing_session(self.thread, self.task))
        if self._outer is None:
            self._member = join_job(
                self.run_id,
                self._model,
                root=self.options.job,
                wants_report=self.options.files,
                wait_s=self.options.job_wait_s,
            )
        self._model = None
        feed = self._outer.feed if self._outer is not None else open_feed(self.options, self._member)
        try:
            self._sensors, events = load_sensor_models(feed.meters)
            self._events += events
            if self._member is not None:
                self._member.begin(feed.meters)
                self.options = self._member.add_journal(self.options)
            self._journal = open_journal(self.options, self.run_id, feed, self._sensors, self._events)
            wait_for_devices()  # work queued before is not part of this run; this may take up to a minute
            if self._outer is None:
                if self._journal is not None:
                    self._journal.lend(feed)
                feed = start_feed(feed, is_user_feed=feed is self.options.feed)
                sample_baseline(feed, self.options.baseline_s)
            self._tracing.start(feed.meters, is_running=lambda: self.running)
            self._feed = feed
            session_registry.register_session(self)
            self._note_nested()
            self._note_concurrent()  # after entering: of two that start together, the second sees the first
            # The run begins before its first reading and ends after its last, so that both lie inside.
            self._start_ns, self._start_unix_ns = _now_ns(), time.time_ns()
            feed.read_now()
            if self._journal is not None:
                self._journal.begin(self, self._start_unix_ns)
            session_registry.notify_start(self)
        except BaseException:  # also KeyboardInterrupt
            self._feed = None
            session_registry.unregister_session(self)
            self._undo(feed)
            raise

    @property
    def outer(self) -> Session | None:
        """Return the session that encloses this one."""
        return self._outer

    @property
    def tracer(self) -> Tracer | None:
        """Return the tracer; None if layers are off or torch is not imported yet."""
        return self._tracing.tracer

    @property
    def start_unix_ns(self) -> int:
        """Return when the run began, in unix nanoseconds."""
        return self._start_unix_ns

    @property
    def nested(self) -> bool:
        """Return whether another session encloses this one."""
        return self._outer is not None

    @property
    def start_ns(self) -> int:
        """Return when the run began, in monotonic nanoseconds."""
        return self._start_ns

    @property
    def feed(self) -> Feed:
        """Return the meters in use; only while running."""
        if self._feed is None:
            raise RuntimeError("the session has not begun")
        return self._feed

    def count(self, unit: str, n: float) -> None:
        """Add to the units of work done; thread-safe.

        Raises:
            ConfigError: The sum would no longer be exact.
        """
        with self._counting:
            counted = self.units.get(unit, 0.0) + n
            if counted > MAX_COUNT:
                raise ConfigError(f"count: {counted:.6g} of a unit exceed 2**53, beyond which sums are not exact")
            self.units[unit] = counted

    @property
    def requests(self) -> RequestLog:
        """Return the requests of language models so far."""
        return self._tracing.requests

    def step(self) -> None:
        """Mark the end of a step."""
        if self.running:
            self._tracing.step()

    def resume(self) -> None:
        """Exclude the time since the last step from the next step."""
        if self.running:
            self._tracing.resume()

    def snapshot(self) -> Report:
        """Return a report of the run so far without ending anything."""
        end_ns = _now_ns()
        trace = self._tracing.snapshot(self._start_ns)
        return self._settle(end_ns, self.feed.snapshot(), trace, "running", "")

    def stop(self, status: Status, reason: str = "") -> None:
        """End the session, make its report, and write the requested files.

        Faults of the profiler do not raise: they add an event and a warning, and the measured data are kept. A Ctrl-C
        during this is raised at the end.
        """
        if not self.running:
            return
        late = DeferredInterrupt()
        late.run(self._end_jitter)
        self.ended_ns = end_ns = late.run(self._last_look)
        trace = late.run(lambda: self._tracing.stop(self._start_ns, end_ns))
        self._ended_trace = trace if self.options.layers else None
        session_registry.unregister_session(self)
        recording = late.run(self._end_feed)
        if (journal := self._journal) is not None:
            stop = RunStop(end_ns, status, reason)
            late.run(lambda: journal.write_stop(self, recording, trace, stop))
        self.report = late.run(lambda: self._best_report(end_ns, recording, trace, status, reason))
        if self._outer is not None:
            self._outer.windows.append(report_window(self.report))
        late.run(lambda: session_registry.notify_end(self, recording))
        late.run(lambda: self._end_job(self.report, recording, trace))
        written = late.run(self._write_files)
        if journal is not None:
            complete = written and not any(event.code in LOSS_CODES for event in self._events)
            late.run(lambda: journal.close(complete=complete))
        if self._member is not None:
            late.run(self._member.tidy)
        late.raise_it()

    def _end_jitter(self) -> None:
        event = self._tracing.end_jitter()
        if event is not None:
            self._events.append(event)

    def _last_look(self) -> int:
        if not wait_for_devices():
            message = "a device was still busy a minute after the block ended: its later work is not in the run"
            self._events.append(Event(time.monotonic_ns(), "warning", "DEVICE_BUSY", "run", message))
        try:
            self.feed.read_now()
        except Exception as error:
            self._fault("EDGE_LOST", "the last reading was lost", error)
        end_ns = _now_ns()
        if abs(time.monotonic_ns() - end_ns) > CLOCK_DIFFERS_NS:
            message = "the program replaced time.monotonic_ns: times of steps and layers are of its clock"
            self._events.append(Event(end_ns, "warning", "CLOCK_REPLACED", "run", message))
        return end_ns

    def _end_feed(self) -> Recording:
        """Return all readings; a nested session leaves the meters running."""
        try:
            # continue sampling until slow counters have published
            if self._outer is None:
                return self.feed.stop()
            self.feed.wait_for_update()
            return self.feed.snapshot()
        except Exception as error:
            self._fault("READINGS_LOST", "the readings were lost", error)
            return Recording(self.feed.meters, (), self.feed.unavailable)

    def close(self, reason: str) -> None:
        """End a session that was left open."""
        self._events.append(Event(time.monotonic_ns(), "warning", "LEFT_OPEN", "run", reason))
        self.stop("partial", reason)

    def _best_report(self, end_ns: int, recording: Recording, trace: Trace, status: Status, reason: str) -> Report:
        """Make the report; if that fails, one without layers; if that fails too, one without joules."""
        try:
            return self._settle(end_ns, recording, trace, status, reason)
        except Exception as error:
            self._fault("ATTRIBUTION_LOST", "the layers were lost", error)
        try:
            return self._settle(end_ns, recording, EMPTY_TRACE, "partial", reason)
        except Exception as error:
            self._fault("SETTLING_LOST", "the joules were lost", error)
        nothing = Recording((), (), recording.unavailable, recording.events)
        return self._settle(end_ns, nothing, EMPTY_TRACE, "partial", reason)

    def _settle(self, end_ns: int, recording: Recording, trace: Trace, status: Status, reason: str) -> Report:
        bounds = RunInterval(self._start_ns, end_ns, self._start_unix_ns)
        stopped = self._journal.event(recording.events) if self._journal is not None else None
        outcome = RunOutcome(
            status,
            reason,
            dict(self.units),
            tuple(self.windows),
            (*self._events, stopped) if stopped is not None else tuple(self._events),
            DevicePriors(sensors=self._sensors, cuda=read_cuda_use(recording.meters)),
            excluded=self._member.owned.excluded if self._member is not None else (),
            requests=self._tracing.requests.batches(),
            models=self._tracing.requests.models,
        )
        return build_report(self.run_id, self.options, bounds, recording, trace, outcome)

    def _end_job(self, report: Report | None, recording: Recording, trace: Trace) -> None:
        """Write this rank's part, and merge the job if this rank can."""
        if self._member is None or report is None:
            return
        try:
            self.job_report = self._member.end(report, recording, trace)
        except Exception as error:
            self._fault("JOB_LOST", "this rank's part of the job was not kept", error)

    def _of_record(self) -> Report | None:
        """Return the report to write files from: in a job the merged one, on one rank only; None on the others."""
        if self._member is None:
            return self.report
        return (self.job_report or self.report) if self._member.leads_files else None

    def _write_files(self) -> bool:
        """Write the requested files; return whether all were written."""
        from torchwatt.reports.output_files import write_outputs

        report = self._of_record()
        if report is None:
            return False
        self.written = write_outputs(report, self.options)
        return self.written.complete

    def _undo(self, feed: Feed) -> None:
        with contextlib.suppress(Exception):
            if self._member is not None:
                self._member.undo()
        with contextlib.suppress(Exception):
            self._tracing.undo()
        if self._outer is None:
            with contextlib.suppress(Exception):
                feed.stop()
        if self._journal is not None:
            self._journal.discard()

    def _note_nested(self) -> None:
        if self._outer is not None:
            message = f"inside run {self._outer.run_id}, which includes these joules: do not add them up"
            self._events.append(Event(time.monotonic_ns(), "info", "NESTED_SESSION", "run", message))

    def _note_concurrent(self) -> None:
        now_ns = time.monotonic_ns()
        for session in session_registry.concurrent_sessions(self, self._outer):
            message = "another session ran at the same time; both metered the same devices: do not add them up"
            event = Event(now_ns, "warning", "CONCURRENT_SESSION", "run", message)
            self._events.append(event)
            cast("Session", session).note(event)

    def trace(self) -> Trace | None:
        """Return the trace so far, with at most `MAX_FILLED_SPANS` filled spans; None without tracer. Thread-safe."""
        return self._tracing.tracer.snapshot(MAX_FILLED_SPANS) if self._tracing.tracer is not None else None

    def timeline(self) -> SpanTimeline | None:
        """Return the longest spans of the modules, while the session runs those so far; None if layers are not traced.

        Selected at the first call after the end.
        """
        if self.running:
            trace = self.trace()
            return None if trace is None else select_spans(trace)
        if self._ended_trace is not None:
            self._timeline, self._ended_trace = select_spans(self._ended_trace), None
        return self._timeline

    def state(self, recording: Recording) -> RunState:
        """Return the state so far beside readings and spans."""
        return RunState(
            dict(self.units),
            tuple(self.windows),
            tuple(
                Window(s.options.name, s.start_ns, s.start_ns, None)
                for s in cast("list[Session]", session_registry.nested_sessions(self))
            ),
            (*recording.events, *self._events),
            recording.unavailable,
            recording.stats.mode,
        )

    def add_window(self, window: Window) -> None:
        """Add a window, also to the enclosing sessions: `torchwatt run` shows a script's epochs."""
        self.windows.append(window)
        if self._outer is not None:
            self._outer.add_window(window)

    def note(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)

    def _fault(self, code: str, consequence: str, error: Exception) -> None:
        message = f"{consequence}: {type(error).__name__}: {error}"
        self._events.append(Event(time.monotonic_ns(), "error", code, "run", message))
        warn(f"torchwatt: {message}")

    @property
    def elapsed_s(self) -> float:
        """Return seconds since the start."""
        return (_now_ns() - self._start_ns) / NS_PER_S
