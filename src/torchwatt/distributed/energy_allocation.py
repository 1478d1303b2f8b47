"""Allocate the joules of each meter of a job to its ranks, and within a rank to its layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum

import numpy as np

from torchwatt.attribution.host_attribution import attribute_host
from torchwatt.core.energy_curve import EnergyCurve, interpolate
from torchwatt.core.job import HostShare, RankFacts
from torchwatt.core.ledger import Entry, Ledger, add_clause, book_entry, sum_if_known
from torchwatt.core.meter import Recording, Series
from torchwatt.core.terms import (
    IDLE,
    NO_RANK,
    OUTSIDE,
    UNATTRIBUTED,
    Domain,
    Method,
    Phase,
    Provenance,
    Slot,
    weakest_provenance,
)
from torchwatt.core.trace import Trace
from torchwatt.distributed.rank_records import Job, MeterGroup, MeterView

PROCESS_CPU, BUSY_CPU = "process/process_cpu", "process/busy_cpu"
MAX_CPU_POINTS = 400


def compute_host_shares(recording: Recording, trace: Trace, start_ns: int, end_ns: int) -> tuple[HostShare, ...]:
    """Split the process's CPU seconds over the slots of the trace, as joules are split: interval by interval, by time.

    CPU seconds replace joules here, so that a slot with eight busy threads weighs more than one that waited. Empty
    where no CPU time was read.
    """
    points = select_cpu_points(recording, PROCESS_CPU, start_ns, end_ns)
    if len(points) < 2 or points[-1][1] <= points[0][1]:
        return ()
    t_ns = np.array([t for t, _ in points], dtype=np.int64)
    cpu_s = np.array([s for _, s in points]) - points[0][1]
    curve = EnergyCurve(Domain("cpu"), t_ns, np.maximum.accumulate(cpu_s), "load_model", "modelled")
    entries = attribute_host(curve, trace, recording.get(PROCESS_CPU)).entries(None, None)
    return tuple(
        HostShare(e.fqn, e.phase, max(e.energy_self_j, 0.0), e.time_self_s, e.calls, e.carried_share, e.stage)
        for e in entries
    )  # fmt: skip


def select_cpu_points(recording: Recording, key: str, start_ns: int, end_ns: int) -> tuple[tuple[int, float], ...]:
    """Return (t_ns, CPU seconds so far) inside a window, cut at its ends."""
    series = recording.get(key)
    if series is None or len(series) < 2:
        return ()
    readings = _distinct_readings(series)
    if len(readings.t_ns) < 2:
        return ()
    lo, hi = max(start_ns, int(readings.t_ns[0])), min(end_ns, int(readings.t_ns[-1]))
    if hi <= lo:
        return ()
    inner_ns = readings.t_ns[(readings.t_ns > lo) & (readings.t_ns < hi)]
    t_ns = np.concatenate(([lo], inner_ns, [hi]))
    raw = interpolate(t_ns, readings.t_ns, np.maximum.accumulate(readings.raw)) * readings.channel.scale
    return tuple(zip(t_ns.tolist(), raw.tolist(), strict=True))


def _distinct_readings(series: Series) -> Series:
    """Keep finite readings, one an instant."""
    keep = np.isfinite(series.raw)
    t_ns, indices = np.unique(series.t_ns[keep], return_index=True)
    raw = series.raw[keep][indices]
    return Series(series.channel, t_ns, raw, np.zeros_like(t_ns))


def thin_cpu_points(points: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Keep the ends and at most some hundred points between: enough to interpolate CPU time in a part of the run."""
    if len(points) <= MAX_CPU_POINTS:
        return tuple(points)
    chosen = np.unique(np.linspace(0, len(points) - 1, MAX_CPU_POINTS).round().astype(int))
    return tuple(points[i] for i in chosen.tolist())


def untraced_share(cpu_s: float) -> tuple[HostShare, ...]:
    """Return the share of a rank without layers."""
    return (HostShare(UNATTRIBUTED, "other", cpu_s, 0.0, 0),)


