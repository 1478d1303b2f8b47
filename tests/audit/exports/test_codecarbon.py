"""CodeCarbon's file: its header, its own appender, its own sums."""

import csv
from dataclasses import fields

import pytest

from tests.audit.exports import golden
from torchwatt.audit.exports import export
from torchwatt.audit.exports.emissions_csv import COLUMNS


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(row, *names):
    return [float(row[name]) for name in names]


def test_the_header_is_that_of_the_installed_codecarbon():
    from codecarbon.output_methods.emissions_data import EmissionsData

    assert tuple(field.name for field in fields(EmissionsData)) == COLUMNS
    assert len(COLUMNS) == 38


def test_the_row_is_in_its_units(bundle, tmp_path):
    (row,) = rows(export([bundle], "codecarbon", tmp_path / "emissions.csv"))
    with (bundle / "run.csv").open(newline="") as file:
        run = next(csv.DictReader(file))
    kwh = float(run["energy_it_j"]) / 3.6e6 * 1.2
    total, cpu, gpu, ram = numbers(row, "energy_consumed", "cpu_energy", "gpu_energy", "ram_energy")
    assert total == pytest.approx(kwh)
    assert cpu + gpu + ram == pytest.approx(total)
    kilograms, rate, duration = numbers(row, "emissions", "emissions_rate", "duration")
    assert kilograms == pytest.approx(kwh * 50 / 1000)
    assert rate * duration == pytest.approx(kilograms)
    assert float(row["gpu_power"]) * duration / 3.6e6 == pytest.approx(gpu)
    assert row["pue"] == "1.2"
    assert row["cpu_utilization_percent"] == ""


def test_codecarbon_appends_to_our_file_and_reads_both_rows(bundle, tmp_path):
    import pandas as pd
    from codecarbon.output_methods.emissions_data import EmissionsData
    from codecarbon.output_methods.file import FileOutput

    ours = export([bundle], "codecarbon", tmp_path / "emissions.csv")
    before = ours.read_text()
    theirs = EmissionsData(
        "2026-11-24T07:00:00", "theirs", "id-2", "", 5.0, 0.1, 0.02, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 15.0, 0.0, "France",
        "FRA", "", "", "", "Linux", "3.11", "3.3.2", 8, "cpu", 1, "gpu", 2.3, 48.8, 64.0, "machine",
    )  # fmt: skip
    FileOutput("emissions.csv", str(tmp_path)).out(theirs, None)
    assert ours.read_text().startswith(before)
    assert [path.name for path in tmp_path.glob("emissions*")] == ["emissions.csv"]
    both = pd.read_csv(ours)
    assert both["project_name"].tolist() == ["train tiny GPT", "theirs"]
    assert both["energy_consumed"].tolist()[1] == 15.0
    assert both["pue"].tolist() == [1.2, 1.0]


def test_unknown_is_empty_and_never_zero(joules_only, unmetered, tmp_path):
    first, second = rows(export([joules_only, unmetered], "codecarbon", tmp_path / "e.csv"))
    assert (first["emissions"], first["emissions_rate"], first["pue"]) == ("", "", "")
    assert first["energy_consumed"] != ""
    assert (second["energy_consumed"], second["cpu_energy"], second["gpu_count"]) == ("", "", "")


def test_the_file_is_as_agreed(bundle, tmp_path):
    golden.check("emissions.csv", export([bundle], "codecarbon", tmp_path / "e.csv").read_text())
