"""The record of one rank, a job as a set of such records, and the events of a job."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from torchwatt.core.energy_curve import EnergyCurve, interpolate
from torchwatt.core.errors import BundleError
from torchwatt.core.job import ClockMethod, ClockOffset, RankFacts, RankPart
from torchwatt.core.ledger import Ledger
from torchwatt.core.meter import Event, IntArray, Meter
from torchwatt.core.report import Report
from torchwatt.core.terms import Domain, domain_kind
from torchwatt.core.units import NS_PER_S


@dataclass(frozen=True, slots=True, eq=False)
class RankRecord:
    """One rank's facts and its report; if it left none, `lost` has the reason."""

    facts: RankFacts
    report: Report | None = None
    lost: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Records by rank, all of one job. Adding is a union, independent of order."""

    name: str
    world_size: int
    records: Mapping[int, RankRecord] = field(default_factory=dict)
    lost: Mapping[int, str] = field(default_factory=dict)  # ranks without a readable record, and the reason

    def __add__(self, more: Job) -> Job:
        """Merge two parts of one job.

        Raises:
            BundleError: They are parts of two jobs, or both contain the same rank.
        """
        if (self.name, self.world_size) != (more.name, more.world_size):
            raise BundleError(
                f"ranks of two jobs: {self.name} of {self.world_size} ranks and {more.name} of {more.world_size}; "
                "merge each job by itself"
            )
        twice = sorted(self.records.keys() & more.records.keys())
        if twice:
            raise BundleError(f"job {self.name}: rank {twice[0]} occurs twice; remove one of its records")
        return Job(self.name, self.world_size, {**self.records, **more.records}, {**self.lost, **more.lost})

    @property
    def ranks(self) -> tuple[int, ...]:
        """Return the ranks with a record, in order."""
        return tuple(sorted(self.records))


def build_job(record: RankRecord) -> Job:
    """Return the job of one rank."""
    place = record.facts.place
    return Job(place.job, place.world_size, {place.rank: record})


def merge_records(records: Iterable[RankRecord]) -> Job:
    """Merge the records of one job.

    Raises:
        BundleError: There are no records, they are of several jobs, or a rank occurs twice.
    """
    jobs = [build_job(record) for record in records]
    if not jobs:
        raise BundleError("no rank wrote a record: nothing to merge")
    total = jobs[0]
    for job in jobs[1:]:
        total = total + job
    return total


@dataclass(frozen=True, slots=True, eq=False)
class MeterView:
    """One rank's view of a meter."""

    rank: int
    record: RankRecord
    meter: Meter | None
    ledger: Ledger | None  # None: not in the rank's total
    curve: EnergyCurve | None
    own: bool

    @property
    def name(self) -> str:
        """Return the rank's name of the device; empty if the rank did not meter it."""
        metered = self.ledger or self.curve
        return str(metered.domain) if metered is not None else ""


@dataclass(frozen=True, slots=True, eq=False)
class MeterGroup:
    """One meter of one machine, with the views of all ranks; or one model of which every rank has its own share.

    `added`: shares of processes, which are summed; views of one device are not.
    """

    domain: Domain
    host: str
    looks: tuple[MeterView, ...]
    added: bool

    @property
    def owners(self) -> tuple[MeterView, ...]:
        """Return the views of ranks that own this device."""
        return tuple(view for view in self.looks if view.own)

    @property
    def holder(self) -> MeterView:
        """Return the best view of the device: owners first, then the longest known, then the lowest rank."""
        metered = [view for view in self.owners if view.ledger] or [view for view in self.looks if view.ledger]
        return max(metered or self.looks, key=lambda view: (view.ledger.known_s if view.ledger else 0.0, -view.rank))


def number_nodes(job: Job) -> Mapping[str, int]:
    """Number the machines by their lowest rank."""
    hosts = dict.fromkeys(job.records[rank].facts.host for rank in job.ranks)
    return {host: index for index, host in enumerate(hosts)}


def group_meters(job: Job) -> tuple[MeterGroup, ...]:
    """Return every meter of the job once; with a single machine, domain names have no node."""
    views_of_meter: dict[tuple[str, str], list[MeterView]] = defaultdict(list)
    for rank in job.ranks:
        record = job.records[rank]
        for name, view in _rank_views(rank, record):
            views_of_meter[record.facts.host, record.facts.devices.get(name, name)].append(view)
    node = number_nodes(job)
    many = len(node) > 1
    taken: dict[str, set[str]] = defaultdict(set)
    meter_groups = []
    for (host, _), views in sorted(views_of_meter.items(), key=lambda item: (node[item[0][0]], _group_order(item[1]))):
        domain = _free_domain(_nvml_domain(views), taken[host])
        placed = Domain(domain.kind, domain.index, node[host] if many else None)
        scope = next((view.meter.scope for view in views if view.meter is not None), "device")
        meter_groups.append(MeterGroup(placed, host, tuple(views), added=scope == "process"))
    return tuple(meter_groups)


