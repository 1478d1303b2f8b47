"""Rows of a run to the bytes of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from torchwatt.audit.exports.parquet import arrow_field
from torchwatt.audit.fleet.columns import columns_of
from torchwatt.audit.schema import Row

if TYPE_CHECKING:
    import pyarrow as pa

_MANY = 1000


@cache
def arrow_schema(table: str) -> pa.Schema:
    """Return the types of a table in the lake."""
    import pyarrow as pa

    return pa.schema([arrow_field(column) for column in columns_of(table)])


def part_bytes(table: str, rows: Sequence[Row]) -> bytes:
    """Return one Parquet file; the same rows give the same bytes.

    A part has few rows: dictionaries, statistics, the descriptions of 100 columns and zstd's set-up would be three
    quarters of its bytes and of the time to write it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    many = len(rows) >= _MANY
    # One conversion of all rows is three times as fast as one a column.
    batch = pa.RecordBatch.from_struct_array(pa.array(rows, pa.struct(list(arrow_schema(table)))))
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_batches([batch]),
        sink,
        compression="zstd" if many else "snappy",
        use_dictionary=many,
        write_statistics=many,
        store_schema=False,
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())
