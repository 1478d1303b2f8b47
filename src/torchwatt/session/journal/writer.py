"""Writer of a journal: a thread in the user's process that appends state and spans beside the sampler's readings."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

from torchwatt.core.blocks import pack
from torchwatt.core.errors import BundleError
from torchwatt.core.frame import Kind
from torchwatt.core.meter import Event, Recording
from torchwatt.core.trace import Trace
from torchwatt.core.units import NS_PER_S
from torchwatt.core.warn import warn
from torchwatt.disk.helper_thread import HelperThread
from torchwatt.sensors import Feed, Sampler
from torchwatt.sensors.journal.rings import (
    INSTANT,
    READINGS,
    RECORD_BYTES,
    STOPPED,
    WRITE_S,
    WRITES_A_SYNC,
    stopped_message,
)
from torchwatt.session.journal import readings
from torchwatt.session.journal.place import MOST_READINGS_BYTES, MOST_WORK_BYTES, WORK, Place
from torchwatt.session.journal.spans import pack_trace
from torchwatt.session.journal.told import Begin, Head, State, Stop, to_json

STATE_EVERY = 4  # writes
# Fraction of run time for assembling spans; one takes 20 to 60 ms, so a kill loses the layers of the last 10 to 20 s.
TRACE_SHARE = 0.003
TRACE_GRANT_S = 0.1  # initial allowance, so that short runs have layers too
FIRST_TRACE_S = 0.5
BASELINE_NS = 61 * NS_PER_S  # readings are written from this long before the start: the longest baseline
LAST_NS = 3 * NS_PER_S  # readings this long before the end are written once more


class Watched(Protocol):
    """What a journal needs of a session."""

    pid: int

    @property
    def feed(self) -> Feed: ...  # noqa: D102
    @property
    def start_ns(self) -> int: ...  # noqa: D102

    def state(self, recording: Recording) -> State:
        """Return the state so far beside readings and spans."""

    def trace(self) -> Trace | None:
        """Return the trace so far; None if modules are not traced."""


class Journal:
    """Writes from `begin` to `ended`.

    No method raises for a disk fault: it warns once, and the run goes on.
    """

    def __init__(self, place: Place, head: Head, *, user_named: bool) -> None:
        self._place = place
        self._head = to_json(head)
        self._begin = b""
        self._kept = user_named
        self._file = place.work
        self._own = readings.New()
        self._sampler_writes = False
        self._state = b""
        self._trace = b""
        self._trace_due_s = 0.0
        self._trace_cost_s = 0.0
        self._writes = 0
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: HelperThread | None = None
        self._warned = False
        self._file.add(Kind.HEAD, self._head)
        place.readings.add(Kind.HEAD, self._head)
        self._file.sync()
        place.readings.sync()

    @property
    def path(self) -> Path:
        """Return the journal's folder."""
        return self._place.path

    def lend(self, feed: Feed) -> None:
        """Pass the readings file to a sampler that is not started yet, which then appends its readings."""
        if isinstance(feed, Sampler) and not self._place.readings.fault:
            feed.journal = self._place.for_sampler()
            self._sampler_writes = True

    def begin(self, session: Watched, start_unix_ns: int) -> None:
        """Write the BEGIN frame and start the writer thread."""
        self._begin = to_json(Begin(session.start_ns, start_unix_ns))
        self._file.add(Kind.BEGIN, self._begin)
        self._trace_due_s = time.monotonic() + FIRST_TRACE_S
        self._own = readings.New(session.start_ns - BASELINE_NS)
        # The first counter readings were taken here, not in the sampler process.
        self._readings(session.feed.snapshot(session.start_ns - NS_PER_S), readings.New())
        self._thread = HelperThread(partial(self._run, session), "torchwatt-journal")
        self._thread.start()

    def stopped(self, state: State, recording: Recording, trace: Trace, stop: Stop) -> None:
        """Write everything that the report will be made from, after the block has ended."""

        def write() -> None:
            self._readings(recording, readings.New(stop.end_ns - LAST_NS) if self._sampler_writes else self._own)
            self._put_state(state)
            self._put_trace(trace, stop.end_ns)
            self._file.add(Kind.STOP, to_json(stop))
            self._file.sync()

        self._ask(write)

    def ended(self, *, complete: bool) -> None:
        """Complete the journal after the report is written; remove it if the user did not request it."""

        def write() -> None:
            self._file.add(Kind.END, b"")
            self._file.sync()

        if complete and self._kept:
            self._ask(write)
        self._halt()
        if complete and not self._kept:
            self._place.remove()
        else:
            self._place.close()

    def discard(self) -> None:
        """Remove the journal of a session that failed to start."""
        self._halt()
        self._place.remove()

    def event(self, events: tuple[Event, ...]) -> Event | None:
        """Return the event of a journal that stopped early, unless it is in `known`."""
        if not self._file.fault or self._file.fault == "closed" or any(event.code == STOPPED for event in events):
            return None
        return Event(time.monotonic_ns(), "warning", STOPPED, "run", stopped_message(self._file.fault))

    def _ask(self, job: Callable[[], None], timeout_s: float = 2.0) -> None:
        """Run a job in the writer thread and wait for it, at most `timeout_s` because a disk may hang."""
        if self._thread is None or not self._thread.is_alive():
            return
        done = threading.Event()

        def and_tell() -> None:
            try:
                job()
            finally:
                done.set()

        self._jobs.put(and_tell)
        done.wait(timeout_s)

    def _halt(self) -> None:
        self._jobs.put(None)
        thread = self._thread
        if thread is not None and not thread.is_current():
            thread.join(2.0)

    def _run(self, session: Watched) -> None:
        """Write until stopped; a failure must not reach the user's run."""
        while session.pid == os.getpid():
            try:
                job = self._jobs.get(timeout=WRITE_S)
            except queue.Empty:
                job = partial(self._write, session)
            if job is None:
                return
            try:
                job()
            except Exception as error:
                self._file.fault = self._file.fault or f"{type(error).__name__}: {error}"
            if self._file.fault:
                self._warn(stopped_message(self._file.fault))
                return

    def _write(self, session: Watched) -> None:
        self._writes += 1
        self._file.add(Kind.BEAT, INSTANT.pack(time.monotonic_ns()))
        self._take_over(session)
        full = self._writes % STATE_EVERY == 1
        if full or not self._sampler_writes:
            recording = session.feed.snapshot(time.monotonic_ns() if self._sampler_writes else self._own.since_ns)
            if not self._sampler_writes:
                self._readings(recording, self._own)
            if full:
                self._put_state(session.state(recording))
                self._warn(next((e.message for e in recording.events if e.code == STOPPED), ""))
        if time.monotonic() >= self._trace_due_s:
            self._look_at_spans(session)
        if self._writes % WRITES_A_SYNC == 0:
            self._file.sync()
        if self._file.size > MOST_WORK_BYTES + (0 if self._sampler_writes else MOST_READINGS_BYTES):
            self._file.replace(self._shorter(session), self._place.folder, WORK)

    def _take_over(self, session: Watched) -> None:
        """Start writing readings here if no sampler process writes them, or it has stopped."""
        feed = session.feed
        if self._sampler_writes and not (isinstance(feed, Sampler) and feed.sampler_pid is not None):
            self._sampler_writes = False
            age_ns = 0
            with contextlib.suppress(OSError):  # time of its last write
                age_ns = time.time_ns() - os.stat(READINGS, dir_fd=self._place.folder).st_mtime_ns
            self._own = readings.New(time.monotonic_ns() - max(age_ns, 0) - 5 * NS_PER_S)

    def _readings(self, recording: Recording, new: readings.New) -> None:
        blocks = new.blocks(recording)
        if blocks:
            self._file.add(Kind.READINGS, pack([*blocks, readings.anchors_of(recording.anchors[-2:])]))

    def _put_state(self, state: State) -> None:
        payload = to_json(state)
        if payload != self._state and self._file.add(Kind.STATE, payload):
            self._state = payload

    def _look_at_spans(self, session: Watched) -> None:
        began_s, began_cpu_s = time.monotonic(), time.thread_time()
        until_ns = time.monotonic_ns()
        trace = session.trace()
        if trace is None:
            self._trace_due_s = float("inf")
            return
        self._put_trace(trace, until_ns)
        self._trace_cost_s += time.thread_time() - began_cpu_s
        wait_s = (
            max(self._trace_cost_s - TRACE_GRANT_S, 0.0) / TRACE_SHARE
            - (time.monotonic_ns() - session.start_ns) / NS_PER_S
        )
        self._trace_due_s = began_s + max(wait_s, FIRST_TRACE_S)

    def _put_trace(self, trace: Trace, until_ns: int) -> None:
        with contextlib.suppress(BundleError):  # longer than a frame may be: the previous trace stays
            packed = pack_trace(trace, until_ns)
            if self._file.add(Kind.TRACE, packed):
                self._trace = packed

    def _shorter(self, session: Watched) -> Iterator[tuple[Kind, bytes]]:
        """Yield the minimal content of the file: the latest frame of each kind."""
        yield Kind.HEAD, self._head
        yield Kind.BEGIN, self._begin
        if not self._sampler_writes:
            recording = session.feed.snapshot()
            stride = 1
            while sum(map(len, recording.series)) * RECORD_BYTES / stride > MOST_READINGS_BYTES / 2:
                stride *= 2
            for block in readings.parts(recording, stride):
                yield Kind.READINGS, pack([block])
        yield Kind.STATE, self._state
        if self._trace:
            yield Kind.TRACE, self._trace

    def _warn(self, message: str) -> None:
        """Warn once, for whichever of the two files fails first."""
        if message and not self._warned:
            self._warned = True
            warn(f"torchwatt: {message}")
