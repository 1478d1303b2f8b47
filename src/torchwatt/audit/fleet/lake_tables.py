"""Additional columns of the lake: values of other tables of a run that roll-ups need, copied to the summed table.

All are redundant: `fleet verify` recomputes them from the original tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from io import BytesIO
from math import fsum
from typing import TYPE_CHECKING

from torchwatt.audit.bundle import Bundle, counted_devices, factors_of, impact, in_utf8, number, text
from torchwatt.audit.bundle_limits import PARQUET_LIMITS, max_rows
from torchwatt.audit.counted_run import run_of_bundle, text_of
from torchwatt.audit.exports.workbook import arrow_field
from torchwatt.audit.schema import TABLE_BY_NAME, Column, Row, Value
from torchwatt.audit.schema.table_schema import boolean, string
from torchwatt.audit.schema.table_schema import number as numeric
from torchwatt.core.terms import ROOT

if TYPE_CHECKING:
    import pyarrow as pa


LAKE_COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "run": (
        string("lake_model", "model_id, else architecture, else the class of the root module"),
        string(
            "lake_boundary",
            "kinds of domains inside the total, `+`-list; `:process` this process's share only, `*` some of the kind "
            "could not be metered: only equal boundaries are added",
        ),
        boolean("lake_overlaps", "true: it names another session on the same devices at the same time", required=True),
        numeric("lake_measured_j", "J", "measured part of energy_it_j", minimum=0),
        numeric("lake_modelled_j", "J", "modelled part of energy_it_j", minimum=0),
        numeric("lake_location_g", "g{CO2e}", "of impact: gwp, usage, location, as_run"),
        string("lake_location_basis", "basis of its grid factors: only equal ones are added"),
        numeric("lake_market_g", "g{CO2e}", "of impact: gwp, usage, market, as_run"),
        string("lake_market_basis", "basis of its grid factors"),
        string("lake_rows", "rows of the run's other tables, table=count", many=True, required=True),
        string("lake_manifest_sha256", "of the bundle's MANIFEST.sha256", required=True),
        string("lake_metered", "JSON: which devices it metered when, as `count_once` takes it", required=True),
        string("lake_sample_sha256", "of its part of `sample`, where that was copied"),
    ),
    "device": (string("lake_manifest_sha256", "of the bundle's MANIFEST.sha256", required=True),),
    "layer": (boolean("lake_counts", "true: the device counts toward the run's total", required=True),),
    "impact": (string("lake_basis", "basis of the grid factors that it was made with"),),
}
# In the order of writing: `device` first, which has the hash of the bundle; `run` last, which marks it as complete.
TABLES: tuple[str, ...] = ("device", "window", "layer", "hourly", "factor", "impact", "event", "run")


def columns_of(table: str) -> tuple[Column, ...]:
    """Return the columns of a table in the lake."""
    return TABLE_BY_NAME[table].columns + LAKE_COLUMNS.get(table, ())


def lake_rows(bundle: Bundle, manifest_sha256: str, sample_sha256: str | None = None) -> dict[str, tuple[Row, ...]]:
    """Return the rows of a bundle by table, with the columns of the lake."""
    counts = {text(row, "device_id"): row["counted"] is True for row in bundle["device"]}
    rows = {name: bundle[name] for name in TABLES}
    rows["layer"] = tuple({**row, "lake_counts": counts.get(text(row, "device_id"), False)} for row in bundle["layer"])
    rows["impact"] = tuple({**row, "lake_basis": _basis(bundle, row)} for row in bundle["impact"])
    sizes = ";".join(f"{name}={len(table_rows)}" for name, table_rows in rows.items() if name != "run" and table_rows)
    named = {"lake_manifest_sha256": manifest_sha256}
    rows["device"] = tuple({**row, **named} for row in bundle["device"])
    rows["run"] = (
        {**bundle.run, **_run_cells_of_lake(bundle), "lake_rows": sizes, "lake_sample_sha256": sample_sha256, **named},
    )
    return rows


def _run_cells_of_lake(bundle: Bundle) -> dict[str, Value]:
    counted_as = run_of_bundle(bundle)
    cells: dict[str, Value] = {
        "lake_model": _model(bundle),
        "lake_boundary": boundary(bundle["device"]) or None,
        "lake_overlaps": counted_as.overlaps,
        "lake_metered": text_of(counted_as),
        "lake_measured_j": _counted_j_with(bundle, "measured"),
        "lake_modelled_j": _counted_j_with(bundle, "modelled"),
    }
    for method in ("location", "market"):
        grams = impact(bundle, "gwp", method=method)
        cells[f"lake_{method}_g"] = None if grams is None else number(grams, "value")
        cells[f"lake_{method}_basis"] = None if grams is None else _basis(bundle, grams)
    return cells


def _model(bundle: Bundle) -> str | None:
    declared = text(bundle.run, "model_id") or text(bundle.run, "architecture")
    roots = (text(row, "module_class") for row in bundle["layer"] if row["fqn"] == ROOT)
    return declared or next((name for name in roots if name), None)


def boundary(devices: Iterable[Row]) -> str:
    """Return a boundary as the kinds of its domains, which does not depend on the size of the machine."""
    rows = list(devices)
    missing = {text(row, "kind") for row in rows if row["unavailable_reason"] and not row["counted"]}
    counted_rows = [row for row in rows if row["counted"]]
    names = {
        text(row, "kind") + (":process" if row["scope"] == "process" else "") + "*" * (row["kind"] in missing)
        for row in counted_rows
    }
    return "+".join(sorted(names))


def _counted_j_with(bundle: Bundle, provenance: str) -> float | None:
    """Return the counted energy with one provenance; None if no device is counted, or the energy of one is unknown."""
    rows = counted_devices(bundle)
    joules = [number(row, "energy_j") for row in rows if row["provenance"] == provenance]
    known_j = [value for value in joules if value is not None]
    return fsum(known_j) if rows and len(known_j) == len(joules) else None


def _basis(bundle: Bundle, row: Row) -> str | None:
    bases = {text(factor, "basis") for factor in factors_of(bundle, row) if text(factor, "kind") in _GRIDS}
    return "+".join(sorted(bases)) or None


_GRIDS = ("grid_gwp", "residual_mix", "contract_gwp")


_MIN_ROWS_TO_COMPRESS = 1000
_BATCH_ROWS = 1 << 16


@cache
def lake_arrow_schema(table: str) -> pa.Schema:
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

    many = len(rows) >= _MIN_ROWS_TO_COMPRESS
    # One conversion of all rows is three times as fast as one per column.
    schema = pa.struct(list(lake_arrow_schema(table)))
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
    if file.metadata.num_rows > max_rows(len(content)):
        raise OSError(f"{file.metadata.num_rows} rows are more than {len(content)} bytes can hold")
    yield from file.iter_batches(_BATCH_ROWS, columns=columns)
