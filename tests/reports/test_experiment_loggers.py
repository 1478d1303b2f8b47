"""What `run.log_to` wrote is read back: by the library's own reader, or from the records that it has written."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from importlib import import_module
from math import fsum, isclose

import pytest

from tests.conftest import REPOSITORY
from tests.support.reports import bare_report, named_report, sample_report
from torchwatt.core.errors import ConfigError, MissingPackageError
from torchwatt.reports.experiment_loggers import layer_markdown, provenance_tags, step_series, total_metrics
from torchwatt.reports.report_result import JobRun
from torchwatt.views import layer_rows

REPORT = sample_report()
RUN = JobRun(REPORT)
TRAIN_STEPS = [step for step in REPORT.steps if step.stage == "train"]
LAYERS = layer_rows(REPORT)


def needs(name):
    """Return an optional library that only `make test-all` installs; what it calls home with is switched off."""
    os.environ |= {"WANDB_ERROR_REPORTING": "false", "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    return pytest.importorskip(name, reason="requirements-all.txt installs it")


def connections():
    """Return the addresses that this process and its children talk to, this machine's own left out."""
    import psutil

    here = psutil.Process()
    open_sockets = [one for process in (here, *here.children(recursive=True)) for one in process.net_connections()]
    return [one.raddr for one in open_sockets if one.raddr and not one.raddr.ip.startswith(("127.", "::1"))]


def check_series(points):
    """Check (step, joules) of the training steps."""
    assert points == [(step.index, pytest.approx(fsum(step.energy_j.values()), rel=1e-6)) for step in TRAIN_STEPS]


def test_series_add_up_to_the_steps_and_rows_of_several_steps_are_means():
    values = defaultdict(list)
    for each in step_series(REPORT):
        values[each.name].append(each)
    assert len(values["energy_per_step/train_j"]) + len(values["energy_per_step/validation_j"]) == len(REPORT.steps)
    logged_j = fsum(each.value for name, series in values.items() if name.endswith("_j") for each in series)
    assert isclose(logged_j, fsum(joules for step in REPORT.steps for joules in step.energy_j.values()))
    first = values["energy_per_step/train_w"][0]
    assert isclose(first.value, fsum(REPORT.steps[0].energy_j.values()) / 0.55)
    assert first.unix_ns == REPORT.steps[0].end_ns - REPORT.start_ns + REPORT.start_unix_ns
    grouped = replace(REPORT, steps=(replace(REPORT.steps[0], count=4),))
    mean = {each.name: each for each in step_series(grouped)}
    assert mean["energy_per_step/j"].step == 3
    assert isclose(mean["energy_per_step/j"].value, fsum(REPORT.steps[0].energy_j.values()) / 4)
    assert isclose(mean["energy_per_step/s"].value, 0.55 / 4)


def test_joules_of_a_step_without_a_meter_are_omitted():
    step = replace(REPORT.steps[0], energy_j={"gpu:0": 1.0})
    assert [each.name for each in step_series(replace(REPORT, steps=(step,)))] == ["energy_per_step/s"]
    assert list(step_series(bare_report())) == []
    assert set(total_metrics(bare_report())) == {"energy/duration_s"}
    assert "torchwatt.provenance" not in provenance_tags(bare_report())


def test_the_layers_as_markdown_add_up_and_cells_stay_cells():
    lines = layer_markdown(REPORT, max_rows=10).splitlines()
    cells = [line.split("|")[1:-1] for line in lines[2:]]
    assert len(cells) == 11
    assert isclose(fsum(float(row[3]) for row in cells), REPORT.energy_j)
    hostile = layer_markdown(named_report("a|b\n<script>", "\ud800"))
    assert {line.count("|") for line in hostile.splitlines()} == {9}
    assert "<" not in hostile


@pytest.mark.parametrize("target", ["wandbs", 5, None, "mlflow:here", object()])
def test_what_cannot_be_logged_to_is_refused(target):
    with pytest.raises(ConfigError, match="one of the names tensorboard, wandb, trackio, mlflow, tensorboard:DIR"):
        RUN.log_to(target)


def test_a_run_that_has_not_ended_is_refused():
    with pytest.raises(ConfigError, match="has not ended"):
        JobRun(replace(REPORT, status="running")).log_to("mlflow")