MIN_ENERGY_J = 1e-9  # below, shares of a rank's joules are rounding
EntriesByRank = Mapping[int, tuple[Entry, ...]]  # by rank


@dataclass(frozen=True, slots=True, eq=False)
class EnergyAllocation:
    """The ledger of one meter, and its entries by rank; joules of no rank are `(no rank)`."""

    ledger: Ledger
    parts: EntriesByRank


def allocate_meter(group: MeterGroup, job: Job) -> EnergyAllocation | None:
    """Return the allocation of one meter; None where it is not in the total."""
    head, owners = group.holder, group.owners
    ledger = head.ledger
    if ledger is None:
        return None
    if group.added:
        return _sum_shares(group)
    if owners:
        sole_owner = owners[0].rank if len(owners) == 1 else None
        return (
            _split_by_busy_time(group.domain, ledger, owners)
            if sole_owner is None
            else _allocate_to_rank(group.domain, ledger, sole_owner)
        )
    ranks = [rank for rank in job.ranks if job.records[rank].facts.host == group.host]
    if len(ranks) == 1 and job.records[ranks[0]].facts.place.local_world_size == 1:
        return _allocate_to_rank(group.domain, ledger, ranks[0])
    return _split_by_cpu_time(group.domain, ledger, head, [job.records[rank].facts for rank in ranks])


def _allocate_to_rank(domain: Domain, ledger: Ledger, rank: int) -> EnergyAllocation:
    entries = tuple(replace(entry, domain=domain) for entry in ledger.entries)
    return EnergyAllocation(_rename_ledger(ledger, domain, entries), {rank: entries})


def _rename_ledger(ledger: Ledger, domain: Domain, entries: tuple[Entry, ...]) -> Ledger:
    sentence = ledger.sentence.replace(f"{ledger.domain}: ", f"{domain}: ", 1)
    return replace(ledger, domain=domain, entries=entries, sentence=sentence)


def _sum_shares(group: MeterGroup) -> EnergyAllocation:
    """Sum the modelled shares of the ranks, which by design add up to the machine's."""
    shares = [(view.rank, view.ledger) for view in group.looks if view.ledger is not None]
    parts = {
        rank: tuple(replace(entry, domain=group.domain) for entry in ledger.entries) for rank, ledger in shares
    }  # fmt: skip
    first_ledger = shares[0][1]
    method = first_ledger.sentence.partition(": ")[2]
    us = [ledger.energy_u_j for _, ledger in shares]
    total = replace(
        first_ledger,
        domain=group.domain,
        counted=any(ledger.counted for _, ledger in shares),
        energy_j=fsum(entry.energy_self_j for entries in parts.values() for entry in entries),
        entries=sum_entries(group.domain, parts.values()),
        provenance=weakest_provenance(*(ledger.provenance for _, ledger in shares)),
        known_s=first_ledger.window_s - max(ledger.window_s - ledger.known_s for _, ledger in shares),
        energy_u_j=None if None in us else float(np.sqrt(fsum(u * u for u in us if u is not None))),
        energy_lo_j=sum_if_known(ledger.energy_lo_j for _, ledger in shares),
        energy_hi_j=sum_if_known(ledger.energy_hi_j for _, ledger in shares),
        static_w=None,
        cross_check_j=None,
        sentence=f"{group.domain}: the shares of {len(shares)} ranks, added; {method}",
        counter_start_raw=None,
        counter_end_raw=None,
        counter_unit_j=None,
        counter_wraps=None,
    )
    return EnergyAllocation(total, parts)


