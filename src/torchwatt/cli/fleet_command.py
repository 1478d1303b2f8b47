"""`torchwatt fleet`: adds bundles to a lake of Parquet files, and queries its sums."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from torchwatt.audit.cell_codec import escape
from torchwatt.audit.fleet import ROLLUPS, check_lake, open_lake, rollup, views_script
from torchwatt.audit.fleet.ingestion import ingest, summary
from torchwatt.core.errors import BundleError, ConfigError
from torchwatt.core.plain_text import escape_unprintable
from torchwatt.disk.private_files import create_file
from torchwatt.views import DASH

if TYPE_CHECKING:
    import pyarrow as pa

FINDINGS_STATUS = 1
MAX_CELL_CHARS = 32


def add_fleet_parser(commands: Any) -> None:
    """Add the command's arguments."""
    fleet = commands.add_parser("fleet", help="collect many runs in one folder of Parquet files, and add them up")
    doing = fleet.add_subparsers(dest="doing", required=True, metavar="ingest|rollup|verify|sql")
    add = doing.add_parser("ingest", help="add runs to the folder; runs already in it are not changed")
    _add_lake_argument(add)
    add.add_argument("places", metavar="DIR", nargs="+", help="a store, a folder of runs, or the folder of a run")
    add.add_argument("--project", help="project of all runs; default: the name of the folder that contains them")
    add.add_argument("--samples", action="store_true", help="also copy the power curves")
    add.add_argument("--replace", action="store_true", help="replace a run whose content differs")
    add.add_argument(
        "--shared", action="store_true", help="give files the umask's permissions; default: only you can read them"
    )
    add.add_argument("--jobs", type=int, metavar="N", help="number of processes; default: one per CPU, at most 8")
    sums = doing.add_parser(
        "rollup", help="sums of energy and grams, and rates; amounts that cannot be added are listed separately"
    )
    _add_lake_argument(sums)
    sums.add_argument("--by", choices=list(ROLLUPS), default="month", help="default: month (within project)")
    sums.add_argument("--project", help="only this project")
    sums.add_argument("--month", metavar="YYYY-MM", help="only runs that began in this month (UTC)")
    sums.add_argument("--out", metavar="FILE", help="write FILE.csv or FILE.parquet; default: print a table")
    check = doing.add_parser("verify", help="check that the files are complete and the sums correct")
    _add_lake_argument(check)
    text = doing.add_parser("sql", help="print the views as SQL, for duckdb")
    _add_lake_argument(text)


def _add_lake_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lake", metavar="LAKE", help="a folder, or an address such as s3://bucket/lake (NETWORK)")


def run_fleet(arguments: argparse.Namespace, out: IO[str] | None = None) -> int:
    """Run a subcommand; return 1 if bundles were refused or a check of the lake failed, else 0.

    Raises:
        BundleError: The lake cannot be read or written.
        ConfigError: An argument is invalid, or a package is missing.
    """
    return _ACTIONS[arguments.doing](arguments, out or sys.stdout)


def _ingest(arguments: argparse.Namespace, out: IO[str]) -> int:
    if arguments.jobs is not None and arguments.jobs < 1:
        raise ConfigError(f"--jobs {arguments.jobs}: give 1 or more")
    result = ingest(
        open_lake(arguments.lake, shared=arguments.shared),
        arguments.places,
        project=arguments.project,
        samples=arguments.samples,
        replace=arguments.replace,
        jobs=arguments.jobs,
    )
    for outcome in result.refused:
        print(f"refused {escape_unprintable(outcome.directory)}: {escape_unprintable(outcome.why)}", file=sys.stderr)
    for outcome in result.no_bundles:
        print(
            f"not a bundle: {escape_unprintable(outcome.directory)}: {escape_unprintable(outcome.why)}", file=sys.stderr
        )
    print(f"{escape_unprintable(arguments.lake)}: {summary(result.outcomes)}", file=out)
    return FINDINGS_STATUS if result.refused else 0


def _rollup(arguments: argparse.Namespace, out: IO[str]) -> int:
    target = None if arguments.out is None else Path(arguments.out)
    if target is not None and target.suffix not in {".csv", ".parquet"}:
        raise ConfigError(f"--out {arguments.out}: give a name that ends in .csv or .parquet")
    table = rollup(open_lake(arguments.lake), arguments.by, arguments.project, arguments.month)
    if target is None:
        print("\n".join(_table_lines(table)), file=out)
        return 0
    try:
        with create_file(target) as file:
            _write_table(table, file, target.suffix)
    except FileExistsError as error:
        raise BundleError(f"{target} exists already: name another file with --out, or move it") from error
    except OSError as error:
        raise BundleError(f"cannot write {target}: {error.strerror}") from error
    print(escape_unprintable(str(target)), file=out)
    return 0


def _verify(arguments: argparse.Namespace, out: IO[str]) -> int:
    broken = check_lake(open_lake(arguments.lake))
    for finding in broken:
        print(escape_unprintable(str(finding)), file=out)
    if not broken:
        print(f"OK: {escape_unprintable(arguments.lake)}", file=out)
    return FINDINGS_STATUS if broken else 0


def _sql(arguments: argparse.Namespace, out: IO[str]) -> int:
    print(views_script(open_lake(arguments.lake)), file=out)
    return 0


_ACTIONS: Mapping[str, Callable[[argparse.Namespace, IO[str]], int]] = {
    "ingest": _ingest,
    "rollup": _rollup,
    "verify": _verify,
    "sql": _sql,
}


def _write_table(table: pa.Table, file: Any, suffix: str) -> None:
    """Write CSV or Parquet: floats with all digits, None as an empty cell, text that is no spreadsheet formula."""
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        pq.write_table(table, file, compression="zstd")
        return
    import io

    wrapped = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(wrapped, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows([_csv_cell(value) for value in row.values()] for row in table.to_pylist())
    wrapped.detach()


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    return escape(value) if isinstance(value, str) else repr(value)


def _table_lines(table: pa.Table) -> Iterator[str]:
    rows = table.to_pylist()
    if not rows:
        yield "no runs"
        return
    shown = [table.column_names, *([_shorten_value(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    right = [isinstance(value, int | float) for value in rows[0].values()]
    for line in shown:
        cells = zip(line, widths, right, strict=True)
        yield "  ".join(f"{text:>{width}}" if number else f"{text:{width}}" for text, width, number in cells).rstrip()


def _shorten_value(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:.4g}"
    text = escape_unprintable(str(value))
    return text if len(text) <= MAX_CELL_CHARS else "…" + text[-(MAX_CELL_CHARS - 1) :]
