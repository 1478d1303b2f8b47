"""Start, stop, nesting, threads, forks, other people's patches."""

import gc
import os
import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import run_script
from tests.support import ready
from tests.support.heavy import some_of
from tests.tracing.nets import Net, assert_nested, batch, calls, codes, names, spans, traced, train
from torchwatt.core.errors import ConfigError, TraceError
from torchwatt.tracing import Tracer, scope
from torchwatt.tracing.patches import Patch
from torchwatt.tracing.scope import ACTIVE


def started(*args, **options):
    tracer = Tracer(*args, **options)
    tracer.start()
    return tracer


def test_stop_is_idempotent_and_the_order_of_calls_is_checked():
    with pytest.raises(TraceError, match="before start"):
        Tracer().stop()
    with pytest.raises(TraceError, match="before start"):
        Tracer().step()
    with pytest.raises(ConfigError, match="overhead_budget"):
        Tracer(overhead_budget=2)
    with pytest.raises(ConfigError, match="max_spans"):
        Tracer(max_spans=0)
    tracer = started()
    with pytest.raises(TraceError, match="once"):
        tracer.start()
    trace = tracer.stop()
    assert tracer.stop() is trace
    assert tracer.snapshot() is trace
    tracer.step()
    assert len(trace) == 0
    assert ACTIVE.hub is None


def test_nothing_is_left_after_stop():
    def patched():
        loader = torch.utils.data.DataLoader
        from torch.optim import optimizer as optim
        from torch.utils.data.dataloader import _BaseDataLoaderIter

        return (
            nn.Module.__call__, torch.autograd._engine_run_backward, _BaseDataLoaderIter.__next__, loader.__iter__,
            len(optim._global_optimizer_pre_hooks), len(optim._global_optimizer_post_hooks), threading.active_count(),
        )  # fmt: skip

    before = patched()
    tracer = started()
    hub = weakref.ref(tracer._hub)
    assert patched() != before
    train(Net())
    tracer.stop()
    assert patched() == before
    del tracer
    gc.collect()
    assert hub() is None


@pytest.mark.parametrize(
    "first",
    some_of(["", "torch.compile(net, backend='eager')(x)", "torch.export.export(net, (x,))"], 1),
)
def test_torch_s_compiler_imported_in_a_session_keeps_torch_s_own_call(first):
    """In a process of its own: on import, torch._dynamo takes what `nn.Module.__call__` is at that moment."""
    code = f"""
import gc, json, sys, weakref, torch
from torchwatt.tracing import Tracer
own = torch.nn.Module.__call__
net, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
tracer = Tracer(net)
tracer.start()
hub = weakref.ref(tracer._hub)
{first}
net(x).sum().backward()
tracer.stop()
del tracer
gc.collect()
dynamo = sys.modules.get("torch._dynamo.utils")
print(json.dumps([hub() is None, dynamo is None or dynamo.unpatched_nn_module_call is own]))
"""
    assert run_script(code) == [True, True]


def test_wrappers_come_off_when_the_user_s_code_raises():
    def body():
        Net()(batch())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), traced() as run:
        body()
    assert "head" in names(run.trace, "forward")


def test_a_patch_on_top_of_ours_stays_and_ours_goes_quiet():
    original, seen = nn.Module.__call__, []
    tracer = started()

    def on_top(function):
        def call(self, *args, **kwargs):
            seen.append(type(self).__name__)
            return function(self, *args, **kwargs)

        return call

    theirs = Patch(nn.Module, "__call__", on_top)
    try:
        Net()(batch())
        trace = tracer.stop()
        assert nn.Module.__call__ is theirs.wrapper
        n, events = len(trace), len(seen)
        Net()(batch())
        assert len(seen) == 2 * events
        assert len(tracer.stop()) == n
        with_ours = started()
        Net()(batch())
        assert calls(with_ours.stop(), "(root)", "forward") == 1
    finally:
        nn.Module.__call__ = original
    assert n == events


