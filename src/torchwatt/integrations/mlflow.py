"""Logs a run's totals, their provenance, and its bundle to MLflow."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Mapping
from math import fsum
from pathlib import Path
from typing import Any

from torchwatt.audit import write_bundle
from torchwatt.audit.run_rows import functional_unit, measurement_level
from torchwatt.audit.seal import MANIFEST
from torchwatt.core.errors import BundleError, ConfigError
from torchwatt.core.report import Report
from torchwatt.core.units import kwh_from_j
from torchwatt.integrations.optional_dependency import import_optional
from torchwatt.session.run import Run

ARTIFACT_FOLDER = "torchwatt"  # of the artifacts


def log_to_mlflow(
    run: Run | Report, run_id: str | None = None, *, bundle: str | os.PathLike[str] | None = None, client: Any = None
) -> str:
    """Log a finished run to MLflow and return the id of the MLflow run.

    Metrics are `energy/total_j` with its 90 % interval, `energy/it_kwh`, `energy/<domain>_j`, joules a step and a
    counted unit, `carbon/gwp_location_g` and `carbon/gwp_market_g`; unknown values are omitted. Tags hold provenance,
    measurement level, boundary, region, status, version, and the SHA-256 of the bundle's manifest. The bundle is the
    artifact folder `torchwatt`, which `torchwatt verify` can check.

    Args:
        run: A run that has ended, or its report.
        run_id: An MLflow run; by default the active one.
        bundle: A bundle of this run that was written already; by default one is made.
        client: An `mlflow.MlflowClient`; by default one of the current tracking URI.

    Raises:
        ConfigError: The run has not ended, or there is no MLflow run to log to.
        BundleError: The manifest of `bundle` cannot be read.
        MissingPackageError: MLflow is not installed.
    """
    mlflow = import_optional("mlflow", "mlflow")
    report = run if isinstance(run, Report) else run.report
    if report.status == "running":
        raise ConfigError("the run has not ended: log it after its block")
    target = run_id or _active_run_id(mlflow)
    client = client or mlflow.MlflowClient()
    with tempfile.TemporaryDirectory(prefix="torchwatt-") as folder:
        bundle_path = write_bundle(report, Path(folder) / "bundle") if bundle is None else Path(bundle)
        try:
            digest = hashlib.sha256((bundle_path / MANIFEST).read_bytes()).hexdigest()
        except OSError as error:
            raise BundleError(f"{bundle_path} is not a bundle: {error.strerror} ({MANIFEST})") from error
        entities = import_optional("mlflow.entities", "mlflow")
        now_ms = time.time_ns() // 1_000_000
        client.log_batch(
            target,
            metrics=[entities.Metric(name, value, now_ms, 0) for name, value in mlflow_metrics(report).items()],
            tags=[entities.RunTag(name, value) for name, value in mlflow_tags(report, digest).items()],
        )
        client.log_artifacts(target, str(bundle_path), artifact_path=ARTIFACT_FOLDER)
    return target


log = log_to_mlflow


def mlflow_metrics(report: Report) -> Mapping[str, float]:
    """Return a report's known values by MLflow metric name."""
    total_j, (unit, units) = report.energy_j, functional_unit(report)
    (lo_j, hi_j), (least_j, most_j) = report.interval_j or (None, None), report.systematic_j or (None, None)
    metrics: dict[str, float | None] = {
        "energy/total_j": total_j,
        "energy/total_lo_j": lo_j,
        "energy/total_hi_j": hi_j,
        "energy/total_systematic_lo_j": least_j,
        "energy/total_systematic_hi_j": most_j,
        "energy/it_kwh": None if total_j is None else kwh_from_j(total_j),
        "energy/duration_s": report.duration_s,
        "carbon/gwp_location_g": report.carbon_g,
        "carbon/gwp_market_g": _market_g(report),
    }
    metrics |= {f"energy/{ledger.domain}_j": ledger.energy_j for ledger in report.counted}
    if report.units:
        metrics[f"energy/j_per_{_allowed_name(unit)}"] = report.energy_per(units)
    metrics |= _per_step(report)
    return {name: value for name, value in metrics.items() if value is not None}


def _per_step(report: Report) -> dict[str, float | None]:
    """Return mean joules per step; with several stages, one mean per stage."""
    stages = {step.stage for step in report.steps}
    if len(stages) < 2:
        return {"energy/j_per_step": report.energy_per(report.step_count)}
    names = [str(ledger.domain) for ledger in report.counted]
    metrics: dict[str, float | None] = {}
    for stage in sorted(stages):
        steps = [s for s in report.steps if s.stage == stage and all(name in s.energy_j for name in names)]
        count = sum(step.count for step in steps)
        joules = fsum(step.energy_j[name] for step in steps for name in names)
        metrics[f"energy/j_per_{_allowed_name(stage or 'other')}_step"] = joules / count if count and names else None
    return metrics


def mlflow_tags(report: Report, manifest_sha256: str) -> Mapping[str, str]:
    """Return provenance, boundary and versions of a report by MLflow tag name; empty values are omitted."""
    located = (f for f in report.factors if f.kind == "grid_gwp" and f.accounting_method != "market")
    grid = next(located, None)
    tags = {
        "torchwatt.version": report.software.get("torchwatt", ""),
        "torchwatt.run_id": report.run_id,
        "torchwatt.status": report.status,
        "torchwatt.exit_reason": report.exit_reason,
        "torchwatt.provenance": report.provenance or "",
        "torchwatt.measurement_level": measurement_level((x.domain.kind, x.provenance) for x in report.counted) or "",
        "torchwatt.boundary": ";".join(sorted(str(ledger.domain) for ledger in report.counted)),
        "torchwatt.boundary_excluded": ";".join(sorted({gone.domain for gone in report.unavailable})),
        "torchwatt.region": (grid.zone or "") if grid is not None else "",
        "torchwatt.grid_source": f"{grid.source_name} {grid.data_year or ''}".strip() if grid is not None else "",
        "torchwatt.bundle_sha256": manifest_sha256,
    }
    return {name: value for name, value in tags.items() if value}


def _market_g(report: Report) -> float | None:
    market_row = ("run", "gwp", "usage", "market")
    market_impacts = (i for i in report.impacts if (i.subject, i.criterion, i.phase, i.accounting_method) == market_row)
    return next((impact.value for impact in market_impacts), None)


def _allowed_name(unit: str) -> str:
    """Replace the characters of a unit's name that MLflow does not allow by `_`."""
    return "".join(c if c.isalnum() or c in "_-. " else "_" for c in unit)


def _active_run_id(mlflow: Any) -> str:
    active = mlflow.active_run()
    if active is None:
        raise ConfigError("no MLflow run is active: log inside `with mlflow.start_run():`, or give run_id=")
    return str(active.info.run_id)
