"""`JobRun`: the result that `run.job` and `merge` return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torchwatt.core.report import Report
from torchwatt.session import frames
from torchwatt.session.faces import ReportFaces

if TYPE_CHECKING:
    import pandas as pd


class JobRun(ReportFaces):
    """All ranks of a job, each joule counted once; shown, read and written like a `Run`."""

    def __init__(self, report: Report) -> None:
        self._report = report

    @property
    def report(self) -> Report:
        """The immutable value behind everything else."""
        return self._report

    @property
    def run_id(self) -> str:
        """Identifier of the job, the same whenever the same parts are merged."""
        return self._report.run_id

    @property
    def name(self) -> str:
        """The name shown in reports."""
        return self._report.name

    @property
    def units(self) -> Mapping[str, float]:
        """Units counted with `count`, summed over all ranks."""
        return dict(self._report.units)

    @property
    def ranks(self) -> pd.DataFrame:
        """One row per rank, also for ranks without data: joules, communication, CPU time, times, status."""
        return frames.ranks(self._report)
