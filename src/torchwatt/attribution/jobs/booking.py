"""Allocate the joules of each meter of a job to its ranks, and within a rank to its layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum

import numpy as np

from torchwatt.attribution.jobs.meters import Group, Seen
from torchwatt.attribution.jobs.record import Job
from torchwatt.attribution.jobs.shares import nothing_traced
from torchwatt.core.instants import interpolate
from torchwatt.core.job import HostShare, RankFacts
from torchwatt.core.ledger import Entry, Ledger
from torchwatt.core.terms import IDLE, NO_RANK, OUTSIDE, UNATTRIBUTED, Domain, Method, Phase, Provenance, weakest

LEAST_J = 1e-9  # below, shares of a rank's joules are rounding
Parts = Mapping[int, tuple[Entry, ...]]  # by rank


@dataclass(frozen=True, slots=True, eq=False)
class Booked:
    """The ledger of one meter, and its entries by rank; joules of no rank are `(no rank)`."""

    ledger: Ledger
    parts: Parts


def book(group: Group, job: Job) -> Booked | None:
    """Return the allocation of one meter; None where it is not in the total."""
    head, owners = group.holder, group.owners
    ledger = head.ledger
    if ledger is None:
        return None
    if group.added:
        return _added(group)
    if owners:
        sole_owner = owners[0].rank if len(owners) == 1 else None
        return (
            _of_several(group.domain, ledger, owners)
            if sole_owner is None
            else _whole(group.domain, ledger, sole_owner)
        )
    ranks = [rank for rank in job.ranks if job.records[rank].facts.host == group.host]
    if len(ranks) == 1 and job.records[ranks[0]].facts.place.local_world_size == 1:
        return _whole(group.domain, ledger, ranks[0])
    return _by_cpu(group.domain, ledger, head, [job.records[rank].facts for rank in ranks])


def _whole(domain: Domain, ledger: Ledger, rank: int) -> Booked:
    entries = tuple(replace(entry, domain=domain) for entry in ledger.entries)
    return Booked(_renamed(ledger, domain, entries), {rank: entries})


def _renamed(ledger: Ledger, domain: Domain, entries: tuple[Entry, ...]) -> Ledger:
    sentence = ledger.sentence.replace(f"{ledger.domain}: ", f"{domain}: ", 1)
    return replace(ledger, domain=domain, entries=entries, sentence=sentence)


def _added(group: Group) -> Booked:
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
        entries=summed(group.domain, parts.values()),
        provenance=weakest(*(ledger.provenance for _, ledger in shares)),
        known_s=first_ledger.window_s - max(ledger.window_s - ledger.known_s for _, ledger in shares),
        energy_u_j=None if None in us else float(np.sqrt(fsum(u * u for u in us if u is not None))),
        energy_lo_j=_all(ledger.energy_lo_j for _, ledger in shares),
        energy_hi_j=_all(ledger.energy_hi_j for _, ledger in shares),
        static_w=None,
        cross_check_j=None,
        sentence=f"{group.domain}: the shares of {len(shares)} ranks, added; {method}",
        counter_start_raw=None,
        counter_end_raw=None,
        counter_unit_j=None,
        counter_wraps=None,
    )
    return Booked(total, parts)


def _of_several(domain: Domain, ledger: Ledger, owners: Sequence[Seen]) -> Booked:
    """Split a device that several ranks used by the busy time that each recorded on it."""
    busy_s = {view.rank: _busy_s(view.ledger) for view in owners}
    total_s = fsum(busy_s.values())
    shares = {rank: seconds / total_s for rank, seconds in busy_s.items()} if total_s > 0 else {}
    parts = {
        view.rank: _scaled(view.ledger.entries, domain, ledger, shares[view.rank])
        for view in owners
        if view.ledger is not None and view.rank in shares
    }
    note = f"split between {len(owners)} ranks by their busy time on it" if parts else "not allocated to any rank"
    return _closed(domain, ledger, parts, note)


def _busy_s(ledger: Ledger | None) -> float:
    return fsum(e.time_self_s for e in ledger.entries if e.fqn not in {IDLE, OUTSIDE}) if ledger is not None else 0.0


def _scaled(entries: Sequence[Entry], domain: Domain, ledger: Ledger, share: float) -> tuple[Entry, ...]:
    wanted_j, have_j = ledger.energy_j * share, fsum(entry.energy_self_j for entry in entries)
    if have_j < LEAST_J:  # its own view of the device has no layers
        provenance = _share_of(ledger)
        return (
            Entry(domain, UNATTRIBUTED, "other", wanted_j, None, None, None, None, 0.0, 0, "time_share", provenance),
        )
    return tuple(
        replace(
            _bare(entry, domain),
            energy_self_j=wanted_j * (entry.energy_self_j / have_j),
            provenance=weakest(entry.provenance, _share_of(ledger)),
        )
        for entry in entries
    )


def _by_cpu(domain: Domain, ledger: Ledger, head: Seen, ranks: Sequence[RankFacts]) -> Booked:
    """Split a machine's meter by the CPU time of its processes: each rank's share, and the remainder to no rank.

    A rank's part is E x c / max(busy, sum of c): `busy` is the CPU time of everything that ran on the machine while the
    meter ran, `c` the rank's CPU time in the same interval.
    """
    window = (head.record.report.start_ns, head.record.report.end_ns) if head.record.report is not None else (0, 0)
    used = {facts.place.rank: cpu_within(facts, *window) for facts in ranks}
    cpu_s_of_rank = {rank: seconds for rank, seconds in used.items() if seconds is not None}
    busy_s = max(fsum(cpu_s_of_rank.values()), head.record.facts.host_busy_s or 0.0)
    parts = {
        facts.place.rank: _cut(domain, ledger, ledger.energy_j * cpu_s_of_rank[facts.place.rank] / busy_s, facts)
        for facts in ranks
        if busy_s > 0 and cpu_s_of_rank.get(facts.place.rank)
    }
    return _closed(domain, ledger, parts, f"split between {len(parts)} ranks by their CPU time")


def cpu_within(facts: RankFacts, start_ns: int, end_ns: int) -> float | None:
    """Return the CPU seconds of a rank in a window of its machine's clock; None where they were not read."""
    if len(facts.cpu) < 2:
        return None
    t_ns, cpu_s = (np.array(column) for column in zip(*facts.cpu, strict=True))
    lo, hi = interpolate([start_ns, end_ns], t_ns, cpu_s)
    return float(hi - lo)


