"""Samples all meters of a discovery from `start` to `stop`, in a separate process if possible, else in threads."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from torchwatt.core.errors import SensorError
from torchwatt.core.meter import Event, Meter, Quantity, Recording, SamplerStats, Unavailable
from torchwatt.core.units import NS_PER_S
from torchwatt.disk.helper_thread import HelperThread
from torchwatt.sensors import recording_builder
from torchwatt.sensors.nvml import appeared_gpu_events
from torchwatt.sensors.protocol import Discovery
from torchwatt.sensors.recording_builder import BoundaryReader, boundary_channels, read_boundaries
from torchwatt.sensors.sample_buffer import (
    CPU_NS,
    MISSED,
    READS,
    ROUNDS,
    SampleBuffer,
    SampleRing,
    create_memory_file,
    file_size_limit,
)
from torchwatt.sensors.sampler_main import make_loops, record_anchor, ring_capacities, start_threads
from torchwatt.sensors.sampler_process import LOW_OVERHEAD_PERIODS, SamplerProcess, sampler_config
from torchwatt.sensors.source_loop import GAP_PERIODS

CAPACITY = 1 << 20  # readings per channel before thinning: 5.8 h at 20 ms; unwritten pages use no memory
PRIVATE_CAPACITY = 1 << 16
MIN_CAPACITY, MIN_SHARED_BYTES = 64, 1 << 18  # below these no memory is shared with a sampler process
FIRST_SAMPLE_S = 2.0
_SLOW_SOURCES_S = 0.25  # wait for slow sources after the first one has been read
_COARSE_NS = 20_000_000
SILENT_NS = NS_PER_S  # without a reading of any channel at the end of a run
_TAIL_NS = 150_000_000

Mode = Literal["process", "thread"]


@dataclass(slots=True)
class _SamplerResources:
    """Resources of a running sampler: the process or the threads, the edge readers, the memory."""

    board: SampleBuffer
    config: dict[str, Any]
    edges: list[BoundaryReader]
    pid: int
    start_ns: int
    alone: bool = False  # no other process can see the board
    child: SamplerProcess | None = None
    watch: HelperThread | None = None
    threads: list[HelperThread] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def rings(self) -> dict[str, SampleRing]:
        """Return the rings by channel key."""
        keys = [tap["key"] for source in self.config["sources"] for tap in source["taps"]]
        return dict(zip(keys, self.board.rings, strict=False))

    def halt(self, timeout_s: float = 1.0) -> None:
        """End the process and the threads."""
        self.stop.set()
        if self.child is not None:
            self.child.stop()
        deadline_s = time.monotonic() + timeout_s
        watching = () if self.watch is None or self.watch.is_current() else (self.watch,)
        for thread in (*self.threads, *watching):
            thread.join(max(deadline_s - time.monotonic(), 0))
        for edge in self.edges:
            edge.abandon()
        for edge in self.edges:
            edge.close(max(deadline_s - time.monotonic(), 0))

    def close(self) -> None:
        """Unmap the memory, unless a thread that hangs in a driver may still write to it."""
        if not any(thread.is_alive() for thread in self.threads):
            self.board.close()


def _release(running: _SamplerResources) -> None:
    """Release the resources of a sampler that was garbage-collected without `stop`; no effect in a forked child."""
    if running.pid == os.getpid():
        with contextlib.suppress(Exception):  # at interpreter shutdown modules may be gone already
            running.halt(timeout_s=0)


def _replace_when_ended(sampler: weakref.ref[Sampler], child: SamplerProcess) -> None:
    """Replace a sampler process as soon as it dies, so that no wrap-around of a counter is missed."""
    child.wait()
    owner = None if child.stopping else sampler()
    if owner is not None:
        owner.take_over(child)


class Sampler:
    """The `Feed` of real meters.

    A separate process reads the meters into shared memory; this process reads counters at the edges only. If no process
    can be started, threads of this process sample, and the recording has an event. In a forked child all methods do
    nothing. `thrifty` halves the rate at which CPU times and models are read.
    """

    def __init__(
        self, discovery: Discovery, *, mode: Mode = "process", capacity: int = CAPACITY, thrifty: bool = False
    ) -> None:
        self._discovery = discovery
        self._sources = tuple(s for s in discovery.sources if any(m.channels for m in s.meters))
        self._mode: Mode = mode
        self._capacity = capacity
        self._thrifty = thrifty
        self._lock = threading.RLock()
        self._running: _SamplerResources | None = None
        self._events: list[Event] = []
        self._result: Recording | None = None
        self._pid: int | None = None
        self.journal: tuple[int, ...] = ()  # for the sampler process: descriptors of file and folder, most bytes

    @property
    def meters(self) -> tuple[Meter, ...]:
        """Return the sampled meters."""
        return self._discovery.meters

    @property
    def unavailable(self) -> tuple[Unavailable, ...]:
        """Return the domains that cannot be metered, with reasons."""
        return self._discovery.unavailable

    @property
    def sampler_pid(self) -> int | None:
        """Return the id of the sampler process; None while threads sample or nothing does."""
        running = self._running
        return running.child.pid if running is not None and running.child is not None else None

    def start(self) -> None:
        """Start sampling and read the counters once; a second call does nothing."""
        if self._is_forked():
            return
        with self._lock:
            if self._running is not None or self._result is not None:
                return
            self._pid = os.getpid()
            fd = create_memory_file("torchwatt-board")
            try:
                self._running = running = self._open(fd)
                if self._mode == "process" and not running.alone:
                    self._spawn(running, fd)
            finally:
                os.close(fd)
            weakref.finalize(self, _release, running).atexit = False
            running.edges += [BoundaryReader(source) for source in self._sources if boundary_channels(source)]
            for edge in running.edges:
                edge.ask()  # opens the drivers here while the process starts
            if not self._ready(running):
                self._fall_back(running)
            self.read_now()

    def _open(self, fd: int) -> _SamplerResources:
        """Map the shared memory; if that fails (address space limit, ulimit -v), with rings 1/16 as long.

        With a file size limit (ulimit -f), rings are as long as it allows. If it is too small, threads of this process
        sample into private memory.
        """
        most_bytes = file_size_limit()
        if most_bytes is not None:
            return self._open_small(fd, most_bytes)
        config = sampler_config(self._sources, self._capacity, thrifty=self._thrifty)
        try:
            board = SampleBuffer.map(fd, len(config["sources"]), ring_capacities(config))
        except OSError:
            config = sampler_config(self._sources, max(self._capacity // 16, 2), thrifty=self._thrifty)
            board = SampleBuffer.map(fd, len(config["sources"]), ring_capacities(config))
        return _SamplerResources(board, config, [], os.getpid(), record_anchor(board))

    def _open_small(self, fd: int, most_bytes: int) -> _SamplerResources:
        capacity = self._capacity
        config = sampler_config(self._sources, capacity, thrifty=self._thrifty)
        while (
            capacity > MIN_CAPACITY and SampleBuffer.size(len(config["sources"]), ring_capacities(config)) > most_bytes
        ):
            capacity //= 2
            config = sampler_config(self._sources, capacity, thrifty=self._thrifty)
        if (
            most_bytes >= MIN_SHARED_BYTES
            and SampleBuffer.size(len(config["sources"]), ring_capacities(config)) <= most_bytes
        ):
            board = SampleBuffer.map(fd, len(config["sources"]), ring_capacities(config))
            return _SamplerResources(board, config, [], os.getpid(), record_anchor(board))
        config = sampler_config(self._sources, min(self._capacity, PRIVATE_CAPACITY), thrifty=self._thrifty)
        board = SampleBuffer.private(len(config["sources"]), ring_capacities(config))
        message = (
            f"sampling in threads of this process: files of {most_bytes} bytes at most (ulimit -f) share no readings"
        )
        self._event("warning", "SAMPLER_THREAD", "run", message)
        return _SamplerResources(board, config, [], os.getpid(), record_anchor(board), alone=True)

    def _spawn(self, running: _SamplerResources, fd: int) -> None:
        try:
            running.child = SamplerProcess({**running.config, "journal": self.journal}, fd)
        except SensorError as error:
            self._event("warning", error.code, "run", f"sampling in threads of this process: {error}")
            return
        running.watch = HelperThread(partial(_replace_when_ended, weakref.ref(self), running.child), "torchwatt-watch")
        running.watch.start()

    def _ready(self, running: _SamplerResources) -> bool:
        """Wait until every source has been read once, or one plus 0.25 s; return whether the process samples."""
        if running.child is None:
            return False
        end_s = time.monotonic() + FIRST_SAMPLE_S
        while time.monotonic() < end_s and running.child.alive():
            rounds = running.board.word(ROUNDS)
            if rounds >= len(running.config["sources"]):
                return True
            if rounds:
                end_s = min(end_s, time.monotonic() + _SLOW_SOURCES_S)
            time.sleep(0.002)
        return running.board.word(ROUNDS) > 0 and running.child.alive()

    def _fall_back(self, running: _SamplerResources) -> None:
        """Switch to sampling in threads of this process, into the same memory."""
        child, running.child = running.child, None
        if child is not None:
            why = child.why() if not child.alive() else f"no sample within {FIRST_SAMPLE_S:g} s"
            child.stop(timeout_s=0.2)
            self._event("warning", "SAMPLER_THREAD", "run", f"sampling in threads of this process: {why}")
        elif self._mode == "thread":
            self._event("info", "SAMPLER_THREAD", "run", "sampling in threads of this process, as asked")
        running.threads = start_threads(make_loops(running.board, running.config, running.stop))

    def read_now(self) -> None:
        """Read all counters in this process; a driver that hangs delays this by 1 s at most."""
        if self._is_forked():
            return
        with self._lock:
            running = self._running
            if running is None:
                return
            for subject, code, message in read_boundaries(running.edges):
                self._event("warning", code, subject, message)
            self._check(running)

    def take_over(self, child: SamplerProcess) -> None:
        """Replace a sampler process that has ended by threads, if it is still the current one."""
        if self._is_forked():
            return
        with self._lock:
            if self._running is not None and self._running.child is child:
                self._check(self._running)

    def _check(self, running: _SamplerResources) -> None:
        """Fall back to threads if the sampler process has ended; its readings remain in memory."""
        if running.child is not None and not running.child.alive():
            self._fall_back(running)
        if running.child is None:
            record_anchor(running.board)

    def wait_for_update(self) -> None:
        """Keep sampling until slow sensors have published the energy up to now."""
        running = self._running
        if running is not None and not self._is_forked():
            time.sleep(self._tail_ns(running) / NS_PER_S)

    def snapshot(self, since_ns: int = 0) -> Recording:
        """Return a recording of the readings from `since_ns` until now."""
        if self._is_forked():
            return self._empty_recording()
        with self._lock:
            running = self._running
            if running is None:
                return self._result or self._empty_recording()
            self._check(running)
            return self._gather(running, since_ns)

    def peek(self, since_ns: int) -> Recording:
        """Return counters and powers from `since_ns` on, without gauges and events; fast enough for a live view."""
        if self._is_forked():
            return self._empty_recording()
        with self._lock:
            if self._running is None:
                return self._empty_recording()
            rings = self._running.rings()
            channels = [c for meter in self.meters for c in meter.channels if c.quantity != "gauge"]
            series = tuple(recording_builder.make_series(c, rings[c.key], (), since_ns) for c in channels)
            return Recording(self.meters, series, self.unavailable)

    def stop(self) -> Recording:
        """Read all counters a last time, end sampling and return all readings; later calls return the same."""
        if self._is_forked():
            return self._empty_recording()
        with self._lock:
            running = self._running
            if running is None:
                return self._result or self._empty_recording()
            self.read_now()
            time.sleep(self._tail_ns(running) / NS_PER_S)
            self._check(running)
            self._say_what_came(running)
            running.halt()
            record_anchor(running.board)
            self._result = self._gather(running)
            self._running = None
            running.close()
            return self._result

    def _say_what_came(self, running: _SamplerResources) -> None:
        """Add events for GPUs that appeared during the run, and for a suspended sampler process."""
        if self._discovery.gpus is not None:
            self._events += appeared_gpu_events(self._discovery.gpus)
        if running.child is None:
            return
        newest_ns = max((ring.newest_ns() for ring in running.rings().values()), default=running.start_ns)
        silent_ns = time.monotonic_ns() - newest_ns
        shortest_ns = min((c.period_ns for meter in self.meters for c in meter.channels), default=0)
        reading = f"no reading for the last {silent_ns / NS_PER_S:.3g} s"
        if running.child.is_suspended():
            message = (
                f"the sampler process is suspended by a signal (SIGSTOP) or a debugger: it made {reading} of the run; "
                "counters are known at both ends of the run, power is not"
            )
            self._event("warning", "SAMPLER_STOPPED", "run", message)
        elif silent_ns > max(SILENT_NS, GAP_PERIODS * shortest_ns):  # its own count of missed readings ends before
            self._event("warning", "SAMPLE_GAP", "run", f"the sampler process got no processor: {reading} of the run")

    def _tail_ns(self, running: _SamplerResources) -> int:
        """Return how long to sample on, so that the last publication of coarse sensors is seen: two updates."""
        now_ns = time.monotonic_ns()
        recent = self._gather(running, now_ns - 2 * NS_PER_S).series
        waits = [0]
        for series in recent:
            quantity: Quantity = series.channel.quantity
            if quantity == "counter":
                update_ns = recording_builder.update_period_ns(series) or 0
                waits.append(2 * update_ns if update_ns > _COARSE_NS else 0)
            elif quantity == "power" and series.channel.period_ns > _COARSE_NS:
                waits.append(series.channel.period_ns * 3 // 2)  # jitter may delay the next read this much
        return min(max(waits), _TAIL_NS * (LOW_OVERHEAD_PERIODS if self._thrifty else 1))

    def _gather(self, running: _SamplerResources, since_ns: int = 0) -> Recording:
        rings, notes = running.rings(), running.board.notes()
        edges = {key: list(readings) for reader in running.edges for key, readings in reader.edges.items()}
        channels = [channel for meter in self.meters for channel in meter.channels]
        series = tuple(recording_builder.make_series(c, rings[c.key], edges.get(c.key, ()), since_ns) for c in channels)
        pairs = recording_builder.clock_anchors(running.board.rings[-1])
        notes_and_events = (*self._discovery.events, *self._events, *recording_builder.note_events(notes))
        events = (
            *notes_and_events,
            *recording_builder.clock_step_events(pairs),
            *recording_builder.throttling_events(series),
        )
        return Recording(
            self.meters,
            series,
            (*self.unavailable, *recording_builder.lost_domains(series, rings, notes)),
            tuple(sorted(events, key=lambda e: e.t_ns)),
            pairs,
            self._stats(running, rings),
        )

    def _stats(self, running: _SamplerResources, rings: dict[str, SampleRing]) -> SamplerStats:
        process = running.child is not None
        return SamplerStats(
            "process" if process else "thread",
            (running.board.word(CPU_NS) + running.board.threads_cpu_ns() * (not process)) / NS_PER_S,
            (time.monotonic_ns() - running.start_ns) / NS_PER_S,
            {key: ring.word(READS) for key, ring in rings.items()},
            {key: ring.word(MISSED) for key, ring in rings.items()},
            {key: cost for source in self._sources for key, cost in source.call_s.items()},
        )

    def _event(self, severity: Literal["info", "warning"], code: str, subject: str, message: str) -> None:
        index = next((i for i, e in enumerate(self._events) if (e.subject, e.code) == (subject, code)), None)
        if index is None:
            self._events.append(Event(time.monotonic_ns(), severity, code, subject, message))
        else:
            self._events[index] = replace(self._events[index], message=f"{message} (more than once)")

    def _empty_recording(self) -> Recording:
        return Recording(self.meters, (), self.unavailable)

    def _is_forked(self) -> bool:
        """Return whether this is a forked child; check before locking, as a thread of the parent may hold the lock."""
        return self._pid not in {None, os.getpid()}
