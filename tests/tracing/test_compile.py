import functools

import pytest
import torch
from torch import nn

from tests.tracing.compiled import FORMS, IN_ONE_GRAPH, blocks, counts, forget, model, update, whole_step
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


# S and F: a session with the default budget and one that traces every call; N: none. Each runs a few steps.
@pytest.mark.parametrize("order", ["SNFN", "NFNS"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_no_graph_break_and_no_recompilation_is_ours(form, order):
    _assert_as_without(form, order, backend="eager")


@pytest.mark.parametrize("form", [whole_step, blocks], ids=lambda form: form.__name__)
def test_autograd_s_compiler_sees_nothing_of_a_session(form):
    _assert_as_without(form, "SN", backend="aot_eager")


@pytest.mark.parametrize("form", IN_ONE_GRAPH, ids=lambda form: form.__name__)
def test_one_graph_stays_one_graph(form):
    _assert_as_without(form, "SN", backend="eager", fullgraph=True)


@pytest.mark.heavy
@pytest.mark.parametrize("options", [{}, {"mode": "reduce-overhead"}], ids=str)
@pytest.mark.parametrize("form", [whole_step, update, model, blocks], ids=lambda form: form.__name__)
def test_inductor_sees_nothing_of_a_session(form, options):
    _assert_as_without(form, "SNF", **options)


def _assert_as_without(form, order, **options):
    assert _run(form, order, options) == _bare(form, len(order), tuple(options.items()))


@functools.cache
def _bare(form, runs, options):
    return _run(form, "N" * runs, dict(options))


def _run(form, order, options):
    torch.manual_seed(0)
    forget()
    net, step = form(**options)
    for kind in order:
        if kind == "N":
            _steps(step, 3)
        else:
            with traced(net, overhead_budget=0.01 if kind == "S" else 0.9):
                _steps(step, 3)
    return counts()


def _steps(step, n):
    for _ in range(n):
        step()
