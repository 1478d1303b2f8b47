"""Ledgers: every joule of a domain in exactly one entry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum, isclose
from typing import TYPE_CHECKING, Any, Literal

from torchwatt.core.errors import LedgerError
from torchwatt.core.terms import Domain, Method, Phase, Provenance, Slot

if TYPE_CHECKING:  # `verify` runs without numpy
    from torchwatt.core.meter import FloatArray

# A meter that was absent for a larger part of the run did not cover it.
FULL_COVERAGE = 0.995
EDGE_S = 0.5
MIN_COVERAGE = 0.95  # of a run of any length: below this, the energy is that of a part of the run


@dataclass(frozen=True, slots=True)
class Entry:
    """Energy of one slot in one domain; intervals are 90 %; None is unknown, never 0.

    `energy_self_lo_j` and `energy_self_hi_j` bound the energy of a repeated run (statistical). The systematic band
    bounds the energy that another meter would measure in this run.
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
    calls: int | None  # None: unknown
    method: Method
    provenance: Provenance
    carried_share: float = 0.0  # part of time_self_s that was extrapolated from traced windows
    measured_share: float | None = None  # part of its prior variance that the readings removed: 1 measured, 0 estimated
    measured_in: str = ""  # of an estimate: the smallest enclosing module whose energy the readings measured
    time_share_j: float | None = None  # the energy by time share, for comparison
    stage: str = ""  # stage of the program (prefill, decode, ...); empty if none was named
    energy_systematic_lo_j: float | None = None
    energy_systematic_hi_j: float | None = None
    flops: float | None = None  # operations of all calls; rows of all domains state those of the same calls
    bytes_moved: float | None = None
    input_rows: float | None = None  # of all forward calls, such as tokens; not in bundles


NO_INTERVAL = (None, None)


def book_entry(
    domain: Domain,
    slot: Slot,
    energy_j: float,
    time_s: float,
    *,
    method: Method,
    provenance: Provenance,
    static_j: float | None = None,
    interval_j: tuple[float, float] | tuple[None, None] = NO_INTERVAL,
) -> Entry:
    """Return the entry of a slot, without calls; its static part is at most its energy, the remainder is dynamic.

    Args:
        domain: The meter's.
        slot: Whose energy it is.
        energy_j: Self energy.
        time_s: Self time.
        method: How the energy was computed.
        provenance: How well it is known.
        static_j: Static power times the slot's time; None if unknown.
        interval_j: 90 % interval of a repeated run (see `interval_around`).
    """
    at_rest_j = None if static_j is None else min(static_j, energy_j)
    return Entry(
        domain=domain,
        fqn=slot.fqn,
        phase=slot.phase,
        energy_self_j=energy_j,
        energy_self_lo_j=interval_j[0],
        energy_self_hi_j=interval_j[1],
        energy_static_j=at_rest_j,
        energy_dynamic_j=None if at_rest_j is None else energy_j - at_rest_j,
        time_self_s=time_s,
        calls=0,
        method=method,
        provenance=provenance,
        stage=slot.stage,
    )


def interval_around(energy_j: float, half_j: float | None) -> tuple[float, float] | tuple[None, None]:
    """Return the interval of `half_j` on each side, not below 0; without `half_j`, no interval."""
    return NO_INTERVAL if half_j is None else (max(energy_j - half_j, 0.0), energy_j + half_j)


def absorb_rounding(parts_j: FloatArray, total_j: float) -> FloatArray:
    """Return parts which add up exactly to the total; the rounding error of their sum goes to the largest."""
    exact_j = parts_j.copy()
    exact_j[int(exact_j.argmax())] += total_j - fsum(exact_j)
    return exact_j


def sum_if_known(values: Iterable[float | None]) -> float | None:
    """Return the sum; None if one of the values is unknown."""
    amounts = list(values)
    return None if None in amounts else fsum(value for value in amounts if value is not None)


