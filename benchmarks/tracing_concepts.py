"""What each mechanism of the tracer buys: the cost of a step, and the error of phases, with it and without it.

    python benchmarks/tracing_concepts.py [--only NAME ...] [--model NAME ...] [--pairs 6] [--seconds 2]

A pair is two sessions of equal length in one process, in turned order: with all mechanisms, and with one switched off.
Costs are of the thread's own CPU time, in programs that sleep for most of a step: the tracer sees steps of the stated
length, and the noise of matrix products, which is a hundred times its cost, is not there. What it leaves behind in the
caches of a working program is not seen either. Errors are of programs that work, against the thread's clock, read by
the loop itself around its parts. Printed are the medians of the pairs' differences, without minus with: positive
numbers are what the mechanism saves. A mechanism earns its place if it saves 40 us of a step (0.2 % of 20 ms), if
without it steps of 0.2 or 1 ms leave the budget of 1 %, or if without it phases are wrong.
"""

import argparse
import contextlib
import gc
import os
import random
import statistics
from time import perf_counter_ns, sleep, thread_time_ns
from unittest.mock import patch

os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import torch
from torch import nn

import torchwatt as tw
from torchwatt.tracing import (
    autograd_recorder,
    backward_calls,
    backward_templates,
    fast_path,
    log_rows,
    overhead_budget,
    step_controller,
    step_templates,
    tracing_policy,
)

EARNED_US = 40.0  # 0.2 % of a step of 20 ms
PHASES = ("forward", "backward", "optimizer", "other")


def linears(width, batch, layers=3, kind=torch.optim.AdamW):
    def make():
        model = nn.Sequential(*(each for _ in range(layers) for each in (nn.Linear(width, width), nn.ReLU())))
        return model, kind(model.parameters(), 1e-4), torch.randn(batch, width)

    return make


def convolutions():
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(32 * 16 * 16, 10))
    return model, torch.optim.SGD(model.parameters(), 1e-3), torch.randn(8, 3, 16, 16)


def transformer():
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    return model, torch.optim.AdamW(model.parameters()), torch.randn(4, 32, 64)


class Pause(torch.autograd.Function):
    """Sleeps, in its backward twice as long."""

    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        sleep(2 * ctx.seconds)
        return gradient, None


