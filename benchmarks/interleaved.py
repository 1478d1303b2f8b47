"""What a session costs a step: tracing and the sampler's process together, on a noisy machine.

    python benchmarks/interleaved.py [--model NAME ...] [--budget 0.01 0.001] [--steps 240] [--block 4]

One long session is paused and resumed every few steps: while it is paused every wrapper is off, the sampler's process
is stopped, and the tracer's clock stands still, so that its budget sees only the steps that it traces. Neighbouring
blocks with and without are a pair, in random order; a step after each change is not timed. `control` pauses both.

For each way of timing (the thread's CPU time plus all of the sampler's, and the wall clock) two ratios are printed with
their 90 % bootstrap intervals over pairs: `median` of the pairs' ratios, which noise hardly touches and rare dear steps
neither, and `sum`, all time with over all time without, in which each dear step counts in full, and each disturbance.
"""

import argparse
import importlib.util
import math
import os
import random
import signal
import statistics
import time
from pathlib import Path

import torch
from performance.models import transformer_on
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from torchwatt.sensors import Sampler, discover
from torchwatt.sensors.readers.cputime import process_cpu_s
from torchwatt.tracing import Tracer
from torchwatt.tracing.optimizers import optimizer_hooks
from torchwatt.tracing.rows import OFF
from torchwatt.tracing.state import ACTIVE

BOOTSTRAPS = 1_000
THRIFTY_BUDGET = 0.002  # as in a session


def models():
    spec = importlib.util.spec_from_file_location("overhead", Path(__file__).with_name("overhead.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = dict(module.MODELS)
    if torch.cuda.is_available():
        found["transformer on cuda"] = lambda: transformer_on("cuda", foreach=True)
    return found


def wait():
    """Wait until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Pausable:
    """A sampler and a tracer that can be taken off and put on again without noticing."""

    def __init__(self, model, budget):
        self.feed = Sampler(discover(), thrifty=budget <= THRIFTY_BUDGET)
        self.feed.start()
        self.away_ns = 0
        self.since_ns = None
        self.tracer = Tracer(model, overhead_budget=budget, clock_ns=self.clock_ns)
        self.tracer.start()
        self.hub = ACTIVE.hub
        self.hooks = optimizer_hooks(self.hub)

    def clock_ns(self):
        return (self.since_ns or time.monotonic_ns()) - self.away_ns

    def sampler_cpu_s(self):
        return process_cpu_s(self.feed.sampler_pid)

    def pause(self):
        os.kill(self.feed.sampler_pid, signal.SIGSTOP)
        self.since_ns = time.monotonic_ns()
        self.modes = {log: log.mode for log in self.hub.logs}
        for log in self.modes:
            log.mode = OFF
        patches = self.hub.patches
        for handle in patches._handles:
            handle.remove()
        every = [*patches._classes.values(), patches._module, *patches._fixed]
        self.taken = [patch for patch in every if patch is not None and patch.on and patch.remove()]

    def resume(self):
        for patch in reversed(self.taken):
            patch.put()
        begins, ended = self.hooks
        handles = [register_optimizer_step_pre_hook(begins), register_optimizer_step_post_hook(ended)]
        self.hub.patches._handles[:] = handles
        for log, mode in self.modes.items():
            log.mode = mode
        self.away_ns += time.monotonic_ns() - self.since_ns
        self.since_ns = None
        os.kill(self.feed.sampler_pid, signal.SIGCONT)

    def stop(self):
        self.feed.stop()
        return self.tracer.stop()


def block(step, n, sampler_cpu_s):
    """Return CPU and wall seconds a step, the sampler's CPU time included in the former."""
    step()
    wait()
    others_s, cpu_s, wall_s = sampler_cpu_s(), time.thread_time(), time.perf_counter()
    for _ in range(n):
        step()
    wait()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.thread_time() - cpu_s
    return (cpu_s + sampler_cpu_s() - others_s) / n, wall_s / n


def interval(pairs, ratio):
    spread = sorted(ratio(random.choices(pairs, k=len(pairs))) for _ in range(BOOTSTRAPS))
    low, high = spread[BOOTSTRAPS // 20], spread[-BOOTSTRAPS // 20]
    return f"{ratio(pairs):.4f} [{low:.4f}, {high:.4f}]"


def median_ratio(pairs):
    return math.exp(statistics.median(math.log(a / b) for a, b in pairs))


def sum_ratio(pairs):
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs)


def measure(name, make, budget, steps, n, *, control):
    torch.manual_seed(0)
    model, step = make()
    for _ in range(5):
        step()
    traced = Pausable(model, budget)
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
    books = traced.hub.stepping.conductor.budget
    booked, elapsed = books.total_ns, traced.clock_ns() - books.start_ns
    spent = ", ".join(f"{account} {ns / elapsed:.2%}" for account, ns in sorted(books.spent_ns.items()))
    trace = traced.stop()
    ms = statistics.median(without[1] for _, without in pairs) * 1e3
    title = "control" if control else f"budget {budget}"
    print(f"{name}, {title}: {ms:.1f} ms a step, {steps} steps with and {steps} without")
    for column, timed in enumerate(("CPU", "wall")):
        chosen = [(a[column], b[column]) for a, b in pairs]
        print(f"    {timed:4} median {interval(chosen, median_ratio)}  sum {interval(chosen, sum_ratio)}")
    if not control:
        print(f"    booked by tracing {1 + booked / elapsed:.4f} ({spent}), {trace.windows} windows", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found = models()
    parser.add_argument(
        "--model", nargs="+", choices=list(found), default=[name for name in found if " on " not in name]
    )
    parser.add_argument("--budget", nargs="+", type=float, default=[0.01, 0.001])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    random.seed(0)
    for name in asked.model:
        measure(name, found[name], asked.budget[0], asked.steps, asked.block, control=True)
        for budget in asked.budget:
            measure(name, found[name], budget, asked.steps, asked.block, control=False)


if __name__ == "__main__":
    main()
