"""The index of a store: SQLite, one row per bundle; it can be rebuilt from the bundles."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields, replace
from math import isfinite
from pathlib import Path
from secrets import token_hex
from stat import S_IMODE

from torchwatt.audit.bundle import Bundle, number, text, timestamp
from torchwatt.audit.counted_run import RunShare, RunTotals, SumOfRuns, run_of_bundle, run_of_text, sum_runs, text_of
from torchwatt.audit.deduplication import count_once
from torchwatt.audit.exports.workbook import totals_of_bundle
from torchwatt.core.errors import BundleError
from torchwatt.disk.path_safety import path_kind
from torchwatt.disk.private_files import create_file

INDEX_VERSION = 2


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One row of the index; times are UTC as text, None is unknown."""

    run_id: str
    project: str
    folder: str  # inside the project's folder
    name: str
    status: str
    started_at: str
    duration_s: float | None
    boundary: str
    energy_j: float | None
    provenance: str
    unit: str
    units: float
    location_g: float | None
    market_g: float | None
    basis: str
    metered: str  # JSON of its metered devices and times, as `counted_run.text_of` writes it

    @property
    def key(self) -> str:
        """Return a key that is unique in the store: `project/run_id`."""
        return f"{self.project}/{self.run_id}"

    @property
    def month(self) -> str:
        """Return the month of the run's start, such as 2026-11."""
        return self.started_at[:7]

    @property
    def counted(self) -> RunTotals:
        """Return the totals for sums."""
        return RunTotals(
            self.run_id,
            self.boundary,
            self.energy_j,
            self.unit,
            self.units,
            self.location_g,
            self.market_g,
            self.basis,
            self.key,
        )


_COLUMNS = tuple(field.name for field in fields(StoredRun))


def index_row(bundle: Bundle, project: str) -> StoredRun:
    """Return the row of a bundle."""
    run, adds = bundle.run, totals_of_bundle(bundle)
    return StoredRun(
        run_id=adds.run_id,
        project=project,
        folder=bundle.directory.name,
        name=text(run, "name"),
        status=text(run, "status"),
        started_at=f"{timestamp(run, 'started_at'):%Y-%m-%dT%H:%M:%SZ}",
        duration_s=number(run, "duration_s"),
        boundary=adds.boundary,
        energy_j=adds.energy_j,
        provenance=text(run, "energy_it_provenance"),
        unit=adds.unit,
        units=adds.units,
        location_g=adds.location_g,
        market_g=adds.market_g,
        basis=adds.basis,
        metered=text_of(run_of_bundle(bundle)),
    )


def write_index(path: Path, runs: Iterable[StoredRun]) -> None:
    """Write a new index and replace the old one atomically.

    Raises:
        BundleError: It cannot be written; the old one is as before.
    """
    fresh = path.with_name(f".{path.name}.{token_hex(4)}.new")
    try:
        create_file(fresh).close()  # SQLite would create it with the umask's mode
        with _open(fresh) as database:
            database.execute(f"CREATE TABLE run ({', '.join(_COLUMNS)}, PRIMARY KEY (project, run_id))")
            database.execute(f"PRAGMA user_version = {INDEX_VERSION}")
            _insert(database, runs)
        if path_kind(path) == "file":
            fresh.chmod(S_IMODE(path.stat().st_mode))  # keep the mode of a shared store
        fresh.replace(path)
    except OSError as error:
        raise BundleError(f"cannot write the index {path}: {error.strerror}") from error
    finally:
        for part in (fresh, fresh.with_name(f"{fresh.name}-journal")):
            part.unlink(missing_ok=True)


def add_to_index(path: Path, run: StoredRun) -> None:
    """Add one run."""
    with _open(path) as database:
        _insert(database, [run])


def read_index(path: Path) -> tuple[StoredRun, ...] | None:
    """Return the runs in order of time; None if the index is missing, damaged or of another version."""
    if path_kind(path) != "file":
        return None
    try:
        with _open(path) as database:
            if database.execute("PRAGMA user_version").fetchone() != (INDEX_VERSION,):
                return None
            # `run` must be a table: a view of that name would execute untrusted SQL.
            if database.execute("SELECT type FROM sqlite_master WHERE name = 'run'").fetchall() != [("table",)]:
                return None
            rows = database.execute("SELECT * FROM run ORDER BY started_at, run_id").fetchall()
        return tuple(_check_types(StoredRun(*row)) for row in rows)
    except (sqlite3.Error, BundleError, TypeError, OverflowError, ValueError):
        return None


def _check_types(run: StoredRun) -> StoredRun:
    """Check that each value is of its column's type, which SQLite does not enforce.

    Raises:
        TypeError: A value is of another type; the caller then rebuilds the index.
        BundleError: `metered` cannot be parsed; the caller does the same.
    """
    for field in fields(StoredRun):
        value = getattr(run, field.name)
        number = isinstance(value, int | float) and isfinite(value)
        if not (
            isinstance(value, str) if field.type == "str" else number or (value is None and "None" in str(field.type))
        ):
            raise TypeError(f"{field.name} holds {value!r}")
    run_of_text(run.metered)
    return run


def _insert(database: sqlite3.Connection, runs: Iterable[StoredRun]) -> None:
    marks = ", ".join("?" * len(_COLUMNS))
    database.executemany(f"INSERT INTO run VALUES ({marks})", [astuple(run) for run in runs])  # noqa: S608  # only marks


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("PRAGMA trusted_schema = OFF")
            yield database
    except sqlite3.DatabaseError as error:
        raise BundleError(f"cannot use the index {path}: {error}") from error


@dataclass(frozen=True, slots=True)
class MonthlySum:
    """Sums of the runs of one project in one month."""

    project: str
    month: str
    total: SumOfRuns


def shares_of_runs(runs: Iterable[StoredRun]) -> dict[str, RunShare]:
    """Return the result of `count_once` over these runs, by `StoredRun.key`."""
    return count_once(run_of_text(run.metered, run.key) for run in runs)


def monthly_sums(runs: Iterable[StoredRun], among: Mapping[str, RunShare] | None = None) -> tuple[MonthlySum, ...]:
    """Add up runs by project and month; `SumOfRuns.refused` lists what was not added.

    Args:
        runs: The runs to add up.
        among: `shares` of all runs of the store; by default of these runs.
    """
    chosen = list(runs)
    share_of_run = shares_of_runs(chosen) if among is None else among
    groups: dict[tuple[str, str], list[RunTotals]] = defaultdict(list)
    for run in chosen:
        groups[run.project, run.month].append(replace(run.counted, share=share_of_run[run.key]))
    return tuple(MonthlySum(*key, sum_runs(counted)) for key, counted in sorted(groups.items()))
