"""Definition of the tables and columns of a bundle. Add columns at the end, never reorder.

The headers and checks of the writer, `datapackage.json`, `csvw-metadata.json`, the Parquet types, `docs/schema.md` and
the checks of `verify` are generated from it. Units are UCUM. Empty is missing, never 0. Energies are in joules, except
in `impact`; intervals `_lo_`/`_hi_` are 90 %, `_u_` is a standard uncertainty (k=1). The name of an interval states its
basis: `_systematic_` is the range over meters for this run, the others are the range over repeats of the run. The key
of a table makes rows unique and gives their order. A layer may be called `NA`, so pandas reads these
files with `keep_default_na=False, na_values=[""]`.
"""

from __future__ import annotations

from torchwatt.audit.schema.energy_tables import FACTOR, HOURLY, IMPACT, LAYER, RANK, RANK_LAYER, SAMPLE, WINDOW
from torchwatt.audit.schema.run_tables import DECLARED, DEVICE, EVENT, RUN
from torchwatt.audit.schema.table_schema import Column, ColumnType, Row, Table, Value

__all__ = ["DECLARED", "SCHEMA_VERSION", "TABLES", "TABLE_BY_NAME", "Column", "ColumnType", "Row", "Table", "Value"]

SCHEMA_VERSION = "2.1.0"
TABLES: tuple[Table, ...] = (RUN, DEVICE, WINDOW, LAYER, HOURLY, SAMPLE, FACTOR, IMPACT, EVENT, RANK, RANK_LAYER)
TABLE_BY_NAME = {table.name: table for table in TABLES}
