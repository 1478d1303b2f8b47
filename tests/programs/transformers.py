"""Attention: training with tied weights, decoding with a cache, decoding with an assistant."""

import torch
from torch import nn

from tests.programs.truth import Parts, program


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x, cache=None):
        batch, time, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.extend(self, k, v)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=time > 1)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, time, width))
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    """Embedding, blocks, and a head that shares the embedding's weight."""

    def __init__(self, vocabulary=512, width=128, depth=4, heads=4, length=256):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x, cache=None):
        begin = 0 if cache is None else cache.length
        y = self.tokens(x) + self.positions(torch.arange(begin, begin + x.shape[1]))
        for block in self.blocks:
            y = block(y, cache)
        return self.head(self.norm(y))


@program()
def transformer_tied(parts: Parts):
    """A small language model whose head is the transposed embedding."""
    model = LanguageModel()
    optimizer = torch.optim.AdamW(model.parameters())
    parts.count(model)
    parts.time("MLPs", {f"blocks.{n}.mlp": block.mlp for n, block in enumerate(model.blocks)})
    parts.time("LayerNorm", {"norm": model.norm, **norms(model)})
    parts.time("head", {"head": model.head})

    def run():
        for _ in parts.rounds(22):
            batch = torch.randint(0, 512, (4, 65))
            optimizer.zero_grad()
            parts.start("forward")
            y = model(batch[:, :-1])
            parts.start("other")
            loss = nn.functional.cross_entropy(y.flatten(0, 1), batch[:, 1:].flatten())
            parts.start("backward")
            loss.backward()
            parts.start("optimizer")
            optimizer.step()
            parts.start("other")
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run


def norms(model):
    return {
        f"blocks.{n}.{name}": getattr(block, name)
        for n, block in enumerate(model.blocks)
        for name in ("norm1", "norm2")
    }
