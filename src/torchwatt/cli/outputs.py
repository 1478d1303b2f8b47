"""Where reports are written: the same options and rules for every command that makes one."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torchwatt.core.plain_text import printable_lines
from torchwatt.core.report import Report


def add_outputs(parser: ArgumentParser, *, csv: str = "--csv", html: bool = True) -> None:
    """Add the options that `Outputs` reads."""
    parser.add_argument(
        csv, dest="csv", metavar="DIR",
        help="write the audit tables into a folder; where it holds a run, into DIR-2 beside it",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help=f"replace the bundle that {csv} names, nothing else")
    if html:
        parser.add_argument("--html", metavar="FILE", help="write the report as one page, over an older one")


@dataclass(frozen=True, slots=True)
class Outputs:
    """Files that a command was asked for, checked before it begins."""

    csv: Path | None
    html: Path | None
    overwrite: bool

    @classmethod
    def asked_for(cls, asked: Namespace) -> Outputs:
        """Return what `add_outputs` read.

        Raises:
            ConfigError: One of them cannot be written, or holds something else than a bundle.
        """
        from torchwatt.session.options import csv_target, html_target

        html = html_target(getattr(asked, "html", None))
        return cls(csv_target(asked.csv, overwrite=asked.overwrite), html, asked.overwrite)

    def write(self, report: Report) -> Iterator[str]:
        """Write them; yield what to say: where they are, and what was made on the way.

        Raises:
            BundleError: One of them cannot be written.
        """
        from torchwatt.session.files import write_csv, write_html, write_one

        for what, target, write in (
            ("csv", self.csv, partial(write_csv, overwrite=self.overwrite)),
            ("html", self.html, write_html),
        ):
            if target is not None:
                path, notes = write_one(report, what, target, write)
                yield from map(printable_lines, (*notes, f"written: {path}"))
