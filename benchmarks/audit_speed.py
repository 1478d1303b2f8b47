"""What writing and checking a bundle costs: the bundle of an hour, and a million layer rows.

python benchmarks/audit_speed.py [ROWS]

CPU seconds are printed beside the wall's, because a loaded machine changes only these. The exit status is 1 where the
million rows took more than 30 CPU seconds or 400 MiB, or where a bundle was not consistent.
"""

import csv
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from io import StringIO
from math import fsum
from pathlib import Path

import numpy as np
from tests.support.bundles import large_report, records, tables_of, written

from torchwatt.audit import write_bundle, write_files

MOST_CPU_S, MOST_MIB = 30.0, 400.0
VERIFY = """
import sys, time
from pathlib import Path
from torchwatt.audit import verify
begun, cpu = time.perf_counter(), time.process_time()
found = verify(sys.argv[1])
wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
print(found.lines().__next__())
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
mib = int(peak.split()[1]) / 1024
print(f"verify: {found.verdict if found.ok else found} in {wall_s:.1f} s, {cpu_s:.1f} CPU s, {mib:.0f} MiB at most")
sys.exit(not (found.ok and cpu_s < float(sys.argv[2]) and mib < float(sys.argv[3])))
"""


def size(folder):
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def write(report, folder, **options):
    begun = time.perf_counter()
    write_bundle(report, folder, **options)
    return time.perf_counter() - begun


def verify(folder, most_cpu_s=1e9, most_mib=1e9):
    limits = [str(most_cpu_s), str(most_mib)]
    done = subprocess.run([sys.executable, "-c", VERIFY, folder, *limits], capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, sep="", end="")
    return done.returncode


def rows_of_layers(folder, count):
    """Write an hour of one GPU with so many rows of layers, each of another name, class and joules."""
    report = replace(large_report(1, 1.0, 1.0), factors=(), impacts=(), events=())
    tables = tables_of(report)
    header, idle, one = records(tables["layer.csv"])[:3]
    at = {name: index for index, name in enumerate(header)}
    device = records(tables["device.csv"])
    total_j = float(device[1][device[0].index("energy_j")])
    joules = (np.random.default_rng(0).dirichlet(np.full(count, 50.0)) * total_j).tolist()
    rest_j = total_j - fsum(joules)
    for name, value in (("energy_self_j", rest_j), ("energy_share", rest_j / total_j)):
        idle[at[name]] = repr(value)
    idle[at["energy_per_call_j"]], idle[at["calls"]], idle[at["time_self_s"]] = "", "0", "0.0"
    out = StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows((header, idle))
    names = sorted(f"blocks.{n // 8}.part{n % 8}" for n in range(count))
    for name, own_j in zip(names, joules, strict=True):
        cells = {
            "fqn": name, "energy_self_j": repr(own_j), "energy_share": repr(own_j / total_j), "calls": "100",
            "energy_per_call_j": repr(own_j / 100), "time_self_s": repr(3600.0 * own_j / total_j),
            "module_class": "Linear", "params": "10", "param_bytes": "40",
        }  # fmt: skip
        for column, text in cells.items():
            one[at[column]] = text
        writer.writerow(one)
    run = records(tables["run.csv"])
    run[1][run[0].index("closure_residual_j")] = repr(total_j - fsum([*joules, rest_j]))
    tables |= {"layer.csv": out.getvalue().encode(), "run.csv": written(run)}
    return write_files(tables, folder, run_id=report.run_id)


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    if len(sys.argv) < 2:
        hour = large_report(layers=500, hours=1.0, rate_hz=20.0, gpus=2, steps=36_000)
        print("one hour at 20 Hz, 500 layers forward and backward on 2 GPUs, 36 000 steps")
        for samples in ("parquet", "csv.gz"):
            seconds = write(hour, folder / samples, samples=samples)
            print(f"write with sample.{samples}: {seconds:.2f} s, {size(folder / samples):.1f} MB")
        verify(folder / "parquet")

    print(f"{count:,} layer rows")
    rows_of_layers(folder / "rows", count)
    print(f"{size(folder / 'rows'):.0f} MB")
    sys.exit(verify(folder / "rows", MOST_CPU_S, MOST_MIB))
