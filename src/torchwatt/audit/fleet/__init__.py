"""The lake of many runs: Parquet files that any query engine can read, and sums by DuckDB.

`<lake>/<table>/project=<name>/date=<YYYY-MM-DD>/part-<run_id>.parquet`: the tables of the bundles with the columns of
the schema, and a few more in `run`, `layer` and `impact` (see `columns`), so that common sums open one table.
"""

from __future__ import annotations

from torchwatt.audit.fleet.check import Broken, check_lake
from torchwatt.audit.fleet.engine import ROLLUPS, connect, rollup, script
from torchwatt.audit.fleet.ingest import Ingested, ingest
from torchwatt.audit.fleet.lake import Lake, open_lake

__all__ = [
    "ROLLUPS",
    "Broken",
    "Ingested",
    "Lake",
    "check_lake",
    "connect",
    "ingest",
    "open_lake",
    "rollup",
    "script",
]
