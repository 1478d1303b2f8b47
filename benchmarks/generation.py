"""Generation under torchwatt: what a decode step costs, and whether the latencies are those of a stopwatch.

    python benchmarks/generation.py [--rounds 12] [--calls 20] [--tokens 48] [--width 384] [--batch 4]

A random Llama generates with transformers' `generate`, in blocks of some calls: bare, in a session, bare. The first
table is the ratio of the block with torchwatt to the mean of its two neighbours, as the median over the rounds with its
90 % bootstrap interval: of the thread's CPU time and of wall time, for one decode step and for the time to the first
token. `noise` is the second neighbour to the first, which says what the machine does by itself. Times are those of a
stopwatch of the benchmark, which is a streamer: `generate` gives it each token when it is sampled. The second table
sets what `run.generation` says of a session beside that stopwatch in the same session.
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
    """Notes when each token was sampled; a streamer, which gets the prompt first."""

    wall_s: list = field(default_factory=list)
    cpu_s: list = field(default_factory=list)

    def put(self, _):
        self.wall_s.append(time.perf_counter())
        self.cpu_s.append(time.thread_time())

    def end(self):
        pass


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
        begun_s = time.perf_counter()
        model.generate(ids, do_sample=False, streamer=watch)
        _, first_s, *_, last_s = watch.wall_s
        firsts.append(first_s - begun_s)
        steps.append((last_s - first_s) / (len(watch.wall_s) - 2))
        steps_cpu.append((watch.cpu_s[-1] - watch.cpu_s[1]) / (len(watch.cpu_s) - 2))
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
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=20, help="of generate in a block")
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
    rounds = [[each(model, ids, asked.calls) for each in (bare, profiled, bare)] for _ in range(asked.rounds)]
    plain = [block for before, _, after in rounds for block in (before, after)]
    with_us = [block for _, block, _ in rounds]
    modules = sum(1 for _ in model.modules())
    print(
        f"{modules} modules, batch {asked.batch}, prompt {asked.prompt}, {asked.rounds} rounds of {asked.calls} calls"
    )
    step, cpu, first = (statistics.median(getattr(x, name) for x in plain) for name in ("step", "step_cpu", "first"))
    print(f"bare: {step:.2f} ms a decode step ({cpu:.2f} ms CPU), {first:.2f} ms to the first token\n")
    print(f"{'with torchwatt / bare':44} {'median':>7} 90 %")
    for name, column, note in (
        ("decode step, thread CPU", "step_cpu", f"  budget {1 + BUDGET}"),
        ("decode step, wall", "step", f"  budget {1 + BUDGET}"),
        ("time to first token, wall", "first", ""),
    ):
        values = [[getattr(block, column) for block in each] for each in rounds]
        line(name, [2 * with_us / (before + after) for before, with_us, after in values], note)
        line("    noise", [after / before for before, _, after in values])
    print(f"booked by torchwatt itself: {statistics.median(each.booked for each in with_us):.4f} of the run\n")
    print(f"{'run.generation / stopwatch':44} {'median':>7} 90 %")
    line("time_to_first_token", [each.reported_first / each.first for each in with_us])
    line("inter_token_latency", [each.reported_step / each.step for each in with_us])


if __name__ == "__main__":
    main()
