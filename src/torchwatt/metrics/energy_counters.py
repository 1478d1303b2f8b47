"""Cumulative joules of this process by device, over all its sessions, monotonic; and the base class of their exporters.

For each device the instant up to which its joules are booked is kept. So a session that is nested in another or runs
concurrently, and meters the same device, adds nothing for a time that is already booked.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from math import fsum
from types import TracebackType
from typing import Generic, Self, TypeVar

from torchwatt.core.errors import ConfigError
from torchwatt.core.ledger import Ledger
from torchwatt.core.meter import Meter, Recording
from torchwatt.core.report import Report
from torchwatt.core.terms import RESERVED, Provenance, domain_kind, weakest_provenance
from torchwatt.reports.emissions import running_carbon_g
from torchwatt.session import session_registry
from torchwatt.session.live_meter import (
    CountedMeters,
    LiveFeed,
    RunningEnergy,
    build_live_curve,
    reread_since_ns,
)
from torchwatt.session.session import Session

K = TypeVar("K", bound=Hashable)


class MonotonicCounter(Generic[K]):
    """Monotonic sums by key: a negative amount is deducted from later ones, so that no sum decreases."""

    def __init__(self) -> None:
        self._sums: dict[K, float] = {}
        self._owed: dict[K, float] = defaultdict(float)

    def add(self, key: K, amount: float) -> None:
        """Add an amount; a negative one corrects earlier amounts."""
        remainder = amount - self._owed[key]
        self._owed[key] = max(-remainder, 0.0)
        self._sums[key] = self._sums.get(key, 0.0) + max(remainder, 0.0)

    def sums(self) -> dict[K, float]:
        """Return the sums of all keys to which an amount was added."""
        return dict(self._sums)


OTHER_LAYERS = "(other layers)"


@dataclass(frozen=True, slots=True, order=True)
class LayerKey:
    """The labels of one layer series."""

    run: str
    project: str
    device: str
    layer: str
    phase: str
    provenance: str
    stage: str = ""


class LayerCounters:
    """Sums joules under at most `max_names` layer names and the reserved ones; all others under `OTHERS`."""

    def __init__(self, max_names: int) -> None:
        self._max_names = max_names
        self._names: set[str] = set()
        self._joules: dict[LayerKey, float] = defaultdict(float)

    def add(self, run: str, project: str, ledgers: Iterable[Ledger]) -> None:
        """Add a run's entries; new names are taken in order of decreasing joules."""
        if not self._max_names:
            return
        entries = sorted((e for ledger in ledgers for e in ledger.entries), key=lambda e: -e.energy_self_j)
        for entry in entries:
            if entry.fqn not in RESERVED and len(self._names) < self._max_names:
                self._names.add(entry.fqn)
            name = entry.fqn if entry.fqn in self._names or entry.fqn in RESERVED else OTHER_LAYERS
            key = LayerKey(run, project, str(entry.domain), name, entry.phase, entry.provenance, entry.stage)
            # An estimate may be slightly negative; a counter must not decrease.
            self._joules[key] += max(entry.energy_self_j, 0.0)

    def sums(self) -> dict[LayerKey, float]:
        """Return the sums."""
        return dict(self._joules)


MAX_RUNS = 100  # run names with separate series; bounded, because names may contain times
OTHER_RUNS = "(more)"
HOST_KINDS = frozenset({"psys", "host", "psu"})  # meters of the whole machine: they contain the devices


@dataclass(frozen=True, slots=True, order=True)
class RunKey:
    """The labels of a run; sessions with equal labels share their sums."""

    run: str
    project: str


@dataclass(frozen=True, slots=True, order=True)
class DeviceKey:
    """One meter of a run."""

    run: RunKey
    device: str
    kind: str
    model: str
    provenance: Provenance
    parent: str = ""  # the meter of the whole machine, where there is one

    @property
    def whole_machine(self) -> bool:
        """Return whether this meter includes the other devices, so that its joules must not be added to theirs."""
        return self.kind in HOST_KINDS


@dataclass(slots=True)
class CounterValues:
    """Current values of all series; unknown values have no entry."""

    energy_j: dict[DeviceKey, float]
    power_w: dict[DeviceKey, float]
    location_g: dict[RunKey, float]
    unpriced_j: dict[RunKey, float]  # joules for which there was no factor: they are not in location_g
    layers_j: dict[LayerKey, float]
    sessions: int


