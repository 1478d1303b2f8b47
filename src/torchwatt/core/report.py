"""The report of a run: the value that views and files are made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import fsum, isclose, sqrt
from typing import Literal

from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.factor import Factor, Impact
from torchwatt.core.job import RankPart
from torchwatt.core.ledger import MIN_COVERAGE, Ledger, mean_power_w
from torchwatt.core.meter import Event, Meter, SamplerStats, Series, Unavailable
from torchwatt.core.requests import TokenPosition, TokenRow
from torchwatt.core.terms import Phase, Provenance, weakest_provenance
from torchwatt.core.trace import ModelSize, ModuleInfo
from torchwatt.core.units import NS_PER_HOUR, Z90, hour_start

BLOCKS = 12  # of the run, for an interval from their differences (attribution.repeat_spread); shorter parts have none
# Units of language models, as counted by `torchwatt watch`.
INPUT_UNIT, OUTPUT_UNIT, REQUEST_UNIT = "input_token", "output_token", "request"
Status = Literal["running", "complete", "partial", "aborted"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step; `energy_j` by domain name, for the domains that were metered throughout the step."""

    index: int
    start_ns: int
    end_ns: int
    energy_j: Mapping[str, float]
    count: int = 1  # of steps in this row: more than 1 in a long run
    stage: str = ""  # train, validation or inference; empty: unknown


