"""Books: every joule of a domain on exactly one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum, isclose

from torchwatt.core.errors import LedgerError
from torchwatt.core.terms import Domain, Method, Phase, Provenance

# A meter that was away for longer leaves a hole in the run.
FULL_COVERAGE = 0.995
EDGE_S = 0.5
LEAST_COVERAGE = 0.95  # of a run of any length: below, the joules are those of a part of it


@dataclass(frozen=True, slots=True)
class Entry:
    """What one slot used in one domain; intervals are 90 %, None is unknown, never 0.

    `energy_self_lo_j` and `energy_self_hi_j` are statistical: what another repeat of the run would give. The systematic
    band is what another meter would say of this one.
    """

    domain: Domain
    fqn: str
    phase: Phase
    energy_self_j: float
    energy_self_lo_j: float | None
    energy_self_hi_j: float | None
    energy_static_j: float | None
    energy_dynamic_j: float | None
    time_self_s: float
    calls: int | None  # None: how often it ran is not known
    method: Method
    provenance: Provenance
    carried_share: float = 0.0  # part of time_self_s that was carried over from traced windows
    measured_share: float | None = None  # part of its prior variance that the readings removed: 1 measured, 0 estimated
    measured_in: str = ""  # where it alone is an estimate: the smallest enclosing module that the readings measured
    time_share_j: float | None = None  # what time share would have booked, to compare with
    stage: str = ""  # what the program was doing (prefill, decode, ...); empty until something names it
    energy_systematic_lo_j: float | None = None
    energy_systematic_hi_j: float | None = None


@dataclass(frozen=True, slots=True)
class Ledger:
    """The entries of one domain; they add up to its meter, or constructing it raises."""

    domain: Domain
    energy_j: float
    entries: tuple[Entry, ...]
    method: Method
    provenance: Provenance
    known_s: float  # how long the meter was known
    window_s: float  # how long the run was
    energy_u_j: float | None = None  # standard uncertainty of reading the meter
    energy_lo_j: float | None = None  # 90 %: what another repeat of the run would give, as of its entries
    energy_hi_j: float | None = None
    static_w: float | None = None
    cross_check_j: float | None = None
    sentence: str = ""  # how this domain was known, in one sentence
    counter_start_raw: int | None = None  # the counter's own readings at both ends, for re-computation
    counter_end_raw: int | None = None
    counter_unit_j: float | None = None
    counter_wraps: int | None = None
    counted: bool = True  # part of the run's total; else it has books of its own beside it
    part_of: str = ""  # the domain whose joules contain these

    def __post_init__(self) -> None:
        booked_j = fsum(entry.energy_self_j for entry in self.entries)
        if not isclose(booked_j, self.energy_j, rel_tol=1e-9, abs_tol=1e-9):
            raise LedgerError(f"{self.domain}: entries add up to {booked_j!r} J, the meter says {self.energy_j!r} J")
        if any(entry.domain != self.domain for entry in self.entries):
            raise LedgerError(f"{self.domain}: holds entries of another domain")

    @property
    def coverage(self) -> float:
        """Return the part of the run for which the meter was known."""
        return min(self.known_s / self.window_s, 1.0) if self.window_s > 0 else 1.0

    @property
    def is_whole(self) -> bool:
        """Return whether the meter was there all the time, the first and last sampling period of the run aside."""
        return covers_all(self.coverage, self.window_s)


def covers_all(coverage: float, window_s: float) -> bool:
    """Return whether a meter known for this part of a run leaves no hole in it; else its joules have no interval."""
    return coverage >= FULL_COVERAGE or (coverage >= LEAST_COVERAGE and (1.0 - coverage) * window_s <= EDGE_S)


def mean_power_w(parts: Iterable[tuple[float, float]]) -> float | None:
    """Return the mean power of domains that draw power at the same time: each one's joules over its metered seconds.

    Args:
        parts: Joules and metered seconds (not the seconds of the run) of each domain.

    Returns:
        The sum of the domains' means; None without domains, or where one has joules and no metered time.
    """
    means_w = []
    for energy_j, known_s in parts:
        if known_s <= 0:
            return None
        means_w.append(energy_j / known_s)
    return fsum(means_w) if means_w else None


def total_self_j(entries: Iterable[Entry]) -> float:
    """Add up self energies, independent of their order."""
    return fsum(entry.energy_self_j for entry in entries)


def same_calls(calls: Sequence[int | None]) -> int | None:
    """Return the calls of entries that count the same ones; None where one of them does not know how many."""
    known_calls = [each for each in calls if each is not None]
    return max(known_calls, default=0) if len(known_calls) == len(calls) else None
