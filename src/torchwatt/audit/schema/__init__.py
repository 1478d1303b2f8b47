"""The tables and columns of a bundle; the one place that knows them. Add columns at the end, never reorder.

From it come the header and the checks of the writer, `datapackage.json`, `csvw-metadata.json`, the Parquet types,
`docs/schema.md` and what `verify` asks. Units are UCUM. Empty is missing, never 0. Joules everywhere but in `impact`;
intervals `_lo_`/`_hi_` are 90 %, `_u_` is a standard uncertainty (k=1). An interval has one basis, which its name says:
`_systematic_` is what another meter would say of this run, any other what another repeat of the run would give. A key
names the columns that make a row unique and give the order of rows. A layer may be called `NA`, so pandas reads these
files with `keep_default_na=False, na_values=[""]`.
"""

from __future__ import annotations

from torchwatt.audit.schema.carbon import FACTOR, IMPACT
from torchwatt.audit.schema.device import DEVICE
from torchwatt.audit.schema.energy import HOURLY, LAYER, SAMPLE, WINDOW
from torchwatt.audit.schema.event import EVENT
from torchwatt.audit.schema.model import Column, ColumnType, Row, Table, Value
from torchwatt.audit.schema.rank import RANK, RANK_LAYER
from torchwatt.audit.schema.run import DECLARED, RUN

__all__ = ["DECLARED", "SCHEMA_VERSION", "TABLES", "TABLE_BY_NAME", "Column", "ColumnType", "Row", "Table", "Value"]

SCHEMA_VERSION = "2.1.0"
TABLES: tuple[Table, ...] = (RUN, DEVICE, WINDOW, LAYER, HOURLY, SAMPLE, FACTOR, IMPACT, EVENT, RANK, RANK_LAYER)
TABLE_BY_NAME = {table.name: table for table in TABLES}