@dataclass(frozen=True, slots=True)
class Window:
    """A nested session, epoch, evaluation or checkpoint, or the time between two pages of a server that is watched.

    The run's energy includes it. Tokens are those that the server counted; None: unknown.
    """

    name: str
    start_ns: int
    end_ns: int
    energy_j: float | None
    kind: Literal["nested", "epoch", "evaluation", "checkpoint", "idle", "other"] = "nested"
    input_tokens: float | None = None
    output_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class PhaseInterval:
    """An interval of a run with the phase, and the group of modules, that took most of its time.

    `share` is the part of the interval's time that the phase took; `group` has `*` for indices (`blocks.*.mlp`).
    """

    start_ns: int
    end_ns: int
    phase: Phase
    share: float
    group: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Report:
    """One finished or running session. Times are monotonic; `start_unix_ns` is `start_ns` in unix time."""

    run_id: str
    name: str
    status: Status
    start_ns: int
    end_ns: int
    start_unix_ns: int
    ledgers: tuple[Ledger, ...]
    curves: tuple[EnergyCurve, ...]
    meters: tuple[Meter, ...]
    unavailable: tuple[Unavailable, ...] = ()
    events: tuple[Event, ...] = ()
    steps: tuple[Step, ...] = ()
    windows: tuple[Window, ...] = ()
    modules: tuple[ModuleInfo, ...] = ()
    units: Mapping[str, float] = field(default_factory=dict)  # counts given by the user: {"image": 1797.0}
    factors: tuple[Factor, ...] = ()
    impacts: tuple[Impact, ...] = ()
    sampler: SamplerStats = field(default_factory=SamplerStats)
    tracing_cost_s: float | None = None
    exit_reason: str = ""
    software: Mapping[str, str] = field(default_factory=dict)  # torchwatt, python, torch, os, ...
    carbon_hint: str = ""  # how to get carbon figures; empty if the report has them
    # Declarations of the user by column of the audit table `run`: {"organisation": "ACME", "persona": "provider"}.
    declared: Mapping[str, str | float | bool] = field(default_factory=dict)
    traced_steps: int | None = None  # steps whose modules were traced; the others are filled in from them
    timeline: tuple[PhaseInterval, ...] = ()  # disjoint, in time order; not in bundles
    gauges: tuple[Series, ...] = ()  # utilisation and temperature of devices, if they were read; not in bundles
    tokens: tuple[TokenRow, ...] = ()  # a row for each request of a language model and stage
    positions: tuple[TokenPosition, ...] = ()  # of output tokens; not in bundles
    models: tuple[ModelSize, ...] = ()  # that generated tokens by a library; not in bundles
    from_bundle: bool = False  # a bundle has no `timeline` and no `gauges`
    ranks: tuple[RankPart, ...] = ()  # of a merged job: the energy of each rank, included in the ledgers

    def __repr__(self) -> str:
        # One line; `views.to_text` writes the full report.
        total = "nothing metered" if self.energy_j is None else f"{self.energy_j:.6g} J"
        part = f" in the metered {self.coverage:.1%}" if self.counted and self.coverage < MIN_COVERAGE else ""
        return f"<Report {self.name!a} {self.run_id}: {self.status}, {total}{part} in {self.duration_s:.3f} s>"

    @property
    def duration_s(self) -> float:
        """Return the wall time of the run."""
        return (self.end_ns - self.start_ns) / 1e9

    @property
    def step_count(self) -> int:
        """Return the number of steps; a long run has fewer rows than steps."""
        return sum(step.count for step in self.steps)

    @property
    def sorted_units(self) -> tuple[tuple[str, float], ...]:
        """Return the counted units by name; tokens that a model read come last, since they are not what it delivers."""
        return tuple(sorted(self.units.items(), key=lambda each: (each[0] == INPUT_UNIT, each[0])))

    @property
    def counted(self) -> tuple[Ledger, ...]:
        """Return the ledgers that the total includes."""
        return tuple(ledger for ledger in self.ledgers if ledger.counted)

    @property
    def energy_j(self) -> float | None:
        """Return the joules of the counted domains; None if nothing was metered."""
        return fsum(ledger.energy_j for ledger in self.counted) if self.counted else None

    @property
    def mean_power_w(self) -> float | None:
        """Return the mean power of the counted domains in W, each over its metered time."""
        return mean_power_w((ledger.energy_j, ledger.known_s) for ledger in self.counted)

    def energy_per(self, count: float) -> float | None:
        """Return joules per unit; None if the coverage is too low, as units of unmetered parts are counted too."""
        if self.energy_j is None or count <= 0 or self.coverage < MIN_COVERAGE:
            return None
        return self.energy_j / count

    @property
    def coverage(self) -> float:
        """Return the part of the run for which the least covered domain of the total was metered."""
        return min((ledger.coverage for ledger in self.counted), default=0.0)

    @property
    def interval_j(self) -> tuple[float, float] | None:
        """Return the 90 % interval for a repeated run, in joules, as for the entries.

        Domains vary together with the duration of the run, so their intervals are added. None if one has none.
        """
        ends = [(ledger.energy_lo_j, ledger.energy_hi_j) for ledger in self.counted]
        bounded = [(lo, hi) for lo, hi in ends if lo is not None and hi is not None]
        if not ends or len(bounded) < len(ends):
            return None
        return fsum(lo for lo, _ in bounded), fsum(hi for _, hi in bounded)

    def repeat_interval_j(self, energy_j: float | None, long_ns: int) -> tuple[float, float] | None:
        """Return the interval over repeats of a part of the run, relative to that of the run; None for a short part."""
        interval_j, total_j = self.interval_j, self.energy_j
        if energy_j is None or interval_j is None or not total_j or long_ns * BLOCKS < self.end_ns - self.start_ns:
            return None
        return energy_j * interval_j[0] / total_j, energy_j * interval_j[1] / total_j

    @property
    def boundary(self) -> str:
        """Return the domains that the total includes, and how their joules are known: `cpu:0 + ram (modelled)`."""
        domains = " + ".join(sorted(str(ledger.domain) for ledger in self.counted))
        return f"{domains} ({self.provenance})" if domains else ""

    @property
    def systematic_j(self) -> tuple[float, float] | None:
        """Return the 90 % band of what other meters would measure of this run, in joules.

        It has the systematic bands of all meters and the errors of reading. A meter's error is common to all its
        joules, and meters of one kind have the same error, so bands are added, not combined in quadrature. None if a
        meter has no band or did not cover the run.
        """
        return self._systematic_j(self.counted)

    def systematic_of(self, ledger: Ledger) -> tuple[float, float] | None:
        """Return the 90 % band of what another meter would measure of one domain, in joules."""
        return self._systematic_j((ledger,))

    def _systematic_j(self, ledgers: tuple[Ledger, ...]) -> tuple[float, float] | None:
        reading_j = Z90 * sqrt(fsum((ledger.energy_u_j or 0.0) ** 2 for ledger in ledgers))
        low = high = 0.0
        for ledger in ledgers:
            meter = self.meter(str(ledger.domain))
            band = meter.accuracy_rel if meter is not None else None
            if band is None or not ledger.is_whole:
                return None
            low += ledger.energy_j * band[0]
            high += ledger.energy_j * band[1]
        total_j = fsum(ledger.energy_j for ledger in ledgers)
        return (max(total_j + low - reading_j, 0.0), total_j + high + reading_j) if ledgers else None

    @property
    def provenance(self) -> Provenance | None:
        """Return the weakest provenance among the domains of the total."""
        return weakest_provenance(*(ledger.provenance for ledger in self.counted)) if self.counted else None

    @property
    def carbon_g(self) -> float | None:
        """Return the location-based CO2e of the run's use phase in grams; None without a region."""
        impact = self.climate_impact("usage", "location")
        return None if impact is None else impact.value

    def climate_impact(self, phase: str, method: str) -> Impact | None:
        """Return the run's grams of CO2e of a life-cycle phase by an accounting method; None if not computed."""
        key = ("run", "gwp", phase, method)
        matches = (i for i in self.impacts if (i.subject, i.criterion, i.phase, i.accounting_method) == key)
        return next(matches, None)

    @property
    def cost(self) -> Impact | None:
        """Return the cost of the run's electricity at a declared price; its unit is the currency, as `{EUR}`."""
        return next((i for i in self.impacts if (i.subject, i.criterion) == ("run", "cost")), None)

    def meter(self, domain: str) -> Meter | None:
        """Return the meter of a domain by name."""
        return next((m for m in self.meters if str(m.domain) == domain), None)


