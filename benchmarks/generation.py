"""Generation under torchwatt: what a decode step costs, and whether the latencies are those of a stopwatch.

    python benchmarks/generation.py [--pairs 12] [--calls 4] [--tokens 48] [--width 384] [--batch 4]

A random Llama generates with transformers' `generate`, in blocks of some calls, bare and in a session by turns (ABBA).
The first table is the ratio of a block with torchwatt to the bare block beside it, as the median over the pairs with
its 90 % bootstrap interval: of the thread's CPU time and of wall time, for one decode step and for the time to the
first token. Both are read by a stopwatch of the benchmark, which is a forward hook on the model: from the call of
`generate` to the end of its first pass, and from there to the end of the last one. The second table sets what
`run.generation` says of a session beside that stopwatch in the same session.
"""

import argparse
import gc
import os
import random
import statistics
import time
from dataclasses import dataclass, field

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

import torchwatt as tw

BOOTSTRAPS = 2_000
BUDGET = 0.01  # the default of `overhead_budget`


@dataclass
class Block:
    """Milliseconds of one block, a mean over its calls; those of the report are None without torchwatt."""

    step: float
    step_cpu: float
    first: float
    reported_first: float | None = None
    reported_step: float | None = None
    booked: float | None = None


@dataclass
class Stopwatch:
    """Notes the end of each forward pass."""

    wall_s: list = field(default_factory=list)
    cpu_s: list = field(default_factory=list)

    def __call__(self, *_):
        self.wall_s.append(time.perf_counter())
        self.cpu_s.append(time.thread_time())


def llama(width, layers, tokens):
    config = transformers.LlamaConfig(
        vocab_size=4000, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=6, max_position_embeddings=1024, pad_token_id=0, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.generation_config.min_new_tokens = model.generation_config.max_new_tokens = tokens
    return model


def calls(model, ids, n):
    """Generate n times; return wall time to the first token, wall and CPU time of a decode step, in milliseconds."""
    firsts, steps, steps_cpu = [], [], []
    for _ in range(n):
        watch = Stopwatch()
        handle = model.register_forward_hook(watch)
        begun_s = time.perf_counter()
        model.generate(ids, do_sample=False)
        handle.remove()
        firsts.append(watch.wall_s[0] - begun_s)
        steps.append((watch.wall_s[-1] - watch.wall_s[0]) / (len(watch.wall_s) - 1))
        steps_cpu.append((watch.cpu_s[-1] - watch.cpu_s[0]) / (len(watch.cpu_s) - 1))
    return [1e3 * statistics.fmean(each) for each in (firsts, steps, steps_cpu)]


def bare(model, ids, n):
    gc.collect()
    first, step, step_cpu = calls(model, ids, n)
    return Block(step, step_cpu, first)


def profiled(model, ids, n):
    gc.collect()
    with tw.profile(model) as run:
        first, step, step_cpu = calls(model, ids, n)
    told = run.generation["all"]
    booked = run.report.tracing_cost_s / run.report.duration_s
    return Block(step, step_cpu, first, told["time_to_first_token"], told["inter_token_latency"], booked)


def interval(ratios):
    """Return the median and the 90 % bootstrap interval of the median."""
    medians = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(BOOTSTRAPS))
    return statistics.median(ratios), medians[BOOTSTRAPS // 20], medians[-BOOTSTRAPS // 20]


def line(name, ratios, note=""):
    middle, low, high = interval(ratios)
    print(f"{name:44} {middle:7.4f} [{low:.4f}, {high:.4f}]{note}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--calls", type=int, default=4, help="of generate in a block")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=4)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    model = llama(asked.width, asked.layers, asked.tokens)
    ids = torch.randint(3, 4000, (asked.batch, asked.prompt))
    profiled(model, ids, 1)  # first uses load libraries
    pairs = []
    for i in range(asked.pairs):
        order = (bare, profiled) if i % 4 in {0, 3} else (profiled, bare)
        blocks = [each(model, ids, asked.calls) for each in order]
        pairs.append(blocks if order[0] is bare else blocks[::-1])
    plain, with_us = zip(*pairs, strict=True)
    modules = sum(1 for _ in model.modules())
    print(f"{modules} modules, batch {asked.batch}, prompt {asked.prompt}, {asked.pairs} pairs of {asked.calls} calls")
    step, first = (statistics.median(getattr(each, name) for each in plain) for name in ("step", "first"))
    print(f"bare: {step:.2f} ms a decode step, {first:.2f} ms to the first token\n")
    print(f"{'with torchwatt / bare':44} {'median':>7} 90 %")
    for name, column in (("decode step, thread CPU", "step_cpu"), ("decode step, wall", "step")):
        line(name, [getattr(b, column) / getattr(a, column) for a, b in pairs], f"  budget {1 + BUDGET}")
    line("time to first token, wall", [b.first / a.first for a, b in pairs])
    print(f"booked by torchwatt itself: {statistics.median(each.booked for each in with_us):.4f} of the run\n")
    print(f"{'run.generation / stopwatch':44} {'median':>7} 90 %")
    line("time_to_first_token", [each.reported_first / each.first for each in with_us])
    line("inter_token_latency", [each.reported_step / each.step for each in with_us])


if __name__ == "__main__":
    main()
