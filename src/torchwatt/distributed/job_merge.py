"""Merge a job's records into one report, in which every joule is counted once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from math import fsum, sqrt
from typing import cast

import numpy as np

from torchwatt.attribution.accuracy_bands import add_bands
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.errors import BundleError
from torchwatt.core.job import RankPart, RankStatus
from torchwatt.core.ledger import Ledger
from torchwatt.core.meter import Channel, Meter, SamplerStats, Unavailable, coverage_event
from torchwatt.core.report import Report, Status, Step
from torchwatt.core.terms import Domain, domain_kind
from torchwatt.core.trace import ModuleInfo
from torchwatt.core.units import NS_PER_S
from torchwatt.distributed.energy_allocation import EnergyAllocation, allocate_meter
from torchwatt.distributed.rank_records import (
    Job,
    MachineClock,
    MeterGroup,
    group_meters,
    list_reports,
    map_clocks,
    merge_events,
    number_nodes,
)


def build_group_curve(group: MeterGroup, clock: Mapping[str, MachineClock]) -> EnergyCurve | None:
    """Return the device's curve, or the sum of the shares that its ranks modelled."""
    machine_clock = clock[group.host]
    if not group.added:
        curve = group.holder.curve
        return None if curve is None else _shift_curve(curve, group.domain, machine_clock)
    curves = [_shift_curve(view.curve, group.domain, machine_clock) for view in group.looks if view.curve is not None]
    return _sum_curves(curves) if curves else None


def _shift_curve(curve: EnergyCurve, domain: Domain, clock: MachineClock) -> EnergyCurve:
    """Map a curve to the job's clock; points that coincide there are merged."""
    t_ns = clock.shift(curve.t_ns)
    keep = np.concatenate(([True], np.diff(t_ns) > 0))
    keep[-1] = True
    silent = tuple((clock.one(lo), clock.one(hi)) for lo, hi in curve.silent)
    return replace(curve, domain=domain, t_ns=t_ns[keep], energy_j=curve.energy_j[keep], silent=silent)


def _sum_curves(curves: Sequence[EnergyCurve]) -> EnergyCurve:
    """Add curves of several processes: each is constant before its start and after its end."""
    if len(curves) == 1:
        return curves[0]
    t_ns = np.unique(np.concatenate([curve.t_ns for curve in curves]))
    energy_j = np.sum([curve.at(t_ns) - curve.at(t_ns[:1]) for curve in curves], axis=0)
    first_curve = curves[0]
    return EnergyCurve(
        first_curve.domain,
        t_ns,
        np.maximum.accumulate(energy_j - energy_j[0]),
        first_curve.method,
        first_curve.provenance,
        sqrt(fsum(curve.u_j**2 for curve in curves)),
        None,
        tuple(sorted({hole for curve in curves for hole in curve.silent})),
    )


FIRST_RANK_KINDS = frozenset({"cpu", "dram", "psys"})  # kinds that only the first rank of a machine meters


def missing_reason(job: Job, rank: int) -> str:
    """Return the reason why a rank has no report."""
    return job.lost.get(rank) or job.records[rank].lost or "wrote no report"


def list_unavailable(job: Job, metered: Sequence[MeterGroup]) -> tuple[Unavailable, ...]:
    """Return domains that no rank meters, and the devices of lost ranks."""
    metered_names = {(group.host, view.name) for group in metered for view in group.looks}
    node, many = number_nodes(job), len(number_nodes(job)) > 1
    unavailable: dict[Unavailable, None] = {}
    for rank in job.ranks:
        record = job.records[rank]
        prefix = f"node{node[record.facts.host]}/" if many else ""
        for gone in record.report.unavailable if record.report is not None else ():
            if (record.facts.host, gone.domain) in metered_names:
                continue
            left_to_first = domain_kind(gone.domain) in FIRST_RANK_KINDS and not record.facts.place.is_node_leader
            reason = (
                "the machine's first rank, which meters it, left no reading of it" if left_to_first else gone.reason
            )
            unavailable[Unavailable(f"{prefix}{gone.domain}", reason, "" if left_to_first else gone.fix)] = None
    for rank in range(job.world_size):
        absent = job.records.get(rank)
        if absent is None or absent.report is None:
            why = job.lost.get(rank, "left nothing") if absent is None else missing_reason(job, rank)
            unavailable[
                Unavailable(f"rank:{rank}", f"rank {rank} {why}: its device and its layers are not in the total")
            ] = None
    return tuple(unavailable)


