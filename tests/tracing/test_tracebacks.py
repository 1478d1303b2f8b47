"""A user's exception carries frames of the user's program and of torch, none of ours, wherever it is caught."""

import asyncio
import traceback
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import torchwatt as tw
from torchwatt.core.errors import ConfigError
from torchwatt.core.tracebacks import drop_own_frames, hide_own_frames
from torchwatt.tracing import Tracer

OURS = str(Path(tw.__file__).parent)


class Faulty(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.inner = Faulty(depth - 1) if depth else None

    def forward(self, x):
        if self.inner is None:
            raise ValueError("forward fails")
        return self.inner(x)


class FaultyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        raise ValueError("backward fails")


class FaultyData(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise ValueError("data fails")


def forward():
    Faulty(5)(torch.ones(2))


def forward_in_sequence():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), Faulty(2)))
    for _ in range(3):
        net[0](torch.ones(1, 2))
    net(torch.ones(1, 2))


def shapes():
    nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3))(torch.ones(1, 2))


def backward():
    FaultyGradient.apply(torch.ones(2, requires_grad=True)).sum().backward()


def backward_twice():
    loss = nn.Linear(2, 2)(torch.ones(1, 2)).pow(2).sum()
    loss.backward()
    loss.backward()


def gradient():
    torch.autograd.grad(torch.ones(2), torch.ones(2))


def data():
    list(DataLoader(FaultyData()))


def update():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.step()
    optimizer.step(closure=forward)


@tw.scope("named")
def named():
    raise ValueError("scope fails")


@tw.scope("generated")
def generated():
    yield 1
    raise ValueError("generator fails")


def generators():
    list(generated())


@tw.scope("awaited")
async def awaited():
    raise ValueError("coroutine fails")


def coroutines():
    asyncio.run(awaited())


def chained():
    try:
        forward()
    except ValueError as error:
        raise KeyError("while handling") from error


def grouped():
    errors = []
    for fail in (forward, backward):
        try:
            fail()
        except ValueError as error:
            errors.append(error)
    raise ExceptionGroup("both", errors)


def trained():
    """Fail in steps of each kind: traced call by call, by their outermost calls, and by their ends alone."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(400):
        net(torch.ones(1, 2) if step < 399 else torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


PROGRAMS = (
    forward, forward_in_sequence, shapes, backward, backward_twice, gradient, data, update, named,
    generators, coroutines, chained, grouped, trained,
)  # fmt: skip


def text_of(fail):
    try:
        fail()
    except Exception:
        return traceback.format_exc()
    pytest.fail("it did not fail")


PLAIN = {fail: text_of(fail) for fail in PROGRAMS}  # without a tracer


@pytest.fixture
def tracing(request):
    tracer = Tracer(overhead_budget=getattr(request, "param", 0.01))
    tracer.start()
    yield
    tracer.stop()


@pytest.mark.parametrize("fail", PROGRAMS)
def test_a_traceback_caught_in_the_block_is_as_without_us(fail, tracing):
    traced = text_of(fail)
    assert OURS not in traced
    assert traced == PLAIN[fail]


@pytest.mark.parametrize("tracing", [0.0, 1.0], indirect=True)
def test_so_is_one_of_any_mode_of_tracing(tracing):
    assert text_of(trained) == PLAIN[trained]


@pytest.mark.parametrize("fail", [chained, grouped])
def test_one_that_ends_the_block_has_no_frame_of_ours(fail):
    with pytest.raises(Exception) as found, tw.profile(baseline_s=0, live="off"):
        fail()
    assert OURS not in "".join(traceback.format_exception(found.value))


def test_a_decorator_leaves_no_frame():
    assert text_of(tw.profile(baseline_s=0)(forward)) == PLAIN[forward]


def test_an_error_of_ours_shows_the_users_line_and_a_fault_of_ours_its_place():
    with pytest.raises(ConfigError) as refused, tw.profile(baseline_s=0, live="off") as run:
        run.count("image", -1)
    assert OURS not in "".join(traceback.format_exception(refused.value))
    with pytest.raises(AttributeError) as fault:
        tw.profile.end(None)  # nobody does
    hide_own_frames(fault.value)
    drop_own_frames(fault.value)
    assert fault.value.__traceback__ is not None
