"""A fleet: synthetic bundles written by our own writer, ingested by two processes, verified, and grouped by DuckDB.

PYTHONPATH=. python benchmarks/fleet.py [--bundles 5000] [--jobs 2] [--runs DIR] [--shared]

`--runs` keeps the bundles, or takes them where they were kept. TMPDIR says where the rest goes. `--shared`: another
fleet, whose processes share cards and packages, with copies under new ids and one bundle in fifty broken in one of ten
ways; four programs ingest all of it at once, and every sum is compared with what the devices used.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from math import fsum
from pathlib import Path

from tests.support.fleet import PROJECTS, run_id
from tests.support.shared_fleet import ingest_at_once, make_bundles

from torchwatt.audit import verify
from torchwatt.audit.fleet import ROLLUPS, check_lake, open_lake, rollup
from torchwatt.audit.fleet.ingestion import ingest

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


def count_once(bundles, jobs):
    with tempfile.TemporaryDirectory() as name:
        root, where = Path(name) / "runs", Path(name) / "lake"
        fleet, broken = timed(f"make {bundles} bundles", lambda: make_bundles(root, bundles, jobs))
        copies = 3 * len(fleet.clones)
        print(f"  {size(root)}; {copies} copies under new ids, {len(broken)} broken")
        for told, refused in timed("four ingests at once", lambda: ingest_at_once(where, root)):
            wrong = refused ^ {str(folder) for folder in broken.values()}
            print(f"  {told.rpartition(': ')[2]}; refused too much or too little: {sorted(wrong) or 'nothing'}")
        lake = open_lake(where)
        truth = fleet.truth(set(range(bundles)) - set(broken))
        for by in ROLLUPS:
            rows = timed(f"roll-up by {by}", lambda by=by: rollup(lake, by)).to_pylist()
            column, told = ("energy_mwh", 3.6e9) if by == "scope2" else ("energy_j", 1.0)
            found, expected = fsum(row[column] for row in rows) * told, fsum(truth.values())
            print(f"  {len(rows)} rows, {found:.3f} J for {expected:.3f} J used: {found / expected - 1:+.1e}")
        rows = rollup(lake, "project").to_pylist()
        print(f"  as the runs say: {fsum(row['told_j'] for row in rows):.3f} J")
        for state in sorted({row["adds"] for row in rows}):
            mine = [row for row in rows if row["adds"] == state]
            print(f"  {state}: {sum(row['runs'] for row in mine)} runs, {fsum(row['energy_j'] for row in mine):.0f} J")
        print(f"  {len(timed('verify the lake', lambda: check_lake(lake)))} findings")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundles", type=int, default=5000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--shared", action="store_true")
    asked = parser.parse_args()
    if asked.shared:
        count_once(asked.bundles, asked.jobs)
        return
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
