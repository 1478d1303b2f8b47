"""Paths by chance and by data, nested and shared: parts of models that run again, not at all, or for another loss."""

import random

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.programs.routing import mlp, train_classifier
from tests.programs.truth import Parts, program
from tests.programs.updates import net, update


@program()
def depth_by_data(parts: Parts):
    """Training that leaves at the first exit whose mean output is small: the depth depends on the numbers alone."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList(mlp(96, 288) for _ in range(5))
            self.exits = nn.ModuleList(nn.Linear(96, 4) for _ in range(5))

        def forward(self, x):
            for stage, leave in zip(self.stages, self.exits, strict=True):
                x = x + stage(x)
                y = leave(x)
                if y.detach().mean().abs().item() < 0.02:
                    break
            return y

    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    parts.count_both_ways(model)
    for k, stage in enumerate(model.stages):
        parts.time(f"stage {k}", {f"stages.{k}": stage})

    def run():
        for _ in parts.rounds(130):
            loss = train_classifier(parts, model, optimizer, torch.randn(32, 96))
        print(f"{loss.item():.6f}", [parts.calls[f"stages.{k}"] for k in range(5)])

    return model, run


@program()
def layer_drop_nested(parts: Parts):
    """Groups of blocks are left out as a whole, and blocks within a group one by one."""

    class Group(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(mlp(64, 192) for _ in range(3))

        def forward(self, x):
            for block in self.blocks:
                if random.random() > 0.3:
                    x = x + block(x)
            return x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.entry = nn.Linear(64, 64)
            self.groups = nn.ModuleList(Group() for _ in range(4))

        def forward(self, x):
            x = self.entry(x)
            for group in self.groups:
                if random.random() > 0.25:
                    x = group(x)
            return x

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    parts.count_both_ways(model)
    parts.time("first half", {f"groups.{k}": model.groups[k] for k in range(2)})
    parts.time("second half", {f"groups.{k}": model.groups[k] for k in range(2, 4)})

    def run():
        for _ in parts.rounds(130):
            loss = train_classifier(parts, model, optimizer, torch.randn(64, 64))
        print(f"{loss.item():.6f}")

    return model, run


@program()
def experts_two_of_six(parts: Parts):
    """Each batch goes through two of six experts, chosen by a router, and through one that all share."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(64, 6)
            self.shared = mlp(64, 192)
            self.experts = nn.ModuleList(mlp(64, 256) for _ in range(6))
            with torch.no_grad():
                self.router.bias.copy_(torch.linspace(-0.2, 0.2, 6))

        def forward(self, x):
            weights = self.router(x).mean(dim=0).softmax(dim=0)
            best, chosen = weights.topk(2)
            y = self.shared(x)
            for weight, k in zip(best, chosen.tolist(), strict=True):
                y = y + weight * self.experts[k](x)
            return y

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    parts.count_both_ways(model)
    parts.time("shared", {"shared": model.shared})
    parts.time("experts", {f"experts.{k}": model.experts[k] for k in range(6)})

    def run():
        for _ in parts.rounds(200):
            loss = train_classifier(parts, model, optimizer, torch.randn(48, 64))
        print(f"{loss.item():.6f}", [parts.calls[f"experts.{k}"] for k in range(6)])

    return model, run


