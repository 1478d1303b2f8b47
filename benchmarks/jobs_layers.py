"""Jobs of two and four gloo ranks whose equal layers time themselves: program | truth | reported.

PYTHONPATH=src:. OMP_NUM_THREADS=1 python benchmarks/jobs_layers.py [--ranks 2 4] [--steps 100] [--kinds ddp fsdp2 ...]

`truth` is what the program's own clocks say, `reported` what the report says, in percent of the block's time: a rank
that waits draws less, and its joules are fewer than its seconds. `communication` is what the program could time itself
(DDP's final wait, and collectives that Python calls): what is reported holds the copies around it too. Equal layers:
the largest over the smallest of them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from tests.distributed.layers_job import KINDS, Seen, job


def percent(values: list[float], total: float) -> str:
    """Return shares in percent, one column each."""
    return " ".join(f"{100 * value / total:5.1f}" for value in values)


def equal(values: list[float]) -> float:
    """Return how much the largest exceeds the smallest."""
    return max(values) / min(values)


def told(kind: str, ranks: list[Seen]) -> None:
    """Print each rank, and the mean over ranks."""
    for number, seen in enumerate(ranks):
        pairs = {
            "backward": (seen.backward_s, seen.reported_backward_s),
            "forward": (seen.forward_s, seen.reported_forward_s),
            "communication": ([seen.talk_s], [seen.reported_talk_s]),
        }
        columns = [
            f"{name} {percent(true_s, seen.seconds)} | {percent(said_s, seen.seconds)}"
            for name, (true_s, said_s) in pairs.items()
        ]
        print(" | ".join((f"{kind:12s} rank {number}", *columns)))
    true = np.mean([np.array(seen.backward_s) / seen.seconds for seen in ranks], axis=0)
    said = np.mean([np.array(seen.reported_backward_s) / seen.seconds for seen in ranks], axis=0)
    joules = np.sum([seen.backward_j for seen in ranks], axis=0)
    parts = {"truth": true, "reported": said, "joules": joules, "reported / truth": said / true}
    spread = " | ".join(f"{name} {equal(list(values)):.2f}" for name, values in parts.items())
    print(f"{kind:12s} all    | equal layers: {spread} | most apart {100 * abs(said - true).max():.1f} points")


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
