"""Steps of which only the end is noted: what is heard meanwhile, and what passes by."""

import random
import threading
import time
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise
from queue import SimpleQueue
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import optimizer as optim

from tests.tracing.nets import Net, batch, calls, counts, spans, traced, train
from torchwatt.core.terms import Slot
from torchwatt.tracing.aggregated_spans import AggregatedSpans, SpanKinds
from torchwatt.tracing.forward_templates import CallPaths
from torchwatt.tracing.log_rows import (
    ALL_CALLS,
    BACKWARD_KEY,
    END,
    FIRST_SCOPE_KEY,
    KEY,
    OPTIMIZER_KEY,
    OUTERMOST_TASK,
    STEP_ENDS,
    STEP_KEY,
    CallSignature,
)
from torchwatt.tracing.module_wrappers import MOST_CALLS_PER_STEP
from torchwatt.tracing.overhead_budget import DECISION_SHARE, MOST_STEPS, OverheadBudget
from torchwatt.tracing.scope import scope
from torchwatt.tracing.step_controller import passing_calls
from torchwatt.tracing.step_templates import StepTemplates
from torchwatt.tracing.template_composer import CalledModules, ModuleCalls, ModuleSlots, ModuleTree
from torchwatt.tracing.tracer import Tracer
from torchwatt.tracing.tracing_policy import StepBatch

THRIFTY = 1e-9


def test_a_patch_on_a_class_between_is_heard_whenever_it_comes():
    class Base(torch.nn.Module):
        pass

    class Derived(Base):
        def __init__(self):
            super().__init__()
            self.inner = Net()

        def forward(self, x):
            return self.inner(x)

    heard, net = [], Derived()
    with traced(net, overhead_budget=THRIFTY) as run:
        train(net, 200)
        assert run.tracer._hub.patches.watched([Derived])
        Base.__call__ = lambda self, *args: heard.append(1) or torch.nn.Module.__call__(self, *args)
        train(net, 50)
        del Base.__call__
    assert len(heard) == 50


def test_a_users_hook_may_wake_the_thread_before_an_optimizer_step():
    net, waking = Net(), [0]

    def validate(*_):
        waking[0] += 1
        if waking[0] % 70 == 0:
            with torch.no_grad():
                net(batch())

    hooks = [optim.register_optimizer_step_pre_hook(validate), optim.register_optimizer_step_pre_hook(lambda *_: None)]
    try:
        with traced(net, overhead_budget=THRIFTY) as run:
            train(net, 300)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls(run.trace, "(root)", "forward") >= 300
    assert sum(run.trace.step_counts or [1] * len(run.trace.steps)) == 300


def test_a_thread_that_starts_while_the_first_one_sleeps_is_heard():
    class Other(Net):
        pass

    other = Other()

    def learn():
        for _ in range(20):
            other(batch()).square().mean().backward()

    net = Net()
    with traced(net, overhead_budget=THRIFTY) as run:
        train(net, 200)
        assert run.tracer._hub.logs[0].mode == STEP_ENDS
        thread = threading.Thread(target=learn)
        thread.start()
        thread.join()
    assert calls(run.trace, "other", "forward") == 20


