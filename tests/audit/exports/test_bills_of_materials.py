"""SPDX 3 and CycloneDX: energy of a model in its bill of materials, read back by the formats' own packages."""

import json

import pytest

from tests.audit.exports import golden
from tests.support.priced_bundles import priced
from tests.support.reports import sample_report
from torchwatt.audit import write_bundle
from torchwatt.audit.exports import export
from torchwatt.core.errors import BundleError

ENERGY_KWH = 7402.148 / 3.6e6
DECLARED = {"lifecycle_stage": "pretraining", "model_id": "tiny-gpt", "model_revision": "1"}
STAGES = ("data_preparation", "pretraining", "finetuning", "evaluation", "inference", "other")


def consumption(document):
    (component,) = document["components"]
    (found,) = component["modelCard"]["considerations"]["environmentalConsiderations"]["energyConsumptions"]
    return found


def test_cyclonedx_has_kilowatt_hours_and_tonnes_of_the_bundle(bundle, tmp_path):
    text = export([bundle], "cyclonedx", tmp_path / "c.json", DECLARED).read_text()
    golden.check("cyclonedx.json", text)
    found = consumption(json.loads(text))
    assert found["activity"] == "training"
    assert found["activityEnergyCost"] == {"value": pytest.approx(ENERGY_KWH), "unit": "kWh"}
    assert found["co2CostEquivalent"] == {"value": pytest.approx(ENERGY_KWH * 1.2 * 50 / 1e6), "unit": "tCO2eq"}
    facts = {item["name"]: item["value"] for item in found["properties"]}
    assert facts["torchwatt:boundary"] == "cpu:0;gpu:0;ram"
    assert facts["torchwatt:energy_provenance"] == "modelled"


def test_cyclonedx_without_a_grid_has_no_co2(joules_only, tmp_path):
    found = consumption(json.loads(export([joules_only], "cyclonedx", tmp_path / "c.json", DECLARED).read_text()))
    assert "co2CostEquivalent" not in found


@pytest.mark.parametrize("to", ["cyclonedx", "spdx"])
def test_the_stage_is_asked_for_and_never_invented(to, bundle, unmetered, tmp_path):
    with pytest.raises(BundleError, match="--set lifecycle_stage="):
        export([bundle], to, tmp_path / "x")
    with pytest.raises(BundleError, match="metered"):
        export([unmetered], to, tmp_path / "x", DECLARED)


def test_spdx_has_words_for_three_stages_only(bundle, tmp_path):
    with pytest.raises(BundleError, match="pretraining, finetuning, inference"):
        export([bundle], "spdx", tmp_path / "x", {"lifecycle_stage": "evaluation"})


def test_spdx_names_the_extra_that_brings_its_package(bundle, tmp_path, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("spdx_python_model")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_NoSpdx(), *sys.meta_path])
    with pytest.raises(BundleError, match=r"pip install 'torchwatt\[spdx\]'") as caught:
        export([bundle], "spdx", tmp_path / "x", DECLARED)
    assert "\n" not in str(caught.value)


class _NoSpdx:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("spdx_python_model"):
            raise ImportError("not here")


@pytest.mark.heavy
@pytest.mark.parametrize("version", ["V1_6", "V1_7"])
@pytest.mark.parametrize("stage", STAGES)
def test_cyclonedx_is_valid_by_its_published_schema(stage, version, bundle, tmp_path):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = export([bundle], "cyclonedx", tmp_path / "c.json", {**DECLARED, "lifecycle_stage": stage}).read_text()
    text = text.replace('"specVersion": "1.6"', f'"specVersion": "{version[1:].replace("_", ".")}"')
    check = JsonStrictValidator(SchemaVersion[version]).validate_str
    assert check(text) is None
    document = json.loads(text)
    del consumption(document)["activityEnergyCost"]
    assert check(json.dumps(document)) is not None  # the schema can refuse


@pytest.mark.heavy
@pytest.mark.parametrize("stage", ["pretraining", "finetuning", "inference"])
def test_spdx_is_read_back_by_its_own_model(stage, bundle, tmp_path):
    import spdx_python_model

    text = export([bundle], "spdx", tmp_path / "s.json", {**DECLARED, "lifecycle_stage": stage}).read_text()
    if stage == "pretraining":
        golden.check("spdx.json", text)
    _, objects = spdx_python_model.load_data(json.loads(text))
    (model,) = objects.foreach_type("ai_AIPackage")
    word = {"pretraining": "training"}.get(stage, stage)
    (found,) = getattr(model.ai_energyConsumption, f"ai_{word}EnergyConsumption")
    assert found.ai_energyQuantity == pytest.approx(ENERGY_KWH)
    assert found.ai_energyUnit.endswith("kilowattHour")
    assert (model.name, model.software_packageVersion) == ("tiny-gpt", "1")
    broken = text.replace('"kilowattHour"', '"horsepowerHour"')
    with pytest.raises(ValueError, match="horsepowerHour"):
        spdx_python_model.load_data(json.loads(broken))


@pytest.mark.heavy
def test_spdx_writes_small_quantities_without_an_exponent(tmp_path):
    pytest.importorskip("spdx_python_model")
    report = priced(sample_report(), intensity_g_per_kwh=50)
    from torchwatt.audit.bundle import read_bundle
    from torchwatt.audit.exports.model_cards import spdx_json

    bundle = read_bundle(write_bundle(report, tmp_path / "b"))
    bundle.tables["run"][0].update(energy_it_j=1e-5, lifecycle_stage="inference")
    (quantity,) = {
        item["ai_energyConsumption"]["ai_inferenceEnergyConsumption"][0]["ai_energyQuantity"]
        for item in json.loads(spdx_json([bundle]))["@graph"]
        if "ai_energyConsumption" in item
    }
    assert "e" not in quantity
    assert float(quantity) == pytest.approx(1e-5 / 3.6e6)
