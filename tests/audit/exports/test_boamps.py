"""BoAmps: its rules, and CodeCarbon's own reader of the format.

The rules are those of the JSON Schemas of Boavizta/BoAmps (report, algorithm, dataset, hardware), written down here as
far as they can refuse something. TORCHWATT_BOAMPS_SCHEMAS names a folder of the official files to check them as well.
"""

import json
import os
from pathlib import Path

import jsonschema
import pytest

from tests.audit.exports import golden
from torchwatt.audit.exports import export
from torchwatt.core.errors import BundleError

TEXT, NUMBER = {"type": "string"}, {"type": "number"}


def record(required, **properties):
    return {"type": "object", "required": required.split(), "properties": properties}


def some(items):
    return {"type": "array", "minItems": 1, "items": items}


def one_of(values):
    return {"type": "string", "enum": values.split()}


RULES = record(
    "task measures infrastructure",
    header=record(
        "reportDatetime",
        reportDatetime=TEXT,
        reportId=TEXT,
        formatVersion=TEXT,
        reportStatus=one_of("draft final corrective other"),
        publisher=record(
            "confidentialityLevel", name=TEXT, confidentialityLevel=one_of("public internal confidential secret")
        ),
    ),
    task=record(
        "taskStage taskFamily algorithms dataset",
        taskStage=TEXT,
        taskFamily=TEXT,
        nbRequest=NUMBER,
        algorithms=some(record("", parametersNumber=NUMBER, framework=TEXT, quantization=TEXT)),
        dataset=some(
            record(
                "dataUsage dataType",
                dataUsage=one_of("input output"),
                dataType=one_of("tabular audio boolean image video object text token word other"),
                dataQuantity=NUMBER,
            )
        ),
    ),
    measures=some(
        record("measurementMethod powerConsumption", measurementMethod=TEXT, powerConsumption=NUMBER, version=TEXT)
    ),
    system=record("os", os=TEXT),
    software=record("language", language=TEXT, version=TEXT),
    infrastructure=record(
        "infraType components",
        infraType=one_of("publicCloud privateCloud onPremise other"),
        components=some(record("componentType nbComponent", componentType=TEXT, nbComponent={"type": "integer"})),
    ),
    environment=record("country", country=TEXT, powerSourceCarbonIntensity=NUMBER),
    quality=one_of("high medium low"),
)
DECLARED = {
    "confidentiality": "internal",
    "lifecycle_stage": "pretraining",
    "task_family": "textGeneration",
    "quantity_unit": "token",
    "infra_type": "privateCloud",
    "zone": "FRA",
    "input_quantity": "1310720",
    "params_total": "17000000",
}


@pytest.fixture
def report(bundle, tmp_path):
    return json.loads(export([bundle], "boamps", tmp_path / "r.json", DECLARED).read_text())


def test_the_report_keeps_the_rules(report):
    jsonschema.validate(report, RULES)


@pytest.mark.parametrize(
    "path", ["task.taskFamily", "task.dataset.0.dataType", "measures.0.powerConsumption", "infrastructure.infraType"]
)
def test_the_rules_can_refuse(report, path):
    *way, last = path.split(".")
    place = report
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    del place[last]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, RULES)


def test_codecarbons_own_models_know_every_field(report):
    from codecarbon.output_methods.boamps.models import BoAmpsReport

    assert BoAmpsReport.from_dict(report).to_dict() == report


def test_energy_is_in_kilowatt_hours_without_pue_and_quality_follows_the_interval(report):
    (measure,) = report["measures"]
    assert measure["powerConsumption"] == pytest.approx(7402.148 / 3.6e6)
    assert report["quality"] == "high"  # the interval is within 10 %
    assert report["environment"]["powerSourceCarbonIntensity"] == pytest.approx(50.0)
    assert report["task"]["algorithms"][0]["parametersNumber"] == pytest.approx(0.017)


def test_what_only_the_user_knows_is_asked_for_all_at_once(bundle, tmp_path):
    with pytest.raises(BundleError) as caught:
        export([bundle], "boamps", tmp_path / "r.json", {"infra_type": "onPremise"})
    for name in ("confidentiality", "lifecycle_stage", "task_family", "quantity_unit", "zone"):
        assert name in str(caught.value)
    assert "infra_type" not in str(caught.value)
    assert not (tmp_path / "r.json").exists()


def test_a_run_without_a_meter_has_no_report(unmetered, tmp_path):
    with pytest.raises(BundleError, match="metered"):
        export([unmetered], "boamps", tmp_path / "r.json", DECLARED)


def test_the_file_is_as_agreed(bundle, tmp_path):
    golden.check("boamps.json", export([bundle], "boamps", tmp_path / "r.json", DECLARED).read_text())


@pytest.mark.skipif("TORCHWATT_BOAMPS_SCHEMAS" not in os.environ, reason="needs the official schemas in a folder")
def test_the_report_is_valid_against_the_official_schemas(report):
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT4

    files = Path(os.environ["TORCHWATT_BOAMPS_SCHEMAS"]).glob("*_schema.json")
    schemas = {path.name: json.loads(path.read_text()) for path in files}
    base = "https://raw.githubusercontent.com/Boavizta/BoAmps/main/model/"
    found = ((base + name, Resource(schema, DRAFT4)) for name, schema in schemas.items())
    jsonschema.Draft4Validator(schemas["report_schema.json"], registry=Registry().with_resources(found)).validate(
        report
    )
