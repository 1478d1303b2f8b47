import time
from math import isclose

import pytest
import torch
from torch import nn

from tests.session.test_truth import STATIC_W, STRONG_W, WEAK_W, Layer
from tests.support.powercap import FakePowercap
from torchwatt.core.errors import ConfigError
from torchwatt.core.terms import Slot
from torchwatt.offline.layer_power import ReplayTiming, replay
from torchwatt.offline.layer_replay import capture_workloads

QUICK = ReplayTiming(settle_s=0.1, measure_s=0.3, cool_s=0.05, rounds=2)


@pytest.mark.alone  # joules within ten percent
def test_a_looped_layer_shows_its_own_power_forward_and_backward(tmp_path):
    with FakePowercap(tmp_path, {"intel-rapl:0": ("package-0", STATIC_W)}) as tree:
        model = nn.Sequential(Layer(tree, WEAK_W), Layer(tree, STRONG_W))
        x = torch.ones(4, requires_grad=True)
        for layer in model:
            layer.__deepcopy__ = lambda _memo, layer=layer: layer  # the tree in it is no thing to copy
        found = replay(model, lambda: model(x).sum().backward(), timing=QUICK, powercap_root=tree.root)
    power_w = {slot: one.power_w for one in found if str(one.domain) == "cpu:0" for slot in one.slots}
    for phase in ("forward", "backward"):
        assert isclose(power_w[Slot("0", phase)], STATIC_W + WEAK_W, rel_tol=0.1)
        assert isclose(power_w[Slot("1", phase)], STATIC_W + STRONG_W, rel_tol=0.1)
    assert all(isclose(one.quiet_w, STATIC_W, rel_tol=0.1) for one in found if str(one.domain) == "cpu:0")


def test_layers_of_the_same_work_are_looped_once_for_all():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    works = capture_workloads(model, lambda: model(torch.ones(3, 4)))
    assert [work.fqns for work in works] == [["0", "2"], ["1", "3"], ["4"]]


def test_layers_of_other_settings_are_other_work():
    model = nn.Sequential(nn.MaxPool1d(2, stride=1, padding=1), nn.MaxPool1d(2, stride=1, padding=1, dilation=2))
    x = torch.ones(1, 1, 8)
    assert len(capture_workloads(model, lambda: [layer(x) for layer in model])) == 2


def test_the_model_and_the_random_numbers_stay_as_they_were():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Dropout())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    works = capture_workloads(model.eval(), lambda: model(torch.ones(3, 4)))
    state = torch.random.get_rng_state()
    for work in works:
        for phase in ("forward", "backward"):
            once = work.loop(phase)
            once()
            once()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_layer_that_ran_in_mixed_precision_is_looped_in_it():
    seen = []
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    model[1].register_forward_hook(lambda *given: seen.append(given[2].dtype))

    def call():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(torch.randn(2, 8))

    works = capture_workloads(model, call)
    for work in works:
        for phase in ("forward", "backward"):
            work.loop(phase)()
    assert seen == [torch.bfloat16] * 3  # once in the call, once forward, once for the graph of backward
    assert not torch.is_autocast_enabled("cpu")


def test_a_layer_without_gradients_has_no_backward():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten())
    model[0].weight.requires_grad = False
    works = {work.fqns[0]: work for work in capture_workloads(model, lambda: model(torch.tensor([[1, 2]])))}
    assert works["0"].loop("backward") is None
    assert works["1"].loop("backward") is not None


def test_a_call_that_runs_nothing_is_named():
    with pytest.raises(ConfigError, match="ran no layer"):
        capture_workloads(nn.Linear(2, 2), time.monotonic)


def test_without_a_measuring_meter_there_is_no_truth_to_get(tmp_path):
    model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="needs a measured domain"):
        replay(model, lambda: model(torch.ones(1, 2)), powercap_root=tmp_path / "none")
