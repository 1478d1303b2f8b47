"""What a session costs a step: tracing and the sampler's process together, on a noisy machine.

    python benchmarks/interleaved.py [--model NAME ...] [--run control sampling 0.01 0.001] [--steps 240] [--block 4]
    python benchmarks/interleaved.py --model "0.2 ms" "1 ms" "5 ms" "20 ms" --run control 0.01 --seconds 20

One long session is paused and resumed every few steps: while it is paused every wrapper is off, the sampler's process
is stopped, and the tracer's clock stands still, so that its budget sees only the steps that it traces. Neighbouring
blocks with and without are a pair, in random order; the steps after each change are not timed. `control` pauses both,
`sampling` traces nothing, a number is a budget of tracing.

For each way of timing (the thread's CPU time, the same plus all of the sampler's, the wall clock) two ratios are
printed with their 90 % bootstrap intervals over pairs: `median` of the pairs' ratios, which noise hardly touches and
rare dear steps neither, and `sum`, all time with over all time without, in which each dear step counts in full, and
each disturbance. Last comes what tracing booked as its own cost, and the share of `(profiler)` in the time that it
traced.

A virtual machine shares its cores with strangers, who slow a step down by half for a while and then leave. So a loop
that is always the same is timed before and after every block, and the ratios are printed once more of the `calm`
pairs alone: those around which that loop never took more than CALM times its usual least. What is measured has no say
in which pairs these are.
"""

import argparse
import importlib.util
import json
import math
import os
import random
import signal
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from performance.models import narrow_transformer, own_transformer, transformer_on

from torchwatt.core.terms import PROFILER
from torchwatt.sensors import Sampler, discover
from torchwatt.sensors.readers.process_tree import process_cpu_s
from torchwatt.tracing import Tracer
from torchwatt.tracing.log_rows import OFF
from torchwatt.tracing.scope import ACTIVE

BOOTSTRAPS = 1_000
THRIFTY_BUDGET = 0.002  # as in a session
PROBE_LOOPS = 20_000  # half a millisecond and more
CALM = 1.1
SLOWED = 20  # steps after wrappers were put on or taken off, which alone makes them up to 2.5 times slower


