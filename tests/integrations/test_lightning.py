"""The callback in Lightning's own Trainer, on a machine whose joules are known."""

import csv
import logging
import re
import runpy
import sys
import types
import warnings
from math import fsum, isclose
from pathlib import Path

import pytest
import torch

from tests.integrations.world import LATE, assert_every_part_is_true, parts_j, truth_j
from tests.support.lazy_module import LazyModule, skip_without
from torchwatt.core.errors import ConfigError

skip_without("lightning", reason="the callback is for Lightning's Trainer")
pl = LazyModule("lightning.pytorch")
lightning_run = LazyModule("tests.integrations.lightning_run")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore:::lightning")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "lightning_digits.py"
DATA = torch.utils.data.TensorDataset(torch.randn(32, 8), torch.randint(0, 2, (32,)))


def loader():
    return torch.utils.data.DataLoader(DATA, batch_size=4)


def callback(world, **given):
    return lightning_run.EnergyCallback(powercap_root=world.root, **{"intensity_g_per_kwh": 100, **given})


def fit(folder, energy, model, *, ckpt=None, validates=True, **given):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    from lightning.pytorch.loggers import CSVLogger

    used = pl.Trainer(
        default_root_dir=folder,
        callbacks=[energy],
        **{"logger": CSVLogger(folder), "max_epochs": 2, "log_every_n_steps": 2, **quiet, **given},
    )
    used.fit(model, loader(), loader() if validates else None, ckpt_path=ckpt)
    return used


