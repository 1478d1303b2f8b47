"""Steps of which only the end is noted: what is patched meanwhile, who wakes the thread, and what it costs the rest."""

import threading

import pytest
import torch
from torch.optim import optimizer as optim

from tests.tracing.nets import Net, batch, calls, traced, train
from torchwatt.tracing.budget import DECISION_SHARE, MOST_STEPS, Budget
from torchwatt.tracing.outermost import passing_calls
from torchwatt.tracing.rows import ASLEEP, OPTIMIZER_KEY

THRIFTY = 1e-9


def in_place():
    return (
        torch.autograd._engine_run_backward,
        len(optim._global_optimizer_pre_hooks),
        len(optim._global_optimizer_post_hooks),
    )


def test_a_sleeping_thread_passes_no_wrapper_but_that_of_its_model_and_the_end_of_its_steps():
    engine, begins, ends = in_place()
    net = Net()
    with traced(net, overhead_budget=THRIFTY) as run:
        assert in_place()[0] is not engine
        train(net, 200)
        assert run.tracer._hub.logs[0].mode == ASLEEP
        assert in_place() == (engine, begins, ends + 1)
        assert not run.tracer._hub.patches.module_is_on
        with torch.no_grad():
            net(batch())
        assert in_place()[0] is not engine
        assert in_place()[1:] == (begins + 1, ends + 1)
        train(net, 200)
    assert in_place() == (engine, begins, ends)
    assert calls(run.trace, "(root)", "forward") == 401
    assert sum(run.trace.step_counts or [1] * len(run.trace.steps)) >= 400


def test_who_patches_backward_meanwhile_keeps_the_patch_and_hears_every_call():
    engine, heard = torch.autograd._engine_run_backward, []

    def mine(*args, **kwargs):
        heard.append(1)
        return below(*args, **kwargs)

    net = Net()
    with traced(net, overhead_budget=THRIFTY):
        train(net, 200)
        below = torch.autograd._engine_run_backward
        torch.autograd._engine_run_backward = mine
        with torch.no_grad():
            net(batch())  # wakes
        train(net, 200)
        torch.autograd._engine_run_backward = below
    assert len(heard) == 200
    assert torch.autograd._engine_run_backward is engine


def test_a_second_thread_is_heard_although_the_first_one_sleeps_within_a_call():
    net, other, within = Net(), Net(), threading.Event()

    def evaluate():
        within.wait(10)
        with torch.no_grad():
            for _ in range(5):
                other(batch())

    with traced(net, overhead_budget=THRIFTY) as run:
        train(net, 200)
        hub = run.tracer._hub
        assert hub.logs[0].mode == ASLEEP
        thread = threading.Thread(target=evaluate)
        thread.start()

        def slow(x):
            within.set()
            thread.join(0.05)  # its first call falls into ours
            return net(x)

        train(net, 3, forward=slow)
        thread.join()
        train(net, 3)
    assert not hub.quiet.alone
    assert not hub.quiet.now
    assert calls(run.trace, "(root)", "forward") >= 206


def test_a_call_that_raises_leaves_nothing_quiet():
    class Fails(Net):
        def forward(self, x):
            if x is None:
                raise KeyError("mine")
            return super().forward(x)

    net = Fails()
    with traced(net, overhead_budget=THRIFTY) as run:
        train(net, 200)
        hub = run.tracer._hub
        assert hub.logs[0].mode == ASLEEP
        with pytest.raises(KeyError, match="mine"):
            net(None)
        assert not hub.quiet.now
        assert not hub.logs[0].inside
        train(net, 20)


def test_what_a_subclass_has_in_between_is_called():
    loud = []

    class Loud(torch.nn.Module):
        def __call__(self, *args, **kwargs):
            loud.append(1)
            return super().__call__(*args, **kwargs)

    class Mixed(Net, Loud):
        pass

    net, mixed = Net(), Mixed()
    with traced(net, overhead_budget=THRIFTY) as run:
        train(net, 200)
        assert run.tracer._hub.patches.watched([Net])
        train(mixed, 10)
        mixed(batch())
    assert len(loud) == 11


def test_calls_that_pass_the_wrapper_of_their_class_are_told():
    def row(key, start, end, task=-1):
        return key, start, end, 0, 0, task

    rows = [row(2, 1, 2), row(1, 0, 3)]  # an earlier step
    step = [
        row(2, 10, 12),
        row(3, 12, 15),
        row(2, 16, 17),
        row(1, 9, 20),
        row(2, 30, 31, task=0),
        row(OPTIMIZER_KEY, 40, 50),
    ]
    assert passing_calls(rows + step, len(step), {1, 2}.__contains__) == 2
    assert passing_calls(rows + step, len(step), {1}.__contains__) == 0
    assert passing_calls(rows, 0, {1, 2}.__contains__) == 0


def test_a_decision_is_put_off_until_it_is_worth_its_cost():
    budget = Budget(0.01, 0)
    step_ns, cost_ns, now_ns = 10_000_000, 1_000, 10**10
    at_once = budget.steps_until_news(cost_ns, step_ns, now_ns, traced=False)
    later = budget.steps_until_news(cost_ns, step_ns, now_ns, traced=False, decision_ns=50_000)
    assert at_once == 1
    assert later == round(50_000 / DECISION_SHARE / (0.01 * step_ns)) == 10
    assert budget.steps_until_news(cost_ns, step_ns, now_ns, traced=False, decision_ns=10**9) == MOST_STEPS