def merge_job(job: Job) -> Report:
    """Merge the records of the ranks, in any order; ranks without a record are named in the result.

    Raises:
        BundleError: No rank left a report.
    """
    rank_reports = list_reports(job)
    if not rank_reports:
        raise BundleError(f"job {job.name}: no rank wrote a report: {_list_reasons(job.lost) or 'nothing to merge'}")
    clock = map_clocks(job)
    metered = group_meters(job)
    booked = [(group, books) for group in metered if (books := allocate_meter(group, job)) is not None]
    curves = tuple(curve for group in metered if (curve := build_group_curve(group, clock)) is not None)
    start_ns = min(_run_window(job, clock, rank)[0] for rank in _ranks_with_report(job))
    end_ns = max(_run_window(job, clock, rank)[1] for rank in _ranks_with_report(job))
    first_report = rank_reports[0]
    anchor_ns = first_report.start_unix_ns - _run_window(job, clock, _ranks_with_report(job)[0])[0]
    booked = [
        (group, replace(books, ledger=_translate_container(books.ledger, group, metered))) for group, books in booked
    ]
    counted = [books for _, books in booked if books.ledger.counted]
    parts = tuple(_build_rank_part(job, clock, rank, counted) for rank in range(job.world_size))
    ledgers = [_rescale_coverage(_drop_work(books.ledger), (end_ns - start_ns) / NS_PER_S) for _, books in booked]
    away = [ledger for ledger in ledgers if not ledger.is_whole]
    status, reason = _job_status(parts)
    if away and status == "complete":
        status, reason = "partial", f"{', '.join(str(ledger.domain) for ledger in away[:8])} not metered all the time"
    meters = tuple(meter for group in metered if (meter := _group_meter(group)) is not None)
    return Report(
        run_id=_merged_run_id(job),
        name=first_report.name,
        status=status,
        start_ns=start_ns,
        end_ns=end_ns,
        start_unix_ns=start_ns + anchor_ns,
        ledgers=add_bands(ledgers, meters),
        curves=curves,
        meters=meters,
        unavailable=list_unavailable(job, metered),
        events=(
            *merge_events(job, clock, metered, parts, start_ns),
            *(coverage_event(ledger.domain, ledger.coverage, end_ns) for ledger in away),
        ),
        steps=_job_steps(job, clock, curves),
        modules=_merge_modules(rank_reports),
        units=_sum_units(rank_reports),
        sampler=_sum_sampling(rank_reports),
        tracing_cost_s=max((r.tracing_cost_s for r in rank_reports if r.tracing_cost_s is not None), default=None),
        traced_steps=next((report.traced_steps for report in rank_reports if report.steps), None),
        exit_reason=reason,
        software=first_report.software,
        declared={
            **first_report.declared, "job_id": job.name, "world_size": job.world_size,
            "node_count": len(number_nodes(job)),
        },
        ranks=parts,
    )  # fmt: skip


def _translate_container(ledger: Ledger, group: MeterGroup, metered: Sequence[MeterGroup]) -> Ledger:
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


def _ranks_with_report(job: Job) -> list[int]:
    return [rank for rank in job.ranks if job.records[rank].report is not None]


def _run_window(job: Job, clock: Mapping[str, MachineClock], rank: int) -> tuple[int, int]:
    record = job.records[rank]
    report = cast("Report", record.report)
    return clock[record.facts.host].one(report.start_ns), clock[record.facts.host].one(report.end_ns)


def _build_rank_part(
    job: Job, clock: Mapping[str, MachineClock], rank: int, booked: list[EnergyAllocation]
) -> RankPart:
    record = job.records.get(rank)
    if record is None:
        return RankPart(rank, None, None, "", "missing", job.lost.get(rank, "left nothing"))
    facts, report = record.facts, record.report
    place = facts.place
    part = RankPart(
        rank,
        number_nodes(job)[facts.host],
        place.local_rank,
        facts.host,
        "missing",
        missing_reason(job, rank),
        facts.run_id,
    )
    if report is None:
        return part
    start_ns, end_ns = _run_window(job, clock, rank)
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


