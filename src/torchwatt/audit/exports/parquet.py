"""Exports every table as Parquet, with the types, units and descriptions of the schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from torchwatt.audit.inside import content_of, is_own
from torchwatt.audit.reader import Bundle
from torchwatt.audit.schema import SCHEMA_VERSION, TABLES, Column, Table
from torchwatt.core.errors import BundleError
from torchwatt.core.extras import install_command

if TYPE_CHECKING:
    import pyarrow as pa


def parquet_files(bundles: Sequence[Bundle]) -> dict[str, bytes]:
    """Return one file per table, with all runs, and the unchanged sample file of each bundle.

    Raises:
        BundleError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise BundleError(f"Parquet needs pyarrow: {install_command('pyarrow')}") from error
    files: dict[str, bytes] = {}
    for table in TABLES:
        if table.format == "csv":
            buffer = BytesIO()
            pq.write_table(_arrow(table, bundles), buffer, compression="zstd")
            files[f"{table.name}.parquet"] = buffer.getvalue()
    return files | dict(_samples(bundles))


def _samples(bundles: Sequence[Bundle]) -> Iterator[tuple[str, bytes]]:
    for bundle in bundles:
        run_id = "" if len(bundles) == 1 else f"-{bundle.run['run_id']}"
        for suffix in ("parquet", "csv.gz"):
            path = bundle.directory / f"sample.{suffix}"
            if is_own(path):
                yield f"sample{run_id}.{suffix}", content_of(path)


def _arrow(table: Table, bundles: Sequence[Bundle]) -> pa.Table:
    import pyarrow as pa

    fields = [arrow_field(column) for column in table.columns]
    schema = pa.schema(fields, metadata={"schema_version": SCHEMA_VERSION, "description": table.description})
    rows = [row for bundle in bundles for row in bundle[table.name]]
    return pa.Table.from_pydict({name: [row[name] for row in rows] for name in table.header}, schema=schema)


def arrow_field(column: Column) -> pa.Field:
    """Return the type, unit and description of a column."""
    import pyarrow as pa

    types = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
    arrow = types.get(column.type, pa.timestamp("us", "UTC"))
    metadata = {"unit": column.unit, "description": column.description}
    return pa.field(column.name, arrow, nullable=not column.required, metadata=metadata)
