"""What makes the profiler trace a step in full before the budget would: work that is new, and nothing else."""

from contextlib import contextmanager

import torch

from tests.tracing.nets import Net, batch, traced, train


@contextmanager
def looks_at(net):
    """Trace the body at a small budget; yield a list that grows with each request of a full trace."""
    looks = []
    with traced(net, overhead_budget=1e-9) as run:
        hub, look_closer = run.tracer._hub, run.tracer._hub.look_closer
        hub.look_closer = lambda: looks.append(1) or look_closer()
        yield looks


def perturb(net, like, steps=12):
    moved = torch.zeros_like(like, requires_grad=True)
    optimizer = torch.optim.Adam([moved])
    for _ in range(steps):
        optimizer.zero_grad()
        net(like + moved).square().mean().backward()
        optimizer.step()


def test_an_optimizer_like_one_that_is_gone_is_nothing_new():
    net = Net().requires_grad_(requires_grad=False)
    with looks_at(net) as looks:
        perturb(net, batch())
        before = len(looks)
        for _ in range(6):
            perturb(net, batch())
        assert len(looks) == before
        train(net.requires_grad_(), 4)  # of other parameters
        assert len(looks) > before


def test_a_second_backward_call_through_one_forward_pass_is_nothing_new():
    net = Net()
    opt = torch.optim.SGD(net.parameters(), 0.01)
    with looks_at(net) as looks:
        penalise(net, opt, 20)
        before = len(looks)
        penalise(net, opt, 40)
        assert len(looks) == before


def penalise(net, opt, steps):
    for _ in range(steps):
        x = batch().requires_grad_()
        y = net(x)
        (slope,) = torch.autograd.grad(y.sum(), [x], create_graph=True)
        opt.zero_grad()
        (y.mean() + (slope.norm() - 1).square()).backward()
        opt.step()
