"""Rows against CUDA events where paths depend on data and where steps are short: experts, and a step of 1 ms.

    python benchmarks/gpu/experts.py OUT [--device cuda] [--seconds 40]

Two trainings under `profile()`. The program records an event on the device's stream before and after each part of a
step and each call of an expert, and counts calls and steps itself. Sizes are such that the device and not the host is
what a step waits for: then the time between two events is the time that the device worked. `--device cpu` runs the
same with a clock of the host in place of events, smaller; it tests this script and says nothing about a GPU.

For each part: percent of the time by events, percent of the rows' time and of their joules, and calls.
"""

import argparse
import time
from collections import Counter, defaultdict
from pathlib import Path

import torch
from torch import nn

import torchwatt as tw

PHASES = ("forward", "backward", "optimizer")
MOST_OPEN = 4_000  # pairs of events that wait to be read
GOAL_POINTS, WARM_UP_STEPS = 5.0, 10


class Clock:
    """Seconds of named parts between two calls, on the stream of a CUDA device, or of the host."""

    def __init__(self, device):
        self.cuda = device == "cuda"
        self.seconds, self.calls = defaultdict(float), Counter()
        self._open, self._spare = [], []

    def instant(self):
        if not self.cuda:
            return time.perf_counter()
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, part, since):
        self.calls[part] += 1
        self._open.append((part, since, self.instant()))
        if len(self._open) >= MOST_OPEN:
            self.read()

    def read(self):
        """Add up what was noted; waits for the device."""
        if self.cuda:
            torch.cuda.synchronize()
        for part, since, until in self._open:
            self.seconds[part] += since.elapsed_time(until) / 1e3 if self.cuda else until - since
            self._spare += [since, until] if self.cuda else []
        self._open.clear()

    def timed(self, part, call):
        """Return a call that is timed as this part."""

        def timed(*args):
            since = self.instant()
            result = call(*args)
            self.add(part, since)
            return result

        return timed


class Experts(nn.Module):
    """Sends each token to one of several experts: the first takes most, and the last is not called in every step."""

    def __init__(self, width, count):
        super().__init__()
        self.router = nn.Linear(width, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(count)
        )

    def forward(self, x, choice):
        gate = self.router(x).softmax(-1)
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            tokens = (choice == index).nonzero().squeeze(-1)
            if len(tokens):
                y = y.index_add(0, tokens, expert(x[tokens]) * gate[tokens, index : index + 1])
        return x + y


class Routed(nn.Module):
    """A few layers of experts below one head."""

    def __init__(self, width, depth, count, classes=64):
        super().__init__()
        self.layers = nn.ModuleList(Experts(width, count) for _ in range(depth))
        self.head = nn.Linear(width, classes)

    def forward(self, x, choice):
        for layer in self.layers:
            x = layer(x, choice)
        return self.head(x)


def routed(device):
    """Return the model of experts, its inputs, and its experts by name."""
    width, tokens, count = (1024, 16_384, 6) if device == "cuda" else (64, 256, 6)
    model = Routed(width, 2, count).to(device)
    x, y = torch.randn(tokens, width, device=device), torch.randint(0, 64, (tokens,), device=device)
    often = torch.tensor([0.5, 0.25, 0.15, 0.08, 0.02, 0.5 / tokens], device=device)

    def given():
        return x, often.multinomial(tokens, replacement=True)

    names = {
        f"layers.{i}.experts.{j}": each for i, layer in enumerate(model.layers) for j, each in enumerate(layer.experts)
    }
    return model, given, y, names


def short(device):
    """Return a model whose step takes about 1 ms, its input, and its layers by name."""
    width, rows = (2048, 4096) if device == "cuda" else (96, 64)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 64))
    model = model.to(device, dtype=torch.bfloat16 if device == "cuda" else None)
    x = torch.randn(rows, width, device=device, dtype=next(model.parameters()).dtype)
    y = torch.randint(0, 64, (rows,), device=device)
    return model, lambda: (x,), y, {"0": model[0], "2": model[2]}


def trained(title, device, seconds, made):
    """Train under `profile()`; return the run, the clock of the program, and its steps."""
    model, given, y, parts = made
    clock, steps = Clock(device), 0
    options = {"fused": True} if device == "cuda" else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, **options)

    def step():
        inputs = given()
        since = clock.instant()
        result = model(*inputs)
        clock.add("forward", since)
        loss = nn.functional.cross_entropy(result.float(), y)
        clock.timed("backward", loss.backward)()
        clock.timed("optimizer", optimizer.step)()
        optimizer.zero_grad()

    for _ in range(WARM_UP_STEPS):
        step()
    for name, module in parts.items():
        module.forward = clock.timed(name, module.forward)
    clock.read()
    clock.seconds.clear()
    clock.calls.clear()
    with tw.profile(model, name=title) as run:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            step()
            steps += 1
        clock.read()
    return run, clock, steps


def compare(run, clock, steps, device):
    """Print each part by events and by rows; return the parts whose time is beyond the goal, or whose calls differ."""
    rows = run.layers[run.layers["domain"].str.startswith("gpu" if device == "cuda" else "cpu")]
    if rows.empty:
        print("    no rows of this device")
        return ["no rows"]
    found = {phase: rows[rows["phase"] == phase] for phase in PHASES}
    total_s = sum(clock.seconds[phase] for phase in PHASES)
    total_row_s, total_j = (sum(found[p][of].sum() for p in PHASES) for of in ("time_self_s", "energy_self_j"))
    forward = found["forward"]
    beyond = []
    counted = int(run.steps["steps"].sum())
    print(f"    steps {counted} for {steps}, {total_s / steps * 1e3:.3f} ms of parts a step by events")
    if counted != steps:
        beyond.append("steps")
    print(f"    {'part':22} {'events':>8} {'rows':>8} {'points':>7} {'joules':>8}   calls, true and in the rows")
    for part, seconds in clock.seconds.items():
        inside = found.get(part, forward[(forward["fqn"] == part) | forward["fqn"].str.startswith(f"{part}.")])
        true, told = 100 * seconds / total_s, 100 * inside["time_self_s"].sum() / total_row_s
        own = forward[forward["fqn"] == part]["calls"]
        calls = "-" if part in PHASES else f"{clock.calls[part]} {'-' if own.isna().any() else int(own.sum())}"
        mark = "  <--" if abs(told - true) > GOAL_POINTS else ""
        share = 100 * inside["energy_self_j"].sum() / total_j
        print(f"    {part:22} {true:6.1f} % {told:6.1f} % {told - true:+7.1f} {share:6.1f} %   {calls}{mark}")
        wrong = part not in PHASES and not own.isna().any() and int(own.sum()) != clock.calls[part]
        beyond += [part] if mark or wrong else []
    for event in run.report.events:
        print(f"    {event.severity} {event.code} {event.subject}: {event.message}")
    return beyond


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each of the two trainings")
    asked = parser.parse_args()
    torch.manual_seed(0)
    for title, make in (("experts", routed), ("1 ms", short)):
        print(f"{title}:", flush=True)
        run, clock, steps = trained(title, asked.device, asked.seconds, make(asked.device))
        beyond = compare(run, clock, steps, asked.device)
        print(f"    beyond {GOAL_POINTS:g} points, or counted wrongly: {', '.join(beyond) or 'nothing'}", flush=True)
        run.layers.to_csv(asked.out / f"{title.replace(' ', '-')}-layers.csv")


if __name__ == "__main__":
    main()
