"""What users do to modules."""

import copy
import gc
import inspect
import io
import pickle
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from tests.tracing.nets import Block, Net, batch, calls, codes, names, traced, train
from torchwatt.core.terms import DATA, OPTIMIZER, PROFILER, UNATTRIBUTED


def info(trace, fqn):
    return next(m for m in trace.modules if m.fqn == fqn)


def test_names_are_those_of_the_state_dict():
    net = Net()
    with traced(net) as run:
        train(net)
    owners = {key.rpartition(".")[0] for key in net.state_dict()}
    assert owners <= names(run.trace, "forward")
    assert owners <= names(run.trace, "backward")
    assert calls(run.trace, "(root)", "forward") == 4
    assert calls(run.trace, OPTIMIZER, "optimizer") == 4
    assert len(run.trace.steps) == 4
    assert info(run.trace, "head").params == 16 * 4 + 4
    assert info(run.trace, "head").param_bytes == 4 * (16 * 4 + 4)
    assert info(run.trace, "blocks").params == 0
    assert info(run.trace, "blocks.0.act").class_name == "ReLU"


def test_without_a_model_the_only_trained_root_has_no_prefix_even_if_it_is_gone():
    def run_all():
        network, criterion = Net(), nn.CrossEntropyLoss()
        for _ in range(3):
            criterion(network(batch()), torch.zeros(8, dtype=torch.long)).backward()

    with traced() as run:
        run_all()
        gc.collect()
    assert {"(root)", "blocks.1.fc2", "criterion"} <= names(run.trace, "forward")
    assert {"blocks.1.fc2", "criterion"} <= names(run.trace, "backward")


def test_several_trained_roots_are_named_by_their_variables():
    generator, discriminator = nn.Sequential(nn.Linear(16, 16)), nn.Sequential(nn.Linear(16, 1))
    g = torch.optim.SGD(generator.parameters(), 0.1)
    d = torch.optim.SGD(discriminator.parameters(), 0.1)
    with traced() as run:
        for _ in range(4):
            fake = generator(batch())
            d.zero_grad()
            (discriminator(batch()).mean() - discriminator(fake.detach()).mean()).backward()
            d.step()
            g.zero_grad()
            discriminator(fake).mean().backward()
            g.step()
    assert names(run.trace, "forward") == {"generator", "generator.0", "discriminator", "discriminator.0"}
    assert len(run.trace.steps) == 4  # the first optimizer only
    assert calls(run.trace, OPTIMIZER, "optimizer") == 8


def test_attributes_name_roots_that_no_variable_holds():
    class Trainer:
        def __init__(self):
            self.model, self.other = Net(), nn.Linear(16, 1)

        def fit(self):
            self.model(batch())
            self.other(batch())

    with traced() as run:
        Trainer().fit()
    assert {"model", "model.head", "other"} <= names(run.trace, "forward")


def test_equal_names_of_living_roots_are_told_apart_and_heirs_share():
    def one(layer):
        layer(batch())

    a, b = nn.Linear(16, 1), nn.Linear(16, 2)
    with traced() as run:
        one(a)
        one(b)
        for _ in range(3):
            nn.ReLU()(batch())
    assert names(run.trace, "forward") == {"layer", "layer#2", "ReLU"}
    assert calls(run.trace, "ReLU", "forward") == 3


def test_a_shared_module_has_one_name_and_aliases():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(16, 16)
            self.two = self.one

        def forward(self, x):
            return self.two(self.one(x))

    with traced(net := Tied()) as run:
        for _ in range(3):
            net(batch()).sum().backward()
    assert names(run.trace, "forward") == {"(root)", "one"}
    assert info(run.trace, "one").aliases == ("two",)
    assert calls(run.trace, "one", "forward") == 6
    assert calls(run.trace, "one", "backward") == 4 or run.trace.windows in {1, 2}


def test_late_modules_and_modules_that_are_replaced_get_names():
    net = Net()
    with traced(net) as run:
        net(batch())
        net.blocks.append(Block())
        net(batch())
        net.head = nn.Linear(16, 2)
        net(batch())
    assert calls(run.trace, "blocks.2.fc1", "forward") == 2
    assert calls(run.trace, "head", "forward") == 3
    assert len({m.fqn for m in run.trace.modules}) == len(run.trace.modules)


def test_wrappers_are_transparent_but_a_child_named_module_is_not():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = Net()

        def forward(self, x):
            return self.module(x)

    net = nn.DataParallel(Holder())
    with traced(net) as run:
        net(batch()).sum().backward()
    assert {"(root)", "module", "module.head"} <= names(run.trace, "forward")
    assert calls(run.trace, "(root)", "forward") == 1

    inner = Net()
    wrapper = nn.DataParallel(inner)
    with traced(inner) as run:
        wrapper(batch())
    assert "head" in names(run.trace, "forward")
    assert calls(run.trace, "(root)", "forward") == 1


def test_ddp_with_one_process(tmp_path):
    dist = pytest.importorskip("torch.distributed")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        net = nn.parallel.DistributedDataParallel(Net())
        with traced(net) as run:
            train(net)
    finally:
        dist.destroy_process_group()
    assert {"(root)", "head", "blocks.0.fc1"} <= names(run.trace, "forward") & names(run.trace, "backward") | {"(root)"}
    assert calls(run.trace, "(root)", "forward") == 4


