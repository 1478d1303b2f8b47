"""Jobs of two and four gloo ranks whose equal layers time themselves: program | truth | reported.

PYTHONPATH=src:. OMP_NUM_THREADS=1 python benchmarks/jobs_layers.py [--ranks 2 4] [--steps 100] [--kinds ddp fsdp2 ...]

`truth` is what the program's own clocks say, in percent of the block's time; `reported` is in percent of its joules, at
constant power the same. `communication` is what the program could time itself (DDP's final wait, and collectives that
Python calls): what is reported holds the copies around it too. Equal layers: the largest over the smallest of them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from tests.jobs.layers_job import KINDS, Seen, job


def percent(values: list[float], total: float) -> str:
    """Return shares in percent, one column each."""
    return " ".join(f"{100 * value / total:5.1f}" for value in values)


def equal(values: list[float]) -> float:
    """Return how much the largest exceeds the smallest."""
    return max(values) / min(values)


def told(kind: str, ranks: list[Seen]) -> None:
    """Print each rank, and the mean over ranks."""
    for number, seen in enumerate(ranks):
        print(
            f"{kind:12s} rank {number} | backward {percent(seen.backward_s, seen.seconds)} |"
            f" {percent(seen.backward_j, seen.energy_j)} | forward {percent(seen.forward_s, seen.seconds)} |"
            f" {percent(seen.forward_j, seen.energy_j)} | communication {percent([seen.talk_s], seen.seconds)} |"
            f" {percent([seen.communication_j], seen.energy_j)}"
        )
    true = np.mean([np.array(seen.backward_s) / seen.seconds for seen in ranks], axis=0)
    mine = np.mean([np.array(seen.backward_j) / seen.energy_j for seen in ranks], axis=0)
    print(
        f"{kind:12s} all    | equal layers: truth {equal(list(true)):.2f} | reported {equal(list(mine)):.2f} |"
        f" reported / truth {equal(list(mine / true)):.2f} | most apart {100 * abs(mine - true).max():.1f} points"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--budget", type=float, help="overhead_budget of all kinds, else each kind's own")
    asked = parser.parse_args()
    for ranks in asked.ranks:
        with tempfile.TemporaryDirectory() as folder:
            found = job(
                Path(folder), tuple(asked.kinds), ranks=ranks, size=asked.size, steps=asked.steps, budget=asked.budget
            )
        print(f"\n{ranks} ranks: percent, truth | reported, layer by layer")
        for kind, seen in found.items():
            told(kind, seen)


if __name__ == "__main__":
    main()
