"""Encodes the rows of a run as Parquet parts, and reads parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

from torchwatt.audit.exports.cells import in_utf8
from torchwatt.audit.exports.parquet import arrow_field
from torchwatt.audit.fleet.columns import columns_of
from torchwatt.audit.inside import PARQUET_LIMITS, most_rows
from torchwatt.audit.schema import Row

if TYPE_CHECKING:
    import pyarrow as pa

_MANY = 1000
_BATCH_ROWS = 1 << 16


@cache
def arrow_schema(table: str) -> pa.Schema:
    """Return the Arrow types of a table in the lake."""
    import pyarrow as pa

    return pa.schema([arrow_field(column) for column in columns_of(table)])


def part_bytes(table: str, rows: Sequence[Row]) -> bytes:
    """Return one Parquet file; equal rows give equal bytes.

    Parts with few rows have no dictionaries, statistics, descriptions of columns or zstd compression, which would take
    three quarters of the bytes and of the time.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    many = len(rows) >= _MANY
    # One conversion of all rows is three times as fast as one per column.
    schema = pa.struct(list(arrow_schema(table)))
    try:
        batch = pa.RecordBatch.from_struct_array(pa.array(rows, schema))
    except UnicodeEncodeError:  # text with half of a surrogate pair
        rows = in_utf8(rows)
        batch = pa.RecordBatch.from_struct_array(pa.array(rows, schema))
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


def batches_of(content: bytes, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of an untrusted Parquet file in batches, with checksums verified.

    Raises:
        OSError: Its number of rows is larger than its bytes can contain.
        pyarrow.ArrowException: It is damaged, or not a Parquet file.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(BytesIO(content), page_checksum_verification=True, **PARQUET_LIMITS)
    if file.metadata.num_rows > most_rows(len(content)):
        raise OSError(f"{file.metadata.num_rows} rows are more than {len(content)} bytes can hold")
    yield from file.iter_batches(_BATCH_ROWS, columns=columns)
