"""Export as CodeCarbon's `emissions.csv`, with the 38 columns of its versions 3.3.x.

Units: s, kWh, kg, W, L. As in CodeCarbon, every energy and power is multiplied by the PUE. The format has no columns
for the source and year of the intensity, intervals or provenance. Columns that torchwatt does not measure
(utilisation, coordinates, RAM size) stay empty.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO

from torchwatt.audit.bundle import (
    Bundle,
    counted_devices,
    factors_of,
    first_of_kind,
    impact,
    kwh,
    number,
    pue_of,
    text,
    timestamp,
)
from torchwatt.audit.run_rows import PART_OF_KIND
from torchwatt.audit.schema import Row
from torchwatt.core.ledger import mean_power_w

COLUMNS = (
    "timestamp", "project_name", "run_id", "experiment_id", "duration", "emissions", "emissions_rate", "cpu_power",
    "gpu_power", "ram_power", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed", "water_consumed",
    "country_name", "country_iso_code", "region", "cloud_provider", "cloud_region", "os", "python_version",
    "codecarbon_version", "cpu_count", "cpu_model", "gpu_count", "gpu_model", "longitude", "latitude",
    "ram_total_size", "tracking_mode", "cpu_utilization_percent", "gpu_utilization_percent",
    "ram_utilization_percent", "ram_used_gb", "on_cloud", "pue", "wue",
)  # fmt: skip
_PARTS = {"cpu": "cpu", "gpu": "accelerator", "ram": "dram"}  # CodeCarbon's name, ours


def emissions_csv(bundles: Sequence[Bundle]) -> bytes:
    """Return the file, one row per run."""
    buffer = StringIO(newline="")
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n", restval="", extrasaction="raise")
    writer.writeheader()
    writer.writerows({name: "" if cell is None else cell for name, cell in _row(bundle).items()} for bundle in bundles)
    return buffer.getvalue().encode()


def _row(bundle: Bundle) -> dict[str, str | float | int | None]:
    run = bundle.run
    grams, duration_s = impact(bundle, "gwp"), number(run, "duration_s") or 0.0
    kilograms = None if grams is None else (number(grams, "value") or 0.0) / 1000
    water = impact(bundle, "wcf")
    site_water = first_of_kind(factors_of(bundle, water), "wue")
    zone, _, part = text(run, "zone").partition("/")
    return {
        "timestamp": f"{timestamp(run, 'ended_at'):%Y-%m-%dT%H:%M:%S}",  # UTC; CodeCarbon writes local time
        "project_name": _neutralise(text(run, "name")),
        "run_id": text(run, "run_id"),
        "experiment_id": _neutralise(text(run, "parent_run_id")),
        "duration": duration_s,
        "emissions": kilograms,
        # As in CodeCarbon: emissions / duration, in kg/s.
        "emissions_rate": None if kilograms is None or duration_s <= 0 else kilograms / duration_s,
        **_energies(bundle, duration_s, pue_of(bundle)),
        "water_consumed": None if water is None else number(water, "value"),
        "country_iso_code": zone if len(zone) == 3 else None,
        "region": part or None,
        "cloud_provider": _neutralise(text(run, "cloud_provider")),
        "cloud_region": _neutralise(text(run, "cloud_region")),
        "os": text(run, "os"),
        "python_version": text(run, "python_version"),
        "codecarbon_version": f"torchwatt {text(run, 'tool_version')}".strip(),
        **_hardware(bundle),
        "pue": pue_of(bundle),
        "wue": None if site_water is None else number(site_water, "value"),
    }


def _energies(bundle: Bundle, duration_s: float, known_pue: float | None) -> dict[str, float | None]:
    """Return kWh and mean W of each part, and kWh of all, multiplied by the PUE if it is known."""
    pue = known_pue or 1.0
    energies: dict[str, float | None] = {}
    for part, ours in _PARTS.items():
        devices = [row for row in counted_devices(bundle) if PART_OF_KIND.get(text(row, "kind")) == ours]
        energy, power_w = kwh(bundle.run, f"energy_{ours}_j"), _mean_power_w(devices, duration_s)
        energies[f"{part}_energy"] = None if energy is None else energy * pue
        energies[f"{part}_power"] = None if energy is None or power_w is None else power_w * pue
    total = kwh(bundle.run, "energy_it_j")
    return energies | {"energy_consumed": None if total is None else total * pue}


def _mean_power_w(devices: Sequence[Row], duration_s: float) -> float | None:
    """Return the mean power of devices, each over the time that its meter covered."""
    return mean_power_w(
        (number(row, "energy_j") or 0.0, (number(row, "coverage_ratio") or 0.0) * duration_s) for row in devices
    )


def _hardware(bundle: Bundle) -> dict[str, str | int | None]:
    gpus, cpus = counted_devices(bundle, "gpu"), counted_devices(bundle, "cpu")
    models = sorted({text(row, "model") for row in gpus})
    named = [f"{sum(text(row, 'model') == model for row in gpus)} x {model}" for model in models]
    scopes = {text(row, "scope") for row in counted_devices(bundle)}
    cloud = text(bundle.run, "infra_type")
    return {
        "cpu_model": _neutralise(text(cpus[0], "model")) if cpus else None,
        "gpu_count": len(gpus) or None,
        "gpu_model": _neutralise(", ".join(named)),
        "tracking_mode": "process" if scopes == {"process"} else "machine",
        "on_cloud": None if not cloud else "Y" if cloud.endswith("Cloud") else "N",
    }


def _neutralise(value: str) -> str:
    """Return untrusted text on one line, prefixed with `'` if a spreadsheet would evaluate it as a formula."""
    plain = " ".join(value.split())
    return f"'{plain}" if plain.startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")) else plain
