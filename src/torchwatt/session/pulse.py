"""Joules and watts of a running session, updated at a cost that does not grow with the run."""

from __future__ import annotations

import bisect
import time
from collections import deque
from collections.abc import Mapping
from math import fsum
from typing import cast

from torchwatt.attribution.curves import metered
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.meter import Meter, Recording, Unavailable
from torchwatt.core.terms import weakest
from torchwatt.core.units import NS_PER_S
from torchwatt.sensors import Sampler
from torchwatt.session.counted import Counted
from torchwatt.session.grams import grams_so_far
from torchwatt.session.running_energy import RunningEnergy
from torchwatt.session.session import Session
from torchwatt.views import Point

LOOK_BACK_NS = 3 * NS_PER_S  # readings this old are read again: slow meters publish once a second
MARGIN_NS = 3 * NS_PER_S // 2  # margin before that, for more than one publication
LONGEST_NS = 60 * NS_PER_S  # longest interval read after a stall
HISTORY = 1_024  # updates: about four minutes
STALE_NS = 3 * NS_PER_S  # older watts are not shown as current


class Pulse:
    """Joules so far and current watts by domain; call `update` from one thread, a few times a second.

    Each update adds joules from the latest readings. The final report uses all readings at once and may differ
    by one publication of a meter.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._running: dict[str, RunningEnergy] = {}
        self._watts: dict[str, float] = {}
        self._counted = Counted(session)
        self.points: deque[Point] = deque(maxlen=240)
        self.whole: tuple[int, float] | None = None  # last instant known to all meters, joules until then
        self.gaps = 0  # times that a meter was silent: joules of that interval are missing
        self._requested: dict[int, dict[str, float]] = {}
        self._history: dict[str, deque[tuple[int, float]]] = {}  # by meter: (instant, joules until then)

    @property
    def start_ns(self) -> int:
        """Return when the run began."""
        return self._session.start_ns

    @property
    def as_of_s(self) -> float:
        """Return up to when joules of all recently updated meters are known, in seconds since the start."""
        now_ns = time.monotonic_ns()
        end_times_ns = [t_ns for _, t_ns in self.metered().values() if now_ns - t_ns < STALE_NS]
        return (min(end_times_ns, default=now_ns) - self.start_ns) / NS_PER_S

    def metered(self) -> dict[str, tuple[str, int]]:
        """Return by counted meter: the domain its joules count for, and the instant up to which they are known."""
        names = self._counted.names()
        known_ns = {domain: running.end_ns for domain, running in self._running.items()}
        return {domain: (name, known_ns.get(domain, 0)) for domain, name in names.items()}

    def energy_at(self, domain: str, t_ns: int) -> float:
        """Return a meter's joules from the start to an instant, clamped to the history of the last minutes.

        Between two updates the power is taken to be constant.
        """
        points = self._history.get(domain)
        if not points:
            return 0.0
        at = bisect.bisect_left(points, (t_ns, 0.0))
        if at == 0:
            return points[0][1]
        if at == len(points):
            return points[-1][1]
        (from_ns, from_j), (to_ns, to_j) = points[at - 1], points[at]
        return from_j + (to_j - from_j) * (t_ns - from_ns) / (to_ns - from_ns)

    @property
    def energy_j(self) -> dict[str, float]:
        """Return the joules so far of the domains that make up the total."""
        return self._named({domain: running.total_j for domain, running in self._running.items()})

    def _named(self, by_domain: Mapping[str, float]) -> dict[str, float]:
        names = self._counted.names()
        return {names[domain]: value for domain, value in by_domain.items() if domain in names}

    def update(self, *, fresh: bool = False) -> Recording:
        """Read new readings and append a point to `points`.

        Args:
            fresh: Read all counters now, in this process, and evaluate all readings since the last update.
                Costs about a millisecond.
        """
        feed = self._session.feed
        if fresh:
            feed.read_now()
        now_ns, start_ns = time.monotonic_ns(), self._session.start_ns
        oldest = min((running.settled_ns for running in self._running.values()), default=start_ns)
        longest_ns = now_ns - start_ns if fresh else LONGEST_NS
        since_ns = max(min(now_ns - LOOK_BACK_NS, oldest), now_ns - longest_ns) - MARGIN_NS
        peeks = isinstance(feed, Sampler) and not fresh
        recording = cast("Sampler", feed).peek(since_ns) if peeks else feed.snapshot(since_ns)
        curves: dict[str, EnergyCurve] = {}
        for meter in recording.meters:
            if any(channel.quantity != "gauge" for channel in meter.channels):
                curve = self._add(meter, recording, start_ns)
                if curve is not None:
                    curves[str(meter.domain)] = curve
        self.whole = self._whole(curves) or self.whole
        self.points.append(Point((now_ns - start_ns) / NS_PER_S, self.power_w(now_ns)))
        return recording

    def request_at(self, t_ns: int) -> None:
        """Register an instant at which joules are wanted; call it before the update that passes the instant."""
        self._requested[t_ns] = {}

    def result_at(self, t_ns: int) -> dict[str, float] | None:
        """Return joules by domain from the start to a registered instant; None while a meter has not passed it."""
        joules, names = self._requested.get(t_ns), self._counted.names()
        if not joules or names.keys() - joules.keys():
            return None
        return self._named(joules)

    def forget(self, t_ns: int) -> None:
        """Unregister an instant."""
        self._requested.pop(t_ns, None)

    def power_w(self, now_ns: int) -> dict[str, float | None]:
        """Return the latest watts by domain; None if the meter has not answered within 3 s."""
        fresh = {domain: now_ns - running.end_ns < STALE_NS for domain, running in self._running.items()}
        names = self._counted.names()
        return {name: self._watts.get(domain) if fresh.get(domain) else None for domain, name in names.items()}

    def carbon_g(self, energy_j: float | None = None) -> float | None:
        """Return grams of the joules so far or of `energy_j`; None without a region or without joules."""
        plan = self._session.asked.carbon
        counted_j, names = self.energy_j, self._counted.names()
        if not plan.location or not counted_j:
            return None
        total_j = fsum(counted_j.values()) if energy_j is None else energy_j
        provenance = weakest(*(m.provenance for m in self._session.feed.meters if str(m.domain) in names))
        now_ns = time.time_ns()
        start_ns = now_ns - (time.monotonic_ns() - self._session.start_ns)
        return grams_so_far(total_j, provenance, plan, start_ns, now_ns)

    def _whole(self, curves: Mapping[str, EnergyCurve]) -> tuple[int, float] | None:
        """Return the last instant for which all joules are known, and these joules; None if unknown."""
        names = self._counted.names()
        if not curves or not names or names.keys() - self._running.keys():
            return None
        t_ns = min(self._running[domain].end_ns for domain in names)
        ahead = [curves[domain] for domain in names if self._running[domain].end_ns > t_ns and domain in curves]
        if any(curve.start_ns > t_ns for curve in ahead):
            return None
        rest_j = fsum(curve.between(t_ns, self._running[str(curve.domain)].end_ns) for curve in ahead)
        return t_ns, fsum(self._running[domain].total_j for domain in names) - rest_j

    def _add(self, meter: Meter, recording: Recording, start_ns: int) -> EnergyCurve | None:
        domain, result = str(meter.domain), metered(meter, recording)
        if isinstance(result, Unavailable):
            return None
        curve: EnergyCurve = result.curve
        running = self._running.get(domain) or RunningEnergy(start_ns)
        known_ns = running.end_ns
        if curve.end_ns <= known_ns:
            return curve
        for t_ns in [t for t in self._requested if known_ns < t <= curve.end_ns]:
            self._requested[t_ns][domain] = running.at(curve, t_ns)
        self.gaps += any(lo < curve.end_ns and hi > known_ns for lo, hi in curve.silent)
        mean_w = curve.mean_w(known_ns, curve.end_ns)
        if mean_w is None:
            self._watts.pop(domain, None)
        else:
            self._watts[domain] = mean_w
        running.extend(curve, curve.end_ns)
        self._running[domain] = running
        points = self._history.setdefault(domain, deque([(start_ns, 0.0)], maxlen=HISTORY))
        points.append((curve.end_ns, running.total_j))
        return curve
