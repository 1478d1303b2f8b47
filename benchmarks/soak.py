"""Does memory stay flat? A training loop under `profile()` for many minutes.

    python benchmarks/soak.py [--minutes 30] [--width 32] [--every 60]

Minutes count while the loop runs: a machine that stops it for a while only makes it end later.

Prints the resident memory of this process and of the sampler now and then, and how much tracing keeps; of this process
also what it holds for itself (`private`: the rest is libraries' files and memory shared with the sampler), where the
system tells. In the end the slopes over the second half of the run. Small steps by default: the more steps a second,
the more there is to keep. With `--bare` the same loop runs without a session: what it grows by, torch grows by.
"""

import argparse
import os
import time
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import psutil
import torch
from torch import nn

import torchwatt as tw
from torchwatt.tracing.scope import ACTIVE


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)

    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(x)))


def mib(process):
    return process.memory_info().rss / 2**20


def private_mib():
    """Return the resident memory that nobody shares, or NaN where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), float("nan"))


def kept():
    """Return rows, backward calls, records and step marks that the hub keeps."""
    logs = ACTIVE.hub.logs if ACTIVE.hub is not None else ()
    return (
        sum(log.total() for log in logs),
        sum(len(log.backwards) for log in logs),
        sum(len(log._records) for log in logs),
        sum(len(log.ends) + sum(len(marks.entries()) for marks in log.marks.values()) for log in logs),
    )


LONGEST_STEP_S = 1.0  # beyond, the loop stood still


def slope(points):
    """Return the least-squares slope in MiB a minute."""
    n = len(points)
    mean_t, mean_y = sum(t for t, _ in points) / n, sum(y for _, y in points) / n
    square = sum((t - mean_t) ** 2 for t, _ in points)
    return sum((t - mean_t) * (y - mean_y) for t, y in points) / square if square else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two lines")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--overhead-budget", type=float, default=0.01)
    parser.add_argument("--layers", choices=["on", "off"], default="on")
    parser.add_argument("--bare", action="store_true", help="no session: the loop alone")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = nn.Sequential(*[Block(asked.width) for _ in range(asked.depth)], nn.Linear(asked.width, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    x = torch.randn(16, asked.width)
    me = psutil.Process()
    points, private_points, sampler_points, steps = [], [], [], 0
    print(f"{'minute':>7} {'steps':>9} {'MiB':>8} {'private':>8} {'sampler':>8}  rows, calls, records, marks kept")
    session = tw.profile(model, overhead_budget=asked.overhead_budget, layers=asked.layers)
    with nullcontext() if asked.bare else session as run:
        last, ran_s, shown_s = time.monotonic(), 0.0, 0.0
        while ran_s < asked.minutes * 60:
            now = time.monotonic()
            ran_s, last = ran_s + min(now - last, LONGEST_STEP_S), now
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            steps += 1
            if ran_s - shown_s >= asked.every:
                shown_s, minute = ran_s, ran_s / 60
                sampler = sum(mib(child) for child in me.children(recursive=True))
                points.append((minute, mib(me)))
                private_points.append((minute, private_mib()))
                sampler_points.append((minute, sampler))
                what = ", ".join(map(str, kept()))
                sizes = f"{points[-1][1]:8.1f} {private_points[-1][1]:8.1f} {sampler:8.1f}"
                print(f"{minute:7.2f} {steps:9} {sizes}  {what}", flush=True)
        before_stop = mib(me)
        begun = time.monotonic()
    whole, private, sampler = (slope(each[len(each) // 2 :]) for each in (points, private_points, sampler_points))
    print(f"slope over the second half: {whole:+.3f} MiB a minute, private {private:+.3f}, sampler {sampler:+.3f}")
    if run is None:
        return
    print(f"stop took {time.monotonic() - begun:.2f} s and {mib(me) - before_stop:+.1f} MiB for {steps} steps")
    report = run.report
    total = sum(ledger.energy_j for ledger in report.ledgers)
    booked = sum(entry.energy_self_j for ledger in report.ledgers for entry in ledger.entries)
    print(f"booked {booked!r} J of {total!r} J; tracing cost {report.tracing_cost_s} s; {len(report.steps)} step rows")
    for event in report.events:
        print(f"  {event.severity} {event.code}: {event.message}")


if __name__ == "__main__":
    main()