@dataclass(frozen=True, slots=True)
class Ledger:
    """The entries of one domain, which add up to its meter; else the constructor raises `LedgerError`."""

    domain: Domain
    energy_j: float
    entries: tuple[Entry, ...]
    method: Method
    provenance: Provenance
    known_s: float  # seconds with readings of the meter
    window_s: float  # duration of the run
    energy_u_j: float | None = None  # standard uncertainty of reading the meter
    energy_lo_j: float | None = None  # 90 % interval for a repeated run, as for its entries
    energy_hi_j: float | None = None
    static_w: float | None = None
    cross_check_j: float | None = None
    sentence: str = ""  # description of the method, one sentence
    counter_start_raw: int | None = None  # the counter's readings at both ends, for re-computation
    counter_end_raw: int | None = None
    counter_unit_j: float | None = None
    counter_wraps: int | None = None
    counted: bool = True  # whether the run's total includes it
    part_of: str = ""  # the domain that includes this energy

    def __post_init__(self) -> None:
        booked_j = fsum(entry.energy_self_j for entry in self.entries)
        if not isclose(booked_j, self.energy_j, rel_tol=1e-9, abs_tol=1e-9):
            raise LedgerError(f"{self.domain}: entries add up to {booked_j!r} J, its meter to {self.energy_j!r} J")
        if any(entry.domain != self.domain for entry in self.entries):
            raise LedgerError(f"{self.domain}: holds entries of another domain")

    @property
    def coverage(self) -> float:
        """Return the part of the run with readings of the meter, 0 to 1."""
        return min(self.known_s / self.window_s, 1.0) if self.window_s > 0 else 1.0

    @property
    def is_whole(self) -> bool:
        """Return whether the meter covered the run, except for about a sampling period at its ends."""
        return is_fully_covered(self.coverage, self.window_s)


def layer_values(ledger: Ledger, entry: Entry) -> dict[str, Any]:
    """Return the values of one layer row by column name; the table `layer` of bundles and `run.layers` hold them."""
    return {
        "fqn": entry.fqn,
        "phase": entry.phase,
        "calls": entry.calls,
        "time_self_s": entry.time_self_s,
        "energy_self_j": entry.energy_self_j,
        "energy_self_lo_j": entry.energy_self_lo_j,
        "energy_self_hi_j": entry.energy_self_hi_j,
        "energy_static_j": entry.energy_static_j,
        "energy_dynamic_j": entry.energy_dynamic_j,
        "energy_share": entry.energy_self_j / ledger.energy_j if ledger.energy_j > 0 else None,
        "energy_per_call_j": entry.energy_self_j / entry.calls if entry.calls else None,
        "method": entry.method,
        "provenance": entry.provenance,
        "carried_share": entry.carried_share,
        "measured_share": entry.measured_share,
        "measured_in": entry.measured_in,
        "time_share_j": entry.time_share_j,
        "stage": entry.stage,
        "energy_systematic_lo_j": entry.energy_systematic_lo_j,
        "energy_systematic_hi_j": entry.energy_systematic_hi_j,
        "flops": entry.flops,
        "bytes_moved": entry.bytes_moved,
    }


def add_clause(sentence: str, clause: str) -> str:
    """Return the sentence on a domain's method with one more clause."""
    return f"{sentence.removesuffix('.')}; {clause}."


def is_fully_covered(coverage: float, window_s: float) -> bool:
    """Return whether a coverage (0 to 1) counts as complete; if not, the energy has no interval."""
    return coverage >= FULL_COVERAGE or (coverage >= MIN_COVERAGE and (1.0 - coverage) * window_s <= EDGE_S)


def mean_power_w(parts: Iterable[tuple[float, float]]) -> float | None:
    """Return the total mean power of domains in W, each over its metered time.

    Args:
        parts: Joules and metered seconds (not the seconds of the run) of each domain.

    Returns:
        The sum of the domains' mean powers; None without domains, or if one of them has no metered time.
    """
    means_w = []
    for energy_j, known_s in parts:
        if known_s <= 0:
            return None
        means_w.append(energy_j / known_s)
    return fsum(means_w) if means_w else None


def total_self_j(entries: Iterable[Entry]) -> float:
    """Return the sum of self energies; the order does not matter."""
    return fsum(entry.energy_self_j for entry in entries)


def common_calls(entries: Sequence[Entry]) -> int | None:
    """Return the number of calls of one module; None if one is unknown.

    Entries of all domains and phases describe the same calls, those of different stages different ones.
    """
    sums: dict[tuple[Domain, Phase], int] = defaultdict(int)
    for entry in entries:
        if entry.calls is None:
            return None
        sums[entry.domain, entry.phase] += entry.calls
    return max(sums.values(), default=0)


def common_work(entries: Sequence[Entry], column: Literal["flops", "bytes_moved"]) -> float | None:
    """Return operations or bytes of entries; None without entries, or if those of one are unknown.

    Entries of several domains state the work of the same calls, which counts once.
    """
    by_domain: dict[Domain, list[float | None]] = defaultdict(list)
    for entry in entries:
        by_domain[entry.domain].append(entry.flops if column == "flops" else entry.bytes_moved)
    sums = [sum_if_known(values) for values in by_domain.values()]
    return None if None in sums else max((total for total in sums if total is not None), default=None)


def energy_per_tflop_j(entries: Sequence[Entry]) -> float | None:
    """Return the joules of 1e12 operations of some entries; None without operations, or if those of one are unknown."""
    flops = common_work(entries, "flops")
    return total_self_j(entries) / flops * 1e12 if flops else None