class Sleeper(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        return Pause.apply(x, self.seconds)


def sleeping(seconds, layers=3, kind=torch.optim.AdamW):
    """Return the maker of a model of small layers that sleeps so long in a step, a third of it forward."""

    def make():
        parts = (each for _ in range(layers) for each in (nn.Linear(8, 8), nn.ReLU()))
        model = nn.Sequential(Sleeper(seconds / 3), *parts)
        return model, kind(model.parameters(), 1e-4), torch.randn(8, 8)

    return make


def sleeping_blocks(seconds):
    def make():
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        model = nn.Sequential(Sleeper(seconds / 3), nn.TransformerEncoder(layer, 6, enable_nested_tensor=False))
        return model, torch.optim.AdamW(model.parameters()), torch.randn(1, 4, 8)

    return make


SLEEPING = {
    "0.2 ms": linears(4, 2, kind=torch.optim.SGD),
    "1 ms": sleeping(0.0007, kind=torch.optim.SGD),
    "5 ms": sleeping(0.0045),
    "20 ms": sleeping(0.0195),
    "20 ms, 6 blocks": sleeping_blocks(0.016),
    "1,000 modules": sleeping(0.001, layers=500, kind=torch.optim.SGD),
}
WORKING = {
    "0.2 ms": linears(4, 2, kind=torch.optim.SGD),
    "1 ms": linears(128, 64),
    "20 ms": linears(768, 256),
    "cnn": convolutions,
    "transformer": transformer,
    "1,000 modules": linears(8, 8, layers=500, kind=torch.optim.SGD),
}


def switched(owner, name, value):
    return lambda: patch.object(owner, name, value)


def no(*_args, **_kwargs):
    return None


MECHANISMS = {
    "nothing (noise)": contextlib.nullcontext,
    "steps by their ends": switched(overhead_budget.OverheadBudget, "must_sleep", lambda *_: False),
    "steps with bounds among them": switched(tracing_policy, "SKELETON_SHARE", 1e-9),
    "fast path of such steps": switched(fast_path.FastPath, "rest", no),
    "calls without gradients, at once": switched(step_controller.StepController, "_leave_alone", no),
    "wrapper off between traced steps": switched(overhead_budget.OverheadBudget, "narrows", lambda *_: False),
    "several steps per decision": switched(tracing_policy.TracingPolicy, "_planned", lambda *_: 1),
    "random spread of strides": switched(tracing_policy, "RELATIVE_SPREAD", 0.0),
    "a warm step traced early": switched(tracing_policy, "WARM_STEP", 1),
    "overdraft for new work": switched(overhead_budget, "OVERDRAFT", 0.0),
    "cost of cold caches": switched(tracing_policy, "COLD_EXCESS", 0.0),
    "margins measured in place": switched(autograd_recorder.MarginProbe, "margins", lambda *_: None),
    "windows read at the end": switched(backward_calls, "MOST_UNREAD", 0),
    "signatures by ids": switched(log_rows, "MOST_SIGNATURES", 2),
    "mean parts of steps": switched(step_templates, "_even_parts", lambda models: models),
    "CPU clock of noted steps": switched(step_templates, "FEW_READINGS", 1 << 40),
    "interruptions evened out": switched(backward_templates, "even_interruptions", lambda calls, _: calls),
}


def ends():
    return thread_time_ns(), perf_counter_ns()


def session(make, steps):
    """Return CPU ns a step of the last three quarters of a session, its largest error of a phase, wall ns a step."""
    model, optimizer, x = make()
    used, clock = dict.fromkeys(PHASES, 0), thread_time_ns
    gc.collect()
    with tw.profile(model) as run:
        since = clock()
        for step in range(steps):
            if step == steps // 4:
                began = ends()
            optimizer.zero_grad()
            a = clock()
            y = model(x)
            b = clock()
            loss = y.square().mean()
            c = clock()
            loss.backward()
            d = clock()
            optimizer.step()
            e = clock()
            for phase, ns in zip(PHASES, (b - a, d - c, e - d, a - since + c - b), strict=True):
                used[phase] += ns
            since = e
        cpu_ns, wall_ns = ((end - start) / (steps - steps // 4) for start, end in zip(began, ends(), strict=True))
    rows = run.layers
    rows = rows[rows.domain.str.startswith("cpu") & ~rows.fqn.isin(["(profiler)", "(setup)"])]
    joules = rows.groupby(rows.phase.where(rows.phase.isin(PHASES), "other")).energy_self_j.sum()
    total_ns, total_j = sum(used.values()), joules.sum()
    return cpu_ns, max(100 * abs(joules.get(p, 0.0) / total_j - used[p] / total_ns) for p in PHASES), wall_ns


def middle(values):
    """Return the median and its 90 % bootstrap interval."""
    medians = sorted(statistics.median(random.choices(values, k=len(values))) for _ in range(1000))
    return statistics.median(values), medians[50], medians[-50]


def compare(make, mechanism, pairs, steps):
    """Return what a mechanism saves of a step in us (median, 90 %), and the errors with and without it in points."""
    saved_us, errors = [], []
    for i in range(pairs):
        found = {}
        for without in (bool(i % 2), not i % 2):
            with mechanism() if without else contextlib.nullcontext():
                found[without] = session(make, steps)
        saved_us.append((found[True][0] - found[False][0]) / 1e3)
        errors.append((found[False][1], found[True][1]))
    return middle(saved_us), *(statistics.median(column) for column in zip(*errors, strict=True))


def show(models, asked, *, costs):
    for name in [each for each in models if asked.model is None or each in asked.model]:
        torch.manual_seed(0)
        make = models[name]
        session(make, 4)
        steps = max(round(asked.seconds * 1e9 / session(make, 40)[2]), 40)
        print(f"\n{name}, {'sleeping' if costs else 'working'}: {steps} steps a session, {asked.pairs} pairs")
        heads = f"{'us a step more':>14} {'90 %':>18}" if costs else f"{'points with':>11} {'without':>8}"
        print(f"{'without':34} {heads}")
        for each in asked.only:
            (more_us, low, high), with_it, without = compare(make, MECHANISMS[each], asked.pairs, steps)
            mark = "  saves" if costs and low > EARNED_US else ""
            cells = f"{more_us:14.1f} {f'{low:.1f} to {high:.1f}':>18}" if costs else f"{with_it:11.1f} {without:8.1f}"
            print(f"{each:34} {cells}{mark}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(MECHANISMS), default=list(MECHANISMS), metavar="NAME")
    parser.add_argument("--model", nargs="+", choices=[*SLEEPING, *WORKING])
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a session")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    show(SLEEPING, asked, costs=True)
    show(WORKING, asked, costs=False)


if __name__ == "__main__":
    main()
