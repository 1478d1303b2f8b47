"""Commands that make a report: `torchwatt recover`, `merge` and `watch`; and their output files."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from math import fsum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from torchwatt.audit.store import Store
from torchwatt.core.errors import ConfigError, import_optional
from torchwatt.core.meter import Event
from torchwatt.core.plain_text import escape_unprintable, escape_unprintable_lines
from torchwatt.core.report import Report
from torchwatt.core.units import NS_PER_S
from torchwatt.distributed.job_folder import merge
from torchwatt.views import DASH, format_energy, format_time, to_text

if TYPE_CHECKING:
    from torchwatt.metrics.server_counters import ServerKind
    from torchwatt.metrics.server_tally import ServerTally

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


UNSEEN_STATUS = 1  # exit status of `watch` if the server gave no page with token counters
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.1, 600.0


def add_watch_parser(commands: _SubParsersAction[ArgumentParser]) -> ArgumentParser:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "watch", help="joules per token of a running vLLM, SGLang, TGI or llama.cpp server, by its Prometheus page"
    )
    parser.add_argument("--url", required=True, help="NETWORK: the page, such as http://127.0.0.1:8080/metrics")
    parser.add_argument("--interval", type=float, default=2.0, metavar="S", help="seconds between two reads; default 2")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after this time; default: at Ctrl-C or SIGTERM")
    parser.add_argument("--input-counter", metavar="NAME", help="of another server: its counter of input tokens")
    parser.add_argument("--output-counter", metavar="NAME", help="of another server: its counter of output tokens")
    parser.add_argument("--name", help="name of the run")
    parser.add_argument("-q", "--quiet", action="store_true", help="print no report and no live row")
    add_output_options(parser)
    return parser


def run_watch(arguments: Namespace, carbon: Mapping[str, Any]) -> int:
    """Watch a server until the time is over or a signal comes; print the report and write the requested files.

    Raises:
        BundleError: A file cannot be written.
        ConfigError: An option is invalid.
        FactorError: The region is in no table.
        MissingPackageError: prometheus_client is not installed.
        ScrapeError: There is no page of a server when the command starts.
    """
    from torchwatt.carbon import CarbonOptions
    from torchwatt.carbon.pricing_plan import make_plan
    from torchwatt.cli.live_row import ServerRow, has_live_terminal
    from torchwatt.metrics.server_counters import check_first_page, check_url, fetch_page, is_loopback, parse_page
    from torchwatt.metrics.server_tally import ServerPoller, ServerTally
    from torchwatt.reports.run_options import RunOptions
    from torchwatt.session import Run
    from torchwatt.session.session import Session

    outputs, url, kinds = ReportOutputs.asked_for(arguments), check_url(arguments.url), _watched_kinds(arguments)
    if not MIN_INTERVAL_S <= arguments.interval <= MAX_INTERVAL_S:
        raise ConfigError(f"--interval {arguments.interval:g}: give {MIN_INTERVAL_S:g} to {MAX_INTERVAL_S:g} seconds")
    if arguments.seconds is not None and not 0 < arguments.seconds < threading.TIMEOUT_MAX:
        raise ConfigError(f"--seconds {arguments.seconds:g}: give a positive number")
    import_optional("prometheus_client.parser", "torchwatt watch")
    plan = make_plan(CarbonOptions(**carbon), datetime.now(UTC))
    check_first_page(url, kinds)
    session = Session(RunOptions(arguments.name or "language model server", plan, layers=False, whole_machine=True))
    with _ended_by_signal() as ended:
        session.start()
        run = Run(session)
        tally = ServerTally(session.start_ns, lambda event: None if arguments.quiet else _say(event.message))
        poller = ServerPoller(lambda: parse_page(fetch_page(url), kinds), tally, arguments.interval)
        row = ServerRow(run, tally, arguments.interval, shown=not arguments.quiet and has_live_terminal())
        try:
            row.start()
            poller.start()
            ended.wait(arguments.seconds)
        finally:
            with contextlib.suppress(
                KeyboardInterrupt
            ):  # of a second Ctrl-C: no last page, and the report all the same
                poller.close()
            row.close()
            session.stop("complete")
    report = tally.book(run.report, arguments.interval)
    if not is_loopback(url):
        elsewhere = Event(report.start_ns, "warning", "SERVER_ELSEWHERE", "run", ELSEWHERE)
        report = replace(report, events=(elsewhere, *report.events))
    if not arguments.quiet:
        print(to_text(replace(report, windows=(), units={})))  # tokens have their own lines
        for line in server_lines(report, tally):
            print(escape_unprintable_lines(line))
    for line in outputs.write(report):
        _say(line)
    return 0 if tally.page is not None else UNSEEN_STATUS


ELSEWHERE = "the address is not of this machine's loopback interface: joules are those of this machine's meters"


def _say(text: str) -> None:
    print(f"torchwatt: {escape_unprintable_lines(text)}", file=sys.stderr, flush=True)


def _watched_kinds(arguments: Namespace) -> Sequence[ServerKind]:
    from torchwatt.metrics.server_counters import SERVER_KINDS, ServerKind

    names = arguments.input_counter, arguments.output_counter
    if names == (None, None):
        return SERVER_KINDS
    if not all(names) or len(set(names)) < 2:
        raise ConfigError("give two different names: --input-counter and --output-counter")
    return (ServerKind("named counters", *names),)


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[threading.Event]:
    """Within the block, the first SIGINT or SIGTERM sets the event; later ones interrupt."""
    ended = threading.Event()

    def end(_: int, __: Any) -> None:
        if ended.is_set():
            raise KeyboardInterrupt
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def server_lines(report: Report, tally: ServerTally) -> Iterator[str]:
    """Yield the lines about tokens below the report."""
    from torchwatt.metrics.server_tally import sum_windows

    sums, page = sum_windows(report.windows), tally.page
    name = page[1].kind.name if page is not None else "no server found"
    if len(tally.models) == 1 and any(tally.models):
        name = f"{name} · {next(iter(tally.models))}"
    known_s = sum(w.end_ns - w.start_ns for w in report.windows if w.output_tokens is not None) / NS_PER_S
    yield f"\ntokens       {name} · known for {format_time(known_s)} of {format_time(report.duration_s)}"
    if known_s:
        cached = "" if tally.cached is None else f" ({tally.cached:,.0f} of them from its cache)"
        requests = "" if tally.requests is None else f" · {tally.requests:,.0f} requests"
        inputs, outputs = (fsum(counts[i] for counts in tally.models.values()) for i in (0, 1))
        yield f"             {inputs:,.0f} input{cached} · {outputs:,.0f} output{requests}"
    for model, (inputs, outputs) in sorted(tally.models.items()) if len(tally.models) > 1 else ():
        yield f"             {model or DASH}: {inputs:,.0f} input · {outputs:,.0f} output"
    if not report.counted:
        yield f"per token    {DASH} · nothing was metered; `torchwatt doctor` lists what would help"
        return
    per_output, per_token = format_energy(sums.per_output_j()), format_energy(sums.per_token_j())
    yield f"per token    {per_output} per output token · {per_token} per token, input and output"
    part = "" if sums.time_s >= known_s else f" for {format_time(sums.time_s)} of these"
    domains = " + ".join(str(ledger.domain) for ledger in report.counted)
    yield f"             of {domains}, {report.provenance}{part}; whole devices, not this server alone"
    if sums.time_s > 0:
        idle = f"{format_energy(sums.idle_j)} in {format_time(sums.idle_s)}" if sums.idle_s else "none"
        yield f"rate         {sums.output / sums.time_s:.3g} output tokens/s · without requests: {idle}, included above"
    if tally.first_tokens > 0:
        mean_s = tally.first_token_s / tally.first_tokens
        yield f"first token  {format_time(mean_s)}, mean of {tally.first_tokens:,.0f} requests, by the server"
