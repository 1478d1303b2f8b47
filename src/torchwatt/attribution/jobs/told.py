"""Merge events and unavailable meters of all ranks, and add those of late and lost ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torchwatt.attribution.jobs.clocks import Clock
from torchwatt.attribution.jobs.meters import Group, nodes
from torchwatt.attribution.jobs.record import Job
from torchwatt.core.job import RankPart
from torchwatt.core.meter import Event, Unavailable
from torchwatt.core.terms import kind_of
from torchwatt.core.units import NS_PER_S

LATE_NS = NS_PER_S
LED = frozenset({"cpu", "dram", "psys"})  # kinds that only the first rank of a machine meters
QUIET = frozenset({"RANK"})  # reported by every rank of itself, and listed in the table of ranks


def reason_of(job: Job, rank: int) -> str:
    """Return the reason why a rank has no report."""
    return job.lost.get(rank) or job.records[rank].lost or "wrote no report"


def gone_of(job: Job, metered: Sequence[Group]) -> tuple[Unavailable, ...]:
    """Return domains that no rank meters, and the devices of lost ranks."""
    metered_names = {(group.host, str(look_domain)) for group in metered for look_domain in _names(group)}
    node, many = nodes(job), len(nodes(job)) > 1
    unavailable: dict[Unavailable, None] = {}
    for rank in job.ranks:
        record = job.records[rank]
        prefix = f"node{node[record.facts.host]}/" if many else ""
        for gone in record.report.unavailable if record.report is not None else ():
            if (record.facts.host, gone.domain) in metered_names:
                continue
            left_to_first = kind_of(gone.domain) in LED and not record.facts.place.leads
            reason = (
                "the machine's first rank, which meters it, left no reading of it" if left_to_first else gone.reason
            )
            unavailable[Unavailable(f"{prefix}{gone.domain}", reason, "" if left_to_first else gone.fix)] = None
    for rank in range(job.world_size):
        absent = job.records.get(rank)
        if absent is None or absent.report is None:
            why = job.lost.get(rank, "left nothing") if absent is None else reason_of(job, rank)
            unavailable[
                Unavailable(f"rank:{rank}", f"rank {rank} {why}: its device and its layers are not in the total")
            ] = None
    return tuple(unavailable)


def _names(group: Group) -> Iterator[str]:
    for view in group.looks:
        if view.ledger is not None:
            yield str(view.ledger.domain)
        elif view.curve is not None:
            yield str(view.curve.domain)


def events_of(
    job: Job, clock: Mapping[str, Clock], metered: Sequence[Group], parts: Sequence[RankPart], start_ns: int
) -> tuple[Event, ...]:
    """Return the events of all ranks, equal ones merged, and those of the merge itself."""
    observations: dict[tuple[str, str, str, str], list[tuple[int, int, Event]]] = defaultdict(list)
    for rank in job.ranks:
        record = job.records[rank]
        its = clock[record.facts.host]
        for event in record.report.events if record.report is not None else ():
            if event.code not in QUIET:
                key = (event.severity, event.code, event.subject, event.message)
                observations[key].append((its.one(event.t_ns), rank, event))
    merged = [_once(looks, len(job.ranks)) for looks in observations.values()]
    merged += [*_lost(parts, start_ns), *_late(parts), *_clocks(parts, start_ns), *_apart(metered, start_ns)]
    return tuple(sorted(merged, key=lambda e: (e.t_ns, e.code, e.subject, e.message)))


def _once(observations: Sequence[tuple[int, int, Event]], ranks: int) -> Event:
    t_ns, _, event = min(observations, key=lambda observation: observation[:2])
    observers = sorted({rank for _, rank, _ in observations})
    names = "all ranks" if len(observers) == ranks > 1 else f"rank {', '.join(map(str, observers[:8]))}"
    names += f" and {len(observers) - 8} more" if len(observers) > 8 and len(observers) != ranks else ""
    return Event(t_ns, event.severity, event.code, event.subject, f"{event.message} ({names})")


def _lost(parts: Iterable[RankPart], start_ns: int) -> Iterator[Event]:
    for part in parts:
        if part.status == "missing":
            yield Event(start_ns, "error", "RANK_MISSING", f"rank:{part.rank}", f"rank {part.rank} {part.reason}")


def _late(parts: Sequence[RankPart]) -> Iterator[Event]:
    """Yield an event for each rank that began long after the first: the others drew power while they waited."""
    began = [part.start_ns for part in parts if part.start_ns is not None]
    for part in parts:
        if part.start_ns is not None and part.start_ns - min(began) > LATE_NS:
            late_s = (part.start_ns - min(began)) / NS_PER_S
            message = f"rank {part.rank} began {late_s:.3g} s after the first; the ranks that waited for it drew power"
            yield Event(part.start_ns, "warning", "RANK_LATE", f"rank:{part.rank}", message)


def _clocks(parts: Sequence[RankPart], start_ns: int) -> Iterator[Event]:
    by_wall = [part.rank for part in parts if part.clock_method == "wall_clock"]
    if by_wall:
        message = (
            f"the clocks of ranks {', '.join(map(str, by_wall[:8]))} were not measured against rank 0's: they are "
            "placed by their wall clocks, whose error is unknown; totals do not depend on it, steps and curves do"
        )
        yield Event(start_ns, "warning", "CLOCK_UNMEASURED", "run", message)


def _apart(metered: Sequence[Group], start_ns: int) -> Iterator[Event]:
    for group in metered:
        if not any(view.ledger for view in group.looks):
            message = f"no rank of the job uses {group.domain}: it was metered, and is not in the total"
            yield Event(start_ns, "info", "DEVICE_OF_NO_RANK", str(group.domain), message)
