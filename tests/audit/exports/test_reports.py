"""The card, the score and the form."""

import re

import pytest
import yaml

from tests.audit.exports import golden
from tests.support.priced_bundles import priced
from tests.support.reports import HOSTILE, named_report
from torchwatt.audit import write_bundle
from torchwatt.audit.exports import export
from torchwatt.core.errors import BundleError

ENERGY_J = 7402.148


def test_the_card_has_grams_and_hugging_face_reads_it(bundle, tmp_path):
    from huggingface_hub import ModelCard

    block = export([bundle], "huggingface", tmp_path / "card.yaml", {"zone": "FRA"}).read_text()
    golden.check("co2_eq_emissions.yaml", block)
    card = ModelCard(f"---\n{block}---\n# Model\n")
    said = card.data.to_dict()["co2_eq_emissions"]
    assert said["emissions"] == pytest.approx(ENERGY_J / 3.6e6 * 1.2 * 50)  # grams, not kilograms
    assert said["geographical_location"] == "FRA"
    assert "NVIDIA H200" in said["hardware_used"]


def test_there_is_no_card_without_grams(joules_only, tmp_path):
    with pytest.raises(BundleError, match="reprice"):
        export([joules_only], "huggingface", tmp_path / "card.yaml")


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_breaks_out_of_the_block_or_the_table(name, tmp_path):
    bundle = write_bundle(priced(named_report(name), intensity_g_per_kwh=50), tmp_path / "b")
    card = yaml.safe_load(export([bundle], "huggingface", tmp_path / "c", {"zone": name}).read_text())
    assert card["co2_eq_emissions"]["geographical_location"] == name
    for to in ("sci", "ai-act", "sci-ai"):
        declared = {"persona": "provider"} if to == "sci-ai" else {}
        text = export([bundle], to, tmp_path / to, declared).read_text()
        assert "<script" not in text.replace("\\<script", "")
        tables = [line for line in text.splitlines() if line.startswith("|")]
        assert all(line.endswith("|") for line in tables)


def test_the_score_is_energy_times_intensity_plus_embodied_over_units(bundle, tmp_path):
    text = export([bundle], "sci", tmp_path / "sci.md").read_text()
    golden.check("sci.md", text)
    usage_g = ENERGY_J / 3.6e6 * 1.2 * 50
    made_g = 164_000 * 24 / (4 * 31_557_600) * 0.5
    score = float(re.search(r"\*\*([0-9.]+) gCO2e per token\*\*", text)[1])
    assert score == pytest.approx((usage_g + made_g) / 1_310_720, rel=2e-3)


def test_there_is_no_score_without_embodied_and_the_report_says_so(joules_only, tmp_path):
    text = export([joules_only], "sci", tmp_path / "sci.md").read_text()
    assert "**No score.** No grid was named" in text


def test_components_add_up_to_the_whole(bundle, tmp_path):
    lines = export([bundle], "sci", tmp_path / "sci.md").read_text().split("## Components")[1].splitlines()
    kwh = [
        float(line.split("|")[3]) for line in lines if line.count("|") == 6 and "---" not in line and "kWh" not in line
    ]
    assert sum(kwh[:-1]) == pytest.approx(kwh[-1], rel=5e-3)


def test_the_form_says_megawatt_hours_with_enough_figures(bundle, tmp_path):
    text = export([bundle], "ai-act", tmp_path / "a.md").read_text()
    golden.check("ai_act.md", text)
    said = re.search(r"Energy \(MWh\) \| ([0-9.]+)", text)[1]
    assert float(said) == pytest.approx(ENERGY_J / 3.6e9, rel=5e-3)
    assert len(said.strip("0.")) >= 2
    assert "estimated" in text  # the RAM is modelled, so the whole is
    assert 60 <= len(text.split("**Method.**")[1].split("**Missing")[0].split()) <= 130


def test_the_form_of_an_unmetered_run_says_what_is_missing(unmetered, tmp_path):
    text = export([unmetered], "ai-act", tmp_path / "a.md").read_text()
    assert "energy: nothing was metered" in text
    assert "| Energy (MWh) | N/A |" in text


@pytest.mark.parametrize("to", ["sci", "ai-act", "codecarbon", "huggingface", "parquet"])
def test_an_existing_file_is_never_written_over(bundle, tmp_path, to):
    export([bundle], to, tmp_path / "x")
    with pytest.raises(BundleError, match="exists already"):
        export([bundle], to, tmp_path / "x")


def test_what_cannot_be_asked_is_refused(bundle, tmp_path):
    for bad, complaint in (
        ({"to": "pdf"}, "no format 'pdf'"),
        ({"to": "sci", "scenario": "repriced:1999"}, "no impacts of scenario"),
        ({"to": "sci", "declared": {"energy_it_j": "1"}}, "cannot be declared"),
        ({"to": "sci", "declared": {"params_total": "many"}}, "expected a"),
    ):
        with pytest.raises(BundleError, match=complaint):
            export([bundle], out=tmp_path / "x", **bad)
    with pytest.raises(BundleError, match="about one run"):
        export([bundle, bundle], "sci", tmp_path / "x")
