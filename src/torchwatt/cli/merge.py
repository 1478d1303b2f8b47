"""`torchwatt merge DIR`: what the ranks of a job left becomes one report."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Mapping
from typing import Any

from torchwatt.cli.outputs import Outputs, add_outputs
from torchwatt.core.plain_text import printable_lines
from torchwatt.session.jobs.merged import merge
from torchwatt.views import to_text

PARTIAL = 1  # the exit code of a job of which a rank is missing: said, written, and not to be overlooked


def add_parser(commands: _SubParsersAction[ArgumentParser]) -> ArgumentParser:
    """Add the command."""
    parser = commands.add_parser("merge", help="put the ranks of a job together: every joule once")
    parser.add_argument("directory", metavar="DIR", help="what profile(job=DIR) or TORCHWATT_JOB named")
    add_outputs(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print no report")
    return parser


def run_merge(asked: Namespace, carbon: Mapping[str, Any]) -> int:
    """Merge, write what was asked for and print the report.

    Raises:
        BundleError: There is no job, or a file cannot be written.
        ConfigError: A file could not be written where it is asked for.
        FactorError: The region is in no table.
    """
    outputs = Outputs.asked_for(asked)
    report = merge(asked.directory, **carbon).report
    for line in outputs.write(report):
        print(f"torchwatt: {line}", file=sys.stderr)
    if not asked.quiet:
        print(to_text(report))
    if report.status != "complete":
        print(printable_lines(f"torchwatt: {report.status}: {report.exit_reason}"), file=sys.stderr)
    return 0 if report.status == "complete" else PARTIAL
