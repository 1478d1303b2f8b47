"""The programs' own clock and counters, and what compares them with a report."""

import time
from statistics import median

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.programs.measure import BOUND, Pair, Result, in_the_middle, is_within, shares_of_text, unequal_totals
from tests.programs.truth import PROGRAMS, Parts


class Sleep(torch.autograd.Function):
    """Takes known times, which no load of the machine makes shorter."""

    @staticmethod
    def forward(ctx, x, forward_s, backward_s):
        time.sleep(forward_s)
        ctx.backward_s = backward_s
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        time.sleep(ctx.backward_s)
        return grad, None, None


class Sleeper(nn.Module):
    def __init__(self, forward_s, backward_s):
        super().__init__()
        self.weight, self.seconds = nn.Parameter(torch.ones(4)), (forward_s, backward_s)

    def forward(self, x):
        return Sleep.apply(x * self.weight, *self.seconds)


@pytest.mark.parametrize("input_needs_gradient", [True, False])
def test_timed_modules_get_the_time_that_they_took(input_needs_gradient):
    model = nn.Sequential(Sleeper(0.02, 0.05), Sleeper(0.04, 0.03))
    parts = Parts(clock=time.perf_counter)
    parts.count(model)
    parts.time("first", {"0": model[0]})
    parts.time("second", {"1": model[1]})
    for _ in range(2):
        parts.start("forward")
        y = model(torch.ones(4, requires_grad=input_needs_gradient))
        parts.start("backward")
        y.sum().backward()
        time.sleep(0.1)  # nobody's
        parts.start("other")
    found = {(g, p): s for g, phases in parts.group_seconds.items() for p, s in phases.items()}
    expected = {("first", "forward"): 0.04, ("first", "backward"): 0.1,
                ("second", "forward"): 0.08, ("second", "backward"): 0.06}  # fmt: skip
    assert all(expected[each] <= found[each] for each in expected)
    if not input_needs_gradient:
        assert found["first", "backward"] < parts.seconds["backward"] - found["second", "backward"] - 0.19
    assert parts.calls == {"(root)": 2, "0": 2, "1": 2} == parts.graded_calls


def test_the_parts_add_up_to_all_the_time():
    parts = Parts()
    began = time.thread_time()
    for phase in ("forward", "backward", "optimizer", "data", "other"):
        parts.start(phase)
    ended = time.thread_time()
    assert parts.total_s == pytest.approx(ended - began, abs=1e-3)


def test_what_the_clock_itself_takes_is_no_time_of_a_phase():
    now_s = [0.0]

    class SlowBooks(dict):
        def __setitem__(self, phase, seconds):
            super().__setitem__(phase, seconds)
            now_s[0] += 1.0

    parts = Parts(clock=lambda: now_s[0])
    parts.seconds = SlowBooks(parts.seconds)
    for phase in ("forward", "backward", "optimizer", "other"):
        parts.start(phase)
    assert parts.total_s > 0
    assert parts.seconds["other"] == parts.total_s


def test_calls_without_gradients_are_followed_by_no_backward_pass():
    parts = Parts()
    model = parts.count(nn.Linear(4, 4))
    model(torch.ones(4))
    with torch.no_grad():
        model(torch.ones(4))
    assert (parts.calls["(root)"], parts.graded_calls["(root)"]) == (2, 1)


def test_backward_calls_are_counted_where_a_gradient_comes_through():
    parts = Parts()
    model = parts.count_both_ways(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    model(torch.ones(4)).sum().backward()
    model(torch.ones(4))  # nothing follows
    (model(torch.ones(4)) + model(torch.ones(4))).sum().backward()
    with torch.no_grad():
        model(torch.ones(4))
    assert set(parts.calls.values()) == {5}
    assert set(parts.graded_calls.values()) == {3}


def result(**shares):
    return Result("program", 1.0, 5.0, shares, {}, {}, {}, [], [], [], 0.0, [])


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3))
def test_a_third_run_never_decides_where_two_are_within(differences):
    runs = [result(forward=Pair(50.0, 50.0 + each)) for each in differences]
    if sum(is_within(run) for run in runs[:2]) == 2:
        assert is_within(in_the_middle(runs))
    pair = in_the_middle(runs).phases["forward"]
    assert pair.reported - pair.truth == pytest.approx(median(differences))
    assert is_within(in_the_middle(runs)) == (abs(pair.reported - pair.truth) <= BOUND)


def test_a_phase_that_only_some_runs_have_counts_as_none_in_the_others():
    runs = [result(data=Pair(0.0, 9.0)), result(data=Pair(0.0, 8.0)), result()]
    assert in_the_middle(runs).phases["data"].reported == 8.0


def rows(**self_j):
    """Return rows of one model, with right totals."""
    total_j = {"(root)": sum(self_j.values()), "a": self_j["a"] + self_j["a.b"], "a.b": self_j["a.b"]}
    return pd.DataFrame(
        {"domain": "cpu", "fqn": fqn, "phase": "forward", "stage": "train", "energy_self_j": self_j[fqn],
         "energy_total_j": total_j[fqn]}
        for fqn in self_j
    )  # fmt: skip


def test_a_parent_that_is_not_the_sum_of_its_children_is_found():
    right = rows(**{"(root)": 1.0, "a": 2.0, "a.b": 4.0})
    modules = {"(root)", "a", "a.b"}
    assert not list(unequal_totals(right, modules))
    wrong = right.assign(energy_total_j=[7.0, 2.0, 4.0])
    assert list(unequal_totals(wrong, modules)) == ["run.layers: cpu a forward train"]


def test_parents_add_up_within_each_stage():
    inside = {"(root)": 1.0, "a": 2.0, "a.b": 4.0}
    apart = pd.concat([rows(**inside).assign(stage=stage) for stage in ("prefill", "decode")])
    assert not list(unequal_totals(apart, set(inside)))
    assert list(unequal_totals(apart.assign(stage="decode"), set(inside)))


def test_the_shares_in_a_terminal_are_read():
    text = (
        "torchwatt · run · 62 %\n\nlayers, cpu\n"
        "layer   self   90 % interval    share  known\n-----\n"
        "a     1.0 J    0.9 to 1.1 J    62.5 %  modelled\n"
        "...   0.6 J                    37.5 %\n-----\n"
        "all of the above              100.0 %  modelled\n\nmeasuring  5.8 % of the run\n"
    )
    assert shares_of_text(text) == [62.5, 37.5, 100.0]


def test_there_are_programs_of_every_kind():
    usual = [each for each in PROGRAMS.values() if not each.heavy]
    assert len(usual) >= 36
    assert all(each.make.__doc__ for each in PROGRAMS.values())


@pytest.mark.parametrize("clock", [time.perf_counter, time.thread_time])
def test_what_the_clock_itself_takes_belongs_to_no_part(clock):
    parts = Parts(clock=clock)
    parts.restart()
    for _ in range(2_000):
        parts.start("forward")
        parts.start("other")
    assert abs(parts.seconds["forward"]) < 0.1 * parts.seconds["other"]
