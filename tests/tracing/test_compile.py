import collections
import functools
import gc
import statistics
import threading
import time
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import run_script
from tests.support.chosen import chosen
from tests.support.heavy import heavy_unless
from tests.tracing.compiled import (
    FORMS,
    IN_ONE_GRAPH,
    blocks,
    counts,
    dynamo,
    forget,
    loss_function,
    model,
    optimizer_step,
    update,
    whole_step,
)  # fmt: skip
from tests.tracing.nets import Net, batch, calls, codes, names, traced, train
from torchwatt.core.intervals import self_times
from torchwatt.core.terms import COMPILE, PROFILER, Slot
from torchwatt.tracing import scope

SOME_FORMS = chosen([form.__name__ for form in FORMS], 2)  # those that the commit chooses; the others are heavy


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
@pytest.mark.parametrize(
    ("form", "order"),
    heavy_unless(lambda pair: pair[0].__name__ in SOME_FORMS, product(FORMS, ["SNFN", "NFNS"])),
    ids=lambda value: getattr(value, "__name__", value),
)
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
    import torch._inductor.config as inductor

    with inductor.patch(force_disable_caches=True):  # else the second run finds what the first one made
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


def self_s(trace):
    """Return the seconds of each row, by (name, phase), what lies inside left out."""
    total = collections.Counter()
    for thread in np.unique(trace.thread):
        mine = np.flatnonzero(trace.thread == thread)
        mine = mine[np.lexsort((-trace.end_ns[mine], trace.start_ns[mine]))]
        own = self_times(trace.start_ns[mine].tolist(), trace.end_ns[mine].tolist())
        for i, ns in zip(mine.tolist(), own, strict=True):
            slot = trace.slots[int(trace.slot[i])]
            total[slot.fqn, slot.phase] += ns / 1e9
    return total


def clocked(step, n):
    """Return how long each of some calls took, by a plain clock."""
    took = []
    for _ in range(n):
        start = time.perf_counter()
        step()
        took.append(time.perf_counter() - start)
    return took


