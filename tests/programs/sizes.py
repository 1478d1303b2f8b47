"""Steps and models of every size: 0.2 ms to tens, three modules to 5,000."""

import torch
from torch import nn

from tests.programs.truth import Parts, program


def train(parts, model, optimizer, batch, rounds):
    """Train, and start no more parts than the clock needs."""
    start, steps = parts.start, 0
    for _ in parts.rounds(rounds):
        optimizer.zero_grad()
        x = batch()
        start("forward")
        y = model(x)
        start("other")
        loss = y.square().mean()
        start("backward")
        loss.backward()
        start("optimizer")
        optimizer.step()
        start("other")
        steps += 1
    parts.steps["train"] += steps
    print(f"{loss.item():.6f}")


def perceptron(parts, width, batch, rounds):
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    parts.count(model)
    return model, lambda: train(parts, model, optimizer, lambda: torch.randn(batch, width), rounds)


@program()
def steps_of_300_us(parts: Parts):
    """Three modules, 300 microseconds a step."""
    return perceptron(parts, 48, 16, 2000)


@program(heavy=True)
def steps_of_200_us(parts: Parts):
    """Three modules of width 4: Python is all there is."""
    return perceptron(parts, 4, 2, 20_000)


@program()
def steps_of_1_ms(parts: Parts):
    """Three Linears with AdamW at about a millisecond a step."""
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 128))
    optimizer = torch.optim.AdamW(model.parameters())
    parts.count(model)
    return model, lambda: train(parts, model, optimizer, lambda: torch.randn(32, 128), 500)


@program()
def steps_of_10_ms(parts: Parts):
    """Three Linears with AdamW at about ten milliseconds a step."""
    model = nn.Sequential(nn.Linear(256, 768), nn.ReLU(), nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 128))
    optimizer = torch.optim.AdamW(model.parameters())
    parts.count(model)
    parts.time("linear 2", {"2": model[2]})
    parts.time("ReLU", {"1": model[1], "3": model[3]})
    return model, lambda: train(parts, model, optimizer, lambda: torch.randn(128, 256), 60)


class Deep(nn.Module):
    """Groups of small layers: as many modules as are asked for, and one each for the groups and the whole."""

    def __init__(self, groups, layers, width):
        super().__init__()
        self.groups = nn.ModuleList(
            nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers))) for _ in range(groups)
        )

    def forward(self, x):
        for group in self.groups:
            x = x + group(x)
        return x


def many_modules(parts, groups, layers, rounds):
    model = Deep(groups, layers, 16)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    parts.count(model)
    half = groups // 2
    parts.time("first half", {f"groups.{n}": model.groups[n] for n in range(half)})
    parts.time("second half", {f"groups.{n}": model.groups[n] for n in range(half, groups)})
    return model, lambda: train(parts, model, optimizer, lambda: torch.randn(8, 16), rounds)


@program()
def modules_60(parts: Parts):
    """Sixty tiny layers in two to three milliseconds: what each costs is Python."""
    return many_modules(parts, 6, 10, 180)


@program()
def inference_of_100_us(parts: Parts):
    """A tiny model that only answers."""
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    parts.count(model)

    @torch.inference_mode()
    def run():
        x, start = torch.randn(8, 32), parts.start
        for _ in parts.rounds(5000):
            start("forward")
            y = model(x)
            start("other")
            y.argmax(dim=-1)
        parts.steps["inference"] += len(parts.rounds(5000))
        print(f"{y.sum().item():.6f}")

    return model, run


@program(heavy=True)
def modules_1000(parts: Parts):
    """A thousand small layers in ten groups."""
    return many_modules(parts, 10, 100, 60)


@program(heavy=True)
def modules_5000(parts: Parts):
    """Five thousand small layers in fifty groups."""
    return many_modules(parts, 50, 100, 16)
