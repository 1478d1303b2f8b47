"""Budgets, paces, sums and carried joules, without any framework."""

import subprocess
import sys
import time
from math import fsum, isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchwatt as tw
from tests.support.examples import examples
from torchwatt.core.errors import ConfigError
from torchwatt.integrations.training_budget import (
    MAX_WAIT_S,
    NO_TOTALS,
    BudgetSchedule,
    CheckpointTotals,
    TrainingBudget,
    parse_totals,
)
from torchwatt.integrations.training_meter import PhaseEnergyTracker, TrainingMeter

joules = st.floats(0, 1e9)


@examples(30)
@given(st.floats(0.001, 0.3), st.floats(1, 1000), st.floats(1, 1e4))
def test_at_a_steady_power_the_step_that_crosses_a_budget_is_seen_when_it_ends(step_s, power_w, budget_j):
    budget, pace = TrainingBudget(energy_j=budget_j), BudgetSchedule()
    step_s = max(step_s, budget_j / power_w / 500)
    now_s = 1000.0  # what a monotonic clock may say
    for step in range(1, 600):
        used_j = power_w * step_s * step
        looks = pace.is_due(now_s + step_s * step)
        if used_j >= budget_j:
            assert looks
            return
        if looks:
            pace.record_check(now_s + step_s * step, budget.used_part(used_j, None))
    raise AssertionError("the budget was never crossed")


def test_far_from_the_end_it_looks_twice_a_second_at_most():
    pace, looks = BudgetSchedule(), 0
    for step in range(1, 1001):
        if pace.is_due(5.0 + step / 100):
            pace.record_check(5.0 + step / 100, step / 1e9)
            looks += 1
    assert looks <= 10 / MAX_WAIT_S + 20


@given(joules | st.none(), joules | st.none())
def test_what_is_unknown_uses_up_no_budget(energy_j, carbon_g):
    assert TrainingBudget().used_part(energy_j, carbon_g) == 0
    assert TrainingBudget(energy_j=5.0).used_part(None, carbon_g) == 0
    used = TrainingBudget(energy_j=5.0, carbon_g=7.0).used_part(energy_j, carbon_g)
    assert used == max((energy_j or 0) / 5.0, (carbon_g or 0) / 7.0)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "5", True])
def test_a_budget_is_a_positive_number(value):
    with pytest.raises(ConfigError, match="energy_budget_j="):
        TrainingBudget(energy_j=value)
    with pytest.raises(ConfigError, match="carbon_budget_g="):
        TrainingBudget(carbon_g=value)


@given(st.lists(joules | st.none(), min_size=1, max_size=5))
def test_carried_joules_add_up_and_an_unknown_part_makes_the_sum_unknown(parts):
    carried = NO_TOTALS
    for number, part in enumerate(parts):
        carried = parse_totals(carried.plus(part, None, str(number)).to_json())
    assert carried.run_ids == tuple(str(i) for i in range(len(parts)))
    if None in parts:
        assert carried.energy_j is None
    else:
        assert isclose(carried.energy_j, fsum(parts), rel_tol=1e-12)


@pytest.mark.parametrize("kept", [None, {}, {"energy_j": "many"}, {"energy_j": -1.0, "run_ids": 5}])
def test_a_checkpoint_without_sense_carries_nothing(kept):
    assert parse_totals(kept) == CheckpointTotals()


class Meters:
    """A pulse whose joules are set by a test; a slow meter has answered only up to some end, and tells later."""

    def __init__(self):
        self.energy_j, self.gaps, self.whole = {"cpu:0": 0.0}, 0, None
        self.answers, self.options, self.at = True, [], {}

    def request_at(self, t_ns):
        self.options.append((t_ns, self.energy_j["cpu:0"]))

    def forget(self, t_ns):
        self.at.pop(t_ns, None)

    def update(self, *, fresh=False):
        if self.answers:
            self.at |= {t_ns: {"cpu:0": joules} for t_ns, joules in self.options}
            self.options.clear()

    def result_at(self, t_ns):
        return self.at.get(t_ns)

    def carbon_g(self, _energy_j=None):
        return None


