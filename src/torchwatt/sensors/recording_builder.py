"""Reads meters at the bounds of a run, and builds a Recording of the sampler's readings and of these."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from torchwatt.core.errors import SensorError
from torchwatt.core.meter import Channel, Event, FloatArray, IntArray, Series, Severity, Unavailable
from torchwatt.core.units import NS_PER_S
from torchwatt.disk.helper_thread import HelperThread
from torchwatt.sensors.protocol import MeteredSource, Source
from torchwatt.sensors.sample_buffer import FAILING_NS, PERIOD_NS, SampleRing, SamplerNote

DEADLINE_S = 1.0
# Cumulative gauges, which are read at the edges like counters.
CUMULATIVE_GAUGES = frozenset({"process/process_cpu", "process/children_cpu", "process/busy_cpu"})

BoundaryReading = tuple[int, float, int]  # t_ns, raw, late_ns


def boundary_channels(source: Source) -> tuple[Channel, ...]:
    """Return the channels of a source to read at the edges: counters and cumulative gauges."""
    if not source.edges:
        return ()
    channels = (channel for meter in source.meters for channel in meter.channels)
    return tuple(c for c in channels if c.quantity == "counter" or c.key in CUMULATIVE_GAUGES)


@dataclass(slots=True)
class BoundaryRequest:
    """A request to read all counters of a source, with its errors once done."""

    requested_s: float
    done: threading.Event = field(default_factory=threading.Event)
    errors: list[tuple[str, SensorError]] = field(default_factory=list)


class BoundaryReader:
    """Reads one source's counters in a helper thread, so that a hung driver does not block the user's program."""

    def __init__(self, source: Source, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.channels = boundary_channels(source)
        self.edges: dict[str, list[BoundaryReading]] = {channel.key: [] for channel in self.channels}
        self._source = MeteredSource(source.meters, source.spec)  # a separate reader, closed here
        self._clock_ns = clock_ns
        self._requests: queue.SimpleQueue[BoundaryRequest | None] = queue.SimpleQueue()
        self._pending: BoundaryRequest | None = None
        self._thread = HelperThread(self._run, "torchwatt-edge")
        self._thread.start()

    @property
    def subject(self) -> str:
        """Return the domains of the counters, as an event's subject."""
        return ", ".join(dict.fromkeys(str(channel.domain) for channel in self.channels))

    def ask(self) -> BoundaryRequest:
        """Request a read of all counters; return the pending request if there is one."""
        if self._pending is None or self._pending.done.is_set():
            self._pending = BoundaryRequest(time.monotonic())
            self._requests.put(self._pending)
        return self._pending

    def close(self, timeout_s: float = DEADLINE_S) -> None:
        """Close the meters, waiting at most `timeout_s`; a thread that hangs in a driver ends when the call returns."""
        self._requests.put(None)
        self._thread.join(timeout_s)

    def abandon(self) -> None:
        """Request the thread's end without waiting."""
        self._requests.put(None)

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            for channel in self.channels:
                self._read(channel, request)
            request.done.set()
        self._source.close()

    def _read(self, channel: Channel, request: BoundaryRequest) -> None:
        before_ns = self._clock_ns()
        try:
            raw = self._source.read(channel)
        except SensorError as error:
            request.errors.append((channel.key, error))
        except Exception as error:  # a broken driver binding must not end the thread: it would look like a hang
            request.errors.append((channel.key, SensorError(f"{channel.key}: {error!r}")))
        else:
            after_ns = self._clock_ns()
            self.edges[channel.key].append(((before_ns + after_ns) // 2, raw, after_ns - before_ns))


def read_boundaries(readers: Sequence[BoundaryReader], deadline_s: float = DEADLINE_S) -> list[tuple[str, str, str]]:
    """Read all counters concurrently; return the failures as (subject, code, message).

    The deadline counts from the request, so a request that is already older than that is not waited for again.
    """
    requests = [(reader, reader.ask()) for reader in readers]
    failures: list[tuple[str, str, str]] = []
    for reader, request in requests:
        if not request.done.wait(max(request.requested_s + deadline_s - time.monotonic(), 0)):
            message = f"the driver did not answer within {deadline_s:g} s; this end is known from samples only"
            failures.append((reader.subject, "EDGE_READ_TIMEOUT", message))
        else:
            failures += [(key, error.code, str(error)) for key, error in request.errors]
    return failures


CLOCK_STEP_NS = 50_000_000
# NVML clocks event reasons for clocks below the requested ones (nvml.h): 0x4 software power cap, 0x8 hardware slowdown,
# 0x20 and 0x40 software and hardware thermal slowdown, 0x80 power brake. Idle and application clocks are not.
_THROTTLES = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal", 0x40: "thermal", 0x80: "power brake"}
_SEVERITIES: dict[str, Severity] = {"info": "info", "warning": "warning", "error": "error"}


def _columns(ring: SampleRing, since_ns: int) -> tuple[IntArray, FloatArray, IntArray]:
    start = ring.index_since(since_ns) if since_ns else 0
    t_ns, raw, late_ns = ring.read(start)
    return np.frombuffer(t_ns, np.int64), np.frombuffer(raw, np.float64), np.frombuffer(late_ns, np.int64)


def make_series(channel: Channel, ring: SampleRing, edges: Sequence[BoundaryReading] = (), since_ns: int = 0) -> Series:
    """Return a channel's ring and edge readings, merged by time; the period is the ring's, doubled by each thinning."""
    t_ns, raw, late_ns = _columns(ring, since_ns)
    recent = [edge for edge in tuple(edges) if edge[0] >= since_ns]
    if recent:
        t_ns = np.concatenate((t_ns, np.array([e[0] for e in recent], np.int64)))
        raw = np.concatenate((raw, np.array([e[1] for e in recent], np.float64)))
        late_ns = np.concatenate((late_ns, np.array([e[2] for e in recent], np.int64)))
    order = np.argsort(t_ns, kind="stable")
    order = order[np.diff(t_ns[order], prepend=np.int64(-1)) > 0]  # keep one reading per instant
    period_ns = ring.word(PERIOD_NS) or channel.period_ns
    return Series(replace(channel, period_ns=period_ns), t_ns[order], raw[order], late_ns[order])


def clock_anchors(ring: SampleRing) -> tuple[tuple[int, int], ...]:
    """Return the pairs of monotonic and wall clock time, in ns."""
    t_ns, _, real_ns = _columns(ring, 0)
    return tuple(zip(t_ns.tolist(), real_ns.tolist(), strict=True))


def clock_step_events(pairs: Sequence[tuple[int, int]]) -> tuple[Event, ...]:
    """Return an event for each time the wall clock moved by more than 50 ms against the monotonic one."""
    steps = []
    for (m0, r0), (m1, r1) in pairwise(pairs):
        step_ns = (r1 - r0) - (m1 - m0)
        if abs(step_ns) > CLOCK_STEP_NS:
            message = f"the wall clock stepped by {step_ns / NS_PER_S:+.3f} s against the monotonic clock"
            steps.append(Event(m1, "warning", "CLOCK_STEP", "run", message))
    return tuple(steps)


def throttling_events(series: Sequence[Series]) -> tuple[Event, ...]:
    """Return one event for each throttled GPU, at the first reading with a throttle reason."""
    throttled = []
    for readings in (s for s in series if s.channel.name == "throttle"):
        masks = readings.raw.astype(np.int64)
        slow = np.flatnonzero(masks & sum(_THROTTLES))
        if len(slow):
            mask = int(np.bitwise_or.reduce(masks))
            why = ", ".join(dict.fromkeys(name for bit, name in _THROTTLES.items() if mask & bit))
            message = f"clocks were throttled in {len(slow)} of {len(masks)} readings: {why}"
            t_ns, domain = int(readings.t_ns[slow[0]]), str(readings.channel.domain)
            throttled.append(Event(t_ns, "warning", "THROTTLED", domain, message))
    return tuple(throttled)


def note_events(notes: Sequence[SamplerNote]) -> tuple[Event, ...]:
    """Return the sampler's notes as events: one per (domain, code), with channels, count and time of the last."""
    groups: dict[tuple[str, str], list[SamplerNote]] = {}
    for note in notes:
        groups.setdefault((note.subject.partition("/")[0], note.code), []).append(note)
    return tuple(
        Event(same[0].first_ns, _SEVERITIES.get(same[0].severity, "warning"), code, domain, _note_message(same))
        for (domain, code), same in groups.items()
    )


def _note_message(same: Sequence[SamplerNote]) -> str:
    channels = ", ".join(dict.fromkeys(note.subject.partition("/")[2] for note in same))
    times = max(note.count for note in same)
    more = []
    if times > 1:
        span_s = (max(note.last_ns for note in same) - same[0].first_ns) / NS_PER_S
        more.append(f"{times} times, the last {span_s:.3g} s after the first")
    if len(same) > 1:
        more.append(f"channels {channels}")
    message = same[0].message if same[0].subject in same[0].message else f"{same[0].subject}: {same[0].message}"
    return f"{message} ({'; '.join(more)})" if more else message


def lost_domains(
    series: Sequence[Series], rings: Mapping[str, SampleRing], notes: Sequence[SamplerNote]
) -> tuple[Unavailable, ...]:
    """Return the domains of which all counters and powers fail at the end, with the reason.

    The driver's ring of samples is ignored, because totals are never computed from it.
    """
    answering: set[str] = set()
    failed: dict[str, str] = {}
    for readings in (s for s in series if s.channel.quantity != "gauge" and not s.channel.stamped):
        domain, since_ns = str(readings.channel.domain), rings[readings.channel.key].word(FAILING_NS)
        if since_ns and not (len(readings) and readings.t_ns[-1] > since_ns):
            failed.setdefault(domain, readings.channel.key)
        else:
            answering.add(domain)
    return tuple(_lost_domain(domain, key, notes) for domain, key in failed.items() if domain not in answering)


def _lost_domain(domain: str, key: str, notes: Sequence[SamplerNote]) -> Unavailable:
    why = next((n.message for n in notes if n.subject == key and n.severity != "info"), "unknown")
    return Unavailable(domain, f"lost during the run and not come back: {why}")


def update_period_ns(series: Series) -> int | None:
    """Return the median time between the last 65 changes of value; None with fewer than two changes."""
    changed = series.t_ns[1:][np.diff(series.raw) != 0][-65:]
    return int(np.median(np.diff(changed))) if len(changed) > 1 else None