def test_a_worker_whose_every_call_falls_into_another_threads_is_heard():
    class Pipe(Net):
        def forward(self, x):
            if threading.current_thread() is main:
                asked.put(x)
                answered.get(timeout=10)
            return super().forward(x)

    main, asked, answered, net, helper = threading.current_thread(), SimpleQueue(), SimpleQueue(), Pipe(), Pipe()

    def work():
        with torch.no_grad():
            while (x := asked.get()) is not None:
                helper(x)
                answered.put(1)

    with traced(net, overhead_budget=THRIFTY) as run:
        early = threading.Thread(target=lambda: [answered.put(1) or asked.get() for _ in range(200)])
        early.start()
        train(net, 200)
        early.join()
        hub = run.tracer._hub
        assert hub.logs[0].mode == STEP_ENDS
        thread = threading.Thread(target=work)
        thread.start()
        train(net, 100)
        asked.put(None)
        thread.join()
        assert [log.ident for log in hub.logs] == [main.ident, thread.ident]


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
        assert hub.logs[0].mode == STEP_ENDS
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
    assert not hub.quiet.inside
    found = counts(run.trace).get("(root)")
    assert found is None or found >= 206


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
        assert hub.logs[0].mode == STEP_ENDS
        with pytest.raises(KeyError, match="mine"):
            net(None)
        assert not hub.quiet.inside
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
    budget = OverheadBudget(0.01, 0)
    step_ns, cost_ns, now_ns = 10_000_000, 1_000, 10**10
    at_once = budget.steps_until_news(cost_ns, step_ns, now_ns, traced=False)
    later = budget.steps_until_news(cost_ns, step_ns, now_ns, traced=False, decision_ns=50_000)
    assert at_once == 1
    assert later == round(50_000 / DECISION_SHARE / (0.01 * step_ns)) == 10
    assert budget.steps_until_news(cost_ns, step_ns, now_ns, traced=False, decision_ns=10**9) == MOST_STEPS


@contextmanager
def asleep(net, opt=None, **options):
    """Trace until the thread notes the ends of steps only; yields the run and the optimizer."""
    opt = opt or torch.optim.SGD(net.parameters(), 0.01)
    with traced(net, overhead_budget=THRIFTY, **options) as run:
        train(net, 200, opt)
        assert run.tracer._hub.logs[0].mode == STEP_ENDS
        yield run, opt


def steps_of(trace):
    return sum(trace.step_counts or [1] * len(trace.steps))


def test_each_step_is_counted_once_whoever_looks_meanwhile():
    net, counted, stop = Net(), [], threading.Event()

    def look():
        while not stop.wait(0.002):
            counted.append(steps_of(run.tracer.snapshot()))

    with asleep(net) as (run, opt):
        quiet, more = run.tracer._hub.quiet, 0
        looking = threading.Thread(target=look)
        looking.start()
        train(net, 300, opt)
        stop.set()
        looking.join()
        while not quiet.ends:  # the last of them may have been looked at already
            train(net, 1, opt)
            more += 1
        after = steps_of(run.tracer.snapshot())
        assert not quiet.ends
    assert counted == sorted(counted)
    assert after == steps_of(run.trace) == 500 + more
    ends = [end for _, end in run.trace.steps]
    assert ends == sorted(ends)


def test_scopes_between_quiet_steps_stand_between_them():
    net = Net()
    with asleep(net) as (run, opt):
        log = run.tracer._hub.logs[0]
        for _ in range(20):
            train(net, 2, opt)
            with scope("between"):
                pass
        log.settle()
        rows = [row for row in log.rows if row[KEY] in {STEP_KEY, FIRST_SCOPE_KEY}][-60:]
    assert [row[END] for row in rows] == sorted(row[END] for row in rows)
    # On a busy machine no step with the scope may be traced: its calls are then unknown.
    untold = Slot("between", "other") in {run.trace.slots[slot] for slot in run.trace.untold_calls}
    assert untold or calls(run.trace, "between", "other") == 20


def test_a_second_optimizer_ends_no_step_and_is_not_lost():
    net, other = Net(), Net()
    with asleep(net) as (run, opt):
        second = torch.optim.SGD(other.parameters(), 0.01)
        for _ in range(30):
            train(net, 1, opt)
            train(other, 1, second)
    assert steps_of(run.trace) == 230


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_that_takes_the_place_of_the_first_is_heard(kind):
    net, others = Net(), []
    with traced(net, overhead_budget=THRIFTY) as run:
        parameters, opt = list(net.parameters()), torch.optim.SGD(net.parameters(), 0.01)
        train(net, 200, opt)
        place = id(opt)
        del opt
        while id(opt := kind(parameters, 0.01)) != place and len(others) < 300:
            others.append(opt)
        train(net, 130, opt)
        log = run.tracer._hub.logs[0]
        log.look()
        marks = Counter(key for key, *_ in log.optimizer_ends.entries())
    assert list(marks.values()) == ([330] if kind is torch.optim.SGD else [200, 130])  # told by their class