def _job_status(parts: tuple[RankPart, ...]) -> tuple[Status, str]:
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
    return "partial", "; ".join(f"{_list_ranks(ranks)} {end}" for end, ranks in by_end.items())


def _list_ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _drop_work(ledger: Ledger) -> Ledger:
    """Return a ledger without operations and bytes: rows that ranks share do not tell whose calls they stand for."""
    entries = (replace(entry, flops=None, bytes_moved=None, input_rows=None) for entry in ledger.entries)
    return replace(ledger, entries=tuple(entries))


def _rescale_coverage(ledger: Ledger, run_s: float) -> Ledger:
    """Set the known time of a meter relative to the job; time outside its rank's block does not count as a gap."""
    away_s = max(ledger.window_s - ledger.known_s, 0.0)
    return replace(ledger, known_s=max(run_s - away_s, 0.0), window_s=run_s)


def _list_reasons(lost: Mapping[int, str]) -> str:
    return "; ".join(f"rank {rank}: {why}" for rank, why in sorted(lost.items()))


def _merged_run_id(job: Job) -> str:
    """Return the id of the merged run, which depends only on its job and ranks."""
    made_of = ";".join(f"{rank}={job.records[rank].facts.run_id}" for rank in _ranks_with_report(job))
    digits = sha256(f"{job.name};{made_of}".encode()).hexdigest()
    # A UUIDv8 (RFC 9562, section 5.8), with the time of its first rank's id, so that it sorts among other runs.
    head = job.records[_ranks_with_report(job)[0]].facts.run_id.replace("-", "")[:12].rjust(12, "0")
    return f"{head[:8]}-{head[8:12]}-8{digits[:3]}-8{digits[3:6]}-{digits[6:18]}"


def _group_meter(group: MeterGroup) -> Meter | None:
    meter = group.holder.meter
    if meter is None:
        return None
    channels = tuple(_move_channel(channel, group) for channel in meter.channels)
    return replace(meter, domain=group.domain, channels=channels)


def _move_channel(channel: Channel, group: MeterGroup) -> Channel:
    return replace(channel, domain=group.domain)


def _job_steps(job: Job, clock: Mapping[str, MachineClock], curves: Iterable[EnergyCurve]) -> tuple[Step, ...]:
    """Return the steps of the first rank that has some: in a data-parallel job all ranks step together."""
    lines = list(curves)
    for rank in _ranks_with_report(job):
        record = job.records[rank]
        report = cast("Report", record.report)
        if report.steps:
            shift = clock[record.facts.host].one
            return tuple(_shift_step(step, shift(step.start_ns), shift(step.end_ns), lines) for step in report.steps)
    return ()


def _shift_step(step: Step, start_ns: int, end_ns: int, curves: list[EnergyCurve]) -> Step:
    known_j = {str(c.domain): c.between(start_ns, end_ns) for c in curves if c.is_metered(start_ns, end_ns)}
    return replace(step, start_ns=start_ns, end_ns=end_ns, energy_j=known_j)


def _merge_modules(reports: Iterable[Report]) -> tuple[ModuleInfo, ...]:
    """Return every module once; a sharded one counts the parameters of its largest shard."""
    module_by_name: dict[str, ModuleInfo] = {}
    for report in reports:
        for module in report.modules:
            old = module_by_name.get(module.fqn)
            if old is None or module.params > old.params:
                module_by_name[module.fqn] = module
    return tuple(module_by_name.values())


def _sum_units(reports: Iterable[Report]) -> dict[str, float]:
    counts: dict[str, list[float]] = {}
    for report in reports:
        for unit, n in report.units.items():
            counts.setdefault(unit, []).append(n)
    return {unit: fsum(values) for unit, values in counts.items()}


def _sum_sampling(reports: tuple[Report, ...]) -> SamplerStats:
    """Sum the cost of sampling over all ranks; other statistics remain with each rank."""
    modes = {report.sampler.mode for report in reports}
    return SamplerStats(
        mode=modes.pop() if len(modes) == 1 else "thread",
        cpu_s=fsum(report.sampler.cpu_s for report in reports),
        wall_s=max(report.sampler.wall_s for report in reports),
        missed={"all": sum(sum(report.sampler.missed.values()) for report in reports)},
        reads={"all": sum(sum(report.sampler.reads.values()) for report in reports)},
    )
