"""What profiling costs a step, as ratios to bare steps measured right beside it.

    python benchmarks/overhead.py [--quick] [--model NAME ...] [--tool NAME ...] [--pairs N] [--steps N | --seconds S]
    python benchmarks/overhead.py --model "0.2 ms" "1 ms" "5 ms" "20 ms" --tool "layers on" --seconds 3

Everything runs in one process. A tool's block of steps is one session of it, from its first step to its last; its
neighbour is a block of bare steps, before or after it by turns (ABBA), so that a drift of the machine hits both alike.
A pair's ratio is that of the mean steps of its two blocks: a tool that stops the program now and then does not look
free. Printed are the median ratio over the pairs and its 90 % bootstrap interval, of the thread's own CPU time, which a
busy machine disturbs less but which leaves out other processes, and of wall time. Start and stop are paid once and lie
outside the blocks: they have a line of their own. `booked` is what the tool itself says that it cost, `(profiler)` the
share of the run's energy in that row of its report. Where even the low end of both intervals is above the budget, the
line ends in `beyond`.
"""

import argparse
import contextlib
import gc
import logging
import os
import random
import statistics
import time
from dataclasses import dataclass

os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import torch
from performance.models import Block, training, transformer
from torch import nn

import torchwatt as tw

BOOTSTRAPS = 2_000


def cnn():
    layers, width = [], 3
    for out in (24, 48, 64, 64):
        layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        width = out
    return training(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4, 10)), torch.randn(16, 3, 32, 32))


def inference():
    model = nn.Sequential(nn.Embedding(256, 96), *(Block(96) for _ in range(12)), nn.Linear(96, 256)).eval()
    x = torch.randint(0, 256, (8, 64))

    def step():
        with torch.no_grad():
            model(x)

    return model, step


def perceptron(width, batch):
    """Return a trainer of three Linears whose step takes the time that its name in `MODELS` says, on one quiet core."""

    def make():
        layers = (nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        return training(nn.Sequential(*layers), torch.randn(batch, width), foreach=True)

    return make


@contextlib.contextmanager
def bare(_):
    yield None


def torchwatt(**options):
    @contextlib.contextmanager
    def tool(model):
        with tw.profile(model, **options) as run:
            yield run

    return tool


@contextlib.contextmanager
def codecarbon_tracker(_):
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").disabled = True
    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA", output_methods=[], log_level="critical", allow_multiple_runs=True
    )
    tracker.start()
    try:
        yield None
    finally:
        tracker.stop()


@contextlib.contextmanager
def torch_profiler(_):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        yield None


