"""Map all clocks of a job to rank 0's monotonic one, with a stated error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from torchwatt.attribution.jobs.record import Job, RankRecord
from torchwatt.core.instants import interpolate
from torchwatt.core.job import ClockMethod, Look
from torchwatt.core.meter import IntArray


@dataclass(frozen=True, slots=True)
class Clock:
    """The map from one machine's times to the job's: the offset is linear between measurements, and constant outside.

    A clock may drift between measurements; the drift from the first to the last is not in the bound of either, since
    the line through both corrects it.
    """

    looks: tuple[Look, ...]
    method: ClockMethod

    @property
    def bound_ns(self) -> int | None:
        """Return the maximum error of a time in ns; None where it rests on wall clocks, whose error is unknown."""
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


SAME = Clock((), "same_clock")


def clocks(job: Job) -> Mapping[str, Clock]:
    """Return the clock of each machine of a job.

    Machines with rank 0's host name have its clock. Others are mapped by the measurements of any of their ranks over
    the job's store, those with the smallest bound first; without any by their wall clocks.
    """
    by_host: dict[str, list[RankRecord]] = {}
    for rank in job.ranks:
        by_host.setdefault(job.records[rank].facts.host, []).append(job.records[rank])
    measured = {host: measurements for host, records in by_host.items() if (measurements := _best(records))}
    clock_of_host = {host: Clock(measurements, "store") for host, measurements in measured.items()}
    if 0 in job.records:
        clock_of_host[job.records[0].facts.host] = SAME
    if not clock_of_host:  # without rank 0 and measurements: the first machine's clock is used
        clock_of_host[job.records[job.ranks[0]].facts.host] = SAME
    anchor = _anchor(by_host, clock_of_host)
    return {host: clock_of_host.get(host) or _by_wall(records, anchor) for host, records in by_host.items()}


def _best(records: list[RankRecord]) -> tuple[Look, ...]:
    """Return the measurements of the rank with the smallest error bound."""
    measured = [record.facts.clock for record in records if record.facts.clock]
    return min(measured, key=lambda measurements: max(measurement.bound_ns for measurement in measurements), default=())


def _anchor(by_host: Mapping[str, list[RankRecord]], clock_of_host: Mapping[str, Clock]) -> int:
    """Return unix time minus the job's clock, from a machine whose clock is known."""
    for host, records in by_host.items():
        for record in records:
            if host in clock_of_host and record.report is not None:
                return record.report.start_unix_ns - clock_of_host[host].one(record.report.start_ns)
    return 0


def _by_wall(records: list[RankRecord], anchor_ns: int) -> Clock:
    report = next((record.report for record in records if record.report is not None), None)
    if report is None:
        return Clock((), "wall_clock")
    offset_ns = report.start_unix_ns - report.start_ns - anchor_ns
    return Clock((Look(report.start_ns, offset_ns, 0),), "wall_clock")