def rows(folder):
    with next(folder.rglob("metrics.csv")).open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Two epochs of four steps of two batches each, a sanity check, a validation and a checkpoint after each epoch."""
    folder = tmp_path_factory.mktemp("fitted")
    energy = callback(world)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        used = fit(folder, energy, lightning_run.Model(world), accumulate_grad_batches=2, num_sanity_val_steps=1)
    return energy, used, folder


def test_epochs_and_what_lies_outside_add_up_to_the_report_to_the_digit(trained):
    run = trained[0].run
    assert run.status == "complete"
    assert isclose(fsum(run.epochs.energy_j), run.energy_j, rel_tol=1e-12)
    assert isclose(parts_j(run), run.energy_j, rel_tol=1e-12)
    assert run.epochs.epoch.tolist() == ["0", "1", "(outside)"]
    assert run.epochs.steps.tolist() == [4, 4, 0]


def test_every_part_is_what_the_machine_really_used(trained, world):
    run = trained[0].run
    kinds = [w.kind for w in run.report.windows]
    assert sorted(kinds) == ["checkpoint"] * 2 + ["epoch"] * 2 + ["evaluation"] * 3  # one is the sanity check
    assert_every_part_is_true(run, world)


def test_a_step_is_one_of_the_optimizer_and_holds_no_validation(trained, world):
    energy, used, _ = trained
    run = energy.run
    assert used.global_step == run.report.step_count == 8
    pauses = [w for w in run.report.windows if w.kind != "epoch"]
    late_j = world.late_j(run.report)
    true_j = [truth_j(world, step.start_ns, step.end_ns) for step in run.report.steps]
    assert isclose(sum(run.steps.energy_j), sum(true_j), rel_tol=0.05, abs_tol=late_j)
    for step, joules in zip(run.report.steps, true_j, strict=True):
        assert not any(step.start_ns < (w.start_ns + w.end_ns) / 2 < step.end_ns for w in pauses)
        assert isclose(sum(step.energy_j.values()), joules, rel_tol=0.1, abs_tol=late_j)


def test_layers_carry_the_names_of_the_module(trained):
    assert {"net.0", "net.2", "busy"} <= set(trained[0].run.layers.fqn)


def test_lightnings_loggers_get_joules_with_units_each_once(trained):
    energy, used, folder = trained
    found = rows(folder)
    assert sum("energy/epoch_j" in row for row in found) == 2
    assert sum("energy/evaluation_j" in row for row in found) == 3
    assert sum("energy/checkpoint_j" in row for row in found) == 2
    assert sum("energy/step_j" in row for row in found) >= 3
    assert min(v for row in found for k, v in row.items() if k.startswith(("energy/", "carbon/"))) > 0
    totals = [row["energy/total_j"] for row in found if "energy/total_j" in row]
    assert totals == sorted(totals)
    assert 0.7 < totals[-1] / energy.run.energy_j <= LATE
    assert isclose(float(used.callback_metrics["energy/total_j"]), totals[-1], rel_tol=1e-5)
    last = next(row for row in reversed(found) if "carbon/total_g" in row)
    assert isclose(last["carbon/total_g"], last["energy/total_j"] / 3.6e6 * 100, rel_tol=1e-9)


def test_a_budget_ends_training_with_the_step_that_crosses_it(world, tmp_path):
    energy = callback(world, layers="off", energy_budget_j=12.0)
    used = fit(tmp_path, energy, lightning_run.Model(world, 0.05), max_epochs=50, validates=False, logger=False)
    report = energy.run.report
    until = [truth_j(world, report.start_ns, step.end_ns) for step in report.steps]
    late_j = world.late_j(report)
    crossing = next((i for i, joules in enumerate(until) if joules >= 12.0 + late_j), len(until) - 1)
    assert until[0] < 12.0 < until[-1] + late_j
    assert len(until) - 1 - crossing <= 1, until
    assert used.global_step == len(until)
    assert report.status == "complete"
    assert "energy budget of 12 J used up" in report.exit_reason


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_exception_in_a_step_passes_and_the_report_is_there(world, tmp_path, error):
    import signal

    energy, model = callback(world, layers="off"), lightning_run.Model(world)
    model.busy.fails_at = {4: error}
    before = signal.getsignal(signal.SIGINT)
    expected = SystemExit if isinstance(error, KeyboardInterrupt) else ValueError  # Lightning exits on an interrupt
    try:
        with pytest.raises(expected):
            fit(tmp_path, energy, model, validates=False, logger=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (energy.run.status, energy.run.report.exit_reason) == ("aborted", type(error).__name__)
    assert energy.run.report.step_count == 3
    assert energy.run.energy_j > 0


def test_a_resumed_training_goes_on_from_the_joules_in_the_checkpoint(world, tmp_path):
    first = callback(world, layers="off")
    used = fit(tmp_path, first, lightning_run.Model(world), max_epochs=1, validates=False)
    kept = next(tmp_path.rglob("*.ckpt"))
    states = torch.load(kept, weights_only=False)["callbacks"]
    carried = next(state for name, state in states.items() if "EnergyCallback" in name)
    assert carried["run_ids"] == [first.run.run_id]
    assert 0 < carried["energy_j"] <= first.run.energy_j
    second = callback(world, layers="off")
    used = fit(tmp_path / "more", second, lightning_run.Model(world), max_epochs=2, validates=False, ckpt=kept)
    assert used.global_step == 16
    assert second.run.report.step_count == 8
    totals = [row["energy/total_j"] for row in rows(tmp_path / "more") if "energy/total_j" in row]
    assert totals[0] > carried["energy_j"]
    assert 0.6 < (totals[-1] - carried["energy_j"]) / second.run.energy_j <= LATE
    assert isclose(fsum(second.run.epochs.energy_j), second.run.energy_j, rel_tol=1e-12)


def test_a_finder_of_batch_sizes_is_no_resumed_training(world, tmp_path, caplog):
    class Data(pl.LightningDataModule):
        batch_size = 2

        def train_dataloader(self):
            return torch.utils.data.DataLoader(DATA, batch_size=self.batch_size)

        val_dataloader = train_dataloader

    energy, model, data = callback(world, layers="off"), lightning_run.Model(world, 0.002), Data()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
    used = pl.Trainer(default_root_dir=tmp_path, callbacks=[energy], max_epochs=1, **quiet)
    pl.tuner.Tuner(used).scale_batch_size(model, datamodule=data, max_trials=1, steps_per_trial=1)
    used.fit(model, datamodule=data)
    assert "contains no earlier joules" not in caplog.text
    assert energy.run.status == "complete"
    assert energy.run.report.step_count == used.global_step


def test_a_fault_of_ours_ends_metering_and_not_training(world, tmp_path, monkeypatch, caplog):
    from torchwatt.session.live_meter import LiveMeter

    updates = iter(range(4))
    monkeypatch.setattr(LiveMeter, "update", lambda *_, **__: next(updates))  # StopIteration at the fifth update
    energy = callback(world, layers="off")
    used = fit(tmp_path, energy, lightning_run.Model(world, 0.005), max_epochs=2, validates=False, logger=False)
    assert used.global_step == 16
    assert energy.run.status == "partial"
    assert "StopIteration" in energy.run.report.exit_reason
    assert energy.run.energy_j > 0
    assert sum("training continues" in record.message for record in caplog.records) == 1


def test_each_training_of_one_callback_is_a_run_with_files_of_its_own(world, tmp_path):
    energy = callback(world, layers="off", csv=tmp_path / "audit")
    ids = []
    for _ in range(2):
        fit(tmp_path, energy, lightning_run.Model(world, 0.001), max_epochs=1, validates=False, logger=False)
        ids.append(energy.run.run_id)
    assert ids[0] != ids[1]
    found = [(tmp_path / name / "run.csv").read_text() for name in ("audit", "audit-2")]
    assert all(run_id in text for run_id, text in zip(ids, found, strict=True))


def test_the_example_runs_and_its_epochs_add_up(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["lightning_digits.py", "--epochs", "2", "--csv", str(tmp_path / "audit")])
    names = runpy.run_path(str(EXAMPLE), run_name="__main__")
    out = capsys.readouterr().out
    assert re.search(r"^ *1 .* 28 ", out, re.MULTILINE)
    assert {"conv", "head.3"} <= set(names["energy"].run.layers.fqn)
    assert isclose(fsum(names["energy"].run.epochs.energy_j), names["energy"].run.energy_j, rel_tol=1e-12)
    assert 0.0 not in [v for k, v in names["trainer"].callback_metrics.items() if k.startswith("energy/")]
    assert (tmp_path / "audit" / "window.csv").exists()


def test_it_is_a_callback_of_the_name_that_was_imported(monkeypatch):
    from torchwatt.integrations import lightning as integration

    assert issubclass(lightning_run.EnergyCallback, pl.Callback)
    other = types.ModuleType("pytorch_lightning")
    other.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, "pytorch_lightning", other)
    assert integration._callback_bases() == (pl.Callback, other.Callback)
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    assert integration._callback_bases() == (other.Callback,)


def test_a_budget_is_refused_where_ranks_would_wait_for_each_other():
    with pytest.raises(ConfigError, match="a single process"):
        lightning_run.EnergyCallback(energy_budget_j=1.0)._begin(None, processes=4)
