"""`torchwatt fleet`: many runs in one lake of Parquet, and their sums."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from torchwatt.audit.fleet import ROLLUPS, check_lake, open_lake, rollup, script
from torchwatt.audit.fleet.ingest import ingest, summary
from torchwatt.audit.lexical import escape
from torchwatt.core.errors import BundleError, ConfigError
from torchwatt.core.plain_text import printable
from torchwatt.disk.private import new_file
from torchwatt.views import DASH

if TYPE_CHECKING:
    import pyarrow as pa

FINDINGS = 1
WIDEST = 32


def add_parser(commands: Any) -> None:
    """Add the command's arguments."""
    fleet = commands.add_parser("fleet", help="many runs in one lake of Parquet, and their sums")
    doing = fleet.add_subparsers(dest="doing", required=True, metavar="ingest|rollup|verify|sql")
    add = doing.add_parser("ingest", help="add bundles to a lake; runs that are in it stay as they are")
    _lake(add)
    add.add_argument("places", metavar="DIR", nargs="+", help="a store, a folder of bundles, or a bundle")
    add.add_argument("--project", help="for all of them; default: the name of the folder around the bundles")
    add.add_argument("--samples", action="store_true", help="also copy the power curves")
    add.add_argument("--replace", action="store_true", help="replace a run that is there with other content")
    add.add_argument(
        "--shared", action="store_true", help="files get the umask's modes; default: only you can read them"
    )
    add.add_argument("--jobs", type=int, metavar="N", help="processes; default: one a CPU, at most 8")
    sums = doing.add_parser("rollup", help="energy, grams and rates; what must not be added stands apart")
    _lake(sums)
    sums.add_argument("--by", choices=list(ROLLUPS), default="month", help="default: month (within project)")
    sums.add_argument("--project", help="only this project")
    sums.add_argument("--month", metavar="YYYY-MM", help="only runs that began in this month (UTC)")
    sums.add_argument("--out", metavar="FILE", help="write FILE.csv or FILE.parquet; default: a table here")
    check = doing.add_parser("verify", help="are the lake's parts whole, and do its sums come out?")
    _lake(check)
    text = doing.add_parser("sql", help="print the views as SQL, to be piped into duckdb")
    _lake(text)


def _lake(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lake", metavar="LAKE", help="a folder, or an address such as s3://bucket/lake (NETWORK)")


def fleet(asked: argparse.Namespace, out: IO[str] | None = None) -> int:
    """Do what was asked; exit code 1 where bundles were refused or laws are broken.

    Raises:
        BundleError: The lake cannot be read or written.
        ConfigError: The arguments are impossible, or a package is missing.
    """
    return _DOING[asked.doing](asked, out or sys.stdout)


def _ingest(asked: argparse.Namespace, out: IO[str]) -> int:
    if asked.jobs is not None and asked.jobs < 1:
        raise ConfigError(f"--jobs {asked.jobs}: give 1 or more")
    found = ingest(
        open_lake(asked.lake, shared=asked.shared),
        asked.places,
        project=asked.project,
        samples=asked.samples,
        replace=asked.replace,
        jobs=asked.jobs,
    )
    for outcome in found.refused:
        print(f"refused {printable(outcome.directory)}: {printable(outcome.why)}", file=sys.stderr)
    for outcome in found.no_bundles:
        print(f"no bundle {printable(outcome.directory)}: {printable(outcome.why)}", file=sys.stderr)
    print(f"{printable(asked.lake)}: {summary(found.outcomes)}", file=out)
    return FINDINGS if found.refused else 0


def _rollup(asked: argparse.Namespace, out: IO[str]) -> int:
    target = None if asked.out is None else Path(asked.out)
    if target is not None and target.suffix not in {".csv", ".parquet"}:
        raise ConfigError(f"--out {asked.out}: give a name that ends in .csv or .parquet")
    found = rollup(open_lake(asked.lake), asked.by, asked.project, asked.month)
    if target is None:
        print("\n".join(_table(found)), file=out)
        return 0
    try:
        with new_file(target) as file:
            _write(found, file, target.suffix)
    except FileExistsError as error:
        raise BundleError(f"{target} exists already: name another file with --out, or move it") from error
    except OSError as error:
        raise BundleError(f"cannot write {target}: {error.strerror}") from error
    print(printable(str(target)), file=out)
    return 0


def _verify(asked: argparse.Namespace, out: IO[str]) -> int:
    broken = check_lake(open_lake(asked.lake))
    for one in broken:
        print(printable(str(one)), file=out)
    if not broken:
        print(f"OK: {printable(asked.lake)}", file=out)
    return FINDINGS if broken else 0


def _sql(asked: argparse.Namespace, out: IO[str]) -> int:
    print(script(open_lake(asked.lake)), file=out)
    return 0


_DOING: Mapping[str, Callable[[argparse.Namespace, IO[str]], int]] = {
    "ingest": _ingest,
    "rollup": _rollup,
    "verify": _verify,
    "sql": _sql,
}


def _write(table: pa.Table, file: Any, suffix: str) -> None:
    """Write full digits; empty is unknown, and no text starts a spreadsheet's formula."""
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        pq.write_table(table, file, compression="zstd")
        return
    import io

    wrapped = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(wrapped, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows([_cell(value) for value in row.values()] for row in table.to_pylist())
    wrapped.detach()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return escape(value) if isinstance(value, str) else repr(value)


def _table(table: pa.Table) -> Iterator[str]:
    rows = table.to_pylist()
    if not rows:
        yield "no runs"
        return
    shown = [table.column_names, *([_short(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    right = [isinstance(value, int | float) for value in rows[0].values()]
    for line in shown:
        cells = zip(line, widths, right, strict=True)
        yield "  ".join(f"{text:>{width}}" if number else f"{text:{width}}" for text, width, number in cells).rstrip()


def _short(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:.4g}"
    text = printable(str(value))
    return text if len(text) <= WIDEST else "…" + text[-(WIDEST - 1) :]