# 0: no module is traced below the outermost; 1e-4: after the first step only the ends of steps are noted; 0.9: all.
@pytest.mark.alone
@pytest.mark.parametrize(
    ("form", "budget"),
    heavy_unless(
        lambda pair: pair in {(whole_step, 0.9), (blocks, 1e-4), (loss_function, 0)},  # each budget, a form each
        [(whole_step, 0), (whole_step, 0.9), (blocks, 1e-4), (blocks, 0.9), (loss_function, 0), (update, 1e-4)],
    ),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_compilation_is_taken_out_of_whatever_it_interrupts(form, budget):
    forget()
    net, step = form(backend="aot_eager")
    _steps(step, 1)  # what is imported and set up once
    torch._dynamo.reset()
    with traced(net, overhead_budget=budget) as run:
        took = clocked(step, 40)
        torch._dynamo.reset()  # everything is compiled again, in a step like all others
        took += clocked(step, 20)
    usual = statistics.median(took)
    compiling = took[0] + took[40] - 2 * usual
    rows = self_s(run.trace)
    assert rows[COMPILE, "compile"] == pytest.approx(compiling, rel=0.25, abs=0.1)
    rest = sum(seconds for (name, _), seconds in rows.items() if name != COMPILE)
    assert 0 < rest <= sum(took) - rows[COMPILE, "compile"]
    assert not _filled(run.trace, COMPILE)


def _filled(trace, name):
    slots = [i for i, slot in enumerate(trace.slots) if slot.fqn == name]
    return bool(trace.filled[np.isin(trace.slot, slots)].any())


def test_compilation_is_what_torch_itself_says_that_it_took():
    forget()
    net, step = model(backend="aot_eager")
    with traced(net) as run:
        _steps(step, 3)
    frames = sum(metric.entire_frame_compile_time_s or 0 for metric in dynamo.get_compilation_metrics())
    rows = self_s(run.trace)
    assert frames > 0
    assert rows[COMPILE, "compile"] >= frames
    assert rows["(root)", "forward"] + rows["(root)", "backward"] < 0.2 * frames


def test_a_compilation_on_another_thread_is_that_thread_s():
    forget()
    net = Net()
    compiled = torch.compile(net, backend="eager")
    with traced(net) as run:
        net(batch()).sum().backward()
        helper = threading.Thread(target=compiled, args=(batch(),))
        helper.start()
        helper.join()
    compile_slot = [i for i, slot in enumerate(run.trace.slots) if slot.fqn == COMPILE]
    threads = set(run.trace.thread[np.isin(run.trace.slot, compile_slot)].tolist())
    assert len(threads) == 1
    assert threads != {int(run.trace.thread[0])}


def test_a_compilation_of_autograd_s_own_thread_lies_in_the_backward_call_that_waits_for_it(monkeypatch):
    """As on a GPU, where a thread of autograd compiles the backward pass: here a thread that a node starts."""
    forget()
    compiled = torch.compile(lambda x: x * 2, backend="eager")

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            monkeypatch.setattr("torchwatt.tracing.compile_monitor.graph_task_id", lambda: 0)
            helper = threading.Thread(target=compiled, args=(gradient.detach(),))
            helper.start()
            helper.join()
            return gradient

    net = Net()
    with traced(net, overhead_budget=0.9) as run:
        Node.apply(net(batch()).sum()).backward()
    compile_slot = run.trace.slots.index(Slot(COMPILE, "compile"))
    mine = run.trace.slot == compile_slot
    assert set(run.trace.thread[mine].tolist()) == {0}
    whole = run.trace.slots.index(Slot("(unattributed)", "backward"))
    outer = run.trace.slot == whole
    assert run.trace.start_ns[outer].min() <= run.trace.start_ns[mine].min()
    assert run.trace.end_ns[mine].max() <= run.trace.end_ns[outer].max()


@pytest.mark.parametrize(
    ("form", "budget"),
    heavy_unless(
        lambda pair: pair[0].__name__ in SOME_FORMS,
        [*product(FORMS, [0.01, 0.9]), *product([whole_step, model, blocks], [0, 1e-4])],
    ),
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_round_of_the_loop_is_a_step(form, budget):
    forget()
    net, step = form(backend="eager")
    for before in (0, 3):
        with traced(net, overhead_budget=budget) as run:
            _steps(step, 50)
        counted = sum(run.trace.step_counts) or len(run.trace.steps)
        assert counted == 50, (before, counted)


def test_a_step_compiled_as_a_whole_is_one_row_and_says_so():
    forget()
    net, step = whole_step(backend="aot_eager")
    shares = []
    for _ in range(4):  # compiled in the session, and before it
        with traced(net) as run:
            _steps(step, 60)
        rows = self_s(run.trace)
        said = [event.message for event in run.trace.events if event.code == "COMPILED_WHOLE"]
        assert len(said) == 1
        assert said[0].startswith("train_step() is compiled as a whole")
        own = rows["train_step", "other"] + rows["train_step", "backward"] + rows["(optimizer)", "optimizer"]
        shares.append(own / (sum(rows.values()) - rows[COMPILE, "compile"] - rows[PROFILER, "other"]))
        assert calls(run.trace, "train_step", "other") == 60
    assert max(shares) > 0.8  # other programs interrupt some of these short sessions between the steps


def test_a_compiled_loss_is_a_forward_row_with_a_backward():
    forget()
    net, step = loss_function(backend="aot_eager")
    with traced(net, overhead_budget=0.9) as run:
        _steps(step, 10)
    assert calls(run.trace, "loss", "forward") == 10
    assert calls(run.trace, "loss", "backward") == 10
    assert "COMPILED_WHOLE" not in codes(run.trace)


def test_a_compiled_update_is_the_optimizer_s():
    for form in (update, optimizer_step):
        forget()
        net, step = form(backend="eager")
        with traced(net, overhead_budget=0.9) as run:
            _steps(step, 10)
        assert calls(run.trace, "(optimizer)", "optimizer") >= 10
        assert not {"update_weights", "step"} & {slot.fqn for slot in run.trace.slots}


def test_calls_of_a_compiled_function_are_steps_of_inference():
    forget()
    net = Net()

    @torch.compile(backend="eager")
    @torch.no_grad()
    def predict(x):
        return net(x)

    with traced(net) as run:
        for _ in range(20):
            predict(batch())
    assert len(run.trace.steps) == 20
    assert calls(run.trace, "predict", "forward") == 20


def test_compiled_functions_inside_a_model_are_no_steps():
    forget()
    act = torch.compile(nn.functional.gelu, backend="eager")

    class Activated(Net):
        def forward(self, x):
            return self.head(act(self.blocks(x)))

    net = Activated()
    with traced(net) as run:
        train(net, steps=20)
    assert len(run.trace.steps) == 20
    assert "gelu" not in {slot.fqn for slot in run.trace.slots}


@pytest.fixture
def _no_collection():
    """Keep the garbage collector out: one collection of what compiling made takes as long as a hundred calls."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.alone  # each block's seconds within a half
@pytest.mark.usefixtures("_no_collection")
def test_identical_blocks_compiled_one_by_one_come_out_alike():
    forget()
    net = Net(depth=3, width=128)
    for block in net.blocks:
        block.compile(backend="aot_eager")
    opt, x = torch.optim.SGD(net.parameters(), 0.01), batch(n=256, width=128)
    with traced(net, overhead_budget=0.9) as run:
        for _ in range(30):
            net(x).square().mean().backward()
            opt.step()
            opt.zero_grad()
    rows = self_s(run.trace)
    forward = [rows[f"blocks.{i}", "forward"] for i in range(3)]
    assert max(forward) < 1.5 * min(forward)
    assert rows[COMPILE, "compile"] > 0.1


@pytest.mark.heavy
def test_inductor_s_blocks_come_out_alike_and_its_work_apart():
    forget()
    net, step = blocks()
    with traced(net) as run:
        first = clocked(step, 1)[0]
        took = clocked(step, 200)
    rows = self_s(run.trace)
    assert rows[COMPILE, "compile"] == pytest.approx(first - statistics.median(took), rel=0.1)
    forward = [rows[f"blocks.{i}", "forward"] for i in range(3)]
    assert max(forward) < 2 * min(forward)


def test_dynamo_imported_in_a_session_is_hooked_then():
    """In a process of its own: nothing of torch._dynamo is there when the session begins."""
    code = """
import json, sys, torch
from torchwatt.tracing import Tracer
net, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
before = "torch._dynamo" in sys.modules
finders = list(sys.meta_path)
tracer = Tracer(net)
tracer.start()
during = len(sys.meta_path) - len(finders)
fn = torch.compile(lambda x: net(x).sum(), backend="eager")
for _ in range(3):
    fn(x)
trace = tracer.stop()
names = {slot.fqn for slot in trace.slots}
loader = type(sys.modules["torch._dynamo"].__spec__.loader).__name__
print(json.dumps([before, during, sys.meta_path == finders, "(compile)" in names, len(trace.steps), loader]))
"""
    assert run_script(code) == [False, 1, True, True, 3, "SourceFileLoader"]
