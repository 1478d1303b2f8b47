"""Gradients that no optimizer uses: attacks on the input, penalties on gradients, functional updates."""

import torch
from torch import nn

from tests.programs.truth import Parts, program


def classifier():
    return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)).eval()


def logits(parts, model, x):
    parts.start("forward")
    y = model(x)
    parts.start("other")
    return y


def gradient(parts, loss, of):
    parts.start("backward")
    (found,) = torch.autograd.grad(loss, [of])
    parts.start("other")
    return found


@program()
def fgsm(parts: Parts):
    """One step along the gradient's sign, then the attacked batch once more without gradients."""
    model = classifier()
    parts.count(model)

    def run():
        for _ in parts.rounds(160):
            x, labels = torch.randn(64, 256, requires_grad=True), torch.randint(0, 10, (64,))
            found = gradient(parts, nn.functional.cross_entropy(logits(parts, model, x), labels), x)
            parts.steps["train"] += 1
            with torch.no_grad():
                attacked = logits(parts, model, x + 0.03 * found.sign())
            parts.steps["validation"] += 1
        print(f"{attacked.sum().item():.4f}")

    return model, run


@program()
def pgd(parts: Parts):
    """Ten small steps along the gradient's sign for each batch, projected back: all by `autograd.grad`."""
    model = classifier().requires_grad_(requires_grad=False)
    parts.count(model)

    def run():
        for _ in parts.rounds(28):
            x, labels = torch.randn(64, 256), torch.randint(0, 10, (64,))
            attacked = x.clone()
            for _ in range(10):
                attacked.requires_grad_()
                loss = nn.functional.cross_entropy(logits(parts, model, attacked), labels)
                found = gradient(parts, loss, attacked)
                attacked = (x + (attacked.detach() + 0.01 * found.sign() - x).clamp(-0.03, 0.03)).detach()
                parts.steps["train"] += 1
        print(f"{attacked.sum().item():.4f}")

    return model, run


@program(counts=("forward",))  # a module's backward runs once for the penalty and again through it
def gradient_penalty(parts: Parts):
    """A critic whose loss contains the norm of its gradient: backward through backward."""
    model = nn.Sequential(nn.Linear(128, 384), nn.Softplus(), nn.Linear(384, 384), nn.Softplus(), nn.Linear(384, 1))
    optimizer = torch.optim.Adam(model.parameters())
    parts.count(model)

    def run():
        for _ in parts.rounds(65):
            x = torch.randn(64, 128, requires_grad=True)
            y = logits(parts, model, x)
            parts.start("backward")
            (slope,) = torch.autograd.grad(y.sum(), [x], create_graph=True)
            parts.start("other")
            optimizer.zero_grad()
            loss = y.mean() + 10 * (slope.norm(dim=1) - 1).square().mean()
            parts.start("backward")
            loss.backward()
            parts.start("optimizer")
            optimizer.step()
            parts.start("other")
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


@program()
def functional_updates(parts: Parts):
    """`torch.func.grad` of a functional call; new weights are new tensors, and no optimizer exists."""
    model = classifier()
    parts.count(model)

    def run():
        weights = {name: p.detach() for name, p in model.named_parameters()}

        def loss_of(weights, x):
            parts.start("forward")
            y = torch.func.functional_call(model, weights, (x,))
            parts.start("other")
            loss = y.square().mean()
            parts.start("backward")
            return loss

        for _ in parts.rounds(120):
            gradients, loss = torch.func.grad_and_value(loss_of)(weights, torch.randn(64, 256))
            parts.start("other")
            weights = {name: p - 1e-3 * gradients[name] for name, p in weights.items()}
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