def test_a_step_of_many_calls_is_slept_through():
    net = Net()
    with asleep(net) as (run, opt), patch.object(run.tracer._hub.stepping, "outermost_begins") as woken:
        for _ in range(MOST_STEPS + 50):
            for _ in range(MOST_CALLS_PER_STEP):
                net(batch(1)).sum().backward()
            opt.step()
        assert not woken.called


def test_noted_ends_are_booked_once_where_a_look_comes_in_between():
    net = Net()
    with asleep(net) as (run, opt):
        log = run.tracer._hub.logs[0]
        log.settle()
        more = 0
        while len(log.noted) < 5:
            train(net, 1, opt)
            more += 1
        before, booked = len(log.noted), []
        end_asleep = type(log).end_asleep

        def interrupted(self, end_ns, *of_step):
            self.settle()  # a finaliser
            end_asleep(self, end_ns, *of_step)
            booked.append(end_ns)
            if len(booked) == 3:
                raise KeyboardInterrupt

        with patch.object(type(log), "end_asleep", interrupted):
            with pytest.raises(KeyboardInterrupt):
                log.settle()
            log.settle()
        assert len(booked) == len(set(booked)) == before
    assert steps_of(run.trace) in {199 + more, 200 + more}  # the interrupted one may be lost


def test_the_users_own_steps_end_those_that_were_found():
    net = Net()
    with asleep(net) as (run, opt):
        for _ in range(30):
            train(net, 1, opt)
            run.tracer.step()
    assert steps_of(run.trace) == 30


def test_many_calls_without_a_step_are_looked_at_again():
    net = Net()
    with asleep(net) as (run, _):
        stride = run.tracer._hub.logs[0].stride
        decided_ns = stride.start_ns
        for _ in range(MOST_CALLS_PER_STEP):
            net(batch()).sum().backward()
        assert stride.start_ns == decided_ns
        net(batch())
        assert stride.start_ns > decided_ns


def test_steps_within_a_call_decide_nothing_until_it_returns():
    class Searches(Net):
        def forward(self, x):
            for _ in range(inner_steps):
                opt.step()
            decided_ns.append(stride.start_ns)
            return super().forward(x)

    inner_steps, decided_ns, net = 0, [], Searches()
    opt, stride = torch.optim.SGD(net.parameters(), 0.01), StepBatch(0)
    with asleep(net, opt) as (run, _):
        hub = run.tracer._hub
        stride = hub.logs[0].stride
        inner_steps = stride.planned
        before_ns = stride.start_ns
        train(net, 1, opt)
        assert decided_ns[-1] == before_ns
        assert stride.start_ns > before_ns
        assert not hub.quiet.inside
    assert steps_of(run.trace) == 201 + inner_steps


def test_ends_are_booked_in_the_order_in_which_they_were_noted():
    net = Net()
    with asleep(net) as (run, opt):
        log = run.tracer._hub.logs[0]
        train(net, 3 * MOST_STEPS, opt)
        log.settle()
        ends = [end for _, end in log.ends]
        assert ends == sorted(ends)
        assert len(ends) >= 3 * MOST_STEPS


def test_what_is_new_is_looked_at_after_the_next_step():
    net = Net()
    with asleep(net) as (run, opt):
        hub = run.tracer._hub
        stride, before_ns = hub.logs[0].stride, hub.logs[0].stride.start_ns
        train(net, 2, opt)
        assert stride.start_ns == before_ns
        hub.look_closer()
        train(net, 1, opt)
        assert stride.start_ns > before_ns


def update(net, steps, inputs=batch):
    """Train without an optimizer."""
    for _ in range(steps):
        net.zero_grad()
        net(inputs()).square().mean().backward()
        with torch.no_grad():
            for p in net.parameters():
                p.sub_(p.grad, alpha=0.01)


@contextmanager
def asleep_by_hand(net):
    """Trace a loop without an optimizer until the thread notes the ends of steps only."""
    with traced(net, overhead_budget=THRIFTY) as run:
        update(net, 200)
        assert run.tracer._hub.logs[0].mode == STEP_ENDS
        yield run


