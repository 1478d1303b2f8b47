"""Compare the energy of the ranks of a merged job: each rank, and each layer across ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import fsum

from torchwatt.core.job import RankPart
from torchwatt.core.ledger import Entry
from torchwatt.core.report import Report
from torchwatt.core.terms import NO_RANK
from torchwatt.views.layers import half_interval, tied
from torchwatt.views.numbers import DASH, format_energy, format_time

HOST = frozenset({"cpu", "dram", "ram", "psys"})


@dataclass(frozen=True, slots=True)
class Across:
    """The joules of one row across the metered ranks; a rank without this row counts as 0 J."""

    name: str
    phase: str
    sum_j: float
    min_j: float
    max_j: float
    max_rank: int
    ranks: int  # number of metered ranks
    tied: bool = False  # the interval of the difference from the row above includes 0

    @property
    def imbalance(self) -> float | None:
        """Return maximum over mean: 1 if all are equal, the number of ranks if only one has joules; None for 0 J."""
        return self.max_j * self.ranks / self.sum_j if self.sum_j > 0 else None


def metered(report: Report) -> tuple[RankPart, ...]:
    """Return the ranks with entries."""
    return tuple(part for part in report.ranks if part.entries)


def across(report: Report) -> tuple[Across, ...]:
    """Return layers and reserved rows across ranks, most joules first."""
    parts = metered(report)
    by_slot: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for part in parts:
        for entry in part.entries:
            by_slot[entry.fqn, entry.phase][part.rank].append(entry.energy_self_j)
    rows = [
        _across(*slot, {rank: fsum(joules) for rank, joules in joules_of_rank.items()}, parts)
        for slot, joules_of_rank in by_slot.items()
    ]
    ordered = sorted(rows, key=lambda row: (-row.sum_j, row.name, row.phase))
    half_j = _half_j(report)
    ends = [(row.sum_j, half_j.get((row.name, row.phase))) for row in ordered]
    return tuple(
        replace(row, tied=i > 0 and tied(ends[i - 1], ends[i])) for i, row in enumerate(ordered)
    )  # fmt: skip


def _half_j(report: Report) -> dict[tuple[str, str], float | None]:
    """Return half the 90 % interval of each row of the job; None if an entry has no interval."""
    entries_of_slot: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for ledger in report.counted:
        for entry in ledger.entries:
            entries_of_slot[entry.fqn, entry.phase].append(entry)
    return {slot: half_interval(entries)[1] for slot, entries in entries_of_slot.items()}


def _across(name: str, phase: str, energy_of_rank: dict[int, float], parts: Sequence[RankPart]) -> Across:
    joules = {part.rank: energy_of_rank.get(part.rank, 0.0) for part in parts}
    max_rank = max(joules, key=lambda rank: (joules[rank], -rank))
    return Across(name, phase, fsum(joules.values()), min(joules.values()), joules[max_rank], max_rank, len(parts))


def whole(report: Report) -> Across | None:
    """Return the ranks' totals across ranks."""
    parts = metered(report)
    totals = {part.rank: part.energy_j or 0.0 for part in parts}
    return _across("all", "", totals, parts) if parts else None


def no_rank_j(report: Report) -> float:
    """Return the joules of the job's machines that are not allocated to any rank."""
    return fsum(e.energy_self_j for ledger in report.counted for e in ledger.entries if e.fqn == NO_RANK)


def device_j(part: RankPart, *, host: bool) -> float | None:
    """Return a rank's joules on the host's domains, or on its own devices; None where it has none."""
    parts_j = [e.energy_self_j for e in part.entries if (e.domain.kind in HOST) == host]
    return fsum(parts_j) if parts_j else None


def skew_s(report: Report) -> tuple[float, float, float] | None:
    """Return the ranges of start, end and duration of the ranks in seconds; None with fewer than two known."""
    spans = [(p.start_ns, p.end_ns) for p in report.ranks if p.start_ns is not None and p.end_ns is not None]
    if len(spans) < 2:
        return None
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    lengths = [end - start for start, end in spans]
    return _spread_s(starts), _spread_s(ends), _spread_s(lengths)


def _spread_s(times_ns: Sequence[int]) -> float:
    return (max(times_ns) - min(times_ns)) / 1e9


def cells(part: RankPart) -> tuple[str, ...]:
    """Return the cells of one rank: rank, node, devices, total, device, host, communication, CPU time, time, status."""
    devices = sorted({str(entry.domain) for entry in part.entries if entry.domain.kind not in HOST})
    status = part.status if not part.reason else f"{part.status}: {part.reason}"
    return (
        str(part.rank),
        DASH if part.node is None else str(part.node),
        ", ".join(devices) or DASH,
        format_energy(part.energy_j),
        format_energy(device_j(part, host=False)),
        format_energy(device_j(part, host=True)),
        format_energy(part.communication_j),
        DASH if part.cpu_s is None else format_time(part.cpu_s),
        DASH if part.duration_s is None else format_time(part.duration_s),
        status,
    )


HEAD = ("rank", "node", "device", "energy", "on device", "on host", "communic.", "CPU time", "time", "status")


def sentence(report: Report) -> str:
    """Describe the job: number of ranks, imbalance, differences in time, unallocated joules, clock error."""
    missing = [part.rank for part in report.ranks if not part.entries]
    words = [f"{len(report.ranks) - len(missing)} of {len(report.ranks)} ranks"]
    total = whole(report)
    if total is not None and total.imbalance is not None:
        words.append(f"imbalance {total.imbalance:.2f} (most / mean; most: rank {total.max_rank})")
    skew = skew_s(report)
    if skew is not None:
        began, ended, length = (format_time(seconds) for seconds in skew)
        words.append(f"began {began} apart, ended {ended} apart, durations differ by {length}")
    rest_j = no_rank_j(report)
    if rest_j > 0:
        words.append(f"{format_energy(rest_j)} of the machines not allocated to any rank")
    bounds = [part.clock_bound_ns for part in report.ranks if part.clock_method == "store"]
    if bounds:
        words.append(f"clock error at most {format_time(max(b for b in bounds if b is not None) / 1e9)}")
    return " · ".join(words)
