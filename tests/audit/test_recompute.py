"""A program that has never heard of torchwatt gets the same joules and grams out of the files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bundles import rich_report
from torchwatt.audit import read_bundle, write_bundle

SCRIPT = Path(__file__).with_name("recompute.py")


def real_run(target):
    import torch

    import torchwatt as tw

    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.GELU(), torch.nn.Linear(256, 8))
    with tw.profile(model, region="FRA", pue=1.25) as run:
        for _ in range(60):
            model(torch.ones(64, 256)).square().mean().backward()
    run.to_csv(target, samples="csv.gz")


def made_run(target):
    write_bundle(rich_report(), target, samples="csv.gz")


@pytest.mark.parametrize("make", [real_run, made_run])
def test_energy_and_grams_come_out_of_the_tables_alone(tmp_path, make):
    make(tmp_path / "audit")
    assert "torchwatt" not in [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("import")]
    # -I: no PYTHONPATH, so the script could not import torchwatt from here if it wanted to.
    out = subprocess.run([sys.executable, "-I", SCRIPT, tmp_path / "audit"], capture_output=True, text=True, check=True)
    again, bundle = json.loads(out.stdout), read_bundle(tmp_path / "audit")
    total_j = bundle.run["energy_it_j"]
    assert total_j > 0
    for name in ("samples_j", "layers_j", "hours_j"):
        assert again[name] == pytest.approx(total_j, rel=1e-9), name
    wanted = {"subject": "run", "criterion": "gwp", "phase": "usage", "accounting_method": "location"}
    told = (row for row in bundle["impact"] if all(row[name] == value for name, value in wanted.items()))
    assert again["grams"] == pytest.approx(next(told)["value"], rel=1e-9)
