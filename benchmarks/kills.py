"""Is a run that is killed recovered? Many small trainings, killed by SIGKILL at random moments.

    PYTHONPATH=src:. python benchmarks/kills.py [--runs 200] [--jobs 2] [--seed 1]

Each training is metered through a simulated powercap tree whose joules are known, and killed up to 3 s after its
journal was made: its own process, its process group, itself and its sampler at one instant, the sampler first and
itself 0.7 s later, or the sampler alone. One in five (and every one whose sampler alone is killed) ends by itself at
about that moment, so that starting and stopping are killed as well. Loss is the time from the kill to the last reading.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import torch
from tests.support.killed import kill_one
from tests.support.powercap import FakePowercap


def wiggle(tree, stop):
    """Change the tree's power all the time, so that a wrong joule shows."""
    watts = 40.0
    while not stop.wait(0.037):
        watts = 130.0 - watts
        tree.set("package-0", watts)


def work(first, runs, longest_s, keep):
    """Kill some runs and print a line of JSON for each."""
    torch.set_num_threads(1)
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as temporary, FakePowercap(Path(temporary) / "powercap") as tree:
        folder = Path(keep or temporary)
        thread = threading.Thread(target=wiggle, args=(tree, stop), daemon=True)
        thread.start()
        for seed in range(first, first + runs):
            print(json.dumps(asdict(kill_one(tree, folder, seed, longest_s=longest_s))), flush=True)
        stop.set()
        thread.join()


def table(results):
    """Print what came of all runs."""
    if not results:
        return
    recovered = [r for r in results if r["balanced"] and r["verified"] and not r["problem"]]
    print(f"{len(recovered)} of {len(results)} recovered: books balanced to 1e-9 and `verify` passes")
    left_over = sum(r["left_over"] for r in results)
    print(f"status: {dict(Counter(r['status'] for r in results))}; samplers left over: {left_over}")
    by_way = defaultdict(list)
    for result in results:
        by_way[result["way"]].append(result)
    print(f"{'killed':14} {'runs':>5} {'median loss':>12} {'worst loss':>11} {'layers known':>13}")
    for way, some in [*sorted(by_way.items()), ("all", results)]:
        losses = [r["loss_s"] for r in some]
        known = sum(r["layers_s"] for r in some) / max(sum(r["run_s"] for r in some), 1e-9)
        print(f"{way:14} {len(some):5} {statistics.median(losses):10.3f} s {max(losses):9.3f} s {known:12.0%}")
    errors = [abs(r["error_rel"]) for r in results if r["error_rel"] is not None]
    if errors:
        middle = statistics.median(errors)
        print(f"joules against the truth: median {middle:.3%} off, worst {max(errors):.3%} ({len(errors)} runs)")
    for result in results:
        if result not in recovered:
            print(result)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest", type=float, default=3.0, metavar="S", help="after so long the kill at the latest")
    parser.add_argument("--keep", metavar="DIR", help="leave journals and bundles there")
    parser.add_argument("--work", action="store_true", help="be one of the jobs")
    asked = parser.parse_args()
    if asked.work:
        work(asked.seed, asked.runs, asked.longest, asked.keep)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was found until then is printed
    with tempfile.TemporaryDirectory() as folder:
        try:
            run_jobs(asked, Path(folder))
        except KeyboardInterrupt:
            print("broken off:")
        found = sorted(Path(folder).glob("*.jsonl"))
        table([json.loads(line) for path in found for line in path.read_text().splitlines() if line.endswith("}")])


def run_jobs(asked, folder):
    """Share the runs out to processes, and wait for them."""
    share, jobs = -(-asked.runs // asked.jobs), []
    try:
        for first in range(0, asked.runs, share):
            command = [sys.executable, __file__, "--work", f"--seed={asked.seed + first}"]
            command += [f"--runs={min(share, asked.runs - first)}", f"--longest={asked.longest}"]
            command += [f"--keep={asked.keep}"] if asked.keep else []
            with (folder / f"{first}.jsonl").open("w") as file:
                jobs.append(subprocess.Popen(command, stdout=file))
        for job in jobs:
            job.wait()
    finally:
        for job in jobs:
            job.kill()


if __name__ == "__main__":
    main()
