"""Reports of real models, saved in a notebook as its outputs: what the page shows of them needs no kernel."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import nbformat
import torch
from torch import nn

import torchwatt
from torchwatt.core.report import Report
from torchwatt.views.report_payload import MIME, to_payload


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.proj(nn.functional.scaled_dot_product_attention(query, key, value))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.down(self.act(self.up(x)))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm_2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class Gpt(nn.Module):
    def __init__(self, blocks: int, width: int = 32, words: int = 64) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words)

    def forward(self, ids):
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.downsample = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.downsample(x)).relu()


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Residual(16, 16, 1), Residual(16, 16, 1))
        self.layer2 = nn.Sequential(Residual(16, 32, 2), Residual(32, 32, 1))
        self.layer3 = nn.Sequential(Residual(32, 64, 2), Residual(64, 64, 1))
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


@cache
def model_report(name: str) -> Report:
    """Return the report of a few training steps of `gpt-8`, `gpt-48` or `resnet`."""
    kind, _, blocks = name.partition("-")
    model = Gpt(int(blocks)) if kind == "gpt" else ResNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with torchwatt.profile(model, region="FRA", name=name) as run:
        for _ in range(6):
            optimizer.zero_grad()
            batch = torch.randint(64, (4, 16)) if kind == "gpt" else torch.randn(4, 3, 32, 32)
            model(batch).square().mean().backward()
            optimizer.step()
    return run.report


def write_reports(path: Path, *reports: Report) -> None:
    """Write a notebook that has run: one cell a report."""
    cells = [
        nbformat.v4.new_code_cell(
            f"%%energy --name {report.name}\ntrain()",
            outputs=[nbformat.v4.new_output("display_data", {MIME: to_payload(report), "text/plain": report.name})],
        )
        for report in reports
    ]
    made = nbformat.v4.new_notebook(cells=cells)
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, path)
