import pytest
import torch
from torch import nn

from tests.tracing.nets import Net, batch, calls, names, traced
from torchwatt.tracing import scope


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiling_meanwhile_breaks_no_graph(backend):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend(backend)
    net = Net()
    model = torch.compile(net, backend=counter)
    with traced(net, overhead_budget=0.9) as run:
        for _ in range(4):
            model(batch()).sum().backward()
    assert counter.frame_count == 1
    assert calls(run.trace, "(root)", "forward") == 4
    assert "head" not in names(run.trace, "forward")  # a compiled region is one honest span
    assert "(root)" in names(run.trace, "backward")


def test_a_model_compiled_before_is_not_compiled_again():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    model = torch.compile(Net(), backend=counter)
    model(batch())
    with traced(model) as run:
        model(batch())
    model(batch())
    assert counter.frame_count == 1
    assert calls(run.trace, "(root)", "forward") == 1


def test_scopes_and_explain_inside_compiled_code():
    class Scoped(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(16, 16)

        def forward(self, x):
            with scope("inside"):
                return self.fc(x).relu()

    net = Scoped()
    with traced(net):
        explained = torch._dynamo.explain(net)(batch())
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


def test_a_partly_compiled_model_names_the_compiled_part_without_its_wrapper():
    net = Net()
    net.blocks = torch.compile(net.blocks, backend="eager")
    with traced(net) as run:
        net(batch())
    assert names(run.trace, "forward") == {"(root)", "blocks", "head"}


@pytest.mark.slow
def test_inductor():
    net = Net()
    model = torch.compile(net)
    with traced(net) as run:
        for _ in range(4):
            model(batch()).sum().backward()
    assert calls(run.trace, "(root)", "forward") == 4
    assert "(root)" in names(run.trace, "backward")