@dataclass(slots=True)
class _ObservedSession:
    session: Session
    feed: LiveFeed
    key: RunKey
    since_ns: int
    alone: bool  # observed from its start, with no concurrent session
    booked_j: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    booked_g: float = 0.0
    unpriced_j: float = 0.0
    keys: dict[str, DeviceKey] = field(default_factory=dict)  # by meter
    counted: CountedMeters = field(init=False)

    def __post_init__(self) -> None:
        self.counted = CountedMeters(self.session)


class EnergyCounters:
    """Energy counters of the process.

    `open` starts observing sessions, `close` stops; `current_values` updates the counters and returns them.

    Args:
        layers: Number of layer names with separate series; 0 records no layers. Layers are booked when a run ends.
    """

    def __init__(self, layers: int = 0) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._watched: list[_ObservedSession] = []
        self._running: dict[str, RunningEnergy] = {}
        self._energy_j: MonotonicCounter[DeviceKey] = MonotonicCounter()
        self._location_g: MonotonicCounter[RunKey] = MonotonicCounter()
        self._unpriced_j: MonotonicCounter[RunKey] = MonotonicCounter()
        self._names: set[str] = set()
        self._layers = LayerCounters(layers)

    def open(self) -> None:
        """Start observing sessions; a session that is already running is booked from this instant."""
        now_ns = time.monotonic_ns()
        for session in session_registry.add_listener(self):
            self._watch(session, now_ns, alone=False)

    def close(self) -> None:
        """Stop observing sessions; keep the sums."""
        session_registry.remove_listener(self)
        with self._lock:
            self._watched.clear()

    def on_begin(self, session: Session) -> None:
        """Observe a new session, unless it is nested: the outer session's joules include it."""
        self._watch(session, session.start_ns, alone=True)

    def on_end(self, session: Session, recording: Recording) -> None:
        """Book the remaining joules of a session that has ended: from its report, else from its last readings."""
        with self._lock:
            observed = next((candidate for candidate in self._watched if candidate.session is session), None)
            if observed is None:
                return
            self._watched.remove(observed)
            if session.report is not None and observed.alone:
                self._settle(observed, session.report)
                self._layers.add(observed.key.run, observed.key.project, session.report.counted)
                return
            now_ns = time.monotonic_ns()
            since_ns = reread_since_ns(now_ns, self._unsettled_ns(observed))
            self._book(observed, recording.between(since_ns, now_ns), session.ended_ns or now_ns)

    def current_values(self) -> CounterValues:
        """Book new readings of the running sessions and return all values; in a forked child no session runs."""
        with self._lock:
            now_ns = time.monotonic_ns()
            watched = (
                [observed for observed in self._watched if observed.session.running] if os.getpid() == self._pid else []
            )
            watts: dict[DeviceKey, float] = {}
            for observed in watched:
                since_ns = reread_since_ns(now_ns, self._unsettled_ns(observed))
                self._book(observed, observed.feed.peek(since_ns), min(now_ns, observed.session.ended_ns or now_ns))
                named = {key.device for key in watts}  # if two sessions meter a device, the older one's labels
                powers = {key: self._running[device].power_w(now_ns) for device, key in observed.keys.items()}
                watts |= {key: w for key, w in powers.items() if w is not None and key.device not in named}
            return CounterValues(
                self._energy_j.sums(),
                watts,
                self._location_g.sums(),
                self._unpriced_j.sums(),
                self._layers.sums(),
                len(watched),
            )

    def _watch(self, session: Session, since_ns: int, *, alone: bool) -> None:
        feed = session.feed
        if session.nested or not isinstance(feed, LiveFeed):
            return
        with self._lock:
            for observed in self._watched:
                observed.alone = False
            name = session.options.name
            if name not in self._names and len(self._names) >= MAX_RUNS:
                name = OTHER_RUNS
            self._names.add(name)
            alone = alone and not self._watched
            key = RunKey(name, session.options.project)
            self._watched.append(_ObservedSession(session, feed, key, since_ns, alone))

    def _unsettled_ns(self, observed: _ObservedSession) -> int:
        """Return the earliest instant up to which a session's devices are settled; not before its start."""
        devices = [str(meter.domain) for meter in observed.session.feed.meters]
        settled_ns = [self._running[d].settled_ns if d in self._running else 0 for d in devices]
        return max(min(settled_ns, default=0), observed.since_ns)

    def _book(self, observed: _ObservedSession, recording: Recording, end_ns: int) -> None:
        """Book each device's joules from the end of those already booked to `end_ns`."""
        fresh: list[tuple[float, Provenance, int, int]] = []
        names = observed.counted.names()
        for meter in recording.meters:
            metered, device = build_live_curve(meter, recording), str(meter.domain)
            if metered is None or device not in names:
                continue
            running = self._running.get(device)
            if running is None or running.end_ns < observed.since_ns:
                running = self._running[device] = RunningEnergy(observed.since_ns)
            from_ns, to_ns = running.end_ns, min(metered.curve.end_ns, end_ns)
            key = observed.keys[device] = _device_key(observed.key, meter, recording.meters, names[device])
            if to_ns <= from_ns:
                continue
            joules = running.extend(metered.curve, to_ns)
            observed.booked_j[names[device]] += joules
            self._energy_j.add(key, joules)
            if not key.whole_machine:
                fresh.append((joules, meter.provenance, from_ns, to_ns))
        self._price(observed, fresh)

    def _settle(self, observed: _ObservedSession, report: Report) -> None:
        """Correct a run's sums to its report, which is computed from all readings."""
        for ledger in report.ledgers:
            device, meter = str(ledger.domain), report.meter(str(ledger.domain))
            if meter is not None:
                counted_j = ledger.energy_j if ledger.counted else 0.0  # if not counted, deduct what was booked
                if counted_j or observed.booked_j[device]:
                    key = _device_key(observed.key, meter, report.meters, device)
                    self._energy_j.add(key, counted_j - observed.booked_j[device])
                self._running[device] = RunningEnergy(report.end_ns)
        if report.carbon_g is not None:
            self._location_g.add(observed.key, report.carbon_g - observed.booked_g)
        elif report.ledgers:
            parts = [x.energy_j for x in report.counted if x.domain.kind not in HOST_KINDS]
            self._unpriced_j.add(observed.key, fsum(parts) - observed.unpriced_j)

    def _price(self, observed: _ObservedSession, fresh: Iterable[tuple[float, Provenance, int, int]]) -> None:
        parts = list(fresh)
        if not parts:
            return
        joules, plan = fsum(part[0] for part in parts), observed.session.options.carbon
        offset_ns = time.time_ns() - time.monotonic_ns()
        span = min(part[2] for part in parts) + offset_ns, max(part[3] for part in parts) + offset_ns
        provenance = weakest_provenance(*(part[1] for part in parts))
        grams = running_carbon_g(joules, provenance, plan, *span) if plan.location else None
        if grams is None:
            observed.unpriced_j += joules
            self._unpriced_j.add(observed.key, joules)
            return
        observed.booked_g += grams
        self._location_g.add(observed.key, grams)


