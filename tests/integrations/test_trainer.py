"""The callback in transformers' own Trainer, on a machine whose joules are known."""

import json
import logging
import os
import runpy
import sys
from math import fsum, isclose
from pathlib import Path

import pytest
import torch

from tests.integrations.world import LATE, assert_every_part_is_true, parts_j, truth_j
from tests.support.heavy import some_of
from tests.support.lazy_module import LazyModule, skip_without
from torchwatt.audit import verify
from torchwatt.core.errors import ConfigError

os.environ.setdefault("HF_HUB_OFFLINE", "1")
skip_without("transformers", "accelerate", reason="the callback is for transformers' Trainer")
transformers = LazyModule("transformers")
trainer_run = LazyModule("tests.integrations.trainer_run")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "trainer.py"
DATA = [{"input_ids": torch.randint(0, 50, (8,)), "labels": torch.tensor(i % 2)} for i in range(32)]


def trainer(world, folder, energy, *, model=None, others=(), **given):
    args = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "logging_steps": 2}
    args |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, **given}
    return transformers.Trainer(
        model or trainer_run.Model(world),
        transformers.TrainingArguments(folder / "out", **args),
        train_dataset=DATA,
        eval_dataset=DATA[:16],
        callbacks=[*others, *([energy] if energy is not None else [])],
    )


