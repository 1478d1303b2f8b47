"""Paths that depend on data: what was counted is exact, what was not is said to be unknown, and time follows both."""

import random
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.tracing.nets import codes, counts, traced
from torchwatt.core.intervals import self_times
from torchwatt.tracing.fast_path import CallCounter
from torchwatt.tracing.log_rows import (
    FORWARD_TASK,
    CallPattern,
    CallSignature,
    SignatureTable,
    nearest_called,
)
from torchwatt.tracing.overhead_budget import affordable_modules
from torchwatt.tracing.template_composer import UNKNOWN_CALLS, CallSample, ModuleTree, TemplateComposer

THRIFTY = 0.005


class Mixture(nn.Module):
    def __init__(self, experts=6, hidden=64):
        super().__init__()
        self.inp, self.out = nn.Linear(16, 32), nn.Linear(32, 4)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(32, hidden), nn.GELU(), nn.Linear(hidden, 32)) for _ in range(experts)]
        )

        self.clock_s = Counter()  # a plain clock beside the tracer

    def forward(self, x, k):
        x = self.inp(x)
        start = time.perf_counter()
        y = self.experts[k](x)
        self.clock_s[k] += time.perf_counter() - start
        return self.out(y)


def own_ns(trace, phase):
    """Time of each module without what is inside it, on the only thread."""
    order = np.lexsort((-trace.end_ns, trace.start_ns))
    found = Counter()
    own = self_times(trace.start_ns[order].tolist(), trace.end_ns[order].tolist())
    for slot, ns in zip(trace.slot[order].tolist(), own, strict=True):
        if trace.slots[slot].phase == phase:
            found[trace.slots[slot].fqn] += ns
    return found


def train_on(net, opt, chosen):
    for k in chosen:
        opt.zero_grad()
        net(torch.randn(64, 16), k).square().mean().backward()
        opt.step()


@pytest.mark.parametrize("budget", [1.0, THRIFTY])
def test_calls_of_experts_are_those_of_the_program_or_unknown(budget):
    rng, net = random.Random(1), Mixture()
    chosen = rng.choices(range(6), weights=[1, 1, 1, 2, 5, 12], k=250)
    with traced(net, overhead_budget=budget) as run:
        train_on(net, torch.optim.SGD(net.parameters(), 0.01), chosen)
    truth = Counter(chosen)
    for phase in ("forward", "backward"):
        found = counts(run.trace, phase)
        for k in range(6):
            for name in (f"experts.{k}", f"experts.{k}.0"):
                assert found.get(name) in {None, truth[k]}, (phase, name, found.get(name), truth[k])
    assert counts(run.trace)["inp"] == 250
    assert len(run.trace.steps) == 250


@pytest.mark.alone  # times
def test_time_goes_to_the_expert_that_ran():
    rng, net = random.Random(2), Mixture(hidden=1024)  # so long that nothing else on the machine matters
    # Every traced step has another expert than most of the others: filled from its neighbours it would be theirs.
    chosen = [0, 1, 2, 3] * 3 + rng.choices(range(6), weights=[1, 1, 1, 1, 8, 8], k=300)
    opt = torch.optim.SGD(net.parameters(), 0.01)
    train_on(net, opt, range(6))  # the first calls of all are slow
    net.clock_s.clear()
    with traced(net, overhead_budget=THRIFTY) as run:
        train_on(net, opt, chosen)
    own = own_ns(run.trace, "forward")
    seconds = [sum(ns for name, ns in own.items() if name.startswith(f"experts.{k}")) for k in range(6)]
    for k in range(6):
        share, true_share = seconds[k] / sum(seconds), net.clock_s[k] / net.clock_s.total()
        assert abs(share - true_share) < 0.25, (k, share, true_share)


def test_what_is_not_counted_and_varies_is_the_enclosing_ones():
    class Early(nn.Module):
        """Its parts are attributes: which of them run is only known of traced steps."""

        def __init__(self):
            super().__init__()
            self.stem, self.deep, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x, *, deep):
            x = self.stem(x)
            return self.head(self.deep(x) if deep else x)

    net, rng, taken = Early(), random.Random(3), 0
    opt = torch.optim.SGD(net.parameters(), 0.01)
    with traced(net, overhead_budget=1e-9) as run:  # nothing can be counted
        for i in range(150):
            deep = i % 2 == 0 if i < 4 else rng.random() < 0.5
            taken += deep
            opt.zero_grad()
            net(torch.randn(8, 16), deep=deep).sum().backward()
            opt.step()
    found = counts(run.trace)
    assert found.get("deep") in {None, taken}
    assert found.get("stem") in {None, 150}  # of the steps whose graphs are of a size that no traced step had
    assert "PATHS_UNKNOWN" in codes(run.trace)


def test_a_program_whose_parts_always_run_keeps_its_layers():
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    opt = torch.optim.SGD(net.parameters(), 0.01)
    with traced(net, overhead_budget=1e-9) as run:
        for _ in range(150):
            opt.zero_grad()
            net(torch.randn(8, 16)).sum().backward()
            opt.step()
    assert [counts(run.trace)[name] for name in ("(root)", "0", "1", "2")] == [150] * 4
    assert "PATHS_UNKNOWN" not in codes(run.trace)