@program()
def per_sample_gradients(parts: Parts):
    """`vmap` of a gradient: the norm of each sample's own gradient, without an optimizer."""
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 10))
    parts.count(model)

    def run():
        weights = {name: p.detach() for name, p in model.named_parameters()}

        def loss_of(weights, x):
            parts.start("forward")
            y = torch.func.functional_call(model, weights, (x,))
            parts.start("other")
            loss = y.square().mean()
            parts.start("backward")
            return loss

        def gradients_of(weights, x):
            found = torch.func.grad(loss_of)(weights, x)
            parts.start("other")  # what `vmap` does to samples and to results is no pass
            return found

        each = torch.func.vmap(gradients_of, in_dims=(None, 0))
        for _ in parts.rounds(60):
            found = each(weights, torch.randn(64, 64))
            norms = sum(g.flatten(1).square().sum(dim=1) for g in found.values())
            parts.steps["train"] += 1
        print(f"{norms.mean().item():.4f}")

    return model, run


@program()
def optimized_perturbation(parts: Parts):
    """Carlini and Wagner's way: an optimizer of the perturbation alone, which belongs to no module."""
    model = classifier().requires_grad_(requires_grad=False)
    parts.count(model)

    def run():
        for _ in parts.rounds(10):
            x, labels = torch.randn(64, 256), torch.randint(0, 10, (64,))
            moved = torch.zeros_like(x, requires_grad=True)
            optimizer = torch.optim.Adam([moved], lr=0.01)
            for _ in range(20):
                optimizer.zero_grad()
                y = logits(parts, model, x + moved)
                loss = moved.square().sum() - nn.functional.cross_entropy(y, labels)
                parts.start("backward")
                loss.backward()
                parts.start("optimizer")
                optimizer.step()
                parts.start("other")
                parts.steps["train"] += 1
        print(f"{loss.item():.4f}")

    return model, run


@program()
def saliency(parts: Parts):
    """Gradients of the winning class with respect to the input: backward passes, and nothing is updated."""
    model = classifier()
    parts.count(model)

    def run():
        for _ in parts.rounds(140):
            x = torch.randn(64, 256, requires_grad=True)
            y = logits(parts, model, x)
            score = y.max(dim=1).values.sum()
            parts.start("backward")
            score.backward()
            parts.start("other")
            shown = x.grad.abs().amax(dim=1)
            model.zero_grad()
            parts.steps["train"] += 1
        print(f"{shown.mean().item():.6f}")

    return model, run


@program()
def signs_small(parts: Parts):
    """Steps along the sign of the gradient of a tiny model, far below a millisecond each."""
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 4)).eval()
    parts.count(model)

    def run():
        for _ in parts.rounds(60):
            x, labels = torch.randn(16, 32), torch.randint(0, 4, (16,))
            for _ in range(20):
                x.requires_grad_()
                found = gradient(parts, nn.functional.cross_entropy(logits(parts, model, x), labels), x)
                x = (x.detach() + 0.01 * found.sign()).clamp(-3, 3)
                parts.steps["train"] += 1
        print(f"{x.sum().item():.4f}")

    return model, run


@program(counts=("forward",))  # second derivatives run through a module more than once
def meta_by_hand(parts: Parts):
    """Each task adapts a copy of the weights by hand, twice; the loss after that moves the weights themselves."""
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    parts.count(model)

    def run():
        weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

        def loss_of(values, x):
            parts.start("forward")
            y = torch.func.functional_call(model, values, (x,))
            parts.start("other")
            return (y - x.sum(dim=1, keepdim=True)).square().mean()

        def slopes(loss, of, create_graph):
            parts.start("backward")
            found = torch.autograd.grad(loss, list(of.values()), create_graph=create_graph)
            parts.start("other")
            parts.steps["train"] += 1
            return dict(zip(of, found, strict=True))

        for _ in parts.rounds(120):
            adapted = weights
            for _ in range(2):
                found = slopes(loss_of(adapted, torch.randn(32, 16)), adapted, create_graph=True)
                adapted = {name: p - 0.01 * found[name] for name, p in adapted.items()}
            loss = loss_of(adapted, torch.randn(32, 16))
            found = slopes(loss, weights, create_graph=False)
            weights = {name: (p - 0.01 * found[name]).detach().requires_grad_() for name, p in weights.items()}
        print(f"{loss.item():.4f}")

    return model, run