def stages(trace):
    found = Counter()
    for stage, n in zip(trace.step_stages, trace.step_counts or [1] * len(trace.steps), strict=True):
        found[stage] += n
    return found


def test_steps_without_an_optimizer_are_slept_through():
    net = Net()
    with asleep_by_hand(net) as run:
        update(net, 300)
        log = run.tracer._hub.logs[0]
        assert log.mode == STEP_ENDS
        assert not log.rows or log.rows[-1][KEY] <= 0
    assert stages(run.trace) == {"train": 500}
    assert calls(run.trace, "(root)", "forward") == calls(run.trace, "head", "backward") == 500
    assert all(a <= b for (_, a), (b, _) in pairwise(run.trace.steps))


def test_the_first_backward_call_after_a_forward_pass_ends_a_step_whatever_follows():
    net = Net()

    def attack(steps):
        for _ in range(steps):
            x = batch().requires_grad_()
            y = net(x).square().mean()
            torch.autograd.grad(y, [x], retain_graph=True)
            torch.autograd.grad(y, [x])

    with traced(net, overhead_budget=THRIFTY) as run:
        attack(200)
        assert run.tracer._hub.logs[0].mode == STEP_ENDS
        attack(100)
    assert stages(run.trace) == {"train": 300}
    assert calls(run.trace, "(root)", "forward") == 300


def test_gradients_of_functions_end_steps():
    net = Net()
    weights = {name: p.detach() for name, p in net.named_parameters()}
    gradient = torch.func.grad(lambda w, x: torch.func.functional_call(net, w, (x,)).square().mean())
    with traced(net, overhead_budget=THRIFTY) as run:
        for _ in range(300):
            gradients = gradient(weights, batch())
            weights = {name: w - 0.01 * gradients[name] for name, w in weights.items()}
        assert run.tracer._hub.logs[0].mode == STEP_ENDS
    assert stages(run.trace) == {"train": 300}


def test_an_optimizer_that_comes_later_tells_the_ends_from_then_on():
    net = Net()
    with asleep_by_hand(net) as run:
        opt = torch.optim.SGD(net.parameters(), 0.01)
        train(net, 100, opt)
        log = run.tracer._hub.logs[0]
        log.settle()
        assert len(log.ends) + len(log.look().optimizers) >= 100
        assert not run.tracer._hub.quiet.by_hand


@pytest.mark.parametrize("by_hand", [True, False])
def test_evaluations_between_steps_wake_nobody_and_are_counted(by_hand):
    net = Net()
    opt = None if by_hand else torch.optim.SGD(net.parameters(), 0.01)
    learn = (lambda n: update(net, n)) if by_hand else (lambda n: train(net, n, opt))
    with traced(net, overhead_budget=THRIFTY) as run:
        learn(200)
        hub = run.tracer._hub
        assert hub.logs[0].mode == STEP_ENDS
        with patch.object(hub.stepping, "outermost_begins", wraps=hub.stepping.outermost_begins) as looked_at:
            for _ in range(20):
                learn(3)
                with torch.no_grad():
                    for _ in range(5):
                        net(batch())
            assert hub.logs[0].mode == STEP_ENDS
        assert looked_at.call_count <= 20
    assert stages(run.trace) == {"train": 260, "validation": 100}
    assert calls(run.trace, "(root)", "forward") == calls(run.trace, "head", "forward") == 360


def test_data_of_an_evaluation_in_a_sleeping_thread_are_loading():
    net = Net()
    loader = torch.utils.data.DataLoader(torch.randn(40, 16), batch_size=8)
    with asleep_by_hand(net) as run, torch.no_grad():
        for x in loader:
            net(x)
    assert len(spans(run.trace, "(data)", "data")) >= 4
    assert stages(run.trace) == {"train": 200, "validation": 5}


