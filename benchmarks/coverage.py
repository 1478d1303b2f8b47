"""Do the stated intervals hold? Five programs of different kinds, each repeated in fresh processes.

An interval says what another repeat of the run would give, so each row of each repeat is asked whether it covers the
same row of every other repeat. Rows above 1 % of the total count, and the totals. The goal is 80 to 97 % for 90 %
intervals, no program below 70 %.
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections import defaultdict
from itertools import permutations

LEAST_SHARE = 0.01


def mlp():
    import torch
    from torch import nn

    model = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(256, 256), nn.ReLU())), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters())

    def program():
        for _ in range(600):
            optimizer.zero_grad()
            model(torch.randn(128, 256)).square().mean().backward()
            optimizer.step()

    return model, program


def convnet():
    import torch
    from torch import nn

    def block(inner, outer):
        return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU())

    body = (block(3, 16), block(16, 32), nn.MaxPool2d(4), block(32, 32))
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(2048, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def program():
        for _ in range(5):
            model.train()
            for _ in range(24):
                optimizer.zero_grad()
                model(torch.randn(8, 3, 32, 32)).square().mean().backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                for _ in range(8):
                    model(torch.randn(8, 3, 32, 32))

    return model, program


def transformer():
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
            x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v))
            return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(256, 128)
            self.blocks = nn.ModuleList(Block(128) for _ in range(4))
            self.head = nn.Linear(128, 256)

        def forward(self, tokens):
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())

    def program():
        for _ in range(120):
            optimizer.zero_grad()
            tokens = torch.randint(0, 256, (8, 64))
            nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
            optimizer.step()

    return model, program


def lstm():
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(32, 96, num_layers=2, batch_first=True), nn.Linear(96, 4)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    model = Model()
    optimizer = torch.optim.Adam(model.parameters())
    loader = DataLoader(TensorDataset(torch.randn(1600, 24, 32), torch.randint(0, 4, (1600,))), batch_size=16)

    def program():
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    return model, program


def inference():
    import torch

    model, _ = transformer()

    def program():
        model.eval()
        tokens = torch.randint(0, 256, (1, 8))
        with torch.no_grad():
            for _ in range(400):
                chosen = model(tokens[:, -64:])[:, -1:].argmax(-1)
                tokens = torch.cat((tokens, chosen), 1)

    return model, program


PROGRAMS = {one.__name__: one for one in (mlp, convnet, transformer, lstm, inference)}


def measure(name):
    """Run a program once and return what its report says: (row, joules, lo, hi)."""
    import torch

    import torchwatt as tw

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, program = PROGRAMS[name]()
    with warnings.catch_warnings(), tw.profile(model, name=name) as run:
        program()
    report = run.report
    rows = [
        (f"{e.domain} {e.fqn} {e.phase} {e.stage}", e.energy_self_j, e.energy_self_lo_j, e.energy_self_hi_j)
        for ledger in report.counted
        for e in ledger.entries
    ]
    rows += [(f"{x.domain} total", x.energy_j, x.energy_lo_j, x.energy_hi_j) for x in report.counted]
    lo_j, hi_j = report.interval_j or (None, None)
    return [*rows, ("run total", report.energy_j, lo_j, hi_j)]


def repeat(name):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--once", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def coverage(runs):
    """Return how many rows count, and in how many of the pairs of repeats one's interval covers the other's value."""
    by_row = defaultdict(dict)
    for number, rows in enumerate(runs):
        for row, energy_j, lo_j, hi_j in rows:
            by_row[row][number] = energy_j, lo_j, hi_j
    total_j = sum(values[0] for values in by_row["run total"].values()) / len(runs)
    counted, rows_hit, width = {}, [], []
    for row, values in by_row.items():
        mean_j = sum(energy_j for energy_j, _, _ in values.values()) / len(runs)
        if mean_j < LEAST_SHARE * total_j or any(lo_j is None for _, lo_j, _ in values.values()):
            continue
        pairs = [(values[a], values[b]) for a, b in permutations(values, 2)]
        hits = [lo_j <= other[0] <= hi_j for (_, lo_j, hi_j), other in pairs]
        counted[row] = sum(hits) / len(hits)
        rows_hit += hits
        width.append(sum((hi_j - lo_j) / 2 for _, lo_j, hi_j in values.values()) / len(runs) / mean_j)
    return counted, rows_hit, sorted(width)[len(width) // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", default=",".join(PROGRAMS))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rows", action="store_true", help="also print each row")
    parser.add_argument("--once", help="run one program once, for the others")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measure(options.once)))
        return
    print("| program | rows | coverage of another repeat | of the totals | median half width |\n|---|---|---|---|---|")
    everything = []
    for name in options.programs.split(","):
        counted, hits, width = coverage([repeat(name) for _ in range(options.repeats)])
        totals = [share for row, share in counted.items() if row.endswith(" total")]
        shares = [sum(hits) / len(hits), sum(totals) / len(totals), width]
        print("|", " | ".join([name, str(len(counted)), *(f"{share:.1%}" for share in shares)]), "|", flush=True)
        if options.rows:
            for row, share in sorted(counted.items(), key=lambda item: item[1]):
                print(f"  {share:6.1%} {row}")
        everything += hits
    print(f"| all | | {sum(everything) / len(everything):.1%} | | |")


if __name__ == "__main__":
    main()
