"""Merge a job's records into one report, in which every joule is counted once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from math import fsum
from typing import cast

from torchwatt.attribution.bands import add_bands
from torchwatt.attribution.jobs.booking import Booked, book
from torchwatt.attribution.jobs.clocks import Clock, clocks
from torchwatt.attribution.jobs.lines import curve_of
from torchwatt.attribution.jobs.meters import Group, groups, nodes, reports
from torchwatt.attribution.jobs.record import Job
from torchwatt.attribution.jobs.told import events_of, gone_of, reason_of
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.errors import BundleError
from torchwatt.core.job import RankPart, RankStatus
from torchwatt.core.ledger import Ledger
from torchwatt.core.meter import Channel, Meter, SamplerStats, lost_part
from torchwatt.core.report import Report, Status, Step
from torchwatt.core.trace import ModuleInfo
from torchwatt.core.units import NS_PER_S


def merge(job: Job) -> Report:
    """Merge the records of the ranks, in any order; ranks without a record are named in the result.

    Raises:
        BundleError: No rank left a report.
    """
    rank_reports = reports(job)
    if not rank_reports:
        raise BundleError(f"job {job.name}: no rank wrote a report: {_named(job.lost) or 'nothing to merge'}")
    clock = clocks(job)
    metered = groups(job)
    booked = [(group, books) for group in metered if (books := book(group, job)) is not None]
    curves = tuple(curve for group in metered if (curve := curve_of(group, clock)) is not None)
    start_ns = min(_shifted(job, clock, rank)[0] for rank in _present(job))
    end_ns = max(_shifted(job, clock, rank)[1] for rank in _present(job))
    first_report = rank_reports[0]
    anchor_ns = first_report.start_unix_ns - _shifted(job, clock, _present(job)[0])[0]
    booked = [(group, replace(books, ledger=_inside(books.ledger, group, metered))) for group, books in booked]
    counted = [books for _, books in booked if books.ledger.counted]
    parts = tuple(_part(job, clock, rank, counted) for rank in range(job.world_size))
    ledgers = [_over(books.ledger, (end_ns - start_ns) / NS_PER_S) for _, books in booked]
    away = [ledger for ledger in ledgers if not ledger.is_whole]
    status, reason = _status(parts)
    if away and status == "complete":
        status, reason = "partial", f"{', '.join(str(ledger.domain) for ledger in away[:8])} not metered all the time"
    meters = tuple(meter for group in metered if (meter := _meter(group)) is not None)
    return Report(
        run_id=_run_id(job),
        name=first_report.name,
        status=status,
        start_ns=start_ns,
        end_ns=end_ns,
        start_unix_ns=start_ns + anchor_ns,
        ledgers=add_bands(ledgers, meters),
        curves=curves,
        meters=meters,
        unavailable=gone_of(job, metered),
        events=(
            *events_of(job, clock, metered, parts, start_ns),
            *(lost_part(ledger.domain, ledger.coverage, end_ns) for ledger in away),
        ),
        steps=_steps(job, clock, curves),
        modules=_modules(rank_reports),
        units=_units(rank_reports),
        sampler=_sampler(rank_reports),
        tracing_cost_s=max((r.tracing_cost_s for r in rank_reports if r.tracing_cost_s is not None), default=None),
        traced_steps=next((report.traced_steps for report in rank_reports if report.steps), None),
        exit_reason=reason,
        software=first_report.software,
        declared={
            **first_report.declared, "job_id": job.name, "world_size": job.world_size, "node_count": len(nodes(job)),
        },
        ranks=parts,
    )  # fmt: skip


def _inside(ledger: Ledger, group: Group, metered: Sequence[Group]) -> Ledger:
    """Translate the names of containing domains from the rank's to the job's."""
    if not ledger.part_of:
        return ledger
    job_names = {
        str(view.ledger.domain): str(other_group.domain)
        for other_group in metered
        for view in other_group.looks
        if view.rank == group.holder.rank and view.ledger is not None
    }
    return replace(ledger, part_of=", ".join(job_names.get(name, name) for name in ledger.part_of.split(", ")))


def _present(job: Job) -> list[int]:
    return [rank for rank in job.ranks if job.records[rank].report is not None]


def _shifted(job: Job, clock: Mapping[str, Clock], rank: int) -> tuple[int, int]:
    record = job.records[rank]
    report = cast("Report", record.report)
    return clock[record.facts.host].one(report.start_ns), clock[record.facts.host].one(report.end_ns)


def _part(job: Job, clock: Mapping[str, Clock], rank: int, booked: list[Booked]) -> RankPart:
    record = job.records.get(rank)
    if record is None:
        return RankPart(rank, None, None, "", "missing", job.lost.get(rank, "left nothing"))
    facts, report = record.facts, record.report
    place = facts.place
    part = RankPart(
        rank, nodes(job)[facts.host], place.local_rank, facts.host, "missing", reason_of(job, rank), facts.run_id
    )
    if report is None:
        return part
    start_ns, end_ns = _shifted(job, clock, rank)
    machine_clock = clock[facts.host]
    return replace(
        part,
        status=cast("RankStatus", report.status),
        reason=report.exit_reason,
        start_ns=start_ns,
        end_ns=end_ns,
        cpu_s=facts.cpu_s,
        host_busy_s=facts.host_busy_s if facts.shared else None,
        step_count=report.step_count,
        clock_method=machine_clock.method,
        clock_bound_ns=machine_clock.bound_ns,
        entries=tuple(entry for books in booked for entry in books.parts.get(rank, ())),
    )


def _status(parts: tuple[RankPart, ...]) -> tuple[Status, str]:
    """Return the job's status: that of all ranks if equal, else partial, with the ranks that ended otherwise."""
    ends = {part.status for part in parts}
    if ends == {"complete"}:
        return "complete", ""
    if ends == {"aborted"}:
        return "aborted", "; ".join(dict.fromkeys(part.reason for part in parts if part.reason))
    by_end: dict[str, list[int]] = {}
    for part in parts:
        if part.status != "complete":
            by_end.setdefault(f"{part.status}{f' ({part.reason})' if part.reason else ''}", []).append(part.rank)
    return "partial", "; ".join(f"{_ranks(ranks)} {end}" for end, ranks in by_end.items())


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _over(ledger: Ledger, run_s: float) -> Ledger:
    """Set the known time of a meter relative to the job; time outside its rank's block does not count as a gap."""
    away_s = max(ledger.window_s - ledger.known_s, 0.0)
    return replace(ledger, known_s=max(run_s - away_s, 0.0), window_s=run_s)