def _device_key(run: RunKey, meter: Meter, meters: Iterable[Meter], name: str) -> DeviceKey:
    # Labels depend on the list of meters only, which is constant: a series must not change its labels.
    hosts = sorted(
        str(other_meter.domain)
        for other_meter in meters
        if other_meter.domain.kind in HOST_KINDS and other_meter is not meter
    )
    return DeviceKey(run, name, domain_kind(name), meter.model, meter.provenance, hosts[0] if hosts else "")


MAX_LAYERS = 200  # with a series each


class Exporter:
    """Owns the energy counters of the process; ended by `close` or the end of its `with` block."""

    def __init__(self, layers: int) -> None:
        if isinstance(layers, bool) or not isinstance(layers, int) or not 0 <= layers <= MAX_LAYERS:
            raise ConfigError(f"layers={layers!r}: give how many layers get a series, from 0 to {MAX_LAYERS}")
        self.books = EnergyCounters(layers)
        self.closed = False

    def close(self) -> None:
        """Stop exporting; a second call does nothing."""
        if not self.closed:
            self.closed = True
            self._end()
            self.books.close()

    def _end(self) -> None:
        """Stop the exporter's threads and servers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


EXPORTER_FORMS = "prometheus:PORT, prometheus:ADDRESS:PORT, textfile:FILE.prom or otel"


def named(text: str, allow_hosts: Sequence[str] = ()) -> Exporter:
    """Open an exporter by its command-line notation; `otel` uses the process's global provider.

    `allow_hosts` are passed to `prometheus`.

    Raises:
        ConfigError: The notation is not one of `EXPORTER_FORMS`, or the exporter cannot be opened.
    """
    kind, _, argument = text.partition(":")
    if kind == "otel" and not argument:
        from torchwatt.metrics.otel_exporter import otel

        return otel("global")
    if kind == "textfile" and argument:
        from torchwatt.metrics.textfile_exporter import textfile

        return textfile(argument)
    address, _, port = argument.rpartition(":")
    if kind == "prometheus" and port.isdecimal() and port.isascii():
        from torchwatt.metrics.prometheus_endpoint import LOOPBACK, prometheus

        return prometheus(port=int(port), address=address.strip("[]") or LOOPBACK, allow_hosts=allow_hosts)
    raise ConfigError(f"--metrics {text}: give {EXPORTER_FORMS}")