def _rank_views(rank: int, record: RankRecord) -> list[tuple[str, MeterView]]:
    report = record.report
    if report is None:
        return []
    ledgers = {str(ledger.domain): ledger for ledger in report.ledgers}
    curves = {str(curve.domain): curve for curve in report.curves}
    own = set(record.facts.own)
    return [
        (name, MeterView(rank, record, report.meter(name), ledgers.get(name), curves.get(name), own=name in own))
        for name in dict.fromkeys([*ledgers, *curves])
    ]


def _group_order(views: list[MeterView]) -> tuple[str, int, int]:
    domain = _nvml_domain(views)
    return domain.kind, -1 if domain.index is None else domain.index, views[0].rank


def _nvml_domain(views: list[MeterView]) -> Domain:
    """Return the domain as numbered by NVML: a rank's gpu:0 depends on its visible devices."""
    first_view = views[0]
    domain = (
        first_view.ledger.domain
        if first_view.ledger is not None
        else first_view.curve.domain
        if first_view.curve
        else Domain("gpu")
    )
    return Domain(domain.kind, first_view.record.facts.numbers.get(str(domain), domain.index))


def _free_domain(domain: Domain, taken: set[str]) -> Domain:
    """Return the next free domain where two devices of a machine have one name: their drivers gave no number."""
    while str(domain) in taken:
        domain = Domain(domain.kind, (domain.index or 0) + 1)
    taken.add(str(domain))
    return domain


def list_reports(job: Job) -> tuple[Report, ...]:
    """Return the reports in order of rank."""
    return tuple(report for rank in job.ranks if (report := job.records[rank].report) is not None)


@dataclass(frozen=True, slots=True)
class MachineClock:
    """The map from one machine's times to the job's: the offset is linear between measurements, and constant outside.

    A clock may drift between measurements; the drift from the first to the last is not in the bound of either, since
    the line through both corrects it.
    """

    looks: tuple[ClockOffset, ...]
    method: ClockMethod

    @property
    def bound_ns(self) -> int | None:
        """Return the maximum error of a time in ns; None for wall clocks, whose error is unknown."""
        return (
            None
            if self.method == "wall_clock"
            else max((measurement.bound_ns for measurement in self.looks), default=0)
        )

    def shift(self, t_ns: IntArray) -> IntArray:
        """Return instants on the job's clock."""
        if not self.looks:
            return t_ns
        base_ns = self.looks[0].offset_ns  # subtracted: offsets are larger than a float represents to the nanosecond
        at = np.array([measurement.t_ns for measurement in self.looks], dtype=np.int64)
        more = np.array([measurement.offset_ns - base_ns for measurement in self.looks], dtype=np.float64)
        return np.asarray(t_ns + base_ns + interpolate(t_ns, at, more).round().astype(np.int64), dtype=np.int64)

    def one(self, t_ns: int) -> int:
        """Return one instant on the job's clock."""
        return int(self.shift(np.array([t_ns], dtype=np.int64))[0])


SAME_CLOCK = MachineClock((), "same_clock")


def map_clocks(job: Job) -> Mapping[str, MachineClock]:
    """Return the clock of each machine of a job.

    Machines with rank 0's host name have its clock. Others are mapped by the measurements of any of their ranks over
    the job's store, those with the smallest bound first; without any by their wall clocks.
    """
    by_host: dict[str, list[RankRecord]] = {}
    for rank in job.ranks:
        by_host.setdefault(job.records[rank].facts.host, []).append(job.records[rank])
    measured = {
        host: measurements for host, records in by_host.items() if (measurements := _best_measurements(records))
    }
    clock_of_host = {host: MachineClock(measurements, "store") for host, measurements in measured.items()}
    if 0 in job.records:
        clock_of_host[job.records[0].facts.host] = SAME_CLOCK
    if not clock_of_host:  # without rank 0 and measurements: the first machine's clock is used
        clock_of_host[job.records[job.ranks[0]].facts.host] = SAME_CLOCK
    anchor = _unix_offset_ns(by_host, clock_of_host)
    return {host: clock_of_host.get(host) or _wall_clock(records, anchor) for host, records in by_host.items()}


def _best_measurements(records: list[RankRecord]) -> tuple[ClockOffset, ...]:
    """Return the measurements of the rank with the smallest error bound."""
    measured = [record.facts.clock for record in records if record.facts.clock]
    return min(measured, key=lambda measurements: max(measurement.bound_ns for measurement in measurements), default=())


def _unix_offset_ns(by_host: Mapping[str, list[RankRecord]], clock_of_host: Mapping[str, MachineClock]) -> int:
    """Return unix time minus the job's clock, from a machine whose clock is known."""
    for host, records in by_host.items():
        for record in records:
            if host in clock_of_host and record.report is not None:
                return record.report.start_unix_ns - clock_of_host[host].one(record.report.start_ns)
    return 0


def _wall_clock(records: list[RankRecord], anchor_ns: int) -> MachineClock:
    report = next((record.report for record in records if record.report is not None), None)
    if report is None:
        return MachineClock((), "wall_clock")
    offset_ns = report.start_unix_ns - report.start_ns - anchor_ns
    return MachineClock((ClockOffset(report.start_ns, offset_ns, 0),), "wall_clock")


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
