import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchwatt.audit.formula import evaluate, names
from torchwatt.audit.sample_table import arrow_schema
from torchwatt.audit.schema import TABLE_BY_NAME, TABLES
from torchwatt.audit.table_descriptions import csvw_json, datapackage_json, schema_markdown
from torchwatt.core.errors import BundleError

ROOT = Path(__file__).resolve().parents[2]

# Columns may be added at the end and never moved: other people's scripts count them.
FIRST_COLUMNS = {
    "run": ("run_id", "schema_version", 92),
    "device": ("run_id", "device_id", 47),
    "window": ("run_id", "window_id", 17),
    "layer": ("run_id", "device_id", 31),
    "hourly": ("run_id", "hour_utc", 6),
    "sample": ("run_id", "device_id", 6),
    "factor": ("factor_id", "kind", 32),
    "impact": ("run_id", "subject", 18),
    "event": ("run_id", "event_index", 8),
    "rank": ("run_id", "rank", 18),
    "rank_layer": ("run_id", "rank", 11),
    "token": ("run_id", "request", 17),
}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_tables_keep_their_columns(table):
    first, second, count = FIRST_COLUMNS[table.name]
    assert table.header[:2] == (first, second)
    assert len(table.header) >= count
    assert len(set(table.header)) == len(table.header)
    required = {column.name for column in table.columns if column.required}
    assert set(table.key) <= {*required, "stage"}  # empty until something names it


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_names_end_in_their_unit(table):
    suffix = {"J": "_j", "s": "_s", "W": "_w", "ns": "_ns"}
    for column in table.columns:
        if column.unit in suffix:
            assert column.name.endswith(suffix[column.unit]), column
        assert column.description


def test_formulas():
    values = {"energy_j": 7.2e6, "pue": 1.5, "grid_gwp": 50.0}
    assert evaluate("energy_j/3.6e6*grid_gwp", values) == 100.0
    assert evaluate("energy_j/3.6e6*pue*grid_gwp", values) == 150.0
    assert evaluate("-(1 + 2) * 3 - 4 / (8 - 6)", {}) == -11.0


@given(st.floats(0, 1e12), st.floats(1, 3), st.floats(0, 2000))
def test_a_formula_is_pythons_arithmetic(energy_j, pue, grid_gwp):
    values = {"energy_j": energy_j, "pue": pue, "grid_gwp": grid_gwp}
    assert evaluate("energy_j/3.6e6*pue*grid_gwp", values) == energy_j / 3.6e6 * pue * grid_gwp


ENDLESS = ("(" * 10_000 + "1", "-" * 10_000 + "1", "1" + "+1" * 10_000)


@pytest.mark.parametrize("text", ["", "1+", "(1", "1 2", "x", "__import__('os')", "1/0", "2**3", "a.b", *ENDLESS])
def test_anything_else_is_refused(text):
    with pytest.raises(BundleError, match="formula"):
        evaluate(text, {})


def test_the_page_about_the_schema_is_the_schema():
    page = (ROOT / "docs" / "schema.md").read_text(encoding="utf-8")
    assert page == schema_markdown(), "make docs"


def test_every_description_has_every_column():
    package = json.loads(datapackage_json("x", {f"{table.name}.csv": (0, "") for table in TABLES}))
    csvw = {table["url"]: table for table in json.loads(csvw_json([f"{t.name}.csv" for t in TABLES]))["tables"]}
    page = schema_markdown()
    for table, resource in zip(TABLES, package["resources"], strict=True):
        assert [field["name"] for field in resource["schema"]["fields"]] == list(table.header)
        assert resource["schema"]["primaryKey"] == list(table.key)
        if table.format == "csv":
            columns = csvw[f"{table.name}.csv"]["tableSchema"]["columns"]
            assert [column["name"] for column in columns] == list(table.header)
        assert all(f"| `{name}` |" in page for name in table.header)


def test_references_and_formulas_of_the_schema_name_columns_that_exist():
    for table in TABLES:
        for column in table.columns:
            if column.refers:
                other, _, name = column.refers.partition(".")
                assert name in TABLE_BY_NAME[other].key
            for name in names(column.derived):
                assert name in table.header or name == "device_energy_j", column


def test_parquet_has_the_types_and_units_of_the_schema():
    fields = {field.name: field for field in arrow_schema()}
    assert list(fields) == list(TABLE_BY_NAME["sample"].header)
    assert str(fields["t_ns"].type) == "int64"
    assert str(fields["energy_j"].type) == "double"
    assert fields["energy_j"].metadata[b"unit"] == b"J"
    assert not fields["energy_j"].nullable
    assert fields["power_w"].nullable
