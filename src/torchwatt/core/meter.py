"""Meters, channels, series of readings, events and recordings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from torchwatt.core.terms import COVERAGE, POWER_SAMPLES, Domain, Provenance

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Quantity = Literal["counter", "power", "gauge"]
Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A domain or source that cannot be metered here, with the reason and the remedy."""

    domain: str
    reason: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a run: monotonic `t_ns`, stable `code`; `subject` is a domain, a layer or "run"."""

    t_ns: int
    severity: Severity
    code: str
    subject: str
    message: str


def coverage_event(domain: Domain, coverage: float, t_ns: int) -> Event:
    """Return the event of a meter that covered only this part (0 to 1) of a run."""
    message = f"the meter was known for {coverage:.1%} of the run: the joules of the rest are unknown, and not counted"
    return Event(t_ns, "warning", COVERAGE, str(domain), message)


@dataclass(frozen=True, slots=True)
class Channel:
    """One quantity of a domain that can be read.

    raw x `scale` is, for a counter, joules since an unknown origin, modulo `modulus` raw units (None: it never wraps);
    for a power, watts; for a gauge, a value in `unit`.
    """

    domain: Domain
    name: str  # "energy", "power", "power_fine", or a gauge: "utilization", "memory", "temperature", "process_cpu", ...
    quantity: Quantity
    unit: str  # UCUM: "J", "W", "1", "By", "Cel", "s"
    scale: float
    period_ns: int
    sensor: (
        str  # as in docs/audit.md: nvml_energy_counter, nvml_power_instant, nvml_power, rapl, tdp_model, replay, ...
    )
    modulus: int | None = None

    @property
    def key(self) -> str:
        """Return the channel's name within a recording: `gpu:0/energy`."""
        return f"{self.domain}/{self.name}"

    @property
    def stamped(self) -> bool:
        """Return whether `t_ns` of readings is the driver's time stamp, not the time at which they were read."""
        return self.sensor == POWER_SAMPLES


@dataclass(frozen=True, slots=True)
class Meter:
    """The meter of a domain.

    `scope` is "device" if it measures the energy of all processes on the device, "process" for this process's share.
    `accuracy_rel` is the relative systematic error (lo, hi) of the sensor, such as (-0.05, 0.05). It is common to all
    joules of the domain, so it is reported once and not per layer.
    """

    domain: Domain
    channels: tuple[Channel, ...]
    provenance: Provenance  # "measured" or "modelled"
    scope: Literal["device", "process"]
    model: str
    vendor: str = ""
    accuracy_rel: tuple[float, float] | None = None
    accuracy_source: str = ""
    shared: bool = False  # the energy of other users is included
    notes: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()  # uuid, driver, power_limit_w, ...

    def channel(self, quantity: Quantity) -> Channel | None:
        """Return the first channel of that quantity."""
        return next((c for c in self.channels if c.quantity == quantity), None)

    def fact(self, name: str) -> str | None:
        """Return one of the device's facts."""
        return dict(self.facts).get(name)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Readings of one channel in time order.

    `t_ns` is the monotonic clock at the middle of each read, `raw` the reading in the sensor's unit (integers below
    2**53 are exact), `late_ns` the duration of the read (0 if the driver stamped the reading).
    """

    channel: Channel
    t_ns: IntArray
    raw: FloatArray
    late_ns: IntArray

    def __len__(self) -> int:
        return len(self.t_ns)

    def between(self, start_ns: int, end_ns: int) -> Series:
        """Return the readings with `start_ns <= t_ns <= end_ns`."""
        lo, hi = np.searchsorted(self.t_ns, [start_ns, end_ns + 1])
        return replace(self, t_ns=self.t_ns[lo:hi], raw=self.raw[lo:hi], late_ns=self.late_ns[lo:hi])


def series_from_readings(channel: Channel, readings: list[tuple[int, float]]) -> Series:
    """Return a series of (t_ns, raw) pairs; for tests and small recordings."""
    t = np.array([r[0] for r in readings], dtype=np.int64)
    return Series(channel, t, np.array([r[1] for r in readings], dtype=np.float64), np.zeros_like(t))


@dataclass(frozen=True, slots=True)
class SamplerStats:
    """Statistics of sampling: mode, CPU time, reads and missed reads."""

    mode: Literal["process", "thread", "replay", "none"] = "none"
    cpu_s: float = 0.0
    wall_s: float = 0.0
    reads: Mapping[str, int] = field(default_factory=dict)  # by channel key
    missed: Mapping[str, int] = field(default_factory=dict)
    call_s: Mapping[str, float] = field(default_factory=dict)  # cost of one read, measured at start


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """All readings of a session; the input of attribution.

    `anchors` are (monotonic_ns, realtime_ns) pairs, taken at the start, at the end and in between.
    """

    meters: tuple[Meter, ...]
    series: tuple[Series, ...]
    unavailable: tuple[Unavailable, ...] = ()
    events: tuple[Event, ...] = ()
    anchors: tuple[tuple[int, int], ...] = ()
    stats: SamplerStats = field(default_factory=SamplerStats)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def get(self, key: str) -> Series | None:
        """Return the series of a channel key such as `gpu:0/energy`."""
        return next((s for s in self.series if s.channel.key == key), None)

    def between(self, start_ns: int, end_ns: int) -> Recording:
        """Return the readings and events of a window, both ends included."""
        return replace(
            self,
            series=tuple(s.between(start_ns, end_ns) for s in self.series),
            events=tuple(e for e in self.events if start_ns <= e.t_ns <= end_ns),
        )
