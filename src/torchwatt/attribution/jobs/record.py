"""The record of one rank, and a job as a set of such records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torchwatt.core.errors import BundleError
from torchwatt.core.job import RankFacts
from torchwatt.core.report import Report


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


def job_of(record: RankRecord) -> Job:
    """Return the job of one rank."""
    place = record.facts.place
    return Job(place.job, place.world_size, {place.rank: record})


def jobs_sum(records: Iterable[RankRecord]) -> Job:
    """Merge the records of one job.

    Raises:
        BundleError: There are no records, they are of several jobs, or a rank occurs twice.
    """
    jobs = [job_of(record) for record in records]
    if not jobs:
        raise BundleError("no rank wrote a record: nothing to merge")
    total = jobs[0]
    for job in jobs[1:]:
        total = total + job
    return total