@dataclass(frozen=True, slots=True)
class HourEnergy:
    """Energy of one domain in one hour (UTC), for hourly intensities; the hours of a domain add up to its ledger."""

    hour: int  # whole hours since 1970-01-01T00:00Z
    device_id: str
    energy_j: float
    provenance: Provenance

    @property
    def hour_utc(self) -> datetime:
        """Return the start of the hour."""
        return hour_start(self.hour)


def hour_energies(report: Report) -> tuple[HourEnergy, ...]:
    """Split the energy of each counted domain at the hours of UTC; skip domains whose curve and ledger differ."""
    curves = {str(curve.domain): curve for curve in report.curves}
    return tuple(item for x in report.counted for item in _ledger_hours(report, x, curves.get(str(x.domain))))


def _ledger_hours(report: Report, ledger: Ledger, curve: EnergyCurve | None) -> Iterator[HourEnergy]:
    """Yield differences of the cumulative curve, which add up to the total."""
    name, offset_ns = str(ledger.domain), report.start_unix_ns - report.start_ns
    if report.start_unix_ns // NS_PER_HOUR == (report.end_ns + offset_ns) // NS_PER_HOUR:
        yield HourEnergy(report.start_unix_ns // NS_PER_HOUR, name, ledger.energy_j, ledger.provenance)
        return
    if curve is None or not isclose(curve.total_j, ledger.energy_j, rel_tol=1e-9, abs_tol=1e-9):
        return
    last_hour = (curve.end_ns + offset_ns - 1) // NS_PER_HOUR
    for hour in range((curve.start_ns + offset_ns) // NS_PER_HOUR, last_hour + 1):
        start_ns = hour * NS_PER_HOUR - offset_ns
        yield HourEnergy(hour, name, curve.between(start_ns, start_ns + NS_PER_HOUR), ledger.provenance)
