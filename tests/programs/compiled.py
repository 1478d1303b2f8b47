"""`torch.compile` in six forms: the first two steps of each are the compiler's, the others are as usual.

Each prints how many graphs Dynamo made and how often it broke one: the same with and without torchwatt.
"""

import os

import torch
from torch import nn

from tests.programs.truth import Parts, program

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # read when Inductor is imported
WARM_UP = 2


class Block(nn.Module):
    """A residual MLP."""

    def __init__(self, width=256):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


def fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return nn.Sequential(Block(), Block(), Block())


def graphs():
    counters = torch._dynamo.utils.counters
    return f"graphs {counters['stats']['unique_graphs']} breaks {sum(counters['graph_break'].values())}"


def train(parts, model, optimizer, rounds, *, step=None):
    step = step or optimizer.step
    for n in parts.rounds(rounds):
        start = parts.start if n >= WARM_UP else lambda _: parts.start("compile")
        optimizer.zero_grad()
        x = torch.randn(64, 256)
        start("forward")
        y = model(x)
        start("other")
        loss = y.square().mean()
        start("backward")
        loss.backward()
        start("optimizer")
        step()
        parts.start("other")
        parts.steps["train"] += 1
    print(f"{loss.item():.4f} {graphs()}")


@program(heavy=True, waits=True, counts=())
def compiled_model(parts: Parts):
    """`torch.compile(model)`."""
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters())
    compiled = torch.compile(model)
    return model, lambda: train(parts, compiled, optimizer, 120)


@program(heavy=True, waits=True, counts=())
def compiled_whole_graph(parts: Parts):
    """`torch.compile(model, fullgraph=True)`."""
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters())
    compiled = torch.compile(model, fullgraph=True)
    return model, lambda: train(parts, compiled, optimizer, 120)


@program(heavy=True, waits=True, counts=())
def compiled_aot_eager(parts: Parts):
    """`torch.compile(model, backend="aot_eager")`: the graphs of AOT autograd, run by eager kernels."""
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters())
    compiled = torch.compile(model, backend="aot_eager")
    return model, lambda: train(parts, compiled, optimizer, 120)


class Chain(nn.Module):
    """Three blocks, the clock around each call."""

    def __init__(self, parts):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.calls = [parts.timed(f"block {n}", (f"blocks.{n}",), block) for n, block in enumerate(self.blocks)]

    def forward(self, x):
        for call in self.calls:
            x = call(x)
        return x


@program(heavy=True, waits=True, counts=())
def compiled_blocks(parts: Parts):
    """`block.compile()` of three blocks alike, by turns with the clock."""
    fresh()
    model = Chain(parts)
    for block in model.blocks:
        block.compile()
    optimizer = torch.optim.AdamW(model.parameters())
    return model, lambda: train(parts, model, optimizer, 120)


@program(heavy=True, waits=True, counts=())
def compiled_optimizer(parts: Parts):
    """`torch.compile(optimizer.step)` beside an eager model."""
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters())
    return model, lambda: train(parts, model, optimizer, 120, step=torch.compile(optimizer.step))


@program(heavy=True, waits=True, counts=(), shares=("compile",))
def compiled_train_step(parts: Parts):
    """`torch.compile(train_step)`: forward, backward and optimizer in one call, which nobody can take apart."""
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters())
    parts.functions.add("train_step")

    @torch.compile
    def train_step(x):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    def run():
        for n in parts.rounds(120):
            x = torch.randn(64, 256)
            parts.start("compile" if n < WARM_UP else "other")
            loss = train_step(x)
            parts.start("other")
            parts.steps["train"] += 1
        print(f"{loss.item():.4f} {graphs()}")

    return model, run
