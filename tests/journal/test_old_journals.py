"""Journals and payloads of earlier code are still recovered, verified and rendered, with the figures that it showed.

Each folder holds the journal of a small training that was killed half-way, made by the code of that day, and what that
code made of it: `figures.json` and the payload of its report. The front end's own test renders the payloads.
"""

import json
import os
import shutil
from math import fsum
from pathlib import Path

import pytest

from torchwatt.audit import verify
from torchwatt.audit.report_loader import load_report
from torchwatt.journal.recovery import recover
from torchwatt.reports.output_files import write_csv
from torchwatt.views import to_html_page, to_payload, to_text

FOLDERS = sorted(path for path in (Path(__file__).parent / "old_journals").iterdir() if path.is_dir())
SAME_LAYERS = {"2026_12_01"}  # since then only names changed; before, threads shared joules equally, among others
LAYER_REL = 0.05  # what later estimators changed in the sum of all layers of half a second


@pytest.fixture(params=FOLDERS, ids=[path.name for path in FOLDERS])
def folder(request):
    return request.param


@pytest.fixture
def figures(folder):
    return json.loads((folder / "figures.json").read_text())


@pytest.fixture
def report(folder, tmp_path):
    """Recover a copy that was last written long ago, as those of a checkout were not."""
    copy = tmp_path / "journal"
    copy.mkdir()
    for path in folder.glob("*.journal"):
        shutil.copy(path, copy)
        os.utime(copy / path.name, (1.7e9, 1.7e9))
    return recover(copy)


def entries(report):
    return {(str(e.domain), e.fqn, e.phase): e for ledger in report.ledgers for e in ledger.entries}


def test_there_are_journals_from_before_the_restructuring():
    assert {path.name for path in FOLDERS} >= {"2026_11_24", "2026_12_01"}


def test_it_is_recovered_with_the_figures_of_its_day(report, figures):
    assert (report.status, report.run_id) == (figures["status"], figures["run_id"])
    assert report.duration_s == pytest.approx(figures["duration_s"], rel=1e-12)
    assert report.energy_j == pytest.approx(figures["energy_j"], rel=1e-12)
    assert {str(x.domain): x.energy_j for x in report.ledgers} == pytest.approx(figures["devices"], rel=1e-12)
    assert sum(step.count for step in report.steps) == figures["steps"]
    assert sorted({event.code for event in report.events}) == figures["events"]


def test_its_layers_are_those_of_its_day(report, figures, folder):
    old = {(domain, fqn, phase): (energy_j, calls) for domain, fqn, phase, energy_j, calls in figures["layers"]}
    new = entries(report)
    assert {row: entry.calls for row, entry in new.items()} == {row: calls for row, (_, calls) in old.items()}
    if folder.name in SAME_LAYERS:
        assert {row: entry.energy_self_j for row, entry in new.items()} == pytest.approx(
            {row: energy_j for row, (energy_j, _) in old.items()}, rel=1e-9
        )
    modules = [row for row in old if not row[1].startswith("(") or row[1] == "(root)"]
    assert fsum(new[row].energy_self_j for row in modules) == pytest.approx(
        fsum(old[row][0] for row in modules), rel=LAYER_REL
    )


def test_its_bundle_verifies_and_is_read_again(report, tmp_path):
    bundle = write_csv(report, tmp_path / "bundle")
    checked = verify(bundle)
    assert checked.ok, str(checked)
    assert load_report(bundle).energy_j == pytest.approx(report.energy_j, rel=1e-12)


def test_its_views_show_the_total_of_its_day(report, figures, folder):
    old = json.loads((folder / "payload.json").read_text())
    payload = to_payload(report)
    assert old["version"] == payload["version"]
    assert payload["energy"]["value_j"] == old["energy"]["value_j"]
    assert {domain["domain"] for domain in payload["domains"]} == {domain["domain"] for domain in old["domains"]}
    figure = old["energy"]["text"].split()[0]
    assert figure in to_text(report)
    assert figure in to_html_page(report)
