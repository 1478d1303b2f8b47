"""What verify must find: one planted defect each, named by file, row, column and reason."""

import json
from math import nan

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.support.bundles import cell, drop, records, rich_report, row_where, samples, sealed, tables_of, written
from tests.support.examples import examples
from torchwatt.audit import verify, write_bundle
from torchwatt.audit.seal import MANIFEST, STATEMENT

GPU_ROW, RAM_ROW = 3, 5  # rows of device.csv: cpu:0, dram:0, gpu:0, psys, ram


@pytest.fixture(scope="module")
def tables():
    return tables_of(rich_report())


def test_the_report_that_is_spoilt_below_is_good(tmp_path, tables):
    found = verify(sealed(tables, tmp_path / "audit"))
    assert found.ok, found
    assert not found.notes


def set_cell(file, row, column, new):
    return lambda tables: cell(tables, file, row, column, new)


def replace_bytes(file, old, new, count=1):
    def spoil(tables):
        assert old in tables[file]
        tables[file] = tables[file].replace(old, new, count)

    return spoil


def swap_rows(file, one, two):
    def spoil(tables):
        rows = records(tables[file])
        rows[one], rows[two] = rows[two], rows[one]
        tables[file] = written(rows)

    return spoil


def twice(file, row):
    def spoil(tables):
        rows = records(tables[file])
        rows.insert(row, rows[row])
        tables[file] = written(rows)

    return spoil


def one_more_cell(tables):
    rows = records(tables["window.csv"])
    rows[4].append("")
    tables["window.csv"] = written(rows)


def sample_at(column, index, new):
    def change(columns):
        old = columns[column][index]
        columns[column][index] = new(old) if callable(new) else new
        return columns

    return lambda tables: samples(tables, change)


def without_last_gpu_sample(tables):
    def change(columns):
        last = max(i for i, name in enumerate(columns["device_id"]) if name == "gpu:0")
        return {name: values[:last] + values[last + 1 :] for name, values in columns.items()}

    samples(tables, change)


def add(amount):
    return lambda text: repr(float(text) + amount)


def times(factor):
    return lambda text: repr(float(text) * factor)


def rename_unattributed(tables):
    row = row_where(tables, "layer.csv", device_id="cpu:0", fqn="(unattributed)")
    cell(tables, "layer.csv", row, "fqn", "(unattributed).0")


def forge_share_too(tables):
    """Move joules between two layers and make each row agree with itself: only the sums can tell."""
    row = row_where(tables, "layer.csv", device_id="cpu:0", fqn="head", phase="forward")
    values = dict(zip(records(tables["layer.csv"])[0], records(tables["layer.csv"])[row], strict=True))
    joules = float(values["energy_self_j"]) * 1.001
    device_j = float(records(tables["device.csv"])[1][records(tables["device.csv"])[0].index("energy_j")])
    cell(tables, "layer.csv", row, "energy_self_j", repr(joules))
    cell(tables, "layer.csv", row, "energy_share", repr(joules / device_j))
    cell(tables, "layer.csv", row, "energy_per_call_j", repr(joules / int(values["calls"])))


