"""Bundles of earlier versions are still checked, read, shown, priced, kept and ingested."""

import csv
import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from torchwatt.audit import read_bundle, verify
from torchwatt.audit.report_loader import load_report
from torchwatt.audit.schema.schema_versions import CURRENT, is_newer, schema_of, version_in
from torchwatt.audit.store import Store
from torchwatt.carbon import CarbonOptions
from torchwatt.cli.bundle_commands import show_bundle
from torchwatt.offline.repricing import reprice

FOLDERS = {"1.2.0": Path(__file__).parent / "schema_1_2", "2.0.0": Path(__file__).parent / "schema_2_0"}
BUNDLES = {version: sorted(folder.iterdir()) for version, folder in FOLDERS.items()}
EVERY = [path for paths in BUNDLES.values() for path in paths]


@pytest.fixture(params=EVERY, ids=[f"{path.parent.name} {path.name}" for path in EVERY])
def old(request):
    return request.param


def table(folder, name):
    with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def version_of(bundle):
    return next(version for version, paths in BUNDLES.items() if bundle in paths)


def test_they_are_of_their_version_and_verify(old):
    assert version_in(old) == version_of(old)
    found = verify(old)
    assert found.ok, str(found)
    assert found.rows["layer.csv"] == len(table(old, "layer"))
    lacks = f"what version {version_of(old)} did not write (device.csv: device_key, machine_key)"
    assert [each for each in found.unseen if each.startswith(lacks)]


def test_a_digit_that_changed_is_still_found(old, tmp_path):
    folder = tmp_path / "spoilt"
    shutil.copytree(old, folder)
    text = (folder / "run.csv").read_text()
    energy = table(old, "run")[0]["energy_it_j"]
    (folder / "run.csv").write_text(text.replace(energy, str(float(energy) * 1.01), 1))
    assert {("HASH", "run.csv"), ("DERIVED", "run.csv")} <= {(f.code, f.file) for f in verify(folder).findings}


def test_they_name_no_device_across_runs(old):
    assert {(row["device_key"], row["machine_key"]) for row in read_bundle(old)["device"]} == {(None, None)}


@pytest.mark.parametrize("old", BUNDLES["1.2.0"], ids=lambda path: path.name)
def test_rows_of_version_1_have_todays_names_and_what_they_did_not_say_is_missing(old):
    bundle = read_bundle(old)
    written, run = table(old, "run")[0], bundle.run
    assert run["energy_it_systematic_lo_j"] == (float(written["energy_it_lo_j"]) if written["energy_it_lo_j"] else None)
    assert run["energy_it_reading_u_j"] == pytest.approx(float(written["energy_it_u_j"]))
    assert run["energy_it_lo_j"] is run["energy_it_u_j"] is run["traced_step_count"] is None
    for before, now in zip(table(old, "device"), bundle["device"], strict=True):
        assert now["counted"] == (before["counts_toward_total"] == "true")
        assert now["energy_lo_j"] is now["energy_u_j"] is None
    for row in bundle["layer"]:
        assert row["stage"] is row["energy_systematic_lo_j"] is None


def test_show_prints_them(old, capsys):
    assert show_bundle(str(old), everything=True) == 0
    out = capsys.readouterr().out
    assert all(row["fqn"][:40] in out for row in table(old, "layer"))


def steps_of(folder):
    return [row for row in table(folder, "window") if row["kind"] == "step"]


def test_they_are_rebuilt_with_the_same_joules(old):
    report = load_report(old)
    assert report.energy_j == pytest.approx(float(table(old, "run")[0]["energy_it_j"]), rel=1e-12)
    assert {step.stage for step in report.steps} == {str(row.get("stage", "")) for row in steps_of(old)}


def test_reprice_keeps_their_measured_files_and_their_version(old, tmp_path):
    made = reprice(
        old, CarbonOptions(intensity_g_per_kwh=100.0), scenario="later", target=tmp_path / "priced"
    ).directory
    for name in ("run.csv", "device.csv", "layer.csv", "window.csv"):
        assert (made / name).read_bytes() == (old / name).read_bytes()
    assert json.loads((made / "datapackage.json").read_text())["version"] == version_of(old)
    found = verify(made)
    assert found.ok, str(found)


def test_a_store_keeps_them(old, tmp_path):
    store = Store(tmp_path)
    folder = tmp_path / "default" / old.name
    folder.parent.mkdir(parents=True)
    shutil.copytree(old, folder)
    energies = [run.energy_j for run in store.runs()]
    assert energies == [pytest.approx(float(table(old, "run")[0]["energy_it_j"]))]


def test_a_lake_takes_them_beside_todays(tmp_path):
    pytest.importorskip("duckdb")
    from tests.support.reports import sample_report
    from torchwatt.audit import write_bundle
    from torchwatt.audit.fleet.ingestion import ingest
    from torchwatt.audit.fleet.lake import open_lake
    from torchwatt.audit.fleet.lake_queries import check_lake, connect

    runs = tmp_path / "runs"
    for folder in FOLDERS.values():
        shutil.copytree(folder, runs / folder.name)
    write_bundle(sample_report(run_id="0193f2c1-7a55-7c11-9d2e-0000000000ff"), runs / "new")
    lake = open_lake(tmp_path / "lake")
    ingest(lake, [runs], jobs=1)
    assert check_lake(lake) == ()
    with connect(lake) as connection:
        counts = "SELECT schema_version, count(*) FROM lake_run GROUP BY ALL ORDER BY 1"
        versions = connection.execute(counts).fetchall()
    assert versions == [("1.2.0", 3), ("2.0.0", 2), (CURRENT.version, 1)]


@pytest.mark.parametrize(
    ("version", "known"),
    [("1.1.0", True), ("1.2.0", True), ("1.3.0", False), ("2.0.0", True), ("3.0.0", False), ("0.9.0", False)],
)
def test_versions_that_are_known(version, known):
    assert (schema_of(version) is not None) is known


def test_a_newer_minor_version_is_read_as_ours_and_rubbish_is_left_to_the_checks(tmp_path):
    assert schema_of("2.7.0") is schema_of("rubbish") is CURRENT
    assert is_newer("2.7.0")
    assert not is_newer("2.0.0")
    assert schema_of("2.0.0") is not CURRENT
    assert not is_newer(CURRENT.version)
    assert version_in(tmp_path) == ""


def test_the_old_tables_are_frozen():
    """Whoever changes them makes every bundle of version 1 fail: they are what 1.2 wrote."""
    path = Path(schema_of.__code__.co_filename).with_name("version_1.json")
    assert sha256(path.read_bytes()).hexdigest() == FROZEN


FROZEN = "729185ee4c0b397d68e005cd12dba2dfde996ba770de13a22a171d98ec3d91d1"
