"""`torchwatt merge DIR`: merges the ranks of a job into one report."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Mapping
from typing import Any

from torchwatt.cli.outputs import Outputs, add_outputs
from torchwatt.core.plain_text import printable_lines
from torchwatt.session.jobs.merged import merge
from torchwatt.views import to_text

PARTIAL = 1  # exit status of a job with missing ranks


def add_parser(commands: _SubParsersAction[ArgumentParser]) -> ArgumentParser:
    """Add the command's arguments."""
    parser = commands.add_parser("merge", help="merge the ranks of a job, each joule counted once")
    parser.add_argument("directory", metavar="DIR", help="the folder of profile(job=DIR) or TORCHWATT_JOB")
    add_outputs(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print no report")
    return parser


def run_merge(arguments: Namespace, carbon: Mapping[str, Any]) -> int:
    """Merge the ranks, write the requested files and print the report; return `PARTIAL` if a rank is missing.

    Raises:
        BundleError: There is no job, or a file cannot be written.
        ConfigError: A requested file cannot be written.
        FactorError: The region is in no table.
    """
    outputs = Outputs.asked_for(arguments)
    report = merge(arguments.directory, **carbon).report
    for line in outputs.write(report):
        print(f"torchwatt: {line}", file=sys.stderr)
    if not arguments.quiet:
        print(to_text(report))
    if report.status != "complete":
        print(printable_lines(f"torchwatt: {report.status}: {report.exit_reason}"), file=sys.stderr)
    return 0 if report.status == "complete" else PARTIAL
