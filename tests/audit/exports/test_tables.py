"""Workbook and Parquet."""

from importlib.util import find_spec

import pytest

from torchwatt.audit import read_bundle
from torchwatt.audit.counted_run import RunTotals, sum_runs
from torchwatt.audit.exports import export

needs_openpyxl = pytest.mark.skipif(
    find_spec("openpyxl") is None, reason="needs the extra: pip install 'torchwatt[xlsx]'"
)


@needs_openpyxl
def test_the_workbook_has_typed_cells_and_both_methods(bundle, tmp_path):
    from openpyxl import load_workbook

    book = load_workbook(export([bundle], "xlsx", tmp_path / "r.xlsx"))
    header, row, last = (list(cells) for cells in book["runs"].iter_rows(values_only=True))
    cells, sums = dict(zip(header, row, strict=True)), dict(zip(header, last, strict=True))
    assert cells["energy MWh"] == pytest.approx(7402.148 / 3.6e9)
    assert cells["location t CO2e"] == pytest.approx(7402.148 / 3.6e6 * 1.2 * 50 / 1e6)
    assert cells["market t CO2e"] == pytest.approx(7402.148 / 3.6e6 * 1.2 * 300 / 1e6)
    assert (cells["factor source"], cells["factor year"], cells["PUE"]) == ("A grid operator", 2025, 1.2)
    assert 0 < cells["measured share"] < 1
    assert sums["energy MWh"] == cells["energy MWh"]
    assert {row[0] for row in book["factors"].iter_rows(min_row=2, values_only=True)} == {
        factor["factor_id"] for factor in read_bundle(bundle)["factor"]
    }


@needs_openpyxl
def test_no_text_of_the_workbook_is_a_formula(tmp_path):
    from openpyxl import load_workbook

    from tests.support.reports import bare_report
    from torchwatt.audit import write_bundle

    bundle = write_bundle(bare_report(name="=cmd|' /C calc'!A0"), tmp_path / "b")
    book = load_workbook(export([bundle], "xlsx", tmp_path / "r.xlsx"))
    cell = book["runs"]["B2"]
    assert (cell.value, cell.data_type) == ("=cmd|' /C calc'!A0", "s")


@needs_openpyxl
def test_mixed_boundaries_have_no_sum(bundle, unmetered, tmp_path):
    from openpyxl import load_workbook

    book = load_workbook(export([bundle, unmetered], "xlsx", tmp_path / "r.xlsx"))
    *_, last = book["runs"].iter_rows(values_only=True)
    assert "not added: energy: the runs have different boundaries" in last[1]
    assert last[6] is None


def test_parquet_has_the_rows_and_types_of_every_table(bundle, tmp_path):
    import pyarrow.parquet as pq

    folder = export([bundle], "parquet", tmp_path / "p")
    found = read_bundle(bundle)
    for name, rows in found.tables.items():
        table = pq.read_table(folder / f"{name}.parquet")
        assert table.to_pylist() == [dict(row) for row in rows], name
    assert (folder / "sample.parquet").read_bytes() == (bundle / "sample.parquet").read_bytes()
    layer = pq.read_schema(folder / "layer.parquet")
    assert layer.field("energy_self_j").metadata[b"unit"] == b"J"
    assert not layer.field("energy_self_j").nullable


def run(**changes):
    usual = {"run_id": "a", "boundary": "cpu;gpu", "energy_j": 10.0, "unit": "token", "units": 5.0, "location_g": 1.0,
             "market_g": None, "basis": "lifecycle"}  # fmt: skip
    return RunTotals(**(usual | changes))


def test_a_rate_is_sum_over_sum():
    found = sum_runs([run(energy_j=10.0, units=1.0), run(energy_j=20.0, units=9.0)])
    assert found.j_per_unit == 3.0
    assert found.location_g == 2.0


@pytest.mark.parametrize(
    ("other", "column", "why"),
    [
        ({"boundary": "gpu"}, "energy_j", "different boundaries"),
        ({"boundary": "gpu"}, "location_g", "different boundaries"),
        ({"location_g": None, "market_g": 2.0}, "location_g", "only 1 of 2"),
        ({"location_g": None, "market_g": 2.0}, "market_g", "only 1 of 2"),
        ({"basis": "direct"}, "location_g", "different bases"),
        ({"unit": "image"}, "units", "no sum of different things"),
    ],
)
def test_what_is_mixed_is_not_added_and_is_said(other, column, why):
    found = sum_runs([run(), run(**other)])
    assert getattr(found, column) is None
    assert any(why in reason for reason in found.refused)


def test_unknown_energy_makes_the_sum_unknown():
    assert sum_runs([run(), run(energy_j=None)]).energy_j is None
