"""Exports a workbook (XLSX): one row per run. Its cells have types, so no locale reads 1.5 as a date."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from math import fsum
from typing import TYPE_CHECKING, Any

from torchwatt.audit.bundle import (
    SYSTEMATIC,
    Bundle,
    counted_devices,
    factors_of,
    first_of_kind,
    impact,
    intensity_g_per_kwh,
    number,
    pue_of,
    text,
    timestamp,
)
from torchwatt.audit.bundle_limits import is_plain_file, read_bundle_file
from torchwatt.audit.counted_run import RunTotals, sum_runs
from torchwatt.audit.deduplication import count_bundles
from torchwatt.audit.schema import SCHEMA_VERSION, TABLES, Column, Row, Table
from torchwatt.core.errors import BundleError, install_command

if TYPE_CHECKING:
    import pyarrow as pa


J_PER_MWH, G_PER_T = 3.6e9, 1e6
HEADER = (
    "entity", "run", "run_id", "from (UTC)", "to (UTC)", "boundary", "energy MWh", "another meter, from MWh", "to MWh",
    "measured share", "unit", "units", "location t CO2e", "market t CO2e", "factor g/kWh", "factor source",
    "factor year", "factor basis", "PUE", "weakest input", "dominant uncertainty",
)  # fmt: skip

_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_LONGEST_CELL = 32_767  # characters


def rollup_xlsx(bundles: Sequence[Bundle]) -> bytes:
    """Return the workbook: a sheet of runs with their sum, and a sheet of the factors used.

    Raises:
        BundleError: openpyxl is not installed.
    """
    try:
        from openpyxl import Workbook
    except ImportError as error:
        raise BundleError(f"XLSX needs openpyxl: {install_command('openpyxl')}") from error
    book = Workbook()
    runs = book.active
    runs.title = "runs"
    runs.append(HEADER)
    for bundle in bundles:
        _append(runs, _run_cells(bundle))
    _append(runs, _sum_cells(bundles))
    factors = book.create_sheet("factors")
    names = ("factor_id", "kind", "value", "unit", "lo", "hi", "basis", "accounting_method", "zone", "data_year",
             "source_name", "source_url", "licence", "provenance", "coverage_note")  # fmt: skip
    factors.append(names)
    factor_rows = {row["factor_id"]: row for bundle in bundles for row in bundle["factor"]}
    for row in factor_rows.values():
        _append(factors, [row[name] for name in names])
    buffer = BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def _append(sheet: Any, cells: Sequence[Any]) -> None:
    """Append a row; text that starts with = is stored as text, not as a formula."""
    sheet.append([None if cell == "" else _in_xml(cell) for cell in cells])
    for cell in sheet[sheet.max_row]:
        if isinstance(cell.value, str):
            cell.data_type = "s"


def _in_xml(cell: Any) -> Any:
    """Escape characters that XML 1.0 does not allow, and cut text at Excel's limit."""
    if not isinstance(cell, str):
        return cell
    return _NOT_IN_XML.sub(lambda match: f"\\u{ord(match[0]):04x}", cell)[:_LONGEST_CELL]


def _run_cells(bundle: Bundle) -> list[Any]:
    run, location, market = bundle.run, impact(bundle, "gwp"), impact(bundle, "gwp", method="market")
    grid = first_of_kind(factors_of(bundle, location), "grid_gwp")
    return [
        text(run, "organisation"),
        text(run, "name"),
        text(run, "run_id"),
        timestamp(run, "started_at").replace(tzinfo=None),
        timestamp(run, "ended_at").replace(tzinfo=None),
        text(run, "boundary"),
        *(_scale_cell(run, name, J_PER_MWH) for name in ("energy_it_j", *SYSTEMATIC)),
        _measured_share(bundle),
        text(run, "functional_unit"),
        number(run, "functional_unit_count"),
        _scale_cell(location, "value", G_PER_T),
        _scale_cell(market, "value", G_PER_T),
        intensity_g_per_kwh(bundle),
        *(None if grid is None else grid[name] for name in ("source_name", "data_year", "basis")),
        pue_of(bundle),
        "" if location is None else text(location, "weakest_input"),
        "" if location is None else text(location, "dominant_uncertainty"),
    ]


def _scale_cell(row: Row | None, name: str, divisor: float) -> float | None:
    value = None if row is None else number(row, name)
    return None if value is None else value / divisor


def _measured_share(bundle: Bundle) -> float | None:
    parts = [(number(row, "energy_j") or 0.0, row["provenance"] == "measured") for row in counted_devices(bundle)]
    total_j = fsum(joules for joules, _ in parts)
    return fsum(joules for joules, measured in parts if measured) / total_j if total_j > 0 else None


def totals_of_bundle(bundle: Bundle) -> RunTotals:
    """Return the totals of a run, for sums."""
    run, location = bundle.run, impact(bundle, "gwp")
    grid = first_of_kind(factors_of(bundle, location), "grid_gwp")
    return RunTotals(
        run_id=text(run, "run_id"),
        boundary=text(run, "boundary"),
        energy_j=number(run, "energy_it_j"),
        unit=text(run, "functional_unit"),
        units=number(run, "functional_unit_count") or 0.0,
        location_g=None if location is None else number(location, "value"),
        market_g=None if (market := impact(bundle, "gwp", method="market")) is None else number(market, "value"),
        basis="" if grid is None else text(grid, "basis"),
    )


def _sum_cells(bundles: Sequence[Bundle]) -> list[Any]:
    sums = sum_runs(
        replace(totals_of_bundle(bundle), name=str(index), share=share)
        for index, (bundle, share) in enumerate(count_bundles(bundles))
    )
    cells: dict[str, Any] = dict.fromkeys(HEADER)
    cells["entity"] = "sum"
    cells["run"] = "; ".join((*(f"not added: {why}" for why in sums.refused), *sums.shared)) or f"{sums.runs} runs"
    cells["energy MWh"] = None if sums.energy_j is None else sums.energy_j / J_PER_MWH
    cells["unit"], cells["units"] = sums.unit, sums.units
    cells["location t CO2e"] = None if sums.location_g is None else sums.location_g / G_PER_T
    cells["market t CO2e"] = None if sums.market_g is None else sums.market_g / G_PER_T
    return list(cells.values())


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
            pq.write_table(_arrow_table(table, bundles), buffer, compression="zstd")
            files[f"{table.name}.parquet"] = buffer.getvalue()
    return files | dict(_sample_files(bundles))


def _sample_files(bundles: Sequence[Bundle]) -> Iterator[tuple[str, bytes]]:
    for bundle in bundles:
        run_id = "" if len(bundles) == 1 else f"-{bundle.run['run_id']}"
        for suffix in ("parquet", "csv.gz"):
            path = bundle.directory / f"sample.{suffix}"
            if is_plain_file(path):
                yield f"sample{run_id}.{suffix}", read_bundle_file(path)


def _arrow_table(table: Table, bundles: Sequence[Bundle]) -> pa.Table:
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
