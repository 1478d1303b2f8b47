"""How weights are changed: by hand, by an optimizer, after several batches, and for whole new models."""

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


def fit(parts, model, optimizer, rounds):
    for _ in parts.rounds(rounds):
        optimizer.zero_grad()
        loss = gradients(parts, model, torch.randn(64, 128))
        update(parts, optimizer)
        parts.steps["train"] += 1
    return loss


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
