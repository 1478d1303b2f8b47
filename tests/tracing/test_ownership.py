"""Backward ownership against the truth: which nodes of the graph were made during which module's call."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.tracing.nets import Block, Net, batch, calls, names, spans, traced
from torchwatt.core.terms import UNATTRIBUTED
from torchwatt.tracing.trace_spans import owners_of_nodes


def reachable(tensors):
    flat = torch.utils._pytree.tree_leaves(tensors)
    todo, seen = [t.grad_fn for t in flat if isinstance(t, torch.Tensor) and t.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [n for n, _ in node.next_functions]
    return seen


def truth(model, run):
    """Sequence number -> name of the innermost module, by walking graphs at each module's borders."""
    owner, handles, before, keep = {}, [], [], []

    def enter(_module, args):
        before.append(reachable(args))  # now: an in-place module changes its argument's node

    def hook(name):
        def leave(_module, args, output):
            made = reachable([output]) - before.pop()
            keep.append(made)
            for node in made:
                if "Accumulate" not in type(node).__name__:
                    owner.setdefault(node._sequence_nr(), name)  # children leave first

        return leave

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(hook(name or "(root)")))
    loss = run()
    for handle in handles:
        handle.remove()
    return loss, owner


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Block(), Block()
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        x = self.a(x) + self.b(x)
        y = self.norm(x)[None]
        return x * self.attention(y, y, y)[0][0].tanh()


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.act(self.bn(self.conv(x.reshape(8, 1, 4, 4))))
        return self.act(h + h.mean())


@pytest.mark.parametrize("make", [Net, Residual, Conv, lambda: nn.LSTM(16, 16, 2)])
def test_every_node_belongs_to_the_module_that_made_it(make):
    model, checked = make(), 0
    with traced(model) as run:
        first = model(batch())
        (first[0] if isinstance(first, tuple) else first).sum().backward()

        def forward():
            out = model(batch())
            return (out[0] if isinstance(out, tuple) else out).square().sum()

        loss, expected = truth(model, forward)
        loss.backward()
        hub, log = run.tracer._hub, run.tracer._log
        nodes = log.backwards[-1].nodes.nodes()
        from torchwatt.tracing.module_registry import resolve_names

        table = log.table()
        fqns = resolve_names(hub.registry.roots, hub.registry.facts, table[:, 0], run.tracer._given)
        key, _ = owners_of_nodes(nodes, table)
        for seq, owner in zip(nodes.seq.tolist(), key.tolist(), strict=True):
            if seq >= 0:
                got = fqns.of(owner)
                assert got == expected.get(seq, UNATTRIBUTED), seq
                checked += seq in expected
        gathered = Counter(fqns.of(k) for k, s in zip(key.tolist(), nodes.seq.tolist(), strict=True) if s < 0)
    assert checked >= 2
    # AccumulateGrad has no number: one for each parameter, at the module that used it. Attention hands the
    # parameters of its projection to one function of its own.
    expected = Counter(name.rpartition(".")[0] or "(root)" for name, _ in model.named_parameters())
    for name in [n for n in expected if n.endswith(".out_proj")]:
        expected[name.removesuffix(".out_proj")] += expected.pop(name)
    assert gathered == expected


