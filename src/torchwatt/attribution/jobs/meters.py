"""Identify equal meters of a job's ranks, and select the ledger to use for each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torchwatt.attribution.jobs.record import Job, RankRecord
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.ledger import Ledger
from torchwatt.core.meter import Meter
from torchwatt.core.report import Report
from torchwatt.core.terms import Domain


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One rank's view of a meter."""

    rank: int
    record: RankRecord
    meter: Meter | None
    ledger: Ledger | None  # None: metered, and not in the rank's total
    curve: EnergyCurve | None
    own: bool


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One meter of one machine, with the views of all ranks; or one model of which every rank has its own share.

    `added`: shares of processes, which are summed; views of one device are not.
    """

    domain: Domain
    host: str
    looks: tuple[Seen, ...]
    added: bool

    @property
    def owners(self) -> tuple[Seen, ...]:
        """Return the views of ranks that own this device."""
        return tuple(view for view in self.looks if view.own)

    @property
    def holder(self) -> Seen:
        """Return the best view of the device: owners first, then the longest known, then the lowest rank."""
        metered = [view for view in self.owners if view.ledger] or [view for view in self.looks if view.ledger]
        return max(metered or self.looks, key=lambda view: (view.ledger.known_s if view.ledger else 0.0, -view.rank))


def nodes(job: Job) -> Mapping[str, int]:
    """Number the machines by their lowest rank."""
    hosts = dict.fromkeys(job.records[rank].facts.host for rank in job.ranks)
    return {host: index for index, host in enumerate(hosts)}


def groups(job: Job) -> tuple[Group, ...]:
    """Return every meter of the job once; with a single machine, domain names have no node."""
    views_of_meter: dict[tuple[str, str], list[Seen]] = defaultdict(list)
    for rank in job.ranks:
        record = job.records[rank]
        for name, view in _looks(rank, record):
            views_of_meter[record.facts.host, record.facts.devices.get(name, name)].append(view)
    node = nodes(job)
    many = len(node) > 1
    taken: dict[str, set[str]] = defaultdict(set)
    meter_groups = []
    for (host, _), views in sorted(views_of_meter.items(), key=lambda item: (node[item[0][0]], _order(item[1]))):
        domain = _free(_domain(views), taken[host])
        placed = Domain(domain.kind, domain.index, node[host] if many else None)
        scope = next((view.meter.scope for view in views if view.meter is not None), "device")
        meter_groups.append(Group(placed, host, tuple(views), added=scope == "process"))
    return tuple(meter_groups)


def _looks(rank: int, record: RankRecord) -> list[tuple[str, Seen]]:
    report = record.report
    if report is None:
        return []
    ledgers = {str(ledger.domain): ledger for ledger in report.ledgers}
    curves = {str(curve.domain): curve for curve in report.curves}
    own = set(record.facts.own)
    return [
        (name, Seen(rank, record, report.meter(name), ledgers.get(name), curves.get(name), own=name in own))
        for name in dict.fromkeys([*ledgers, *curves])
    ]


def _order(views: list[Seen]) -> tuple[str, int, int]:
    domain = _domain(views)
    return domain.kind, -1 if domain.index is None else domain.index, views[0].rank


def _domain(views: list[Seen]) -> Domain:
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


def _free(domain: Domain, taken: set[str]) -> Domain:
    """Return the next free domain where two devices of a machine have one name: their drivers gave no number."""
    while str(domain) in taken:
        domain = Domain(domain.kind, (domain.index or 0) + 1)
    taken.add(str(domain))
    return domain


def reports(job: Job) -> tuple[Report, ...]:
    """Return the reports in order of rank."""
    return tuple(report for rank in job.ranks if (report := job.records[rank].report) is not None)
