"""Logs a run's totals, their provenance, and its bundle to MLflow."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from torchwatt.audit import write_bundle
from torchwatt.audit.seal import MANIFEST
from torchwatt.core.errors import BundleError, ConfigError, import_optional
from torchwatt.core.report import Report
from torchwatt.reports.experiment_loggers import active_mlflow_run, provenance_tags, total_metrics
from torchwatt.session.run import Run

ARTIFACT_FOLDER = "torchwatt"  # of the artifacts


def log_to_mlflow(
    run: Run | Report, run_id: str | None = None, *, bundle: str | os.PathLike[str] | None = None, client: Any = None
) -> str:
    """Log a finished run to MLflow and return the id of the MLflow run; `run.log_to("mlflow")` logs steps and layers.

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
    mlflow = import_optional("mlflow", __name__)
    report = run if isinstance(run, Report) else run.report
    if report.status == "running":
        raise ConfigError("the run has not ended: log it after its block")
    target = run_id or active_mlflow_run(mlflow)
    client = client or mlflow.MlflowClient()
    with tempfile.TemporaryDirectory(prefix="torchwatt-") as folder:
        bundle_path = write_bundle(report, Path(folder) / "bundle") if bundle is None else Path(bundle)
        try:
            digest = hashlib.sha256((bundle_path / MANIFEST).read_bytes()).hexdigest()
        except OSError as error:
            raise BundleError(f"{bundle_path} is not a bundle: {error.strerror} ({MANIFEST})") from error
        entities = import_optional("mlflow.entities", __name__)
        now_ms = time.time_ns() // 1_000_000
        client.log_batch(
            target,
            metrics=[entities.Metric(name, value, now_ms, 0) for name, value in total_metrics(report).items()],
            tags=[entities.RunTag(name, value) for name, value in provenance_tags(report, digest).items()],
        )
        client.log_artifacts(target, str(bundle_path), artifact_path=ARTIFACT_FOLDER)
    return target


log = log_to_mlflow
