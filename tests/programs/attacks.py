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
