"""Write a bundle: a folder of CSV files that appears whole or not at all, and is made once."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterable
from hashlib import sha256
from io import StringIO
from itertools import pairwise
from pathlib import Path
from secrets import token_hex

from torchwatt.audit.lexical import to_cell
from torchwatt.audit.rows import rows_by_table
from torchwatt.audit.schema import TABLES, Row, Table, Value
from torchwatt.core.errors import BundleError
from torchwatt.core.report import Report

MANIFEST = "MANIFEST.sha256"


def write_bundle(report: Report, directory: str | os.PathLike[str]) -> Path:
    """Write the report as a bundle and return the folder.

    The files are written to a hidden folder beside it, flushed to the disk and renamed, so a crash leaves
    no half bundle under the name. `MANIFEST.sha256` can be checked with `sha256sum -c`.

    Raises:
        BundleError: The folder exists and is not empty, cannot be written, or the report holds a number
            that is not finite.
    """
    target = Path(directory).absolute()
    _refuse_existing(target)
    files = {f"{table.name}.csv": table_bytes(table, rows) for table, rows in _tables(report)}
    files[MANIFEST] = _manifest(files)
    hidden = target.with_name(f".{target.name}.{token_hex(4)}.part")
    try:
        hidden.mkdir(parents=True)
        for name, content in files.items():
            _write(hidden / name, content)
        hidden.rename(target)
    except OSError as error:
        raise BundleError(f"cannot write the bundle {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return target


def _refuse_existing(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists():
        raise BundleError(
            f"{target} exists and is not an empty folder; a bundle is made once: "
            "give another folder, or move this one away"
        )


def _tables(report: Report) -> Iterable[tuple[Table, list[Row]]]:
    rows = rows_by_table(report)
    return ((table, rows[table.name]) for table in TABLES)


def table_bytes(table: Table, rows: Iterable[Row]) -> bytes:
    """Return one CSV file: RFC 4180 but with LF, UTF-8 without BOM, rows in the order of the key.

    Raises:
        BundleError: A value does not fit its column, or two rows have the same key.
    """
    buffer = StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n", strict=True)
    writer.writerow(table.header)
    ordered = sorted(rows, key=lambda row: _key(table, row))
    _refuse_twins(table, ordered)
    writer.writerows(_cells(table, row) for row in ordered)
    return buffer.getvalue().encode()


def _key(table: Table, row: Row) -> tuple[tuple[float, str], ...]:
    return tuple(_sortable(row.get(name)) for name in table.key)


def _sortable(value: Value) -> tuple[float, str]:
    return (value, "") if isinstance(value, int | float) else (0, str(value))


def _refuse_twins(table: Table, ordered: list[Row]) -> None:
    keys = [tuple(row.get(name) for name in table.key) for row in ordered]
    for before, after in pairwise(keys):
        if before == after:
            raise BundleError(f"{table.name}: two rows for {dict(zip(table.key, after, strict=True))}")


def _cells(table: Table, row: Row) -> list[str]:
    cells = []
    for column in table.columns:
        try:
            cells.append(to_cell(row.get(column.name), column))
        except BundleError as error:
            raise BundleError(f"{table.name} {_key(table, row)}: {error}") from error
    return cells


def _manifest(files: dict[str, bytes]) -> bytes:
    lines = (f"{sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items()))
    return "".join(lines).encode()


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