def _named(lost: Mapping[int, str]) -> str:
    return "; ".join(f"rank {rank}: {why}" for rank, why in sorted(lost.items()))


def _run_id(job: Job) -> str:
    """Return the id of the merged run, which depends only on its job and ranks."""
    made_of = ";".join(f"{rank}={job.records[rank].facts.run_id}" for rank in _present(job))
    digits = sha256(f"{job.name};{made_of}".encode()).hexdigest()
    # A UUIDv8 (RFC 9562, section 5.8), with the time of its first rank's id, so that it sorts among other runs.
    head = job.records[_present(job)[0]].facts.run_id.replace("-", "")[:12].rjust(12, "0")
    return f"{head[:8]}-{head[8:12]}-8{digits[:3]}-8{digits[3:6]}-{digits[6:18]}"


def _meter(group: Group) -> Meter | None:
    meter = group.holder.meter
    if meter is None:
        return None
    channels = tuple(_renamed(channel, group) for channel in meter.channels)
    return replace(meter, domain=group.domain, channels=channels)


def _renamed(channel: Channel, group: Group) -> Channel:
    return replace(channel, domain=group.domain)


def _steps(job: Job, clock: Mapping[str, Clock], curves: Iterable[EnergyCurve]) -> tuple[Step, ...]:
    """Return the steps of the first rank that has some: in a data-parallel job all ranks step together."""
    lines = list(curves)
    for rank in _present(job):
        record = job.records[rank]
        report = cast("Report", record.report)
        if report.steps:
            shift = clock[record.facts.host].one
            return tuple(_step(step, shift(step.start_ns), shift(step.end_ns), lines) for step in report.steps)
    return ()


def _step(step: Step, start_ns: int, end_ns: int, curves: list[EnergyCurve]) -> Step:
    known_j = {str(c.domain): c.between(start_ns, end_ns) for c in curves if c.knows(start_ns, end_ns)}
    return replace(step, start_ns=start_ns, end_ns=end_ns, energy_j=known_j)


def _modules(reports: Iterable[Report]) -> tuple[ModuleInfo, ...]:
    """Return every module once; a sharded one counts the parameters of its largest shard."""
    module_by_name: dict[str, ModuleInfo] = {}
    for report in reports:
        for module in report.modules:
            old = module_by_name.get(module.fqn)
            if old is None or module.params > old.params:
                module_by_name[module.fqn] = module
    return tuple(module_by_name.values())


def _units(reports: Iterable[Report]) -> dict[str, float]:
    counts: dict[str, list[float]] = {}
    for report in reports:
        for unit, n in report.units.items():
            counts.setdefault(unit, []).append(n)
    return {unit: fsum(values) for unit, values in counts.items()}


def _sampler(reports: tuple[Report, ...]) -> SamplerStats:
    """Sum the cost of sampling over all ranks; other statistics remain with each rank."""
    modes = {report.sampler.mode for report in reports}
    return SamplerStats(
        mode=modes.pop() if len(modes) == 1 else "thread",
        cpu_s=fsum(report.sampler.cpu_s for report in reports),
        wall_s=max(report.sampler.wall_s for report in reports),
        missed={"all": sum(sum(report.sampler.missed.values()) for report in reports)},
        reads={"all": sum(sum(report.sampler.reads.values()) for report in reports)},
    )
