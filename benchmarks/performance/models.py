"""What is trained: a small transformer, a chain of any number of modules."""

import torch
from torch import nn


class Block(nn.Module):
    """A transformer's block."""

    def __init__(self, width, heads=4):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """The same in a class of its own, as most models are: no call inside it passes the wrapper of its class."""

    def __init__(self, width):
        super().__init__()
        self.embed, self.head = nn.Embedding(256, width), nn.Linear(width, 256)
        self.blocks = nn.ModuleList(Block(width) for _ in range(6))

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def transformer(**options):
    """Return a model of about 80 modules and its step, 20 to 50 ms on one core; options go to the optimizer."""
    model = nn.Sequential(nn.Embedding(256, 96), *(Block(96) for _ in range(6)), nn.Linear(96, 256))
    return training(model, torch.randint(0, 256, (8, 64)), **options)


def own_transformer(**options):
    """Return the same as `Transformer`."""
    return training(Transformer(96), torch.randint(0, 256, (8, 64)), **options)


def narrow_transformer(**options):
    """Return the same modules with next to nothing to compute, so that the clock sees what each call of them costs."""
    model = nn.Sequential(nn.Embedding(256, 8), *(Block(8) for _ in range(6)), nn.Linear(8, 256))
    return training(model, torch.randint(0, 256, (1, 4)), **options)


def transformer_on(device, **options):
    """Return the same on another device, with layers wide enough to keep it busy for 20 to 50 ms a step."""
    width, torch.backends.cuda.matmul.allow_tf32 = 1024, True
    model = nn.Sequential(nn.Embedding(256, width), *(Block(width, 16) for _ in range(6)), nn.Linear(width, 256))
    return training(model.to(device), torch.randint(0, 256, (24, 512), device=device), **options)


def chain(modules):
    """Return a model of so many modules, and its step; each does next to nothing."""
    return training(nn.Sequential(*(nn.Linear(8, 8) for _ in range(modules - 1))), torch.randn(4, 8), foreach=True)


def training(model, x, **options):
    """Return the model and a step of training it."""
    optimizer = torch.optim.AdamW(model.parameters(), **options)

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return model, step
