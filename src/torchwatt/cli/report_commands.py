"""`torchwatt recover`: makes the report of a killed run from its journal."""

from __future__ import annotations

import argparse
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Container, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from torchwatt.audit.store import Store
from torchwatt.cli.report_outputs import ReportOutputs, add_output_options
from torchwatt.core.errors import ConfigError
from torchwatt.core.plain_text import escape_unprintable, escape_unprintable_lines
from torchwatt.distributed.job_folder import merge
from torchwatt.views import to_text


def add_journal_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the journal that `torchwatt run` writes."""
    parser.add_argument(
        "--journal",
        metavar="DIR",
        help="a new folder for the readings so far, from which `torchwatt recover` makes the report of a killed run; "
        "default: in the store, removed when the run ends normally",
    )
    parser.add_argument(
        "--no-journal", action="store_true", help="save no readings during the run: a killed run is lost"
    )


def add_recover_parser(commands: Any) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("recover", help="make the report of a run that was killed")
    parser.add_argument("journal", metavar="DIR|RUN", help="the folder of --journal, or the id of a killed run")
    add_output_options(parser)
    parser.add_argument("--keep", action="store_true", help="save the run in the store, and remove its journal there")
    parser.add_argument(
        "--shared",
        action="store_true",
        help="give the saved files the umask's permissions; default: only you can read them",
    )
    parser.add_argument("--store", metavar="DIR", help="default TORCHWATT_STORE, or your data folder")


def run_recover(arguments: argparse.Namespace, out: IO[str] | None = None) -> int:
    """Print the report and write the requested files.

    Raises:
        BundleError: The journal does not exist or cannot be read.
        ConfigError: `--keep` is given for a run that is still running, or the files cannot be written.
    """
    from torchwatt.journal.journal_directory import JOURNALS_FOLDER, remove_journal
    from torchwatt.journal.journal_reader import find_journal, read_journal
    from torchwatt.journal.recovery import recover_report
    from torchwatt.views import to_text

    out, store, outputs = out or sys.stdout, Store(arguments.store), ReportOutputs.asked_for(arguments)
    path = Path(arguments.journal) if Path(arguments.journal).is_dir() else find_journal(store.root, arguments.journal)
    content = read_journal(path)
    report = recover_report(content)
    if report.status == "running":
        if arguments.keep:
            raise ConfigError(f"--keep: {report.exit_reason}; keep it when it has ended")
        print(
            escape_unprintable_lines(f"torchwatt: {report.exit_reason}; the report includes the readings until now"),
            file=sys.stderr,
        )
    print(to_text(report), file=out)
    for event in report.events:
        if event.code in PRINTED_EVENTS:
            print(escape_unprintable_lines(f"{event.severity}: {event.message}"), file=out)
    for line in outputs.write(report):
        print(line, file=out)
    if arguments.keep:
        stored_run = store.keep(report, content.head.project)
        if arguments.shared:
            store.share(stored_run)
        print(escape_unprintable(f"kept: {stored_run}"), file=out)
        if path.absolute().parent == (store.root / JOURNALS_FOLDER).absolute():
            remove_journal(path)
    return 0


PRINTED_EVENTS = frozenset(
    {"RECOVERED", "NOT_BEGUN", "LAYERS_END", "JOURNAL_DAMAGED", "JOURNAL_MISSING", "JOURNAL_STOPPED"}
)


def unrecovered_lines(store: Store, recovered_ids: Container[str]) -> Iterator[str]:
    """Yield a line for each journal in a store whose run is not among `recovered_ids`."""
    from torchwatt.journal.journal_reader import list_journals

    for journal in list_journals(store.root):
        if journal.run_id in recovered_ids:
            continue
        when = datetime.fromtimestamp(journal.written_s, UTC).strftime("%Y-%m-%d %H:%M")
        name = escape_unprintable(journal.name)
        if journal.alive:
            yield f"{journal.run_id:36}  runs: its journal has {journal.bytes / 1e6:.1f} MB  {name}"
        else:
            command = f"torchwatt recover {journal.run_id}"
            yield f"{journal.run_id:36}  not recovered, last written {when} UTC: {command}  {name}"


PARTIAL_STATUS = 1  # exit status of a job with missing ranks


def add_merge_parser(commands: _SubParsersAction[ArgumentParser]) -> ArgumentParser:
    """Add the command's arguments."""
    parser = commands.add_parser("merge", help="add up the processes of a distributed job, each joule counted once")
    parser.add_argument("directory", metavar="DIR", help="the folder of profile(job=DIR) or TORCHWATT_JOB")
    add_output_options(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print no report")
    return parser


def run_merge(arguments: Namespace, carbon: Mapping[str, Any]) -> int:
    """Merge the ranks, write the requested files and print the report; return `PARTIAL` if a rank is missing.

    Raises:
        BundleError: There is no job, or a file cannot be written.
        ConfigError: A requested file cannot be written.
        FactorError: The region is in no table.
    """
    outputs = ReportOutputs.asked_for(arguments)
    report = merge(arguments.directory, **carbon).report
    for line in outputs.write(report):
        print(f"torchwatt: {line}", file=sys.stderr)
    if not arguments.quiet:
        print(to_text(report))
    if report.status != "complete":
        print(escape_unprintable_lines(f"torchwatt: {report.status}: {report.exit_reason}"), file=sys.stderr)
    return 0 if report.status == "complete" else PARTIAL_STATUS
