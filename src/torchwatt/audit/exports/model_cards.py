"""Cards of a model's run: BoAmps, Hugging Face, and bills of materials of SPDX 3 and CycloneDX.

BoAmps is Boavizta's schema for sharing measures of AI tasks; the report is made from measurements and declarations.

Required by its JSON Schema: header.reportDatetime, publisher.confidentialityLevel, task.taskStage, taskFamily,
algorithms, dataset (dataUsage and dataType), measures (measurementMethod, powerConsumption in kWh), infrastructure
(infraType, components), environment.country. Values that only the user can know must be declared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from io import BytesIO
from typing import Any
from uuid import UUID, uuid5

from torchwatt.audit.bundle import (
    SYSTEMATIC,
    Bundle,
    counted_devices,
    factors_of,
    first_of_kind,
    impact,
    intensity_g_per_kwh,
    kwh,
    number,
    text,
    timestamp,
)
from torchwatt.audit.schema import Row
from torchwatt.core.errors import BundleError, MissingPackageError, import_optional

FORMAT_VERSION = "0.1"
SPECIFICATION = "https://github.com/Boavizta/BoAmps/tree/main/model"
# Required by the schema and not measurable: column of `run` -> expected values.
REQUIRED_DECLARATIONS: Mapping[str, str] = {
    "confidentiality": "public, internal, confidential or secret",
    "lifecycle_stage": "such as training, finetuning or inference",
    "task_family": "such as textGeneration",
    "quantity_unit": "what went in: tabular, audio, boolean, image, video, object, text, token, word or other",
    "infra_type": "publicCloud, privateCloud, onPremise or other",
}
_DATA = ("tabular", "audio", "boolean", "image", "video", "object", "text", "token", "word", "other")
# Largest relative error of each word, by the description of the schema.
_QUALITY = ((0.10, "high"), (0.25, "medium"), (0.50, "low"))


def boamps_json(bundles: Sequence[Bundle]) -> bytes:
    """Return the report of one run.

    Raises:
        BundleError: There is no metered energy, or declarations are missing; the message names all of them.
    """
    (bundle,) = bundles
    energy_kwh = kwh(bundle.run, "energy_it_j")
    if energy_kwh is None:
        raise BundleError("a BoAmps report needs metered energy, and nothing could be metered in this run")
    _require_declarations(bundle)
    report = _without_empty(
        {
            "header": _header(bundle),
            "task": _task(bundle),
            "measures": [_measure(bundle, energy_kwh)],
            "system": {"os": text(bundle.run, "os") or "unknown", "distributionVersion": text(bundle.run, "kernel")},
            "software": {"language": "python", "version": text(bundle.run, "python_version")},
            "infrastructure": _infrastructure(bundle),
            "environment": _environment(bundle),
            "quality": _quality(bundle.run),
        }
    )
    return (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode()


def _require_declarations(bundle: Bundle) -> None:
    missing = [
        f"{name} ({explanation})" for name, explanation in REQUIRED_DECLARATIONS.items() if not text(bundle.run, name)
    ]
    missing += [] if text(bundle.run, "zone") else ["zone (the country)"]
    if missing:
        raise BundleError(f"BoAmps asks for what no meter knows; declare by --set NAME=VALUE: {'; '.join(missing)}")
    if text(bundle.run, "quantity_unit") not in _DATA:
        raise BundleError(f"quantity_unit={text(bundle.run, 'quantity_unit')!r}: BoAmps knows {', '.join(_DATA)}")


def _header(bundle: Bundle) -> dict[str, Any]:
    run = bundle.run
    return {
        "formatVersion": FORMAT_VERSION,
        "formatVersionSpecificationUri": SPECIFICATION,
        "reportId": text(run, "run_id"),
        "reportDatetime": _time(run, "ended_at"),
        "reportStatus": "final" if text(run, "status") == "complete" else "draft",
        "publisher": {
            "name": text(run, "organisation"),
            "projectName": text(run, "name"),
            "confidentialityLevel": text(run, "confidentiality"),
        },
    }


def _time(run: Row, name: str) -> str:
    return f"{timestamp(run, name):%Y-%m-%d %H:%M:%S}"


def _task(bundle: Bundle) -> dict[str, Any]:
    run = bundle.run
    parameters = number(run, "params_total")
    stage = text(run, "lifecycle_stage")
    quantities = {"input": number(run, "input_quantity"), "output": number(run, "output_quantity")}
    sides = [side for side, quantity in quantities.items() if quantity is not None] or ["input"]
    return {
        "taskStage": stage,
        "taskFamily": text(run, "task_family"),
        "nbRequest": number(run, "functional_unit_count") if text(run, "functional_unit") == "request" else None,
        "algorithms": [
            {
                "algorithmName": text(run, "architecture"),
                "foundationModelName": text(run, "model_id"),
                "framework": "pytorch",
                "frameworkVersion": text(run, "torch_version"),
                "parametersNumber": None if parameters is None else parameters / 1e9,
                "quantization": text(run, "quantization") or text(run, "dtype"),
            }
        ],
        "dataset": [
            {"dataUsage": side, "dataType": text(run, "quantity_unit"), "dataQuantity": quantities[side]}
            for side in sides
        ],
    }


def _measure(bundle: Bundle, energy_kwh: float) -> dict[str, Any]:
    run = bundle.run
    sensors = {kind: text(rows[0], "sensor") for kind in ("cpu", "gpu") if (rows := counted_devices(bundle, kind))}
    return {
        "measurementMethod": "torchwatt",
        "version": text(run, "tool_version"),
        "cpuTrackingMode": sensors.get("cpu"),
        "gpuTrackingMode": sensors.get("gpu"),
        "powerConsumption": energy_kwh,
        "measurementDuration": number(run, "duration_s"),
        "measurementDateTime": _time(run, "started_at"),
    }


def _infrastructure(bundle: Bundle) -> dict[str, Any]:
    run = bundle.run
    return {
        "infraType": text(run, "infra_type"),
        "cloudProvider": text(run, "cloud_provider"),
        "cloudInstance": text(run, "instance_type"),
        "components": list(_components(bundle)),
    }


def _components(bundle: Bundle) -> Iterator[dict[str, Any]]:
    same = Counter((text(row, "kind"), text(row, "model"), text(row, "vendor")) for row in counted_devices(bundle))
    for (kind, model, vendor), n in sorted(same.items()):
        yield {"componentType": kind, "componentName": model, "manufacturer": vendor, "nbComponent": n}


def _environment(bundle: Bundle) -> dict[str, Any]:
    country, _, place = text(bundle.run, "zone").partition("/")
    return {"country": country, "location": place, "powerSourceCarbonIntensity": intensity_g_per_kwh(bundle)}


def _quality(run: Row) -> str | None:
    """Return the word for the 90 % interval of the energy; None without an interval."""
    total, lo, hi = (number(run, name) for name in ("energy_it_j", *SYSTEMATIC))
    if not total or lo is None or hi is None:
        return None
    error = max(total - lo, hi - total) / total
    return next((word for bound, word in _QUALITY if error <= bound), None)


def _without_empty(value: Any) -> Any:
    """Remove empty values: the schema would take an empty text for a statement."""
    if isinstance(value, dict):
        items = {name: _without_empty(item) for name, item in value.items()}
        return {name: item for name, item in items.items() if item not in (None, "", {})}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


_STAGES = {"pretraining": "pre-training", "finetuning": "fine-tuning"}


def card_yaml(bundles: Sequence[Bundle]) -> bytes:
    """Return the block for the front matter of a card.

    Raises:
        BundleError: The run has no grams.
    """
    (bundle,) = bundles
    grams = impact(bundle, "gwp")
    if grams is None:
        raise BundleError("this run has no grams (no region was named): use `torchwatt reprice` first")
    run = bundle.run
    grid = first_of_kind(factors_of(bundle, grams), "grid_gwp")
    about = f"torchwatt {text(run, 'tool_version')}, energy {text(run, 'energy_it_provenance')}"
    if grid is not None:
        year = text(grid, "data_year")
        about += f"; grid {text(grid, 'source_name')}{f' {year}' if year else ''} ({text(grid, 'basis')})"
    models = sorted({text(row, "model") for row in counted_devices(bundle, "gpu", "cpu") if text(row, "model")})
    fields = {
        "emissions": repr(number(grams, "value")),
        "source": json.dumps(about, ensure_ascii=False),
        "training_type": _quote(_STAGES.get(text(run, "lifecycle_stage"), "")),
        "geographical_location": _quote(text(run, "zone")),
        "hardware_used": _quote(", ".join(models)),
    }
    lines = ["co2_eq_emissions:  # grams of CO2e, location-based, use phase"]
    lines += [f"  {name}: {value}" for name, value in fields.items() if value]
    return ("\n".join(lines) + "\n").encode()


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""


# `run.lifecycle_stage` -> activity of CycloneDX 1.6, and property of SPDX 3.0.1 (which has these three only).
_ACTIVITIES = {
    "data_preparation": "data-preparation", "pretraining": "training", "finetuning": "fine-tuning",
    "evaluation": "validation", "inference": "inference", "other": "other",
}  # fmt: skip
_SPDX_STAGES = {"pretraining": "training", "finetuning": "finetuning", "inference": "inference"}
_NAMESPACE = UUID("0d9f6a52-6a3c-5d0e-9c53-6f5b8f6d7c11")  # ours: a run's documents have the same ids each time


def _document_uuid(bundle: Bundle, kind: str) -> str:
    return str(uuid5(_NAMESPACE, f"{kind} {text(bundle.run, 'run_id')}"))


def _energy_of_activity(bundle: Bundle, form: str, stages: Mapping[str, str]) -> tuple[float, str]:
    """Return the energy in kWh and the form's word for the stage.

    Raises:
        BundleError: Nothing was metered, or the form has no word for the stage.
    """
    energy_kwh, stage = kwh(bundle.run, "energy_it_j"), text(bundle.run, "lifecycle_stage")
    if energy_kwh is None:
        raise BundleError(f"{form} needs metered energy, and nothing could be metered in this run")
    if stage not in stages:
        raise BundleError(f"{form} asks what the energy was for: --set lifecycle_stage= one of {', '.join(stages)}")
    return energy_kwh, stages[stage]


def cyclonedx_json(bundles: Sequence[Bundle]) -> bytes:
    """Return a bill of materials of CycloneDX 1.6: the model with `energyConsumptions` of one run.

    Raises:
        BundleError: Nothing was metered, or the stage is unknown.
    """
    (bundle,) = bundles
    run, grams = bundle.run, impact(bundle, "gwp")
    energy_kwh, activity = _energy_of_activity(bundle, "CycloneDX", _ACTIVITIES)
    measure = {"value": energy_kwh, "unit": "kWh"}
    consumption: dict[str, Any] = {"activity": activity, "energyProviders": [], "activityEnergyCost": measure}
    if grams is not None:
        consumption["co2CostEquivalent"] = {"value": (number(grams, "value") or 0.0) / 1e6, "unit": "tCO2eq"}
    facts = {
        "run_id": text(run, "run_id"),
        "energy_provenance": text(run, "energy_it_provenance"),
        "boundary": text(run, "boundary"),
        "boundary_excluded": text(run, "boundary_excluded"),
        "co2": "" if grams is None else "location-based, use phase",
    }
    properties = [{"name": f"torchwatt:{name}", "value": value} for name, value in facts.items() if value]
    component = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": text(run, "model_id") or text(run, "name") or text(run, "run_id"),
        "version": text(run, "model_revision"),
        "modelCard": {
            "considerations": {
                "environmentalConsiderations": {"energyConsumptions": [{**consumption, "properties": properties}]}
            }
        },
    }
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{_document_uuid(bundle, 'cyclonedx')}",
        "version": 1,
        "metadata": {
            "timestamp": f"{timestamp(run, 'ended_at'):%Y-%m-%dT%H:%M:%SZ}",
            "tools": {
                "components": [{"type": "application", "name": "torchwatt", "version": text(run, "tool_version")}]
            },
        },
        "components": [component],
    }
    return (json.dumps(_without_empty(document), indent=2, ensure_ascii=False) + "\n").encode()


def spdx_json(bundles: Sequence[Bundle]) -> bytes:
    """Return a document of SPDX 3.0.1: an `ai_AIPackage` with `ai_energyConsumption` of one run.

    Raises:
        BundleError: Nothing was metered, SPDX has no word for the stage, or spdx-python-model is not installed.
    """
    (bundle,) = bundles
    run = bundle.run
    energy_kwh, stage = _energy_of_activity(bundle, "SPDX", _SPDX_STAGES)
    try:
        spdx = import_optional("spdx_python_model.bindings.v3_0_1", "export --to spdx")
    except MissingPackageError as error:
        raise BundleError(str(error)) from error
    base = f"urn:uuid:{_document_uuid(bundle, 'spdx')}"
    info = spdx.CreationInfo(specVersion="3.0.1", created=timestamp(run, "ended_at").replace(microsecond=0))
    tool = spdx.SoftwareAgent(
        spdxId=f"{base}#torchwatt", name=f"torchwatt {text(run, 'tool_version')}", creationInfo=info
    )
    info.createdBy.append(tool)
    energy = spdx.ai_EnergyConsumption()
    getattr(energy, f"ai_{stage}EnergyConsumption").append(
        spdx.ai_EnergyConsumptionDescription(
            ai_energyQuantity=energy_kwh, ai_energyUnit=spdx.ai_EnergyUnitType.kilowattHour
        )
    )
    model = spdx.ai_AIPackage(
        spdxId=f"{base}#model",
        name=text(run, "model_id") or text(run, "name") or text(run, "run_id"),
        creationInfo=info,
        ai_energyConsumption=energy,
        software_primaryPurpose=spdx.software_SoftwarePurpose.model,
        comment=f"energy of run {text(run, 'run_id')}, {text(run, 'energy_it_provenance')}; inside: "
        f"{text(run, 'boundary')}; left out: {text(run, 'boundary_excluded')}",
    )
    if text(run, "model_revision"):
        model.software_packageVersion = text(run, "model_revision")
    document = spdx.SpdxDocument(spdxId=f"{base}#document", creationInfo=info)
    document.profileConformance.append(spdx.ProfileIdentifierType.core)
    document.rootElement.append(model)
    document.element.extend([model, tool])
    objects, stream = spdx.SHACLObjectSet(), BytesIO()
    for item in (info, tool, model, document):
        objects.add(item)
    spdx.JSONLDSerializer().write(objects, stream)
    document_fields = json.loads(stream.getvalue(), object_hook=_in_plain_decimals)
    return (json.dumps(document_fields, indent=2, ensure_ascii=False) + "\n").encode()


def _in_plain_decimals(item: dict[str, Any]) -> dict[str, Any]:
    """Write a quantity without an exponent: the serializer writes `str` of a float, the format has digits alone."""
    if "ai_energyQuantity" in item:
        item["ai_energyQuantity"] = format(Decimal(item["ai_energyQuantity"]), "f")
    return item
