"""`fleet verify`: do the lake's sums come out, and are its parts whole?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from torchwatt.audit.fleet.columns import TABLES
from torchwatt.audit.fleet.engine import connect, sql_file, statements
from torchwatt.audit.fleet.lake import Lake
from torchwatt.audit.inside import PARQUET_LIMITS, most_rows

MOST = 1000  # findings of one law
_BATCH = 1 << 16  # rows


@dataclass(frozen=True, slots=True)
class Broken:
    """A law that a run breaks."""

    law: str
    run_id: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.law} {self.run_id}: expected {self.expected}, found {self.found}"


def check_lake(lake: Lake) -> tuple[Broken, ...]:
    """Return what does not hold: damaged files; where all can be read, also what does not add up.

    Raises:
        BundleError: There is no such lake.
        ConfigError: DuckDB is not installed.
    """
    damaged = tuple(_damaged(lake)) if lake.exists() else ()
    if damaged:
        return damaged
    with connect(lake) as connection:
        return tuple(
            Broken(law, *map(str, row))
            for law, statement in statements(sql_file("laws"))
            for row in connection.execute(statement).fetchmany(MOST)
        )


def _read(content: bytes) -> None:
    """Read every row of a part, a batch at a time.

    Raises:
        OSError: It claims more rows than its bytes can hold.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(BytesIO(content), **PARQUET_LIMITS)
    if file.metadata.num_rows > most_rows(len(content)):
        raise OSError(f"{file.metadata.num_rows} rows are more than {len(content)} bytes can hold")
    for _ in file.iter_batches(_BATCH):
        pass


def _damaged(lake: Lake) -> Iterator[Broken]:
    import pyarrow as pa

    for table in TABLES:
        for path in lake.parts(table):
            try:
                _read(lake.files.read(path) or b"")
            except (pa.ArrowException, OSError) as error:
                yield Broken("DAMAGED", path, "a Parquet file", f"{error}; ingest its bundle again with --replace")
