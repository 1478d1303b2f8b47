"""`torchwatt recover`: makes the report of a killed run from its journal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Container, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from torchwatt.audit.store import Store
from torchwatt.cli.outputs import Outputs, add_outputs
from torchwatt.core.errors import ConfigError
from torchwatt.core.plain_text import printable, printable_lines


def add_journal(parser: argparse.ArgumentParser) -> None:
    """Add the options of the journal that `torchwatt run` writes."""
    parser.add_argument(
        "--journal",
        metavar="DIR",
        help="a new folder for the journal, which stays; default: in the store, removed when the run ends normally",
    )
    parser.add_argument("--no-journal", action="store_true", help="write no journal; a killed run is then lost")


def add_parser(commands: Any) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("recover", help="make the report of a killed run from its journal")
    parser.add_argument(
        "journal", metavar="DIR|RUN", help="a journal, or the id of a run whose journal is in the store"
    )
    add_outputs(parser)
    parser.add_argument("--keep", action="store_true", help="save the run in the store, and remove its journal there")
    parser.add_argument(
        "--shared",
        action="store_true",
        help="give the saved files the umask's permissions; default: only you can read them",
    )
    parser.add_argument("--store", metavar="DIR", help="default TORCHWATT_STORE, or your data folder")


def recover(arguments: argparse.Namespace, out: IO[str] | None = None) -> int:
    """Print the report and write the requested files.

    Raises:
        BundleError: The journal does not exist or cannot be read.
        ConfigError: `--keep` is given for a run that is still running, or the files cannot be written.
    """
    from torchwatt.session.journal.place import IN_STORE, remove
    from torchwatt.session.journal.read import read_journal
    from torchwatt.session.journal.stored import find_journal
    from torchwatt.session.recover import report_from
    from torchwatt.views import to_text

    out, store, outputs = out or sys.stdout, Store(arguments.store), Outputs.asked_for(arguments)
    path = Path(arguments.journal) if Path(arguments.journal).is_dir() else find_journal(store.root, arguments.journal)
    content = read_journal(path)
    report = report_from(content)
    if report.status == "running":
        if arguments.keep:
            raise ConfigError(f"--keep: {report.exit_reason}; keep it when it has ended")
        print(
            printable_lines(f"torchwatt: {report.exit_reason}; the report includes the readings until now"),
            file=sys.stderr,
        )
    print(to_text(report), file=out)
    for event in report.events:
        if event.code in TOLD:
            print(printable_lines(f"{event.severity}: {event.message}"), file=out)
    for line in outputs.write(report):
        print(line, file=out)
    if arguments.keep:
        stored_run = store.keep(report, content.head.project)
        if arguments.shared:
            store.share(stored_run)
        print(printable(f"kept: {stored_run}"), file=out)
        if path.absolute().parent == (store.root / IN_STORE).absolute():
            remove(path)
    return 0


TOLD = frozenset({"RECOVERED", "NOT_BEGUN", "LAYERS_END", "JOURNAL_DAMAGED", "JOURNAL_MISSING", "JOURNAL_STOPPED"})


def not_recovered(store: Store, recovered_ids: Container[str]) -> Iterator[str]:
    """Yield a line for each journal in a store whose run is not among `recovered_ids`."""
    from torchwatt.session.journal.stored import stored_journals

    for journal in stored_journals(store.root):
        if journal.run_id in recovered_ids:
            continue
        when = datetime.fromtimestamp(journal.written_s, UTC).strftime("%Y-%m-%d %H:%M")
        name = printable(journal.name)
        if journal.alive:
            yield f"{journal.run_id:36}  runs: its journal has {journal.bytes / 1e6:.1f} MB  {name}"
        else:
            command = f"torchwatt recover {journal.run_id}"
            yield f"{journal.run_id:36}  not recovered, last written {when} UTC: {command}  {name}"
