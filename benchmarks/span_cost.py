"""What tracing costs: one module call in the wrapper, one window of backward.

Paired and interleaved: with and without alternate, and the median of the differences is printed.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from torchwatt.tracing import Tracer


class Empty(nn.Module):
    def forward(self):
        return None


def timed(function, n):
    start = time.perf_counter_ns()
    for _ in range(n):
        function()
    return (time.perf_counter_ns() - start) / n


def differences(function, n, rounds, **options):
    """Yield (without, with) in ns per call; the session is fresh in each round."""
    for _ in range(rounds):
        without = timed(function, n)
        tracer = Tracer(overhead_budget=1.0, **options)  # every step is traced, whatever it costs
        tracer.start()
        function()
        traced = timed(function, n)
        tracer.stop()
        yield without, traced


def show(name, pairs, per=1, unit="us"):
    scale = {"us": 1e3, "ms": 1e6}[unit]
    gaps = [(b - a) / per / scale for a, b in pairs]
    low, mid, high = statistics.quantiles(gaps, n=10)[0], statistics.median(gaps), statistics.quantiles(gaps, n=10)[-1]
    print(f"{name:<58} {mid:8.2f} {unit}  (10 % {low:.2f}, 90 % {high:.2f})")


def network(depth, width=64):
    return nn.Sequential(
        *[nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth)], nn.Linear(width, 1)
    )


def windows(net, x, n):
    """Yield what each window says that it cost, in ms, and how much longer its backward took."""
    from torchwatt.tracing.scope import ACTIVE

    for _ in range(n):
        tracer = Tracer(net, overhead_budget=1.0)
        tracer.start()
        for _ in range(4):
            net(x).sum().backward()
        calls = ACTIVE.hub.logs[0].backwards
        plain, seen = calls[0], [c for c in calls if c.nodes is not None]
        for call in seen:
            slower = (call.end_ns - call.start_ns) - (plain.end_ns - plain.start_ns)
            yield call.cost_ns / 1e6, slower / 1e6, len(call.nodes.nodes().seq)
        tracer.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, {rounds} rounds")
    empty = Empty()
    show("empty module, hot loop, per call", list(differences(empty, 2000, rounds)))
    net, x = network(40), torch.randn(16, 64)
    per = sum(1 for _ in net.modules())
    with torch.no_grad():
        show(f"forward of {per} modules, per module call", list(differences(lambda: net(x), 20, rounds)), per=per)

    def step():
        net(x).sum().backward()

    pairs = list(differences(step, 20, rounds, windows=False))
    show("forward and backward, no windows, per module call", pairs, per=per)
    print(f"{'  of a step of':<58} {statistics.median(a for a, _ in pairs) / 1e6:8.2f} ms")
    for depth in (40, 110):
        found = list(windows(network(depth), x, rounds // 4))
        cost, slower, nodes = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{f'window on {nodes:.0f} autograd nodes, booked':<58} {cost:8.2f} ms")
        print(f"{'  and its backward took longer by':<58} {slower:8.2f} ms")
    tracer = Tracer()
    tracer.start()
    print(f"{'per-call cost the tracer books (calibrated, doubled)':<58} {tracer._hub.costs.call_ns / 1e3:8.2f} us")
    tracer.stop()


if __name__ == "__main__":
    main()
