"""Every table as Parquet, with the types, units and descriptions of the schema."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from torchwatt.audit.reader import Bundle
from torchwatt.audit.schema import SCHEMA_VERSION, TABLES, Column, Table
from torchwatt.core.errors import BundleError

if TYPE_CHECKING:
    import pyarrow as pa


def parquet_files(bundles: Sequence[Bundle]) -> dict[str, bytes]:
    """Return one file a table; the samples are in it already where the bundle has them as Parquet.

    Raises:
        BundleError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise BundleError("Parquet needs pyarrow: pip install pyarrow") from error
    files: dict[str, bytes] = {}
    for table in TABLES:
        if table.format == "csv":
            buffer = BytesIO()
            pq.write_table(_arrow(table, bundles), buffer, compression="zstd")
            files[f"{table.name}.parquet"] = buffer.getvalue()
    return files


def _arrow(table: Table, bundles: Sequence[Bundle]) -> pa.Table:
    import pyarrow as pa

    fields = [_field(column) for column in table.columns]
    schema = pa.schema(fields, metadata={"schema_version": SCHEMA_VERSION, "description": table.description})
    rows = [row for bundle in bundles for row in bundle[table.name]]
    return pa.Table.from_pydict({name: [row[name] for row in rows] for name in table.header}, schema=schema)


def _field(column: Column) -> pa.Field:
    import pyarrow as pa

    types = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
    arrow = types.get(column.type, pa.timestamp("us", "UTC"))
    metadata = {"unit": column.unit, "description": column.description}
    return pa.field(column.name, arrow, nullable=not column.required, metadata=metadata)
