"""`fleet verify`: checks that the lake's files can be read and its tables agree with each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from torchwatt.audit.exports.counted_runs import run_of_text
from torchwatt.audit.fleet.arrow import batches_of
from torchwatt.audit.fleet.columns import TABLES
from torchwatt.audit.fleet.engine import connect, sql_file, statements
from torchwatt.audit.fleet.lake import Lake
from torchwatt.audit.fleet.paths import run_of
from torchwatt.core.errors import BundleError

SAMPLE = "sample"
MOST = 1000  # findings of one check


@dataclass(frozen=True, slots=True)
class Broken:
    """A check that a run fails."""

    law: str
    run_id: str
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"{self.law} {self.run_id}: expected {self.expected}, found {self.actual}"


def check_lake(lake: Lake) -> tuple[Broken, ...]:
    """Return the damaged files; if none is damaged, the failed checks.

    Raises:
        BundleError: The lake does not exist.
        ConfigError: DuckDB is not installed.
    """
    if damaged := tuple(_damaged(lake)) if lake.exists() else ():
        return damaged
    with connect(lake, *(f"lake_{table}" for table in TABLES)) as connection:
        faults = [
            Broken(law, *map(str, row))
            for law, statement in statements(sql_file("laws"))
            for row in connection.execute(statement).fetchmany(MOST)
        ]
        copies = connection.execute("SELECT run_id, lake_metered FROM lake_run").fetchall()
        devices = connection.execute(
            "SELECT run_id, device_id, energy_j, coalesce(device_key, ''), coalesce(machine_key, '') FROM lake_device "
            "WHERE counted AND energy_j IS NOT NULL ORDER BY ALL"
        ).fetchall()
        samples = connection.execute("SELECT run_id, project, lake_sample_sha256 FROM lake_run").fetchall()
    return (*faults, *_metered(copies, devices), *_sampled(lake, samples))


def _damaged(lake: Lake) -> Iterator[Broken]:
    import pyarrow as pa

    for table in (*TABLES, SAMPLE):
        for path in lake.parts(table):
            try:
                for _ in batches_of(lake.files.read(path) or b""):
                    pass
            except (pa.ArrowException, OSError) as error:
                yield Broken("DAMAGED", path, "a Parquet file", f"{error}; ingest its bundle again with --replace")


def _metered(copies: Sequence[tuple[str, str]], devices: Sequence[Sequence[Any]]) -> Iterator[Broken]:
    """Compare `lake_metered`, the input of `count_once`, with the rows of `device`."""
    by_run: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for run_id, *cells in devices:
        by_run[run_id].append(tuple(cells))
    for run_id, metered in dict(copies).items():
        try:
            devices_metered = sorted((d.device_id, d.energy_j, d.key, d.machine) for d in run_of_text(metered).devices)
        except BundleError as error:
            yield Broken("METERED", run_id, "what its devices metered", str(error))
            continue
        expected = sorted(set(by_run[run_id]))
        if devices_metered != expected:
            yield Broken("METERED", run_id, str(expected), str(devices_metered))


def _sampled(lake: Lake, runs: Sequence[tuple[str, str, str | None]]) -> Iterator[Broken]:
    """Compare the sample files with their hashes in `run`."""
    listed = {(project, run_id): digest for run_id, project, digest in runs}
    paths = {run_of(path): path for path in lake.files.parts(SAMPLE)}
    for run, path in paths.items():
        digest_found = sha256(lake.files.read(path) or b"").hexdigest()
        if listed.get(run) != digest_found:
            yield Broken("SAMPLE", run[1], f"sha256 {listed.get(run)}", f"{digest_found} in {path}")
    for run, digest in listed.items():
        if digest is not None and run not in paths:
            yield Broken("SAMPLE", run[1], f"sha256 {digest}", "no part")
