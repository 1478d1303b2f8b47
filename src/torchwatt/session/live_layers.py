"""Steps and layers of a running session, updated at a cost that does not grow with the run.

Joules of the host are attributed to the modules that ran when they were used, stretch by stretch, and not revised.
Within a stretch every module draws the same power (as in the report where readings cannot separate layers). Joules
of a GPU are divided by the shares in its recorded windows. The report uses all readings and replaces these numbers.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from math import fsum, isclose
from typing import TYPE_CHECKING

import numpy as np

from torchwatt.attribution.counter_scope import MODULE_GPUS_FACT
from torchwatt.core.energy_curve import interpolate
from torchwatt.core.meter import FloatArray
from torchwatt.core.terms import IDLE, OUTSIDE, UNATTRIBUTED, domain_kind, weakest_provenance
from torchwatt.core.units import NS_PER_S
from torchwatt.session.live_meter import LiveMeter
from torchwatt.session.live_rate import RecentRate
from torchwatt.views import LiveSums

if TYPE_CHECKING:
    from torchwatt.session.session import Session
    from torchwatt.tracing import Tracer
    from torchwatt.tracing.tally_reader import TimeSums, WorkInterval
    from torchwatt.tracing.tally_rows import TallyRows

HOST_KINDS = frozenset({"cpu", "dram", "ram"})
OPEN_CALL_NS = 4 * NS_PER_S  # a call that has not ended by then is included up to now
LOG_PERIOD_NS = 5 * NS_PER_S  # a read of the logs costs milliseconds, however little is new
IDLE_CPU_SHARE = 0.05  # of one CPU, as in the report


class LiveLayers:
    """Call `update` from one thread a few times a second, after each `LiveMeter.update`; `sums` when needed."""

    def __init__(self, session: Session, tracer: Tracer, pulse: LiveMeter) -> None:
        from torchwatt.tracing.tally_reader import TimeSums

        self._session, self._tracer, self._pulse = session, tracer, pulse
        self._tally = tracer.tally(pulse.start_ns)
        self._pending: deque[WorkInterval] = deque()  # stretches of time with incomplete joules
        self._booked_j, self._calls = TimeSums(), TimeSums()
        self._gap_j: dict[str, float] = defaultdict(float)  # of time in which nothing was logged
        self._as_of_ns = pulse.start_ns
        self._cpu: deque[tuple[int, int]] = deque([(pulse.start_ns, time.process_time_ns())], maxlen=1_024)
        self._read_ns = 0
        self.steps = 0  # completed steps
        self._step_rate = RecentRate(pulse.start_ns)

    @property
    def as_of_s(self) -> float:
        """Return the time up to which layers are known, in seconds since the start."""
        return (self._as_of_ns - self._pulse.start_ns) / NS_PER_S

    @property
    def touched(self) -> int:
        """Return how many rows, calls and entries the last update processed."""
        return self._tally.touched

    def step_j(self) -> float | None:
        """Return mean joules per step over the last seconds; None before the first step."""
        return self._step_rate.mean_j()

    def update(self, *, read: bool = False) -> None:
        """Count steps; read the logs every five seconds, when steps cannot be counted otherwise, or on request.

        Args:
            read: Read the logs now, for a report.
        """
        now_ns = time.monotonic_ns()
        self._cpu.append((now_ns, time.process_time_ns()))
        steps = self._tally.steps_now()
        if read or steps is None or now_ns - self._read_ns >= LOG_PERIOD_NS:
            self._read_ns = now_ns
            self._read(now_ns)
            steps = self._tally.steps
        # The estimate between two counts may be one too high: a displayed number must not decrease.
        self.steps = max(steps, self.steps)
        self._step_rate.add(now_ns, self.steps, fsum(self._pulse.energy_j.values()))

    def _read(self, now_ns: int) -> None:
        stretch = self._tally.update(now_ns)
        if stretch is not None:
            self._pending.append(stretch)
        known_ns = self._known_ns()
        while self._pending and self._pending[0].end_ns <= known_ns:
            self._book(self._pending.popleft())

    def pay(self, cost_ns: int) -> None:
        """Charge the CPU time of a view to the tracing budget."""
        self._tracer.pay(cost_ns)

    def close(self) -> None:
        """Stop reading the logs."""
        self._tally.close()

    def sums(self) -> LiveSums:
        """Return the joules of each layer, which add up to all that were used until `as_of_s`."""
        from torchwatt.tracing.tally_reader import TimeSums

        booked_j, gap_j, calls = self._booked_j, dict(self._gap_j), self._calls
        as_of_ns = self._as_of_ns
        known_ns = self._known_ns()
        if not self._pending and known_ns - as_of_ns > OPEN_CALL_NS:
            late = self._tally.open(known_ns)
            late.pauses = [(late.last_ns or late.start_ns, late.end_ns)]
            booked_j, calls = TimeSums(), TimeSums()
            booked_j.add(self._booked_j)
            calls.add(self._calls)
            self._add(late, booked_j, gap_j)
            calls.add(late.calls)
            as_of_ns = late.end_ns
        rows = self._tally.rows(booked_j)
        energy_j = self._layer_j(rows, booked_j, gap_j, as_of_ns)
        return LiveSums(
            names=rows.labels,
            energy_j=energy_j,
            calls=rows.calls(self._tally.calls_of(calls)),
            kinds=rows.kinds,
            provenance=weakest_provenance("apportioned", self._pulse.provenance),
            as_of_s=(as_of_ns - self._pulse.start_ns) / NS_PER_S,
        )

    def _known_ns(self) -> int:
        return self._pulse.start_ns + round(self._pulse.as_of_s * NS_PER_S)

    def _book(self, stretch: WorkInterval) -> None:
        self._add(stretch, self._booked_j, self._gap_j)
        self._calls.add(stretch.calls)
        self._as_of_ns = stretch.end_ns

    def _add(self, stretch: WorkInterval, booked_j: TimeSums, gap_j: dict[str, float]) -> None:
        length_ns = stretch.end_ns - stretch.start_ns
        if length_ns <= 0:
            return
        joules = self._host_j(stretch.end_ns) - self._host_j(stretch.start_ns)
        booked_j.add(stretch.ns, joules / length_ns)
        for name, ns in self._gap(stretch):
            gap_j[name] = gap_j.get(name, 0.0) + joules * ns / length_ns

    def _gap(self, stretch: WorkInterval) -> Iterator[tuple[str, float]]:
        """Divide the time without logged calls: before the first call, idle, and work outside of modules."""
        outside_ns = 0.0
        if stretch.start_ns == self._pulse.start_ns and stretch.first_ns:
            outside_ns = min(float(stretch.first_ns - stretch.start_ns), stretch.gap_ns)
            yield OUTSIDE, outside_ns
        gap_ns = stretch.gap_ns - outside_ns
        idle_ns = min(
            fsum(end_ns - start_ns for start_ns, end_ns in stretch.pauses if self._idle(start_ns, end_ns)), gap_ns
        )
        yield IDLE, idle_ns
        yield UNATTRIBUTED, gap_ns - idle_ns

    def _idle(self, start_ns: int, end_ns: int) -> bool:
        """Return whether the process used less than 5 % of one CPU between two instants."""
        t_ns, cpu_ns = np.array(self._cpu, dtype=np.int64).T
        used_ns = float(np.diff(interpolate([start_ns, end_ns], t_ns, cpu_ns))[0])
        return used_ns < IDLE_CPU_SHARE * (end_ns - start_ns)

    def _host_j(self, t_ns: int) -> float:
        """Return the joules of CPU and memory, and of a superchip module those that its metered GPUs did not use."""
        parts = []
        for domain, (name, _) in self._pulse.list_counted().items():
            if domain_kind(name) in HOST_KINDS:
                parts.append(self._pulse.energy_at(domain, t_ns))
            elif domain_kind(name) == "module":
                gpu_j = [self._pulse.energy_at(gpu, t_ns) for gpu in self._inside(domain)]
                parts.append(max(self._pulse.energy_at(domain, t_ns) - fsum(gpu_j), 0.0) if gpu_j else 0.0)
        return fsum(parts)

    def _inside(self, domain: str) -> list[str]:
        """Return the metered GPUs of a superchip module."""
        meters = {str(meter.domain): meter for meter in self._session.feed.meters}
        gpus = (meters[domain].fact(MODULE_GPUS_FACT) or "").split(";") if domain in meters else []
        return [gpu for gpu in gpus if gpu in meters]

    def _device_j(self, t_ns: int) -> dict[str, float]:
        """Return the joules of each device; a module without metered parts is one device."""
        device_j: dict[str, float] = {}
        for domain, (name, _) in self._pulse.list_counted().items():
            if domain_kind(name) == "module" and self._inside(domain):
                device_j |= {gpu: self._pulse.energy_at(gpu, t_ns) for gpu in self._inside(domain)}
            elif domain_kind(name) not in HOST_KINDS:
                device_j[domain] = self._pulse.energy_at(domain, t_ns)
        return device_j

    def _layer_j(self, rows: TallyRows, booked_j: TimeSums, gap_j: Mapping[str, float], as_of_ns: int) -> FloatArray:
        layer_j = rows.table(self._tally.spread(booked_j), gap_j)
        # The set of counted meters may have changed since: then all booked joules are scaled to the new total.
        host_j, all_j = self._host_j(as_of_ns), float(layer_j.sum())
        if all_j > 0 and not isclose(host_j, all_j, rel_tol=1e-9):
            layer_j *= host_j / all_j
        for domain, joules in self._device_j(as_of_ns).items():
            shares = rows.device_table(domain, self._tally.device_ns(domain))
            if not shares.any():
                shares = rows.unknown_table()
            added = shares.shape[1] - layer_j.shape[1]
            layer_j = np.pad(layer_j, ((0, 0), (0, added))) + shares * (joules / float(shares.sum()))
        return np.maximum(layer_j, 0.0)