def test_nothing_is_imported_before_it_is_used_and_a_missing_library_is_named():
    code = """
import sys
from torchwatt.reports.report_result import JobRun
from tests.support.reports import sample_report
names = ("tensorboard", "wandb", "trackio", "mlflow")
assert not set(names) & set(sys.modules)
for name in names:
    sys.modules[name] = None
for name in names:
    try:
        JobRun(sample_report()).log_to(name)
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.rpartition("pip install ")[2] for line in lines] == [
        "'torchwatt[tensorboard]'", "'torchwatt[wandb]'", "'torchwatt[trackio]'", "'torchwatt[mlflow]'",
    ]  # fmt: skip
    assert issubclass(MissingPackageError, ImportError)


def test_mlflow_reads_back_totals_series_and_the_layers(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="requirements-dev.txt has mlflow-skinny")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    try:
        with pytest.raises(ConfigError, match="no MLflow run is active"):
            RUN.log_to("mlflow")
        with mlflow.start_run() as active:
            RUN.log_to("mlflow")
        with mlflow.start_run() as other:
            pass
        RUN.log_to(other)
        for run_id in (active.info.run_id, other.info.run_id):
            client = mlflow.MlflowClient()
            data = client.get_run(run_id).data
            assert {name: data.metrics[name] for name in total_metrics(REPORT)} == total_metrics(REPORT)
            assert provenance_tags(REPORT).items() <= data.tags.items()
            series = client.get_metric_history(run_id, "energy_per_step/train_j")
            check_series([(point.step, point.value) for point in series])
            assert series[0].timestamp == next(iter(step_series(REPORT))).unix_ns // 1_000_000
            table = mlflow.load_table("torchwatt/layers.json", run_ids=[run_id])
            assert table.fqn.tolist() == [row["fqn"] for row in LAYERS]
            assert isclose(table.energy_self_j.sum(), REPORT.energy_j)
    finally:
        mlflow.set_tracking_uri(None)


@pytest.mark.heavy
def test_tensorboard_reads_back_totals_series_and_the_layers(tmp_path):
    needs("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    RUN.log_to(f"tensorboard:{tmp_path / 'ours'}")
    with SummaryWriter(tmp_path / "users") as writer:
        RUN.log_to(writer)
        writer.add_scalar("loss", 1.0)  # still open
    reader = import_module("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    for folder in ("ours", "users"):
        events = reader(str(tmp_path / folder), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        for name, value in total_metrics(REPORT).items():
            assert [event.value for event in events.Scalars(name)] == [pytest.approx(value, rel=1e-6)]  # float32
        series = events.Scalars("energy_per_step/train_j")
        check_series([(event.step, event.value) for event in series])
        assert series[0].wall_time == pytest.approx(next(iter(step_series(REPORT))).unix_ns / 1e9)
        (text,) = events.Tensors("energy/layers/text_summary")
        assert text.tensor_proto.string_val[0].decode() == layer_markdown(REPORT)


@pytest.mark.heavy
def test_trackio_reads_back_totals_series_and_the_layers(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = needs("trackio")
    with pytest.raises(ConfigError, match="no trackio run is active"):
        RUN.log_to("trackio")
    options = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    for name, target in (("by name", "trackio"), ("by object", None)):
        run = trackio.init(project="joules", name=name, **options)
        RUN.log_to(target or run)
        trackio.finish()
        rows = import_module("trackio.sqlite_storage").SQLiteStorage.get_logs("joules", name)
        check_series([(r["step"], r["energy_per_step/train_j"]) for r in rows if "energy_per_step/train_j" in r])
        assert {**total_metrics(REPORT), **provenance_tags(REPORT)}.items() <= rows[-1].items()
        layers = rows[-1]["energy/layers"]["_value"]
        assert [row["fqn"] for row in layers] == [row["fqn"] for row in LAYERS]
    assert connections() == []


@pytest.mark.heavy
def test_wandb_has_written_totals_series_and_the_layers(tmp_path, monkeypatch):
    """The package's reader of offline files is a program without Python interface: its records are read here."""
    wandb = needs("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(ConfigError, match="no wandb run is active"):
        RUN.log_to("wandb")
    run = wandb.init(project="joules", mode="offline", dir=str(tmp_path))
    run.log({"loss": 1.0}, step=500)  # the user's own steps are further
    RUN.log_to("wandb")
    assert connections() == []
    run.finish()
    wandb.teardown()  # its process has written all by then
    (path,) = tmp_path.rglob("offline-run-*/run-*.wandb")
    summary, points, axes = {}, [], {}
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            if "energy_per_step/train_j" in row:
                points.append((row["energy_per_step/step"], row["energy_per_step/train_j"]))
        elif kind == "summary":
            summary |= {i.key: json.loads(i.value_json) for i in record.summary.update if i.key}
        elif kind == "metric":
            axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    check_series(points)
    assert axes["energy_per_step/*"] == "energy_per_step/step"
    assert {**total_metrics(REPORT), **provenance_tags(REPORT)}.items() <= summary.items()
    (table,) = path.parent.rglob("*.table.json")
    content = json.loads(table.read_text())
    assert [row[content["columns"].index("fqn")] for row in content["data"]] == [row["fqn"] for row in LAYERS]


def wandb_records(path):
    """Yield the records of an offline run: LevelDB's log format in blocks of 32 KiB, each record a protobuf message."""
    record_class = import_module("wandb.proto.wandb_internal_pb2").Record
    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if left < 7 or kind == 0:
            at += left
            continue
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in {1, 4}:  # whole, or the last part
            yield record_class.FromString(parts)
            parts = b""
