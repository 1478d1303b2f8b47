"""How weights are changed: by hand, by one optimizer, by several, after several batches, and for whole new models."""

import copy
import random

import torch
from torch import nn

from tests.programs.truth import Parts, program


def net(width=128, hidden=512, out=10):
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out)
    )


def gradients(parts, model, x):
    """Run forward and backward, and leave the parts in `other`."""
    parts.start("forward")
    y = model(x)
    parts.start("other")
    loss = y.square().mean()
    parts.start("backward")
    loss.backward()
    parts.start("other")
    return loss


def update(parts, optimizer):
    parts.start("optimizer")
    optimizer.step()
    parts.start("other")


@program()
def update_by_hand(parts: Parts):
    """Plain SGD written out: no torch optimizer ends a step."""
    model = net()
    parts.count(model)

    def run():
        for _ in parts.rounds(180):
            model.zero_grad()
            loss = gradients(parts, model, torch.randn(64, 128))
            with torch.no_grad():
                for p in model.parameters():
                    p -= 1e-3 * p.grad
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


@program()
def momentum_by_hand_small(parts: Parts):
    """A regression as in a first lesson: one layer, momentum by hand, far below a millisecond a step."""
    model = nn.Linear(64, 1)
    parts.count(model)

    def run():
        velocity = [torch.zeros_like(p) for p in model.parameters()]
        for _ in parts.rounds(2500):
            model.zero_grad()
            loss = gradients(parts, model, torch.randn(32, 64))
            with torch.no_grad():
                for p, v in zip(model.parameters(), velocity, strict=True):
                    v.mul_(0.9).add_(p.grad)
                    p.sub_(v, alpha=1e-2)
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


@program()
def accumulation(parts: Parts):
    """Four batches for one step of the optimizer."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    parts.count(model)

    def run():
        for _ in parts.rounds(45):
            optimizer.zero_grad()
            for _ in range(4):
                loss = gradients(parts, model, torch.randn(64, 128))
            update(parts, optimizer)
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


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


def fit(parts, model, optimizer, rounds):
    for _ in parts.rounds(rounds):
        optimizer.zero_grad()
        loss = gradients(parts, model, torch.randn(64, 128))
        update(parts, optimizer)
        parts.steps["train"] += 1
    return loss


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
def evaluation_inside(parts: Parts):
    """Ten training steps, then five evaluation batches, again and again."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    parts.count(model)

    def run():
        for _ in parts.rounds(13):
            model.train()
            fit_few(parts, model, optimizer)
            model.eval()
            evaluate(parts, model, 5)
        print(f"{parts.calls['(root)']}")

    return model, run


def fit_few(parts, model, optimizer):
    for _ in range(10):
        optimizer.zero_grad()
        gradients(parts, model, torch.randn(64, 128))
        update(parts, optimizer)
        parts.steps["train"] += 1


@torch.no_grad()
def evaluate(parts, model, batches):
    for _ in range(batches):
        x = torch.randn(256, 128)
        parts.start("forward")
        y = model(x)
        parts.start("other")
        y.argmax(dim=-1)
        parts.steps["validation"] += 1


@program()
def evaluation_inside_by_hand(parts: Parts):
    """The same with weights that are moved by hand, and without `eval()`."""
    model = net()
    parts.count(model)

    def run():
        for _ in parts.rounds(15):
            for _ in range(10):
                model.zero_grad()
                loss = gradients(parts, model, torch.randn(64, 128))
                with torch.no_grad():
                    for p in model.parameters():
                        p.add_(p.grad, alpha=-1e-3)
                parts.steps["train"] += 1
            evaluate(parts, model, 5)
        print(f"{loss.item():.6f}")

    return model, run


@program()
def folds(parts: Parts):
    """Cross-validation: for each of four folds a new model and a new optimizer in the same variables."""

    def run():
        for _ in range(4):
            model = parts.count(net())
            optimizer = torch.optim.AdamW(model.parameters())
            for _ in parts.rounds(30):
                optimizer.zero_grad()
                x = torch.randn(64, 128)
                parts.start("forward")
                y = model(x)
                parts.start("other")
                loss = y.square().mean()
                parts.start("backward")
                loss.backward()
                update(parts, optimizer)
                parts.steps["train"] += 1
            parts.start("forward")
            with torch.no_grad():
                model(x)
            parts.start("other")
            parts.steps["validation"] += 1
        print(f"{loss.item():.6f}")

    return {"": net()}, run


@program()
def folds_with_functions(parts: Parts):
    """The same with functions that train and evaluate what they are given."""

    def run():
        for _ in range(4):
            model = parts.count(net())
            optimizer = torch.optim.AdamW(model.parameters())
            loss = fit(parts, model, optimizer, 30)
            evaluate(parts, model, 3)
        print(f"{loss.item():.6f}")

    return {"": net()}, run


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
def lbfgs(parts: Parts):
    """Each step calls a closure several times; what the closure does outside the model is the optimizer's."""
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 8))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
    parts.count(model)

    def run():
        x, target = torch.randn(512, 64), torch.randn(512, 8)

        def closure():
            optimizer.zero_grad()
            parts.start("forward")
            y = model(x)
            parts.start("optimizer")
            loss = nn.functional.mse_loss(y, target)
            parts.start("backward")
            loss.backward()
            parts.start("optimizer")
            return loss

        for _ in parts.rounds(18):
            parts.start("optimizer")
            loss = optimizer.step(closure)
            parts.start("other")
            parts.steps["train"] += 1
        print(f"{loss.item():.4f}")

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


class Adapted(nn.Module):
    """A frozen linear layer with a trainable product of two thin matrices beside it."""

    def __init__(self, base, rank=8):
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@program()
def adapters(parts: Parts):
    """LoRA: only thin matrices beside frozen layers are trained."""
    model = nn.Sequential(
        Adapted(nn.Linear(256, 768)), nn.ReLU(), Adapted(nn.Linear(768, 768)), nn.ReLU(), Adapted(nn.Linear(768, 10))
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    parts.count(model)

    def run():
        for _ in parts.rounds(65):
            optimizer.zero_grad()
            loss = gradients(parts, model, torch.randn(64, 256))
            update(parts, optimizer)
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


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
def sharpness_aware(parts: Parts):
    """SAM: weights are moved uphill by hand, a second pass gives the gradient, one optimizer step ends the round."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    parts.count(model)

    def run():
        for _ in parts.rounds(80):
            x = torch.randn(64, 128)
            optimizer.zero_grad()
            gradients(parts, model, x)
            with torch.no_grad():
                moves = [p.grad * 0.05 / (p.grad.norm() + 1e-12) for p in model.parameters()]
                for p, move in zip(model.parameters(), moves, strict=True):
                    p.add_(move)
            optimizer.zero_grad()
            loss = gradients(parts, model, x)
            with torch.no_grad():
                for p, move in zip(model.parameters(), moves, strict=True):
                    p.sub_(move)
            update(parts, optimizer)
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


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


@program()
def lower_precision(parts: Parts):
    """Forward under autocast to bfloat16, with a clipped gradient and a learning-rate schedule."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    parts.count(model)

    def run():
        for _ in parts.rounds(70):
            optimizer.zero_grad()
            x = torch.randn(64, 128)
            parts.start("forward")
            with torch.autocast("cpu", torch.bfloat16):
                y = model(x)
            parts.start("other")
            loss = y.float().square().mean()
            parts.start("backward")
            loss.backward()
            parts.start("other")
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            update(parts, optimizer)
            schedule.step()
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run