LAYER_SUM = ("SUM", "layer.csv", None, "energy_self_j", "do not add up to device.csv row")
DEFECTS = {
    # lexical
    "NaN": (
        set_cell("layer.csv", 7, "energy_self_j", "NaN"),
        ("CELL", "layer.csv", 7, "energy_self_j", "is no number"),
    ),
    "infinity": (set_cell("device.csv", 1, "energy_j", "INF"), ("CELL", "device.csv", 1, "energy_j", "is no number")),
    "too large for a float": (
        set_cell("factor.csv", 1, "value", "1e400"),
        ("CELL", "factor.csv", 1, "value", "is no number"),
    ),
    "digits in groups": (
        set_cell("layer.csv", 2, "calls", "1_000"),
        ("CELL", "layer.csv", 2, "calls", "is no integer"),
    ),
    "Arabic digits": (set_cell("layer.csv", 2, "calls", "٤٠"), ("CELL", "layer.csv", 2, "calls", "is no integer")),
    "a decimal comma": (
        set_cell("run.csv", 1, "duration_s", "24,0"),
        ("CELL", "run.csv", 1, "duration_s", "is no number"),
    ),
    "a time without a zone": (
        set_cell("run.csv", 1, "started_at", "2026-11-24T06:59:49.999999"),
        ("CELL", "run.csv", 1, "started_at", "is no timestamp"),
    ),
    "a date of another country": (
        set_cell("event.csv", 2, "t", "24/11/2026 06:00"),
        ("CELL", "event.csv", 2, "t", "is no timestamp"),
    ),
    "a word that is none": (
        set_cell("layer.csv", 9, "phase", "forwards"),
        ("CELL", "layer.csv", 9, "phase", "no word"),
    ),
    "a formula for a spreadsheet": (
        set_cell("run.csv", 1, "name", "=HYPERLINK(A1)"),
        ("CELL", "run.csv", 1, "name", "spreadsheet"),
    ),
    "a required cell is empty": (
        set_cell("layer.csv", 4, "method", ""),
        ("CELL", "layer.csv", 4, "method", "required"),
    ),
    "below its minimum": (
        set_cell("device.csv", 1, "energy_u_j", "-6.5"),
        ("CELL", "device.csv", 1, "energy_u_j", "too small"),
    ),
    "above its maximum": (
        set_cell("device.csv", 1, "coverage_ratio", "1.5"),
        ("CELL", "device.csv", 1, "coverage_ratio", "too large"),
    ),
    "NaN in Parquet": (sample_at("energy_j", 30, nan), ("CELL", "sample.parquet", 31, "energy_j", "not finite")),
    # form
    "a column renamed": (
        replace_bytes("layer.csv", b"energy_self_j", b"energy_j"),
        ("FORM", "layer.csv", None, "energy_self_j", "header"),
    ),
    "Windows line ends": (
        replace_bytes("event.csv", b"\n", b"\r\n", -1),
        ("FORM", "event.csv", None, "", "carriage return"),
    ),
    "a byte order mark": (
        replace_bytes("impact.csv", b"run_id", b"\xef\xbb\xbfrun_id"),
        ("FORM", "impact.csv", None, "run_id", "header"),
    ),
    "not UTF-8": (replace_bytes("event.csv", b"wrapped", b"wr\xffpped"), ("FORM", "event.csv", None, "", "UTF-8")),
    "a cell too many": (one_more_cell, ("FORM", "window.csv", 4, "", "number of cells")),
    "an open quote": (
        replace_bytes("event.csv", b"the counter", b'"the counter'),
        ("FORM", "event.csv", None, "", "cannot be read"),
    ),
    # keys and references
    "a row twice": (twice("layer.csv", 5), ("KEY", "layer.csv", 6, "run_id,device_id,fqn,phase,stage", "the same key")),
    "rows in another order": (
        swap_rows("hourly.csv", 1, 2),
        ("KEY", "hourly.csv", 2, "run_id,hour_utc,device_id", "out of the order"),
    ),
    "two runs": (
        lambda tables: tables.update(
            {"run.csv": tables["run.csv"] + tables["run.csv"].split(b"\n")[1].replace(b"0193", b"0194", 1) + b"\n"}
        ),
        ("KEY", "run.csv", None, "", "one row"),
    ),
    "a layer of an unknown device": (
        set_cell("layer.csv", 3, "device_id", "cpu:00"),
        ("REFERENCE", "layer.csv", 3, "device_id", "cpu:00"),
    ),
    "an unknown factor": (
        set_cell("impact.csv", 2, "factor_ids", "grid_gwp-000000000000"),
        ("REFERENCE", "impact.csv", 2, "factor_ids", "is not there"),
    ),
    "an unknown device in the boundary": (
        set_cell("run.csv", 1, "boundary", "cpu:0;gpu:0;gpu:1;ram"),
        ("REFERENCE", "run.csv", 1, "boundary", "gpu:1"),
    ),
    "an event removed": (
        lambda tables: drop(tables, "event.csv", 2),
        ("KEY", "event.csv", 2, "event_index", "missing"),
    ),
    # sums
    "a layer removed": (lambda tables: drop(tables, "layer.csv", 11), LAYER_SUM),
    "a layer made larger with all that is computed from it": (forge_share_too, LAYER_SUM),
    "the run off by a microjoule": (
        set_cell("run.csv", 1, "energy_it_j", add(1e-6)),
        ("DERIVED", "run.csv", 1, "energy_it_j", "other tables"),
    ),
    "a device off by a millionth": (set_cell("device.csv", 1, "energy_j", times(1 + 1e-6)), LAYER_SUM),
    "an hour made smaller": (
        set_cell("hourly.csv", 2, "energy_j", times(0.5)),
        ("SUM", "hourly.csv", None, "energy_j", "gpu:0 do not add up"),
    ),
    "a device taken out of the total": (
        set_cell("device.csv", RAM_ROW, "counted", "false"),
        ("DERIVED", "run.csv", 1, "energy_it_j", "other tables"),
    ),
    "more joules in a window than in the run": (
        set_cell("window.csv", 1, "energy_j", "99999.0"),
        ("SUM", "window.csv", 1, "energy_j", "more joules than the run"),
    ),
    # derived cells
    "a digit changed": (
        set_cell("layer.csv", 7, "energy_self_j", times(1 + 1e-9)),
        ("DERIVED", "layer.csv", 7, "energy_share", "energy_self_j/device_energy_j"),
    ),
    "joules a call": (
        set_cell("layer.csv", 7, "calls", "41"),
        ("DERIVED", "layer.csv", 7, "energy_per_call_j", "energy_self_j/calls"),
    ),
    "a derived cell emptied": (
        set_cell("layer.csv", 7, "energy_share", ""),
        ("DERIVED", "layer.csv", 7, "energy_share", "is not"),
    ),
    "the counter's reading": (
        set_cell("device.csv", GPU_ROW, "counter_end_raw", "6463438"),
        ("DERIVED", "device.csv", GPU_ROW, "counter_difference_j", "counter_end_raw"),
    ),
    "the other route": (
        set_cell("device.csv", GPU_ROW, "cross_check_rel_diff", "0.0"),
        ("DERIVED", "device.csv", GPU_ROW, "cross_check_rel_diff", "is not"),
    ),
    "the interval of the run": (
        set_cell("run.csv", 1, "energy_it_hi_j", times(0.99)),
        ("DERIVED", "run.csv", 1, "energy_it_hi_j", "other tables"),
    ),
    "the unclaimed joules": (
        set_cell("run.csv", 1, "energy_unattributed_j", "0.0"),
        ("DERIVED", "run.csv", 1, "energy_unattributed_j", "other tables"),
    ),
    "the end an hour later": (
        set_cell("run.csv", 1, "ended_at", lambda text: text.replace("T07", "T08")),
        ("DERIVED", "run.csv", 1, "ended_at", "duration_s"),
    ),
    "an event at another time": (
        set_cell("event.csv", 1, "t", lambda text: text.replace(":53.", ":54.")),
        ("DERIVED", "event.csv", 1, "t", "started_at"),
    ),
    "a step removed": (
        lambda tables: drop(tables, "window.csv", 41),
        ("DERIVED", "run.csv", 1, "step_count", "other tables"),
    ),
    "a step's joules": (
        set_cell("window.csv", 9, "energy_j", times(1.01)),
        ("DERIVED", "window.csv", 9, "energy_j", "curves"),
    ),
    "the PUE of the run": (set_cell("run.csv", 1, "pue", "1.1"), ("DERIVED", "run.csv", 1, "pue", "other tables")),
    "grams a unit": (
        set_cell("impact.csv", 7, "per_unit_value", times(0.1)),
        ("DERIVED", "impact.csv", 7, "per_unit_value", "functional_unit_count"),
    ),
    # samples
    "a power": (sample_at("power_w", 30, lambda w: w * 1.001), ("SAMPLE", "sample.parquet", 31, "power_w", "slope")),
    "an energy": (sample_at("energy_j", 30, lambda j: j + 0.5), ("SAMPLE", "sample.parquet", 31, "power_w", "slope")),
    "the last point cut off": (
        without_last_gpu_sample,
        ("SAMPLE", "sample.parquet", 481, "energy_j", "last point is not device.csv row 3"),
    ),
    # impacts
    "a formula that lies": (
        set_cell("impact.csv", 4, "formula", "energy_j/3.6e6*grid_gwp"),
        ("FORMULA", "impact.csv", 4, "value", "energy_j/3.6e6"),
    ),
    "grams": (set_cell("impact.csv", 4, "value", times(0.9)), ("FORMULA", "impact.csv", 4, "value", "energy_j/3.6e6")),
    "a factor's value": (
        set_cell("factor.csv", 1, "value", "46.039"),
        ("FORMULA", "impact.csv", 1, "value", "grid_gwp"),
    ),
    "a formula that is a program": (
        set_cell("impact.csv", 1, "formula", "__import__('os')"),
        ("FORMULA", "impact.csv", 1, "formula", "cannot be computed"),
    ),
    "a formula with a name of nothing": (
        set_cell("impact.csv", 1, "formula", "energy_j*wue"),
        ("FORMULA", "impact.csv", 1, "formula", "'wue' has no value"),
    ),
    "kilograms in the gram column": (
        set_cell("impact.csv", 1, "unit", "kg{CO2e}"),
        ("LAW", "impact.csv", 1, "unit", "of this criterion"),
    ),
    "grams outside their interval": (
        set_cell("impact.csv", 5, "lo", "1.0"),
        ("LAW", "impact.csv", 5, "value", "own interval"),
    ),
    "the method of another total": (
        set_cell("impact.csv", 1, "accounting_method", "na"),
        ("KNOWN", "impact.csv", 1, "accounting_method", "not that of its factors"),
    ),
    # how it is known
    "an apportioned layer called measured": (
        set_cell("layer.csv", 7, "provenance", "measured"),
        ("KNOWN", "layer.csv", 7, "provenance", "better known"),
    ),
    "modelled joules called measured": (
        set_cell("device.csv", RAM_ROW, "provenance", "measured"),
        ("KNOWN", "device.csv", RAM_ROW, "provenance", "better known"),
    ),
    "grams better known than their factor": (
        set_cell("impact.csv", 1, "weakest_input", "measured"),
        ("KNOWN", "impact.csv", 1, "weakest_input", "better known"),
    ),
    "a layer outside its interval": (
        set_cell("layer.csv", 30, "energy_self_lo_j", "1e9"),
        ("LAW", "layer.csv", None, "energy_self_j", "own interval"),
    ),
    "unclaimed joules under a layer's name": (
        rename_unattributed,
        ("DERIVED", "run.csv", 1, "energy_unattributed_j", "other tables"),
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found_although_every_hash_is_right(tmp_path, tables, name):
    spoil, expected = DEFECTS[name]
    spoilt = dict(tables)
    spoil(spoilt)
    assert spoilt != tables
    found = verify(sealed(spoilt, tmp_path / "audit"))
    assert not found.ok
    assert any(matches(finding, *expected) for finding in found.findings), found
    assert not [finding for finding in found.findings if finding.code == "HASH"]


def matches(finding, code, file, row, column, reason):
    where = (finding.code, finding.file, finding.column) == (code, file, column)
    return where and row in {None, finding.row} and reason in finding.reason


# Computed again somewhere. Layers' intervals and nested windows are not: they are the fit's and the sensor's word.
JOULES = {
    "run.csv": "energy_it_j energy_it_u_j energy_it_lo_j energy_it_hi_j energy_it_reading_u_j "
    "energy_it_systematic_lo_j energy_it_systematic_hi_j energy_accelerator_j energy_cpu_j "
    "energy_dram_j energy_unattributed_j energy_facility_j",
    "device.csv": "energy_j energy_u_j energy_lo_j energy_hi_j reading_u_j "
    "energy_systematic_lo_j energy_systematic_hi_j cross_check_j counter_difference_j counter_unit_j",
    "layer.csv": "energy_self_j energy_static_j energy_dynamic_j energy_share energy_per_call_j",
    "hourly.csv": "energy_j",
    "impact.csv": "value per_unit_value",
    "factor.csv": "value",
}


@examples(20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), factor=st.sampled_from([1 + 1e-6, 1 - 1e-6, 1.5, -1.0]))
def test_no_joule_and_no_gram_changes_unseen(tmp_path_factory, tables, data, factor):
    file = data.draw(st.sampled_from(sorted(JOULES)))
    column = data.draw(st.sampled_from(JOULES[file].split()))
    rows = records(tables[file])
    at = rows[0].index(column)
    row = data.draw(st.sampled_from([n for n, cells in enumerate(rows) if n and cells[at] not in {"", "0.0"}]))
    spoilt = dict(tables)
    cell(spoilt, file, row, column, times(factor))
    found = verify(sealed(spoilt, tmp_path_factory.mktemp("one") / "audit"))
    assert not found.ok, (file, row, column, rows[row][at])


# Defects of files that were not sealed again


@pytest.fixture
def folder(tmp_path):
    return write_bundle(rich_report(), tmp_path / "audit")


@pytest.mark.parametrize("name", ["layer.csv", "sample.parquet", "datapackage.json", "csvw-metadata.json", "event.csv"])
def test_one_changed_byte_is_found_in_every_file(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    codes = {(finding.code, finding.file) for finding in verify(folder).findings}
    assert ("HASH", name) in codes


def test_a_changed_manifest_is_found_twice(folder):
    path = folder / MANIFEST
    text = path.read_text()
    digest = text.split("  layer.csv")[0][-64:]
    path.write_text(text.replace(digest, "0" * 64))
    found = verify(folder).findings
    assert any(matches(f, "HASH", "layer.csv", None, "", "differs from MANIFEST") and f.found == digest for f in found)
    assert any(matches(f, "DESCRIPTION", STATEMENT, None, "", "manifest_sha256 is another") for f in found)


def test_a_removed_file_is_found(folder):
    (folder / "window.csv").unlink()
    assert any(matches(f, "FILE", "window.csv", None, "", "not in the folder") for f in verify(folder).findings)


def test_a_file_removed_with_its_line_is_found(folder):
    (folder / "event.csv").unlink()
    lines = (folder / MANIFEST).read_text().splitlines(keepends=True)
    (folder / MANIFEST).write_text("".join(line for line in lines if "event.csv" not in line))
    assert any(matches(f, "FILE", "event.csv", None, "", "is not in MANIFEST") for f in verify(folder).findings)


def test_a_line_that_leads_out_of_the_folder_is_not_followed(folder):
    (folder.parent / "secret").write_text("x")
    with (folder / MANIFEST).open("a") as file:
        file.write(f"{'0' * 64}  ../secret\n")
    (finding, *_) = verify(folder).findings
    assert (finding.code, finding.file, finding.row) == ("FORM", MANIFEST, 12)


def test_a_description_of_other_columns_is_found_although_every_hash_is_right(folder, tmp_path):
    package = json.loads((folder / "datapackage.json").read_text())
    package["resources"][0]["schema"]["fields"][0]["type"] = "any"
    (folder / "datapackage.json").write_text(json.dumps(package, indent=1) + "\n")
    found = verify(folder).findings
    assert any(f.code == "DESCRIPTION" and f.file == "datapackage.json" and '"any"' in f.found for f in found)


@pytest.mark.parametrize("name", ["run_id", "manifest_sha256"])
def test_a_statement_about_another_run_is_found(folder, name):
    told = json.loads((folder / STATEMENT).read_text())
    told["predicate"][name] = "0" * 64
    (folder / STATEMENT).write_text(json.dumps(told))
    found = verify(folder).findings
    assert any(matches(f, "DESCRIPTION", STATEMENT, None, "", f"{name} is another") for f in found)


def test_a_file_that_nobody_listed_is_a_note(folder):
    (folder / "report.html").write_text("<p>mine")
    found = verify(folder)
    assert found.ok
    assert found.notes == ("report.html is not in MANIFEST.sha256 and was not looked at",)
