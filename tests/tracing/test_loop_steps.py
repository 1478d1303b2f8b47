"""What a step is: rounds of optimizers, rounds without one, evaluations, calls of a model."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.tracing.nets import traced
from torchwatt.tracing.loop_steps import LoopEvidence, LoopStep, OptimizerEnds, OutermostCalls, find_rounds, steps_of

NONE = np.zeros(0, dtype=np.int64)


def marks(keys, every=10):
    return [(key, every * (i + 1), 1) for i, key in enumerate(keys)]


def before_each(keys, every=10):
    """Forward calls, one before each optimizer step."""
    return np.arange(len(keys)) * every + 1


def ends_of(keys, **given):
    return [end for end, _ in find_rounds(marks(keys), **given)]


def test_phases_with_optimizers_of_their_own_have_no_round_in_common():
    assert len(ends_of([1] * 100 + [2] * 100, forward_ns=before_each([0] * 200))) == 200
    assert len(ends_of([1] * 100 + [2] * 100)) == 200


def test_two_that_take_turns_make_one_round():
    assert len(ends_of([1, 2] * 50, forward_ns=before_each([0] * 100))) == 50
    assert len(ends_of([1, 1, 2] * 50, forward_ns=before_each([0] * 150))) == 100  # a critic steps twice


def test_several_that_step_after_one_backward_call_make_one_round():
    keys = [1, 2, 3, 4, 5, 6] * 40
    assert ends_of(keys, forward_ns=np.arange(40) * 60 + 1) == [60 * (i + 1) for i in range(40)]


def test_one_of_many_chosen_at_random_is_a_step_of_its_own():
    keys = np.random.default_rng(0).integers(1, 9, 300).tolist()
    assert len(ends_of(keys, forward_ns=before_each(keys))) == 300


def skipping(first, *others, n=120):
    """One optimizer that steps in every round, and others that step in some, the first among them, before or after."""
    random = np.random.default_rng(1)
    every = [[key for key, share in others if random.random() < share or not i] for i in range(n)]
    return [key for found in every for key in ([0, *found] if first else [*found, 0])]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("others", [[(1, 0.4)], [(1, 0.7), (2, 0.4)], [(1, 0.9), (2, 0.1), (3, 0.5)]])
def test_some_that_skip_rounds_are_of_the_round_of_one_that_does_not(first, others):
    keys = skipping(first, *others)
    ends = ends_of(keys, forward_ns=before_each(keys))
    assert len(ends) == 120
    if not first:
        assert ends == [10 * (i + 1) for i, key in enumerate(keys) if key == 0]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.7, 0.3), (0.5, 0.25, 0.25), (0.8, 0.1, 0.1)])
def test_a_few_chosen_at_random_are_steps_of_their_own(shares):
    keys = np.random.default_rng(2).choice(len(shares), 400, p=shares).tolist()
    assert len(ends_of(keys, forward_ns=before_each(keys))) == 400


def test_steps_whose_ends_alone_were_noted_say_nothing_of_calls_between():
    keys = [1, 2, 3, 4, 5] * 40
    seen = np.array([1, 11, 21, 31, 41])  # a call before each, in the first round
    asleep = np.array([[50, 2_000]])
    assert len(ends_of(keys, forward_ns=seen, unseen_ns=asleep)) == 200


@given(st.lists(st.integers(1, 4), max_size=60))
def test_rounds_end_where_an_optimizer_step_ends_and_count_no_optimizer_twice(keys):
    found = ends_of(keys)
    times = {10 * (i + 1) for i in range(len(keys))}
    assert set(found) <= times
    assert found == sorted(set(found))
    assert len(found) >= max((keys.count(key) for key in keys), default=0)
    assert (found[-1:] == [10 * len(keys)]) == bool(keys)


@given(st.integers(0, 400), st.sampled_from([(1,), (1, 2), (1, 1, 2)]))
def test_a_long_run_keeps_its_number_of_steps(n, pattern):
    keys = (list(pattern) * n)[:n]
    ends = OptimizerEnds(most_entries=20)
    for i, key in enumerate(keys):
        ends.extend([(key, 10 * (i + 1))])
    count = sum(count for _, count in find_rounds(ends.entries()))
    assert abs(count - len(ends_of(keys))) <= 1  # where it was put together a round may have been cut
    assert len(ends.entries()) <= 41


def calls(*spans, grown=True, main=True):
    table = np.array([span[:2] for span in spans], dtype=np.int64).reshape(-1, 2)
    flags = np.array([(span[2:] or (grown,))[0] for span in spans], dtype=bool)
    one = np.ones(len(table), np.int64)
    return OutermostCalls(table[:, 0], table[:, 1], one, flags, np.full(len(table), main), one, one == 0)


def evidence(called, backward=(), **given):
    backward = np.array(backward, dtype=np.int64).reshape(-1, 2)
    starts = np.sort(np.concatenate((called.start_ns, backward[:, 0])))
    end_ns = given.pop("end_ns", 1_000)
    ones, first = np.ones(len(backward), np.int64), np.zeros(len(backward), np.bool_)
    return LoopEvidence(0, end_ns, starts, called, backward, ones, **{"backward_again": first, **given})


def test_a_round_without_an_optimizer_lasts_until_the_next_call():
    seen = evidence(calls((10, 20), (50, 60), (90, 100)), [(20, 30), (60, 70), (100, 110)])
    assert steps_of(seen)[0] == [
        LoopStep(10, 50, 1, "train"),
        LoopStep(50, 90, 1, "train"),
        LoopStep(90, 130, 1, "train"),
    ]


def test_two_backward_calls_after_one_forward_call_are_one_round():
    seen = evidence(calls((10, 20), (50, 60)), [(20, 25), (25, 30), (60, 70)])
    assert [step.end_ns for step in steps_of(seen)[0]] == [50, 90]


def test_evaluations_are_steps_of_their_own_and_no_part_of_the_next_round():
    called = calls((10, 20), (40, 50), (60, 61, False), (70, 71, False), (80, 90), (120, 121, False))
    seen = evidence(called, [(20, 30), (50, 55), (90, 95)], optimizers=[[(1, 35, 1), (1, 58, 1), (1, 100, 1)]])
    assert steps_of(seen)[0] == [
        LoopStep(10, 35, 1, "train"), LoopStep(40, 58, 1, "train"), LoopStep(60, 61, 1, "validation"),
        LoopStep(70, 71, 1, "validation"), LoopStep(80, 100, 1, "train"), LoopStep(120, 121, 1, "validation"),
    ]  # fmt: skip


def test_calls_without_gradients_in_every_round_are_part_of_it():
    called = calls((10, 12, False), (12, 20), (40, 42, False), (42, 50), (70, 72, False), (72, 80))
    seen = evidence(called, [(20, 30), (50, 55), (80, 85)], optimizers=[[(1, 35, 1), (1, 58, 1), (1, 90, 1)]])
    assert [(s.start_ns, s.end_ns) for s in steps_of(seen)[0]] == [(10, 35), (40, 58), (70, 90)]


def test_calls_without_gradients_after_each_round_are_steps_of_their_own():
    called = calls((10, 20), (35, 40, False), (50, 60), (75, 80, False), (90, 99), (115, 120, False))
    found, _ = steps_of(evidence(called, [(20, 30), (60, 70), (100, 110)]))
    assert [step.stage for step in found] == ["train", "validation"] * 3


def test_each_call_of_a_model_is_a_step_where_nothing_is_trained():
    both = calls((10, 11), (12, 13), (14, 20), (30, 31), (32, 40), grown=False)
    seen = evidence(replace(both, main=np.array([True, True, True, False, True])))
    found, are_calls = steps_of(seen)
    assert [(step.start_ns, step.end_ns) for step in found] == [(10, 11), (12, 13), (14, 20), (32, 40)]
    assert {step.stage for step in found} == {"inference"}
    assert are_calls


def test_steps_of_several_threads_end_where_those_of_each_do():
    seen = evidence(calls(), optimizers=[[(1, 10, 1), (1, 30, 1)], [(2, 20, 1), (2, 40, 1)]])
    assert [(s.start_ns, s.end_ns) for s in steps_of(seen)[0]] == [(0, 10), (10, 20), (20, 30), (30, 40)]


@given(st.lists(st.sampled_from("FBEO"), max_size=60))
def test_steps_are_sorted_and_apart_whatever_a_program_does(events):
    called, backward, optimizers = [], [], []
    for i, event in enumerate(events):
        if event in "FE":
            called.append((10 * i, 10 * i + 5, event == "F"))
        elif event == "B":
            backward.append((10 * i, 10 * i + 5))
        else:
            optimizers.append((1, 10 * i + 5, 1))
    found, _ = steps_of(evidence(calls(*called), backward, optimizers=[optimizers] if optimizers else []))
    bounds = [(step.start_ns, step.end_ns) for step in found]
    assert all(start <= end for start, end in bounds)
    assert all(a[1] <= b[0] for a, b in pairwise(bounds))
    if optimizers:
        assert sum(step.stage == "train" for step in found) == len(optimizers)


def test_normalisation_in_a_data_set_is_loading():
    class Normalise(nn.Module):
        def forward(self, x):
            return (x - x.mean()) / x.std()

    class Data(torch.utils.data.Dataset):
        chain = (Normalise(), Normalise())

        def __len__(self):
            return 32

        def __getitem__(self, i):
            x = torch.randn(8)
            for each in self.chain:
                x = each(x)
            return x, i % 2

    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    with traced(None) as run:
        for x, y in torch.utils.data.DataLoader(Data(), batch_size=4):
            opt.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            opt.step()
    assert {slot.fqn for slot in run.trace.slots if not slot.fqn.startswith("(")} <= {"0", "1", "2"}
    assert len(run.trace.steps) == 8


@pytest.mark.parametrize("phase", ["kept", "dropped"])
def test_each_phase_of_a_fine_tuning_has_its_steps(phase):
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def fit(opt):
        for _ in range(40):
            opt.zero_grad()
            net(torch.randn(4, 16)).sum().backward()
            opt.step()

    with traced(net, overhead_budget=1e-9) as run:
        head = torch.optim.AdamW(net[2].parameters())
        fit(head)
        everything = torch.optim.AdamW(net.parameters())
        if phase == "dropped":
            del head
        fit(everything)
    assert sum(run.trace.step_counts or [1] * len(run.trace.steps)) == 80
    assert set(run.trace.step_stages) == {"train"}


def test_evaluation_batches_are_no_training_steps():
    net = nn.Linear(16, 16)
    with traced(net) as run:
        for _ in range(3):
            for _ in range(10):
                net.zero_grad()
                net(torch.randn(4, 16)).sum().backward()
                with torch.no_grad():
                    for p in net.parameters():
                        p.sub_(0.01 * p.grad)
            with torch.no_grad():
                for _ in range(5):
                    net(torch.randn(4, 16))
    stages = list(run.trace.step_stages)
    assert stages.count("train") == 30
    assert stages.count("validation") == 15
