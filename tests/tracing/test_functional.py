"""`torch.func`: its own time is forward and backward, and what is compiled finds torch's own functions."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch._functorch import eager_transforms

from tests.support.lazy_module import LazyModule
from tests.tracing.nets import traced
from torchwatt.core.terms import UNATTRIBUTED, Slot
from torchwatt.tracing.autograd_recorder import MOST_IN_PLACE, HookMargins, MarginProbe
from torchwatt.tracing.scope import ACTIVE

dynamo = LazyModule("torch._dynamo.utils")
stateless = torch.nn.utils.stateless
FUNCTIONS = ((stateless, "_functional_call"), (eager_transforms, "grad_and_value_impl"))


def originals():
    return [getattr(owner, name) for owner, name in FUNCTIONS]


@pytest.fixture
def nothing_compiled():
    kept = {name: Counter(each) for name, each in dynamo.counters.items()}
    dynamo.counters.clear()
    yield
    dynamo.counters.clear()
    dynamo.counters.update(kept)


def updates(model, n):
    weights = {name: p.detach() for name, p in model.named_parameters()}
    find = torch.func.grad(lambda w, x: torch.func.functional_call(model, w, (x,)).square().mean())
    for _ in range(n):
        gradients = find(weights, torch.randn(8, 16))
        weights = {name: p - 0.01 * gradients[name] for name, p in weights.items()}


@pytest.mark.usefixtures("nothing_compiled")
def test_its_own_time_is_forward_and_backward_and_no_call():
    model, before = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), originals()
    with traced(model, overhead_budget=1.0) as run:
        assert originals() != before
        updates(model, 20)
    assert originals() == before
    trace = run.trace
    which = {phase: trace.slots.index(Slot(UNATTRIBUTED, phase)) for phase in ("forward", "backward")}
    around = trace.slot == which["forward"]
    root = trace.slot == trace.slots.index(Slot("(root)", "forward"))
    assert around.sum() == root.sum() == 20
    assert (trace.start_ns[around] <= trace.start_ns[root]).all()
    assert (trace.end_ns[around] >= trace.end_ns[root]).all()
    assert trace.calls[around].sum() == 0
    assert (trace.slot == which["backward"]).sum() == 40  # the call, and what follows it
    assert trace.calls[trace.slot == which["backward"]].sum() == 20
    assert len(trace.steps) == 20


@pytest.mark.usefixtures("nothing_compiled")
def test_what_is_compiled_finds_torchs_own_functions():
    before = originals()
    with traced(nn.Linear(4, 4)):
        assert originals() != before
        ACTIVE.hub.patches.step_aside()
        assert originals() == before
        ACTIVE.hub.patches.step_back()
        assert originals() == before
    dynamo.counters["frames"]["total"] = 1
    with traced(nn.Linear(4, 4)):
        assert originals() == before


def test_dynamo_keeps_none_of_the_functions_that_are_wrapped():
    rules = LazyModule("torch._dynamo.trace_rules").get_torch_obj_rule_map()
    assert not [function for function in originals() if function in rules]


def test_margins_are_measured_in_place_a_few_times_and_in_no_profile_of_the_user():
    in_place, in_a_loop = MarginProbe(), HookMargins(1_000.0, 1_000.0, 2_000.0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert in_place.after_backward() == 0
        in_place.optimizer_begins()
        assert in_place.optimizer_ended() == 0
    assert not [event for event in profile.events() if "Optimizer" in event.name]
    assert in_place.margins(in_a_loop) is None
    for _ in range(MOST_IN_PLACE):
        assert in_place.after_backward() > 0
        in_place.optimizer_begins()
        assert in_place.optimizer_ended() > 0
    assert in_place.after_backward() == 0
    found = in_place.margins(in_a_loop)
    assert found.optimizer_before_ns > 0
    assert found.optimizer_after_ns > 0
    assert found.backward_before_ns == pytest.approx(2 * found.optimizer_before_ns)
