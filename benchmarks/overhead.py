"""What profiling costs a training step, as ratios to the bare step measured beside it.

    python benchmarks/overhead.py [--rounds N] [--steps N]

In every round each tool runs one block of steps, in random order, and so does no tool at all; the mean step of a block
is divided by the bare block's of the same round. What the machine does besides hits both alike. `wall` is what a user
waits; `cpu` is the training thread's own CPU time, which a busy machine disturbs less but which leaves out a sampler
process. Start and stop are timed apart: they are paid once, not per step.
"""

import argparse
import contextlib
import gc
import logging
import os
import random
import statistics
import time

os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import torch
from torch import nn

import torchwatt as tw


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def transformer():
    model = nn.Sequential(nn.Embedding(256, 96), *(Block(96) for _ in range(6)), nn.Linear(96, 256))
    return model, torch.randint(0, 256, (8, 64)), lambda out: out.square().mean()


def cnn():
    layers, width = [], 3
    for out in (24, 48, 64, 64):
        layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        width = out
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4, 10))
    return model, torch.randn(16, 3, 32, 32), lambda out: out.square().mean()


@contextlib.contextmanager
def bare(_):
    yield


@contextlib.contextmanager
def sampling_only(model):
    with tw.profile(model, layers="off"):
        yield


@contextlib.contextmanager
def layers_on(model):
    with tw.profile(model):
        yield


@contextlib.contextmanager
def codecarbon_tracker(_):
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").disabled = True
    tracker = OfflineEmissionsTracker(country_iso_code="FRA", output_methods=[], log_level="critical")
    tracker.start()
    try:
        yield
    finally:
        tracker.stop()


@contextlib.contextmanager
def torch_profiler(_):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        yield


TOOLS = {
    "no profiler": bare,
    "torchwatt, sampling only": sampling_only,
    "torchwatt, layers on": layers_on,
    "codecarbon tracker": codecarbon_tracker,
    "torch.profiler": torch_profiler,
}


def block(tool, model, x, loss, optimizer, steps):
    """Return the mean step, wall and thread CPU, the time to start and the time to stop, in seconds."""
    begun = time.perf_counter()
    with tool(model):
        started = time.perf_counter()
        cpu_began = time.thread_time()
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(x)).backward()
            optimizer.step()
        # The mean, not the median step: a tool that stops the program now and then must not look free.
        cpu_s = (time.thread_time() - cpu_began) / steps
        done = time.perf_counter()
    stopped = time.perf_counter()
    return (done - started) / steps, cpu_s, started - begun, stopped - done


def table(name, make, rounds, steps):
    torch.manual_seed(0)
    model, x, loss = make()
    optimizer = torch.optim.AdamW(model.parameters())
    for tool in TOOLS.values():
        block(tool, model, x, loss, optimizer, 3)
    found = {tool: [] for tool in TOOLS}
    for _ in range(rounds):
        for tool in random.sample(list(TOOLS), len(TOOLS)):
            gc.collect()
            found[tool].append(block(TOOLS[tool], model, x, loss, optimizer, steps))
    bare_blocks = found["no profiler"]
    modules = sum(1 for _ in model.modules())
    step_ms = statistics.median(b[0] for b in bare_blocks) * 1e3
    print(f"\n{name}: {modules} modules, {step_ms:.1f} ms a step, {rounds} rounds of {steps} steps")
    print(f"{'':26} {'wall':>7} {'quartiles':>17} {'cpu':>8} {'quartiles':>17} {'start':>8} {'stop':>8}")
    for tool, blocks in found.items():
        line = f"{tool:26}"
        for i in (0, 1):
            ratios = [b[i] / bare[i] for b, bare in zip(blocks, bare_blocks, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            line += f" {middle:7.4f} {low:8.4f} {high:8.4f}"
        start_ms, stop_ms = (statistics.median(b[i] for b in blocks) * 1e3 for i in (2, 3))
        print(f"{line} {start_ms:5.0f} ms {stop_ms:5.0f} ms", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    random.seed(0)
    print("mean step with a tool / mean step without, paired by round: median and quartiles")
    table("small transformer", transformer, asked.rounds, asked.steps)
    table("CNN", cnn, asked.rounds, asked.steps)


if __name__ == "__main__":
    main()
