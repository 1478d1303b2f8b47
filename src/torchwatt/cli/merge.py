"""`torchwatt merge DIR`: what the ranks of a job left becomes one report."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchwatt.session.jobs.merged import merge
from torchwatt.views import to_text

PARTIAL = 1  # the exit code of a job of which a rank is missing: said, written, and not to be overlooked


def add_parser(commands: _SubParsersAction[ArgumentParser]) -> ArgumentParser:
    """Add the command."""
    parser = commands.add_parser("merge", help="put the ranks of a job together: every joule once")
    parser.add_argument("directory", metavar="DIR", help="what profile(job=DIR) or TORCHWATT_JOB named")
    parser.add_argument("--csv", metavar="DIR", help="write the audit tables into a new folder")
    parser.add_argument("--html", metavar="FILE", help="write the report as one page")
    parser.add_argument("-q", "--quiet", action="store_true", help="print no report")
    return parser


def run_merge(asked: Namespace, carbon: Mapping[str, Any]) -> int:
    """Merge, write what was asked for and print the report.

    Raises:
        BundleError: There is no job, or a file cannot be written.
        FactorError: The region is in no table.
    """
    job = merge(asked.directory, **carbon)
    report = job.report
    if asked.csv and (written := job.to_csv(asked.csv)) != Path(asked.csv).absolute():
        print(f"torchwatt: {asked.csv} is not empty: the job is in {written}", file=sys.stderr)
    if asked.html:
        job.to_html(asked.html)
    if not asked.quiet:
        print(to_text(report))
    if report.status != "complete":
        print(f"torchwatt: {report.status}: {report.exit_reason}", file=sys.stderr)
    return 0 if report.status == "complete" else PARTIAL