def callback(world, **given):
    return trainer_run.EnergyCallback(powercap_root=world.root, **{"intensity_g_per_kwh": 100, **given})


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Two epochs of four steps of two batches each; an evaluation and a checkpoint after each epoch."""
    folder = tmp_path_factory.mktemp("trained")
    energy, clock = callback(world, csv=folder / "audit"), trainer_run.Clock()
    given = {"gradient_accumulation_steps": 2, "eval_strategy": "epoch", "save_strategy": "epoch"}
    used = trainer(world, folder, energy, others=[clock], **given)
    used.train()
    return energy, used, clock, folder


def test_epochs_and_what_lies_outside_add_up_to_the_report_to_the_digit(trained):
    run = trained[0].run
    assert run.report.exit_reason == ""
    assert "METERING_FAILED" not in set(run.events.code)
    assert isclose(fsum(run.epochs.energy_j), run.energy_j, rel_tol=1e-12)
    assert isclose(parts_j(run), run.energy_j, rel_tol=1e-12)
    assert run.epochs.epoch.tolist() == ["0", "1", "(outside)"]


def test_every_part_is_what_the_machine_really_used(trained, world):
    run = trained[0].run
    assert {w.kind for w in run.report.windows} == {"epoch", "evaluation", "checkpoint"}
    assert_every_part_is_true(run, world)


def test_traced_calls_of_an_evaluation_are_no_traced_steps(world, tmp_path):
    energy = callback(world, overhead_budget=1.0)
    trainer(world, tmp_path, energy, eval_strategy="epoch").train()
    report = energy.run.report
    assert 0 < report.traced_steps <= report.step_count == 16


def test_a_step_is_one_of_the_optimizer_with_all_its_batches_and_no_evaluation(trained, world):
    energy, used, clock, _ = trained
    steps = energy.run.report.steps
    assert used.state.global_step == len(steps) == len(clock.steps) == 8
    assert energy.run.epochs.steps.tolist() == [4, 4, 0]
    late_j = world.late_j(energy.run.report)
    true_j = [truth_j(world, step.start_ns, step.end_ns) for step in steps]
    assert isclose(sum(energy.run.steps.energy_j), sum(true_j), rel_tol=0.05, abs_tol=late_j)
    for step, joules, (begun, ended) in zip(steps, true_j, clock.steps, strict=True):
        assert step.start_ns <= begun + 1e6 < ended <= step.end_ns + 1e6
        assert not any(step.start_ns < t < step.end_ns for t in (*clock.evaluated, *clock.saved))
        assert isclose(sum(step.energy_j.values()), joules, rel_tol=0.1, abs_tol=late_j)


def test_evaluations_and_checkpoints_are_apart_and_end_where_they_end(trained):
    energy, _, clock, _ = trained
    windows = energy.run.report.windows
    for kind, ends in (("evaluation", clock.evaluated), ("checkpoint", clock.saved)):
        found = [w for w in windows if w.kind == kind]
        assert len(found) == len(ends) == 2
        assert all(abs(w.end_ns - end) < 2.5e8 for w, end in zip(found, ends, strict=True))  # one hook after another


def test_layers_carry_the_names_of_the_state_dict(trained):
    layers = set(trained[0].run.layers.fqn)
    assert {"bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense", "busy"} <= layers


def test_the_trainers_own_rows_carry_joules_with_units_and_nothing_is_zero(trained):
    energy, used, _, _ = trained
    rows = used.state.log_history
    assert sum("energy/epoch_j" in row for row in rows) == 2
    assert sum("energy/evaluation_j" in row for row in rows) == 2
    assert all("eval_loss" in row for row in rows if "energy/evaluation_j" in row)
    assert sum("energy/step_j" in row for row in rows if "loss" in row) >= 3
    joules = [row[name] for row in rows for name in row if name.startswith(("energy/", "carbon/"))]
    assert min(joules) > 0
    totals = [row["energy/total_j"] for row in rows if "energy/total_j" in row]
    assert totals == sorted(totals)
    assert 0.7 < totals[-1] / energy.run.energy_j <= LATE
    last = next(row for row in reversed(rows) if "carbon/total_g" in row)
    assert isclose(last["carbon/total_g"], last["energy/total_j"] / 3.6e6 * 100, rel_tol=1e-9)


def test_what_was_logged_while_it_ran_is_near_what_the_report_knows(trained, world):
    energy, used, _, _ = trained
    logged = [row["energy/epoch_j"] for row in used.state.log_history if "energy/epoch_j" in row]
    for live_j, final_j in zip(logged, energy.run.epochs.train_j, strict=False):
        assert isclose(live_j, final_j, rel_tol=0.1, abs_tol=world.late_j(energy.run.report))


def test_the_bundle_has_the_windows_and_verifies(trained):
    import pandas as pd

    folder = trained[3] / "audit"
    verification = verify(folder)
    assert verification.ok, [str(finding) for finding in verification.findings[:3]]
    kinds = pd.read_csv(folder / "window.csv").kind.value_counts()
    assert dict(kinds) == {"step": 8, "epoch": 2, "evaluation": 2, "checkpoint": 2}


@pytest.mark.parametrize("budget", [{"energy_budget_j": 12.0}, {"carbon_budget_g": 12.0 / 3.6e6 * 100}])
def test_a_budget_ends_training_with_the_step_that_crosses_it(world, tmp_path, caplog, budget):
    energy = callback(world, layers="off", **budget)
    used = trainer(world, tmp_path, energy, num_train_epochs=50, model=trainer_run.Model(world, 0.05))
    with caplog.at_level(logging.WARNING, logger="torchwatt"):
        used.train()
    report = energy.run.report
    until = [truth_j(world, report.start_ns, step.end_ns) for step in report.steps]
    late_j = world.late_j(report)
    crossing = next((i for i, joules in enumerate(until) if joules >= 12.0 + late_j), len(until) - 1)
    assert until[0] < 12.0 < until[-1] + late_j
    assert len(until) - 1 - crossing <= 1, until
    assert used.state.global_step == len(until)
    assert report.status == "complete"
    assert "budget" in report.exit_reason
    assert f"after {len(until)} steps" in report.exit_reason
    assert "BUDGET_REACHED" in [event.code for event in report.events]
    assert sum("used up" in record.message for record in caplog.records) == 1


def test_a_carbon_budget_needs_a_grid_and_a_budget_one_process(world):
    with pytest.raises(ConfigError, match="region="):
        trainer_run.EnergyCallback(carbon_budget_g=5.0)
    with pytest.raises(ConfigError, match="energy_budget_j=-1"):
        trainer_run.EnergyCallback(energy_budget_j=-1)
    energy = callback(world, energy_budget_j=5.0)
    with pytest.raises(ConfigError, match="a single process"):
        energy._begin(None, processes=2)
    assert energy.run is None


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_exception_in_a_step_passes_and_the_report_is_there(world, tmp_path, error):
    energy, model = callback(world), trainer_run.Model(world)
    model.busy.fails_at = {4: error}
    with pytest.raises(type(error)) as caught:
        trainer(world, tmp_path, energy, model=model).train()
    assert caught.value is error
    assert (energy.run.status, energy.run.report.exit_reason) == ("aborted", type(error).__name__)
    assert energy.run.report.step_count == 3
    assert energy.run.energy_j > 0
    assert energy.run.epochs.steps.tolist() == [3, 0]


@pytest.mark.alone
@pytest.mark.parametrize("added", some_of(["before", "late"], 1))
def test_attempts_with_other_batch_sizes_are_one_run_and_one_budget(world, tmp_path, added):
    late = added == "late"
    energy = callback(world, layers="off", csv=tmp_path / "audit", energy_budget_j=1e6)
    model = trainer_run.Greedy(world)
    used = trainer(
        world, tmp_path, None if late else energy, model=model, auto_find_batch_size=True, num_train_epochs=1,
        per_device_train_batch_size=8,
    )  # fmt: skip
    if late:
        used.add_callback(energy)
    used.train()
    run = energy.run
    assert run.report.exit_reason == ""
    assert "METERING_FAILED" not in set(run.events.code)
    assert used.state.global_step == 16
    assert run.report.step_count == 17  # one of the first attempt
    assert [path.name for path in tmp_path.glob("audit*")] == ["audit"]
    assert run.report.start_ns <= model.first_ns < model.last_ns <= run.report.end_ns
    assert run.energy_j > truth_j(world, model.first_ns, model.last_ns) * 0.9
    assert "BEGAN_AGAIN" in set(run.events.code)
    first = run
    used.train()
    assert energy.run.run_id != first.run_id


def test_one_that_was_added_late_ends_when_it_is_looked_at_and_says_so(world, tmp_path):
    energy, model = callback(world, layers="off"), trainer_run.Model(world)
    model.busy.fails_at = {3: ValueError("mine")}
    used = trainer(world, tmp_path, None, model=model)
    used.add_callback(energy)
    with pytest.raises(ValueError, match="mine"):
        used.train()
    assert energy.run.status == "aborted"
    assert "LEFT_OPEN" in set(energy.run.events.code)


def test_a_resumed_training_goes_on_from_the_joules_in_the_checkpoint(world, tmp_path):
    given = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 1, "logging_steps": 2}
    first = callback(world, layers="off")
    trainer(world, tmp_path, first, **given, max_steps=4).train()
    kept = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    carried = kept["stateful_callbacks"]["torchwatt"]["attributes"]
    assert carried["run_ids"] == [first.run.run_id]
    assert 0 < carried["energy_j"] <= first.run.energy_j
    second = callback(world, layers="off")
    used = trainer(world, tmp_path, second, **given, restore_callback_states_from_checkpoint=True)
    used.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert second.run.report.step_count == used.state.global_step - 4 == 4
    totals = [row["energy/total_j"] for row in used.state.log_history if "energy/total_j" in row]
    assert 0.6 < (totals[-1] - carried["energy_j"]) / second.run.energy_j <= LATE
    assert isclose(fsum(second.run.epochs.energy_j), second.run.energy_j, rel_tol=1e-12)


def test_the_example_runs_and_a_budget_ends_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trainer.py", "--epochs", "30", "--energy-budget-j", "1"])
    names = runpy.run_path(str(EXAMPLE), run_name="__main__")
    out = capsys.readouterr().out
    assert "energy budget of 1 J used up" in out
    assert "energy/step_j" in out
    assert names["energy"].run.energy_j >= 1
    assert names["trainer"].state.global_step < 360


def test_codecarbons_callback_is_explained_once_and_left_alone(world, tmp_path, caplog, monkeypatch):
    class CodeCarbonCallback(transformers.TrainerCallback):
        """Not the real one, which writes files and looks for a network; the name is what counts."""

    energy = callback(world, layers="off")
    beside = CodeCarbonCallback()
    used = trainer(world, tmp_path, energy, others=[beside], max_steps=1)
    with caplog.at_level(logging.WARNING, logger="torchwatt"):
        used.train()
    assert sum("CodeCarbonCallback" in record.message for record in caplog.records) == 1
    assert 'report_to="none"' in caplog.text
    assert beside in used.callback_handler.callbacks
    assert "CODECARBON_BESIDE" in set(energy.run.events.code)


def test_transformers_adds_codecarbons_callback_under_the_name_we_know():
    from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

    from torchwatt.integrations.trainer import CODECARBON_CALLBACK

    assert "codecarbon" in get_available_reporting_integrations()
    assert INTEGRATION_TO_CALLBACK["codecarbon"].__name__ == CODECARBON_CALLBACK
