"""What is trained on the GPU: a transformer of plain modules, and layers that draw unlike watts."""

import torch
from torch import nn


class Attention(nn.Module):
    """Self-attention of plain parts, so that every part has a module of its own."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """A transformer's block."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Language(nn.Module):
    """A language model of a few blocks."""

    def __init__(self, words=8192, width=1024, depth=6):
        super().__init__()
        self.embedding, self.head = nn.Embedding(words, width), nn.Linear(width, words)
        self.blocks = nn.Sequential(*(Block(width, width // 64) for _ in range(depth)))

    def forward(self, x):
        return self.head(self.blocks(self.embedding(x)))


class Unlike(nn.Module):
    """Layers of some milliseconds each whose watts differ by construction: products, sums, waiting for memory."""

    def __init__(self, side=6144):
        super().__init__()
        self.bf16 = nn.Linear(side, side, dtype=torch.bfloat16)
        self.fp32 = nn.Linear(side // 2, side // 2)
        self.norm = nn.LayerNorm(side)
        self.gather = nn.Embedding(200_000, 512)
        self.conv = nn.Conv2d(64, 64, 3, padding=1)
        self.soft = nn.Softmax(-1)
        self.act = nn.GELU()

    def forward(self, given):
        for name, x in given.items():
            getattr(self, name)(x)

    def given(self, device, scale=1):
        """Return an input for each layer; `scale` shortens all of them."""

        def randn(*shape, **options):
            return torch.randn(*shape, device=device, **options)

        rows = 8192 // scale
        wide = randn(32 * rows, 8 * 1024)
        return {
            "bf16": randn(8 * rows, self.bf16.in_features, dtype=torch.bfloat16),
            "norm": randn(32 * rows, self.norm.normalized_shape[0]),
            "fp32": randn(2 * rows, self.fp32.in_features),
            "gather": torch.randint(0, 200_000, (512 * rows,), device=device),
            "conv": randn(1024 // scale, 64, 64, 64),
            "soft": wide,
            "act": wide,
        }


def language(device, batch=48, length=512, **options):
    """Return the model and a step of training it, some 30 ms on an H100."""
    model = Language(**options).to(device)
    x = torch.randint(0, model.head.out_features, (batch, length), device=device)
    y = torch.randint(0, model.head.out_features, (batch * length,), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            logits = model(x)
            loss = nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]).float(), y)
        loss.backward()
        optimizer.step()
        return loss

    return model, step
