"""Counters read in the user's own process, each source behind a deadline."""

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
# Gauges that only grow: as useful at the edges as counters are.
CUMULATIVE = frozenset({"process/process_cpu", "process/children_cpu", "process/busy_cpu"})

Edge = tuple[int, float, int]  # t_ns, raw, late_ns


def edge_channels(source: Source) -> tuple[Channel, ...]:
    """Return the channels of a source whose value at one instant means something by itself."""
    if not source.edges:
        return ()
    channels = (channel for meter in source.meters for channel in meter.channels)
    return tuple(c for c in channels if c.quantity == "counter" or c.key in CUMULATIVE)


@dataclass(slots=True)
class Look:
    """One request to read all counters of a source, and how it ended."""

    asked_s: float
    done: threading.Event = field(default_factory=threading.Event)
    errors: list[tuple[str, SensorError]] = field(default_factory=list)


class EdgeReader:
    """Reads one source's counters in a helper thread, so that a hung driver never holds the user's run."""

    def __init__(self, source: Source, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.channels = edge_channels(source)
        self.edges: dict[str, list[Edge]] = {channel.key: [] for channel in self.channels}
        self._source = MeteredSource(source.meters, source.spec)  # an own reader, closed here
        self._clock_ns = clock_ns
        self._looks: queue.SimpleQueue[Look | None] = queue.SimpleQueue()
        self._pending: Look | None = None
        self._thread = HelperThread(self._run, "torchwatt-edge")
        self._thread.start()

    @property
    def subject(self) -> str:
        """Return whose counters these are, for an event."""
        return ", ".join(dict.fromkeys(str(channel.domain) for channel in self.channels))

    def ask(self) -> Look:
        """Request a look; while one is under way, that one."""
        if self._pending is None or self._pending.done.is_set():
            self._pending = Look(time.monotonic())
            self._looks.put(self._pending)
        return self._pending

    def close(self, timeout_s: float = DEADLINE_S) -> None:
        """Let go of the meters; a thread that hangs is left behind and ends when the driver answers."""
        self._looks.put(None)
        self._thread.join(timeout_s)

    def abandon(self) -> None:
        """Let the thread end when it can, without waiting."""
        self._looks.put(None)

    def _run(self) -> None:
        while (look := self._looks.get()) is not None:
            for channel in self.channels:
                self._read(channel, look)
            look.done.set()
        self._source.close()

    def _read(self, channel: Channel, look: Look) -> None:
        before_ns = self._clock_ns()
        try:
            raw = self._source.read(channel)
        except SensorError as error:
            look.errors.append((channel.key, error))
        except Exception as error:  # a broken driver binding must not end the thread: it would look like a hang
            look.errors.append((channel.key, SensorError(f"{channel.key}: {error!r}")))
        else:
            after_ns = self._clock_ns()
            self.edges[channel.key].append(((before_ns + after_ns) // 2, raw, after_ns - before_ns))


def look_at_all(readers: Sequence[EdgeReader], deadline_s: float = DEADLINE_S) -> list[tuple[str, str, str]]:
    """Read all counters at once and return what went wrong: (subject, code, message).

    A look that was asked for longer than the deadline ago is known to hang, and nobody waits for it again.
    """
    looks = [(reader, reader.ask()) for reader in readers]
    wrong: list[tuple[str, str, str]] = []
    for reader, look in looks:
        if not look.done.wait(max(look.asked_s + deadline_s - time.monotonic(), 0)):
            message = f"the driver did not answer within {deadline_s:g} s; this edge is known from samples only"
            wrong.append((reader.subject, "EDGE_READ_TIMEOUT", message))
        else:
            wrong += [(key, error.code, str(error)) for key, error in look.errors]
    return wrong
