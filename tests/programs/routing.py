"""Models whose path depends on the data or on chance: what runs in one step says nothing about the next."""

import random

import torch
from torch import nn

from tests.programs.truth import Parts, program


def mlp(width, hidden, out=None):
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out or width))


def train_classifier(parts, model, optimizer, x, *args):
    """One usual step of training."""
    optimizer.zero_grad()
    parts.start("forward")
    y = model(x, *args)
    parts.start("other")
    loss = y.square().mean()
    parts.start("backward")
    loss.backward()
    parts.start("optimizer")
    optimizer.step()
    parts.start("other")
    parts.steps["train"] += 1
    return loss


class OneExpert(nn.Module):
    """Each batch goes through one expert, which the program chooses."""

    def __init__(self, experts):
        super().__init__()
        self.entry = nn.Linear(64, 128)
        self.experts = nn.ModuleList(mlp(128, 512) for _ in range(experts))
        self.exit = nn.Linear(128, 8)

    def forward(self, x, k):
        return self.exit(self.experts[k](self.entry(x)))


def time_experts(parts, experts, prefix="experts"):
    for k, expert in enumerate(experts):
        parts.time(f"expert {k}", {f"{prefix}.{k}": expert})


@program()
def experts_rare_and_common(parts: Parts):
    """A mixture of eight experts, one of which gets more than half of the batches."""
    model = OneExpert(8)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    parts.count(model)
    time_experts(parts, model.experts)

    def run():
        for _ in parts.rounds(450):
            (k,) = random.choices(range(8), weights=[1, 1, 1, 1, 1, 1, 1, 8])
            loss = train_classifier(parts, model, optimizer, torch.randn(64, 64), k)
        print(f"{loss.item():.6f}")

    return model, run


@program()
def experts_very_rare(parts: Parts):
    """Two common experts and one that gets one batch in fifty: it may never run in a traced step."""
    model = OneExpert(3)
    optimizer = torch.optim.AdamW(model.parameters())
    parts.count(model)
    time_experts(parts, model.experts)

    def run():
        for step in parts.rounds(350):
            loss = train_classifier(parts, model, optimizer, torch.randn(64, 64), 2 if step % 50 == 37 else step % 2)
        print(f"{loss.item():.6f}")

    return model, run


class TopOne(nn.Module):
    """A router sends each token to one expert; experts without tokens are not called."""

    def __init__(self, experts, width, hidden):
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(mlp(width, hidden) for _ in range(experts))
        with torch.no_grad():
            self.router.bias.copy_(torch.linspace(-1.5, 1.5, experts))

    def forward(self, x):
        weights = self.router(x).softmax(dim=-1)
        best, chosen = weights.max(dim=-1)
        y = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows = (chosen == k).nonzero().squeeze(-1)
            if len(rows):
                y = y.index_add(0, rows, expert(x[rows]) * best[rows, None])
        return y


def top_one(parts, tokens, rounds, width=96):
    model = TopOne(6, width, 384)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    parts.count(model)
    time_experts(parts, model.experts)

    def run():
        for _ in parts.rounds(rounds):
            loss = train_classifier(parts, model, optimizer, torch.randn(tokens, width))
        print(f"{loss.item():.6f}", [parts.calls[f"experts.{k}"] for k in range(6)])

    return model, run


@program()
def experts_by_token_many(parts: Parts):
    """Top-1 routing of many tokens: nearly every expert runs in every step, with ever different numbers of tokens."""
    return top_one(parts, 256, 70)


@program()
def experts_by_token_few(parts: Parts):
    """Top-1 routing of four tokens: one to three experts run in a step."""
    return top_one(parts, 4, 250)