def shortest():
    """Return a trainer of three modules with plain SGD: Python is all there is."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)), torch.randn(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()

    return model, step


def by_hand(width, batch):
    """Return a trainer without an optimizer."""

    def make():
        model, x = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)), torch.randn(batch, width)

        def step():
            model.zero_grad()
            model(x).square().mean().backward()
            with torch.no_grad():
                for p in model.parameters():
                    p.sub_(p.grad, alpha=1e-4)

        return model, step

    return make


def answers(width, batch, layers=3):
    """Return what only calls its model, without gradients."""

    def make():
        linears = [each for _ in range(layers) for each in (nn.Linear(width, width), nn.ReLU())]
        model, x = nn.Sequential(*linears).eval(), torch.randn(batch, width)

        def step():
            with torch.no_grad():
                model(x).argmax(dim=-1)

        return model, step

    return make


MODELS = {
    "transformer": transformer,
    "cnn": cnn,
    "inference": inference,
    "0.2 ms": shortest,
    "1 ms": perceptron(128, 64),
    "5 ms": perceptron(384, 128),
    "20 ms": perceptron(768, 256),
    "by hand, 0.2 ms": by_hand(16, 8),
    "by hand, 1 ms": by_hand(192, 64),
    "by hand, 5 ms": by_hand(512, 128),
    "by hand, 20 ms": by_hand(1024, 256),
    "inference, 0.1 ms": answers(32, 8),
    "inference, 0.2 ms": answers(32, 8, layers=9),
    "inference, 1 ms": answers(256, 96),
    "inference, 5 ms": answers(512, 160),
    "inference, 20 ms": answers(1024, 192),
}
BY_LENGTH = [name for name in MODELS if name.endswith(" ms")]  # of a step
BUDGETS = {"layers on": 0.01, "layers, budget 0.001": 0.001}
TOOLS = {
    "no profiler (noise)": bare,
    "sampling only": torchwatt(layers="off"),
    **{name: torchwatt(overhead_budget=budget) for name, budget in BUDGETS.items()},
    "codecarbon tracker": codecarbon_tracker,
    "torch.profiler": torch_profiler,
}


@dataclass
class Timed:
    cpu_s: float  # of the thread, per step
    wall_s: float  # per step
    start_s: float
    stop_s: float
    booked: float | None
    profiler: float | None  # share of the run's joules


def block(tool, model, step, steps):
    gc.collect()
    begun = time.perf_counter()
    with tool(model) as run:
        started, cpu_began = time.perf_counter(), time.thread_time_ns()
        for _ in range(steps):
            step()
        cpu_ns, done = time.thread_time_ns() - cpu_began, time.perf_counter()
    stopped = time.perf_counter()
    cost_s = run.report.tracing_cost_s if run is not None else None
    booked = None if cost_s is None else cost_s / (done - started)
    timed = cpu_ns / 1e9 / steps, (done - started) / steps, started - begun, stopped - done
    return Timed(*timed, booked, None if run is None else profiler_share(run))


def profiler_share(run):
    rows = run.layers
    return rows[rows.fqn == "(profiler)"].energy_self_j.sum() / run.energy_j


def interval(ratios):
    """Return the median and the 90 % bootstrap interval of the median."""
    medians = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(BOOTSTRAPS))
    return statistics.median(ratios), medians[BOOTSTRAPS // 20], medians[-BOOTSTRAPS // 20]


def measure(tool, model, step, pairs, steps, progress):
    found = []
    for i in range(pairs):
        order = (bare, tool) if i % 4 in {0, 3} else (tool, bare)
        blocks = [block(each, model, step, steps) for each in order]
        found.append(tuple(blocks if order[0] is bare else reversed(blocks)))
        if progress:
            print(f"    pair {i}: bare {found[-1][0].cpu_s * 1e3:.2f} ms, tool {found[-1][1].cpu_s * 1e3:.2f} ms CPU")
    return found


def line(name, found):
    cells, lows = [f"{name:22}"], []
    for column in ("cpu_s", "wall_s"):
        middle, low, high = interval([getattr(tool, column) / getattr(plain, column) for plain, tool in found])
        cells.append(f"{middle:8.4f} [{low:.4f}, {high:.4f}]")
        lows.append(low)
    for column in ("booked", "profiler"):
        shares = [getattr(tool, column) for _, tool in found if getattr(tool, column) is not None]
        cells.append(f"{statistics.median(shares):10.4f}" if shares else f"{'':10}")
    if name in BUDGETS:
        cells.append(f"{BUDGETS[name]:8.3f}" + ("  beyond" if min(lows) > 1 + BUDGETS[name] else ""))
    start, stop = (statistics.median(getattr(tool, c) for _, tool in found) * 1e3 for c in ("start_s", "stop_s"))
    return "  ".join(cells), f"{name:22}  start {start:6.0f} ms, stop {stop:6.0f} ms"


def table(name, asked):
    torch.manual_seed(0)
    model, step = MODELS[name]()
    chosen = {tool: TOOLS[tool] for tool in asked.tool}
    for tool in chosen.values():
        block(tool, model, step, 3)  # first uses load libraries
    steps = asked.steps if asked.seconds is None else round(asked.seconds / block(bare, model, step, 20).wall_s)
    # Tools take turns, so that a quiet minute of the machine is not one tool's alone.
    found = {tool: [] for tool in chosen}
    rounds = max(asked.pairs // 4, 1)
    for _ in range(rounds):
        for tool in random.sample(list(chosen), len(chosen)):
            pairs = asked.pairs // rounds
            found[tool] += measure(chosen[tool], model, step, pairs, steps, asked.verbose)
    plain = [pair[0] for pairs in found.values() for pair in pairs]
    step_ms = statistics.median(each.wall_s for each in plain) * 1e3
    modules = sum(1 for _ in model.modules())
    print(f"\n{name}: {modules} modules, {step_ms:.2f} ms a bare step, {asked.pairs} pairs of {steps} steps")
    columns = f"{'booked':>10}  {'(profiler)':>10}  {'budget':>8}"
    print(f"{'':22}  {'thread CPU':>8} {'90 %':<18} {'wall':>7} {'90 %':<18} {columns}")
    lines = [line(tool, pairs) for tool, pairs in found.items()]
    for ratios, _ in lines:
        print(ratios)
    for _, edges in lines:
        print(edges, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 pairs of 30 steps: to see that it runs")
    parser.add_argument(
        "--model", nargs="+", choices=list(MODELS), default=[name for name in MODELS if name not in BY_LENGTH]
    )
    parser.add_argument("--tool", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, help="of each block, in place of --steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="print every pair")
    asked = parser.parse_args()
    if asked.quick:
        asked.pairs, asked.steps = 2, 30
    torch.set_num_threads(asked.threads)
    random.seed(0)
    print("mean step with a tool / mean bare step beside it: median over pairs [90 % bootstrap interval]")
    for name in asked.model:
        table(name, asked)


if __name__ == "__main__":
    main()