def _split_by_busy_time(domain: Domain, ledger: Ledger, owners: Sequence[MeterView]) -> EnergyAllocation:
    """Split a device that several ranks used by the busy time that each recorded on it."""
    busy_s = {view.rank: _busy_time_s(view.ledger) for view in owners}
    total_s = fsum(busy_s.values())
    shares = {rank: seconds / total_s for rank, seconds in busy_s.items()} if total_s > 0 else {}
    parts = {
        view.rank: _scale_entries(view.ledger.entries, domain, ledger, shares[view.rank])
        for view in owners
        if view.ledger is not None and view.rank in shares
    }
    note = f"split between {len(owners)} ranks by their busy time on it" if parts else "not allocated to any rank"
    return _add_no_rank(domain, ledger, parts, note)


def _busy_time_s(ledger: Ledger | None) -> float:
    return fsum(e.time_self_s for e in ledger.entries if e.fqn not in {IDLE, OUTSIDE}) if ledger is not None else 0.0


def _scale_entries(entries: Sequence[Entry], domain: Domain, ledger: Ledger, share: float) -> tuple[Entry, ...]:
    wanted_j, have_j = ledger.energy_j * share, fsum(entry.energy_self_j for entry in entries)
    if have_j < MIN_ENERGY_J:  # its own view of the device has no layers
        provenance = _split_provenance(ledger)
        slot = Slot(UNATTRIBUTED, "other")
        return (book_entry(domain, slot, wanted_j, 0.0, method="time_share", provenance=provenance),)
    return tuple(
        replace(
            _drop_intervals(entry, domain),
            energy_self_j=wanted_j * (entry.energy_self_j / have_j),
            provenance=weakest_provenance(entry.provenance, _split_provenance(ledger)),
        )
        for entry in entries
    )


def _split_by_cpu_time(domain: Domain, ledger: Ledger, head: MeterView, ranks: Sequence[RankFacts]) -> EnergyAllocation:
    """Split a machine's meter by the CPU time of its processes: each rank's share, and the remainder to no rank.

    A rank's part is E x c / max(busy, sum of c): `busy` is the CPU time of everything that ran on the machine while the
    meter ran, `c` the rank's CPU time in the same interval.
    """
    window = (head.record.report.start_ns, head.record.report.end_ns) if head.record.report is not None else (0, 0)
    used = {facts.place.rank: cpu_time_s(facts, *window) for facts in ranks}
    cpu_s_of_rank = {rank: seconds for rank, seconds in used.items() if seconds is not None}
    busy_s = max(fsum(cpu_s_of_rank.values()), head.record.facts.host_busy_s or 0.0)
    parts = {
        facts.place.rank: _split_rank_energy(
            domain, ledger, ledger.energy_j * cpu_s_of_rank[facts.place.rank] / busy_s, facts
        )
        for facts in ranks
        if busy_s > 0 and cpu_s_of_rank.get(facts.place.rank)
    }
    return _add_no_rank(domain, ledger, parts, f"split between {len(parts)} ranks by their CPU time")


def cpu_time_s(facts: RankFacts, start_ns: int, end_ns: int) -> float | None:
    """Return the CPU seconds of a rank in a window of its machine's clock; None where they were not read."""
    if len(facts.cpu) < 2:
        return None
    t_ns, cpu_s = (np.array(column) for column in zip(*facts.cpu, strict=True))
    lo, hi = interpolate([start_ns, end_ns], t_ns, cpu_s)
    return float(hi - lo)


def _split_rank_energy(domain: Domain, ledger: Ledger, part_j: float, facts: RankFacts) -> tuple[Entry, ...]:
    """Split a rank's part by the CPU time of its slots."""
    shares: tuple[HostShare, ...] = facts.host_shares
    total_s = fsum(share.cpu_s for share in shares)
    if total_s <= 0:
        shares, total_s = untraced_share(1.0), 1.0
    return tuple(_build_share_entry(domain, ledger, share, part_j * share.cpu_s / total_s) for share in shares)


def _build_share_entry(domain: Domain, ledger: Ledger, share: HostShare, energy_j: float) -> Entry:
    entry = book_entry(
        domain,
        Slot(share.fqn, share.phase, share.stage),
        energy_j,
        share.time_s,
        method=_split_method(ledger),
        provenance=_split_provenance(ledger),
    )
    return replace(entry, calls=share.calls, carried_share=share.carried_share)