PARTS = ("evaluation", "checkpoint", "rest")


@given(st.lists(st.tuples(st.sampled_from(["train", *PARTS]), st.floats(0, 100), st.booleans())))
def test_no_joule_is_in_two_parts_however_late_a_meter_tells(parts):
    meters = Meters()
    live = PhaseEnergyTracker(meters)
    true_j = dict.fromkeys(("train", *PARTS), 0.0)
    steps = 0
    for part, used_j, meters.answers in parts:
        meters.energy_j["cpu:0"] += used_j
        true_j[part] += used_j
        steps += part == "train"
        live.look(part, steps=int(part == "train"))
    meters.answers = True
    live.glance()
    step_j = live.step_j()
    assert isclose(step_j * steps, true_j["train"], abs_tol=1e-6) if steps else step_j is None
    for part in PARTS:
        assert isclose(live.take(part) or 0.0, true_j[part], abs_tol=1e-6)
        assert live.take(part) is None  # each joule once


def test_what_a_slow_meter_has_not_told_is_unknown_and_comes_later():
    meters = Meters()
    live = PhaseEnergyTracker(meters)
    meters.energy_j["cpu:0"], meters.answers = 5.0, False
    live.look("evaluation")
    assert live.take("evaluation") is None
    meters.energy_j["cpu:0"], meters.answers = 9.0, True
    live.look("train", steps=2, ends_epoch=True)
    assert live.take("evaluation") == 5.0
    assert live.step_j() == 2.0
    assert live.take("epoch") == 4.0


def test_joules_that_cannot_be_told_apart_or_of_a_silent_meter_are_in_no_sum():
    meters = Meters()
    live = PhaseEnergyTracker(meters)
    meters.energy_j["cpu:0"] = 5.0
    live.look("evaluation", "train", steps=3)  # nobody said when the evaluation began
    assert live.take("evaluation") is None
    assert live.step_j() is None
    meters.energy_j["cpu:0"], meters.gaps = 8.0, 1
    live.look("train", steps=1)
    assert live.step_j() is None
    assert live.whole_j is None
    meters.energy_j["cpu:0"] = 9.0
    live.look("train", steps=1)
    assert live.step_j() == 1.0


def test_a_meter_that_is_silent_for_good_costs_no_memory():
    meters = Meters()
    live, meters.answers = PhaseEnergyTracker(meters), False
    for _ in range(2000):
        live.look("train", steps=1)
    assert len(live._ends) <= 257


def test_a_training_inside_another_run_shows_its_epochs_there_as_well(world):
    with tw.profile(powercap_root=world.root, layers="off", live="off", baseline_s=0.0) as outer:
        training = TrainingMeter(None, {"layers": "off", "live": "off"}, TrainingBudget())
        for epoch in range(2):
            training.epoch_began(epoch)
            time.sleep(0.03)
            training.end_step()
            training.end_epoch()
        training.end()
    assert training.run.nested
    assert training.run.epochs.steps.tolist() == [1, 1, 0]
    assert outer.epochs.epoch.tolist() == ["0", "1", "(outside)"]
    assert isclose(fsum(outer.epochs.energy_j), outer.energy_j, rel_tol=1e-12)


def test_importing_the_package_loads_no_framework_and_a_missing_one_is_named():
    code = """
import sys
import torchwatt.integrations
assert not {"torch", "transformers", "lightning", "mlflow"} & set(sys.modules)
for name in ("transformers", "lightning", "pytorch_lightning", "mlflow"):
    sys.modules[name] = None
import importlib
from torchwatt.core.errors import TorchwattError
for name in ("trainer", "lightning"):
    try:
        importlib.import_module(f"torchwatt.integrations.{name}")
    except TorchwattError as error:
        assert isinstance(error, ImportError)
        print(error)
from torchwatt.integrations.mlflow import log
try:
    log(None)
except TorchwattError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.rpartition("pip install ")[2] for line in lines] == [
        "'torchwatt[trainer]'", "'torchwatt[lightning]'", "'torchwatt[mlflow]'",
    ]  # fmt: skip
