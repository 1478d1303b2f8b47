"""The events of a job: those of its ranks, about the job's devices, and those of the merge itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torchwatt.core.job import RankPart
from torchwatt.core.meter import Event
from torchwatt.core.terms import domain_kind
from torchwatt.core.units import NS_PER_S
from torchwatt.distributed.rank_records import Job, MachineClock, MeterGroup, number_nodes

LATE_START_NS = NS_PER_S
OMITTED_EVENTS = frozenset({"RANK"})  # reported by every rank of itself, and listed in the table of ranks
DOMAIN_KINDS = frozenset({"gpu", "cpu", "dram", "ram", "psys", "module"})


def merge_events(
    job: Job, clock: Mapping[str, MachineClock], metered: Sequence[MeterGroup], parts: Sequence[RankPart], start_ns: int
) -> tuple[Event, ...]:
    """Return the events of all ranks, about the job's devices and equal ones merged, and those of the merge itself."""
    job_name = _DeviceNames(job, metered)
    observations: dict[tuple[str, str, str, str], list[tuple[int, Event]]] = defaultdict(list)
    for rank in job.ranks:
        record = job.records[rank]
        its = clock[record.facts.host]
        for event in record.report.events if record.report is not None else ():
            if event.code not in OMITTED_EVENTS:
                placed = replace(event, t_ns=its.one(event.t_ns), subject=job_name.of(event.subject, rank))
                observations[placed.severity, placed.code, placed.subject, placed.message].append((rank, placed))
    merged = [_merge_equal_events(looks, len(job.ranks)) for looks in observations.values()]
    merged += [
        *_missing_rank_events(parts, start_ns),
        *_late_rank_events(parts),
        *_clock_events(parts, start_ns),
        *_foreign_device_events(metered, start_ns),
    ]
    return tuple(sorted(merged, key=lambda e: (e.t_ns, e.code, e.subject, e.message)))


class _DeviceNames:
    """The job's names of devices: a rank's `gpu:0` depends on its visible devices, and every machine has a `cpu:0`."""

    def __init__(self, job: Job, metered: Sequence[MeterGroup]) -> None:
        node = number_nodes(job)
        self._hosts = {rank: job.records[rank].facts.host for rank in job.ranks}
        self._prefixes = {host: f"node{node[host]}/" if len(node) > 1 else "" for host in node}
        views = [(group, view) for group in metered for view in group.looks if view.name]
        self._by_rank = {(view.rank, view.name): str(group.domain) for group, view in views}
        # What a rank left to another one of its machine.
        self._by_host = {(group.host, view.name): str(group.domain) for group, view in views}

    def of(self, subject: str, rank: int) -> str:
        """Return the subject of a rank's event with the job's name of its device; others, as `run`, as they are."""
        name, slash, channel = subject.partition("/")
        if domain_kind(name) not in DOMAIN_KINDS or name == "gpu":  # `gpu`: all of a machine's GPUs
            return subject
        host = self._hosts[rank]
        placed = self._by_rank.get((rank, name)) or self._by_host.get((host, name)) or f"{self._prefixes[host]}{name}"
        return f"{placed}{slash}{channel}"


def _merge_equal_events(observations: Sequence[tuple[int, Event]], ranks: int) -> Event:
    event = min((event for _, event in observations), key=lambda event: event.t_ns)
    observers = sorted({rank for rank, _ in observations})
    names = "all ranks" if len(observers) == ranks > 1 else f"rank {', '.join(map(str, observers[:8]))}"
    names += f" and {len(observers) - 8} more" if len(observers) > 8 and len(observers) != ranks else ""
    return replace(event, message=f"{event.message} ({names})")


def _missing_rank_events(parts: Iterable[RankPart], start_ns: int) -> Iterator[Event]:
    for part in parts:
        if part.status == "missing":
            yield Event(start_ns, "error", "RANK_MISSING", f"rank:{part.rank}", f"rank {part.rank} {part.reason}")


def _late_rank_events(parts: Sequence[RankPart]) -> Iterator[Event]:
    """Yield an event for each rank that began long after the first: the others drew power while they waited."""
    began = [part.start_ns for part in parts if part.start_ns is not None]
    for part in parts:
        if part.start_ns is not None and part.start_ns - min(began) > LATE_START_NS:
            late_s = (part.start_ns - min(began)) / NS_PER_S
            message = f"rank {part.rank} began {late_s:.3g} s after the first; the ranks that waited for it drew power"
            yield Event(part.start_ns, "warning", "RANK_LATE", f"rank:{part.rank}", message)


def _clock_events(parts: Sequence[RankPart], start_ns: int) -> Iterator[Event]:
    by_wall = [part.rank for part in parts if part.clock_method == "wall_clock"]
    if by_wall:
        message = (
            f"the clocks of ranks {', '.join(map(str, by_wall[:8]))} were not measured against rank 0's: they are "
            "placed by their wall clocks, whose error is unknown; totals do not depend on it, steps and curves do"
        )
        yield Event(start_ns, "warning", "CLOCK_UNMEASURED", "run", message)


def _foreign_device_events(metered: Sequence[MeterGroup], start_ns: int) -> Iterator[Event]:
    for group in metered:
        if not any(view.ledger for view in group.looks):
            message = f"no rank of the job uses {group.domain}: it was metered, and is not in the total"
            yield Event(start_ns, "info", "DEVICE_OF_NO_RANK", str(group.domain), message)