def _split_method(ledger: Ledger) -> Method:
    return "load_model" if ledger.provenance == "modelled" else "time_share"


def _split_provenance(ledger: Ledger) -> Provenance:
    return weakest_provenance("apportioned", ledger.provenance)


def _add_no_rank(domain: Domain, ledger: Ledger, parts: EntriesByRank, note: str) -> EnergyAllocation:
    """Book the joules of no rank to `(no rank)`, so that the entries add up to the meter."""
    booked = sum_entries(domain, parts.values())
    unallocated_j = ledger.energy_j - fsum(entry.energy_self_j for entry in booked)
    unallocated = book_entry(
        domain,
        Slot(NO_RANK, "other"),
        unallocated_j,
        0.0,
        method=_split_method(ledger),
        provenance=_split_provenance(ledger),
    )
    # A remainder below the precision of the sum is rounding.
    entries = (*booked, unallocated) if unallocated_j > 1e-10 * ledger.energy_j or not booked else booked
    total = _rename_ledger(ledger, domain, entries)
    return EnergyAllocation(replace(total, sentence=add_clause(total.sentence, note)), parts)


def _drop_intervals(entry: Entry, domain: Domain) -> Entry:
    """Return an entry with its amount only: the intervals were those of the whole device."""
    return replace(
        entry, domain=domain, energy_self_lo_j=None, energy_self_hi_j=None, energy_static_j=None,
        energy_dynamic_j=None, measured_share=None, measured_in="", time_share_j=None, method="time_share",
        energy_systematic_lo_j=None, energy_systematic_hi_j=None,
    )  # fmt: skip


def sum_entries(domain: Domain, parts: Iterable[Sequence[Entry]]) -> tuple[Entry, ...]:
    """Add the entries of several ranks, slot by slot; ends of intervals are added too, so they are never too narrow."""
    by_row: dict[tuple[str, Phase, str], list[Entry]] = defaultdict(list)
    for entries in parts:
        for entry in entries:
            by_row[entry.fqn, entry.phase, entry.stage].append(entry)
    return tuple(_sum_row(domain, row, row_entries) for row, row_entries in sorted(by_row.items()))


def _sum_row(domain: Domain, row: tuple[str, Phase, str], entries: list[Entry]) -> Entry:
    if len(entries) == 1:
        return replace(entries[0], domain=domain)
    time_s = fsum(entry.time_self_s for entry in entries)
    carried_s = fsum(entry.carried_share * entry.time_self_s for entry in entries)
    methods = {entry.method for entry in entries}
    return Entry(
        domain=domain,
        fqn=row[0],
        phase=row[1],
        stage=row[2],
        energy_self_j=fsum(entry.energy_self_j for entry in entries),
        energy_self_lo_j=sum_if_known(entry.energy_self_lo_j for entry in entries),
        energy_self_hi_j=sum_if_known(entry.energy_self_hi_j for entry in entries),
        energy_systematic_lo_j=sum_if_known(entry.energy_systematic_lo_j for entry in entries),
        energy_systematic_hi_j=sum_if_known(entry.energy_systematic_hi_j for entry in entries),
        energy_static_j=sum_if_known(entry.energy_static_j for entry in entries),
        energy_dynamic_j=sum_if_known(entry.energy_dynamic_j for entry in entries),
        time_self_s=time_s,
        calls=_sum_calls([entry.calls for entry in entries]),
        method=methods.pop() if len(methods) == 1 else "time_share",
        provenance=weakest_provenance(*(entry.provenance for entry in entries)),
        carried_share=min(carried_s / time_s, 1.0) if time_s > 0 else 0.0,
    )


def _sum_calls(calls: Sequence[int | None]) -> int | None:
    """Return the sum of calls; None where some are unknown."""
    known_calls = [each for each in calls if each is not None]
    return sum(known_calls) if len(known_calls) == len(calls) else None