@pytest.mark.parametrize("gradients", [False, True])
def test_calls_that_answer_pass_with_few_touches_and_are_steps(gradients):
    net = Net()
    with traced(net, overhead_budget=THRIFTY) as run, torch.set_grad_enabled(gradients):
        for _ in range(200):
            net(batch())
        hub = run.tracer._hub
        with patch.object(hub.stepping, "outermost_begins", wraps=hub.stepping.outermost_begins) as looked_at:
            for _ in range(300):
                net(batch())
        assert looked_at.call_count < 30
    assert stages(run.trace) == {"inference": 500}
    assert calls(run.trace, "(root)", "forward") == calls(run.trace, "head", "forward") == 500


def test_two_models_that_answer_by_turns_keep_their_calls():
    large, small = Net(depth=3), Net(depth=1)
    models = nn.ModuleDict({"large": large, "small": small})
    with traced(models, overhead_budget=THRIFTY) as run, torch.inference_mode():
        for i in range(400):
            models["small" if i % 5 else "large"](batch())
    assert stages(run.trace) == {"inference": 400}
    assert [calls(run.trace, name, "forward") for name in ("large", "small")] == [80, 320]


def test_waits_between_answers_are_nobodys_forward():
    net = Net()
    with traced(net, overhead_budget=THRIFTY) as run, torch.no_grad():
        for i in range(300):
            net(batch())
            if i % 30 == 29:
                time.sleep(0.02)
    inside_ns = sum(end - start for start, end, _ in spans(run.trace, "(root)", "forward"))
    longest_ns = max(end - start for start, end, _ in spans(run.trace, "(root)", "forward"))
    assert inside_ns < run.trace.steps[-1][1] - run.trace.steps[0][0] - 9 * 20_000_000
    assert longest_ns < 300 * 20_000_000


def test_a_loop_that_answers_begins_to_train():
    net = Net()
    with traced(net, overhead_budget=THRIFTY) as run:
        with torch.no_grad():
            for _ in range(200):
                net(batch())
        update(net, 200)
        assert run.tracer._hub.logs[0].mode == STEP_ENDS
    assert stages(run.trace) == {"train": 200, "validation": 200}


def test_without_an_optimizer_a_second_thread_stays_awake_and_keeps_its_calls():
    net, other = Net(), Net()
    models = nn.ModuleDict({"first": net, "second": other})
    with traced(models, overhead_budget=THRIFTY) as run:
        update(net, 200)
        assert run.tracer._hub.logs[0].mode == STEP_ENDS
        thread = threading.Thread(target=lambda: update(other, 100))
        thread.start()
        thread.join()
        assert run.tracer._hub.logs[1].mode != STEP_ENDS
        update(net, 100)
    assert calls(run.trace, "second", "forward") in {99, 100}  # the first one may go by
    assert calls(run.trace, "first", "forward") == 300


def test_a_decision_at_the_begin_of_a_call_logs_that_call_in_full():
    net = Net()
    with traced(net, overhead_budget=THRIFTY) as run, torch.no_grad():
        for _ in range(200):
            net(batch())
        hub = run.tracer._hub
        hub.look_closer()
        net(batch())
        log = hub.logs[0]
        rows = {int(row[KEY]) for row in log.rows[-8:]} if log.mode == ALL_CALLS else set()
    assert calls(run.trace, "(root)", "forward") == 201
    assert not rows or len(rows) > 1


SLOT_FORWARD, SLOT_BACKWARD = 0, 1


