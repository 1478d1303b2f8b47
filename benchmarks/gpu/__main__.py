"""What needs a real GPU, phase by phase, each in a process of its own so that one that hangs takes no other along.

    python benchmarks/gpu [PHASE ...] [--out DIR] [--limit 120]

Prints what each phase prints; `--out` gets their files (power logs, traces, bundles).
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PHASES = (
    "facts",
    "windows",
    "wave",
    "calibrate",
    "train",
    "killed",
    "traces",
    "truth",
    "replayed",
    "steps",
    "host",
    "experts",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", nargs="*", metavar="PHASE", help=", ".join(PHASES))
    parser.add_argument("--out", type=Path, default=Path("test-output/gpu"))
    parser.add_argument("--limit", type=float, default=120.0, help="seconds a phase may take")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    source = str(HERE.parents[1] / "src")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))}
    for phase in asked.phase or PHASES:
        print(f"\n## {phase}", flush=True)
        began = time.monotonic()
        command = [sys.executable, str(HERE / f"{phase}.py"), str(asked.out)]
        try:
            code = subprocess.run(command, env=env, timeout=asked.limit, check=False).returncode
        except subprocess.TimeoutExpired:
            code = f"none after {asked.limit:g} s: killed"
        print(f"## {phase}: exit code {code}, {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
