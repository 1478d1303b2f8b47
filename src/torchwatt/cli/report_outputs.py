"""Output options of every command that makes a report."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torchwatt.core.plain_text import escape_unprintable_lines
from torchwatt.core.report import Report

TOKEN_VARIABLE = "ELECTRICITYMAPS_TOKEN"  # noqa: S105  # name of the environment variable with the API token


def add_output_options(parser: ArgumentParser, *, csv: str = "--csv", html: bool = True) -> None:
    """Add the options that `ReportOutputs` reads."""
    parser.add_argument(
        csv, dest="csv", metavar="DIR",
        help="write all numbers as tables into a folder; if it is not empty, into DIR-2 beside it",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true", help=f"replace older tables at {csv}; nothing else is ever replaced"
    )
    if html:
        parser.add_argument("--html", metavar="FILE", help="write the report as one HTML page, replacing an older one")


@dataclass(frozen=True, slots=True)
class ReportOutputs:
    """Requested output files, checked before the command starts."""

    csv: Path | None
    html: Path | None
    overwrite: bool

    @classmethod
    def asked_for(cls, arguments: Namespace) -> ReportOutputs:
        """Return the options of `add_output_options` from parsed arguments.

        Raises:
            ConfigError: A target cannot be written, or `--overwrite` would replace something that is not a bundle.
        """
        from torchwatt.reports.run_options import csv_target, html_target

        html = html_target(getattr(arguments, "html", None))
        return cls(csv_target(arguments.csv, overwrite=arguments.overwrite), html, arguments.overwrite)

    def write(self, report: Report) -> Iterator[str]:
        """Write the files; yield lines for the user: created folders and written paths.

        Raises:
            BundleError: A file cannot be written.
        """
        from torchwatt.reports.output_files import write_csv, write_html, write_output

        for option, target, write in (
            ("csv", self.csv, partial(write_csv, overwrite=self.overwrite)),
            ("html", self.html, write_html),
        ):
            if target is not None:
                path, notes = write_output(report, option, target, write)
                yield from map(escape_unprintable_lines, (*notes, f"written: {path}"))