def test_a_nested_tracer_is_a_window_of_the_outer_one():
    net = Net()
    with traced(net) as outer:
        train(net, 2)
        with_inner = started(net)
        train(net, 3)
        inner = with_inner.stop()
        train(net, 1)
    assert calls(inner, "head", "forward") == 3
    assert calls(outer.trace, "head", "forward") == 6
    assert (len(inner.steps), len(outer.trace.steps)) == (3, 6)


def test_tracers_that_do_not_nest_each_have_their_own_interval():
    net = Net()
    first = started(net)
    net(batch())
    second = started(net)
    net(batch())
    a = first.stop()
    net(batch())
    b = second.stop()
    assert (calls(a, "head", "forward"), calls(b, "head", "forward")) == (2, 2)


def test_each_thread_s_tracer_has_that_thread_s_spans():
    traces, barrier = {}, threading.Barrier(2)

    def work(number):
        net = Net(depth=number)
        tracer = started(net)
        barrier.wait()
        train(net, 5)
        barrier.wait()
        traces[number] = tracer.stop()

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls(traces[1], "head", "forward") == calls(traces[3], "head", "forward") == 5
    assert "blocks.2" not in names(traces[1], "forward")
    assert len(traces[1].steps) == 5
    assert ACTIVE.hub is None
    for trace in traces.values():
        assert "TRACE_FAILED" not in codes(trace)
        assert_nested(trace)


def test_threads_without_a_tracer_belong_to_everyone_and_new_threads_start_afresh():
    net = Net()

    def forward():
        net(batch()).sum().backward()

    with traced(net) as run:
        for _ in range(3):
            thread = threading.Thread(target=forward)
            thread.start()
            thread.join()
        forward()
    assert calls(run.trace, "head", "forward") == 4
    assert len(np.unique(run.trace.thread)) == 4


def test_backward_in_another_thread_finds_the_forward_s_modules():
    net, losses = Net(), []

    with traced(net) as run:
        for _ in range(4):
            helper = threading.Thread(target=lambda: losses.append(net(batch()).sum()))
            helper.start()
            helper.join()
        sum(losses[:2]).backward()
        sum(losses[2:]).backward()
    assert "blocks.0.fc1" in names(run.trace, "backward")


def test_snapshots_from_another_thread_while_the_loop_runs():
    net, done, shots = Net(), threading.Event(), []

    def look(tracer):
        while not done.is_set():
            shots.append(tracer.snapshot())

    with traced(net) as run:
        viewer = threading.Thread(target=look, args=(run.tracer,))
        viewer.start()
        train(net, 30)
        done.set()
        viewer.join()
    assert all("TRACE_FAILED" not in codes(shot) for shot in shots)
    assert len(shots[-1]) <= len(run.trace)
    assert calls(run.trace, "head", "forward") == 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_not_traced():
    net, original = Net(), nn.Module.__call__
    with traced(net) as run:
        net(batch())
        pid = os.fork()
        if pid == 0:
            clean = nn.Module.__call__ is original and ACTIVE.hub is None
            net.head.bias  # noqa: B018
            os._exit(0 if clean and len(run.tracer.stop()) == 0 else 1)
        assert os.waitpid(pid, 0)[1] == 0
        net(batch())
    assert calls(run.trace, "head", "forward") == 2


def test_the_user_s_profiler_keeps_its_events():
    net = Net()
    with traced(net, overhead_budget=0.9) as run:
        train(net, 1)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as prof:
            train(net, 3)
        train(net, 3)
    assert sum("AddmmBackward0" in e.key for e in prof.key_averages()) >= 1
    assert codes(run.trace).count("PROFILER_BUSY") == 1
    assert 1 <= run.trace.windows <= 3


def test_a_torch_without_the_private_interfaces_has_no_windows(monkeypatch):
    monkeypatch.delattr(torch.autograd, "_prepare_profiler")
    with traced(net := Net()) as run:
        train(net)
    assert "TRACE_UNSUPPORTED" in codes(run.trace)
    assert names(run.trace, "backward") == {"(unattributed)"}