def test_data_parallel_replicas_are_their_originals():
    net = Net()
    with traced(net) as run:
        net(batch())
        for _ in range(3):
            replica = net.head._replicate_for_data_parallel()
            replica._parameters.update(net.head._parameters)
            replica(batch())
    assert calls(run.trace, "head", "forward") == 4


def test_any_output_any_mode():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(16, 16)

        def forward(self, x, *, how):
            return {"out": [self.fc(x), (None, "text")], "n": 3} if how else None

    with traced(net := Odd()) as run:
        assert net(batch(), how=False) is None
        assert net(batch(), how=True)["n"] == 3
        with torch.no_grad():
            net(batch(), how=True)
        with torch.inference_mode():
            net(batch(), how=True)
    assert calls(run.trace, "fc", "forward") == 3
    assert len(run.trace.steps) == 4  # no optimizer: each call of the model


def test_a_module_that_raises_half_way_has_its_span_and_the_error_is_the_user_s():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(16, 16)

        def forward(self, x):
            self.fc(x)
            raise ValueError("half-way")

    net = Broken()
    with traced(net) as run, pytest.raises(ValueError, match="half-way"):
        net(batch())
    assert calls(run.trace, "(root)", "forward") == calls(run.trace, "fc", "forward") == 1


def test_functional_call_gradient_accumulation_and_two_losses():
    net = Net()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    with traced(net, overhead_budget=0.9) as run:
        for _ in range(4):
            weights = dict(net.named_parameters())
            for _ in range(3):
                out = torch.func.functional_call(net, weights, (batch(),))
                out.sum().backward(retain_graph=True)
                out.mean().backward()
            opt.step()
    assert len(run.trace.steps) == 4
    assert calls(run.trace, "head", "forward") == 12
    assert calls(run.trace, UNATTRIBUTED, "backward") == 24
    assert "TEMPLATE_MISMATCH" not in codes(run.trace)


def test_models_can_be_saved_copied_and_inspected_meanwhile():
    net = Net()
    with traced(net) as run:
        net(batch())
        twin = copy.deepcopy(net)
        buffer = io.BytesIO()
        torch.save(net, buffer)
        buffer.seek(0)
        again = torch.load(buffer, weights_only=False)
        assert isinstance(pickle.loads(pickle.dumps(net)), Net)  # noqa: S301
        x = batch()
        assert torch.equal(twin(x), net(x))
        assert torch.equal(again(x), net(x))
        assert inspect.signature(net) == inspect.signature(nn.Module().__call__)
        assert nn.Module.__call__.__name__ == "_wrapped_call_impl"
    assert calls(run.trace, "(root)", "forward") == 4 - 1
    assert not [key for key in vars(net) if "watt" in key]


def test_data_loading_is_booked_with_and_without_workers():
    data = torch.utils.data.TensorDataset(torch.randn(16, 16))
    net = Net()
    with traced(net) as run:
        for workers in (0, 1):
            for (x,) in torch.utils.data.DataLoader(data, batch_size=8, num_workers=workers):
                net(x)
    assert calls(run.trace, DATA, "data") == 2 * (2 + 1 + 1)  # batches, the end, making the iterator


def test_nothing_keeps_models_and_tensors_alive():
    def body():
        net = Net()
        out = net(batch())
        out.sum().backward()
        return weakref.ref(net), weakref.ref(out)

    with traced() as run:
        refs = body()
        gc.collect()
        assert [ref() for ref in refs] == [None, None]
        net = Net()
        alive = weakref.ref(net)
        net(batch())
        del net
        gc.collect()
        assert alive() is None
    assert run.trace.modules


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_script_trace_fx_and_export_work_meanwhile():
    net, x = Net(), batch()
    net.head = torch.jit.script(nn.Linear(16, 4))
    with traced(net) as run:
        scripted = net(x)
        assert torch.equal(torch.jit.trace(net, x)(x), scripted)
        plain = Net()
        assert torch.allclose(torch.fx.symbolic_trace(plain)(x), plain(x))
        assert torch.allclose(torch.export.export(plain, (x,)).module()(x), plain(x))
    assert calls(run.trace, "head", "forward") >= 2


def test_lazy_modules_and_strange_modules():
    class Strange(nn.Module):
        def __getattr__(self, name):
            if name == "_is_replica":
                raise RuntimeError("do not look at me")
            return super().__getattr__(name)

        def __eq__(self, other):
            raise RuntimeError("nor compare me")

        __hash__ = None

        def forward(self, x):
            return x * 2

    net = nn.Sequential(nn.LazyLinear(3), Strange())
    stray = Strange()
    with traced(net) as run:
        net(batch())
        stray(batch())
    assert info(run.trace, "0").params == 16 * 3 + 3
    assert calls(run.trace, "1", "forward") == 1
    own = [slot.fqn == PROFILER for slot in run.trace.slots]
    assert np.count_nonzero(~np.array(own)[run.trace.slot]) == 4


def test_folds_that_make_everything_anew_share_names_and_steps():
    def fold():
        model = Net()
        train(model, 2)

    with traced() as run:
        for _ in range(3):
            fold()
            gc.collect()
    assert calls(run.trace, "(root)", "forward") == calls(run.trace, "head", "forward") == 6
    assert len(run.trace.steps) == 6
