"""What one window costs: preparing, starting, stopping and exporting the recorder around a step, in ms."""

import time

import torch
from models import language

from torchwatt.tracing.device_windows import WindowRecorder
from torchwatt.tracing.overhead_budget import OverheadBudget
from torchwatt.tracing.step_events import StepClocks

WINDOWS, BETWEEN = 6, 6


def timed(call, *args):
    began = time.perf_counter()
    call(*args)
    return (time.perf_counter() - began) * 1e3


def stepped(step, steps):
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) * 1e3 / steps


def main():
    import tempfile
    from pathlib import Path

    _model, step = language("cuda")
    stepped(step, 10)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    path = Path(tempfile.mkdtemp()) / "trace.json"
    print("prepare, start, stop, export | a step inside, outside")
    for _ in range(WINDOWS):
        outside = stepped(step, BETWEEN)
        recorder = WindowRecorder(time.monotonic_ns, torch.cuda.synchronize, activities)
        costs = [timed(recorder.prepare)]
        step()
        torch.cuda.synchronize()
        costs.append(timed(recorder.start))
        inside = stepped(step, 1)
        costs += [timed(recorder.stop), timed(recorder.export, path)]
        print(", ".join(f"{cost:7.1f}" for cost in costs), f"| {inside:6.2f}, {outside:6.2f}", path.stat().st_size)
    clocks, budget = StepClocks(time.monotonic_ns), OverheadBudget(1.0, 0)
    costs = [timed(clocks.ended, "bench", budget, 4e7) * 1e3 for _ in range(2_000)]
    costs.sort()
    print(f"a stamp: median {costs[1000]:.1f} us, 99th percentile {costs[1980]:.1f} us")


if __name__ == "__main__":
    main()
