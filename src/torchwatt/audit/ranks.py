"""Rows of `rank` and `rank_layer`: the energy of a job by rank."""

from __future__ import annotations

from collections.abc import Iterator

from torchwatt.audit.devices import salted
from torchwatt.audit.schema import Row
from torchwatt.core.report import Report


def rank_rows(report: Report) -> Iterator[Row]:
    """Yield one row per rank."""
    for part in report.ranks:
        has_times = part.start_ns is not None and part.end_ns is not None
        yield {
            "run_id": report.run_id,
            "rank": part.rank,
            "node": part.node,
            "local_rank": part.local_rank,
            "status": part.status,
            "reason": part.reason,
            "source_run_id": part.run_id,
            "host_hash": salted(report.run_id, part.host),
            "t_start_ns": part.start_ns - report.start_ns if part.start_ns is not None else None,
            "t_end_ns": part.end_ns - report.start_ns if part.end_ns is not None else None,
            "duration_s": part.duration_s if has_times else None,
            "energy_j": part.energy_j,
            "energy_communication_j": part.communication_j,
            "cpu_s": part.cpu_s,
            "host_busy_s": part.host_busy_s,
            "step_count": part.step_count,
            "clock_method": part.clock_method,
            "clock_bound_ns": part.clock_bound_ns,
        }


def rank_layer_rows(report: Report) -> Iterator[Row]:
    """Yield one row per rank, domain, layer and phase."""
    for part in report.ranks:
        for entry in part.entries:
            yield {
                "run_id": report.run_id,
                "rank": part.rank,
                "device_id": str(entry.domain),
                "fqn": entry.fqn,
                "phase": entry.phase,
                "calls": entry.calls,
                "time_self_s": entry.time_self_s,
                "energy_self_j": entry.energy_self_j,
                "method": entry.method,
                "provenance": entry.provenance,
                "stage": entry.stage,
            }
