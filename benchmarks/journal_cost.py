"""What does a journal cost the user's process and the sampler?

    python benchmarks/journal_cost.py [--seconds 10] [--pairs 4] [--depth 24] [--width 256] [--powercap DIR]

Trains with and without a journal in turn, and prints the ratio of median step times, pair by pair, the CPU time of the
journal's thread and of the sampler per second of run, and how many bytes were written.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import torch
from torch import nn

import torchwatt as tw


def thread_cpu_s():
    """Return the CPU time of the journal's thread, of this process."""
    thread = next((t for t in threading.enumerate() if t.name == "torchwatt-journal"), None)
    return int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0]) / 1e9 if thread else 0.0


def block(asked, net, optimizer, x, journal):
    """Train for some seconds; return median step, thread CPU and sampler CPU per second, bytes per second."""
    steps, cpu_s = [], 0.0
    with tw.profile(net, journal=journal, powercap_root=asked.powercap) as run:
        end = time.perf_counter() + asked.seconds
        while (began := time.perf_counter()) < end:
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
            steps.append(time.perf_counter() - began)
        cpu_s = thread_cpu_s()
        size = sum(path.stat().st_size for path in Path(journal).iterdir()) if journal else 0
    seconds = run.duration_s
    return statistics.median(steps), cpu_s / seconds, run.report.sampler.cpu_s / seconds, size / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--powercap", help="a simulated powercap tree")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    layers = [nn.Sequential(nn.Linear(asked.width, asked.width), nn.ReLU()) for _ in range(asked.depth)]
    net = nn.Sequential(*layers, nn.Linear(asked.width, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    x = torch.randn(256, asked.width)
    ratios, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        block(argparse.Namespace(**{**vars(asked), "seconds": 2.0}), net, optimizer, x, None)
        for pair in range(asked.pairs):
            found = {}
            for journal in (None, f"{folder}/{pair}") if pair % 2 else (f"{folder}/{pair}", None):
                found[journal is not None] = block(asked, net, optimizer, x, journal)
            ratios.append(found[True][0] / found[False][0])
            rows.append((found[True], found[False]))
            (step, _, without, _), (_, thread, sampler, size) = found[False], found[True]
            print(
                f"step {1e3 * step:.2f} ms, with a journal {ratios[-1]:.4f} x; thread {1e3 * thread:.2f} ms/s; "
                f"sampler {1e3 * without:.1f} -> {1e3 * sampler:.1f} ms/s; {size / 1e3:.1f} kB/s"
            )
    more = statistics.median(on[2] - off[2] for on, off in rows)
    print(f"median: {statistics.median(ratios):.4f} x, sampler {1e3 * more:+.2f} ms/s")


if __name__ == "__main__":
    main()
