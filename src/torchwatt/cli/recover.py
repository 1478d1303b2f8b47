"""`torchwatt recover`: the report of a run that was killed."""

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
    """Add where `torchwatt run` writes its journal."""
    parser.add_argument(
        "--journal",
        metavar="DIR",
        help="a new folder for the journal, which is kept; default: in the store, until the end",
    )
    parser.add_argument("--no-journal", action="store_true", help="write none: a run that is killed is lost")


def add_parser(commands: Any) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("recover", help="the report of a run that was killed, from its journal")
    parser.add_argument("journal", metavar="DIR|RUN", help="a journal, or a run whose journal lies in the store")
    add_outputs(parser)
    parser.add_argument("--keep", action="store_true", help="keep the run in the store, and remove its journal there")
    parser.add_argument("--shared", action="store_true", help="others may read the kept run, as the umask allows")
    parser.add_argument("--store", metavar="DIR", help="default TORCHWATT_STORE, or your data folder")


def recover(asked: argparse.Namespace, out: IO[str] | None = None) -> int:
    """Print the report, and write what was asked for.

    Raises:
        BundleError: There is no such journal, or nothing can be read of it.
        ConfigError: A run that still runs cannot be kept, or the files cannot be written.
    """
    from torchwatt.session.journal.place import IN_STORE, remove
    from torchwatt.session.journal.read import read_journal
    from torchwatt.session.journal.stored import find_journal
    from torchwatt.session.recover import report_from
    from torchwatt.views import to_text

    out, store, outputs = out or sys.stdout, Store(asked.store), Outputs.asked_for(asked)
    path = Path(asked.journal) if Path(asked.journal).is_dir() else find_journal(store.root, asked.journal)
    found = read_journal(path)
    report = report_from(found)
    if report.status == "running":
        if asked.keep:
            raise ConfigError(f"--keep: {report.exit_reason}; keep it when it has ended")
        print(
            printable_lines(f"torchwatt: {report.exit_reason}; the report holds the readings until now"),
            file=sys.stderr,
        )
    print(to_text(report), file=out)
    for event in report.events:
        if event.code in TOLD:
            print(printable_lines(f"{event.severity}: {event.message}"), file=out)
    for line in outputs.write(report):
        print(line, file=out)
    if asked.keep:
        kept = store.keep(report, found.head.project)
        if asked.shared:
            store.share(kept)
        print(printable(f"kept: {kept}"), file=out)
        if path.absolute().parent == (store.root / IN_STORE).absolute():
            remove(path)
    return 0


TOLD = frozenset({"RECOVERED", "NOT_BEGUN", "LAYERS_END", "JOURNAL_DAMAGED", "JOURNAL_MISSING", "JOURNAL_STOPPED"})


def not_recovered(store: Store, kept: Container[str]) -> Iterator[str]:
    """Yield a line for each journal in a store whose run was not kept."""
    from torchwatt.session.journal.stored import stored_journals

    for one in stored_journals(store.root):
        if one.run_id in kept:
            continue
        when = datetime.fromtimestamp(one.written_s, UTC).strftime("%Y-%m-%d %H:%M")
        name = printable(one.name)
        if one.alive:
            yield f"{one.run_id:36}  runs: its journal has {one.bytes / 1e6:.1f} MB  {name}"
        else:
            yield f"{one.run_id:36}  not recovered, last written {when} UTC: torchwatt recover {one.run_id}  {name}"
