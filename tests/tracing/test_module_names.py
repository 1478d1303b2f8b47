import weakref
from typing import ClassVar

import pytest
import torch
from torch import nn

import torchwatt as tw
from torchwatt.core.errors import ConfigError
from torchwatt.core.terms import RESERVED


@pytest.mark.parametrize("name", ["(unattributed)", "(idle)", "(root)", "", "  ", None, 3])
def test_a_scope_cannot_take_a_row_of_the_reports_own(name):
    with pytest.raises(ConfigError, match="scope"):
        tw.scope(name)


def test_a_module_called_like_a_row_of_the_reports_own_is_set_apart(tmp_path):
    model = nn.Sequential()
    model.add_module("(outside)", nn.Linear(2, 2))
    with tw.profile(model, csv=tmp_path / "audit") as run:
        model(torch.ones(1, 2))
    rows = run.layers.set_index("fqn")
    assert "(outside)#module" in rows.index
    assert {"(outside)", "(outside)#module"} <= set(rows.index)


class Untouchable:
    """Notes and refuses whatever is done with it, as a proxy outside of its context does."""

    touched: ClassVar[list[str]] = []

    def _refuse(self, *args):
        Untouchable.touched.append(str(args))
        raise RuntimeError("working outside of request context")

    __slots__ = ()
    __getattr__ = __eq__ = __bool__ = __len__ = __iter__ = __hash__ = __call__ = _refuse
    __class__ = property(_refuse)
    __dict__ = property(_refuse)


class Stubborn(nn.Linear):
    """A layer that answers none of the usual questions."""

    def __getattr__(self, name):
        if name.startswith("_is"):
            raise RuntimeError(name)
        return super().__getattr__(name)

    def _refuse(self, *args):
        raise RuntimeError("no")

    __eq__ = __bool__ = __len__ = __iter__ = _refuse
    __hash__ = nn.Linear.__hash__


class Pair(nn.Module):
    def __init__(self, layer=nn.Linear):
        super().__init__()
        self.body, self.head = layer(4, 8), layer(8, 2)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


class Service:
    def __init__(self, *nets):
        self.request = Untouchable()
        self.nets = nets

    def serve(self, x):
        request = self.request
        answer = self.nets[0](x).sum()
        answer.backward()
        return request, answer


request = Untouchable()


def layers_of(run):
    return set(run.layers.fqn) - set(RESERVED)


@pytest.mark.parametrize("layer", [nn.Linear, Stubborn, lambda _, size: nn.LazyLinear(size)])
def test_objects_that_refuse_to_be_looked_at_cost_no_names(layer):
    Untouchable.touched.clear()  # by the collection of tests
    service = Service(Pair(layer))
    with tw.profile() as run:
        for _ in range(20):
            service.serve(torch.randn(3, 4))
    assert layers_of(run) == {"(root)", "body", "head"}
    assert Untouchable.touched == []


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("werkzeug.local", lambda it, touched: it.LocalProxy(lambda: touched.append("made"))),
        ("django.utils.functional", lambda it, touched: it.SimpleLazyObject(lambda: touched.append("made"))),
        ("wrapt", lambda it, touched: it.LazyObjectProxy(lambda: touched.append("made"))),
        ("lazy_object_proxy", lambda it, touched: it.Proxy(lambda: touched.append("made"))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_proxies_of_packages_are_not_resolved(package, make):
    module = pytest.importorskip(package)
    touched = []
    proxy = make(module, touched)
    box = {"net": Pair()}
    with tw.profile() as run:
        for _ in range(5):
            box["net"](torch.randn(3, 4)).sum().backward()
    assert layers_of(run) == {"(root)", "body", "head"}
    assert touched == []
    del proxy


class Task(nn.Module):
    """Its own `forward` is never called, as that of a LightningModule."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        self.parts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    def training_step(self, x):
        x = self.net(x)
        for part in self.parts:
            x = part(x)
        return self.loss(x)

    def inner_step(self, x):
        return self.net[0](x).square().mean()

    def loss(self, x):
        return x.square().mean()


def outside_step(task, x):
    part = task.net
    return part(x).square().mean()


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (Task.training_step, {"net", "net.0", "net.1", "net.2", "parts", "parts.0", "parts.1"}),
        (Task.inner_step, {"net", "net.0"}),
        (outside_step, {"net", "net.0", "net.1", "net.2"}),
    ],
)
def test_modules_have_the_names_of_the_state_dict_where_the_root_is_not_called(step, expected):
    task = Task()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.01)
    with tw.profile() as run:
        for _ in range(20):
            optimizer.zero_grad()
            step(task, torch.randn(3, 4)).backward()
            optimizer.step()
    assert layers_of(run) == {"(root)", *expected}
    assert len(run.steps) == 20
    root_j = run.layers[run.layers.fqn == "(root)"].energy_total_j.sum()
    assert root_j == pytest.approx(run.layers[run.layers.fqn.isin(expected)].energy_self_j.sum())


def test_two_models_of_one_loop_keep_their_variables():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    both = nn.ModuleList([first, second])
    with tw.profile() as run:
        for _ in range(5):
            second(first(torch.randn(2, 4))).sum().backward()
    assert layers_of(run) == {"first", "second"}
    del both


def test_a_frame_that_was_looked_at_keeps_no_tensor():
    kept = []

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 4)

        def step(self, x):
            kept.append(weakref.ref(x))
            out = self.net(x).sum()
            x = None
            assert kept[-1]() is None
            return out

    holder = Holder()
    with tw.profile(), torch.no_grad():
        for _ in range(3):
            holder.step(torch.randn(2, 4))
