"""Models whose parts are also called alone, as to generate between training steps: their backward calls have layers."""

import pytest
import torch
from torch import nn

import torchwatt as tw

WIDTH, ROWS = 128, 512
ENCODER, DECODER = 4, 8  # blocks, all alike


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + self.out(torch.relu(self.fc(x)))


class Stack(nn.Module):
    """Blocks in lists of lists, as in x-transformers: a program may call only some, so that their calls are counted."""

    def __init__(self, blocks):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.ModuleList([nn.LayerNorm(WIDTH)]), Block(), nn.Identity()]) for _ in range(blocks)
        )

    def forward(self, x):
        for (norm,), block, _ in self.layers:
            x = block(norm(x))
        return x


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Stack(ENCODER), Stack(DECODER)

    def forward(self, x):
        return self.decoder(self.encoder(x)).square().mean()

    @torch.no_grad()
    def generate(self, x):
        x = self.encoder(x)
        for _ in range(20):
            x = self.decoder(x)


def test_a_model_whose_parts_also_generate_keeps_the_layers_of_its_backward_calls():
    torch.manual_seed(0)
    model, x = Pair(), torch.randn(ROWS, WIDTH)
    optimizer = torch.optim.Adam(model.parameters())
    with tw.profile(live="off") as run:
        for step in range(160):
            model(x).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step and step % 40 == 0:
                model.generate(x[:4])
    rows = run.layers
    backward = rows[(rows.domain == "cpu") & (rows.phase == "backward")].groupby("fqn").energy_self_j.sum()
    encoder, decoder = (
        backward[backward.index.str.startswith(f"{part}.layers.")].sum() for part in ("encoder", "decoder")
    )
    assert encoder + decoder > 0.85 * backward.sum()
    assert decoder / encoder == pytest.approx(DECODER / ENCODER, rel=0.25)
