"""What tracing costs the training thread, to a tenth of a per cent on a noisy machine.

    python benchmarks/interleaved.py [--model NAME ...] [--budget 0.01 0.001] [--steps 240] [--block 6]

One long session of the tracer is paused and resumed every few steps: while it is paused every wrapper is off and its
clock stands still, so that its budget sees only the steps that it traces. Neighbouring blocks with and without are a
pair, in the order ABBA. Printed is the ratio of all CPU time with to all without (a sum, so that rare dear steps count
in full) and its 90 % bootstrap interval over pairs. A step after each change is not timed. The sampler is another
process and not part of this: see overhead.py.
"""

import argparse
import importlib.util
import random
import time
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from torchwatt.tracing import Tracer
from torchwatt.tracing.optimizers import optimizer_hooks
from torchwatt.tracing.rows import OFF
from torchwatt.tracing.state import ACTIVE

BOOTSTRAPS = 2_000


def models():
    spec = importlib.util.spec_from_file_location("overhead", Path(__file__).with_name("overhead.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MODELS


class Pausable:
    """A tracer that can be taken off and put on again without noticing."""

    def __init__(self, model, budget):
        self.away_ns = 0
        self.since_ns = None
        self.tracer = Tracer(model, overhead_budget=budget, clock_ns=self.clock_ns)
        self.tracer.start()
        self.hub = ACTIVE.hub
        self.hooks = optimizer_hooks(self.hub)

    def clock_ns(self):
        return (self.since_ns or time.monotonic_ns()) - self.away_ns

    def pause(self):
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


def block(step, n):
    step()
    began = time.thread_time_ns()
    for _ in range(n):
        step()
    return (time.thread_time_ns() - began) / n


def measure(name, make, budget, steps, n, *, control):
    torch.manual_seed(0)
    model, step = make()
    for _ in range(5):
        step()
    traced = Pausable(model, budget)
    with_, without = [], []
    for i in range(steps // n):
        for active in (True, False) if i % 2 else (False, True):
            if active:
                if control:
                    traced.pause()
                with_.append(block(step, n))
                if control:
                    traced.resume()
            else:
                traced.pause()
                without.append(block(step, n))
                traced.resume()
    books = traced.hub.stepping.conductor.budget
    booked, elapsed = books.total_ns, traced.clock_ns() - books.start_ns
    spent = {account: f"{ns / elapsed:.2%}" for account, ns in sorted(books.spent_ns.items())}
    trace = traced.tracer.stop()
    pairs = list(zip(with_, without, strict=True))

    def ratio(chosen):
        return sum(a for a, _ in chosen) / sum(b for _, b in chosen)

    spread = sorted(ratio(random.choices(pairs, k=len(pairs))) for _ in range(BOOTSTRAPS))
    low, high = spread[BOOTSTRAPS // 20], spread[-BOOTSTRAPS // 20]
    ms = sum(without) / len(without) / 1e6
    print(f"{name:12} budget {budget:<6} {ms:6.1f} ms a step, {steps} steps with and {steps} without:", end=" ")
    print(f"CPU ratio {ratio(pairs):.4f} [{low:.4f}, {high:.4f}], booked {1 + booked / elapsed:.4f} {spent},", end=" ")
    print(f"{trace.windows} windows", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found = models()
    parser.add_argument("--model", nargs="+", choices=list(found), default=list(found))
    parser.add_argument("--budget", nargs="+", type=float, default=[0.01, 0.001])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--control", action="store_true", help="pause the blocks with, too: shows what noise does")
    parser.add_argument("--block", type=int, default=6)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    for name in asked.model:
        for budget in asked.budget:
            measure(name, found[name], budget, asked.steps, asked.block, control=asked.control)


if __name__ == "__main__":
    main()
