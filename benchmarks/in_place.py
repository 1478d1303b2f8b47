"""What each wrapper costs where it stands: in a training step, whose matrix products leave Python cold caches.

    python benchmarks/in_place.py [--model NAME ...] [--budget 0.001 0.01] [--steps 400]

The clock is read above and below every wrapper; what lies between takes some time without a session, too, and that is
taken off: the same stamps in the same process, with and without in turns of a few steps (`interleaved.Pausable`). Such
a difference is of microseconds, where that of whole steps drowns in what the machine's other tenants do. What is not
seen here: windows, whose cost `interleaved.py` and the books tell, and what a wrapper leaves behind in the caches.
"""

import argparse
import time
from collections import Counter, defaultdict
from contextlib import contextmanager

import torch
from interleaved import Pausable
from torch import nn

from torchwatt.tracing.fast_path import optimizer_hooks
from torchwatt.tracing.log_rows import ALL_CALLS, OUTERMOST, STEP_ENDS
from torchwatt.tracing.patches import step_hooks

MODES = {ALL_CALLS: "traced", OUTERMOST: "outermost calls noted", STEP_ENDS: "ends noted"}
TURN = 10
MODELS = {  # name: width, shape of a batch, whether the model has a class of its own
    "transformer": (96, (8, 64), False),
    "transformer, own class": (96, (8, 64), True),
    "narrow transformer": (8, (1, 4), False),
}
clock = time.perf_counter_ns


class Stamps:
    """Nanoseconds between the clock above a wrapper and the one below it, by mode and part."""

    def __init__(self):
        self.open = []
        self.ns = defaultdict(list)
        self.steps = Counter()
        self.mode = None

    def below(self, original):
        def lower(*args, **kwargs):
            frame = self.open[-1] if self.open else [0, 0, 0]
            frame[1] = clock()
            try:
                return original(*args, **kwargs)
            finally:
                frame[2] = clock()

        return lower

    def call(self, part, function, *args, **kwargs):
        """Call what may be wrapped."""
        frame = [clock(), 0, 0]
        self.open.append(frame)
        try:
            return function(*args, **kwargs)
        finally:
            ended = clock()
            self.open.pop()
            self.ns[self.mode, part].append(frame[1] - frame[0] + ended - frame[2])

    def around(self, hook):
        def timed(*args):
            began, mode = clock(), self.mode
            hook(*args)
            self.ns[mode, "an optimizer hook"].append(clock() - began)

        return timed


class Chain(nn.Sequential):
    """One after the other; what blocks end with is one, and the whole model if it has no class of its own."""

    def __init__(self, stamps, *modules):
        super().__init__(*modules)
        self.stamps = stamps

    def forward(self, x):
        return one_by_one(self.stamps, self, x)


class Block(nn.Module):
    """A transformer's block that reads the clock around the modules that it calls."""

    def __init__(self, stamps, width, heads=4):
        super().__init__()
        self.stamps = stamps
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = Chain(stamps, nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        call = self.stamps.call
        y = call("a module inside", self.norm1, x)
        x = x + call("a module inside", self.attention, y, y, y, need_weights=False)[0]
        y = call("a module inside", self.norm2, x)
        return x + call(part_of(self.mlp), self.mlp, y)


class Model(nn.Module):
    """The same in a class of its own."""

    def __init__(self, stamps, *modules):
        super().__init__()
        self.stamps, self.chain = stamps, nn.ModuleList(modules)

    def forward(self, x):
        return one_by_one(self.stamps, self.chain, x)


def part_of(module):
    return "inside, class patched" if isinstance(module, Chain) else "a module inside"


def one_by_one(stamps, modules, x):
    for module in modules:
        x = stamps.call(part_of(module), module, x)
    return x


def training(stamps, width, shape, own):
    """Return the model and a step of training it."""
    blocks = (Block(stamps, width) for _ in range(6))
    model = (Model if own else Chain)(stamps, nn.Embedding(256, width), *blocks, nn.Linear(width, 256))
    optimizer, x = torch.optim.AdamW(model.parameters(), foreach=True), torch.randint(0, 256, shape)

    def step():
        optimizer.zero_grad()
        loss = stamps.call("the outermost module", model, x).square().mean()
        stamps.call("backward", loss.backward)
        optimizer.step()

    return model, step


@contextmanager
def lower_stamps(stamps):
    """Read the clock below everything that a session will patch."""
    module, backward = nn.Module.__call__, torch.autograd._engine_run_backward
    nn.Module.__call__ = stamps.below(module)
    torch.autograd._engine_run_backward = stamps.below(backward)
    try:
        yield
    finally:
        nn.Module.__call__, torch.autograd._engine_run_backward = module, backward


def replace_hooks(hub, around):
    """Put hooks around every optimizer step that do what the session's do, within something else."""
    patches = hub.patches
    for hook in patches._hooks:
        hook.remove()
    patches._hooks[:] = step_hooks(*(around(hook) for hook in optimizer_hooks(hub)))


def measure(width, shape, own, budget, steps):
    torch.manual_seed(0)
    stamps, took_ns = Stamps(), []
    model, step = training(stamps, width, shape, own)

    def stamped(mode):
        stamps.mode = mode
        stamps.steps[mode] += 1
        step()

    with lower_stamps(stamps):
        for _ in range(5):
            stamped("first")
        traced = Pausable(model, budget)
        replace_hooks(traced.hub, stamps.around)
        for turn in range(2 * steps // TURN):
            bare = bool(turn % 2)
            if bare:
                traced.pause()
            stamped("turn")
            for _ in range(TURN):
                began = clock()
                stamped(None if bare else traced.hub.log().mode)
                took_ns.append(clock() - began)
            if bare:
                traced.resume()
        books = traced.books()
        traced.stop()
    return stamps, sorted(took_ns)[len(took_ns) // 2], books


def mean(values):
    return sum(values) / len(values) if values else 0.0


def table(name, budget, stamps, step_ns, books):
    print(f"{name}, budget {budget}: {step_ns / 1e6:.1f} ms a step")
    for mode in [mode for mode in MODES if stamps.steps[mode]]:
        n, total_ns = stamps.steps[mode], 0.0
        print(f"    {MODES[mode]}: {n} steps")
        for (of, part), ns in sorted(stamps.ns.items(), key=str):
            if of != mode:
                continue
            own_ns = mean(ns) - mean(stamps.ns.get((None, part), []))
            total_ns += own_ns * len(ns) / n
            print(f"        {part:22} {len(ns) / n:6.2f} a step, {own_ns / 1e3:7.2f} us each")
        print(f"        together {total_ns / 1e3:.1f} us a step, {total_ns / step_ns:.3%}")
    print(f"    {books}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--budget", nargs="+", type=float, default=[0.001, 0.01])
    parser.add_argument("--steps", type=int, default=400)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.model:
        for budget in asked.budget:
            table(name, budget, *measure(*MODELS[name], budget, asked.steps))


if __name__ == "__main__":
    main()