@program()
def ensemble_at_random(parts: Parts):
    """Eight nets with an optimizer each; every batch trains one, the first with batches sixteen times as big."""

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.nets = nn.ModuleList(mlp(128, 256) for _ in range(8))

    model = Ensemble()
    optimizers = [torch.optim.SGD(net.parameters(), 1e-3) for net in model.nets]
    parts.count(model)
    time_experts(parts, model.nets, "nets")

    def run():
        for _ in parts.rounds(350):
            (k,) = random.choices(range(8), weights=[1, 1, 1, 1, 1, 1, 1, 8])
            loss = train_classifier(parts, model.nets[k], optimizers[k], torch.randn(256 if k == 0 else 16, 128))
        print(f"{loss.item():.6f}")

    return model, run


@program()
def layer_drop(parts: Parts):
    """Each of twelve blocks is left out of a step with a probability that grows with its depth."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(mlp(96, 256) for _ in range(12))

        def forward(self, x):
            for depth, block in enumerate(self.blocks):
                if not self.training or random.random() > 0.06 * depth:
                    x = x + block(x)
            return x

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    parts.count(model)
    parts.time("first half", {f"blocks.{k}": model.blocks[k] for k in range(6)})
    parts.time("second half", {f"blocks.{k}": model.blocks[k] for k in range(6, 12)})

    def run():
        for _ in parts.rounds(100):
            loss = train_classifier(parts, model, optimizer, torch.randn(64, 96))
        print(f"{loss.item():.6f}")

    return model, run


@program()
def early_exit(parts: Parts):
    """Inference that stops at the first exit that is sure enough, mostly after two of eight blocks."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(mlp(128, 512) for _ in range(8))
            self.exits = nn.ModuleList(nn.Linear(128, 10) for _ in range(8))

        def forward(self, x, depth):
            for level, (block, leave) in enumerate(zip(self.blocks, self.exits, strict=True)):
                x = x + block(x)
                y = leave(x)
                if level + 1 >= depth:
                    return y
            return y

    model = Net().eval()
    parts.count(model)
    parts.time("first two blocks", {"blocks.0": model.blocks[0], "blocks.1": model.blocks[1]})
    parts.time("other blocks", {f"blocks.{k}": model.blocks[k] for k in range(2, 8)})

    @torch.no_grad()
    def run():
        for _ in parts.rounds(400):
            x, depth = torch.randn(64, 128), random.choices([1, 2, 4, 8], weights=[4, 10, 2, 1])[0]
            parts.start("forward")
            y = model(x, depth)
            parts.start("other")
            y.argmax(dim=-1)
            parts.steps["inference"] += 1
        print(f"{y.sum().item():.6f}")

    return model, run


@program()
def routed_by_input(parts: Parts):
    """Two kinds of samples: images go through convolutions, vectors through an MLP, both into one head."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.image = nn.Sequential(
                nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.Flatten(), nn.Linear(576, 64)
            )
            self.vector = mlp(32, 256, 64)
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            return self.head(self.image(x) if x.dim() == 4 else self.vector(x))

    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    parts.count(model)
    parts.time("image", {"image": model.image})
    parts.time("vector", {"vector": model.vector})

    def run():
        for _ in parts.rounds(220):
            x = torch.randn(16, 1, 28, 28) if random.random() < 0.3 else torch.randn(64, 32)
            loss = train_classifier(parts, model, optimizer, x)
        print(f"{loss.item():.6f}")

    return model, run


@program()
def early_exit_in_training(parts: Parts):
    """Training that stops at a depth drawn for each batch: deep blocks run, and learn, seldom."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(mlp(96, 384) for _ in range(6))
            self.exits = nn.ModuleList(nn.Linear(96, 10) for _ in range(6))

        def forward(self, x, depth):
            for block in self.blocks[:depth]:
                x = x + block(x)
            return self.exits[depth - 1](x)

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    parts.count(model)
    parts.time("first block", {"blocks.0": model.blocks[0]})
    parts.time("other blocks", {f"blocks.{k}": model.blocks[k] for k in range(1, 6)})

    def run():
        for _ in parts.rounds(160):
            (depth,) = random.choices(range(1, 7), weights=[8, 4, 2, 1, 1, 1])
            loss = train_classifier(parts, model, optimizer, torch.randn(64, 96), depth)
        print(f"{loss.item():.6f}")

    return model, run
