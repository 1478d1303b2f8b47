"""Collectives of a job of one rank, in this process: what is started, what is waited for, and what is left behind."""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.tracing.nets import calls, spans, traced
from torchwatt.core.terms import COMMUNICATION
from torchwatt.tracing.backward_calls import find_collectives, find_reducers

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")


def begin():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


@pytest.fixture
def group():
    begin()
    yield
    dist.destroy_process_group()


def talk(trace):
    return calls(trace, COMMUNICATION, "communication")


def test_each_collective_is_one_call_and_waiting_for_it_is_none(group):
    from torch.distributed import all_reduce  # under a name that was taken before anything is profiled

    x = torch.ones(4)
    with traced(overhead_budget=1.0) as run:
        all_reduce(x)
        dist.broadcast(x, 0)
        work = dist.all_reduce(x, async_op=True)
        work.wait()
        dist.all_gather([torch.empty(4)], x)
        dist.barrier()
    assert talk(run.trace) == 5
    assert len(spans(run.trace, COMMUNICATION, "communication")) > 5  # the waits have their time


def test_a_group_that_is_initialised_inside_the_block_is_seen():
    with traced(overhead_budget=1.0) as run:
        begin()
        dist.all_reduce(torch.ones(4))
        dist.destroy_process_group()
    assert talk(run.trace) >= 1


def test_nothing_of_torch_distributed_is_changed_afterwards(group):
    patched = [(owner, name) for owner, name, _ in find_collectives() if hasattr(owner, name)] + list(find_reducers())
    before = [vars(owner).get(name) for owner, name in patched]
    with traced(overhead_budget=1.0):
        assert any(vars(owner).get(name) is not old for (owner, name), old in zip(patched, before, strict=True))
    assert all(vars(owner).get(name) is old for (owner, name), old in zip(patched, before, strict=True))
    dist.barrier()
    dist.all_reduce(torch.ones(4), async_op=True).wait()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_ddp_reduces_once_a_step_and_the_layers_have_the_rest(group, accumulate):
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))
    optimizer, x = torch.optim.SGD(model.parameters(), 1e-3), torch.randn(8, 64)
    steps = 12
    with traced(model, overhead_budget=1.0) as run:
        for _ in range(steps):
            optimizer.zero_grad()
            for _ in range(accumulate - 1):
                with model.no_sync():
                    model(x).sum().backward()
            model(x).sum().backward()
            optimizer.step()
    assert talk(run.trace) == steps
    assert [calls(run.trace, name, "backward") for name in "01"] == [steps * accumulate] * 2
    waits = spans(run.trace, COMMUNICATION, "communication")
    work = spans(run.trace, "0", "backward") + spans(run.trace, "1", "backward")
    for (start, end, *_), (a, b, *_) in itertools.product(waits, work):
        assert end <= a or b <= start  # apart: no layer holds a wait
