"""DuckDB queries over a lake; the SQL is in the package's `sql` folder."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING, Any

from torchwatt.audit.counted_run import RunShare, run_of_text
from torchwatt.audit.deduplication import count_once
from torchwatt.audit.fleet.lake import Lake, LocalFiles, StoredFiles, run_of_path
from torchwatt.audit.fleet.lake_tables import TABLES, batches_of, lake_arrow_schema
from torchwatt.core.errors import BundleError, ConfigError, install_command

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


ROLLUPS = {
    "project": "v_project",
    "month": "v_month",
    "model": "v_model",
    "layer": "v_layer_month",
    "device": "v_device_month",
    "scope2": "v_scope2_month",
}
COUNTS = "lake_counts"
# No network access, not even for extensions: object stores are read through pyarrow.
_OFFLINE: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}


def connect(lake: Lake, *views: str) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection with the tables of the lake (`lake_run`, ...) and the views of the package.

    Args:
        lake: Its runs.
        views: The needed views; DuckDB lists the files again for each. Default is all.

    Raises:
        BundleError: The lake does not exist, it is empty, or a part of it is damaged.
        ConfigError: DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError as error:
        raise ConfigError(f"roll-ups need DuckDB: {install_command('duckdb')}") from error
    if not lake.exists():
        raise BundleError(f"{lake.name} is no lake: make one with `torchwatt fleet ingest {lake.name} RUNS`")
    connection = duckdb.connect(config=_OFFLINE)
    names = _with_sources(views or (*ROLLUPS.values(), *(f"lake_{table}" for table in TABLES)))
    for table in TABLES:
        if f"lake_{table}" in names:
            _add_table(connection, lake, table)
    try:
        if COUNTS in names:
            connection.register(COUNTS, _counts(connection))
        for name, statement in _views().items():
            if name in names:
                connection.execute(statement)
    except duckdb.Error as error:
        raise BundleError(f"{lake.name} cannot be read: {error}; see `torchwatt fleet verify`") from error
    return connection


def rollup(lake: Lake, by: str, project: str | None = None, month: str | None = None) -> pa.Table:
    """Return sums of runs, grouped by one of `ROLLUPS`.

    Args:
        lake: Its runs.
        by: project, month, model, layer, device or scope2.
        project: Only this one.
        month: Only this one, such as 2026-11 (the month in which a run began, UTC).

    Raises:
        BundleError: The lake does not exist, or a part of it is damaged.
        ConfigError: The roll-up is unknown, or DuckDB is not installed.
    """
    if by not in ROLLUPS:
        raise ConfigError(f"no roll-up by {by!r}: there are {', '.join(ROLLUPS)}")
    if month is not None and by == "project":
        raise ConfigError("a roll-up by project is over all months: give --by month")
    filters = {name: value for name, value in (("project", project), ("month", month)) if value is not None}
    where = " AND ".join(f"{name} = ?" for name in filters) or "true"
    with connect(lake, ROLLUPS[by]) as connection:
        import duckdb

        try:
            # The view's name is from `ROLLUPS`; user input is passed as parameters.
            query = f"SELECT * FROM {ROLLUPS[by]} WHERE {where}"  # noqa: S608
            return connection.sql(query, params=list(filters.values())).to_arrow_table()
        except duckdb.Error as error:
            raise BundleError(f"{lake.name} cannot be read: {error}; see `torchwatt fleet verify`") from error


def sql_file(name: str) -> str:
    """Return one of the package's SQL files."""
    return (files("torchwatt.audit.fleet") / "sql" / f"{name}.sql").read_text(encoding="utf-8")


def statements(text: str) -> Iterator[tuple[str, str]]:
    """Yield (name, statement): the name is that in its comment (`-- NAME: why`), or of the view or macro it creates."""
    for statement in text.split(";\n"):
        named = re.search(r"^-- ([A-Z]+): |^CREATE OR REPLACE (?:VIEW|MACRO) (\w+)", statement, re.MULTILINE)
        if named:
            yield named[1] or named[2], statement


@cache
def _views() -> dict[str, str]:
    return dict(statements(sql_file("facts"))) | dict(statements(sql_file("rollups")))


def _with_sources(views: Iterable[str]) -> set[str]:
    """Return the names of views and of their direct and indirect sources."""
    names: set[str] = set()
    waiting = list(views)
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            waiting += re.findall(r"\b(?:lake_\w+|v_\w+|run_rollup)", _views().get(name, ""))
            waiting += ["lake_run"] if name == COUNTS else []
    return names