@program(counts=("forward",))  # a backward row counts repeated forward calls and, where there are any, nodes
def stochastic_depth_checkpointed(parts: Parts):
    """Blocks are left out at random, and those that run are computed again in the backward pass."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(mlp(96, 288) for _ in range(6))
            self.head = nn.Linear(96, 8)

        def forward(self, x):
            for depth, block in enumerate(self.blocks):
                if random.random() > 0.1 * depth:
                    x = x + checkpoint(block, x, use_reentrant=False)
            return self.head(x)

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    parts.count(model)

    def run():
        for _ in parts.rounds(90):
            loss = train_classifier(parts, model, optimizer, torch.randn(64, 96, requires_grad=True))
        print(f"{loss.item():.6f}")

    return model, run


@program()
def vae_gan(parts: Parts):
    """Encoder, decoder and critic, each with its optimizer; the critic's and the decoder's are skipped at random."""
    encoder, decoder, critic = net(96, 192, 32), net(16, 192, 96), net(96, 192, 1)
    optimizers = {
        name: torch.optim.Adam(model.parameters(), 1e-4)
        for name, model in (("encoder", encoder), ("decoder", decoder), ("critic", critic))
    }
    parts.count_both_ways(encoder, "encoder")
    parts.count_both_ways(decoder, "decoder")
    parts.count_both_ways(critic, "critic")

    def backward(loss):
        parts.start("backward")
        loss.backward()
        parts.start("other")

    def run():
        for _ in parts.rounds(90):
            x, noise = torch.randn(48, 96), torch.randn(48, 16)
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            parts.start("forward")
            encoded = encoder(x)
            parts.start("other")  # functions outside of modules
            mean, spread = encoded.chunk(2, dim=1)
            z, scored = mean + noise * (0.5 * spread).exp(), random.random() < 0.5
            parts.start("forward")
            y = decoder(z)
            score = critic(y) if scored else 0.0 * y
            parts.start("other")
            score = score.mean()
            backward((y - x).square().mean() + 0.01 * (mean.square() + spread.exp() - spread).mean() - 0.1 * score)
            update(parts, optimizers["encoder"])
            if random.random() < 0.7:
                update(parts, optimizers["decoder"])
            if random.random() < 0.4:
                optimizers["critic"].zero_grad()
                parts.start("forward")
                scores = critic(y.detach()), critic(x)
                parts.start("other")
                backward(scores[0].mean() - scores[1].mean())
                update(parts, optimizers["critic"])
            parts.steps["train"] += 1
        print(f"{y.mean().item():.6f}")

    return {"encoder": encoder, "decoder": decoder, "critic": critic}, run


@program()
def siamese(parts: Parts):
    """One encoder sees both of a pair, in two calls, before one backward pass; a head compares them."""
    encoder, head = net(96, 256, 64), nn.Linear(128, 1)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()])
    parts.count_both_ways(encoder, "encoder")
    parts.count_both_ways(head, "head")

    def run():
        for step in parts.rounds(110):
            optimizer.zero_grad()
            a, b = torch.randn(64, 96), torch.randn(64, 96)
            parts.start("forward")
            left = encoder(a)
            right = encoder(b)
            y = head(torch.cat([left, right], dim=1))
            parts.start("other")
            loss = nn.functional.softplus(y).mean()
            parts.start("backward")
            loss.backward()
            update(parts, optimizer)
            parts.steps["train"] += 1
            if step % 15 == 14:  # is looked at with gradients on, and nothing follows
                parts.start("forward")
                encoder(a)
                parts.start("other")
        print(f"{loss.item():.6f}")

    return {"encoder": encoder, "head": head}, run


@program()
def unrolled_at_random(parts: Parts):
    """A cell runs for two to nine steps of time, as each batch wants, and a head for each of the last ones."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.cell, self.head = nn.Linear(32, 96), nn.GRUCell(96, 128), nn.Linear(128, 16)

        def forward(self, x, length):
            state = torch.zeros(len(x), 128)
            for t in range(length):
                state = self.cell(self.embed(x[:, t]), state)
            return self.head(state)

    model = Net()
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-4)
    parts.count_both_ways(model)

    def run():
        for _ in parts.rounds(130):
            loss = train_classifier(parts, model, optimizer, torch.randn(32, 9, 32), random.randint(2, 9))
        print(f"{loss.item():.6f}")

    return model, run


@program()
def tasks_accumulated(parts: Parts):
    """A trunk, and heads of which each batch uses one at random; one optimizer steps after one to three batches."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(64, 192), nn.ReLU(), nn.Linear(192, 96))
            self.heads = nn.ModuleDict({task: mlp(96, width, 4) for task, width in HEADS.items()})

        def forward(self, x, task):
            return self.heads[task](self.trunk(x))

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    parts.count_both_ways(model)
    for task in HEADS:
        parts.time(task, {f"heads.{task}": model.heads[task]})

    def run():
        for _ in parts.rounds(110):
            optimizer.zero_grad()
            for _ in range(random.randint(1, 3)):
                task = random.choices(list(HEADS), weights=[1, 3, 6])[0]
                x = torch.randn(64, 64)
                parts.start("forward")
                y = model(x, task)
                parts.start("other")
                loss = y.square().mean()
                parts.start("backward")
                loss.backward()
                parts.start("other")
            update(parts, optimizer)
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


HEADS = {"rare": 512, "common": 64, "usual": 256}
