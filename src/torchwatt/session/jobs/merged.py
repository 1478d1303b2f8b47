"""`merge`: combines a job's folder into one result."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from torchwatt.attribution.jobs.merge import merge as merge_job
from torchwatt.carbon.plan import plan
from torchwatt.session.grams import with_grams
from torchwatt.session.jobs.job_run import JobRun
from torchwatt.session.jobs.spool import read_job
from torchwatt.session.options import carbon_asked


def merge(directory: str | os.PathLike[str], **carbon: Any) -> JobRun:
    """Combine what the ranks of a job wrote into a folder; ranks without data are named, never estimated.

    Args:
        directory: `DIR` of `profile(job=DIR)`, or the folder of one job in it.
        carbon: `region`, `intensity_g_per_kwh`, `market`, `facility`, `pue`, `factors`, `allow_expired`, as
            `profile()` takes them.

    Raises:
        BundleError: There is no job, there are several, or a rank occurs twice.
        FactorError: The region is in no table.
    """
    report = merge_job(read_job(directory))
    began = datetime.fromtimestamp(report.start_unix_ns / 1e9, UTC)
    return JobRun(with_grams(report, plan(carbon_asked(carbon), began)))
