"""Output options of every command that makes a report."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torchwatt.core.plain_text import printable_lines
from torchwatt.core.report import Report

TOKEN = "ELECTRICITYMAPS_TOKEN"  # noqa: S105  # name of the environment variable with the API token


def add_outputs(parser: ArgumentParser, *, csv: str = "--csv", html: bool = True) -> None:
    """Add the options that `Outputs` reads."""
    parser.add_argument(
        csv, dest="csv", metavar="DIR",
        help="write the audit tables into a folder; if it is not empty, into DIR-2 beside it",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true", help=f"replace the bundle at {csv}; anything but a bundle is never replaced"
    )
    if html:
        parser.add_argument("--html", metavar="FILE", help="write the report as one HTML page, replacing an older one")


@dataclass(frozen=True, slots=True)
class Outputs:
    """Requested output files, checked before the command starts."""

    csv: Path | None
    html: Path | None
    overwrite: bool

    @classmethod
    def asked_for(cls, arguments: Namespace) -> Outputs:
        """Return the options of `add_outputs` from parsed arguments.

        Raises:
            ConfigError: A target cannot be written, or `--overwrite` would replace something that is not a bundle.
        """
        from torchwatt.session.options import csv_target, html_target

        html = html_target(getattr(arguments, "html", None))
        return cls(csv_target(arguments.csv, overwrite=arguments.overwrite), html, arguments.overwrite)

    def write(self, report: Report) -> Iterator[str]:
        """Write the files; yield lines for the user: created folders and written paths.

        Raises:
            BundleError: A file cannot be written.
        """
        from torchwatt.session.files import write_csv, write_html, write_one

        for option, target, write in (
            ("csv", self.csv, partial(write_csv, overwrite=self.overwrite)),
            ("html", self.html, write_html),
        ):
            if target is not None:
                path, notes = write_one(report, option, target, write)
                yield from map(printable_lines, (*notes, f"written: {path}"))
