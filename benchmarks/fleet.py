"""A fleet: synthetic bundles written by our own writer, ingested by two processes, verified, and grouped by DuckDB.

PYTHONPATH=. python benchmarks/fleet.py [--bundles 5000] [--jobs 2] [--runs DIR]

`--runs` keeps the bundles, or takes them where they were kept. TMPDIR says where the rest goes.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from tests.support.fleet import PROJECTS, run_id

from torchwatt.audit import verify
from torchwatt.audit.fleet import ROLLUPS, check_lake, ingest, open_lake, rollup

# What is timed is the lake, so the bundles are made without waiting for the disk.
MAKE = """
import os, sys
from pathlib import Path
os.fsync = lambda descriptor: None
from tests.support.fleet import write_fleet
write_fleet(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])))
"""
VERIFIED = 60  # bundles, drawn at random; all are made by the same code


def timed(what, do):
    begun, cpu = time.perf_counter(), os.times()
    found = do()
    now = os.times()
    cpu_s = sum(now[:4]) - sum(cpu[:4])
    print(f"{what}: {time.perf_counter() - begun:.2f} s ({cpu_s:.2f} s of CPU)", flush=True)
    return found


def make(folder, bundles, jobs):
    edges = [bundles * i // jobs for i in range(jobs + 1)]
    parts = [subprocess.Popen([sys.executable, "-c", MAKE, folder, str(lo), str(hi)]) for lo, hi in pairwise(edges)]
    assert [part.wait() for part in parts] == [0] * jobs


def size(folder):
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return f"{sum(sizes) / 1e6:.1f} MB in {len(sizes)} files"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundles", type=int, default=5000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        runs, lake = asked.runs or Path(name) / "runs", open_lake(Path(name) / "lake")
        if not runs.exists():
            timed(f"make {asked.bundles} bundles", lambda: make(runs, asked.bundles, asked.jobs))
        print(f"  {size(runs)}")
        drawn = random.Random(0).sample(range(asked.bundles), min(VERIFIED, asked.bundles))
        bad = [n for n in drawn if not verify(runs / PROJECTS[n % len(PROJECTS)] / run_id(n)).ok]
        print(f"  `verify` on {len(drawn)} of them: {len(bad)} do not hold")
        found = timed("ingest", lambda: ingest(lake, [runs], jobs=asked.jobs))
        print(f"  {found.count('added')} added, {len(found.refused)} refused; the lake has {size(Path(name) / 'lake')}")
        again = timed("ingest again", lambda: ingest(lake, [runs], jobs=asked.jobs))
        print(f"  {again.count('present')} present")
        for by in ROLLUPS:
            rows = timed(f"roll-up by {by}", lambda by=by: rollup(lake, by))
            print(f"  {rows.num_rows} rows")
        print(f"  {len(timed('verify the lake', lambda: check_lake(lake)))} findings")


if __name__ == "__main__":
    main()
