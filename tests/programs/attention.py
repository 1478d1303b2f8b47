"""Attention: training with tied weights, decoding with a cache, decoding with an assistant."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

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
        mask = torch.ones(time, k.shape[2], dtype=torch.bool).tril(k.shape[2] - time) if time > 1 else None
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
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


class Cache:
    """Keys and values of the tokens before, by block."""

    def __init__(self):
        self.kept = {}

    @property
    def length(self):
        return next(iter(self.kept.values()))[0].shape[2] if self.kept else 0

    def extend(self, block, k, v):
        if block in self.kept:
            k, v = torch.cat([self.kept[block][0], k], dim=2), torch.cat([self.kept[block][1], v], dim=2)
        self.kept[block] = k, v
        return k, v

    def cut(self, length):
        """Forget what comes after so many tokens."""
        self.kept = {block: (k[:, :, :length], v[:, :, :length]) for block, (k, v) in self.kept.items()}


@program()
def generation(parts: Parts):
    """Greedy decoding with a cache: a long first call for the prompt, then one call a token."""
    model = LanguageModel().eval()
    parts.count(model)

    @torch.no_grad()
    def run():
        for _ in parts.rounds(4):
            cache, x = Cache(), torch.randint(0, 512, (1, 128))
            for _ in range(64):
                parts.start("forward")
                y = model(x, cache)
                parts.start("other")
                x = y[:, -1:].argmax(dim=-1)
                parts.steps["inference"] += 1
        print(x.item())

    return {"": model}, run


@program()
def generation_with_assistant(parts: Parts):
    """A small model proposes four tokens, the big one checks them in one call; each call of either is a step."""
    target, draft = LanguageModel(width=192, depth=6).eval(), LanguageModel(width=64, depth=2).eval()
    parts.count(target, "target")
    parts.count(draft, "draft")

    @torch.no_grad()
    def run():
        for _ in parts.rounds(1):
            of_target, of_draft, text = Cache(), Cache(), torch.randint(0, 512, (1, 32))
            while text.shape[1] < 64:
                proposed = text
                for _ in range(4):
                    parts.start("forward")
                    y = draft(proposed[:, of_draft.length :], of_draft)
                    parts.start("other")
                    proposed = torch.cat([proposed, y[:, -1:].argmax(dim=-1)], dim=1)
                parts.start("forward")
                y = target(proposed[:, of_target.length :], of_target)
                parts.start("other")
                checked = y[:, -5:].argmax(dim=-1)
                agreed = int((checked[:, :-1] == proposed[:, -4:]).long().cumprod(dim=1).sum())
                text = torch.cat([proposed[:, : text.shape[1] + agreed], checked[:, agreed : agreed + 1]], dim=1)
                of_target.cut(text.shape[1] - 1)
                of_draft.cut(text.shape[1] - 1)
                parts.steps["inference"] += 5
        print(text[0, -1].item())

    return {"target": target, "draft": draft}, run


@program(counts=("forward",))  # a backward row counts repeated forward calls and, where there are any, nodes
def checkpointed(parts: Parts):
    """Blocks whose activations are computed again in the backward pass."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Block(128, 4) for _ in range(4))
            self.head = nn.Linear(128, 8)

        def forward(self, x):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return self.head(x)

    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    parts.count(model)

    def run():
        for _ in parts.rounds(22):
            optimizer.zero_grad()
            x = torch.randn(4, 64, 128)
            parts.start("forward")
            y = model(x)
            parts.start("other")
            loss = y.square().mean()
            parts.start("backward")
            loss.backward()
            parts.start("optimizer")
            optimizer.step()
            parts.start("other")
            parts.steps["train"] += 1
        print(f"{loss.item():.6f}")

    return model, run
