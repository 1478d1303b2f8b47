"""What the rest of torchwatt sees of meters: sources, what was discovered, and feeds of recordings."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torchwatt.core.errors import SensorError
from torchwatt.core.meter import Channel, Event, Meter, Recording, Unavailable
from torchwatt.sensors.readers import Reader, open_reader


class Source(Protocol):
    """The meters behind one driver, and the means to read them.

    `spec` is JSON-able: `readers.open_reader(spec)` rebuilds the reading half in another process. `call_s` is
    what one read of a channel key costs. `edges` says whether a counter read here has the same origin as one
    read in the sampler's process, so that both belong in one series.
    """

    @property
    def meters(self) -> tuple[Meter, ...]: ...  # noqa: D102
    @property
    def spec(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def call_s(self) -> Mapping[str, float]: ...  # noqa: D102
    @property
    def edges(self) -> bool: ...  # noqa: D102

    def read(self, channel: Channel) -> float:
        """Return a channel's raw value now, NaN if there is nothing to say yet; SensorError with its code."""

    def close(self) -> None:
        """Let go of what `read` opened; safe to call twice."""


@dataclass(slots=True)
class MeteredSource:
    """A source whose reader is opened at the first read, in the process that reads."""

    meters: tuple[Meter, ...]
    spec: Mapping[str, Any]
    call_s: Mapping[str, float] = field(default_factory=dict)
    edges: bool = True
    _reader: Reader | None = None
    _pid: int = 0

    def read(self, channel: Channel) -> float:
        """Return a channel's raw value now.

        Raises:
            SensorError: With the event code that says why.
        """
        if self._reader is None or self._pid != os.getpid():  # a forked child opens its own
            self._reader, self._pid = open_reader(self.spec), os.getpid()
        return self._reader.read(channel.key)

    def close(self) -> None:
        """Let go of what `read` opened."""
        reader, self._reader = self._reader, None
        if reader is not None and self._pid == os.getpid():
            reader.close()


@dataclass(frozen=True, slots=True)
class Discovery:
    """What can be metered here, what cannot and why, and what was noticed on the way. Holds nothing open."""

    sources: tuple[Source, ...] = ()
    unavailable: tuple[Unavailable, ...] = ()
    events: tuple[Event, ...] = ()
    gpus: tuple[str, ...] | None = None  # UUIDs of the GPUs that answered; None where later ones are not reported

    @property
    def meters(self) -> tuple[Meter, ...]:
        """Return all meters of all sources."""
        return tuple(meter for source in self.sources for meter in source.meters)


def merge(found: Sequence[Discovery]) -> Discovery:
    """Put several discoveries together."""
    return Discovery(
        tuple(s for d in found for s in d.sources),
        tuple(u for d in found for u in d.unavailable),
        tuple(e for d in found for e in d.events),
        next((d.gpus for d in found if d.gpus is not None), None),
    )


class Feed(Protocol):
    """A stream of readings with a beginning and an end: the sampler, or a recording played back."""

    @property
    def meters(self) -> tuple[Meter, ...]: ...  # noqa: D102
    @property
    def unavailable(self) -> tuple[Unavailable, ...]: ...  # noqa: D102

    def start(self) -> None:
        """Begin to sample; returns when first readings are there, or a fallback is."""

    def mark(self) -> None:
        """Read all counters now, in the calling process; the readings get merged into the recording."""

    def linger(self) -> None:
        """Return when slow meters have answered once more: a run that ends now is then known to its end."""

    def snapshot(self, since_ns: int = 0) -> Recording:
        """Return what is known so far, from an instant on; from any thread."""

    def stop(self) -> Recording:
        """Take a last look, end sampling and return everything; the second call returns the same."""


def event(severity: str, code: str, subject: str, message: str) -> Event:
    """Return an event of now."""
    return Event(time.monotonic_ns(), "warning" if severity == "warning" else "info", code, subject, message)


def read_cost_s(reader: Reader, key: str, looks: int = 5) -> float:
    """Return the median cost of reading a channel, after one look to warm up.

    Raises:
        SensorError: As the reader does.
    """
    reader.read(key)
    costs = []
    for _ in range(looks):
        start_ns = time.perf_counter_ns()
        reader.read(key)
        costs.append((time.perf_counter_ns() - start_ns) / 1e9)
    return statistics.median(costs)


def why_unreadable(reader: Reader, key: str) -> SensorError | None:
    """Return why a channel cannot be read, None if it can."""
    try:
        reader.read(key)
    except SensorError as error:
        return error
    return None
