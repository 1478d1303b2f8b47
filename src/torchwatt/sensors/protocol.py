"""Interfaces of the sensors package: sources, discoveries and feeds."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torchwatt.core.meter import Channel, Event, Meter, Recording, Unavailable
from torchwatt.sensors.readers import Reader, open_reader


class Source(Protocol):
    """The meters of one driver.

    Attributes:
        meters: Its meters.
        spec: JSON-serialisable; `readers.open_reader(spec)` opens a reader in any process.
        call_s: Seconds per read, by channel key.
        edges: Whether counters have the same origin in this process and in the sampler process, so that readings of
            both can be merged into one series.
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
        """Return a channel's raw value, NaN before the first one; raise SensorError with an event code."""

    def close(self) -> None:
        """Close the files and handles that `read` opened; a second call does nothing."""


@dataclass(slots=True)
class MeteredSource:
    """A source whose reader is opened at the first read, once per process."""

    meters: tuple[Meter, ...]
    spec: Mapping[str, Any]
    call_s: Mapping[str, float] = field(default_factory=dict)
    edges: bool = True
    _reader: Reader | None = None
    _pid: int = 0

    def read(self, channel: Channel) -> float:
        """Return a channel's raw value.

        Raises:
            SensorError: The read failed; `code` is the event code.
        """
        if self._reader is None or self._pid != os.getpid():  # a forked child opens a new reader
            self._reader, self._pid = open_reader(self.spec), os.getpid()
        return self._reader.read(channel.key)

    def close(self) -> None:
        """Close the reader, if this process opened it."""
        reader, self._reader = self._reader, None
        if reader is not None and self._pid == os.getpid():
            reader.close()


@dataclass(frozen=True, slots=True)
class Discovery:
    """Available sources, unavailable domains with reasons, and events of the discovery. Holds no files open."""

    sources: tuple[Source, ...] = ()
    unavailable: tuple[Unavailable, ...] = ()
    events: tuple[Event, ...] = ()
    gpus: tuple[str, ...] | None = None  # UUIDs of the GPUs found; None: do not report GPUs that appear later

    @property
    def meters(self) -> tuple[Meter, ...]:
        """Return all meters of all sources."""
        return tuple(meter for source in self.sources for meter in source.meters)


def merge_discoveries(discoveries: Sequence[Discovery]) -> Discovery:
    """Concatenate discoveries; `gpus` is the first that is not None."""
    return Discovery(
        tuple(s for d in discoveries for s in d.sources),
        tuple(u for d in discoveries for u in d.unavailable),
        tuple(e for d in discoveries for e in d.events),
        next((d.gpus for d in discoveries if d.gpus is not None), None),
    )


class Feed(Protocol):
    """A stream of readings with a start and a stop: the sampler, or the replay of a recording."""

    @property
    def meters(self) -> tuple[Meter, ...]: ...  # noqa: D102
    @property
    def unavailable(self) -> tuple[Unavailable, ...]: ...  # noqa: D102

    def start(self) -> None:
        """Start sampling; return once the first readings exist or a fallback is running."""

    def read_now(self) -> None:
        """Read all counters in the calling process; the readings are merged into the recording."""

    def wait_for_update(self) -> None:
        """Wait until slow meters have published the energy up to this instant."""

    def snapshot(self, since_ns: int = 0) -> Recording:
        """Return the readings from `since_ns` until now; from any thread."""

    def stop(self) -> Recording:
        """Read all meters a last time, end sampling and return all readings; later calls return the same."""


def event_now(severity: str, code: str, subject: str, message: str) -> Event:
    """Return an event with the current time."""
    return Event(time.monotonic_ns(), "warning" if severity == "warning" else "info", code, subject, message)


def read_cost_s(reader: Reader, key: str, looks: int = 5) -> float:
    """Return the median seconds per read of a channel that was read before, over `looks` reads.

    Raises:
        SensorError: A read failed.
    """
    costs = []
    for _ in range(looks):
        start_ns = time.perf_counter_ns()
        reader.read(key)
        costs.append((time.perf_counter_ns() - start_ns) / 1e9)
    return statistics.median(costs)


SAMPLER_LOST = "SAMPLER_LOST"


class NullFeed:
    """A `Feed` without meters: the user's program runs, and its report contains the reason why nothing was metered."""

    def __init__(self, error: BaseException) -> None:
        self.reason = f"sampling could not begin: {type(error).__name__}: {error}"
        self._fix = "raise the limits (ulimit -n, -v, -u), or free some memory; the program itself ran on"
        self._event = event_now("warning", SAMPLER_LOST, "run", self.reason)

    @property
    def meters(self) -> tuple[Meter, ...]:
        """Return no meters."""
        return ()

    @property
    def unavailable(self) -> tuple[Unavailable, ...]:
        """Return the reason, for the domain `run`."""
        return (Unavailable("run", self.reason, self._fix),)

    def start(self) -> None:
        """Do nothing."""

    def read_now(self) -> None:
        """Do nothing."""

    def wait_for_update(self) -> None:
        """Do nothing."""

    def snapshot(self, since_ns: int = 0) -> Recording:
        """Return no readings."""
        return Recording((), (), self.unavailable, (self._event,) if self._event.t_ns >= since_ns else ())

    def stop(self) -> Recording:
        """Return no readings, and the reason."""
        return self.snapshot()
