"""What was logged to MLflow is read back from its store."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

import torchwatt as tw
from tests.support.lazy_module import LazyModule, skip_without
from tests.support.reports import bare_report, sample_report
from torchwatt.audit import verify, write_bundle
from torchwatt.core.errors import BundleError, ConfigError
from torchwatt.reports.experiment_loggers import total_metrics

os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # the only store that mlflow-skinny brings along
skip_without("mlflow", reason="runs are logged to MLflow")
mlflow = LazyModule("mlflow")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    mlflow.set_tracking_uri((tmp_path_factory.mktemp("mlflow") / "store").as_uri())
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


def artifacts(store, run_id):
    return Path(store.download_artifacts(run_id, "torchwatt"))


def test_the_active_run_gets_totals_how_they_are_known_and_a_bundle_that_verifies(store):
    report = sample_report()
    with mlflow.start_run() as active:
        assert tw.log_to_mlflow(report) == active.info.run_id
    data = store.get_run(active.info.run_id).data
    assert data.metrics["energy/total_j"] == report.energy_j
    assert data.metrics["energy/it_kwh"] == report.energy_j / 3.6e6
    assert data.metrics["carbon/gwp_location_g"] == report.carbon_g
    assert data.metrics["energy/j_per_token"] == report.energy_j / report.units["token"]
    assert "energy/j_per_step" not in data.metrics  # its steps train and validate: each by itself
    trained_j = [sum(step.energy_j.values()) for step in report.steps if step.stage == "train"]
    assert data.metrics["energy/j_per_train_step"] == pytest.approx(sum(trained_j) / 32)
    assert total_metrics(replace(report, steps=report.steps[:4]))["energy/j_per_step"] == report.energy_j / 4
    for ledger in report.ledgers:
        assert data.metrics[f"energy/{ledger.domain}_j"] == ledger.energy_j
    tags = {name: value for name, value in data.tags.items() if name.startswith("torchwatt.")}
    assert tags["torchwatt.provenance"] == report.provenance == "modelled"
    assert tags["torchwatt.measurement_level"] == "M0"
    assert tags["torchwatt.region"]
    assert tags["torchwatt.version"] == "0.1.0"
    assert tags["torchwatt.boundary"] == "cpu:0;gpu:0;ram"
    bundle = artifacts(store, active.info.run_id)
    assert verify(bundle).ok
    assert hashlib.sha256((bundle / "MANIFEST.sha256").read_bytes()).hexdigest() == tags["torchwatt.bundle_sha256"]


def test_what_is_unknown_is_not_logged(store):
    with mlflow.start_run() as active:
        tw.log_to_mlflow(bare_report())
    data = store.get_run(active.info.run_id).data
    assert set(data.metrics) == {"energy/duration_s"}
    assert not {"torchwatt.provenance", "torchwatt.measurement_level", "torchwatt.region"} & set(data.tags)


def test_a_run_that_is_over_is_named_and_a_bundle_that_exists_is_used(store, tmp_path):
    from torchwatt.integrations import mlflow as ours

    with mlflow.start_run() as over:
        pass
    bundle = write_bundle(sample_report(), tmp_path / "audit")
    ours.log(sample_report(), over.info.run_id, bundle=bundle)
    kept = artifacts(store, over.info.run_id)
    assert (kept / "MANIFEST.sha256").read_bytes() == (bundle / "MANIFEST.sha256").read_bytes()
    with pytest.raises(BundleError, match="is not a bundle"):
        ours.log(sample_report(), over.info.run_id, bundle=tmp_path)


def test_without_a_run_to_log_to_or_before_the_end_the_error_says_so(store):
    with pytest.raises(ConfigError, match="no MLflow run is active"):
        tw.log_to_mlflow(sample_report())
    with pytest.raises(ConfigError, match="has not ended"):
        tw.log_to_mlflow(replace(sample_report(), status="running"))