def filled_shares(parts_ns, sizes, *, waits_ns=(0, 0), waits=()):
    """Return forward's share of sleeping steps of each size, filled from steps that took so long forward and backward.

    Args:
        parts_ns: Of each noted step.
        sizes: How many autograd nodes were made in each of them.
        waits_ns: How much longer the parts of the last of them are, in which the thread did not run.
        waits: The parts that wait.
    """
    spans, bounds, nodes, cpu, at, ran = [], [], {}, [], 0, 0
    for i, (parts, size) in enumerate(zip(parts_ns, sizes, strict=True)):
        begin = at
        cpu.append((at, ran))
        for slot, ns in enumerate(parts):
            length = ns + (waits_ns[slot] if i == len(sizes) - 1 else 0)
            spans.append((slot, at, at + length, 1))
            at, ran = at + length, ran + ns
            cpu.append((at, ran))
        bounds += [begin, at]
        nodes[at] = size
        at, ran = at + 1, ran + 1
    kinds, number = SpanKinds(), len(set(sizes))
    signatures = [CallSignature(), CallSignature(), *(CallSignature(nodes=size) for size in dict.fromkeys(sizes))]
    kind = np.array([kinds.number(("row", STEP_KEY, 0, OUTERMOST_TASK - 2 - i)) for i in range(number)])
    start = at + 1_000 * np.arange(number)
    zero, one = np.zeros(number, dtype=np.int64), np.ones(number, dtype=np.int64)
    records = AggregatedSpans(kind, start, start + 1_000, one, zero, np.arange(number), zero)
    book = StepTemplates(
        np.array(spans, dtype=np.int64),
        bounds,
        (),
        ModuleCalls(nodes=nodes),
        excluded=(),
        waits=waits,
        cpu=np.array(cpu, dtype=np.int64),
    )
    paths = CallPaths((), {}, ModuleTree({}, {}), signatures)
    return [template.shares()[SLOT_FORWARD] for _, template in book.nearest(records, kinds, paths)]


def test_steps_of_several_kinds_by_turns_are_filled_from_their_own_kind():
    inner, outer = (800, 200), (300, 900)
    assert filled_shares([inner, outer] * 8, [30, 16] * 8) == pytest.approx([0.8, 0.25], abs=1e-9)


@given(waits_ns=st.tuples(st.integers(0, 2_000), st.integers(0, 2_000)))
def test_what_other_programs_take_from_a_step_is_no_part_of_what_it_shows(waits_ns):
    assert filled_shares([(700, 300)], [7], waits_ns=waits_ns) == pytest.approx([0.7], abs=0.01)


