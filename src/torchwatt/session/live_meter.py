"""Joules and watts of a running session, updated at a cost that does not grow with the run."""

from __future__ import annotations

import bisect
import time
from collections import deque
from collections.abc import Mapping
from math import fsum
from typing import Protocol, runtime_checkable

from torchwatt.attribution.counted_domains import classify_device_use, select_counted_domains
from torchwatt.attribution.metered_curve import MeteredCurve, build_metered_curve
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.meter import Meter, Recording, Unavailable
from torchwatt.core.terms import Provenance, weakest_provenance
from torchwatt.core.trace import EMPTY_TRACE
from torchwatt.core.units import NS_PER_S
from torchwatt.reports.emissions import running_carbon_g
from torchwatt.reports.report_builder import read_cuda_use
from torchwatt.session.session import Session
from torchwatt.views import LivePoint

SELECTION_PERIOD_NS = 2 * NS_PER_S
SELECTION_START_NS = 5 * NS_PER_S  # before this, readings may not yet show what a counter covers
COMPARED_NS = 30 * NS_PER_S  # length of the readings that an update compares


class CountedMeters:
    """Maps each meter to the name under which its joules count; a meter that is not in the map is not in the total."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._looked_ns = 0
        self._ours: set[str] = set()  # GPUs once identified as used by this process; they stay so
        self._names: dict[str, str] | None = None

    def names(self) -> dict[str, str]:
        """Return the name of each counted domain, at most two seconds old while the session runs."""
        now_ns = time.monotonic_ns()
        if self._names is None or (self._session.running and now_ns - self._looked_ns > SELECTION_PERIOD_NS):
            self._looked_ns = now_ns
            self._names = self._look(now_ns)
        return self._names

    def _look(self, now_ns: int) -> dict[str, str]:
        session = self._session
        if all(meter.domain.kind != "gpu" for meter in session.feed.meters):
            return select_counted_domains(Recording(session.feed.meters, ()), {})
        recording = session.feed.snapshot(max(now_ns - COMPARED_NS, 0))
        used = classify_device_use(recording, EMPTY_TRACE, read_cuda_use(recording.meters), session.start_ns, now_ns)
        if session.options.whole_machine:
            used = {}
        self._ours |= {name for name, use in used.items() if use.user == "ours"}
        foreign_uses = {name: use for name, use in used.items() if name not in self._ours}
        return select_counted_domains(recording, foreign_uses, early=now_ns - session.start_ns < SELECTION_START_NS)


SETTLED_NS = 2 * NS_PER_S  # readings that arrive this much later no longer change a curve
STALE_NS = 3 * NS_PER_S  # older watts are not current
REREAD_NS = 3 * NS_PER_S  # readings this recent are read again: slow meters publish once a second
REREAD_MARGIN_NS = 3 * NS_PER_S // 2  # margin before that, for more than one publication


class RunningEnergy:
    """Joules of one meter since an instant, and its latest watts.

    The end of a curve is provisional: it extrapolates a counter from its last publications, and the next curve, with
    more readings, corrects it. So only joules up to `SETTLED_NS` before the end of a curve are final, and the rest is
    taken from the next curve; otherwise the errors at the ends would add up. The total never decreases: an excess is
    subtracted from later increments.

    Attributes:
        settled_ns: The next curve should begin before this instant.
        end_ns: The instant up to which joules are in the total.
        total_j: Joules from the start to `end_ns`.
    """

    __slots__ = ("_mean_w", "_settled_j", "end_ns", "settled_ns", "total_j")

    def __init__(self, start_ns: int) -> None:
        self.settled_ns = self.end_ns = start_ns
        self._settled_j = self.total_j = 0.0
        self._mean_w: float | None = None  # of the latest increment

    def extend(self, curve: EnergyCurve, end_ns: int) -> float:
        """Extend the total to `end_ns` with a later curve; return the increase in joules."""
        self._mean_w = curve.mean_w(self.end_ns, end_ns)
        if curve.start_ns > self.settled_ns:  # this curve does not cover the time before its start
            self.settled_ns, self._settled_j = max(self.end_ns, curve.start_ns), self.total_j
        before_j, self.total_j = self.total_j, self.at(curve, end_ns)
        self.end_ns = end_ns
        if end_ns - SETTLED_NS > self.settled_ns:
            self._settled_j += curve.between(self.settled_ns, end_ns - SETTLED_NS)
            self.settled_ns = end_ns - SETTLED_NS
        return self.total_j - before_j

    def at(self, curve: EnergyCurve, t_ns: int) -> float:
        """Return the joules from the start to an instant of a later curve, never less than the total."""
        return max(self._settled_j + curve.between(self.settled_ns, t_ns), self.total_j)

    def power_w(self, now_ns: int) -> float | None:
        """Return the mean watts of the latest increment; None if it is older than 3 s, or a part of it is unknown."""
        return self._mean_w if now_ns - self.end_ns < STALE_NS else None


def reread_since_ns(now_ns: int, settled_ns: int) -> int:
    """Return from when readings are needed for curves that begin before `settled_ns`."""
    return min(now_ns - REREAD_NS, settled_ns) - REREAD_MARGIN_NS


def build_live_curve(meter: Meter, recording: Recording) -> MeteredCurve | None:
    """Return the curve of the latest readings; None if the meter has only gauges, or too few readings."""
    if all(channel.quantity == "gauge" for channel in meter.channels):
        return None
    metered = build_metered_curve(meter, recording)
    return None if isinstance(metered, Unavailable) else metered


@runtime_checkable
class LiveFeed(Protocol):
    """A feed that can be read while it runs; the replay of a recording cannot, whose power is not current."""

    def peek(self, since_ns: int) -> Recording:
        """Return counters and powers from `since_ns` on."""


MAX_REREAD_NS = 60 * NS_PER_S  # longest interval read after a stall
HISTORY_POINTS = 1_024  # updates: about four minutes


class LiveMeter:
    """Joules so far and current watts by domain; call `update` from one thread, a few times a second.

    Each update adds joules from the latest readings. The final report uses all readings at once and may differ
    by one publication of a meter.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._running: dict[str, RunningEnergy] = {}
        self._counted = CountedMeters(session)
        self.points: deque[LivePoint] = deque(maxlen=240)
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
        end_times_ns = [t_ns for _, t_ns in self.list_counted().values() if now_ns - t_ns < STALE_NS]
        return (min(end_times_ns, default=now_ns) - self.start_ns) / NS_PER_S

    def list_counted(self) -> dict[str, tuple[str, int]]:
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

    @property
    def provenance(self) -> Provenance:
        """Return the weakest provenance of the domains that make up the total; `measured` while there is none."""
        names, meters = self._counted.names(), self._session.feed.meters
        return weakest_provenance("measured", *(m.provenance for m in meters if str(m.domain) in names))

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
        longest_ns = now_ns - start_ns if fresh else MAX_REREAD_NS
        since_ns = reread_since_ns(now_ns, max(oldest, now_ns - longest_ns))
        recording = feed.peek(since_ns) if isinstance(feed, LiveFeed) and not fresh else feed.snapshot(since_ns)
        curves: dict[str, EnergyCurve] = {}
        for meter in recording.meters:
            metered = build_live_curve(meter, recording)
            if metered is not None:
                curves[str(meter.domain)] = metered.curve
                self._add(metered.curve, start_ns)
        self.whole = self._whole(curves) or self.whole
        self.points.append(LivePoint((now_ns - start_ns) / NS_PER_S, self.power_w(now_ns)))
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
        powers_w = {domain: running.power_w(now_ns) for domain, running in self._running.items()}
        return {name: powers_w.get(domain) for domain, name in self._counted.names().items()}

    def carbon_g(self, energy_j: float | None = None) -> float | None:
        """Return grams of the joules so far or of `energy_j`; None without a region or without joules."""
        plan = self._session.options.carbon
        counted_j = self.energy_j
        if not plan.location or not counted_j:
            return None
        total_j = fsum(counted_j.values()) if energy_j is None else energy_j
        now_ns = time.time_ns()
        start_ns = now_ns - (time.monotonic_ns() - self._session.start_ns)
        return running_carbon_g(total_j, self.provenance, plan, start_ns, now_ns)

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

    def _add(self, curve: EnergyCurve, start_ns: int) -> None:
        domain = str(curve.domain)
        running = self._running.setdefault(domain, RunningEnergy(start_ns))
        before_ns = running.end_ns
        if curve.end_ns <= before_ns:
            return
        for t_ns in [t for t in self._requested if before_ns < t <= curve.end_ns]:
            self._requested[t_ns][domain] = running.at(curve, t_ns)
        self.gaps += any(lo < curve.end_ns and hi > before_ns for lo, hi in curve.silent)
        running.extend(curve, curve.end_ns)
        points = self._history.setdefault(domain, deque([(start_ns, 0.0)], maxlen=HISTORY_POINTS))
        points.append((curve.end_ns, running.total_j))
