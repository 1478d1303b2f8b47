"""Reads counters in the user's process at the ends of a run, with a deadline for each source."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torchwatt.core.errors import SensorError
from torchwatt.core.meter import Channel
from torchwatt.disk.helper_thread import HelperThread
from torchwatt.sensors.protocol import MeteredSource, Source

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
