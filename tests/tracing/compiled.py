"""Programs that use torch.compile in every form that people do, and what Dynamo counts of them."""

import torch
from torch import nn

from tests.support.lazy_module import LazyModule
from tests.tracing.nets import Net, batch

dynamo = LazyModule("torch._dynamo.utils")


class Hooked(Net):
    """With a hook of the user's, whose call Dynamo reads and does not step over."""

    def __init__(self):
        super().__init__()
        self.head.register_forward_hook(lambda module, args, out: out * 2)


def whole_step(**options):
    net = Net()
    opt, x = torch.optim.SGD(net.parameters(), 0.01), batch()

    @torch.compile(**options)
    def train_step(x):
        loss = net(x).square().mean()
        loss.backward()
        opt.step()
        opt.zero_grad()
        return loss

    return net, lambda: train_step(x)


def forward_and_backward(**options):
    net = Net()
    opt, x = torch.optim.SGD(net.parameters(), 0.01), batch()

    @torch.compile(**options)
    def gradients(x):
        net(x).square().mean().backward()

    def step():
        gradients(x)
        opt.step()
        opt.zero_grad()

    return net, step


def update(**options):
    net = Net()
    opt, x = torch.optim.SGD(net.parameters(), 0.01), batch()

    @torch.compile(**options)
    def update_weights():
        opt.step()
        opt.zero_grad()

    def step():
        net(x).square().mean().backward()
        update_weights()

    return net, step


def optimizer_step(**options):
    net = Net()
    opt, x = torch.optim.AdamW(net.parameters(), 0.01), batch()
    compiled = torch.compile(opt.step, **options)

    def step():
        net(x).square().mean().backward()
        compiled()
        opt.zero_grad()

    return net, step


def loss_function(**options):
    net = Net()
    opt, x = torch.optim.SGD(net.parameters(), 0.01), batch()

    @torch.compile(**options)
    def loss(x):
        return net(x).square().mean()

    def step():
        loss(x).backward()
        opt.step()
        opt.zero_grad()

    return net, step


def _eager_around(net, forward):
    opt, x = torch.optim.SGD(net.parameters(), 0.01), batch()

    def step():
        forward(x).square().mean().backward()
        opt.step()
        opt.zero_grad()

    return net, step


def model(**options):
    net = Net()
    return _eager_around(net, torch.compile(net, **options))


def hooked_model(**options):
    net = Hooked()
    return _eager_around(net, torch.compile(net, **options))


def in_place(**options):
    net = Net()
    net.compile(**options)
    return _eager_around(net, net)


def sequential_in_place(**options):
    """Dynamo leaves the code of torch's own classes alone: it would compile a wrapper of ours around it."""
    net = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))
    net.compile(**options)
    return _eager_around(net, net)


def blocks(**options):
    net = Net(depth=3)
    for block in net.blocks:
        block.compile(**options)
    return _eager_around(net, net)


FORMS = (
    whole_step, forward_and_backward, update, optimizer_step, loss_function, model, hooked_model, in_place,
    sequential_in_place, blocks,
)  # fmt: skip
IN_ONE_GRAPH = (loss_function, model, hooked_model, in_place, blocks)  # so that they can be compiled with fullgraph


def counts():
    """What Dynamo did: frames, graph breaks, graphs, operations in them, and compilations of each function."""
    counters = dynamo.counters
    compiled = sorted((str(metric.co_name), str(metric.co_filename)) for metric in dynamo.get_compilation_metrics())
    return (
        dict(counters["frames"]), sum(counters["graph_break"].values()), dict(counters["stats"]), compiled,
    )  # fmt: skip


def forget():
    torch._dynamo.reset()
    torch._dynamo.utils.clear_compilation_metrics()
    dynamo.counters.clear()