# The parts, with counts of their own.

TREE = ModuleTree(
    {2: 1, 3: 1, 4: 2, 5: 3}, {2: "expert", 3: "expert", 4: "linear", 5: "linear"},
    {1: "(root)", 2: "e.0", 3: "e.1", 4: "e.0.fc", 5: "e.1.fc"},
)  # fmt: skip
BOTH = frozenset({2, 3})


def sample(counts, **time_ns):
    times = {int(key[1:]): float(value) for key, value in time_ns.items()}
    calls = {key: counts.get(2 if key in {2, 4} else 3, 1) for key in times}
    return CallSample(100.0, times, dict.fromkeys(times, 0.5), calls, counts)


def test_a_call_is_composed_of_what_ran_in_it():
    composer = TemplateComposer([sample({2: 1}, k4=60), sample({3: 1}, k5=20)], TREE, lambda key: key)
    template = composer.compose(CallSignature({2: 1, 3: 2}, BOTH), 1_000.0)
    shares = template.shares()
    assert shares[5] / shares[4] == pytest.approx(40 / 60)
    assert dict(zip(template.owner.tolist(), template.calls.tolist(), strict=True)) == {4: 1, 5: 2}


def test_what_was_never_traced_takes_what_its_likes_took():
    composer = TemplateComposer([sample({2: 2}, k4=60)], TREE, lambda key: key)
    template = composer.compose(CallSignature({3: 1}, BOTH), 50.0)
    assert dict(zip(template.owner.tolist(), template.calls.tolist(), strict=True)) == {5: UNKNOWN_CALLS}


def test_what_is_like_nothing_is_left_to_what_is_around_it():
    strange = ModuleTree({2: 1, 3: 1}, {2: "expert", 3: "another"})
    composer = TemplateComposer([sample({2: 1}, k2=60)], strange, lambda key: key)
    template = composer.compose(CallSignature({2: 1, 3: 1}, BOTH), 200.0)
    assert template.owner.tolist() == [2]
    assert template.last[-1] < 0.75


@given(st.dictionaries(st.sampled_from([2, 3]), st.integers(0, 5)), st.floats(1, 1e9))
def test_no_composed_call_is_longer_than_it_was(ran, length_ns):
    composer = TemplateComposer([sample({2: 1}, k4=60), sample({2: 1, 3: 1}, k4=30, k5=20)], TREE, lambda key: key)
    template = composer.compose(CallSignature(ran, BOTH), length_ns)
    if template is not None:
        assert template.first[0] >= 0
        assert template.last[-1] <= 1
        assert (np.diff(template.last) >= 0).all()
        assert (template.calls >= UNKNOWN_CALLS).all()


def test_modules_vary_against_the_smallest_called_one_around_them():
    pattern, around = CallPattern(), nearest_called({2: 10, 10: 1, 4: 2}, {1, 2, 4})
    assert around == {2: 1, 4: 2}
    pattern.add({1: 1, 2: 1, 4: 3}, around)
    pattern.add({1: 2, 2: 2, 4: 6}, around)
    assert pattern.varying == set()
    pattern.add({1: 1}, around)
    assert pattern.varying == {2}  # 4 is called three times a call of 2, whenever that is called


def test_the_most_important_are_counted_as_far_as_that_may_cost():
    kinds = {1: nn.Linear, 2: nn.Linear, 3: nn.ReLU}
    calls = {nn.Linear: 30, nn.ReLU: 5}
    assert affordable_modules([{1}, {3}], kinds.get, calls, 35) == {1, 3}
    assert affordable_modules([{1}, {3}], kinds.get, calls, 10) == {3}
    assert affordable_modules([{3}, {1, 2}], kinds.get, calls, 34) == {3}


class CountingHost:
    """A stand-in for the hub: module 1 calls some of modules 2 and 3, which are of one class."""

    def __init__(self):
        self.modules = {key: nn.Linear(1, 1) for key in (2, 3)}
        self.registry = SimpleNamespace(
            parent={2: 1, 3: 1}, choices=set(), module=self.modules.get, class_of={2: nn.Linear, 3: nn.Linear}.get
        )
        self.signatures = SignatureTable({id(module): key for key, module in self.modules.items()}.get)

    def watch(self, key):
        pass


def test_what_was_too_dear_to_count_is_counted_once_it_can_be_afforded():
    host = CountingHost()
    counter = CallCounter(host)
    inner = [(key, at, at + 5, 0, 0, FORWARD_TASK) for key, at in ((2, 10), (3, 20))]
    both = [*inner, (1, 0, 30, 0, 0, FORWARD_TASK)]
    counter.study(both, 1, lambda _calls: 0.0)
    counter.study([both[0], both[2]], 1, lambda _calls: 0.0)
    assert host.signatures.over == frozenset()
    counter.study(both, 1, lambda _calls: 10.0)
    assert host.signatures.over == {3}