def _cut(domain: Domain, ledger: Ledger, part_j: float, facts: RankFacts) -> tuple[Entry, ...]:
    """Split a rank's part by the CPU time of its slots."""
    shares: tuple[HostShare, ...] = facts.host_shares
    total_s = fsum(share.cpu_s for share in shares)
    if total_s <= 0:
        shares, total_s = nothing_traced(1.0), 1.0
    return tuple(
        Entry(
            domain, share.fqn, share.phase, part_j * share.cpu_s / total_s, None, None, None, None,
            share.time_s, share.calls, _method(ledger), _share_of(ledger), share.carried_share,
        )
        for share in shares
    )  # fmt: skip


def _method(ledger: Ledger) -> Method:
    return "load_model" if ledger.provenance == "modelled" else "time_share"


def _share_of(ledger: Ledger) -> Provenance:
    return weakest("apportioned", ledger.provenance)


def _closed(domain: Domain, ledger: Ledger, parts: Parts, note: str) -> Booked:
    """Book the joules of no rank to `(no rank)`, so that the entries add up to the meter."""
    booked = summed(domain, parts.values())
    unallocated_j = ledger.energy_j - fsum(entry.energy_self_j for entry in booked)
    unallocated = Entry(
        domain, NO_RANK, "other", unallocated_j, None, None, None, None, 0.0, 0, _method(ledger), _share_of(ledger)
    )  # fmt: skip
    # A remainder below the precision of the sum is rounding.
    entries = (*booked, unallocated) if unallocated_j > 1e-10 * ledger.energy_j or not booked else booked
    total = _renamed(ledger, domain, entries)
    return Booked(replace(total, sentence=f"{total.sentence.rstrip('.')}; {note}."), parts)


def _bare(entry: Entry, domain: Domain) -> Entry:
    """Return an entry with its amount only: the intervals were those of the whole device."""
    return replace(
        entry, domain=domain, energy_self_lo_j=None, energy_self_hi_j=None, energy_static_j=None,
        energy_dynamic_j=None, measured_share=None, measured_in="", time_share_j=None, method="time_share",
        energy_systematic_lo_j=None, energy_systematic_hi_j=None,
    )  # fmt: skip


def summed(domain: Domain, parts: Iterable[Sequence[Entry]]) -> tuple[Entry, ...]:
    """Add the entries of several ranks, slot by slot; ends of intervals are added too, so they are never too narrow."""
    by_row: dict[tuple[str, Phase, str], list[Entry]] = defaultdict(list)
    for entries in parts:
        for entry in entries:
            by_row[entry.fqn, entry.phase, entry.stage].append(entry)
    return tuple(_sum(domain, row, row_entries) for row, row_entries in sorted(by_row.items()))


def _sum(domain: Domain, row: tuple[str, Phase, str], entries: list[Entry]) -> Entry:
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
        energy_self_lo_j=_all(entry.energy_self_lo_j for entry in entries),
        energy_self_hi_j=_all(entry.energy_self_hi_j for entry in entries),
        energy_systematic_lo_j=_all(entry.energy_systematic_lo_j for entry in entries),
        energy_systematic_hi_j=_all(entry.energy_systematic_hi_j for entry in entries),
        energy_static_j=_all(entry.energy_static_j for entry in entries),
        energy_dynamic_j=_all(entry.energy_dynamic_j for entry in entries),
        time_self_s=time_s,
        calls=_all_calls([entry.calls for entry in entries]),
        method=methods.pop() if len(methods) == 1 else "time_share",
        provenance=weakest(*(entry.provenance for entry in entries)),
        carried_share=min(carried_s / time_s, 1.0) if time_s > 0 else 0.0,
    )


def _all(values: Iterable[float | None]) -> float | None:
    amounts = list(values)
    return None if None in amounts else fsum(value for value in amounts if value is not None)


def _all_calls(calls: Sequence[int | None]) -> int | None:
    """Return the sum of calls; None where some are unknown."""
    known_calls = [each for each in calls if each is not None]
    return sum(known_calls) if len(known_calls) == len(calls) else None
