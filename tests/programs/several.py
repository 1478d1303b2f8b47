"""Several optimizers and several models: in one round, in phases, at random."""

import copy
import random

import torch
from torch import nn

from tests.programs.truth import Parts, program
from tests.programs.updates import fit, gradients, net, update


@program()
def gan(parts: Parts):
    """Generator and critic, each with its optimizer, one step of both a round."""
    generator, critic = net(64, 256, 128), net(128, 256, 1)
    of_generator = torch.optim.Adam(generator.parameters(), betas=(0.5, 0.999))
    of_critic = torch.optim.Adam(critic.parameters(), betas=(0.5, 0.999))
    parts.count(generator, "generator")
    parts.count(critic, "critic")

    def run():
        for _ in parts.rounds(90):
            real, noise = torch.randn(64, 128), torch.randn(64, 64)
            parts.start("forward")
            fake = generator(noise)
            scores = critic(real), critic(fake.detach())
            parts.start("other")
            of_critic.zero_grad()
            loss = (1 - scores[0]).relu().mean() + (1 + scores[1]).relu().mean()
            parts.start("backward")
            loss.backward()
            update(parts, of_critic)
            of_generator.zero_grad()
            parts.start("forward")
            score = critic(fake)
            parts.start("other")
            loss = -score.mean()
            parts.start("backward")
            loss.backward()
            update(parts, of_generator)
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return {"generator": generator, "critic": critic}, run


def two_phases(parts, *, keep):
    model = net()
    parts.count(model)

    def run():
        head = torch.optim.AdamW(model[4].parameters())
        fit(parts, model, head, 70)
        everything = torch.optim.AdamW(model.parameters())
        if not keep:
            del head
        loss = fit(parts, model, everything, 70)
        print(f"{loss.item():.6f}")

    return model, run


@program()
def two_phases_first_kept(parts: Parts):
    """Fine-tuning: the head first, then everything; the first optimizer stays in scope."""
    return two_phases(parts, keep=True)


@program()
def two_phases_first_dropped(parts: Parts):
    """Fine-tuning: the head first, then everything; the first optimizer is gone by then."""
    return two_phases(parts, keep=False)


@program()
def two_optimizers_alternating(parts: Parts):
    """Embeddings every batch, the rest every second: which optimizers step differs from batch to batch."""
    model = net()
    every = torch.optim.SGD(model[0].parameters(), 1e-3)
    second = torch.optim.SGD([p for n, p in model.named_parameters() if not n.startswith("0.")], 1e-3)
    parts.count(model)

    def run():
        for step in parts.rounds(170):
            model.zero_grad()
            loss = gradients(parts, model, torch.randn(64, 128))
            update(parts, every)
            if step % 2:
                update(parts, second)
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


@program()
def two_optimizers_one_model(parts: Parts):
    """Two optimizers for the two halves of one model, both after each backward pass."""
    model = net()
    optimizers = [
        torch.optim.AdamW(model[0].parameters()),
        torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], 1e-3),
    ]
    parts.count(model)

    def run():
        for _ in parts.rounds(130):
            model.zero_grad()
            loss = gradients(parts, model, torch.randn(64, 128))
            for optimizer in optimizers:
                update(parts, optimizer)
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


@program()
def forward_forward(parts: Parts):
    """Each layer has a loss and an optimizer of its own; all step once a batch, in the same order."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(128, 128), nn.ReLU()) for _ in range(4)))
    optimizers = [torch.optim.SGD(layer.parameters(), 1e-3) for layer in model]
    parts.count(model)

    def run():
        for _ in parts.rounds(120):
            x = torch.randn(128, 128)
            for layer, optimizer in zip(model, optimizers, strict=True):
                optimizer.zero_grad()
                parts.start("forward")
                y = layer(x)
                parts.start("other")
                loss = nn.functional.softplus(2 - y.square().mean(dim=1)).mean()
                parts.start("backward")
                loss.backward()
                update(parts, optimizer)
                x = y.detach()
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


@program()
def moving_average(parts: Parts):
    """A copy of the weights follows them after each step, and is evaluated now and then."""
    model = net()
    average = copy.deepcopy(model).requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    parts.count(model, "model")
    parts.count(average, "average")

    def run():
        for step in parts.rounds(130):
            optimizer.zero_grad()
            x = torch.randn(64, 128)
            parts.start("forward")
            y = model(x)
            parts.start("other")
            loss = y.square().mean()
            parts.start("backward")
            loss.backward()
            update(parts, optimizer)
            with torch.no_grad():
                for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                    slow.lerp_(fast, 0.01)
            parts.steps["train"] += 1
            if step % 10 == 9:
                parts.start("forward")
                average(x)
                parts.start("other")
                parts.steps["validation"] += 1
        print(f"{loss.item():.6f}")

    return {"model": model, "average": average}, run


@program()
def distillation(parts: Parts):
    """In each training step a bigger frozen teacher runs first, without gradients."""
    teacher, student = net(128, 768).eval().requires_grad_(requires_grad=False), net(128, 128)
    optimizer = torch.optim.AdamW(student.parameters())
    parts.count(teacher, "teacher")
    parts.count(student, "student")

    def run():
        for _ in parts.rounds(150):
            x = torch.randn(64, 128)
            parts.start("forward")
            with torch.no_grad():
                target = teacher(x)
            y = student(x)
            parts.start("other")
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(y, target)
            parts.start("backward")
            loss.backward()
            update(parts, optimizer)
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return {"teacher": teacher, "student": student}, run


@program()
def two_towers(parts: Parts):
    """Contrastive learning: two models run forward before one backward pass and one step of one optimizer."""
    texts, images = net(128, 256, 64), net(192, 512, 64)
    optimizer = torch.optim.AdamW([*texts.parameters(), *images.parameters()])
    parts.count(texts, "texts")
    parts.count(images, "images")

    def run():
        for _ in parts.rounds(80):
            optimizer.zero_grad()
            a, b = torch.randn(64, 128), torch.randn(64, 192)
            parts.start("forward")
            left = texts(a)
            right = images(b)
            parts.start("other")
            loss = nn.functional.cross_entropy(left @ right.T, torch.arange(64))
            parts.start("backward")
            loss.backward()
            update(parts, optimizer)
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return {"texts": texts, "images": images}, run


@program()
def tasks_at_random(parts: Parts):
    """One trunk with three heads; each batch is of one task at random, with the optimizer of that task."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 256))
            self.heads = nn.ModuleDict(
                {"small": nn.Linear(256, 2), "middle": net(256, 256, 10), "big": net(256, 768, 10)}
            )

        def forward(self, x, task):
            return self.heads[task](self.trunk(x))

    model = Shared()
    optimizers = {
        task: torch.optim.AdamW([*model.trunk.parameters(), *head.parameters()]) for task, head in model.heads.items()
    }
    parts.count(model)
    for task, head in model.heads.items():
        parts.time(task, {f"heads.{task}": head})

    def run():
        for _ in parts.rounds(90):
            task = random.choice(("small", "small", "middle", "big"))
            optimizers[task].zero_grad()
            loss = gradients(parts, lambda x, task=task: model(x, task), torch.randn(64, 128))
            update(parts, optimizers[task])
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run
