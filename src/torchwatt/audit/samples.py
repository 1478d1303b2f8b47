"""Writes the energy curves to one file: Parquet, or CSV.gz if pyarrow is missing or CSV was selected."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from io import BytesIO
from math import isnan
from typing import TYPE_CHECKING, Literal

import numpy as np

from torchwatt.audit.schema import SCHEMA_VERSION, Column, Row
from torchwatt.audit.schema.energy import SAMPLE
from torchwatt.audit.table import table_bytes
from torchwatt.core.curve import EnergyCurve
from torchwatt.core.errors import BundleError
from torchwatt.core.extras import install_command
from torchwatt.core.report import Report

if TYPE_CHECKING:
    import pyarrow as pa

SampleFormat = Literal["auto", "parquet", "csv.gz"]


def sample_file(report: Report, sample_format: SampleFormat = "auto") -> tuple[str, bytes]:
    """Return the name and the bytes of the sample file.

    Raises:
        BundleError: Parquet was selected and pyarrow is not installed, or a number is not finite.
    """
    if sample_format not in {"auto", "parquet", "csv.gz"}:
        raise BundleError(f"samples={sample_format!r}: give 'auto', 'parquet' or 'csv.gz'")
    for curve in report.curves:
        if not np.all(np.isfinite(curve.energy_j)):
            raise BundleError(f"sample {curve.domain}: energy_j holds a number that is not finite")
    if sample_format != "csv.gz":
        try:
            import pyarrow  # noqa: F401, ICN001  # is it there?
        except ImportError as error:
            if sample_format == "parquet":
                raise BundleError(
                    f"samples='parquet' needs pyarrow: {install_command('pyarrow')}, or samples='csv.gz'"
                ) from error
        else:
            return "sample.parquet", _parquet(_table(report))
    # mtime=0: equal samples give equal bytes.
    return "sample.csv.gz", gzip.compress(table_bytes(SAMPLE, _rows(report)), compresslevel=6, mtime=0)


def _ordered(report: Report) -> list[EnergyCurve]:
    return sorted(report.curves, key=lambda curve: str(curve.domain))


def _rows(report: Report) -> Iterator[Row]:
    for curve in _ordered(report):
        power_w = [None, *(None if isnan(power) else power for power in curve.power_w().tolist())]
        energy_j = (curve.energy_j - curve.energy_j[0]).tolist()
        for t_ns, power, energy in zip(curve.t_ns.tolist(), power_w, energy_j, strict=True):
            yield {
                "run_id": report.run_id,
                "device_id": str(curve.domain),
                "t_ns": t_ns - report.start_ns,
                "power_w": power,
                "energy_j": energy,
                "provenance": curve.provenance,
            }


def arrow_schema() -> pa.Schema:
    """Return the types of the Parquet file, with units and descriptions of the schema."""
    import pyarrow as pa

    fields = [_field(column) for column in SAMPLE.columns]
    return pa.schema(fields, metadata={"schema_version": SCHEMA_VERSION, "description": SAMPLE.description})


def _field(column: Column) -> pa.Field:
    import pyarrow as pa

    types = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
    arrow = types.get(column.type, pa.timestamp("us", "UTC"))
    if column.type == "string":
        arrow = pa.dictionary(pa.int32(), pa.string())  # few devices, many points
    metadata = {"unit": column.unit, "description": column.description}
    return pa.field(column.name, arrow, nullable=not column.required, metadata=metadata)


def _table(report: Report) -> pa.Table:
    import pyarrow as pa

    schema = arrow_schema()
    parts = [_batch(curve, report, schema) for curve in _ordered(report)]
    return pa.Table.from_batches(parts, schema).unify_dictionaries().combine_chunks()


def _batch(curve: EnergyCurve, report: Report, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    is_first = np.arange(len(curve.t_ns)) == 0
    power_w = np.concatenate(([np.nan], curve.power_w()))

    def same(text: str) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(is_first), np.int32)), pa.array([text]))

    columns = {
        "run_id": same(report.run_id),
        "device_id": same(str(curve.domain)),
        "t_ns": pa.array(curve.t_ns - report.start_ns),
        "power_w": pa.array(power_w, mask=np.isnan(power_w)),
        "energy_j": pa.array(curve.energy_j - curve.energy_j[0]),
        "provenance": same(curve.provenance),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _parquet(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=1 << 17)
    return buffer.getvalue()
