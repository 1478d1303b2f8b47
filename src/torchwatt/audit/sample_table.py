"""Writes the energy curves to one file: Parquet, or CSV.gz if pyarrow is missing or CSV was selected."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from collections.abc import Iterator
from io import BytesIO, TextIOWrapper
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import numpy as np

from torchwatt.audit.bundle_limits import MAX_TABLE_BYTES, PARQUET_LIMITS, max_rows
from torchwatt.audit.cell_codec import from_cell, table_bytes
from torchwatt.audit.schema import SCHEMA_VERSION, Column, Row
from torchwatt.audit.schema.energy_tables import SAMPLE
from torchwatt.core.energy_curve import EnergyCurve
from torchwatt.core.errors import BundleError, install_command
from torchwatt.core.report import Report
from torchwatt.disk.path_safety import bounded_lines, open_bounded_gzip, open_untrusted, path_kind

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
            return "sample.parquet", _parquet_bytes(_table(report))
    # mtime=0: equal samples give equal bytes.
    return "sample.csv.gz", gzip.compress(table_bytes(SAMPLE, _rows(report)), compresslevel=6, mtime=0)


def _sort_curves(report: Report) -> list[EnergyCurve]:
    return sorted(report.curves, key=lambda curve: str(curve.domain))


def _rows(report: Report) -> Iterator[Row]:
    for curve in _sort_curves(report):
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
    parts = [_batch(curve, report, schema) for curve in _sort_curves(report)]
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


def _parquet_bytes(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=1 << 17)
    return buffer.getvalue()


MAX_POINTS = 50_000_000  # of all curves; larger files are refused before they are read into memory
_LONGEST_ROW = 1 << 16  # characters
_COLUMNS = [SAMPLE.column(name) for name in ("device_id", "t_ns", "power_w", "energy_j")]
Points = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def read_samples(folder: Path, root: Path | None = None) -> Iterator[Points]:
    """Yield the name and the points of each device: t_ns since the start, power_w (NaN if missing), energy_j.

    Raises:
        BundleError: The file is malformed, too long or not a plain file, or it is Parquet and pyarrow is missing.
    """
    for name, read in (("sample.parquet", _read_parquet), ("sample.csv.gz", _read_csv)):
        if path_kind(folder / name) is not None:
            try:
                with open_untrusted(folder / name, MAX_TABLE_BYTES, root) as file:
                    yield from read(folder / name, file)
            except OSError as error:
                raise BundleError(f"cannot read {folder / name}: {error.strerror or error}") from error
            return


def _read_parquet(path: Path, opened: BinaryIO) -> Iterator[Points]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise BundleError(f"{path} needs pyarrow to be read: {install_command('pyarrow')}") from error
    names = ["device_id", "t_ns", "power_w", "energy_j"]
    try:
        file = pq.ParquetFile(opened, **PARQUET_LIMITS)
        limit = min(MAX_POINTS, max_rows(os.fstat(opened.fileno()).st_size))
        if file.metadata.num_rows > limit:
            raise BundleError(f"{path}: {file.metadata.num_rows} points; more than {limit} are not read")
        table = file.read(names)
        device = np.array(table["device_id"].to_pylist(), dtype=object)
        columns = [table[name].to_numpy() for name in names[1:]]
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    yield from _by_device(device, *columns)


def _read_csv(path: Path, packed: BinaryIO) -> Iterator[Points]:
    points: list[tuple[str, int, float, float]] = []
    try:
        with TextIOWrapper(open_bounded_gzip(packed), encoding="utf-8", newline="") as file:
            for row in csv.DictReader(bounded_lines(file, _LONGEST_ROW)):
                cells = [from_cell(row[column.name], column) for column in _COLUMNS]
                name, t, power_w, joules = cast("tuple[str, int, float | None, float]", cells)
                points.append((name, t, np.nan if power_w is None else power_w, joules))
                _refuse_too_many(len(points))
    except (BundleError, EOFError, ValueError, KeyError, TypeError, AttributeError, csv.Error, zlib.error) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    columns = list(zip(*points, strict=True)) or [(), (), (), ()]
    device, t_ns, power, energy = columns
    yield from _by_device(
        np.array(device, dtype=object), np.array(t_ns, dtype=np.int64), np.array(power), np.array(energy)
    )


def _refuse_too_many(points: int) -> None:
    if points > MAX_POINTS:
        raise BundleError(f"more than {MAX_POINTS} points are not read")


def _by_device(device: np.ndarray, t_ns: np.ndarray, power_w: np.ndarray, energy_j: np.ndarray) -> Iterator[Points]:
    for name in dict.fromkeys(device.tolist()):
        mine = device == name
        points = np.asarray(energy_j[mine], dtype=np.float64)
        if not all(isfinite(value) for value in points.tolist()):
            raise BundleError(f"samples of {name} hold a number that is not finite")
        yield str(name), np.asarray(t_ns[mine], dtype=np.int64), np.asarray(power_w[mine], dtype=np.float64), points