def test_traced_and_filled_backward_calls_share_their_layers():
    net = Net()
    with traced(net, overhead_budget=1e-9) as run:
        for _ in range(8):
            net(batch()).sum().backward()
    trace = run.trace
    assert trace.windows == 1
    layers = {"blocks.0.fc1", "blocks.0.act", "blocks.0.fc2", "blocks.0", "blocks.1.fc1", "head"}
    assert layers <= names(trace, "backward")
    for fqn in layers:
        assert calls(trace, fqn, "backward") == 8
        assert sum(filled for _, _, filled in spans(trace, fqn, "backward")) >= 5
    backward = np.array([slot.phase == "backward" and slot.fqn in layers for slot in trace.slots])
    assert {i for i in trace.carry_rel_sd if backward[i]} >= set(np.flatnonzero(backward).tolist())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_modules_are_recomputed_in_backward(reentrant):
    class Saver(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = Block(), Block(), nn.Linear(16, 1)

        def forward(self, x):
            x = checkpoint(self.first, x, use_reentrant=reentrant)
            return self.head(checkpoint(self.second, x, use_reentrant=reentrant))

    net = Saver()
    with traced(net, overhead_budget=1e-9) as run:
        for _ in range(6):
            net(batch().requires_grad_()).sum().backward()
    trace = run.trace
    rows = sorted((slot.fqn, slot.phase, calls(trace, slot.fqn, slot.phase)) for slot in trace.slots)
    seen = f"{trace.windows} windows, {trace.traced_steps} traced of {trace.step_counts}, {trace.events}, {rows}"
    assert trace.windows == 1, seen
    assert calls(trace, "first.fc1", "forward") == 6, seen
    # Six recomputed calls, and the nodes of six backward passes.
    assert calls(trace, "first.fc1", "backward") == 12, seen
    assert calls(trace, "second.fc2", "backward") >= 6, seen
    assert calls(trace, UNATTRIBUTED, "backward") == 6


def test_without_windows_backward_is_one_span_a_call():
    net = Net()
    with traced(net, windows=False) as run:
        for _ in range(3):
            net(batch()).sum().backward()
    assert names(run.trace, "backward") == {UNATTRIBUTED}
    assert calls(run.trace, UNATTRIBUTED, "backward") == 3
    assert run.trace.windows == 0


def test_custom_functions_double_backward_and_retained_graphs():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * grad

    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(16, 16)

        def forward(self, x):
            return Cube.apply(self.fc(x))

    net = Custom()
    with traced(net) as run:
        for _ in range(3):
            x = batch().requires_grad_()
            out = net(x).sum()
            (grad,) = torch.autograd.grad(out, x, create_graph=True)
            (grad.square().sum() + out).backward(retain_graph=True)
            out.backward()
    assert calls(run.trace, UNATTRIBUTED, "backward") == 9
    assert {"(root)", "fc"} <= names(run.trace, "backward")


def test_two_structures_are_filled_from_their_own_windows():
    a, b = nn.Sequential(nn.Linear(16, 16), nn.Tanh()), nn.Sequential(nn.Linear(16, 16), nn.GELU())
    with traced(overhead_budget=0.5) as run:
        for _ in range(12):
            a(batch()).sum().backward()
            b(batch()).sum().backward()
    trace = run.trace
    assert calls(trace, "a.1", "backward") >= 11
    assert calls(trace, "b.1", "backward") >= 11
    assert "TEMPLATE_MISMATCH" not in [e.code for e in trace.events] or trace.windows < 4


def test_a_scope_owns_the_backward_of_what_it_computed():
    from torchwatt.tracing import scope

    net = Net()
    with traced(net) as run:
        for _ in range(3):
            out = net(batch())
            with scope("loss"):
                loss = out.exp().sin().sum()
            loss.backward()
    assert calls(run.trace, "loss", "other") == 3
    assert calls(run.trace, "loss", "backward") == 3


def test_a_module_called_in_a_hook_of_another_s_backward_keeps_its_own_span():
    net, probe = Net(), nn.Linear(16, 16)
    with traced(net) as run:
        for _ in range(4):
            h = net.blocks(batch())
            h.register_hook(lambda grad: probe(grad).detach())
            net.head(h).sum().backward()
    assert calls(run.trace, "probe", "backward") == 4


def test_a_backward_that_raises_in_a_window_leaves_the_recorder_off():
    net = Net()

    def fail(grad):
        raise ValueError("in backward")

    with traced(net, overhead_budget=0.9) as run:
        for i in range(6):
            h = net.blocks(batch())
            if i in {1, 2}:
                h.register_hook(fail)
                with pytest.raises(ValueError, match="in backward"):
                    net.head(h).sum().backward()
                assert not torch.autograd._profiler_enabled()
            else:
                net.head(h).sum().backward()
    assert calls(run.trace, UNATTRIBUTED, "backward") == 6
    assert "blocks.0.fc1" in names(run.trace, "backward")


def test_an_optimizer_that_steps_within_backward():
    net = Net()
    optimizers = {p: torch.optim.SGD([p], 0.1) for p in net.parameters()}
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    with traced(net, overhead_budget=1e-9) as run:
        for _ in range(6):
            net(batch()).sum().backward()
    assert len(run.trace.steps) == 6
    assert calls(run.trace, "blocks.0.fc1", "backward") >= 5
