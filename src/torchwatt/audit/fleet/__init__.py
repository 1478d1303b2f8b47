"""The lake of many runs: Parquet files that any query engine can read, and sums by DuckDB.

`<lake>/<table>/project=<name>/date=<YYYY-MM-DD>/part-<run_id>.parquet`: the tables of the bundles with the columns of
the schema, and a few more in `run`, `layer` and `impact` (see `columns`), so that common sums open one table.
"""

from __future__ import annotations

from torchwatt.audit.fleet.ingestion import IngestResult, ingest
from torchwatt.audit.fleet.lake import Lake, open_lake
from torchwatt.audit.fleet.lake_queries import ROLLUPS, LakeFault, check_lake, connect, rollup, views_script

__all__ = [
    "ROLLUPS",
    "IngestResult",
    "Lake",
    "LakeFault",
    "check_lake",
    "connect",
    "ingest",
    "open_lake",
    "rollup",
    "views_script",
]
