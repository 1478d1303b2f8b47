"""New grams, the same measurement: every hash of it unchanged, both years kept, the old bundle untouched."""

import csv
import json
from dataclasses import replace
from hashlib import sha256
from subprocess import run as run_process

import pytest

from tests.support.priced_bundles import FACTORS, priced
from tests.support.reports import DURATION_S, sample_report
from torchwatt.audit import read_bundle, verify, write_bundle
from torchwatt.audit.bundle_writer import ORIGINAL_MANIFEST
from torchwatt.audit.exports import export
from torchwatt.audit.seal import Seal
from torchwatt.carbon import CarbonOptions
from torchwatt.core.errors import BundleError, ConfigError
from torchwatt.offline.repricing import bundle_usage, reprice

CHANGED = {"factor.csv", "impact.csv", "datapackage.json", "MANIFEST.sha256", "statement.json"}
HOUR_NS = 3_600_000_000_000


def hashes(folder):
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def grams(folder, **wanted):
    with (folder / "impact.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]
    return {row["scenario"]: float(row["value"]) for row in rows}


@pytest.fixture
def next_year(tmp_path):
    path = tmp_path / "2026.csv"
    path.write_text(FACTORS.replace("50.0,", "45.0,").replace("2025", "2026"))
    return path


def test_the_measurement_keeps_its_hashes_and_both_years_are_there(bundle, next_year):
    before = hashes(bundle)
    done = reprice(bundle, CarbonOptions(factors=next_year), scenario="2026")
    assert hashes(bundle) == before  # the old bundle is as it was
    after = hashes(done.directory)
    assert {name for name in before if after[name] != before[name]} == CHANGED
    assert set(after) - set(before) == {ORIGINAL_MANIFEST}
    assert after[ORIGINAL_MANIFEST] == before["MANIFEST.sha256"]
    year = grams(done.directory, subject="run", criterion="gwp", phase="usage", accounting_method="location")
    kwh = 7402.148 / 3.6e6
    assert year == pytest.approx({"as_run": kwh * 1.2 * 50, "repriced:2026": kwh * 1.2 * 45})
    years = {row["data_year"] for row in read_bundle(done.directory)["factor"] if row["kind"] == "grid_gwp"}
    assert years == {2025, 2026}


def test_the_new_bundle_holds_by_itself_and_its_manifest_by_sha256sum(bundle, next_year, tmp_path):
    chain = tmp_path / "chain.jsonl"
    done = reprice(bundle, CarbonOptions(factors=next_year), scenario="2026", seal=Seal(chain=chain))
    found = verify(done.directory, chain=chain)
    assert found.ok, str(found)
    checked = run_process(["sha256sum", "-c", "--quiet", "MANIFEST.sha256"], cwd=done.directory)
    assert checked.returncode == 0
    # The old manifest, checked in the new folder, fails for the files that were rewritten and for no other.
    old = run_process(["sha256sum", "-c", ORIGINAL_MANIFEST], cwd=done.directory, capture_output=True, text=True)
    failed = {line.partition(":")[0] for line in old.stdout.splitlines() if line.endswith("FAILED")}
    assert failed == CHANGED - {"MANIFEST.sha256", "statement.json"}


def test_a_repriced_bundle_can_be_priced_again_and_keeps_all(bundle, next_year):
    first = reprice(bundle, CarbonOptions(factors=next_year), scenario="2026").directory
    second = reprice(first, CarbonOptions(intensity_g_per_kwh=10), scenario="green").directory
    assert verify(second).ok
    assert set(grams(second, subject="run", criterion="gwp", phase="usage", accounting_method="location")) == {
        "as_run",
        "repriced:2026",
        "repriced:green",
    }
    assert (second / ORIGINAL_MANIFEST).read_bytes() == (bundle / "MANIFEST.sha256").read_bytes()


def test_the_same_factors_give_the_same_grams_again_and_no_scenario_of_their_own(bundle, factors):
    with pytest.raises(BundleError, match="the same impacts as as_run"):
        reprice(bundle, CarbonOptions(factors=factors), scenario="again")
    assert not bundle.with_name("bundle.again").exists()


def test_hours_are_priced_by_the_hour(tmp_path):
    """Hand-computed: the run is moved so that it crosses 07:00 UTC half way."""
    report = sample_report()
    seven = (report.start_unix_ns // HOUR_NS + 1) * HOUR_NS
    report = replace(report, start_unix_ns=seven - int(DURATION_S / 2 * 1e9))
    bundle = write_bundle(priced(report), tmp_path / "b")
    usage = bundle_usage(read_bundle(bundle))
    (first_j, second_j) = usage.subject("run").hourly_j.values()
    assert first_j + second_j == pytest.approx(7402.148)
    history = tmp_path / "FR_2026_hourly.csv"
    history.write_text(
        "Datetime (UTC),Country,Zone name,Zone id,Carbon intensity gCO₂eq/kWh (direct),"
        "Carbon intensity gCO₂eq/kWh (Life cycle),Data estimated,Data estimation method\n"
        "2026-11-24 06:00:00,France,France,FR,10,20,false,\n"
        "2026-11-24 07:00:00,France,France,FR,40,80,true,TIME_SLICER_AVERAGE\n",
        encoding="utf-8",
    )
    done = reprice(bundle, CarbonOptions(factors=history), scenario="hourly")
    assert verify(done.directory).ok, str(verify(done.directory))
    found = grams(done.directory, subject="run", phase="usage")["repriced:hourly"]
    assert found == pytest.approx((first_j * 20 + second_j * 80) / 3.6e6)
    devices = [grams(done.directory, subject=f"device:{name}", phase="usage") for name in ("gpu:0", "cpu:0", "ram")]
    assert sum(device["repriced:hourly"] for device in devices) == pytest.approx(found)
    (repriced,) = [row for row in read_bundle(done.directory)["factor"] if row["is_estimated"]]
    assert (repriced["zone"], repriced["estimation_method"]) == ("FR", "TIME_SLICER_AVERAGE")


def test_an_altered_bundle_is_not_sealed_anew(bundle, next_year):
    layer = bundle / "layer.csv"
    layer.write_bytes(layer.read_bytes().replace(b"conv", b"conw").replace(b"head", b"heat"))
    with pytest.raises(BundleError, match=r"layer\.csv differs"):
        reprice(bundle, CarbonOptions(factors=next_year), scenario="2026")


def test_what_cannot_be_priced_is_refused(bundle, next_year, unmetered):
    reprice(bundle, CarbonOptions(factors=next_year), scenario="2026")
    for folder, asked, scenario, complaint in (
        (bundle, CarbonOptions(factors=next_year), "2026", "exists"),
        (bundle, CarbonOptions(factors=next_year), "../2027", "scenario="),
        (bundle, CarbonOptions(), "x", "no factors to price with"),
        (bundle, CarbonOptions(pue=1.2), "x", "no factors to price with"),
        (bundle.with_name("bundle.2026"), CarbonOptions(factors=next_year), "2026", "already"),
        (unmetered, CarbonOptions(factors=next_year), "2026", "no metered joules"),
    ):
        with pytest.raises((BundleError, ConfigError), match=complaint):
            reprice(folder, asked, scenario=scenario)


def test_an_export_can_tell_either_year(bundle, next_year, tmp_path):
    folder = reprice(bundle, CarbonOptions(factors=next_year), scenario="2026").directory
    declared = {
        "confidentiality": "public", "lifecycle_stage": "inference", "task_family": "x", "quantity_unit": "text",
        "infra_type": "other", "zone": "FRA",
    }  # fmt: skip
    for scenario, g_per_kwh in (("as_run", 50.0), ("repriced:2026", 45.0)):
        out = export([folder], "boamps", tmp_path / scenario, declared, scenario)
        assert json.loads(out.read_text())["environment"]["powerSourceCarbonIntensity"] == pytest.approx(g_per_kwh)


def test_verify_computes_every_kind_of_impact_again(bundle, tmp_path):
    path = tmp_path / "all.csv"
    head = "kind,value,unit,source_name,device,temporal_resolution,valid_from,valid_to,accounting_method\n"
    path.write_text(
        head
        + "grid_gwp,20,g{CO2e}/kW.h,TSO,,hour,2026-11-24T06:00:00Z,2026-11-24T07:00:00Z,location\n"
        + "grid_gwp,35,g{CO2e}/kW.h,TSO,,hour,2026-11-24T07:00:00Z,2026-11-24T08:00:00Z,location\n"
        + "contract_gwp,7,g{CO2e}/kW.h,PPA,,,,,market\n"
        + "grid_adpe,5e-8,kg{Sbeq}/kW.h,LCA,,,,,\ngrid_pe,9.3,MJ/kW.h,LCA,,,,,\ngrid_wue,3.6,L/kW.h,LCA,,,,,\n"
        + "pue,1.3,1,site,,,,,\nwue,0.2,L/kW.h,site,,,,,\n"
        + "embodied_gwp,164,kg{CO2e},maker,gpu,,,,\nembodied_pe,3000,MJ,maker,gpu,,,,\n"
        + "lifetime,4,a,policy,gpu,,,,\nshare,1,1,whole,gpu,,,,\n"
        + "embodied_gwp,25,kg{CO2e},maker of CPUs,cpu,,,,\nlifetime,6,a,policy,cpu,,,,\nshare,1,1,whole,cpu,,,,\n"
    )
    done = reprice(bundle, CarbonOptions(factors=path), scenario="all")
    found = verify(done.directory)
    assert found.ok, str(found)
    rows = [row for row in read_bundle(done.directory)["impact"] if row["scenario"] == "repriced:all"]
    assert {row["criterion"] for row in rows} == {"gwp", "adpe", "pe", "wcf", "sci"}
    assert {row["phase"] for row in rows} == {"usage", "embodied", "total"}
    (made,) = [row for row in rows if (row["subject"], row["criterion"], row["phase"]) == ("run", "gwp", "embodied")]
    assert made["value"] == pytest.approx(24 / 31_557_600 * 1000 * (164 / 4 + 25 / 6))
    assert "embodied_gwp_2*share/lifetime_2" in made["formula"]


def test_a_formula_that_lies_after_repricing_is_found(bundle, next_year):
    done = reprice(bundle, CarbonOptions(factors=next_year), scenario="2026").directory
    path = done / "impact.csv"
    path.write_text(path.read_text().replace("energy_j/3.6e6*pue*grid_gwp", "energy_j/3.7e6*pue*grid_gwp"))
    codes = {finding.code for finding in verify(done).findings}
    assert {"FORMULA", "HASH"} <= codes


def test_another_grid_leaves_the_building_as_it_was_declared_unless_told_otherwise(tmp_path):
    folder = tmp_path / "audit"
    write_bundle(priced(sample_report(), intensity_g_per_kwh=50, pue=1.2), folder)
    kwh = 7402.148 / 3.6e6
    wanted = {"subject": "run", "criterion": "gwp", "phase": "usage"}
    kept = reprice(folder, CarbonOptions(intensity_g_per_kwh=100), scenario="kept")
    assert grams(kept.directory, **wanted)["repriced:kept"] == pytest.approx(kwh * 1.2 * 100)
    ours = {row["factor_id"] for row in read_bundle(folder)["factor"] if row["kind"] == "pue"}
    theirs = [row["factor_id"] for row in read_bundle(kept.directory)["factor"] if row["kind"] == "pue"]
    assert set(theirs) == ours
    assert len(theirs) == 1
    told = reprice(folder, CarbonOptions(intensity_g_per_kwh=100, pue=1.5), scenario="told")
    assert grams(told.directory, **wanted)["repriced:told"] == pytest.approx(kwh * 1.5 * 100)
    assert all(verify(found.directory).ok for found in (kept, told))
    with pytest.raises(ConfigError, match="no factors to price with"):
        reprice(folder, CarbonOptions(), scenario="none")  # a building alone prices nothing


def test_an_expired_factor_is_refused_and_with_the_flag_it_is_in_the_row(bundle, tmp_path, capsys):
    from torchwatt.cli.command_parser import run_command

    old = tmp_path / "old.csv"
    old.write_text(
        "kind,value,unit,source_name,zone,valid_from,valid_to\n"
        "grid_gwp,50,g{CO2e}/kW.h,operator,FRA,2024-01-01T00:00:00Z,2025-01-01T00:00:00Z\n"
    )
    command = ["reprice", str(bundle), "--factors", str(old), "--scenario", "old", "--to", str(tmp_path / "new")]
    assert run_command(command) != 0
    assert "has expired" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert run_command([*command, "--allow-expired"]) == 0
    notes = [row["coverage_note"] for row in read_bundle(tmp_path / "new")["factor"]]
    assert any("applied outside of its dates" in str(note) for note in notes)
    assert verify(tmp_path / "new").ok
    capsys.readouterr()
    assert run_command([*command[:-2], "--to", str(tmp_path / "pl"), "--region", "POL", "--allow-expired"]) != 0
    assert "different grids" in capsys.readouterr().err
