"""The profiler's own work beside the program's is booked to `(profiler)`, and to nothing else.

The clock stands still but for the work of the program and for each reading, which takes long: so the profiler's work
is large, and where it is booked does not depend on the machine.
"""

import numpy as np
import pytest
import torch
from torch import nn

from tests.tracing.nets import traced
from torchwatt.core.terms import PROFILER
from torchwatt.tracing import module_wrappers
from torchwatt.tracing.patches import sequence_nr
from torchwatt.tracing.thread_log import ThreadLog

MS = 1_000_000
READING_NS = 10 * MS  # the margins of torch's own work are real, and far shorter
WORK_NS = {
    "forward": 1_000 * MS, "backward": 2_000 * MS, "optimizer": 500 * MS, "data": 400 * MS, "other": 300 * MS,
}  # fmt: skip
TRAINING = ("forward", "backward", "optimizer", "other")
STEPS = 12
SPANS = 3  # in each step
MOST_READINGS = {"other": SPANS + 2.0}  # per step, that lie on the wrong side of a bound; of the other phases 1.1


class SlowClock:
    def __init__(self, reading_ns=READING_NS, part=1):
        self.now_ns, self.reading_ns, self.part = 0, reading_ns, part

    def __call__(self):
        self.now_ns += self.reading_ns
        return self.now_ns

    def works(self, phase):
        self.now_ns += WORK_NS[phase] // self.part


class Timed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, clock):
        ctx.clock = clock
        clock.works("forward")
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.clock.works("backward")
        return gradient, None


class Net(nn.Module):
    def __init__(self, clock):
        super().__init__()
        self.weight, self.clock = nn.Parameter(torch.ones(4)), clock

    def forward(self, x):
        return Timed.apply(x * self.weight, self.clock)


class TimedSGD(torch.optim.SGD):
    def step(self, closure=None):
        self.param_groups[0]["clock"].works("optimizer")
        return super().step(closure)


def shares_of_time(trace):
    """Return ns by phase of all that lies between the first span and the last; gaps between spans are `other`."""
    order = np.lexsort((-trace.end_ns, trace.start_ns))
    found, until_ns = dict.fromkeys((*WORK_NS, PROFILER), 0), None
    for slot, start, end in zip(
        *(column[order].tolist() for column in (trace.slot, trace.start_ns, trace.end_ns)), strict=True
    ):
        if until_ns is not None and start > until_ns:
            found["other"] += start - until_ns
        of = trace.slots[slot]
        if until_ns is None or end > until_ns:  # the outermost spans only
            found[PROFILER if of.fqn == PROFILER else of.phase] += end - max(start, until_ns or start)
            until_ns = end
    return found


@pytest.mark.parametrize("budget", [0.0, 1.0], ids=["bounds only", "every call"])
def test_profiler_work_beside_calls_is_no_work_of_the_program(budget):
    clock = SlowClock()
    net = Net(clock)
    torch.optim.SGD(net.parameters(), 1e-3)  # from now on torch runs its hooks in `super().step()`, too
    optimizer = TimedSGD([{"params": [net.weight], "clock": clock}], lr=1e-3)
    with traced(net, overhead_budget=budget, windows=False, clock_ns=clock) as run:
        for _ in range(STEPS):
            y = net(torch.ones(4))
            clock.works("other")
            y.sum().backward()
            optimizer.step()
    found = shares_of_time(run.trace)
    for phase in TRAINING:
        # A reading that begins or ends a piece of work lies on one side of it.
        more_ns = found[phase] - STEPS * WORK_NS[phase]
        readings = more_ns / READING_NS / STEPS
        assert -0.1 <= readings <= MOST_READINGS.get(phase, 1.1), (phase, readings)
    assert found[PROFILER] >= STEPS * SPANS * READING_NS


class Batches(torch.utils.data.Dataset):
    def __init__(self, clock, number):
        self.clock, self.number = clock, number

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        if index >= self.number:
            raise IndexError
        self.clock.works("data")
        return torch.ones(4)


@pytest.mark.parametrize("loaded", [False, True], ids=["calls alone", "with data"])
def test_profiler_work_around_calls_that_are_answered_is_no_work_of_the_program(loaded, monkeypatch):
    clock, calls, part = SlowClock(reading_ns=0, part=1_000), 3_000, 1_000
    net, batches, number = Net(clock), Batches(clock, calls), sequence_nr

    def slow_number():  # all of the profiler's work
        clock.now_ns += READING_NS // part
        return number()

    monkeypatch.setattr(module_wrappers, "sequence_nr", slow_number)
    with torch.no_grad(), traced(net, overhead_budget=1e-4, windows=False, clock_ns=clock) as run:
        for x in torch.utils.data.DataLoader(batches, batch_size=None) if loaded else [torch.ones(4)] * calls:
            net(x)
            clock.works("other")
    found = shares_of_time(run.trace)
    for phase in ("forward", "other", *(["data"] if loaded else [])):
        # The first calls come before any measurement.
        assert found[phase] == pytest.approx(calls * WORK_NS[phase] / part, rel=0.001), phase
    assert found[PROFILER] > calls * READING_NS / part


@pytest.mark.parametrize("budget", [0.0, 1.0], ids=["bounds only", "every call"])
def test_profiler_work_beside_batches_of_data_is_no_work_of_the_program(budget, monkeypatch):
    clock = SlowClock()
    net, read_cpu = Net(clock), ThreadLog.read_cpu

    def slow_reading(log, t_ns):
        clock.now_ns += 5 * READING_NS
        read_cpu(log, t_ns)

    monkeypatch.setattr(ThreadLog, "read_cpu", slow_reading)
    with torch.no_grad(), traced(net, overhead_budget=budget, windows=False, clock_ns=clock) as run:
        for x in torch.utils.data.DataLoader(Batches(clock, STEPS), batch_size=None):
            net(x)
            clock.works("other")
    found = shares_of_time(run.trace)
    for phase in ("forward", "data", "other"):
        readings = (found[phase] - STEPS * WORK_NS[phase]) / READING_NS / (STEPS + 2)  # the loader begins and ends
        assert -0.1 <= readings <= (4.5 if phase == "other" else 1.1), (phase, readings)


@pytest.mark.parametrize("budget", [1.0, 1e-9])
def test_an_interrupt_before_a_backward_call_is_logged_stays_an_interrupt(budget, monkeypatch):
    net = nn.Linear(4, 4)
    with traced(net, overhead_budget=budget):
        loss = net(torch.randn(2, 4)).sum()

        def interrupted(log):
            raise KeyboardInterrupt

        monkeypatch.setattr(ThreadLog, "takes_reducers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loss.backward()
