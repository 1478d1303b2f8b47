"""What writing and checking a bundle costs: the bundle of an hour, and a million layer rows.

python benchmarks/audit_speed.py
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.bundles import large_report

from torchwatt.audit import write_bundle

VERIFY = """
import sys, time
from pathlib import Path
from torchwatt.audit import verify
begun = time.perf_counter()
found = verify(sys.argv[1])
seconds = time.perf_counter() - begun
print(found.lines().__next__())
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(f"verify: {'OK' if found.ok else found} in {seconds:.1f} s, {int(peak.split()[1]) / 1024:.0f} MiB at most")
"""


def size(folder):
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def write(report, folder, **options):
    begun = time.perf_counter()
    write_bundle(report, folder, **options)
    return time.perf_counter() - begun


def verify(folder):
    done = subprocess.run([sys.executable, "-c", VERIFY, folder], capture_output=True, text=True, check=True)
    print(done.stdout, end="")


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)

    hour = large_report(layers=500, hours=1.0, rate_hz=20.0, gpus=2, steps=36_000)
    print("one hour at 20 Hz, 500 layers forward and backward on 2 GPUs, 36 000 steps")
    for samples in ("parquet", "csv.gz"):
        seconds = write(hour, folder / samples, samples=samples)
        print(f"write with sample.{samples}: {seconds:.2f} s, {size(folder / samples):.1f} MB")
    verify(folder / "parquet")

    million = large_report(layers=500_000, hours=0.01, rate_hz=20.0)
    print("a million layer rows")
    print(f"write: {write(million, folder / 'million'):.1f} s, {size(folder / 'million'):.0f} MB")
    verify(folder / "million")