def models():
    spec = importlib.util.spec_from_file_location("overhead", Path(__file__).with_name("overhead.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = dict(module.MODELS)
    found["transformer, own class"] = lambda: own_transformer(foreach=True)
    found["narrow transformer"] = lambda: narrow_transformer(foreach=True)
    if torch.cuda.is_available():
        found["transformer on cuda"] = lambda: transformer_on("cuda", foreach=True)
    return found


def wait():
    """Wait until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Pausable:
    """A sampler and perhaps a tracer that can be taken off and put on again without noticing."""

    def __init__(self, model, budget):
        self.feed = Sampler(discover(), thrifty=budget is not None and budget <= THRIFTY_BUDGET)
        self.feed.start()
        self.away_ns = 0
        self.since_ns = None
        self.started_ns = self.clock_ns()
        self.tracer = None
        if budget is not None:
            self.tracer = Tracer(model, overhead_budget=budget, clock_ns=self.clock_ns)
            self.tracer.start()
            self.hub = ACTIVE.hub

    def clock_ns(self):
        return (self.since_ns or time.monotonic_ns()) - self.away_ns

    def sampler_cpu_s(self):
        return process_cpu_s(self.feed.sampler_pid)

    def pause(self):
        os.kill(self.feed.sampler_pid, signal.SIGSTOP)
        if self.tracer is None:
            return
        self.since_ns = time.monotonic_ns()
        self.modes = {log: log.mode for log in self.hub.logs}
        for log in self.modes:
            log.mode = OFF
        self.hub.patches.step_aside()

    def resume(self):
        if self.tracer is not None:
            self._put_on()
        os.kill(self.feed.sampler_pid, signal.SIGCONT)

    def _put_on(self):
        self.hub.patches.step_back()
        for log, mode in self.modes.items():
            log.mode = mode
        self.away_ns += time.monotonic_ns() - self.since_ns
        self.since_ns = None

    def books(self):
        """Return what tracing says that it cost, as a ratio, and what that is made of."""
        budget = self.hub.stepping.conductor.budget
        elapsed_ns = self.clock_ns() - budget.start_ns
        parts = ", ".join(f"{account} {ns / elapsed_ns:.2%}" for account, ns in sorted(budget.spent_ns.items()))
        return f"booked by tracing {1 + budget.total_ns / elapsed_ns:.4f} ({parts})"

    def stop(self):
        self.feed.stop()
        return self.tracer.stop() if self.tracer is not None else None


def probe():
    """Return how long a loop took that is always the same."""
    began, total = time.perf_counter(), 0
    for i in range(PROBE_LOOPS):
        total += i
    return time.perf_counter() - began


@dataclass(frozen=True)
class Block:
    """Seconds a step, and how long the same loop took beside it: what strangers did to this core meanwhile."""

    cpu_s: float
    charged_s: float  # with all of the sampler's CPU time
    wall_s: float
    probe_s: float  # the slower one of two


def block(step, n, sampler_cpu_s):
    for _ in range(max(1, min(SLOWED, n // 4))):
        step()
    wait()
    before_s = probe()
    others_s, cpu_s, wall_s = sampler_cpu_s(), time.thread_time(), time.perf_counter()
    for _ in range(n):
        step()
    wait()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.thread_time() - cpu_s
    charged_s = cpu_s + sampler_cpu_s() - others_s
    return Block(cpu_s / n, charged_s / n, wall_s / n, max(before_s, probe()))


def calm(pairs):
    """Return the pairs around which the same loop took no longer than usual."""
    probes = sorted(each.probe_s for pair in pairs for each in pair)
    most = CALM * probes[len(probes) // 20]
    return [pair for pair in pairs if all(each.probe_s <= most for each in pair)]


def interval(pairs, ratio):
    spread = sorted(ratio(random.choices(pairs, k=len(pairs))) for _ in range(BOOTSTRAPS))
    low, high = spread[BOOTSTRAPS // 20], spread[-BOOTSTRAPS // 20]
    return f"{ratio(pairs):.4f} [{low:.4f}, {high:.4f}]"


def median_ratio(pairs):
    return math.exp(statistics.median(math.log(a / b) for a, b in pairs))


def sum_ratio(pairs):
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs)


def steps_in(step, seconds, block_ms):
    """Return how many steps fill a block, and both blocks of all pairs together."""
    step_s = block(step, 20, lambda: 0.0).wall_s
    n = max(1, round(block_ms / 1e3 / step_s))
    return n, max(n, round(seconds / 2 / step_s))


def measure(make, run, asked):
    """Return pairs of blocks with and without, and what the tracer says of itself."""
    steps, n = asked.steps, asked.block
    torch.manual_seed(0)
    model, step = make()
    for _ in range(5):
        step()
    if asked.seconds is not None:
        n, steps = steps_in(step, asked.seconds, asked.block_ms)
    control = run == "control"
    traced = Pausable(model, None if run == "sampling" else 0.01 if control else float(run))
    pairs = []
    for _ in range(steps // n):
        found = {}
        for active in random.sample((True, False), 2):
            paused = control or not active
            if paused:
                traced.pause()
            found[active] = block(step, n, traced.sampler_cpu_s)
            if paused:
                traced.resume()
        pairs.append((found[True], found[False]))
    books = "" if control or run == "sampling" else traced.books()
    elapsed_ns = traced.clock_ns() - traced.started_ns
    trace = traced.stop()
    return pairs, n, books and f"{books}, {trace.windows} windows, (profiler) {profiler_ns(trace) / elapsed_ns:.2%}"


def profiler_ns(trace):
    """Return how long the spans of torchwatt's own row are together."""
    own = [index for index, slot in enumerate(trace.slots) if slot.fqn == PROFILER]
    chosen = np.isin(trace.slot, own)
    return int((trace.end_ns - trace.start_ns)[chosen].sum())


def table(name, run, pairs, n, books):
    ms = statistics.median(without.wall_s for _, without in pairs) * 1e3
    title = run if run in {"control", "sampling"} else f"budget {run}"
    print(f"{name}, {title}: {ms:.2f} ms a step, {len(pairs)} pairs of {n} steps")
    for which, some in (("all", pairs), ("calm", calm(pairs))):
        for column, timed in (("cpu_s", "CPU"), ("charged_s", "CPU + sampler"), ("wall_s", "wall")):
            chosen = [(getattr(a, column), getattr(b, column)) for a, b in some]
            ratios = f"median {interval(chosen, median_ratio)}  sum {interval(chosen, sum_ratio)}"
            print(f"    {which:4} {len(some):6} pairs, {timed:13} {ratios}")
    if books:
        print(f"    {books}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found = models()
    parser.add_argument(
        "--model",
        nargs="+",
        choices=list(found),
        default=[name for name in found if not (" on " in name or name.endswith(" ms"))],
    )
    parser.add_argument("--run", nargs="+", default=["control", "sampling", "0.01", "0.001"])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument(
        "--seconds", type=float, help="of all blocks of a run together, in place of --steps and --block"
    )
    parser.add_argument("--block-ms", type=float, default=40, help="of each block, with --seconds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", type=Path, help="every pair, as lines of JSON")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    random.seed(0)
    for name in asked.model:
        for run in asked.run:
            pairs, n, books = measure(found[name], run, asked)
            table(name, run, pairs, n, books)
            if asked.save:
                with asked.save.open("a") as file:
                    for pair in pairs:
                        print(json.dumps([name, run, *map(asdict, pair)]), file=file)


if __name__ == "__main__":
    main()