def test_a_call_after_the_last_step_lies_before_the_end_of_the_session():
    model, average = Net(), Net().requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    tracer = Tracer()
    tracer.start()
    for step in range(200):
        model(batch()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            average(batch())
    end_ns = time.monotonic_ns()
    time.sleep(0.02)  # what a session does at its end
    trace = tracer.stop(end_ns)
    assert trace.end_ns.max() <= end_ns


class OwnSGD(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("budget", [THRIFTY, 0.0, 1.0])
def test_an_optimizer_whose_step_calls_that_of_its_base_class_steps_once(budget):
    net = Net()
    torch.optim.SGD(net.parameters(), 0.01)  # from now on torch runs its hooks in `super().step()`, too
    optimizer = OwnSGD(net.parameters(), 0.01)
    with traced(net, overhead_budget=budget) as run:
        train(net, 300, optimizer)
    assert steps_of(run.trace) == 300
    assert calls(run.trace, "(optimizer)", "optimizer") == 300


def test_a_call_without_gradients_within_a_step_is_part_of_it():
    student, teacher = Net(), Net().requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(student.parameters(), 0.01)
    models = (("student", student), ("teacher", teacher))
    with traced(None, models=models, overhead_budget=1.0) as run:
        for _ in range(30):
            x = batch()
            y = student(x)
            with torch.no_grad():
                wanted = teacher(x)
            (y - wanted).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        (log,) = run.tracer._hub.logs
        noted = np.concatenate((log.skeletons, log.traced)).reshape(-1, 2)
    starts = np.sort(run.trace.start_ns[run.trace.slot == [slot.fqn for slot in run.trace.slots].index("student")])
    assert len(noted) > 2
    for start_ns, end_ns in noted[noted[:, 1] > starts[1]].tolist():  # the first backward call ends a step
        assert np.searchsorted(starts, end_ns) - np.searchsorted(starts, start_ns) == 1


def test_steps_of_optimizers_that_take_turns_at_random_keep_their_own_calls():
    net = Net()
    optimizers = [torch.optim.SGD(net.parameters(), 0.01) for _ in range(3)]
    chosen = random.Random(3)
    with traced(net, overhead_budget=THRIFTY) as run:
        for _ in range(400):
            train(net, 1, chosen.choice(optimizers))
        (log,) = run.tracer._hub.logs
        signatures, rows, root = run.tracer._hub.signatures.of, log.table(), run.tracer._hub.registry.by_id[id(net)]
        asleep = [signatures[OUTERMOST_TASK - task] for *_, task in rows[rows[:, KEY] == STEP_KEY].tolist()]
    assert len(asleep) > 50
    assert all(step.counts.get(root) for step in asleep if not step.part)  # no step has the calls of the one before
    assert calls(run.trace, "(root)", "forward") == 400


def test_a_part_that_takes_either_of_two_lengths_has_their_mean():
    steps = [(600, 400), (600, 1_200), (600, 1_200)] * 8
    assert filled_shares(steps, [7] * 24) == pytest.approx([0.6 / (0.6 + 0.4 / 3 + 2.4 / 3)], abs=0.02)


def test_a_part_that_seldom_takes_long_has_its_mean_where_the_cpu_time_is_known():
    steps = [(600, 400)] * 11 + [(600, 1_900)]  # as where memory comes from the system, page by page
    assert filled_shares(steps * 2, [7] * 24) == pytest.approx([0.6 / (0.6 + 0.525)], abs=0.01)


@given(waits_ns=st.tuples(st.integers(0, 2_000), st.integers(0, 2_000)))
def test_a_wait_for_data_is_a_part_of_the_step_and_what_other_programs_take_is_not(waits_ns):
    data_ns = 300 + waits_ns[SLOT_BACKWARD]
    shares = filled_shares([(700, 300)], [7], waits_ns=waits_ns, waits=[SLOT_BACKWARD])
    assert shares == pytest.approx([700 / (700 + data_ns)], abs=0.01)


ROUND_NS = {1: 400, BACKWARD_KEY: 300, OPTIMIZER_KEY: 200}  # and 100 more that is nobody's
OPTIMIZERS = (11, 12)


@given(rounds=st.lists(st.sampled_from(OPTIMIZERS), min_size=2, max_size=6))
def test_a_step_of_several_rounds_has_the_optimizer_of_each(rounds):
    slots, spans, ran, bounds = dict(enumerate(ROUND_NS)), [], [], []
    for begin, optimizer in zip(range(0, 8_000, 1_000), OPTIMIZERS * 4, strict=True):
        at = begin
        for slot, ns in enumerate(ROUND_NS.values()):
            spans.append((slot, at, at + ns, 1))
            at += ns
        ran += [(begin, {1: 1}), (begin + 400, {BACKWARD_KEY: 1}), (begin + 999, {optimizer: 1})]
        bounds += [begin, begin + 1_000]
    outside = frozenset({1, BACKWARD_KEY, *OPTIMIZERS})
    called = CalledModules(
        [start for start, _ in ran], [each for _, each in ran], [outside] * len(ran), outside,
        optimizers=frozenset(OPTIMIZERS),
    )  # fmt: skip
    counts = Counter(rounds) + Counter({1: len(rounds), BACKWARD_KEY: len(rounds)})
    kinds, one = SpanKinds(), np.ones(1, dtype=np.int64)
    kind = np.array([kinds.number(("row", STEP_KEY, 0, OUTERMOST_TASK - 2))])
    records = AggregatedSpans(kind, 9_000 * one, (9_000 + 1_000 * len(rounds)) * one, one, *[0 * one] * 3)
    modules = ModuleCalls(called, slots=ModuleSlots({**slots, 2: OPTIMIZER_KEY}))
    book = StepTemplates(np.array(spans, dtype=np.int64), bounds, (), modules, excluded=())
    signatures = [CallSignature(), CallSignature(), CallSignature(counts, outside)]
    ((_, template),) = book.nearest(records, kinds, CallPaths((), {}, ModuleTree({}, {}), signatures))
    assert template.shares() == pytest.approx({0: 0.4, 1: 0.3, 2: 0.2})
    assert dict(zip(template.owner.tolist(), template.calls.tolist(), strict=True)) == dict.fromkeys(slots, len(rounds))
