"""Small models and the questions the tests ask of a trace."""

from collections import Counter
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from torchwatt.core.terms import Slot
from torchwatt.tracing import Tracer


class Block(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(x)))


class Net(nn.Module):
    def __init__(self, depth=2, width=16):
        super().__init__()
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.blocks(x))


def batch(n=8, width=16):
    return torch.randn(n, width)


def train(net, steps=4, opt=None, forward=None):
    opt = opt or torch.optim.SGD(net.parameters(), 0.01)
    for _ in range(steps):
        opt.zero_grad()
        (forward or net)(batch()).square().mean().backward()
        opt.step()


class Result:
    trace = None


@contextmanager
def traced(model=None, **options):
    """Trace the body; the trace must make sense, and nothing may be left behind."""
    call, engine = nn.Module.__call__, torch.autograd._engine_run_backward
    tracer, result = Tracer(model, **options), Result()
    result.tracer = tracer
    tracer.start()
    try:
        yield result
    finally:
        result.trace = tracer.stop()
        assert nn.Module.__call__ is call
        assert torch.autograd._engine_run_backward is engine
    codes = [event.code for event in result.trace.events]
    assert "TRACE_FAILED" not in codes, result.trace.events
    assert "WINDOW_FAILED" not in codes, result.trace.events
    assert_nested(result.trace)


def assert_nested(trace):
    for thread in np.unique(trace.thread):
        m = trace.thread == thread
        stack = []
        for start, end in sorted(zip(trace.start_ns[m], -trace.end_ns[m], strict=True)):
            while stack and stack[-1] <= start:
                stack.pop()
            assert not stack or -end <= stack[-1], "two spans cross"
            stack.append(-end)


def names(trace, phase):
    return {slot.fqn for i, slot in enumerate(trace.slots) if slot.phase == phase and (trace.slot == i).any()}


def counts(trace, phase="forward"):
    """Return how often each module ran, without those of which the trace does not know it."""
    found = Counter()
    untold = set()
    for slot, n in zip(trace.slot.tolist(), trace.calls.tolist(), strict=True):
        if trace.slots[slot].phase == phase:
            found[trace.slots[slot].fqn] += n
            if slot in trace.untold_calls:
                untold.add(trace.slots[slot].fqn)
    return {name: n for name, n in found.items() if name not in untold}


def calls(trace, fqn, phase):
    slot = Slot(fqn, phase)
    if slot not in trace.slots:
        return 0
    return int(trace.calls[trace.slot == trace.slots.index(slot)].sum())


def spans(trace, fqn, phase):
    m = trace.slot == trace.slots.index(Slot(fqn, phase))
    return list(zip(trace.start_ns[m].tolist(), trace.end_ns[m].tolist(), trace.filled[m].tolist(), strict=True))


def codes(trace):
    return [event.code for event in trace.events]