def views_script(lake: Lake) -> str:
    """Return the SQL that creates the views in any DuckDB, for a lake in a folder.

    Raises:
        ConfigError: The lake is in an object store, for which DuckDB needs its httpfs and credentials.
    """
    if not isinstance(lake.files, LocalFiles):
        raise ConfigError("the script is for a lake in a folder; see docs/fleet.md for object stores")
    tables = [
        text if lake.parts(name.removeprefix("lake_")) else _empty_table_sql(name.removeprefix("lake_"))
        for name, text in statements(sql_file("lake"))
    ]
    return "\n".join(
        [
            f"SET VARIABLE lake = {_text_literal(_escape_glob(str(lake.files.root)))};",
            *(f"{text};" for text in tables),
            _counts_sql(lake),
            sql_file("facts"),
            sql_file("rollups"),
        ]
    )


def _add_table(connection: duckdb.DuckDBPyConnection, lake: Lake, table: str) -> None:
    """Create `lake_<table>` from the files, or empty if no run has such rows."""
    import duckdb

    try:
        if isinstance(lake.files, LocalFiles):
            lake.parts(table)  # raises an error for links, which DuckDB would follow
            connection.execute("SET VARIABLE lake = ?", [_escape_glob(str(lake.files.root))])
            connection.execute(dict(statements(sql_file("lake")))[f"lake_{table}"])
            return
        if isinstance(lake.files, StoredFiles) and lake.parts(table):
            connection.register(f"lake_{table}", _dataset(lake.files, table))
            return
    except duckdb.IOException as error:
        if "No files found" not in str(error):
            raise BundleError(f"{lake.name} cannot be read: {error}; see `torchwatt fleet verify`") from error
    except duckdb.Error as error:
        raise BundleError(f"{lake.name} cannot be read: {error}; see `torchwatt fleet verify`") from error
    if table == "run":
        raise BundleError(f"{lake.name} holds no runs")
    connection.register(f"lake_{table}", _with_partitions(table).empty_table())


def _counts(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """Return `lake_counts`: `count_once` over all runs, one row per run (`device_id` empty) and per device."""
    import pyarrow as pa

    # A run that two processes added to two projects is used once, as in `v_run`.
    runs = dict(connection.execute("SELECT run_id, lake_metered FROM lake_run ORDER BY project DESC").fetchall())
    try:
        shares = count_once([run_of_text(metered, run_id) for run_id, metered in runs.items()])
    except BundleError as error:
        raise BundleError(f"the lake's `run` is damaged: {error}; see `torchwatt fleet verify`") from error
    rows = [row for run_id, share in sorted(shares.items()) for row in _count_rows(run_id, share)]
    fields = [("run_id", pa.string()), ("device_id", pa.string()), ("adds", pa.string()), ("share", pa.float64())]
    fields += [("energy_j", pa.float64()), ("seconds", pa.float64()), ("others", pa.list_(pa.string()))]
    fields += [("identified", pa.bool_())]
    return pa.Table.from_pylist(rows, pa.schema(fields))


def _count_rows(run_id: str, share_of_run: RunShare) -> Iterator[dict[str, object]]:
    row = {
        "run_id": run_id,
        "adds": share_of_run.state,
        "others": list(share_of_run.neighbours),
        "seconds": share_of_run.seconds,
    }
    row["identified"] = share_of_run.identified
    yield {**row, "device_id": "", "share": share_of_run.share, "energy_j": share_of_run.energy_j}
    for device_id, share in sorted(share_of_run.shares.items()):
        yield {**row, "device_id": device_id, "share": share, "energy_j": None}


def _counts_sql(lake: Lake) -> str:
    """Return SQL that creates `lake_counts` with the current results: `count_once` has no SQL form."""
    with connect(lake, COUNTS, "lake_run") as connection:
        rows = connection.table(COUNTS).fetchall()
    lines = ",\n".join(f"({', '.join(map(_literal, row))})" for row in rows)
    columns = "run_id, device_id, adds, share, energy_j, seconds, others, identified"
    head = (
        "-- What each run adds beside all others of this lake. After an ingest print this anew: until then the new\n"
        "-- runs are 'not compared'.\n"
    )
    # Cells are written as literals.
    return f"{head}CREATE OR REPLACE TABLE {COUNTS} AS SELECT * FROM (VALUES\n{lines}\n) AS counts({columns});"  # noqa: S608


def _literal(value: object) -> str:
    if value is None:
        return "NULL::DOUBLE"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]::VARCHAR[]"
    return f"{value!r}::DOUBLE" if isinstance(value, float) else _text_literal(str(value))


def _text_literal(text: str) -> str:
    """Return a text as an SQL expression of visible characters: a terminal may show it before a database reads it."""
    pieces = []
    for visible, group in groupby(text, str.isprintable):
        run = "".join(group)
        pieces += ["'" + run.replace("'", "''") + "'"] if visible else [f"chr({ord(char)})" for char in run]
    return f"({' || '.join(pieces)})" if len(pieces) > 1 else "".join(pieces) or "''"