def test_a_window_that_fails_costs_the_user_nothing(monkeypatch):
    def fail(*args):
        raise RuntimeError("no")

    monkeypatch.setattr(torch.autograd, "_enable_profiler", fail)
    tracer = started()
    train(Net())
    trace = tracer.stop()
    assert codes(trace) == ["WINDOW_FAILED", "BACKWARD_UNTRACED"]


def test_explicit_steps_replace_automatic_ones():
    net = Net()
    with traced(net) as run:
        train(net, 2)
        run.tracer.step()
        train(net, 2)
        run.tracer.step()
    assert len(run.trace.steps) == 2
    assert run.trace.steps[0][1] <= run.trace.steps[1][0]


def test_scopes_nest_decorate_and_survive_generators():
    @scope("part")
    def part(n):
        return n if n == 0 else part(n - 1)

    @scope("made")
    def numbers():
        yield from (net(batch()) for _ in range(2))

    net = Net()
    with scope("before"):
        assert part(1) == 0
    with traced(net) as run:
        assert part(2) == 0
        one, two = numbers(), numbers()
        next(one), next(two), next(one), next(two)
        with scope("outer"):
            net(batch())
            list(one)
        list(two)
        with pytest.raises(ValueError, match="x"), scope("fails"):
            raise ValueError("x")
    assert calls(run.trace, "part", "other") == 3
    assert calls(run.trace, "made", "other") == 2
    assert calls(run.trace, "fails", "other") == 1
    assert "before" not in names(run.trace, "other")
    assert part.__name__ == "part"


@pytest.mark.parametrize("has_steps", [True, False])
def test_beyond_the_limit_steps_are_sampled_and_filled(has_steps):
    net = Net()
    with traced(net, max_spans=200, overhead_budget=1.0) as run:  # only the limit decides
        if has_steps:
            train(net, 100)
        else:
            for _ in range(100):
                net(batch())
        kept = run.tracer._hub.logs[0].total()
    trace = run.trace
    assert "SPANS_SAMPLED" in codes(trace)
    assert kept < 1_000  # of each step that is not traced two spans, and the profiler work beside these and backward
    assert len(trace.steps) == 100
    assert calls(trace, "(root)", "forward") == calls(trace, "blocks.1.fc2", "forward") == 100
    assert sum(filled for *_, filled in spans(trace, "blocks.1.fc2", "forward")) > 70


def test_importing_is_light():
    code = (
        "import json, sys, torchwatt.tracing\n"
        "from torchwatt.tracing import Tracer, scope\n"
        "with scope('x'): pass\n"
        "print(json.dumps('torch' in sys.modules))"
    )
    assert run_script(code) is False


USES_THE_PROFILER = "p = torch.profiler.profile(); p.start(); p.stop(); print('user', file=sys.stderr, flush=True)\n"


@pytest.mark.parametrize(
    ("first", "last", "lines"),
    [("", "", 0), (USES_THE_PROFILER, "", 3), ("", USES_THE_PROFILER, 3)],
    ids=["alone", "after the user's own", "before the user's own"],
)
def test_windows_are_silent(first, last, lines):
    code = (
        "import sys, torch\n"
        "from torchwatt.tracing import Tracer\n"
        "{first}"
        "net = torch.nn.Linear(4, 4)\n"
        "t = Tracer(net, overhead_budget=1.0); t.start()\n"
        "for _ in range(5): net(torch.ones(2, 4)).sum().backward()\n"
        "assert t.stop().windows == 4 or t.stop().windows == 3, t.stop().windows\n"
        "{last}"
    )
    done = ready.run_code(code.format(first=first, last=last))
    assert done.returncode == 0, done.stderr
    written = [line for line in done.stderr.splitlines() if "USDT" in line or "user" in line]
    assert len(written) == lines, done.stderr
    if not first and not last:
        assert not done.stderr
