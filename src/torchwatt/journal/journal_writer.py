"""Writer of a journal: a thread in the user's process that appends state and spans beside the sampler's readings."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from torchwatt.core.errors import BundleError, warn
from torchwatt.core.journal_format import FrameKind, ReadingsBlock, pack_blocks
from torchwatt.core.meter import Event, Recording, Series
from torchwatt.core.requests import RequestBatch
from torchwatt.core.trace import Trace
from torchwatt.core.units import NS_PER_S
from torchwatt.disk.helper_thread import HelperThread
from torchwatt.journal.journal_directory import MAX_READINGS_BYTES, MAX_WORK_BYTES, WORK_FILE, JournalDirectory
from torchwatt.journal.journal_records import EndedRequests, JournalHead, RunStart, RunState, RunStop, encode_record
from torchwatt.journal.trace_codec import pack_trace
from torchwatt.sensors import Feed, Sampler
from torchwatt.sensors.ring_journal import (
    ANCHORS,
    INSTANT,
    JOURNAL_STOPPED,
    PART_RECORDS,
    READINGS_FILE,
    RECORD_BYTES,
    WRITE_S,
    WRITES_PER_SYNC,
    stopped_message,
)

MOST_KEYS = 10_000


class UnwrittenReadings:
    """Tracks which readings were written, so that each is written once."""

    def __init__(self, since_ns: int = 0) -> None:
        self._since_ns = since_ns
        self._known: dict[str, int] = {}

    @property
    def since_ns(self) -> int:
        """Return the earliest instant from which readings are needed."""
        return min(self._known.values(), default=self._since_ns)

    def blocks(self, recording: Recording) -> list[ReadingsBlock]:
        """Return the readings that were not returned before."""
        new_blocks = []
        for series in recording.series:
            key = series.channel.key
            since_ns = self._known.get(key, self._since_ns)
            fresh = series.between(since_ns, np.iinfo(np.int64).max - 1)
            if len(fresh):
                self._known[key] = int(fresh.t_ns[-1]) + 1
                new_blocks.append(series_block(fresh))
        return new_blocks


def series_block(series: Series, stride: int = 1) -> ReadingsBlock:
    """Return a series as a block."""
    t_ns, raw, late_ns = (np.ascontiguousarray(c[::stride]) for c in (series.t_ns, series.raw, series.late_ns))
    period_ns = series.channel.period_ns * stride
    return ReadingsBlock(series.channel.key, period_ns, t_ns.tobytes(), raw.tobytes(), late_ns.tobytes())


def anchors_block(pairs: Iterable[tuple[int, int]]) -> ReadingsBlock:
    """Return pairs of (monotonic, realtime) nanoseconds as a block."""
    table = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    mono, real = (np.ascontiguousarray(table[:, i]).tobytes() for i in (0, 1))
    return ReadingsBlock(ANCHORS, 0, mono, bytes(len(mono)), real)


def frame_blocks(recording: Recording, stride: int) -> Iterator[ReadingsBlock]:
    """Yield all readings in blocks of at most one frame."""
    for series in recording.series:
        for at in range(0, len(series), PART_RECORDS * stride):
            t_ns = series.t_ns[at : at + PART_RECORDS * stride]
            yield series_block(series.between(int(t_ns[0]), int(t_ns[-1])), stride)


def _request_payloads(batches: Sequence[RequestBatch]) -> Iterator[bytes]:
    """Yield batches of requests as payloads that are short enough for a frame."""
    for at in range(0, len(batches), MAX_BATCHES):
        yield encode_record(EndedRequests(tuple(batches[at : at + MAX_BATCHES])))


MAX_BATCHES = 200  # in one frame; each has at most 4,096 times of tokens
WRITES_PER_STATE = 4  # writes
# Fraction of run time for assembling spans; one takes 20 to 60 ms, so a kill loses the layers of the last 10 to 20 s.
TRACE_SHARE = 0.003
TRACE_ALLOWANCE_S = 0.1  # initial allowance, so that short runs have layers too
FIRST_TRACE_S = 0.5
BASELINE_NS = 61 * NS_PER_S  # readings are written from this long before the start: the longest baseline
REWRITTEN_NS = 3 * NS_PER_S  # readings this long before the end are written once more


class RequestSource(Protocol):
    """Has the requests of a session."""

    def batches(self, first: int = 0) -> tuple[RequestBatch, ...]:
        """Return the batches of requests that ended so far, from the `first` one on."""


class JournalledSession(Protocol):
    """What a journal needs of a session."""

    pid: int

    @property
    def feed(self) -> Feed: ...  # noqa: D102
    @property
    def requests(self) -> RequestSource: ...  # noqa: D102
    @property
    def start_ns(self) -> int: ...  # noqa: D102

    def state(self, recording: Recording) -> RunState:
        """Return the state so far beside readings and spans."""

    def trace(self) -> Trace | None:
        """Return the trace so far; None if modules are not traced."""


class JournalWriter:
    """Writes from `begin` to `ended`.

    No method raises for a disk fault: it warns once, and the run goes on.
    """

    def __init__(self, place: JournalDirectory, head: JournalHead, *, user_named: bool) -> None:
        self._place = place
        self._head = encode_record(head)
        self._begin = b""
        self._kept = user_named
        self._file = place.work
        self._own = UnwrittenReadings()
        self._sampler_writes = False
        self._state = b""
        self._trace = b""
        self._trace_due_s = 0.0
        self._trace_cost_s = 0.0
        self._writes = 0
        self._requests = 0  # batches written
        self._shortest = 0  # bytes of the work file when it was last written anew
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: HelperThread | None = None
        self._warned = False
        self._file.add(FrameKind.HEAD, self._head)
        place.readings.add(FrameKind.HEAD, self._head)
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

    def begin(self, session: JournalledSession, start_unix_ns: int) -> None:
        """Write the BEGIN frame and start the writer thread."""
        self._begin = encode_record(RunStart(session.start_ns, start_unix_ns))
        self._file.add(FrameKind.BEGIN, self._begin)
        self._trace_due_s = time.monotonic() + FIRST_TRACE_S
        self._own = UnwrittenReadings(session.start_ns - BASELINE_NS)
        # The first counter readings were taken here, not in the sampler process.
        self._readings(session.feed.snapshot(session.start_ns - NS_PER_S), UnwrittenReadings())
        self._thread = HelperThread(partial(self._run, session), "torchwatt-journal")
        self._thread.start()

    def write_stop(self, session: JournalledSession, recording: Recording, trace: Trace, stop: RunStop) -> None:
        """Write everything that the report will be made from, after the block has ended."""
        state = session.state(recording)

        def write() -> None:
            self._readings(
                recording, UnwrittenReadings(stop.end_ns - REWRITTEN_NS) if self._sampler_writes else self._own
            )
            self._put_state(state)
            self._put_requests(session.requests.batches(self._requests))
            self._put_trace(trace, stop.end_ns)
            self._file.add(FrameKind.STOP, encode_record(stop))
            self._file.sync()

        self._ask(write)

    def close(self, *, complete: bool) -> None:
        """Complete the journal after the report is written; remove it if the user did not request it."""

        def write() -> None:
            self._file.add(FrameKind.END, b"")
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
        if (
            not self._file.fault
            or self._file.fault == "closed"
            or any(event.code == JOURNAL_STOPPED for event in events)
        ):
            return None
        return Event(time.monotonic_ns(), "warning", JOURNAL_STOPPED, "run", stopped_message(self._file.fault))

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

    def _run(self, session: JournalledSession) -> None:
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

    def _write(self, session: JournalledSession) -> None:
        self._writes += 1
        self._file.add(FrameKind.BEAT, INSTANT.pack(time.monotonic_ns()))
        self._take_over(session)
        full = self._writes % WRITES_PER_STATE == 1
        if full or not self._sampler_writes:
            recording = session.feed.snapshot(time.monotonic_ns() if self._sampler_writes else self._own.since_ns)
            if not self._sampler_writes:
                self._readings(recording, self._own)
            if full:
                self._put_state(session.state(recording))
                self._warn(next((e.message for e in recording.events if e.code == JOURNAL_STOPPED), ""))
        self._put_requests(session.requests.batches(self._requests))
        if time.monotonic() >= self._trace_due_s:
            self._look_at_spans(session)
        if self._writes % WRITES_PER_SYNC == 0:
            self._file.sync()
        # Requests are all kept: where they alone exceed the bound, the file is written anew each time it has doubled.
        bound = MAX_WORK_BYTES + (0 if self._sampler_writes else MAX_READINGS_BYTES)
        if self._file.size > max(bound, 2 * self._shortest):
            self._file.replace(self._shorter(session), self._place.folder, WORK_FILE)
            self._shortest = self._file.size

    def _take_over(self, session: JournalledSession) -> None:
        """Start writing readings here if no sampler process writes them, or it has stopped."""
        feed = session.feed
        if self._sampler_writes and not (isinstance(feed, Sampler) and feed.sampler_pid is not None):
            self._sampler_writes = False
            age_ns = 0
            with contextlib.suppress(OSError):  # time of its last write
                age_ns = time.time_ns() - os.stat(READINGS_FILE, dir_fd=self._place.folder).st_mtime_ns
            self._own = UnwrittenReadings(time.monotonic_ns() - max(age_ns, 0) - 5 * NS_PER_S)

    def _readings(self, recording: Recording, new: UnwrittenReadings) -> None:
        blocks = new.blocks(recording)
        if blocks:
            self._file.add(FrameKind.READINGS, pack_blocks([*blocks, anchors_block(recording.anchors[-2:])]))

    def _put_state(self, state: RunState) -> None:
        payload = encode_record(state)
        if payload != self._state and self._file.add(FrameKind.STATE, payload):
            self._state = payload

    def _put_requests(self, batches: Sequence[RequestBatch]) -> None:
        for payload in _request_payloads(batches):
            self._file.add(FrameKind.REQUESTS, payload)
        self._requests += len(batches)

    def _look_at_spans(self, session: JournalledSession) -> None:
        began_s, began_cpu_s = time.monotonic(), time.thread_time()
        until_ns = time.monotonic_ns()
        trace = session.trace()
        if trace is None:
            self._trace_due_s = float("inf")
            return
        self._put_trace(trace, until_ns)
        self._trace_cost_s += time.thread_time() - began_cpu_s
        wait_s = (
            max(self._trace_cost_s - TRACE_ALLOWANCE_S, 0.0) / TRACE_SHARE
            - (time.monotonic_ns() - session.start_ns) / NS_PER_S
        )
        self._trace_due_s = began_s + max(wait_s, FIRST_TRACE_S)

    def _put_trace(self, trace: Trace, until_ns: int) -> None:
        with contextlib.suppress(BundleError):  # longer than a frame may be: the previous trace stays
            packed = pack_trace(trace, until_ns)
            if self._file.add(FrameKind.TRACE, packed):
                self._trace = packed

    def _shorter(self, session: JournalledSession) -> Iterator[tuple[FrameKind, bytes]]:
        """Yield the minimal content of the file: the latest frame of each kind."""
        yield FrameKind.HEAD, self._head
        yield FrameKind.BEGIN, self._begin
        if not self._sampler_writes:
            recording = session.feed.snapshot()
            stride = 1
            while sum(map(len, recording.series)) * RECORD_BYTES / stride > MAX_READINGS_BYTES / 2:
                stride *= 2
            for block in frame_blocks(recording, stride):
                yield FrameKind.READINGS, pack_blocks([block])
        yield FrameKind.STATE, self._state
        for payload in _request_payloads(session.requests.batches()[: self._requests]):
            yield FrameKind.REQUESTS, payload
        if self._trace:
            yield FrameKind.TRACE, self._trace

    def _warn(self, message: str) -> None:
        """Warn once, for whichever of the two files fails first."""
        if message and not self._warned:
            self._warned = True
            warn(f"torchwatt: {message}")