def _empty_table_sql(table: str) -> str:
    """Return SQL that creates `lake_<table>` without rows: no run of the lake has any."""
    import duckdb

    with duckdb.connect(config=_OFFLINE) as connection:
        empty = connection.from_arrow(_with_partitions(table).empty_table())
        columns = ", ".join(f"{name} {kind}" for name, kind in zip(empty.columns, empty.types, strict=True))
    return f"CREATE OR REPLACE TABLE lake_{table} ({columns})"


def _escape_glob(path: str) -> str:
    """Escape the glob characters of a folder's path."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def _with_partitions(table: str) -> pa.Schema:
    import pyarrow as pa

    return lake_arrow_schema(table).append(pa.field("project", pa.string())).append(pa.field("date", pa.date32()))


def _dataset(stored: StoredFiles, table: str) -> pa.dataset.Dataset:
    import pyarrow as pa
    from pyarrow import dataset

    keys = pa.schema([("project", pa.string()), ("date", pa.date32())])
    return dataset.dataset(
        f"{stored.root}/{table}",
        filesystem=stored.system,
        format="parquet",
        schema=_with_partitions(table),
        partitioning=dataset.partitioning(keys, flavor="hive"),
    )


SAMPLE = "sample"
MAX_FAULTS = 1000  # findings of one check


@dataclass(frozen=True, slots=True)
class LakeFault:
    """A check that a run fails."""

    law: str
    run_id: str
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"{self.law} {self.run_id}: expected {self.expected}, found {self.actual}"


def check_lake(lake: Lake) -> tuple[LakeFault, ...]:
    """Return the damaged files; if none is damaged, the failed checks.

    Raises:
        BundleError: The lake does not exist.
        ConfigError: DuckDB is not installed.
    """
    if damaged := tuple(_damaged_parts(lake)) if lake.exists() else ():
        return damaged
    with connect(lake, *(f"lake_{table}" for table in TABLES)) as connection:
        faults = [
            LakeFault(law, *map(str, row))
            for law, statement in statements(sql_file("laws"))
            for row in connection.execute(statement).fetchmany(MAX_FAULTS)
        ]
        copies = connection.execute("SELECT run_id, lake_metered FROM lake_run").fetchall()
        devices = connection.execute(
            "SELECT run_id, device_id, energy_j, coalesce(device_key, ''), coalesce(machine_key, '') FROM lake_device "
            "WHERE counted AND energy_j IS NOT NULL ORDER BY ALL"
        ).fetchall()
        samples = connection.execute("SELECT run_id, project, lake_sample_sha256 FROM lake_run").fetchall()
    return (*faults, *_check_metered(copies, devices), *_check_samples(lake, samples))


def _damaged_parts(lake: Lake) -> Iterator[LakeFault]:
    import pyarrow as pa

    for table in (*TABLES, SAMPLE):
        for path in lake.parts(table):
            try:
                for _ in batches_of(lake.files.read(path) or b""):
                    pass
            except (pa.ArrowException, OSError) as error:
                yield LakeFault("DAMAGED", path, "a Parquet file", f"{error}; ingest its bundle again with --replace")


def _check_metered(copies: Sequence[tuple[str, str]], devices: Sequence[Sequence[Any]]) -> Iterator[LakeFault]:
    """Compare `lake_metered`, the input of `count_once`, with the rows of `device`."""
    by_run: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for run_id, *cells in devices:
        by_run[run_id].append(tuple(cells))
    for run_id, metered in dict(copies).items():
        try:
            devices_metered = sorted((d.device_id, d.energy_j, d.key, d.machine) for d in run_of_text(metered).devices)
        except BundleError as error:
            yield LakeFault("METERED", run_id, "what its devices metered", str(error))
            continue
        expected = sorted(set(by_run[run_id]))
        if devices_metered != expected:
            yield LakeFault("METERED", run_id, str(expected), str(devices_metered))


def _check_samples(lake: Lake, runs: Sequence[tuple[str, str, str | None]]) -> Iterator[LakeFault]:
    """Compare the sample files with their hashes in `run`."""
    listed = {(project, run_id): digest for run_id, project, digest in runs}
    paths = {run_of_path(path): path for path in lake.files.parts(SAMPLE)}
    for run, path in paths.items():
        digest_found = sha256(lake.files.read(path) or b"").hexdigest()
        if listed.get(run) != digest_found:
            yield LakeFault("SAMPLE", run[1], f"sha256 {listed.get(run)}", f"{digest_found} in {path}")
    for run, digest in listed.items():
        if digest is not None and run not in paths:
            yield LakeFault("SAMPLE", run[1], f"sha256 {digest}", "no part")
